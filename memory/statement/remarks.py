"""A plain remark that corrects the answer before it: "no, it is in Seattle", "Actually, the capital is Canberra", "Paris, not Lyon".

It must open as a correction does and give an answer that the question could have; whatever else is said about an answer is none:
thanks, jokes, opinions, questions, what somebody else said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Final

from ke_tools import atlas
from ke_tools.facts import squash
from ke_tools.memory.scope.asking import asked_in
from ke_tools.memory.scope.wording import asks, sentences_of
from ke_tools.memory.statement.endings import is_answer, is_number
from ke_tools.memory.statement.names import FUNCTION_WORDS, kinds_of, named_in, words_of
from ke_tools.memory.statement.parts import Split
from ke_tools.memory.statement.splitting import Known, Meanings, subject_of

__all__ = ["corrected"]

_LONGEST: Final = 240  # characters of a remark; longer ones say more than that
_SIGNS: Final = frozenset(  # of which an opening has one
    "no nope nah not wrong incorrect false mistaken mistake error untrue inaccurate outdated sorry oops hm hmm wait actually correction"
    " disagree afraid checked sure certain well um isn't wasn't can't cannot".split()
)
_LIGHT: Final = _SIGNS | frozenset(  # words that an opening may have beside
    "i i'm am that that's this is was it it's be you you're are your the a an answer one quite right true correct really again so but and"
    " because as since just looked up hold on there's there got have had made here pretty very in fact reality matter of far know".split()
)
_ACTUALLY: Final = r"(?:actually|in fact|in reality|really|as a matter of fact)"
_RIGHT: Final = r"(?:correct|right|real|actual|true)"
_IT: Final = rf"(?:it|that|this|he|she|they|the (?:{_RIGHT} )?(?:answer|name|one))"
_IS: Final = r"(?:['\u2019](?:s|re)|\s+(?:is|was|are|were|(?:should|must|would|ought to) (?:be|have been)))"
_NOT: Final = r"(?:,?\s+(?:and\s+)?(?:not|instead of|rather than)\s+(?P<old>[^,!?]{1,80}))?"
_LAST: Final = (
    r"(?:,? (?:now|then|of course|instead|indeed|obviously|thanks|thank you|please|by the way|today|for sure|i checked"
    r"|i['\u2019]m (?:\w+ )?(?:sure|certain)))?"
    r"(?:[\s,.!]+(?:please )?(?:fix|correct|remember|note) (?:it|that|this)(?: please)?)?[\s.!]*"
)
_TARGET: Final = r"(?P<target>[^?]{1,160}?)"


def _forms(*forms: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(form + _NOT + _LAST, re.IGNORECASE) for form in forms)


_PLAIN_FORMS: Final = _forms(  # behind an opening
    rf"{_IT}{_IS}(?:\s+{_ACTUALLY})?\s+{_TARGET}",
    rf"the (?P<noun>[a-z][\w -]{{1,40}}?)\s+(?:is|was|are|were)\s+(?:{_ACTUALLY}\s+)?{_TARGET}",
    rf"(?P<bare>{_TARGET})\s+(?:is|was|did|[a-z]+(?:ed|ote|ade|uilt))(?:\s+(?:it|that|this|so))?",
)
_BARE_FORMS: Final = _forms(rf"(?P<bare>{_TARGET})")  # behind an opening that ends in a mark
_SURE_FORMS: Final = _forms(  # with or without one
    rf"{_IT}{_IS}\s+{_ACTUALLY}\s+{_TARGET}",
    rf"(?:{_IT}\s+)?(?:should|ought to) (?:be|have been|say|read)\s+{_TARGET}",
    rf"the {_RIGHT} (?:answer|name|one)(?:\s+here)?\s+(?:is|was|would be)\s+{_TARGET}",
    rf"(?:i think |surely )?you (?:mean|meant)\s+{_TARGET}",
    rf"(?:please )?correct (?:it|that|this)(?: to| into)?\s+{_TARGET}",
    rf"(?P<bare>{_TARGET})\s+(?:is|was|would be)\s+(?:the\s+)?{_RIGHT}(?:\s+(?:answer|one|name))?",
)
_OLD: Final = r"(?P<old>[^,!?]{1,80}?)"
_NEW: Final = r"(?P<target>[^?]{1,80}?)"
_CONTRAST: Final = tuple(
    re.compile(form + _LAST, re.IGNORECASE)
    for form in (
        rf"(?:{_IT}{_IS}\s+)?{_NEW},?\s+(?:and\s+)?not\s+{_OLD}",
        rf"(?:{_IT}{_IS}\s+)?not\s+{_OLD},?\s+but\s+{_NEW}",
        rf"(?:{_IT}{_IS}\s+)?not\s+{_OLD}[,.;:!\u2013\u2014]\s*(?:{_IT}{_IS}\s+)?{_NEW}",
        rf"{_IT}\s+(?:isn['\u2019]t|wasn['\u2019]t|is not|was not)\s+{_OLD}[,.;:!\u2013\u2014]\s*(?:but\s+)?(?:{_IT}{_IS}\s+)?{_NEW}",
        rf"(?:please )?replace\s+{_OLD}\s+(?:with|by)\s+{_NEW}",
    )
)
_LED: Final = re.compile(
    r"^(?:(?:actually|really|in fact|called|named|in|at|on|by|from|known as|born in|born on|located in|situated in|based in"
    r"|made (?:by|of|in)|written by|painted by|built in|founded in|published in|released in|directed by|composed by|invented by|played by"
    r"|spoken in)\s+)+",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"^\s*[\"'\u201c\u2018>\u00ab`*]")
_DAYS: Final = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day|today|tomorrow|yesterday|god|jesus|christmas", re.IGNORECASE)
_WANTS_NUMBER: Final = re.compile(
    r"\b(?:when|how (?:many|much|long|old|tall|high|far|big|large|deep|heavy)|what year|which year|what date)\b", re.IGNORECASE
)
_WANTS_LANGUAGE: Final = re.compile(r"\b(?:language|languages|tongue|tongues|speak|spoken|speaks|written|untranslated)\b", re.IGNORECASE)
_WANTS_NAME: Final = re.compile(r"\b(?:who|whom|whose|where)\b", re.IGNORECASE)


def corrected(text: str, question: str, answer: str, *, known: Known = lambda _text: (), meanings: Meanings | None = None) -> Split | None:
    """Read a remark about an answer; ``None`` where it corrects nothing.

    Args:
        text: what was said after the answer.
        question: the turn that was answered.
        answer: what the assistant said.
        known: where a text names the tenant's own subjects.
        meanings: what a question asks for, so that an answer of another kind is none.
    """
    remark = re.sub(r"\bno{2,}\b", "no", " ".join(text.split()), flags=re.IGNORECASE)
    if not answer.strip() or len(remark) > _LONGEST or remark.endswith("?") or _QUOTED.match(remark) or re.search("[<>]", remark):
        return None
    asked = (asked_in(question) or (sentences_of(question) or [""])[-1]).strip()
    if not asked or not (asked.endswith("?") or asks(asked)):
        return None
    subject = subject_of(asked, known=known, meanings=meanings)
    if subject is None:
        return None
    meant = _Question(asked, subject.text, f"{asked[: subject.start]}{{}}{asked[subject.end :]}", meanings)
    plain = () if "?" in remark else _targets(remark, asked, answer)
    loose = (target for target in _loosely(remark, asked, answer) if meant.surely_asks_for(target))
    for target in chain(plain, loose):
        if squash(target) != squash(subject.text) and meant.takes(target):
            return Split(subject.text, asked, target, how="remark")
    return None


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked, and what can answer it."""

    asked: str
    subject: str
    masked: str
    meanings: Meanings | None

    def surely_asks_for(self, target: str) -> bool:
        """Whether an answer is beyond doubt of the kind that is asked for."""
        if is_number(target):
            return bool(_WANTS_NUMBER.search(self.asked))
        return self.meanings is not None and self._likeness >= _NEAR and not kinds_of(target).isdisjoint(self._kinds)

    def takes(self, target: str) -> bool:
        """Whether it is an answer, and of the kind that is asked for as far as that is known."""
        kinds = kinds_of(target)
        if not is_answer(target) or _DAYS.search(target) or (not kinds and _has_grammar(target)):
            return False
        if not self._fits_its_words(target, kinds):
            return False
        if self.meanings is not None and kinds and (self._likeness >= _SURE or target.islower()):
            return not kinds.isdisjoint(self._kinds) or not any(map(atlas.entities, self._kinds))
        return _is_named(target) or bool(kinds)

    def _fits_its_words(self, target: str, kinds: frozenset[str]) -> bool:
        """Whether "when" and "how many" get a number, "who" and "where" a name, and only what asks for a language gets one."""
        wants_name, wants_number = _WANTS_NAME.search(self.asked), _WANTS_NUMBER.search(self.asked)
        if wants_number and not re.search(r"\d", target) and not is_number(target):
            return False
        if wants_name and (not _is_named(target) or (is_number(target) and not wants_number)):
            return False
        return "language" not in kinds or bool(_WANTS_LANGUAGE.search(self.asked))  # "it should be in French, please"

    @property
    def _likeness(self) -> float:
        return self.meanings.nearest([self.masked])[0][1] if self.meanings else 0.0

    @property
    def _kinds(self) -> set[str]:
        """The types that may be asked for; a relation and its inverse are worded alike, and the subject's type tells them apart."""
        known, of = atlas.relations(), kinds_of(self.subject)
        likely = [known[name] for name in self.meanings.likely(self.masked, _WITHIN_OF_BEST)] if self.meanings else []
        turned = [known[relation.inverse] for relation in likely if relation.inverse in known]
        return {relation.object for relation in likely} | {relation.object for relation in turned if relation.subject in of}


