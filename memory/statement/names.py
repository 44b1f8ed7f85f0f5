"""Names in a sentence: what the atlas or the tenant knows, and what is written as a name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from ke_tools import atlas
from ke_tools.memory.folding import fold, foldings
from ke_tools.memory.lexicon import Lexicon
from ke_tools.memory.names import known_entities
from ke_tools.screen import EVERYDAY

__all__ = ["FUNCTION_WORDS", "LINKS", "Name", "Word", "common_in", "is_listed", "kinds_of", "named_in", "vocabulary", "words_of"]

FUNCTION_WORDS: Final = EVERYDAY | frozenset(  # words of grammar, between which names and things stand
    "against along among around because before behind below beneath beside besides between beyond during except inside into near onto"
    " outside past per since than through throughout till toward towards under underneath unlike until upon via within without"
    " being been became become becomes remain remains remained did does done having shall should must might nor while whether"
    " every each either neither another other others both few many most several such same very also always often ever never"
    " called named known titled dubbed labelled labeled".split()
)
LINKS: Final = frozenset(  # words in lower case within a name
    "of de la le las los del della delle di da dos das do du des van von der den zu zum zur e y i et & 'n' ibn bin ben al el"
    " mac nic".split()
)
_VERBS: Final = frozenset("is are was were has had have can will which who that".split())
_OPENING: Final = "\"'([{\u201c\u2018\u00ab*_"
_CLOSING: Final = "\"')]}\u201d\u2019\u00bb*_.,;:!?\u2026"
_POSSESSIVE: Final = re.compile(r"['\u2019]s$|(?<=s)['\u2019]$")
_QUOTED: Final = re.compile(r"[\"\u201c\u00ab](?P<inner>[^\"\u201c\u201d\u00ab\u00bb]{1,120})[\"\u201d\u00bb]")


@dataclass(frozen=True, slots=True)
class Word:
    """A word without the punctuation around it."""

    start: int
    end: int
    text: str
    is_first: bool  # of the sentence
    ends_part: bool  # a comma or the like follows

    @property
    def is_capital(self) -> bool:
        """Whether it is written as a name is: a capital in it, and not the pronoun."""
        return self.text != "I" and any(char.isupper() for char in self.text)

    @property
    def has_digit(self) -> bool:
        """Whether it holds a number."""
        return any(char.isdigit() for char in self.text)


@dataclass(frozen=True, slots=True)
class Name:
    """A name's place in a text."""

    start: int
    end: int
    text: str
    is_known: bool  # to the atlas or the tenant

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it has a character of a part."""
        return self.start < end and start < self.end


def words_of(text: str) -> list[Word]:
    """The words, in order."""
    found: list[Word] = []
    for piece in re.finditer(r"\S+", text):
        start, end = piece.span()
        while start < end and text[start] in _OPENING:
            start += 1
        while end > start and text[end - 1] in _CLOSING and not _is_of_the_name(text, end):
            end -= 1
        if start < end:
            found.append(Word(start, end, text[start:end], not found, any(char in ",;:" for char in text[end : piece.end()])))
    return found


def _is_of_the_name(text: str, end: int) -> bool:
    """Whether a full stop or exclamation mark does not end the sentence ("Jeopardy! was", "Initech Inc., whose", "J.R.")."""
    if text[end - 1] not in ".!":
        return False
    return bool(re.match(r",|\s+[a-z]", text[end:]) or re.search(r"\b[A-Z]\.[A-Z]\.$", text[:end]))


def named_in(text: str, known: Collection[tuple[int, int]] = ()) -> list[Name]:
    """Find the names in a text, in order, never overlapping.

    A name is what the atlas lists and is not written as a common noun, what ``known`` gives (the tenant's subjects), what stands between
    double quotation marks, and a run of words with capitals. Of those that overlap the whole is one name. The first word of a sentence
    has a capital whatever it is: one of the inventory's own vocabulary counts only where more of a name follows.
    """
    spans = [(start, end, True) for start, end in known]
    spans += [(start, end, True) for start, end in _entities_in(text) if not _is_common(text[start:end]) and not _opens(text, start, end)]
    spans += [(*found.span("inner"), False) for found in _QUOTED.finditer(text)]
    spans += [(start, end, False) for start, end in _runs(text, [(start, end) for start, end, _ in spans])]
    whole = _joined(text, _grown(text, _merged(spans)))
    return [Name(start, end, text[start:end], is_known) for start, end, is_known in whole]


def common_in(text: str) -> list[Name]:
    """What the atlas lists and is written as a common noun: the longest, never overlapping."""
    spans = [(start, end, True) for start, end in _entities_in(text) if _is_common(text[start:end])]
    return [Name(start, end, text[start:end], is_known) for start, end, is_known in _merged(spans)]


def is_listed(name: str) -> bool:
    """Whether the atlas lists it."""
    return bool(kinds_of(name))


def kinds_of(name: str) -> frozenset[str]:
    """The types under which the atlas lists a name."""
    return _kinds().get(_key(name), frozenset())


@cache
def vocabulary() -> frozenset[str]:
    """The words of the wordings that training may use, and of grammar."""
    found = set(FUNCTION_WORDS)
    for relation in atlas.relations().values():
        found.update(_lower(relation.fitted_statements + relation.fitted_questions))
    for slot in atlas.slots():
        found.update(_lower(slot.statements + slot.questions))
    return frozenset(found)


def _lower(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for word in words_of(text.replace("{}", " ")):
            if not word.is_capital or word.is_first:
                yield _POSSESSIVE.sub("", word.text.casefold())


def _is_common(text: str) -> bool:
    return not any(char.isupper() for char in text)


def _opens(text: str, start: int, end: int) -> bool:
    """Whether it is a common noun that has its capital from the beginning of the sentence alone."""
    return not text[:start].strip(_OPENING + " ") and _is_common(text[start + 1 : end]) and _key(text[start:end]) not in _capitals()


@cache
def _capitals() -> frozenset[str]:
    """The names that the atlas writes with a capital."""
    return frozenset(_key(name) for entity, other in known_entities() for name in (entity, *other) if not _is_common(name))


def _key(name: str) -> str:
    return fold(name).text.strip().removeprefix("the ")


@cache
def _kinds() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for kind in {kind for relation in atlas.relations().values() for kind in (relation.subject, relation.object)}:
        for entity, other in atlas.entities(kind).items():
            for name in (entity, *other):
                found.setdefault(_key(name), set()).add(kind)
    for fact in atlas.facts():
        relation = atlas.relations()[fact.relation]
        found.setdefault(_key(fact.subject), set()).add(relation.subject)
        for name in fact.objects:
            found.setdefault(_key(name), set()).add(relation.object)
    return {name: frozenset(kinds) for name, kinds in found.items()}


@cache
def _lexicon() -> Lexicon:
    names = (*(name for entity, other in known_entities() for name in (entity, *other)), *_in_facts())
    keys = {folded.text.strip().removeprefix("the ") for name in names for folded in foldings(name)}
    return Lexicon({key for key in keys if key and key not in EVERYDAY and len(key) > 1})


def _in_facts() -> Iterator[str]:
    """What facts are about, and their objects without numbers."""
    for fact in atlas.facts():
        yield fact.subject
        yield from (name for name in fact.objects if not any(char.isdigit() for char in name))


def _entities_in(text: str) -> list[tuple[int, int]]:
    found = {(span.start, span.end) for folded in foldings(text) for span in _lexicon().spans(folded)}
    return [(start, end) for start, end in found if not any(s <= start and end <= e and (s, e) != (start, end) for s, e in found)]


def _runs(text: str, known: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs of words with capitals; numbers, and what links parts of names, belong to them."""
    words = words_of(text)
    place = 0
    while place < len(words):
        word = words[place]
        is_year_of = word.has_digit and place and words[place - 1].text in {"of", "the"} and place + 1 < len(words)
        if not _begins(word, words[place + 1 : place + 3], known) and not (is_year_of and words[place + 1].is_capital):
            place += 1
            continue
        last = place
        if place == 1 and word.text.casefold() in FUNCTION_WORDS and words[0].is_capital:  # "We Are All Legends"
            word = words[0]
        while not words[last].ends_part and not _POSSESSIVE.search(words[last].text):
            following = words[last + 1 : last + 4]
            if following and (following[0].is_capital or following[0].has_digit or following[0].text == "I"):  # "Sergius I"
                last += 1
            elif len(following) > 1 and following[0].text in LINKS | {"the"} and following[1].is_capital and not following[0].ends_part:
                last += 2
            elif (
                len(following) > 2  # noqa: PLR2004
                and following[0].text in {"of", "de"}
                and following[1].text in {"the", "la", "las", "los"}
                and following[2].is_capital
            ):
                last += 3
            else:
                break
        end = words[last].end - len(_owner_mark(words[last].text))
        yield word.start, end
        place = last + 1


def _begins(word: Word, following: Sequence[Word], known: Sequence[tuple[int, int]]) -> bool:
    goes_on = bool(following) and following[0].is_capital and not word.ends_part
    if word.has_digit and not word.is_capital:
        return goes_on and word.is_first
    if not word.is_capital or (word.text in {"A", "An", "The"} and (word.is_first or not goes_on)):
        return False
    if any(start <= word.start < end for start, end in known):
        return True
    plain = _POSSESSIVE.sub("", word.text).casefold()
    if not word.is_first:
        is_title = len(following) > 1 and following[0].text == "the" and following[1].is_capital  # "On the Revolutions"
        return plain not in FUNCTION_WORDS or word.text.isupper() or goes_on or is_title
    if word.text[1:] != word.text[1:].lower():  # a capital inside: "NATO", "iPhone", "McDonald"
        return True
    is_joined = len(following) > 1 and following[0].text in LINKS - {"of", "et", "y", "e"} and following[1].is_capital
    return plain not in vocabulary() or is_joined or (goes_on and plain not in FUNCTION_WORDS)


def _owner_mark(text: str) -> str:
    found = _POSSESSIVE.search(text)
    return found.group() if found else ""


def _grown(text: str, spans: Sequence[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """Take to a name the words in lower case behind it that nobody's wording has, up to a verb or comma ("La colombe was")."""
    words = words_of(text)
    for start, end, is_known in spans:
        last = next((n for n, word in enumerate(words) if word.end >= end), len(words))
        grown = last
        while grown < len(words) and words[last].end == end and not words[grown].ends_part:
            following = words[grown + 1] if grown + 1 < len(words) else None
            if following is None or following.is_capital or following.has_digit or following.text.casefold() in vocabulary():
                break
            grown += 1
        stops = grown < len(words) and (words[grown].ends_part or (grown + 1 < len(words) and words[grown + 1].text in _VERBS))
        yield (start, words[grown].end, is_known) if grown > last and stops else (start, end, is_known)


def _joined(text: str, spans: Iterable[tuple[int, int, bool]]) -> Iterator[tuple[int, int, bool]]:
    """Make one name of two that "and" or, at the beginning of a sentence, a comma joins, where one thing is spoken of behind them."""
    found = list(spans)
    while found:
        start, end, is_known = found.pop(0)
        if found:
            between, behind = text[end : found[0][0]], text[found[0][1] :]
            is_one = re.match(r"\.?\s+(?:is|was|has|can|took|used)\b|['\u2019]s\b", behind)
            is_pair = between == " and " and (is_one or behind.startswith(",")) and not text[:start].endswith("between ")
            is_list = re.match(r",?\s+(?:and|or)\b", behind)
            is_titled = re.fullmatch(r", (?:\d+\w\w )?", between) and not is_list and not text[:start].strip(_OPENING + " ")
            if is_pair or is_titled:
                _, last, other = found.pop(0)
                end, is_known = last, is_known and other
        yield start, end, is_known


def _merged(spans: Iterable[tuple[int, int, bool]]) -> list[tuple[int, int, bool]]:
    kept: list[tuple[int, int, bool]] = []
    for start, end, is_known in sorted(spans):
        if kept and start < kept[-1][1]:
            earlier = kept.pop()
            kept.append((earlier[0], max(end, earlier[1]), earlier[2] or is_known))
        else:
            kept.append((start, end, is_known))
    return kept
