"""Texts and names folded before they are compared, with the way back.

Folded are case, combining marks and invisible characters, white space, apostrophes, and what Unicode does not take apart ("ø", "ł"). A
dash between letters counts as a space. Every folded character remembers where it came from, so that what is found is always a true
slice of the original text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

__all__ = ["Folded", "fold", "foldings"]

_APOSTROPHES: Final = frozenset("'\u2018\u2019\u02bc\u2032\uff07`\u00b4")
_DASHES: Final = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d")
_LETTERS: Final = str.maketrans(  # letters with a stroke and ligatures, which are letters of their own to Unicode
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ŧ": "t", "\u0131": "i", "ŋ": "n", "æ": "ae", "œ": "oe", "þ": "th"}
)
_DIGRAPHS: Final = {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa"}  # as they are written where the letter is missing
_HAS_DIGRAPHS: Final = re.compile("[äöüøåÄÖÜØÅ]|[aouAOU]\u0308|[aA]\u030a")
_MARKS: Final = {("a", "\u0308"): "ae", ("o", "\u0308"): "oe", ("u", "\u0308"): "ue", ("a", "\u030a"): "aa"}

_CONTROL: Final = "\0"
_ASCII: Final = {
    code: " " if char.isspace() else _CONTROL if not char.isprintable() else "'" if char == "`" else char.lower()
    for code, char in enumerate(map(chr, range(128)))
}
_NEEDLESS: Final = re.compile(r"(?:^|(?<= )) +")
_DASH: Final = re.compile(r"(?<=[^\W_])-(?=[^\W_])")


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text; character ``i`` comes from ``origin[i]`` of the original."""

    text: str
    origin: Sequence[int]
    length: int  # of the original

    def is_whole(self, start: int, end: int) -> bool:
        """Whether a part begins and ends where characters of the original do."""
        origin = self.origin
        begins = start == 0 or origin[start - 1] != origin[start]
        return begins and (end == len(origin) or origin[end - 1] != origin[end])

    def borders(self, start: int, end: int) -> tuple[int, int]:
        """Return a part's place in the original; marks that folding dropped belong to the character before them."""
        following = self.origin[end] if end < len(self.origin) else self.length
        return self.origin[start], max(self.origin[end - 1] + 1, following)


def fold(text: str, *, digraphs: bool = False) -> Folded:
    """Fold a text; with ``digraphs`` "ü" becomes "ue" and not "u"."""
    folded = _fold_ascii(text) if text.isascii() else None
    if folded is None:
        folded = _fold_any(text, digraphs=digraphs)
    if "-" in folded.text:
        return Folded(_DASH.sub(" ", folded.text), folded.origin, folded.length)
    return folded


def foldings(text: str) -> Iterator[Folded]:
    """Every way to fold a text: two where it has letters that are also written as two."""
    yield fold(text)
    if not text.isascii() and _HAS_DIGRAPHS.search(text):
        yield fold(text, digraphs=True)


def _fold_ascii(text: str) -> Folded | None:
    """Fold what nearly every text is, without looking at each character; ``None`` where control characters are to be dropped."""
    plain = text.translate(_ASCII)
    if _CONTROL in plain:
        return None
    parts: list[str] = []
    origin: list[int] = []
    position = 0
    for gap in _NEEDLESS.finditer(plain):
        parts.append(plain[position : gap.start()])
        origin.extend(range(position, gap.start()))
        position = gap.end()
    if not position:
        return Folded(plain, range(len(plain)), len(plain))
    return Folded("".join((*parts, plain[position:])), [*origin, *range(position, len(plain))], len(plain))


def _fold_any(text: str, *, digraphs: bool) -> Folded:
    out: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        written = _two_letters(text, index) if digraphs else ""
        for part in written or _fold_character(char):
            if part == " " and (not out or out[-1] == " "):
                continue
            out.append(part)
            origin.append(index)
    return Folded("".join(out), origin, len(text))


def _two_letters(text: str, index: int) -> str:
    char = text[index].casefold()
    return _DIGRAPHS.get(char) or _MARKS.get((char, text[index + 1 : index + 2]), "")


@lru_cache(maxsize=4096)
def _fold_character(char: str) -> str:
    if char in _APOSTROPHES:
        return "'"
    if char in _DASHES:
        return "-"
    if char.isspace():
        return " "
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    kept = "".join(c for c in folded if not unicodedata.combining(c) and unicodedata.category(c) not in {"Cf", "Cc"})
    return " " if kept.isspace() else kept.translate(_LETTERS)
