"""Checks of the short texts that name things in the ledger; a fact checks itself."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

from ke_tools.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

EDIT_ID: Final = re.compile(r"ed_[0-9a-f]{16}")
_LONGEST: Final = {"tenant": 200, "actor": 200, "idempotency_key": 200, "ref": 200, "reason": 2000, "kind": 50}
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})


def check(**texts: str) -> None:
    """Refuse a text that is empty, too long, or holds characters that nobody sees.

    Raises:
        InvalidInput: naming the text.
    """
    for name, text in texts.items():
        if not text.strip():
            raise InvalidInput(f"{name} is empty.", f"Give the {name}.")
        if len(text) > _LONGEST[name]:
            raise InvalidInput(f"{name} has {len(text)} characters; at most {_LONGEST[name]} are allowed.", "Shorten it.")
        if hidden := next((char for char in text if unicodedata.category(char) in _HIDDEN), ""):
            raise InvalidInput(f"{name} holds the invisible character U+{ord(hidden):04X}.", "Remove it.")


def noted(reason: str, idempotency_key: str = "") -> str:
    """Check what a caller may leave out, and return the reason on one line."""
    reason = " ".join(reason.split())
    check(**{name: text for name, text in (("reason", reason), ("idempotency_key", idempotency_key)) if text})
    return reason


def known_ids(edit_ids: Sequence[str]) -> list[str]:
    """Return ids that can be ones of edits, each once.

    Raises:
        InvalidInput: there are none. NotFound: one cannot be.
    """
    ids = list(dict.fromkeys(edit_ids))
    if not ids:
        raise InvalidInput("no edit ids were given.", "list_edits shows them.")
    if malformed := [edit_id for edit_id in ids if not EDIT_ID.fullmatch(edit_id)]:
        raise NotFound(f"there is no edit {malformed[0]!r}; nothing was changed.", "list_edits shows the ids.")
    return ids