def _loosely(remark: str, asked: str, answer: str) -> Iterator[str]:
    """What the last clause gives ("… it is X") behind a few words of the speaker's own; no reports of what others say."""
    for start in re.finditer(rf"(?<=[\s,.:;!?]){_IT}{_IS}\s", remark, re.IGNORECASE):
        before = re.findall(r"[\w'\u2019]+", remark[: start.start()].casefold())
        if len(before) > _MOST_OPENING or not _REPORTS.isdisjoint(before) or re.search(r"[\"\u201c>]", remark[: start.start()]):
            return
        found = _PLAIN_FORMS[0].fullmatch(remark[start.start() :])
        if found and (target := _given(found, asked, answer)):
            yield target


def _targets(remark: str, asked: str, answer: str) -> Iterator[str]:
    """What the remark may give as the answer."""
    rests = [(remark, False, False), *_openings(remark)]
    for rest, is_opened, is_marked in rests:
        for form in _CONTRAST:
            found = form.fullmatch(rest)
            if found and _says(answer, found["old"]):
                yield _plain(found["target"])
        forms = _SURE_FORMS + (_PLAIN_FORMS if is_opened else ()) + (_BARE_FORMS if is_marked else ())
        for form in forms:
            found = form.fullmatch(rest)
            if found and (target := _given(found, asked, answer)):
                yield target


