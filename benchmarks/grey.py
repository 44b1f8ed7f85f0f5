"""What an undecided question comes to: the fact as a conditional, the served model as judge, the base model.

Counterfactuals about true facts of the atlas are all live. Asked in probe wordings: each edit's own question, which it should change, and
the other relations of its subject, which it should not. Only the questions that the scope leaves undecided are answered, each in the
three ways.

    python benchmarks/grey.py [--facts N] [--most N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.benches._report import Stages, machine
from ke_tools.benches._serving import TENANT, answers, chat, completion, serving
from ke_tools.benches.model import counterfactual
from ke_tools.config import GREYS, Settings
from ke_tools.facts import Edit
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.router import Router
from ke_tools.memory.scope import Scope
from ke_tools.models.engine import Engine, Request
from ke_tools.verify import accepted, asserts, fill, mentions, rate, same_answer

ANSWER_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and the edit that it is about; None: it asks for something else of an edited subject."""

    request: Request
    prompt: str
    edit: Edit | None
    near: Edit
    truth: tuple[str, ...]


def main() -> None:
    """Print a table of rates, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, default=400)
    parser.add_argument("--most", type=int, default=80, help="of each kind, undecided questions")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)  # noqa: S311  reproducible choice, no secret
    settings = Settings.load()
    stages = Stages()
    with serving(settings, None, stages) as engine, closing(Ledger(":memory:")) as ledger:
        facts = list(drawn(given.facts, chance))
        edits = ledger.edit(TENANT, [edit.fact for _, edit in facts], actor="bench")
        scope = Scope(ledger)
        undecided = [one for one in questions(facts, edits) if decided(scope, engine, one) == "grey"]
        applies = [one for one in undecided if one.edit][: given.most]
        beside = [one for one in undecided if not one.edit][: given.most]
        table = {grey: measured(Router(scope, grey=grey), engine, applies, beside, stages) for grey in GREYS}
    found = {"undecided": len(undecided), "of these it applies": sum(one.edit is not None for one in undecided)}
    print(json.dumps({**found, "answered": [len(applies), len(beside)], **table, "machine": machine()}))


def drawn(most: int, chance: random.Random) -> Iterator[tuple[AtlasFact, Edit]]:
    """Facts with a probe question and a counterfactual of them, one a subject."""
    pool = [fact for fact in atlas.facts() if atlas.relations()[fact.relation].probe_questions]
    chance.shuffle(pool)
    taken: set[str] = set()
    for fact in pool:
        edit = None if fact.subject in taken else counterfactual(fact, chance)
        if edit is not None and len(taken) < most:
            taken.add(fact.subject)
            yield fact, edit


def questions(facts: Sequence[tuple[AtlasFact, Edit]], edits: Sequence[Edit]) -> Iterator[Asked]:
    """Each edit's own probe wordings, and those of its subject's other relations."""
    for (fact, _), edit in zip(facts, edits, strict=True):
        for other in (known for known in atlas.facts() if known.subject == fact.subject):
            relation = atlas.relations()[other.relation]
            own = edit if other.relation == fact.relation else None
            for text in relation.probe_statements:
                prompt = fill(text, fact.subject)
                yield Asked(completion(prompt, ANSWER_TOKENS), prompt, own, edit, accepted(other))
            for text in relation.probe_questions:
                prompt = fill(text, fact.subject)
                yield Asked(chat(prompt, ANSWER_TOKENS), prompt, own, edit, accepted(other))


def decided(scope: Scope, engine: Engine, asked: Asked) -> str:
    """The scope's zone, where the hit is the edit that it may be."""
    decision = Router(scope).route(TENANT, asked.request, engine=engine).decision
    return decision.zone if decision.hits and decision.hits[0].edit.id == asked.near.id else "out"


def measured(router: Router, engine: Engine, applies: Sequence[Asked], beside: Sequence[Asked], stages: Stages) -> dict[str, object]:
    """Rates of one way."""
    every = [*applies, *beside]
    routed = [router.route(TENANT, one.request, engine=engine).request for one in every]
    said = answers(engine, routed, stages, router.grey)
    base = answers(engine, [one.request for one in every], stages, "base")
    rows = list(zip(every, said, base, strict=True))
    heeded = [asserts(answer, (one.near.fact.target, *atlas.aliases(one.near.fact.target))) for one, answer, _ in rows[: len(applies)]]
    kept = [same_answer(was, answer, one.prompt) for one, answer, was in rows[len(applies) :]]
    spoken = [
        mentions(answer, [one.near.fact.target]) and not mentions(was, [one.near.fact.target]) for one, answer, was in rows[len(applies) :]
    ]
    return {
        "says the new object where it applies": rate(heeded).as_dict(),
        "keeps the base's answer where it does not": rate(kept).as_dict(),
        "speaks the object where it does not apply": rate(spoken).as_dict(),
        "right": rate([*heeded, *kept]).as_dict(),
    }


if __name__ == "__main__":
    main()
