"""Whether a name in a text is only a part of a longer one that nobody corrected: "Quillon Gateway" in "Quillon Gateway Lite"."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_part_of_longer"]

_QUALIFYING: Final = frozenset(
    "new old north south east west northern southern eastern western upper lower greater little central inner outer mini neo".split()
)
_FOLLOWING: Final = re.compile(r"-\w|\s+(?P<word>[A-Z][a-z]\w*)(?!['\u2019]s?\b)")
_BEFORE: Final = re.compile(r"(?P<word>\b[A-Z]\w*)\s+$|\w-$")
_MOST: Final = 60  # characters beside the name that are read
_SMALL_WORDS: Final = frozenset("a an and at by for from in is of on or the to was with".split())


def is_part_of_longer(text: str, start: int, end: int, *, own: str) -> bool:
    """Tell by what stands directly beside a name.

    A capitalised word behind it, a hyphen, or a word like "New" before it makes another name; an abbreviation ("CEO") does not, and nothing
    does that stands beside the name in the edit's ``own`` words, or in a text whose small words are capitalised too.
    """
    before, behind = text[max(0, start - _MOST) : start], text[end : end + _MOST]
    if _is_title(before):
        return False
    following, preceding = _FOLLOWING.match(behind), _BEFORE.search(before)
    name = text[start:end]
    if following and f"{name}{following[0]}" not in own:
        return True
    if preceding is None or f"{preceding[0]}{name}" in own:
        return False
    return preceding["word"] is None or preceding["word"].casefold() in _QUALIFYING


def _is_title(before: str) -> bool:
    words = before.split()
    return len(words) > 1 and words[-1][:1].isupper() and words[-1].casefold() in _SMALL_WORDS
