"""The inventory's wordings that training may use, as patterns of statements; nothing that only probes may use is read here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Final, NamedTuple

from ke_tools import atlas
from ke_tools.atlas import Relation

__all__ = ["Worded", "noun_of", "worded"]

_SUBJECT: Final = "{}"
_FEWEST_LETTERS: Final = 4  # of a wording beside the subject; "{} is" would fit anything


class Worded(NamedTuple):
    """A statement in a wording of the inventory: where its subject stands, where its object begins, and its relation."""

    start: int
    end: int
    target: int
    relation: Relation


def worded(sentence: str) -> list[Worded]:
    """Find every way in which a sentence is a statement of the inventory's, the longest wordings first."""
    low = sentence.casefold()
    if len(low) != len(sentence):
        return []
    words = set(re.findall(r"[a-z]+", low))
    found = [
        (len(pattern.pattern), Worded(*match.span("subject"), match.start("object"), relation))
        for word in words
        for pattern, relation in _patterns().get(word, ())
        if (match := pattern.fullmatch(low))
    ]
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]


def noun_of(phrase: str) -> Relation | None:
    """The relation that a noun phrase names ("capital", "head coach"), where it names one only."""
    return _nouns().get(_plain(phrase))


@cache
def _patterns() -> Mapping[str, tuple[tuple[re.Pattern[str], Relation], ...]]:
    """By a word that the wording has: the longest."""
    found: dict[str, list[tuple[re.Pattern[str], Relation]]] = {}
    for relation, statement in _statements():
        before, _, after = statement.casefold().partition(_SUBJECT)
        words = re.findall(r"[a-z]+", before + " " + after)
        if sum(map(len, words)) < _FEWEST_LETTERS or not after.strip():
            continue
        written = _loose(before) + r"(?P<subject>\S.{0,200}?)" + _loose(after) + r"\s+(?P<object>\S.*)"
        found.setdefault(max(words, key=len), []).append((re.compile(written), relation))
    return MappingProxyType({word: tuple(patterns) for word, patterns in found.items()})


def _statements() -> Iterator[tuple[Relation, str]]:
    return ((relation, text) for relation in atlas.relations().values() for text in relation.fitted_statements)


def _loose(text: str) -> str:
    return re.escape(text).replace(r"\ ", r"\s+")


@cache
def _nouns() -> Mapping[str, Relation]:
    meant: dict[str, set[str]] = {}
    for relation in atlas.relations().values():
        if not relation.probe:
            for phrase in (relation.masked, *relation.plain):
                noun = phrase.removesuffix(_SUBJECT).strip()
                if _SUBJECT not in noun and (noun.endswith(" of") or _SUBJECT not in phrase):
                    meant.setdefault(_plain(noun.removesuffix(" of")), set()).add(relation.id)
    known = atlas.relations()
    return MappingProxyType({noun: known[next(iter(ids))] for noun, ids in meant.items() if len(ids) == 1})


def _plain(phrase: str) -> str:
    return " ".join(word for word in phrase.casefold().split() if word not in {"the", "a", "an", "current"})
