"""What must not be said, known by keyed hashes alone.

An edit that forgets keeps of the old value nothing but marks: ``<key's name>:<HMAC-SHA-256 of its folded words, 128 bits>``. The key lies
in the home (``forget.key``), apart from the ledger, so that neither an export nor a copy of the ledger lets anybody try values. A text
says the value when one of its runs of words has its mark.

Marks of another key (an edit that was imported) tell nothing here; whoever asks is answered with the refusal wherever there is doubt.
"""

from __future__ import annotations

import hmac
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from ke_tools.errors import cannot_write
from ke_tools.facts import squash
from ke_tools.memory import keyfile

if TYPE_CHECKING:
    from ke_tools.facts import Edit

__all__ = ["Secret", "Watch"]

KEY: Final = "forget.key"
_NAME_DIGITS: Final = 8
_MARK_DIGITS: Final = 32
_MOST_WORDS: Final = 8  # of a value; of a longer one the first
_LONGEST: Final = 2_000  # words of a text that are looked at, from its end
_SPACELESS: Final = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts written without spaces: a character is a word
_WORD: Final = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
_LEFT_OUT: Final = "[\u2026]"


@dataclass(frozen=True, slots=True)
class Watch:
    """An edit that forgets, and how near a question is to it."""

    edit: Edit
    text: str  # of the question
    is_named: bool  # the question names the subject
    is_grey: bool  # it may ask for what is forgotten
    says_it: bool  # it says what is forgotten


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    text: str


class Secret:
    """A home's key, and what it can tell."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.name = self._digest("the name of this key")[:_NAME_DIGITS]

    @classmethod
    def found(cls, home: Path) -> Self | None:
        """The home's key, if it has one that can be read."""
        try:
            key = (home / KEY).read_bytes()
        except OSError:
            return None
        return cls(key) if len(key) == keyfile.KEY_BYTES else None

    @classmethod
    def passing(cls) -> Self:
        """A key that nobody keeps, for what is only tried."""
        return cls(secrets.token_bytes(keyfile.KEY_BYTES))

    @classmethod
    def made(cls, home: Path) -> Self:
        """The home's key, which is made where there is none.

        Raises:
            ReadOnly, ResourceExhausted: it cannot be written.
        """
        path = home / KEY
        try:
            return cls(keyfile.made(path))
        except OSError as error:
            raise cannot_write(path, error) from error

    def mark(self, value: str) -> str:
        """The mark of a value; "" of one without words."""
        words = [word.text for word in _words(value)][:_MOST_WORDS]
        return self._mark(words) if words else ""

    def knows(self, marks: Sequence[str]) -> bool:
        """Whether there are marks, and all are of this key."""
        return bool(marks) and all(mark.partition(":")[0] == self.name for mark in marks)

    def says(self, text: str, marks: Sequence[str], *, besides: Iterable[str] = ()) -> bool:
        """Whether a text says a marked value; not counted where that is a part of one of the names ``besides``."""
        return next(self._spans(text, marks, besides), None) is not None

    def redacted(self, text: str, marks: Sequence[str]) -> str:
        """A text with dots in place of marked values."""
        plain = unicodedata.normalize("NFC", text)
        for start, end in sorted(self._spans(plain, marks, ()), reverse=True):
            plain = plain[:start] + _LEFT_OUT + plain[end:]
        return plain

    def _spans(self, text: str, marks: Sequence[str], besides: Iterable[str]) -> Iterator[tuple[int, int]]:
        words = _words(text)[-_LONGEST:]
        wanted = frozenset(marks)
        taken = list(_places(words, besides))
        start = 0
        while start < len(words):
            longest = min(_MOST_WORDS, len(words) - start)
            for size in range(longest, 0, -1):
                is_inside = any(first <= start and start + size <= last for first, last in taken)
                if not is_inside and self._mark([word.text for word in words[start : start + size]]) in wanted:
                    yield words[start].start, words[start + size - 1].end
                    start += size - 1
                    break
            start += 1

    def _mark(self, words: Sequence[str]) -> str:
        return f"{self.name}:{self._digest(' '.join(words))}"

    def _digest(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()[:_MARK_DIGITS]


def _words(text: str) -> list[_Word]:
    plain = unicodedata.normalize("NFC", text)
    found = ((match, squash(match.group())) for match in _WORD.finditer(plain))
    return [_Word(match.start(), match.end(), folded) for match, folded in found if folded]


def _places(words: Sequence[_Word], names: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Where names stand, as numbers of words."""
    folded = [word.text for word in words]
    for name in names:
        parts = [word.text for word in _words(name)]
        for start in range(len(folded) - len(parts) + 1 if parts else 0):
            if folded[start : start + len(parts)] == parts:
                yield start, start + len(parts)
