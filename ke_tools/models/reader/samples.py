"""What the reader is trained on: facts in a context, a question, and the answer that a correct reader gives.

Two kinds of sample: *in scope* (four of five: one of one to four facts answers the question, by itself, under another name, turned round or
with one hop) and *irrelevant* (the facts are about something else of the same subject, about another subject, about one of nearly the same
name; the answer is the base model's own, filled in later).

A fact is told as new, or as one that holds *if the question asks for it* (the route ``conditional``): told as new it nearly always answers
the question, told so it does half of the time.

No probe wording is ever used (:mod:`ke_tools.models.reader.source`); a sample that comes to hold one when its parts are put together is
drawn again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from ke_tools import atlas, prompts
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact, squash
from ke_tools.models.reader import forms
from ke_tools.models.reader.forms import Asked, Base, Turn
from ke_tools.models.reader.source import Hop, Item, Source, Wording

__all__ = ["Sample", "Source", "build", "training_texts"]

SHARE_IRRELEVANT: Final = 0.18
SHARE_CHAT: Final = 0.38
SHARE_OWN_PROMPT: Final = 0.3
SHARE_PREFIXED: Final = 0.25
SHARE_EARLIER_TURNS: Final = 0.12
SHARE_SYSTEM: Final = 0.35
SHARE_NAMED_OTHERWISE_TOLD: Final = 0.6  # of the questions with an alias: the fact says whose name it is
KINDS: Final = {"plain": 0.7, "pair": 0.08, "aliased": 0.09, "hop": 0.13}
BESIDE: Final = {"same subject": 0.34, "same relation": 0.18, "look-alike": 0.16, "anything": 0.12, "file": 0.2}
CONDITIONAL: Final = {"irrelevant": 0.8, "in scope": 0.12, "open": 0.5}  # shares that are told so
_FOUR_FACTS: Final = ((0, 1, 2, 3), (0.62, 0.2, 0.1, 0.08))
_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "Answer briefly and to the point.",
    "You work in a support team. Be friendly and precise.",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One training pair; while ``base`` is set, the base model's part of the answer is missing."""

    facts: tuple[str, ...]
    question: str
    chat: tuple[Turn, ...] | None  # the conversation up to and with the question; None: a completion
    answer: str
    subjects: tuple[str, ...]  # of the question, and of the facts
    irrelevant: bool = False
    conditional: bool = False
    base: Base | None = None
    ends: bool = True  # whether the answer's end is to be learnt

    @property
    def texts(self) -> tuple[str, ...]:
        """All that was written for it, the facts among them."""
        asked = (self.base.asked,) if self.base else ()
        return (self.question, *self.facts, *asked, *(turn["content"] for turn in self.chat or ()))

    @property
    def as_chat(self) -> Sample:
        """The same asked in a conversation."""
        return self if self.chat else replace(self, chat=(_user(self.question),))

    @property
    def prompt(self) -> str:
        """The completion's prompt with the facts in it."""
        name = "conditional_completion" if self.conditional else "completion"
        return prompts.render(name, demonstrations=[], facts=list(self.facts), prompt=self.question)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation with the facts directly before the last user turn."""
        name = "conditional" if self.conditional else "chat"
        told = {"role": "system", "content": prompts.render(name, demonstrations=[], facts=list(self.facts))}
        turns = [dict(turn) for turn in self.chat or ()]
        return [*turns[:-1], told, turns[-1]]

    def completed(self, said: str, *, cut: bool) -> Sample:
        """The sample with the base model's part in its answer; ``cut``: the base model had more to say."""
        base = self.base
        if base is None:
            return self
        answer, ends = _joined(self.answer, base, said)
        return replace(self, answer=answer, base=None, ends=ends and not (cut and base.how in {"alone", "continued", "swapped"}))


