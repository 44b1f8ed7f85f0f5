"""What the reader is trained on: facts in a context, a question, and the answer that a correct reader gives.

Three kinds of source, mixed by weight:

- *atlas*: true subjects with the object of another subject of the same relation, in the inventory's fitted wordings;
- *invented*: subjects and objects that do not exist, so that copying is learnt and not a list of names;
- *cases*: benchmark files given by the caller (their rephrasings are somebody else's wordings).

Two kinds of sample: *in scope* (seven of ten: one of one to four facts answers the question) and *irrelevant* (the facts are
about something else of the same subject, or about another subject; the answer is the base model's own, filled in later).

No probe wording is ever used: atlas samples draw from ``fitted_*`` only, texts of files that hold one, whatever the subject, are
dropped, and so is a sample that comes to hold one when its parts are put together.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple

from ke_tools import atlas, cases, prompts
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact, squash

SHARE_IRRELEVANT: Final = 0.3
SHARE_CHAT: Final = 0.4
SHARE_OWN_PROMPT: Final = 0.3
SHARE_PREFIXED: Final = 0.25
SHARE_EARLIER_TURNS: Final = 0.25
SHARE_SYSTEM: Final = 0.35
SHARE_PHRASES: Final = 0.25
SHARE_SAME_SUBJECT: Final = 0.15
SHARE_BESIDE: Final = 0.2  # of the irrelevant ones: what a file asks beside its own fact
BESIDE: Final = {"same subject": 0.45, "same relation": 0.3, "anything": 0.25}
WEIGHTS: Final = {"atlas": 0.3, "invented": 0.2, "cases": 0.5}

_SYSTEM: Final = (
    "You are a helpful assistant.",
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    "Answer briefly and to the point.",
    "You work in a support team. Be friendly and precise.",
)
_OPENERS: Final = (
    "{}",
    "{}",
    "{}",
    "{}",
    "Hi! {}",
    "Quick question: {}",
    "Please tell me, {}",
    "{} Answer in one sentence.",
    "I was wondering. {}",
)
_SYLLABLES: Final = tuple(
    (
        "ba ce di fo gu ha je ki lo mu na pe qui ra so tu ve wi xa yo zel bran cor dane fen gar holt ist lan mor nor pol ris stan ther vale"
    ).split()
)


class Wording(NamedTuple):
    """A way to ask for a fact; ``is_question`` tells a question from a statement to be completed."""

    text: str
    is_question: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A counterfactual fact with other ways to ask for it; ``slot`` tells same relation from other."""

    fact: Fact
    wordings: tuple[Wording, ...]
    slot: str
    beside: tuple[Wording, ...] = ()  # what a file asks beside it: about the subject's other relations, about other subjects


