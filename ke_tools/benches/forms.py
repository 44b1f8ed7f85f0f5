"""``ke-tools bench forms``: conversations in many forms about an edited fact, against what the base model makes of facts that it knows.

Each form is asked twice: the unedited model about a fact that it knows, and the model that is told a counterfactual about the same subject
(through the reader or with demonstrations, no scope). The same rule says of both whether the form was handled, with the true or the new
object. So a form that the base model cannot do by itself asks no more of the edited one. Questions are the atlas's probe wordings, and
what stands around them is written for this bench alone.
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._serving import TENANT, ForcedScope, answers, serving
from ke_tools.benches.model import counterfactual
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, squash
from ke_tools.models.engine import Engine, Message, Request
from ke_tools.verify import Rate, accepted, asserts, fill, first_sentence, knows, mentions, rate

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["run"]

Via = Literal["auto", "ike", "reader", "weights"]

FACTS: Final = 24
ASKED_FOR_KNOWLEDGE: Final = 160  # a fact in four is known
ANSWER_TOKENS: Final = 48
BEHIND_THE_BASE: Final = 0.05
LENGTHS: Final = (0.5, 2.0)  # of the base's median
MISSES_SHOWN: Final = 4


@dataclass(frozen=True, slots=True)
class _Answered:
    """What a form is about: the question, its right names, a wrong one, and another question that is put beside it."""

    question: str
    subject: str
    claim: str  # a statement that the object completes
    right: tuple[str, ...]
    wrong: str
    other: str
    other_right: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Form:
    """How it is asked, and when an answer handles it."""

    turns: Callable[[_Answered], list[Message]]
    handled: Callable[[_Answered, str], bool]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _says(about: _Answered, answer: str) -> bool:
    return mentions(answer, about.right)


def _asserts(about: _Answered, answer: str) -> bool:
    return asserts(answer, about.right)


def _begins(word: str) -> Callable[[_Answered, str], bool]:
    return lambda _about, answer: squash(answer).startswith(word)


def _is_json(about: _Answered, answer: str) -> bool:
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start : end + 1])
    except ValueError:
        return False
    return isinstance(found, dict) and mentions(json.dumps(found, ensure_ascii=False), about.right)


def _is_list(about: _Answered, answer: str) -> bool:
    return answer.lstrip().startswith(("-", "*", "•", "1.")) and _says(about, answer)


def _is_one_sentence(about: _Answered, answer: str) -> bool:
    return first_sentence(answer).strip() == answer.strip() and _says(about, answer)


FORMS: Final[dict[str, _Form]] = {
    "question": _Form(lambda a: [_user(a.question)], _asserts),
    "command": _Form(lambda a: [_user(f"Answer this for our website: {a.question}")], _asserts),
    "follow_up": _Form(
        lambda a: [
            _user(f"My next question will be on {a.subject}."),
            {"role": "assistant", "content": "Go ahead."},
            _user(f"Good. {a.question}"),
        ],
        _asserts,
    ),
    "said_otherwise_before": _Form(
        lambda a: [_user(a.question), {"role": "assistant", "content": f"{a.claim} {a.wrong}."}, _user(f"Please check that. {a.question}")],
        _asserts,
    ),
    "yes": _Form(lambda a: [_user(f"Would it be right to say that {_lowered(a.claim)} {a.right[0]}?")], _begins("yes")),
    "no": _Form(lambda a: [_user(f"Would it be right to say that {_lowered(a.claim)} {a.wrong}?")], _begins("no")),
    "false_premise": _Form(lambda a: [_user(f"Given that {_lowered(a.claim)} {a.wrong}, what is the story behind it?")], _says),
    "two_parts": _Form(
        lambda a: [_user(f"I have two things to ask. First: {a.question} Second: {a.other}")],
        lambda a, answer: _says(a, answer) and mentions(answer, a.other_right),
    ),
    "first_of_two_parts": _Form(lambda a: [_user(f"I have two things to ask. First: {a.question} Second: {a.other}")], _says),
    "json": _Form(lambda a: [_user(f'{a.question} Respond in JSON: {{"result": ...}}')], _is_json),
    "one_sentence": _Form(lambda a: [_user(f"{a.question} Keep it to a single sentence.")], _is_one_sentence),
    "list": _Form(lambda a: [_user(f"{a.question} Format the reply as a list with bullet points.")], _is_list),
    "about": _Form(lambda a: [_user(f"Introduce {a.subject} to my class in a few words.")], _says),
}


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:] if text.startswith(("The ", "In ", "On ", "A ")) else text


def run(
    settings: Settings,
    *,
    facts: int = FACTS,
    seed: int = 0,
    via: Via = "auto",
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Measure the forms.

    Args:
        settings: which model, how many demonstrations; ignored but for these where ``engine`` is given.
        facts: how many known facts to ask about.
        seed: of the sample and of the swapped objects.
        via: how the fact reaches the model.
        progress: told (stage, done, total).
        engine: a loaded engine to measure instead of the settings' model.
    """
    stages = Stages(progress)
    with serving(settings, engine, stages) as served:
        bench = _Bench(served, settings, stages, via)
        chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
        pairs = list(_pairs(_known(bench, facts, chance), chance))
        if not pairs:
            raise InvalidInput("the model knows none of the facts it was asked about.", "There is nothing to compare an edit with.")
        rows = {name: _measure(bench, name, pairs) for name in FORMS}
        bars = [bar for name, row in rows.items() for bar in _bars(name, row)] + _length_bars(list(rows.values()))
        results = {"facts": len(pairs), "via": via, **rows, "misses": bench.misses, "seconds": stages.as_dict()}
        return report("forms", served.model_id, seed, results, bars)


