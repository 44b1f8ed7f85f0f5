"""``ke-tools bench model``: what the served model knows, whether it obeys its context, whether it can ignore it.

All answers are free generation, greedy. Questions use the atlas's probe wordings; the fact that is put into the context uses an
ordinary one, as a user would write it. One fact's questions are one cluster.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas
from ke_tools.atlas import AtlasFact, Relation
from ke_tools.benches._report import Progress, Stages, report
from ke_tools.benches._serving import TENANT, ForcedScope, answers, chat, completion, serving
from ke_tools.facts import Edit, Fact, State, squash
from ke_tools.models.engine import Engine, Request
from ke_tools.verify import Rate, accepted, asserts, fill, knows, mentions, rate, same_answer

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["counterfactual", "knows", "run"]

Via = Literal["ike", "reader"]

FACTS: Final = 180  # asked about in a default run; under ten minutes on two cores with the embedded model
CONTRADICTED: Final = 36  # of these are contradicted in the context, in every way and form
ANSWER_TOKENS: Final = 16
DEMONSTRATIONS: Final = (0, 3, 6)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question about one fact."""

    fact: AtlasFact
    form: str  # statement, question, chat
    prompt: str

    @property
    def request(self) -> Request:
        return chat(self.prompt, ANSWER_TOKENS) if self.form == "chat" else completion(self.prompt, ANSWER_TOKENS)

    @property
    def cluster(self) -> str:
        return f"{self.fact.relation}\x1f{self.fact.subject}"


def run(
    settings: Settings, *, limit: int = 0, seed: int = 0, progress: Progress | None = None, engine: Engine | None = None
) -> dict[str, Any]:
    """Measure the served model.

    Args:
        settings: which model; ignored but for its name where ``engine`` is given.
        limit: how many atlas facts to ask about; 0 takes the default sample.
        seed: of the sample and of the swapped objects.
        progress: told (stage, done, total).
        engine: a loaded engine to measure instead of the settings' model.
    """
    stages = Stages(progress)
    with serving(settings, engine, stages) as served:
        chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
        sampled = _sample(limit or FACTS, chance)
        contradicted = sampled[:CONTRADICTED]
        ways = _ways(served)
        known, by_relation, base = _knowledge(served, sampled, stages)
        results = {
            "facts": len(sampled),
            "known": known,
            "known_by_relation": by_relation,
            "obedience": _obedience(served, contradicted, ways, chance, stages),
            "resistance": _resistance(served, contradicted, ways, base=base, chance=chance, stages=stages),
            "fingerprint": served.fingerprint,
            "adapters": sorted(served.adapters),
            "seconds": stages.as_dict(),
        }
        return report("model", served.model_id, seed, results)


def _sample(most: int, chance: random.Random) -> list[AtlasFact]:
    """Facts of all relations in turn, each relation's in random order; those that no probe wording can ask about are left out."""
    pools: dict[str, list[AtlasFact]] = {}
    for fact in atlas.facts():
        relation = atlas.relations()[fact.relation]
        if relation.probe_statements and relation.probe_questions:
            pools.setdefault(fact.relation, []).append(fact)
    for pool in pools.values():
        chance.shuffle(pool)
    order = sorted(pools)
    chance.shuffle(order)
    turns = ((turn, relation) for turn in range(max(map(len, pools.values()), default=0)) for relation in order)
    return [pools[relation][turn] for turn, relation in turns if turn < len(pools[relation])][:most]


def _questions(fact: AtlasFact, turn: int) -> list[_Asked]:
    """The fact as statement, question and chat, each in a probe wording."""
    relation = atlas.relations()[fact.relation]
    statement = relation.probe_statements[turn % len(relation.probe_statements)]
    question = relation.probe_questions[turn % len(relation.probe_questions)]
    return [
        _Asked(fact, "statement", fill(statement, fact.subject)),
        _Asked(fact, "question", fill(question, fact.subject)),
        _Asked(fact, "chat", fill(question, fact.subject)),
    ]


# What it knows


def _knowledge(engine: Engine, sampled: Sequence[AtlasFact], stages: Stages) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Rates by form and by relation; the base's answers by question, for the resistance."""
    asked = [question for turn, fact in enumerate(sampled) for question in _questions(fact, turn) if _can_ask(engine, question.form)]
    said = answers(engine, [question.request for question in asked], stages, "knowledge")
    right = [asserts(answer, accepted(question.fact)) for question, answer in zip(asked, said, strict=True)]
    forms = {form: _rate(asked, right, form=form).as_dict() for form in ("statement", "question", "chat")}
    relations = {name: _rate(asked, right, relation=name).as_dict() for name in sorted({fact.relation for fact in sampled})}
    base = {f"{q.form}\x1f{q.prompt}": answer for q, answer in zip(asked, said, strict=True)}
    return {**forms, "all": _rate(asked, right).as_dict()}, relations, base


def _rate(asked: Sequence[_Asked], outcomes: Sequence[bool], *, form: str = "", relation: str = "") -> Rate:
    chosen = [
        (question.cluster, outcome)
        for question, outcome in zip(asked, outcomes, strict=True)
        if form in {"", question.form} and relation in {"", question.fact.relation}
    ]
    return rate([outcome for _, outcome in chosen], [cluster for cluster, _ in chosen])


def _can_ask(engine: Engine, form: str) -> bool:
    return form != "chat" or bool(engine.chat_roles)


