"""Where samples come from: counterfactual facts with the ways to ask for them.

Four kinds of source, mixed by weight:

- *atlas*: true subjects with the object of another subject of the same relation, in the inventory's fitted wordings;
- *invented*: subjects and objects that do not exist, so that copying is learnt and not a list of names;
- *slots*: what can be asked about a firm's services, a recipe, an invented film;
- *cases*: benchmark files given by the caller (their rephrasings are somebody else's wordings).

No probe wording is ever used: only ``fitted_*`` are drawn from, and texts of files and slots that hold one are dropped. No subject that
is kept back for measuring is ever used.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, NamedTuple

from ke_tools import atlas, cases
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact, squash
from ke_tools.models.reader import invented

_RULE: Final = "the quiet-hours rule"  # a subject with which the most wordings read like an order
WEIGHTS: Final = {"atlas": 0.1, "invented": 0.08, "slots": 0.4, "cases": 0.42}
SHARE_LONG: Final = 0.18  # of the made up objects: clauses to be copied exactly
SHARE_ODD: Final = 0.07  # of a slot's: words that mean nothing there
SHARE_PHRASES: Final = 0.25
_MOST_HOPS: Final = 3


class Wording(NamedTuple):
    """A way to ask for a fact; ``is_question`` tells a question from a statement to be completed."""

    text: str
    is_question: bool


class Hop(NamedTuple):
    """A question whose answer follows from a fact and more: its answer, and what may stand beside the fact."""

    wording: Wording
    answer: str
    beside: tuple[str, ...] = ()


class Aliased(NamedTuple):
    """A question that calls the subject by another name; the name is empty where it is not known."""

    wording: Wording
    name: str


@dataclass(frozen=True, slots=True)
class Item:
    """A counterfactual fact with other ways to ask for it; ``slot`` tells same relation from other."""

    fact: Fact
    wordings: tuple[Wording, ...]
    slot: str
    kind: str = ""  # the subject's type
    masked: str = ""  # what is asked for, as a noun phrase: "the capital of Australia"
    truth: str = ""
    beside: tuple[Wording, ...] = ()  # what a file asks beside it: about the subject's other relations, about other subjects
    aliased: tuple[Aliased, ...] = ()
    hops: tuple[Hop, ...] = ()

    @property
    def own(self) -> Wording:
        """The fact's own prompt."""
        return Wording(self.fact.prompt, self.fact.is_question)


class _Pool:
    """Items of several files; a file is drawn by the root of its size, as a large one has more of the same."""

    def __init__(self, files: Sequence[Sequence[Item]]) -> None:
        self._files = [file for file in files if file]
        self._weights = [len(file) ** 0.5 for file in self._files]

    def __bool__(self) -> bool:
        return bool(self._files)

    def draw(self, rng: random.Random) -> Item:
        return rng.choice(rng.choices(self._files, self._weights)[0])