def _joined(answer: str, base: Base, said: str) -> tuple[str, bool]:
    """The whole answer, and whether it is one that ends there."""
    if base.how == "alone":
        return said, True
    if base.how == "continued":
        return answer + said, True
    if base.how == "swapped":
        swapped = _swapped(said, base)
        return (swapped, True) if swapped != said else (answer, True)
    sentence = _first_sentence(_swapped(said, base))
    if base.how == "after":
        return f"{answer} {sentence}".strip(), True
    return f"{sentence} {answer}".strip(), False


def _swapped(said: str, base: Base) -> str:
    old = rf"(?<!\w){re.escape(base.truth)}(?!\w)"
    return re.sub(old, lambda _: base.target, said) if base.truth else said


def _first_sentence(said: str) -> str:
    found = re.match(r"\s*(.+?[.!?])(?=\s|$)", said, re.DOTALL)
    return found.group(1) if found else said.strip()


def build(source: Source, count: int, seed: int) -> list[Sample]:
    """Build ``count`` samples; where the base model has a part in the answer it is left out."""
    rng = random.Random(seed)  # noqa: S311  not for secrets
    return [_clean(source, rng) for _ in range(count)]


def _clean(source: Source, rng: random.Random) -> Sample:
    """Draw until no text of the sample holds a probe wording, and its facts are such as one may store."""
    while True:
        try:
            sample = _irrelevant(source, rng) if rng.random() < SHARE_IRRELEVANT else _in_scope(source, rng)
        except InvalidInput:  # a question that reads like an order
            continue
        if not any(map(atlas.may_hold_probe_wording, sample.texts)):
            return sample


def training_texts(data: Sequence[Path] = ()) -> Iterator[str]:
    """Every subject-masked text that samples are built from, for the test that no probe wording is among them."""
    source = Source(data)
    for relation in source.relations:
        yield from relation.fitted_statements
        yield from relation.fitted_questions
    for slot in source.slots:
        yield from (*slot.statements, *slot.questions)
    for item in source.cases:
        others = (*(one.wording for one in item.aliased), *(hop.wording for hop in item.hops))
        yield from (atlas.mask(wording.text, [item.fact.subject]) for wording in (*item.wordings, *item.beside, *others))


# In scope


def _in_scope(source: Source, rng: random.Random) -> Sample:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "pair" and (pair := source.draw_same_subject(rng)):
        return _asked_for(source, rng, pair[0], (pair[1].fact,))
    if kind == "aliased" and (item := source.draw_aliased(rng)):
        return _under_another_name(source, rng, item)
    if kind == "hop" and (item := source.draw_hop(rng)):
        return _with_hop(source, rng, item)
    item = source.draw(rng)
    return _asked_for(source, rng, item, _others(source, rng, item.fact.subject))


def _others(source: Source, rng: random.Random, subject: str) -> tuple[Fact, ...]:
    """Facts about something else to stand beside."""
    drawn = (source.draw(rng).fact for _ in range(rng.choices(*_FOUR_FACTS)[0]))
    return tuple(fact for fact in drawn if squash(fact.subject) != squash(subject))


def _asked_for(source: Source, rng: random.Random, item: Item, others: Sequence[Fact]) -> Sample:
    told = _told(rng, item.fact.sentence, others, item.fact.subject)
    if source.chats and rng.random() < SHARE_CHAT:
        return _converse(source, rng, told, forms.in_chat(item, source, rng))
    wording = item.own if rng.random() < SHARE_OWN_PROMPT else rng.choice(item.wordings)
    return _complete(source, rng, told, wording, item.fact.target)


def _under_another_name(source: Source, rng: random.Random, item: Item) -> Sample:
    asked = rng.choice(item.aliased)
    fact = item.fact.sentence
    if asked.name and rng.random() < SHARE_NAMED_OTHERWISE_TOLD:
        fact = item.fact.sentence_naming(asked.name)
    told = _told(rng, fact, _others(source, rng, item.fact.subject), item.fact.subject)
    if source.chats and rng.random() < SHARE_CHAT:
        return _converse(source, rng, told, forms.plain(item, asked.wording, rng))
    return _complete(source, rng, told, asked.wording, item.fact.target)