def _given(found: re.Match[str], asked: str, answer: str) -> str:
    """The answer that a form gives; "" where it gives none that is new."""
    parts = found.groupdict()
    if _says(answer, found["target"]) or (parts["old"] and not _says(answer, parts["old"])):
        return ""
    if parts.get("noun") and squash(parts["noun"]) not in squash(asked):
        return ""
    target = _plain(found["target"])
    return "" if parts.get("bare") and not _is_named(target) and not kinds_of(target) else target


def _openings(remark: str) -> Iterator[tuple[str, bool, bool]]:
    """What is left behind each opening that says that the answer is not right, the longest first; and whether a mark stands between."""
    words = list(re.finditer(r"[\w'\u2019]+", remark))
    cuts: list[tuple[str, bool, bool]] = []
    has_sign = False
    for word, following in pairwise(words):
        plain = word.group().casefold().replace("\u2019", "'")
        if plain not in _LIGHT:
            break
        has_sign |= plain in _SIGNS
        between = remark[word.end() : following.start()]
        if has_sign:
            cuts.append((remark[following.start() :], True, bool(between.strip())))
    yield from reversed(cuts)


def _plain(target: str) -> str:
    return _LED.sub("", target.strip(" ,\"'\u201c\u201d\u2019").rstrip(".;:! ").rstrip("\"'\u201d\u2019")).strip()


def _says(answer: str, text: str) -> bool:
    said = squash(_plain(text))
    return bool(said) and f" {said} " in f" {squash(answer)} "


def _has_grammar(target: str) -> bool:
    return any(word.text.casefold() in FUNCTION_WORDS - _WITHIN for word in words_of(target))


def _is_named(target: str) -> bool:
    names = named_in("x " + target)
    return is_number(target) or (
        len(names) == 1 and len(names[0].text) >= len(re.sub(r"^(?:the|a|an)\s+", "", target, flags=re.IGNORECASE))
    )


_WITHIN: Final = frozenset("the a an of and in on for to by about per".split())  # in a name or an amount
_WITHIN_OF_BEST: Final = 0.12
_NEAR: Final = 0.57  # the same, for an answer of a kind that is asked for
_MOST_OPENING: Final = 8  # words
_REPORTS: Final = frozenset(  # words of those who tell what somebody says, or what they like
    "he she they his her their my our somebody someone everyone people say says said saying tell tells told think thinks thought believe"
    " believes claim claims claimed insist insists insisted heard hear read reads wrote write writes according states stated shouts sings"
    " texted quote article book film movie song show host teacher friend boss maybe perhaps if hope wish like love prefer want"
    " mean meant wonder joke kidding".split()
)
_SURE: Final = 0.7  # cosine from which what a question asks for is taken for known