class Source:
    """Draws items; deterministic for a seed. ``chats``: whether the model has a template for conversations."""

    def __init__(self, data: Sequence[Path], excluded_subjects: frozenset[str] = frozenset(), *, chats: bool = True) -> None:
        self.chats = chats
        loaded = {path: cases.load(path) for path in data}
        kept_back = {squash(case.subject) for file in loaded.values() for case in file if cases.is_kept_back(case.subject)}
        self._excluded = excluded_subjects | kept_back
        self.relations = [r for r in atlas.relations().values() if not r.probe]
        self._facts = [f for f in atlas.facts() if not atlas.relations()[f.relation].probe and not cases.is_kept_back(f.subject)]
        files = [list(self._items_of(path.stem, file)) for path, file in loaded.items()]
        self.cases = [item for file in files for item in file]
        self._cases = _Pool(files)
        self._beside = _Pool([[item for item in file if item.beside] for file in files])
        self._aliased = _Pool([[item for item in file if item.aliased] for file in files])
        self._hops = _Pool([[item for item in file if item.hops] for file in files])

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

    @cached_property
    def slots(self) -> list[atlas.Slot]:
        """Slots without the wordings that hold one of a probe, or that no fact may have."""
        return [slot for slot in _usable_slots() if slot.statements and slot.questions]

    @cached_property
    def _slots_of(self) -> Mapping[str, list[atlas.Slot]]:
        by_type: dict[str, list[atlas.Slot]] = defaultdict(list)
        for slot in self.slots:
            by_type[slot.subject].append(slot)
        return by_type

    @property
    def subjects(self) -> frozenset[str]:
        """Squashed subjects of the benchmark files, for the card; of the excluded ones those that some text names by the way."""
        own = frozenset(squash(item.fact.subject) for item in self.cases)
        texts = (text for item in self.cases for text in _texts(item))
        return own.union(*(_named(text, self._excluded) for text in texts))

    # Items

    def draw(self, rng: random.Random) -> Item:
        """Draw one item from a source drawn by weight."""
        kinds = [kind for kind in WEIGHTS if kind != "cases" or self.cases]
        kind = rng.choices(kinds, [WEIGHTS[k] for k in kinds])[0]
        if kind == "cases":
            return self._cases.draw(rng)
        if kind == "slots" and self.slots:
            return self._of_slot(rng, rng.choice(self.slots))
        if kind == "atlas":
            return self._of_fact(rng, rng.choice(self._facts))
        relation = rng.choice(self.relations)
        return self._item(rng, relation, invented.name(rng), self._object(rng, relation.object))

    def draw_same_subject(self, rng: random.Random) -> tuple[Item, Item] | None:
        """Draw two items on one subject that ask for different things; None for a subject of which one relation is known."""
        if self.slots and rng.random() < 0.5:  # noqa: PLR2004
            first = rng.choice(self.slots)
            others = [s for s in self._slots_of[first.subject] if s.id not in {first.id, *first.near} and first.id not in s.near]
            name = self._slot_name(rng, first.subject)
            return (self._of_slot(rng, first, name), self._of_slot(rng, rng.choice(others), name)) if others else None
        known = self._facts_of[rng.choice(self._facts).subject]
        if len({f.relation for f in known}) < 2:  # noqa: PLR2004
            return None
        one = rng.choice(known)
        other = rng.choice([f for f in known if f.relation != one.relation])
        return self._of_fact(rng, one), self._of_fact(rng, other)

    def draw_same_relation(self, rng: random.Random) -> tuple[Item, Item]:
        """Draw two items on one relation and different subjects."""
        first = rng.choice(self._facts)
        same = [f for f in self._facts if f.relation == first.relation and f.subject != first.subject]
        return self._of_fact(rng, first), self._of_fact(rng, rng.choice(same))

    def draw_look_alikes(self, rng: random.Random) -> tuple[Item, Item]:
        """Draw two items that differ by a subject whose name is nearly the same."""
        if self.slots and rng.random() < 0.7:  # noqa: PLR2004
            slot = rng.choice(self.slots)
            name = self._slot_name(rng, slot.subject)
            return self._of_slot(rng, slot, name), self._of_slot(rng, slot, invented.look_alike(name, rng))
        known = rng.choice(self._facts)
        relation = atlas.relations()[known.relation]
        other = self._item(rng, relation, invented.look_alike(known.subject, rng), self._other_object(rng, known))
        return self._of_fact(rng, known), other

    def draw_beside(self, rng: random.Random) -> Item | None:
        """Draw an item of a file that also asks what its fact does not answer; None without such a file."""
        return self._beside.draw(rng) if self._beside else None

    def draw_aliased(self, rng: random.Random) -> Item | None:
        """Draw an item that a question names otherwise than its fact does."""
        if self._aliased and rng.random() < 0.6:  # noqa: PLR2004
            return self._aliased.draw(rng)
        known = rng.choice(self._with_other_names)
        item = self._of_fact(rng, known)
        name = rng.choice(atlas.aliases(known.subject))
        there = self._item(rng, atlas.relations()[known.relation], name, item.fact.target)
        return replace(item, aliased=tuple(Aliased(wording, name) for wording in there.wordings))

    def draw_hop(self, rng: random.Random) -> Item | None:
        """Draw an item with a question that needs its fact and another one."""
        if self._hops and rng.random() < 0.5:  # noqa: PLR2004
            return self._hops.draw(rng)
        if rng.random() < 0.4:  # noqa: PLR2004
            return self._turned_round(rng)
        second = rng.choice(self._facts)
        kinds = [kind for kind, names in self._objects.items() if second.subject in names]
        firsts = [f for f in self._facts if atlas.relations()[f.relation].object in kinds and second.subject not in f.objects]
        if not firsts:
            return None
        known = rng.choice(firsts)
        item = self._item(rng, atlas.relations()[known.relation], known.subject, second.subject)
        relation = atlas.relations()[second.relation]
        beside = (f"{fill(rng.choice(relation.fitted_statements), second.subject)} {second.objects[0]}.",)
        over = [*(Wording(fill(text, item.masked), is_question=True) for text in relation.fitted_questions)]
        over += [Wording(fill(text, item.masked), is_question=False) for text in relation.fitted_statements[:1]]
        return replace(item, hops=tuple(Hop(wording, second.objects[0], beside) for wording in over))

    def _turned_round(self, rng: random.Random) -> Item | None:
        """A fact that is asked for its subject by its object."""
        if rng.random() < 0.5:  # noqa: PLR2004
            known = rng.choice(self._with_inverse)
            item = self._of_fact(rng, known)
            back = atlas.relations()[atlas.relations()[known.relation].inverse]
            asked = self._item(rng, back, item.fact.target, known.subject).wordings
            return replace(item, hops=tuple(Hop(wording, known.subject) for wording in asked))
        item = self.draw(rng)
        if not (item.masked and item.kind and " of " in item.masked):
            return None
        thing, whose = item.kind.replace("_or_", " or ").replace("_", " "), f"of {item.fact.subject}"
        if not item.masked.endswith(whose):
            return None
        question = f"{item.fact.target} is {item.masked.removesuffix(whose)}of which {thing}?"
        return replace(item, hops=(Hop(Wording(fill(question, ""), is_question=True), item.fact.subject),))

    @cached_property
    def _with_other_names(self) -> list[atlas.AtlasFact]:
        return [fact for fact in self._facts if atlas.aliases(fact.subject)]

    @cached_property
    def _with_inverse(self) -> list[atlas.AtlasFact]:
        known = atlas.relations()
        return [f for f in self._facts if (back := known[f.relation].inverse) and not known[back].probe]

    # Texts

    def sentence(self, rng: random.Random) -> str:
        """Draw a true sentence to stand in front of a prompt."""
        known = rng.choice(self._facts)
        wording = rng.choice(atlas.relations()[known.relation].fitted_statements)
        return fill(wording, known.subject) + f" {known.objects[0]}."

    def turn(self, rng: random.Random) -> list[dict[str, str]]:
        """Draw an earlier turn of a conversation: a true question and answer."""
        known = rng.choice(self._facts)
        return [{"role": "user", "content": self._asked(rng, known)}, {"role": "assistant", "content": f"{known.objects[0]}."}]

    def question(self, rng: random.Random) -> str:
        """Draw a question about something true."""
        return self._asked(rng, rng.choice(self._facts))

    def _asked(self, rng: random.Random, known: atlas.AtlasFact) -> str:
        return fill(rng.choice(atlas.relations()[known.relation].fitted_questions), known.subject)

    # How items are made

    def _of_fact(self, rng: random.Random, known: atlas.AtlasFact) -> Item:
        relation = atlas.relations()[known.relation]
        return replace(self._item(rng, relation, known.subject, self._other_object(rng, known)), truth=known.objects[0])

    def _of_slot(self, rng: random.Random, slot: atlas.Slot, name: str = "") -> Item:
        name = name or self._slot_name(rng, slot.subject)
        draw = rng.random()
        target = (
            self._clause(rng) if draw < SHARE_LONG else self._phrase(rng) if draw < SHARE_LONG + SHARE_ODD else rng.choice(slot.targets)
        )
        asking = _Asking(slot.id, slot.subject, slot.masked, slot.statements, slot.questions)
        return _item(rng, asking, name, target)

    def _item(self, rng: random.Random, relation: atlas.Relation, subject: str, target: str) -> Item:
        asking = _Asking(relation.id, relation.subject, relation.masked, relation.fitted_statements, relation.fitted_questions)
        return _item(rng, asking, subject, target)

    def _slot_name(self, rng: random.Random, kind: str) -> str:
        listed = rng.choice(atlas.slot_subjects()[kind])
        return invented.look_alike(listed, rng) if rng.random() < 0.5 else listed  # noqa: PLR2004  ten names a type are few

    def _other_object(self, rng: random.Random, known: atlas.AtlasFact) -> str:
        pool = [o for o in self._objects[atlas.relations()[known.relation].object] if o not in known.objects]
        return rng.choice(pool) if pool else invented.name(rng)

    def _object(self, rng: random.Random, kind: str) -> str:
        made = invented.of_type(kind, rng)
        if made:
            return made
        pool = self._objects.get(kind, [])
        draw = rng.random()
        if draw < SHARE_PHRASES:
            return self._clause(rng) if rng.random() < SHARE_LONG else self._phrase(rng)
        return rng.choice(pool) if pool and draw < 0.75 else invented.name(rng)  # noqa: PLR2004

    def _phrase(self, rng: random.Random) -> str:
        """Draw words that stand together but mean nothing here: what is copied must not depend on its sense."""
        words = self.sentence(rng).rstrip(".").split()
        start = rng.randrange(max(1, len(words) - 3))
        some = [invented.amount(rng)] if rng.random() < 0.4 else []  # noqa: PLR2004
        return " ".join([*some, *words[start : start + rng.randint(2, 10)]]).strip(",;: ")

    def _clause(self, rng: random.Random) -> str:
        slots = [rng.choice(self.slots) for _ in range(rng.randint(1, 4))] if self.slots else []
        told = (f"{fill(rng.choice(s.statements), self._slot_name(rng, s.subject))} {rng.choice(s.targets)}" for s in slots)
        parts = [rng.choice(slots[0].targets) if slots else self._phrase(rng), *(text[:1].lower() + text[1:] for text in told)]
        return invented.clause(parts if rng.random() < 0.5 else [*parts[1:], parts[0]], rng)  # noqa: PLR2004

    def _items_of(self, name: str, file: Sequence[cases.Case]) -> Iterator[Item]:
        groups: dict[str, list[cases.Case]] = defaultdict(list)
        for case in file:
            groups[case.id.partition(".")[0]].append(case)
        for group in groups.values():
            if any(self._may_not(case) for case in group):
                continue
            facts = [case.fact().sentence for case in group]
            for case in group:
                yield _of_case(case, name, tuple(fact for fact in facts if fact != case.fact().sentence))

    def _may_not(self, case: cases.Case) -> bool:
        if squash(case.subject) in self._excluded or cases.is_kept_back(case.subject) or atlas.may_hold_probe_wording(case.prompt):
            return True
        try:
            case.fact()
        except InvalidInput:  # e.g. the subject stands in the prompt under another name
            return True
        return False