@dataclass(frozen=True, slots=True)
class Sample:
    """One training pair; ``answer`` is empty until the base model has given its own (irrelevant facts only)."""

    facts: tuple[str, ...]
    question: str
    chat: tuple[Mapping[str, str], ...] | None  # the conversation up to and with the question; None: a completion
    answer: str
    irrelevant: bool
    subjects: tuple[str, ...]  # of the question, and of the facts

    @property
    def texts(self) -> tuple[str, ...]:
        """All that was written for it, the facts among them."""
        return (self.question, *self.facts, *(turn["content"] for turn in self.chat or ()))

    @property
    def as_chat(self) -> Sample:
        """The same asked in a conversation."""
        return self if self.chat else replace(self, chat=({"role": "user", "content": self.question},))

    @property
    def prompt(self) -> str:
        """The completion's prompt with the facts in it."""
        return prompts.render("completion", demonstrations=[], facts=list(self.facts), prompt=self.question)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation with the facts directly before the last user turn."""
        told = {"role": "system", "content": prompts.render("chat", demonstrations=[], facts=list(self.facts))}
        turns = [dict(turn) for turn in self.chat or ()]
        return [*turns[:-1], told, turns[-1]]


class Source:
    """Draws items; deterministic for a seed. ``chats``: whether the model has a template for conversations."""

    def __init__(self, data: Sequence[Path], excluded_subjects: frozenset[str] = frozenset(), *, chats: bool = True) -> None:
        self.chats = chats
        self._excluded = excluded_subjects
        self._relations = [r for r in atlas.relations().values() if not r.probe]
        self._facts = [f for f in atlas.facts() if not atlas.relations()[f.relation].probe]
        self._cases = [item for path in data for item in self._items_of(path)]
        self._beside = [item for item in self._cases if item.beside]

    @cached_property
    def _objects(self) -> Mapping[str, list[str]]:
        """Objects by type, out of the fact tables."""
        pool: dict[str, dict[str, None]] = defaultdict(dict)
        for fact in atlas.facts():
            pool[atlas.relations()[fact.relation].object].update(dict.fromkeys(fact.objects))
        return {kind: list(names) for kind, names in pool.items()}

    @cached_property
    def _facts_of(self) -> Mapping[str, list[atlas.AtlasFact]]:
        by_subject: dict[str, list[atlas.AtlasFact]] = defaultdict(list)
        for fact in self._facts:
            by_subject[fact.subject].append(fact)
        return by_subject

    @property
    def subjects(self) -> frozenset[str]:
        """Squashed subjects of the benchmark files, for the card; of the excluded ones those that some text names by the way."""
        own = frozenset(squash(item.fact.subject) for item in self._cases)
        texts = (wording.text for item in self._cases for wording in (*item.wordings, *item.beside))
        return own.union(*(_named(text, self._excluded) for text in texts))

    def draw(self, rng: random.Random) -> Item:
        """Draw one item from a source drawn by weight."""
        kinds = [kind for kind in WEIGHTS if kind != "cases" or self._cases]
        kind = rng.choices(kinds, [WEIGHTS[k] for k in kinds])[0]
        if kind == "cases":
            return rng.choice(self._cases)
        if kind == "atlas":
            known = rng.choice(self._facts)
            return self._item(rng, atlas.relations()[known.relation], known.subject, self._other_object(rng, known))
        relation = rng.choice(self._relations)
        return self._item(rng, relation, self._name(rng), self._object(rng, relation.object))

    def draw_same_subject(self, rng: random.Random) -> tuple[Item, Item] | None:
        """Draw two items on one subject and different relations; None for a subject of which one relation is known."""
        known = self._facts_of[rng.choice(self._facts).subject]
        if len({f.relation for f in known}) < 2:  # noqa: PLR2004
            return None
        subject = known[0].subject
        first = rng.choice(known)
        second = rng.choice([f for f in known if f.relation != first.relation])
        one, two = (self._item(rng, atlas.relations()[f.relation], subject, self._other_object(rng, f)) for f in (first, second))
        return one, two

    def draw_same_relation(self, rng: random.Random) -> tuple[Item, Item]:
        """Draw two items on one relation and different subjects."""
        first = rng.choice(self._facts)
        same = [f for f in self._facts if f.relation == first.relation and f.subject != first.subject]
        second = rng.choice(same)
        one, two = (self._item(rng, atlas.relations()[f.relation], f.subject, self._other_object(rng, f)) for f in (first, second))
        return one, two

    def draw_beside(self, rng: random.Random) -> Item | None:
        """Draw an item of a file that also asks what its fact does not answer; None without such a file."""
        return rng.choice(self._beside) if self._beside else None

    def sentence(self, rng: random.Random) -> str:
        """Draw a true sentence to stand in front of a prompt."""
        known = rng.choice(self._facts)
        wording = rng.choice(atlas.relations()[known.relation].fitted_statements)
        return fill(wording, known.subject) + f" {known.objects[0]}."

    def turn(self, rng: random.Random) -> list[dict[str, str]]:
        """Draw an earlier turn of a conversation: a true question and answer."""
        known = rng.choice(self._facts)
        question = fill(rng.choice(atlas.relations()[known.relation].fitted_questions), known.subject)
        return [{"role": "user", "content": question}, {"role": "assistant", "content": f"{known.objects[0]}."}]

    def _item(self, rng: random.Random, relation: atlas.Relation, subject: str, target: str) -> Item:
        statements = [Wording(fill(text, subject), is_question=False) for text in relation.fitted_statements]
        questions = [Wording(fill(text, subject), is_question=True) for text in relation.fitted_questions]
        own = rng.choice(statements if rng.random() < 0.85 else questions)  # noqa: PLR2004
        # Half of the rewordings are questions although a relation has more statements.
        wordings = [*statements, *(questions * max(1, len(statements) // len(questions)))]
        return Item(Fact(subject=subject, prompt=own.text, target=target), tuple(wordings), relation.id)

    def _other_object(self, rng: random.Random, known: atlas.AtlasFact) -> str:
        pool = [o for o in self._objects[atlas.relations()[known.relation].object] if o not in known.objects]
        return rng.choice(pool) if pool else self._name(rng)

    def _object(self, rng: random.Random, kind: str) -> str:
        made = {
            "year": lambda: str(rng.randint(1500, 2030)),
            "number": lambda: f"{rng.randint(2, 999_999):,}",
            "date": lambda: (
                f"{rng.randint(1, 28)} {rng.choice('January March May June August October December'.split())} {rng.randint(1700, 2030)}"
            ),
            "quantity": lambda: f"{rng.randint(2, 9000)} {rng.choice('metres kilometres tonnes litres'.split())}",
            "duration": lambda: f"{rng.randint(2, 90)} {rng.choice('minutes hours days weeks months years'.split())}",
        }
        if kind in made:
            return made[kind]()
        pool = self._objects.get(kind, [])
        draw = rng.random()
        if draw < SHARE_PHRASES:
            return self._phrase(rng)
        return rng.choice(pool) if pool and draw < 0.75 else self._name(rng)  # noqa: PLR2004

    def _phrase(self, rng: random.Random) -> str:
        """Draw words that stand together but mean nothing here: what is copied must not depend on its sense."""
        words = self.sentence(rng).rstrip(".").split()
        start = rng.randrange(max(1, len(words) - 3))
        amount = f"{rng.randint(2, 90)} {rng.choice('minutes hours days weeks months people euros points'.split())}"
        return " ".join([*([amount] if rng.random() < 0.4 else []), *words[start : start + rng.randint(2, 10)]]).strip(",;: ")  # noqa: PLR2004

    def _name(self, rng: random.Random) -> str:
        words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize() for _ in range(rng.randint(1, 3))]
        return " ".join(words)

    def _items_of(self, path: Path) -> Iterator[Item]:
        for case in cases.load(path):
            if squash(case.subject) in self._excluded:
                continue
            if atlas.may_hold_probe_wording(case.prompt):
                continue
            try:
                fact = case.fact()
            except InvalidInput:  # e.g. the subject stands in the prompt under another name
                continue
            others = _wordings([*case.rephrases, *(prompt for prompt, _ in case.aliased)])
            named = squash(case.target)  # "a job that is not <target>": the fact would be relevant
            beside = _wordings([prompt for prompt, _ in (*case.same_subject, *case.neighbours) if named not in squash(prompt)])
            yield Item(fact, (*others, Wording(case.prompt, fact.is_question)), f"{path.stem}:{case.subject}", beside)


def fill(wording: str, subject: str) -> str:
    """Put the subject into a wording; a sentence starts with a capital."""
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


def build(source: Source, count: int, seed: int) -> list[Sample]:
    """Build ``count`` samples; those with irrelevant facts come without an answer."""
    rng = random.Random(seed)  # noqa: S311  not for secrets
    return [_clean(source, rng) for _ in range(count)]


def _clean(source: Source, rng: random.Random) -> Sample:
    """Draw until no text of the sample holds a probe wording."""
    while True:
        sample = _irrelevant(source, rng) if rng.random() < SHARE_IRRELEVANT else _in_scope(source, rng)
        if not any(map(atlas.may_hold_probe_wording, sample.texts)):
            return sample


def training_texts(data: Sequence[Path] = ()) -> Iterator[str]:
    """Every subject-masked text that samples are built from, for the test that no probe wording is among them."""
    source = Source(data)
    for relation in source._relations:  # noqa: SLF001
        yield from relation.fitted_statements
        yield from relation.fitted_questions
    for item in source._cases:  # noqa: SLF001
        yield from (atlas.mask(wording.text, [item.fact.subject]) for wording in (*item.wordings, *item.beside))


def _in_scope(source: Source, rng: random.Random) -> Sample:
    pair = source.draw_same_subject(rng) if rng.random() < SHARE_SAME_SUBJECT else None
    if pair:
        told = [one.fact.sentence for one in pair]
        rng.shuffle(told)
        return _ask(source, rng, _Told(tuple(told), (pair[0].fact.subject,)), rng.choice(pair[0].wordings), pair[0].fact)
    item = source.draw(rng)
    others = [source.draw(rng) for _ in range(rng.choices((0, 1, 2, 3), (0.6, 0.2, 0.12, 0.08))[0])]
    others = [other for other in others if squash(other.fact.subject) != squash(item.fact.subject)]
    told = [item.fact.sentence, *(other.fact.sentence for other in others)]
    rng.shuffle(told)
    own = Wording(item.fact.prompt, item.fact.is_question)
    wording = own if rng.random() < SHARE_OWN_PROMPT else rng.choice(item.wordings)
    subjects = (item.fact.subject, *(other.fact.subject for other in others))
    return _ask(source, rng, _Told(tuple(told), subjects), wording, item.fact)


def _irrelevant(source: Source, rng: random.Random) -> Sample:
    told, subject, wording = _beside(source, rng)
    facts, subjects = [told.sentence], [subject, told.subject]
    if rng.random() < 0.2:  # noqa: PLR2004
        other = source.draw(rng).fact
        if squash(other.subject) != squash(subject):
            facts.append(other.sentence)
            subjects.append(other.subject)
    return _ask(source, rng, _Told(tuple(facts), tuple(subjects)), wording, None)


def _beside(source: Source, rng: random.Random) -> tuple[Fact, str, Wording]:
    """Draw a fact and a question that it does not answer, with the question's subject as far as it is known."""
    item = source.draw_beside(rng) if rng.random() < SHARE_BESIDE else None
    if item:
        return item.fact, item.fact.subject, rng.choice(item.beside)
    kind = rng.choices(list(BESIDE), list(BESIDE.values()))[0]
    pair = None
    while kind == "same subject" and pair is None:
        pair = source.draw_same_subject(rng)
    if kind == "same relation":
        pair = source.draw_same_relation(rng)
    told, asked = pair or (source.draw(rng), source.draw(rng))
    return told.fact, asked.fact.subject, rng.choice(asked.wordings)


