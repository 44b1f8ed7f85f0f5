"""What do heads let in, through the whole scope (the best of all pairs of wordings)?

    python benchmarks/scope.py [--head FOLDER]... --counterfact FILE --knowedit FILE

Edits are 200 of CounterFact, 120 of KnowEdit (no subject that is in training data) and 60 of the atlas. Each row of the output is a
kind of question, each column the share of them that reach a threshold. In scope: CounterFact's paraphrases (the right edit counts)
and the atlas's probe wordings. Out of scope: CounterFact's neighbours, KnowEdit's and the atlas's other relations of the subject.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ke_tools import atlas, cases
from ke_tools.facts import Fact, squash
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Reading, Scope, head
from ke_tools.testing import memory_ledger

THRESHOLDS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)
SCOPE = resources.files("ke_tools.memory.scope")


class Question(NamedTuple):
    """A question to a tenant; where ``subject`` is given, only an edit of that counts."""

    kind: str
    tenant: str
    text: str
    subject: str = ""


def unseen(path: Path, most: int) -> list[cases.Case]:
    """Cases of a file, one a subject, whose subjects are in no training data."""
    trained = set(json.loads((SCOPE / "subjects.json").read_text("utf-8"))["training_subjects"])
    found = cases.load(path)
    by_subject = {squash(case.subject): case for case in random.Random(0).sample(found, len(found))}  # noqa: S311  no secret
    return [case for name, case in by_subject.items() if hashlib.sha256(name.encode()).hexdigest()[:8] not in trained][:most]


def of_files(ledger: Ledger, counterfact: Path, knowedit: Path) -> Iterator[Question]:
    """Make the edits of two data files, give their questions."""
    first, second = unseen(counterfact, 200), unseen(knowedit, 120)
    ledger.edit("data", [case.fact() for case in (*first, *second)], actor="bench")
    for case in first:
        yield from (Question("in: CounterFact paraphrase", "data", text, case.subject) for text in case.rephrases)
        yield from (Question("out: CounterFact neighbour", "data", text) for text, _ in case.neighbours)
    for case in second:
        yield from (Question("out: KnowEdit other relation", "data", text) for text, _ in case.same_subject[:3])


def of_atlas(ledger: Ledger) -> Iterator[Question]:
    """Make edits of the atlas's facts, ask in probe wordings."""
    rng = random.Random(1)  # noqa: S311  no secret
    known = {name: relation for name, relation in atlas.relations().items() if not relation.probe}
    sample = rng.sample([fact for fact in atlas.facts() if fact.relation in known], 60)
    for fact in {squash(fact.subject): fact for fact in sample}.values():
        relation = known[fact.relation]
        prompt = relation.statements[0].replace("{}", fact.subject)
        ledger.edit("atlas", [Fact(subject=fact.subject, prompt=prompt, target="so", relation=relation.id)], actor="bench")
        for wording in relation.probe_statements + relation.probe_questions:
            yield Question("in: atlas probe wording", "atlas", wording.replace("{}", fact.subject))
        kin = [other for other in known.values() if other.subject == relation.subject]
        others = [other for other in kin if other.id not in {relation.id, relation.inverse}]
        for other in rng.sample(others, min(5, len(others))):
            wording = rng.choice(other.probe_statements + other.probe_questions)
            yield Question("out: atlas other relation", "atlas", wording.replace("{}", fact.subject))


def best(scope: Scope, question: Question) -> float:
    """The score of the best edit that counts."""
    hits = scope.decide(question.tenant, Reading(question.text)).hits
    return max((hit.score for hit in hits if hit.how == "named" and question.subject in {"", hit.edit.fact.subject}), default=0.0)


def main() -> None:
    """Print a table for each head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", type=Path, action="append", default=[])
    parser.add_argument("--counterfact", type=Path, required=True)
    parser.add_argument("--knowedit", type=Path, required=True)
    given = parser.parse_args()
    heads: Sequence[Path] = given.head or [Path(str(SCOPE))]
    with memory_ledger() as ledger:
        questions = [*of_files(ledger, given.counterfact, given.knowedit), *of_atlas(ledger)]
        for folder in heads:
            trained = head.of(folder)
            scope = Scope(ledger, head=replace(trained, within=1e-6, grey=1e-6))
            scores: defaultdict[str, list[float]] = defaultdict(list)
            for question in questions:
                scores[question.kind].append(best(scope, question))
            print(f"{folder.name}: in from {trained.within}, grey from {trained.grey}")
            for kind, found in sorted(scores.items()):
                shares = (f"{threshold}: {sum(score >= threshold for score in found) / len(found):.3f}" for threshold in THRESHOLDS)
                print(f"  {kind} ({len(found)})", *shares, sep="  ")


if __name__ == "__main__":
    main()
