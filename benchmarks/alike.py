"""How near must a question be to an edit whose subject has a description instead of a name?

    python benchmarks/alike.py [--unrelated FILE]...

Prints for several thresholds what passes: questions for the fact in other words, questions about another thing with a similar
description, questions for something else about the same thing (all in alike.toml), and the questions of benchmark files that have
nothing to do with any of them. All facts of the table are live at once.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from ke_tools import cases
from ke_tools.facts import Fact
from ke_tools.memory.scope import Reading, Scope, alike
from ke_tools.testing import memory_ledger

THRESHOLDS = (0.74, 0.76, 0.78, 0.8, 0.82, 0.84, 0.86, 0.88)
Question = tuple[str, str]  # text, prompt of the edit that it asks for ("" for none)


def questions_of(path: Path) -> list[str]:
    """Unrelated questions of a file of cases, and its prompts."""
    found = cases.load(path)
    return list(dict.fromkeys(chain((case.prompt for case in found), (text for case in found for text, _ in case.unrelated))))


def scores(scope: Scope, questions: Iterable[Question]) -> list[float]:
    """The cosine of the edit asked for, or of the best one where none is; 0 where none is found by likeness."""
    found = []
    for text, prompt in questions:
        hits = [hit for hit in scope.decide("bench", Reading(text)).hits if hit.how == "alike"]
        found.append(max((hit.score for hit in hits if prompt in {"", hit.edit.fact.prompt}), default=0.0))
    return found


def main() -> None:
    """Ask everything, print one line a threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unrelated", type=Path, action="append", default=[])
    files: Sequence[Path] = parser.parse_args().unrelated
    edits = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["edit"]
    asked: dict[str, list[Question]] = {kind: [(text, "") for edit in edits for text in edit[kind]] for kind in ("other", "else")}
    asked["asks"] = [(text, edit["prompt"]) for edit in edits for text in edit["asks"]]
    asked |= {path.name: [(text, "") for text in questions_of(path)] for path in files}
    with memory_ledger() as ledger:
        made = ledger.edit("bench", [Fact(subject=edit["subject"], prompt=edit["prompt"], target="so") for edit in edits], actor="bench")
        print(f"{len(made)} edits, {sum(edit.alias_risky for edit in made)} of them alias_risky; in from {alike.WITHIN}")
        found = {kind: scores(Scope(ledger), questions) for kind, questions in asked.items()}
    for threshold in THRESHOLDS:
        passed = {kind: f"{sum(score >= threshold for score in of)}/{len(of)}" for kind, of in found.items()}
        print(f"{threshold:.2f}", *(f"{kind} {share}" for kind, share in passed.items()), sep="  ")


if __name__ == "__main__":
    main()
