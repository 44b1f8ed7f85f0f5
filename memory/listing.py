"""Where a page of a list begins and ends."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.memory.events import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_ITEMS: Final = 1000


class Listing:
    """A page of a list that is read newest first; a cursor fits only the list that gave it."""

    def __init__(self, question: list[Any], limit: int, cursor: str) -> None:
        if not 1 <= limit <= _MOST_ITEMS:
            raise InvalidInput(f"limit is {limit}.", f"Give a number from 1 to {_MOST_ITEMS}.")
        self._limit = limit
        self._mark = hashlib.sha256(canonical(question).encode("utf-8", "replace")).digest()[:6]
        self._before = self._read(cursor) if cursor else 2**62

    @property
    def bounds(self) -> tuple[int, int]:
        """The sequence number that all items lie below, and how many rows to read: one more than are shown."""
        return self._before, self._limit + 1

    def next_cursor(self, seqs: Sequence[int]) -> str:
        """Name the place after this page, "" at the end of the list."""
        if len(seqs) <= self._limit:
            return ""
        return base64.urlsafe_b64encode(self._mark + seqs[self._limit - 1].to_bytes(8, "big")).decode().rstrip("=")

    def _read(self, cursor: str) -> int:
        try:
            raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != len(self._mark) + 8 or not raw.startswith(self._mark):
            raise InvalidInput(
                "the cursor does not belong to this list.", "Pass next_cursor of the page before, with the same arguments, or none."
            )
        return min(int.from_bytes(raw[len(self._mark) :], "big"), 2**62)
