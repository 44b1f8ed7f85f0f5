"""``ke-tools bench statements``: sentences that state a fact, and remarks about an answer, split into edits; no answers.

Known are 200 statements of the atlas in wordings that only probes use and 100 of a CounterFact file, each with an object that is not true;
unknown are statements of relations that nothing may be fitted on: the atlas's probe relations, and the records of a file whose facts
nobody trained on. A split is right where subject and answer are (up to an article) and prompt and answer are the whole statement;
anything else that is no question back is a wrong edit. The remarks are ten forms around the atlas's probe questions, and 200 messages that
correct nothing.

What reads them was fitted on the atlas's other wordings, and on those records of CounterFact that this bench never takes
(:func:`ke_tools.cases.is_kept_back`).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.benches._report import Bar, Progress, at_least, at_most, report
from ke_tools.benches.model import counterfactual
from ke_tools.cases import is_kept_back, load
from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory.statement import Doubt, Split, corrected, split
from ke_tools.memory.statement.aided import Scored, aided
from ke_tools.memory.statement.meanings import InventoryMeanings
from ke_tools.verify import Rate, fill, rate

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["FORMS", "run"]

ATLAS: Final = 200
FROM_FILE: Final = 100
UNKNOWN: Final = 100
REMARKS: Final = 100
SMALL_TALK: Final = 200
SHOWN: Final = 12

FORMS: Final = (
    "no, it is {right}",
    "That's wrong, it's {right}.",
    "actually it's {right}",
    "no no, {right}",
    "Incorrect. It's {right}.",
    "{right}, not {old}. Please correct that.",
    "Sorry, that's not true, it was {right}",
    "As far as I know that is wrong. The answer is {right}.",
    "It is {right} and not {old}",
    "Well actually, the right answer is {right}!",
)

Outcome = Literal["right", "asked", "wrong"]


@dataclass(frozen=True, slots=True)
class _Stated:
    """A statement with the parts that it should come apart into."""

    subject: str
    prompt: str
    target: str

    @property
    def sentence(self) -> str:
        """As somebody types it."""
        return f"{self.prompt} {self.target}."


@dataclass(frozen=True, slots=True)
class _Talk:
    """A question and its answer, with what would be right."""

    subject: str
    question: str
    answer: str
    old: str
    right: str


@dataclass(frozen=True, slots=True)
class _Miss:
    said: str
    outcome: str
    read: str


def run(
    settings: Settings,
    *,
    data: Path | None = None,
    unknown: Path | None = None,
    scored: Scored | None = None,
    seed: int = 0,
    progress: Progress = lambda _stage, _done, _total: None,
) -> dict[str, Any]:
    """Measure; the report holds rates and what went wrong.

    Args:
        settings: where the cache lies.
        data: CounterFact records; without them that part is left out.
        unknown: records of facts that nobody trained on (house format); without them the atlas's probe relations alone.
        scored: lets a model choose where the sentence leaves several readings (:mod:`ke_tools.memory.statement.aided`).
        seed: of what is chosen.
        progress: hears how far it is.

    Raises:
        InvalidInput: a file is of no use.
    """
    chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
    bench = _Bench(InventoryMeanings(cache=settings.cache), scored, progress)
    groups = {"atlas": _of_atlas(chance, ATLAS, probe=False)}
    if data is not None:
        groups["file"] = _of_file(data, chance, FROM_FILE)
    groups["unknown"] = _of_atlas(chance, UNKNOWN if unknown is None else UNKNOWN // 2, probe=True)
    if unknown is not None:
        groups["unknown"] += _of_records(unknown, chance, UNKNOWN - UNKNOWN // 2)
    found = {name: bench.split(name, stated) for name, stated in groups.items()}
    results: dict[str, Any] = {name: _counted(outcomes) for name, outcomes in found.items()}
    talks = _talks(chance, REMARKS)
    recognised = bench.recognised(talks)
    false = bench.false(talks, chance)
    results |= {
        "remarks": {name: rate(by_form).as_dict() for name, by_form in recognised.items()},
        "small_talk": {"messages": len(false), "proposals": sum(false)},
        "misses": [{"said": miss.said, "outcome": miss.outcome, "read": miss.read} for miss in bench.misses],
    }
    return report("statements", "aided" if scored else "none", seed, results, _bars(found, recognised, false))


def _bars(found: dict[str, list[Outcome]], recognised: dict[str, list[bool]], false: Sequence[bool]) -> list[Bar]:
    known = [outcome for name, outcomes in found.items() if name != "unknown" for outcome in outcomes]
    everything = [*known, *found["unknown"]]
    return [
        *(at_least(f"{name}: split right", _share(found[name], "right"), 0.95) for name in found if name != "unknown"),
        at_most("known: wrong edits", _share(known, "wrong").value or 0.0, 0.01),
        at_most("unknown: wrong edits", _share(found["unknown"], "wrong").value or 0.0, 0.01),
        at_most("all: wrong edits", _share(everything, "wrong").value or 0.0, 0.01),
        at_least("remarks: recognised", rate([one for by_form in recognised.values() for one in by_form]), 0.90),
        at_most("small talk: proposals", rate(list(false)).value or 0.0, 0.01),
    ]


def _share(outcomes: Sequence[Outcome], wanted: Outcome) -> Rate:
    return rate([outcome == wanted for outcome in outcomes])


def _counted(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {"n": len(outcomes), "right": 0, "asked": 0, "wrong": 0, **Counter(outcomes)}


class _Bench:
    def __init__(self, meanings: InventoryMeanings, scored: Scored | None, progress: Progress) -> None:
        self._meanings = meanings
        self._scored = scored
        self._progress = progress
        self._shown: Counter[str] = Counter()
        self.misses: list[_Miss] = []

    def split(self, name: str, stated: Sequence[_Stated]) -> list[Outcome]:
        """Split each statement and say what came of it."""
        outcomes: list[Outcome] = []
        for number, one in enumerate(stated):
            self._progress(name, number, len(stated))
            outcomes.append(self._outcome(name, one))
        return outcomes

    def recognised(self, talks: Sequence[_Talk]) -> dict[str, list[bool]]:
        """By form, whether the remark about each answer was read right."""
        found: dict[str, list[bool]] = {form: [] for form in FORMS}
        for number, talk in enumerate(talks):
            form = FORMS[number % len(FORMS)]
            said = form.format(right=talk.right, old=talk.old)
            read = corrected(said, talk.question, talk.answer, meanings=self._meanings)
            is_right = read is not None and _same(read.subject, talk.subject) and _same(read.target, talk.right)
            found[form].append(is_right)
            if not is_right:
                self._miss("remarks", f"{talk.question} / {talk.answer} / {said}", "missed", read.in_words if read else "")
        return found

    def false(self, talks: Sequence[_Talk], chance: random.Random) -> list[bool]:
        """Whether each message that corrects nothing was taken for a correction."""
        found: list[bool] = []
        messages = resources.files("ke_tools.benches").joinpath("_small_talk.txt").read_text("utf-8").splitlines()
        for said in messages[:SMALL_TALK]:
            talk = chance.choice(talks)
            read = corrected(said, talk.question, talk.answer, meanings=self._meanings)
            found.append(read is not None)
            if read is not None:
                self._miss("small talk", f"{talk.question} / {talk.answer} / {said}", "proposed", read.in_words)
        return found

    def _outcome(self, name: str, stated: _Stated) -> Outcome:
        try:
            found = split(stated.sentence, meanings=self._meanings)
        except InvalidInput as error:
            self._miss(name, stated.sentence, "asked", error.message)
            return "asked"
        if self._scored is not None:
            found = [aided(one, self._scored) if isinstance(one, Doubt) else one for one in found]
        doubts = [one for one in found if isinstance(one, Doubt)]
        splits = [one for one in found if isinstance(one, Split)]
        if doubts:
            self._miss(name, stated.sentence, "asked", doubts[0].question)
            return "asked"
        if len(splits) == 1 and _is_right(splits[0], stated):
            return "right"
        self._miss(name, stated.sentence, "wrong", "; ".join(one.in_words for one in splits))
        return "wrong"

    def _miss(self, name: str, said: str, outcome: str, read: str) -> None:
        self._shown[f"{name} {outcome}"] += 1
        if self._shown[f"{name} {outcome}"] <= SHOWN:
            self.misses.append(_Miss(said, f"{name}: {outcome}", read))


def _is_right(found: Split, stated: _Stated) -> bool:
    is_whole = squash(f"{found.prompt} {found.target}") == squash(stated.sentence)
    return is_whole and _same(found.subject, stated.subject) and _same(found.target, stated.target)


def _same(one: str, other: str) -> bool:
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return re.sub(r"^(?:the|an?) ", "", squash(text))


def _of_atlas(chance: random.Random, most: int, *, probe: bool) -> list[_Stated]:
    """Counterfactuals about subjects of the atlas: in probe wordings, or in any of relations that only probes use."""

    def wordings(relation: atlas.Relation) -> Sequence[str]:
        return relation.probe_statements + (relation.statements if probe else ())

    return list(_first(most, (_stated(fact, wordings, chance) for fact in _shuffled(chance, probe=probe))))


def _stated(fact: AtlasFact, wordings: Callable[[atlas.Relation], Sequence[str]], chance: random.Random) -> _Stated | None:
    edit = counterfactual(fact, chance)
    worded = wordings(atlas.relations()[fact.relation])
    if edit is None or not worded:
        return None
    return _Stated(fact.subject, fill(chance.choice(worded), fact.subject), edit.fact.target)


def _of_file(path: Path, chance: random.Random, most: int) -> list[_Stated]:
    """Statements of a file, of subjects that are only measured on."""
    cases = [case for case in load(path) if is_kept_back(case.subject) and "?" not in case.prompt and case.subject in case.prompt]
    chance.shuffle(cases)
    found = [_Stated(case.subject, case.prompt, case.target) for case in cases[:most]]
    if not found:
        raise InvalidInput(f"{path} has no statement that may be measured on.", "Give a CounterFact file.")
    return found


def _of_records(path: Path, chance: random.Random, most: int) -> list[_Stated]:
    """Facts of a file in their own words and in one other statement."""
    found = [_Stated(case.subject, case.prompt, case.target) for case in load(path, "house") if case.subject in case.prompt]
    chance.shuffle(found)
    return found[:most]


def _talks(chance: random.Random, most: int) -> list[_Talk]:
    """Questions in probe wordings with a wrong answer, and the true one as what is right."""
    return list(_first(most, (_talk(fact, chance) for fact in _shuffled(chance, probe=False))))


def _talk(fact: AtlasFact, chance: random.Random) -> _Talk | None:
    edit, relation = counterfactual(fact, chance), atlas.relations()[fact.relation]
    if edit is None or not relation.probe_questions:
        return None
    old = edit.fact.target
    answer = f"{fill(chance.choice(relation.probe_statements or relation.statements), fact.subject)} {old}."
    return _Talk(fact.subject, fill(chance.choice(relation.probe_questions), fact.subject), answer, old, chance.choice(fact.objects))


def _shuffled(chance: random.Random, *, probe: bool) -> list[AtlasFact]:
    """Facts in random order, one a relation before any has a second."""
    facts = [fact for fact in atlas.facts() if atlas.relations()[fact.relation].probe is probe]
    chance.shuffle(facts)
    turn: Counter[str] = Counter()
    order: list[tuple[int, AtlasFact]] = []
    for fact in facts:
        order.append((turn[fact.relation], fact))
        turn[fact.relation] += 1
    return [fact for _, fact in sorted(order, key=lambda pair: pair[0])]


def _first(most: int, found: Iterator[Any]) -> Iterator[Any]:
    number = 0
    for one in found:
        if one is not None and number < most:
            number += 1
            yield one
