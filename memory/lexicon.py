"""A set of names that is found in texts as whole words; one more name, or one less, costs as much as its own words.

Names are looked up from the beginning of each word of a text, and the next word is looked at only where some name goes on so. Against an
Aho-Corasick automaton, which is the textbook's choice, this reads a text in the same time where few names match, and needs no building:
a new automaton of 100,000 names takes 0.3 s of one core, in which no other thread of the process runs, and it cannot be loaded
from a file that is not pickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ke_tools.memory.folding import Folded

__all__ = ["Lexicon", "Span"]

_SHORTEST_PLURAL: Final = 3  # "us" is no plural of "u"

_SPACELESS: Final = (  # scripts that are written without spaces, or whose particles follow a name without one
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1100-\u11ff"  # Hangul, decomposed
    "\u1780-\u17ff"  # Khmer
    "\u3040-\u30ff\u3130-\u318f"  # Kana
    "\u3400-\u9fff"  # Han
    "\uac00-\ud7ff"  # Hangul
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_SIGNS: Final = "\u0900-\u0963\u0966-\u0dff"  # scripts of India, whose vowel signs are no letters to Unicode and still part of a word
_TOKEN: Final = re.compile(rf"(?:[^\W_{_SPACELESS}]|[{_SIGNS}])+|[\s\S]")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a name stands in the original text; a plural's ending belongs to it."""

    start: int
    end: int
    name: str

    @property
    def size(self) -> tuple[int, int]:
        """What makes one name longer than another; one that ends in s beats the plural of one that does not."""
        return self.end - self.start, len(self.name)


class Lexicon:
    """Folded names."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Begin with some."""
        self._names: set[str] = set()
        self._begun: dict[str, int] = {}  # the words that longer names begin with → how many do
        for name in names:
            self.add(name)

    def __len__(self) -> int:
        """Count the names."""
        return len(self._names)

    def add(self, name: str) -> None:
        """Take one more."""
        if name in self._names:
            return
        self._names.add(name)
        for words in _beginnings(name):
            self._begun[words] = self._begun.get(words, 0) + 1

    def discard(self, name: str) -> None:
        """Forget one; unknown ones are no error."""
        if name not in self._names:
            return
        self._names.discard(name)
        for words in _beginnings(name):
            left = self._begun[words] - 1
            if left:
                self._begun[words] = left
            else:
                del self._begun[words]

    def spans(self, folded: Folded) -> Iterator[Span]:
        """Find every name, also those within others."""
        ends = _ends(folded.text)
        start = 0
        for place, first in enumerate(ends):
            if folded.text[start] != " ":
                for end, name in self._from(folded.text, start, ends, place):
                    if folded.is_whole(start, end):
                        yield Span(*folded.borders(start, end), name)
            start = first

    def _from(self, text: str, start: int, ends: list[int], place: int) -> Iterator[tuple[int, str]]:
        for number in range(place, len(ends)):
            end = ends[number]
            words = text[start:end]
            if words[-1] == " ":
                continue
            if words in self._names:
                yield end, words
            if words[-1] == "s":
                yield from ((end, name) for name in _singulars(words) if name in self._names)
            if words not in self._begun:
                return


def _ends(text: str) -> list[int]:
    """Where words and single signs end."""
    return [token.end() for token in _TOKEN.finditer(text)]


def _beginnings(name: str) -> list[str]:
    return [name[:end] for end in _ends(name)[:-1] if name[end - 1] != " "]


def _singulars(words: str) -> Iterator[str]:
    for ending in ("s", "es"):
        name = words.removesuffix(ending)
        if len(words) > len(name) >= _SHORTEST_PLURAL and name[-1].isalpha():
            yield name