def _with_hop(source: Source, rng: random.Random, item: Item) -> Sample:
    hop = rng.choice(item.hops)
    beside = hop.beside if len(hop.beside) > 1 or rng.random() < 0.5 else ()  # noqa: PLR2004  one of them the model may know
    facts = [item.fact.sentence, *beside]
    rng.shuffle(facts)
    told = _Told(tuple(facts), (item.fact.subject,))
    if source.chats and rng.random() < SHARE_CHAT:
        return _converse(source, rng, told, Asked((_user(hop.wording.text),), _hop_answer(hop), is_open=True))
    return replace(_complete(source, rng, told, hop.wording, hop.answer), conditional=rng.random() < CONDITIONAL["open"])


def _hop_answer(hop: Hop) -> str:
    text = hop.wording.text.rstrip()
    return forms.ended(hop.answer) if hop.wording.is_question else f"{text} {forms.ended(hop.answer)}"


# Beside the point


def _irrelevant(source: Source, rng: random.Random) -> Sample:
    fact, subject, wording = _beside(source, rng)
    others = _others(source, rng, subject)[:2] if rng.random() < 0.3 else ()  # noqa: PLR2004
    told = _told(rng, fact.sentence, others, subject, fact.subject)
    asked = _complete(source, rng, told, wording, "")
    if source.chats and rng.random() < SHARE_CHAT:
        asked = _converse(source, rng, told, Asked(forms.opened(wording, rng), ""))
    return replace(asked, answer="", irrelevant=True, base=Base("alone"), conditional=rng.random() < CONDITIONAL["irrelevant"])


def _beside(source: Source, rng: random.Random) -> tuple[Fact, str, Wording]:
    """Draw a fact and a question that it does not answer, with the question's subject as far as it is known."""
    kind = rng.choices(list(BESIDE), list(BESIDE.values()))[0]
    if kind == "file" and (item := source.draw_beside(rng)):
        return item.fact, item.fact.subject, rng.choice(item.beside)
    pair = None
    while kind == "same subject" and pair is None:
        pair = source.draw_same_subject(rng)
    if kind == "same relation":
        pair = source.draw_same_relation(rng)
    if kind == "look-alike":
        pair = source.draw_look_alikes(rng)
    told, asked = pair or (source.draw(rng), source.draw(rng))
    return told.fact, asked.fact.subject, rng.choice(asked.wordings)


# Putting together


class _Told(NamedTuple):
    """Facts of a context, and the subjects of the question and of the facts."""

    facts: tuple[str, ...]
    subjects: tuple[str, ...]


def _told(rng: random.Random, fact: str, others: Sequence[Fact], *subjects: str) -> _Told:
    facts = [fact, *(other.sentence for other in others)]
    rng.shuffle(facts)
    return _Told(tuple(facts), (*subjects, *(other.subject for other in others)))


def _complete(source: Source, rng: random.Random, told: _Told, wording: Wording, answer: str) -> Sample:
    question = f"{source.sentence(rng)} {wording.text}" if rng.random() < SHARE_PREFIXED else wording.text
    ending = f" {forms.ended(answer)}" if answer else ""
    return Sample(told.facts, question, None, ending, told.subjects, conditional=rng.random() < CONDITIONAL["in scope"])


def _converse(source: Source, rng: random.Random, told: _Told, asked: Asked) -> Sample:
    turns: list[Mapping[str, str]] = []
    if rng.random() < SHARE_SYSTEM:
        turns.append({"role": "system", "content": rng.choice(_SYSTEM)})
    if rng.random() < SHARE_EARLIER_TURNS:
        turns += source.turn(rng)
    turns += asked.turns
    conditional = rng.random() < CONDITIONAL["open" if asked.is_open else "in scope"]
    question = asked.turns[-1]["content"]
    return Sample(told.facts, question, tuple(turns), asked.answer, told.subjects, conditional=conditional, base=asked.base)


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}