# What it makes of its context


@dataclass(frozen=True, slots=True)
class _Way:
    """How a fact reaches the model; with ``grey``, as it does where the scope is undecided."""

    name: str
    via: Via
    demonstrations: int
    grey: Literal["conditional", "judge", ""] = ""


def _ways(engine: Engine) -> list[_Way]:
    best: Via = "reader" if "reader" in engine.adapters else "ike"
    found = [_Way(f"ike-{count}", "ike", count) for count in DEMONSTRATIONS]
    if best == "reader":
        found.append(_Way("reader", "reader", 0))
    most = DEMONSTRATIONS[-1]
    return [*found, _Way("undecided, conditional", best, most, "conditional"), _Way("undecided, judge", best, most, "judge")]


def _obedience(
    engine: Engine, facts: Sequence[AtlasFact], ways: Sequence[_Way], chance: random.Random, stages: Stages
) -> dict[str, dict[str, Any]]:
    """How often the answer asserts a counterfactual that stands in the context, by way and form."""
    edits = [counterfactual(fact, chance) for fact in facts]
    asked = [
        (edit, question)
        for turn, (fact, edit) in enumerate(zip(facts, edits, strict=True))
        if edit is not None
        for question in _questions(fact, turn)
        if _can_ask(engine, question.form)
    ]
    questions = [question for _, question in asked]
    table: dict[str, dict[str, Any]] = {}
    for way in ways:
        requests = [_with_fact(engine, way, edit, question.request) for edit, question in asked]
        said = answers(engine, requests, stages, f"obedience {way.name}")
        obeyed = [asserts(answer, _names(edit), accepted(question.fact)) for (edit, question), answer in zip(asked, said, strict=True)]
        table[way.name] = {form: _rate(questions, obeyed, form=form).as_dict() for form in ("statement", "question", "chat")}
    return table


def _resistance(
    engine: Engine, facts: Sequence[AtlasFact], ways: Sequence[_Way], *, base: dict[str, str], chance: random.Random, stages: Stages
) -> dict[str, dict[str, Any]]:
    """What an irrelevant fact in the context does: how often its object is spoken, how often the base's answer is kept."""
    asked: list[tuple[Edit, _Asked]] = []
    for turn, fact in enumerate(facts):
        edit = _irrelevant(fact, turn, chance)
        if edit is not None:
            asked += [(edit, question) for question in _questions(fact, turn) if _can_ask(engine, question.form)]
    questions = [question for _, question in asked]
    before = [base[f"{question.form}\x1f{question.prompt}"] for question in questions]
    table: dict[str, dict[str, Any]] = {}
    for way in ways:
        requests = [_with_fact(engine, way, edit, question.request) for edit, question in asked]
        said = answers(engine, requests, stages, f"resistance {way.name}")
        rows = list(zip(asked, said, before, strict=True))
        spoken = [mentions(answer, _names(edit)) and not mentions(was, _names(edit)) for (edit, _), answer, was in rows]
        kept = [same_answer(was, answer, question.prompt) for (_, question), answer, was in rows]
        table[way.name] = {"speaks_it": _rate(questions, spoken).as_dict(), "keeps_answer": _rate(questions, kept).as_dict()}
    return table


def _with_fact(engine: Engine, way: _Way, edit: Edit, request: Request) -> Request:
    from ke_tools.memory.router import Router

    if way.grey:
        router = Router(ForcedScope([edit], "grey"), demonstrations=way.demonstrations, grey=way.grey)
    else:
        router = Router(ForcedScope([edit]), demonstrations=way.demonstrations)
    return router.route(TENANT, request, engine=engine, via=way.via).request


def counterfactual(fact: AtlasFact, chance: random.Random) -> Edit | None:
    """The fact with another object of its relation; None where the relation has no other."""
    right = {squash(name) for name in accepted(fact)}
    objects = {name for other in atlas.facts() if other.relation == fact.relation for name in other.objects}
    pool = sorted(name for name in objects if squash(name) not in right)
    return _edit(atlas.relations()[fact.relation], fact.subject, chance.choice(pool)) if pool else None


def _irrelevant(fact: AtlasFact, turn: int, chance: random.Random) -> Edit | None:
    """A counterfactual about another subject of the relation, or (every second) about another relation of the subject."""
    right = {squash(name) for name in accepted(fact)}
    same_subject = [other for other in atlas.facts() if other.subject == fact.subject and other.relation != fact.relation]
    other_subject = [other for other in atlas.facts() if other.relation == fact.relation and other.subject != fact.subject]
    pool = same_subject if turn % 2 and same_subject else other_subject
    edit = counterfactual(chance.choice(pool), chance) if pool else None
    return None if edit is None or squash(edit.fact.target) in right else edit


def _edit(relation: Relation, subject: str, target: str) -> Edit:
    prompt = fill(relation.statements[0], subject)
    return Edit(
        id=f"bench:{relation.id}:{subject}",
        tenant=TENANT,
        fact=Fact(subject=subject, prompt=prompt, target=target),
        state=State.ACTIVE,
        slot=f"{squash(subject)}\x1f{relation.id}",
        relation=relation.id,
        functional=relation.functional,
        revision=1,
        created_at="",
        actor="bench",
    )


def _names(edit: Edit) -> tuple[str, ...]:
    return (edit.fact.target, *atlas.aliases(edit.fact.target))
