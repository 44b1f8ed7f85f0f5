"""How else a name is written: initials with and without dots and spaces ("J. R. R. Tolkien", "J.R.R. Tolkien", "JRR Tolkien")."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

__all__ = ["spellings"]

_CAPITAL: Final = "A-Z\u00c0-\u00d6\u00d8-\u00de\u0391-\u03a9\u0401\u0410-\u042f"  # Latin, Greek, Cyrillic
_INITIALS: Final = re.compile(
    rf"(?<!\w)(?:[{_CAPITAL}]\.(?:\s?[{_CAPITAL}]\.)*"  # J. R. R.
    rf"|[{_CAPITAL}](?:\s[{_CAPITAL}])*(?=\s[{_CAPITAL}])"  # J R R
    rf"|[{_CAPITAL}]{{2,4}}(?=\s[{_CAPITAL}]\w))(?!\w)"  # JRR, before a word that begins with a capital
)
_FORMS: Final[tuple[Callable[[Sequence[str]], str], ...]] = (
    lambda letters: " ".join(f"{letter}." for letter in letters),
    lambda letters: "".join(f"{letter}." for letter in letters),
    " ".join,
    "".join,
)


def spellings(name: str) -> tuple[str, ...]:
    """Return the name as it is given, and with its initials written otherwise."""
    if not _INITIALS.search(name):
        return (name,)
    written = (_INITIALS.sub(lambda run, form=form: form(re.findall(r"\w", run[0])), name) for form in _FORMS)  # type: ignore[misc]
    return tuple(dict.fromkeys((name, *written)))
