"""Where in a statement the answer begins that stands at its end: a name, a number with its unit, a thing that the atlas lists, a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Final

from ke_tools import atlas
from ke_tools.memory.statement.names import FUNCTION_WORDS, Name, Word, common_in, kinds_of, named_in, vocabulary, words_of

__all__ = ["CLASSES", "NUMBERS", "Ending", "ending", "is_answer", "is_number", "kind_words"]

_MOST_WORDS: Final = 6  # of an answer
_MOST_OF_A_NUMBER: Final = 7
_LONGEST_UNIT: Final = 3
_JOINING: Final = frozenset("per a an to and or of from".split())
NUMBERS: Final = frozenset(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
    " thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half dozen".split()
)
CLASSES: Final = frozenset(  # what a thing is called before its name: "the name joey", "the suffix .mz"
    "name word term title genre suffix prefix number code label nickname letter colour color version port domain brand model symbol"
    " extension ending description designation abbreviation acronym motto slogan key tag command keyword".split()
)
_MONTH: Final = re.compile(r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b", re.IGNORECASE)
_TRIMMED: Final = re.compile(r"^(?:the|a|an|about|around|roughly|approximately|exactly|nearly)\s+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Ending:
    """Where the answer begins and ends, and whether its beginning is beyond doubt."""

    start: int
    end: int
    is_sure: bool


def ending(sentence: str, names: Sequence[Name]) -> Ending | None:
    """Find the answer at the end of a statement; ``None`` where it ends in a word of grammar."""
    words = words_of(sentence)
    if not words:
        return None
    end = words[-1].end
    if (last := next((name for name in names if name.end >= end), None)) is not None:
        return Ending(_with_day(words, last.start), max(end, last.end), is_sure=True)
    if (start := _number(words)) is not None:
        return Ending(start, end, is_sure=_may_precede_a_number([word for word in words if word.start < start]))
    tail = _tail(words, names)
    return _of_tail(sentence, tail, _verb(words, tail, names)) if tail else None


def _of_tail(sentence: str, tail: Sequence[Word], verb: Sequence[Word]) -> Ending:
    """Where among the last words in lower case the answer begins: sure where something listed, or a word behind what it is called."""
    end = tail[-1].end
    listed = next((name for name in common_in(sentence) if name.end == end), None)
    begun = [word for word in tail if word.start < (listed.start if listed else tail[-1].start)]
    if listed is not None and not begun:
        return Ending(listed.start, end, is_sure=True)
    if (later := _listed_later(sentence, tail)) is not None:
        return Ending(later, end, is_sure=True)
    if begun and (begun[-1].text.casefold() in kind_words() | CLASSES or begun == verb):  # "the name joey", "who plays jazz"
        return Ending(listed.start if listed else tail[-1].start, end, is_sure=True)
    return Ending(tail[0].start, end, is_sure=False)


def _listed_later(sentence: str, tail: Sequence[Word]) -> int | None:
    """Where the longest end of the tail begins that the atlas lists, if the word before it is none that may belong to it."""
    for before, word in pairwise(tail):
        if kinds_of(sentence[word.start : tail[-1].end]):
            low = before.text.casefold()
            return word.start if low in vocabulary() or low.endswith(("ed", "ing", "ion")) else None
    return None


def is_answer(text: str) -> bool:
    """Whether a text can be an answer as a whole: one name, a number with its unit, something listed, a few words without grammar."""
    whole = _TRIMMED.sub("", text.strip())
    plain = whole.rstrip(".!")
    words = words_of(plain)
    if not words or len(plain) > 200:  # noqa: PLR2004
        return False
    if kinds_of(plain) or kinds_of(whole):
        return True
    names = named_in("x " + plain)  # no word is the first of a sentence
    if len(names) == 1 and (names[0].start, names[0].end) == (2 + words[0].start, 2 + words[-1].end):
        return True
    if _number(words) == words[0].start:
        return True
    inner = [word.text.casefold() for word in words]
    is_plain = not any(word in FUNCTION_WORDS - {"of", "for", "per", "and"} for word in inner) and not any(w.ends_part for w in words[:-1])
    return is_plain and len(words) <= _MOST_WORDS and "and" not in inner and not names


def is_number(text: str) -> bool:
    """Whether an answer is a number, with or without a unit."""
    words = words_of(_TRIMMED.sub("", text.strip()))
    return bool(words) and _number(words) == words[0].start


def _may_precede_a_number(before: Sequence[Word]) -> bool:
    """Whether a number begins the answer there: not behind a noun that it may be a part of ("chromosome 21", "kernel 5.10")."""
    if not before or before[-1].ends_part or before[-1].is_capital:
        return True
    low = before[-1].text.casefold()
    return low in FUNCTION_WORDS | CLASSES or low in kind_words() or low.endswith(("s", "ed"))


def _with_day(words: Sequence[Word], start: int) -> int:
    """A day before a month belongs to the date."""
    place = next((n for n, word in enumerate(words) if word.start == start), 0)
    is_date = place and words[place - 1].has_digit and _MONTH.match(words[place].text)
    return words[place - 1].start if is_date else start


def _number(words: Sequence[Word]) -> int | None:
    first: int | None = None
    is_joined = False  # whether a word that joins stands between a number and the one behind it
    for place, word in reversed(list(enumerate(words))[-_MOST_OF_A_NUMBER:]):
        low = word.text.casefold()
        is_number = word.has_digit or low in NUMBERS
        is_apart = first is not None and (word.ends_part or (is_number and not is_joined and not _touch(word.end, first)))
        if is_apart:
            break
        if is_number:
            first, is_joined = word.start, False
        elif len(low) <= _LONGEST_UNIT and place and words[place - 1].has_digit:  # "2,200 W"
            continue
        elif word.is_capital or (low in FUNCTION_WORDS and low not in _JOINING):
            break
        else:
            is_joined = is_joined or low in _JOINING
    return first


def _touch(end: int, start: int) -> bool:
    return start - end <= 1


def _verb(words: Sequence[Word], tail: Sequence[Word], names: Sequence[Name]) -> list[Word]:
    """The first word of the tail where it must be the verb: behind "who" or "known for", or behind the name that opens the sentence."""
    before = [word for word in words if word.start < tail[0].start] if tail else []
    if not before or len(tail) < 2:  # noqa: PLR2004
        return []
    if [word.text.casefold() for word in before[-2:]] == ["known", "for"] and tail[0].text.endswith("ing"):  # "known for playing jazz"
        return [tail[0]]
    is_opened = any(name.start == words[0].start and name.end >= before[-1].end for name in names)
    return [tail[0]] if is_opened or before[-1].text.casefold() in {"who", "which", "that"} else []


def _tail(words: Sequence[Word], names: Sequence[Name]) -> list[Word]:
    """The words behind the last word of grammar, comma or name."""
    tail: list[Word] = []
    for word in reversed(words):
        is_named = any(name.overlaps(word.start, word.end) for name in names)
        if is_named or word.text.casefold() in FUNCTION_WORDS or (tail and word.ends_part):
            break
        tail.insert(0, word)
    return tail


@cache
def kind_words() -> frozenset[str]:
    """What a relation's objects are called ("the instrument piano"); of relations that training may use."""
    return frozenset(relation.object for relation in atlas.relations().values() if not relation.probe) | {"profession", "game", "title"}