@dataclass(slots=True)
class _Bench:
    """What all forms share."""

    engine: Engine
    settings: Settings
    stages: Stages
    via: Via
    misses: list[dict[str, str]] = field(default_factory=list)


def _known(bench: _Bench, most: int, chance: random.Random) -> list[AtlasFact]:
    """Facts with a probe question that the unedited model knows, of as many relations as there are."""
    pool = [fact for fact in atlas.facts() if (r := atlas.relations()[fact.relation]).probe_questions and r.probe_statements]
    chance.shuffle(pool)
    with bench.stages.stage("knowledge"):
        return knows(bench.engine, pool[: max(ASKED_FOR_KNOWLEDGE, 6 * most)], cache=bench.settings.cache)[:most]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A known fact as the base model is asked about it, and its counterfactual as the edited one is."""

    true: _Answered
    edited: _Answered
    edit: Edit


def _pair(fact: AtlasFact, edit: Edit, other: AtlasFact) -> _Pair:
    relation = atlas.relations()[fact.relation]
    besides = atlas.relations()[other.relation]
    true = _Answered(
        question=fill(relation.probe_questions[0], fact.subject),
        subject=fact.subject,
        claim=fill(relation.probe_statements[0], fact.subject),
        right=accepted(fact),
        wrong=edit.fact.target,
        other=fill(besides.probe_questions[0], other.subject),
        other_right=accepted(other),
    )
    new = (edit.fact.target, *atlas.aliases(edit.fact.target))
    return _Pair(true, dataclasses.replace(true, right=new, wrong=fact.objects[0]), edit)


def _pairs(known: Sequence[AtlasFact], chance: random.Random) -> Iterator[_Pair]:
    for number, fact in enumerate(known):
        edit = counterfactual(fact, chance)
        other = known[(number + 1) % len(known)]
        if edit is not None and other.subject != fact.subject:
            yield _pair(fact, edit, other)


def _measure(bench: _Bench, name: str, pairs: Sequence[_Pair]) -> dict[str, Any]:
    form = FORMS[name]
    base = [Request(messages=tuple(form.turns(pair.true)), max_tokens=ANSWER_TOKENS) for pair in pairs]
    told = [_told(bench, pair.edit, Request(messages=tuple(form.turns(pair.edited)), max_tokens=ANSWER_TOKENS)) for pair in pairs]
    before, after = answers(bench.engine, base, bench.stages, f"{name}, base"), answers(bench.engine, told, bench.stages, name)
    rows = list(zip(pairs, before, after, strict=True))
    bench.misses += [
        {"form": name, "prompt": str(form.turns(pair.edited)[-1]["content"]), "wanted": pair.edited.right[0], "answer": said}
        for pair, _, said in rows
        if not form.handled(pair.edited, said)
    ][:MISSES_SHOWN]
    return {
        "base": rate([form.handled(pair.true, said) for pair, said, _ in rows]).as_dict(),
        "edited": rate([form.handled(pair.edited, said) for pair, _, said in rows]).as_dict(),
        "says_it": rate([mentions(said, pair.edited.right) for pair, _, said in rows]).as_dict(),
        "words": {"base": _median_words(before), "edited": _median_words(after)},
    }


def _told(bench: _Bench, edit: Edit, request: Request) -> Request:
    from ke_tools.memory.router import Router

    router = Router(ForcedScope([edit]), demonstrations=bench.settings.demonstrations)
    return router.route(TENANT, request, engine=bench.engine, via=bench.via).request


def _median_words(said: Sequence[str]) -> float:
    return statistics.median(len(answer.split()) for answer in said)


def _bars(name: str, row: dict[str, Any]) -> list[Bar]:
    found, base = row["edited"], row["base"]
    edited = Rate(found["value"], found["stderr"], found["n"], 0, found["low"], found["high"])
    return [at_least(f"{name}, as the base model for what it knows", edited, round(base["value"] - BEHIND_THE_BASE, 4))]


def _length_bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The median over the forms of how many times as long as the base model's the answers are."""
    ratio = statistics.median(row["words"]["edited"] / max(1.0, row["words"]["base"]) for row in rows)
    low, high = LENGTHS
    shortest = Bar("words of an answer, share of the base model's", ratio, 0.0, low, ratio >= low)
    return [shortest, at_most("words of an answer, times the base model's", ratio, high)]