class _Asking(NamedTuple):
    """What atlas relations and slots have in common."""

    id: str
    kind: str
    masked: str
    statements: Sequence[str]
    questions: Sequence[str]


def _item(rng: random.Random, asking: _Asking, subject: str, target: str) -> Item:
    statements = [Wording(fill(text, subject), is_question=False) for text in asking.statements]
    questions = [Wording(fill(text, subject), is_question=True) for text in asking.questions]
    own = rng.choice(statements if rng.random() < 0.85 else questions)  # noqa: PLR2004
    # Half of the rewordings are questions although a relation has more statements.
    wordings = [*statements, *(questions * max(1, len(statements) // len(questions)))]
    fact = Fact(subject=subject, prompt=own.text, target=target)
    return Item(fact, tuple(wordings), asking.id, kind=asking.kind, masked=asking.masked.replace("{}", subject))


def _of_case(case: cases.Case, name: str, others: tuple[str, ...]) -> Item:
    fact = case.fact()
    named = squash(case.target)  # "a job that is not <target>": the fact would be relevant
    return Item(
        fact,
        (*_wordings(case.rephrases), Wording(case.prompt, fact.is_question)),
        f"{name}:{case.subject}",
        truth=case.truth,
        beside=_wordings([prompt for prompt, _ in (*case.same_subject, *case.neighbours) if named not in squash(prompt)]),
        aliased=tuple(Aliased(wording, case.other_name(wording.text)) for wording in _wordings([prompt for prompt, _ in case.aliased])),
        hops=tuple(
            Hop(wording, right[0], others)
            for prompt, right in (*case.reversed, *case.reasoning)[:_MOST_HOPS]
            for wording in _wordings([prompt])
            if right
        ),
    )


def fill(wording: str, subject: str) -> str:
    """Put the subject into a wording; a sentence starts with a capital."""
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


@cache
def _usable_slots() -> tuple[atlas.Slot, ...]:
    return tuple(map(_clean, atlas.slots()))


def _clean(slot: atlas.Slot) -> atlas.Slot:
    statements, questions = (tuple(text for text in texts if _may_be_told(text)) for texts in (slot.statements, slot.questions))
    return replace(slot, statements=statements, questions=questions)


def _may_be_told(wording: str) -> bool:
    """Whether a fact may be worded so: "Those who ignore the rule …" reads like an order."""
    if atlas.may_hold_probe_wording(wording):
        return False
    try:
        Fact(subject=_RULE, prompt=fill(wording, _RULE), target="so")
    except InvalidInput:
        return False
    return True


def _texts(item: Item) -> Iterator[str]:
    for wording in (*item.wordings, *item.beside, *(one.wording for one in item.aliased), *(one.wording for one in item.hops)):
        yield wording.text


def _named(text: str, subjects: frozenset[str]) -> frozenset[str]:
    """Those of squashed subjects that a text names as whole words."""
    words = squash(text).split()
    return subjects & {" ".join(words[start:end]) for end in range(1, len(words) + 1) for start in range(end)}


def _wordings(texts: Sequence[str]) -> tuple[Wording, ...]:
    kept = [text.strip() for text in texts if not atlas.may_hold_probe_wording(text)]
    return tuple(Wording(text, text.endswith("?")) for text in kept)
