"""Marks that only this home can make: what a reply of ours carries, so that a "yes" behind it can mean that reply and nothing else.

A mark is an HMAC over what it confirms. The key lies in the home (``chat.key``); a text that somebody quotes, pastes or makes up has no
mark that fits, and one that fits another tenant, token, fact or revision fits nothing here.
"""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Final, Self

from ke_tools.errors import ReadOnly, cannot_write
from ke_tools.memory import keyfile

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KEY", "Seal"]

KEY: Final = "chat.key"
_DIGITS: Final = 32


class Seal:
    """A home's key for what was said in chats."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def made(cls, home: Path) -> Self:
        """Read the home's key, which is made where there is none.

        Raises:
            ReadOnly, ResourceExhausted: it cannot be written.
        """
        path = home / KEY
        try:
            key = keyfile.made(path)
        except OSError as error:
            raise cannot_write(path, error) from error
        if len(key) < keyfile.KEY_BYTES:  # a torn one would let marks be made up
            raise ReadOnly(f"{path} holds no key.", "Remove it; what waits for a yes has to be said again.")
        return cls(key)

    def mark(self, *parts: object) -> str:
        """The mark of these parts, in their order."""
        return hmac.digest(self._key, json.dumps(parts, ensure_ascii=False).encode(), "sha256").hex()[:_DIGITS]

    def fits(self, mark: str, *parts: object) -> bool:
        """Whether a mark is that of these parts."""
        return hmac.compare_digest(mark.encode(), self.mark(*parts).encode())