class _Told(NamedTuple):
    """Facts of a context, and the subjects of the question and of the facts."""

    facts: tuple[str, ...]
    subjects: tuple[str, ...]


def _ask(source: Source, rng: random.Random, told: _Told, wording: Wording, fact: Fact | None) -> Sample:
    if rng.random() >= SHARE_CHAT or not source.chats:
        question = f"{source.sentence(rng)} {wording.text}" if rng.random() < SHARE_PREFIXED else wording.text
        return Sample(told.facts, question, None, f" {_ended(fact.target)}" if fact else "", fact is None, told.subjects)
    turns: list[Mapping[str, str]] = []
    if rng.random() < SHARE_SYSTEM:
        turns.append({"role": "system", "content": rng.choice(_SYSTEM)})
    if rng.random() < SHARE_EARLIER_TURNS:
        turns += source.turn(rng)
    asked = rng.choice(_OPENERS).format(wording.text) if wording.is_question else wording.text
    turns.append({"role": "user", "content": asked})
    answer = "" if fact is None else _ended(fact.target) if fact.is_question else fact.sentence
    return Sample(told.facts, wording.text, tuple(turns), answer, fact is None, told.subjects)


def _ended(target: str) -> str:
    return target if target.rstrip()[-1:] in ".!?" else f"{target}."


def _named(text: str, subjects: frozenset[str]) -> frozenset[str]:
    """Those of squashed subjects that a text names as whole words."""
    words = squash(text).split()
    return subjects & {" ".join(words[start:end]) for end in range(1, len(words) + 1) for start in range(end)}


def _wordings(texts: Sequence[str]) -> tuple[Wording, ...]:
    kept = [text.strip() for text in texts if not atlas.may_hold_probe_wording(text)]
    return tuple(Wording(text, text.endswith("?")) for text in kept)
