"""``ke-tools bench scope``: published edits, imported at once; which questions are found to be about which edit. No language model.

A question that is about an edit must find *that* edit (recall); one that is not must find none (a false trigger is an edit in the zone
``in``; ``grey`` is counted beside it). One edit a subject; subjects that occur in training data of the scope are left out, and so are
paraphrases that do not name their subject and neighbours that name another edited one.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas, cases
from ke_tools.benches._frontier import NOT_JUDGED, frontier
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._sample import imported, with_other_names
from ke_tools.benches._sample import sample as sampled
from ke_tools.benches._serving import TENANT
from ke_tools.cases import Case
from ke_tools.facts import squash
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Decision, Reading, Scope
from ke_tools.memory.scope.corpora import relations_apart
from ke_tools.memory.scope.scorer import TrainedScorer, shipped_folder
from ke_tools.verify import Rate, rate

__all__ = ["run"]

MISSES_SHOWN: Final = 20
UNRELATED: Final = 1000
RECALL_BAR: Final = 0.98
OTHER_SUBJECT_BAR: Final = 0.005
SAME_SUBJECT_BAR: Final = 0.03
UNRELATED_BAR: Final = 0.002


@dataclass(slots=True)
class _Bench:
    scope: Scope
    stages: Stages
    refs: dict[str, str] = field(default_factory=dict)  # edit id → case id
    took: dict[str, list[float]] = field(default_factory=dict)  # stage → milliseconds
    confusions: list[dict[str, Any]] = field(default_factory=list)
    asked_for: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # row → of each question the right edit's score
    asked_besides: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # row → of each question the highest score


def run(
    *,
    data: Path,
    kind: cases.Format = "auto",
    edits: int = 1000,
    unrelated: Path | None = None,
    scope: Path | None = None,
    alpha: float | None = None,
    cache: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Import a sample of a benchmark's edits and route its questions.

    Args:
        data: a file that :func:`ke_tools.cases.load` reads.
        kind: its format.
        edits: how many edits, one a subject.
        unrelated: a file whose unrelated questions must find nothing; without it, the data's own.
        scope: folder of a trained scorer; the shipped one unless given.
        alpha: as for :class:`~ke_tools.memory.scope.Scope`; ``None``: no thresholds of their own.
        cache: where derived files are kept.
        seed: of the sample.
        progress: told (stage, done, total).

    Raises:
        InvalidInput: a file is unreadable, or holds no usable edit.
        ModelUnavailable: the scorer cannot be read.
    """
    stages = Stages(progress)
    loaded = cases.load(data, kind)
    folder = scope or shipped_folder()
    scorer = TrainedScorer(folder, cache=cache)
    sample = sampled(loaded, edits, seed, _trained(folder))
    chosen = sample.chosen
    with closing(Ledger(":memory:")) as ledger:
        bench = _Bench(Scope(ledger, scorer=scorer, alpha=alpha, cache=cache), stages)
        with stages.stage("import"):
            edits_made = list(imported(ledger.edit, chosen, with_other_names))
            bench.refs = {edit.id: edit.ref for edit in edits_made}
        with stages.stage("load"):
            bench.scope.warm()
        with stages.stage("calibrate"):
            bench.scope.calibrate(edits_made)
            if bench.scope.calibrator is not None:
                bench.scope.calibrator.settle()
        results = _measure(bench, chosen, loaded if unrelated is None else cases.load(unrelated), seed)
    results |= {
        "edits": len(chosen),
        "left_out": {"subject_in_training_data": sample.trained, "not_a_fact": sample.refused},
        "scope": dict(scorer.card.get("thresholds", {})),
        "milliseconds": {stage: _quantiles(times) for stage, times in bench.took.items()},
        "resident_mib": round(_resident_mib()),
        "frontier": frontier({row: scores for row, scores in bench.asked_for.items() if row != "rewrite"}, bench.asked_besides),
        "confusions": bench.confusions,
        "seconds": stages.as_dict(),
    }
    return report("scope", str(folder.name), seed, results, _bars(results))


def _trained(folder: Path) -> Callable[[str], bool]:
    """Whether a subject occurs in the training data of the scorer, as its folder lists it."""
    try:
        listed = set(json.loads((folder / "subjects.json").read_text("utf-8"))["training_subjects"])
    except (OSError, ValueError, KeyError):
        listed = set()
    ours = {squash(fact.subject) for fact in atlas.facts()}
    return lambda subject: squash(subject) in ours or hashlib.sha256(squash(subject).encode()).hexdigest()[:8] in listed


def _measure(bench: _Bench, chosen: Sequence[Case], others: Sequence[Case], seed: int) -> dict[str, Any]:
    subjects = [squash(case.subject) for case in chosen]
    rephrased = [(case, text) for case in chosen for text in case.rephrases]
    naming = [(case, text) for case, text in rephrased if _names(text, [squash(case.subject)])]
    aliased = [(case, prompt) for case in chosen for prompt, _ in case.aliased if case.other_name(prompt)]
    neighbours = [(case, prompt) for case in chosen for prompt, _ in case.neighbours]
    clear = [(case, text) for case, text in neighbours if not _names(text, subjects)]
    same = list(_same_subject(chosen, seed))
    asked = list(dict.fromkeys(prompt for case in others for prompt, _ in case.unrelated if not _names(prompt, subjects)))
    random.Random(seed).shuffle(asked)  # noqa: S311  reproducible choice, no secret
    return {
        "recall": {
            "rewrite": _recall(bench, "rewrite", [(case, case.prompt) for case in chosen]),
            "paraphrase": _recall(bench, "paraphrase", naming),
            "alias given": _recall(bench, "alias given", aliased),
        },
        "false_triggers": {
            "same relation, other subject": _triggers(bench, "same relation, other subject", clear),
            "same subject, other relation": _triggers(bench, "same subject, other relation", same),
            "unrelated": _triggers(bench, "unrelated", [(chosen[0], text) for text in asked[:UNRELATED]]),
        },
    }


def _same_subject(chosen: Sequence[Case], seed: int) -> Iterator[tuple[Case, str]]:
    """What the file asks of the same subject, else prompts of the file's other relations put to it."""
    if any(case.same_subject for case in chosen):
        for case in chosen:
            yield from ((case, prompt) for prompt, _ in case.same_subject if "which is not" not in prompt)
        return
    rng = random.Random(seed)  # noqa: S311  reproducible choice, no secret
    apart = relations_apart(chosen)
    for case in chosen:
        others = apart.get(atlas.mask(case.prompt, [case.subject]), ())
        if others:
            yield case, rng.choice(others).replace("{}", case.subject)


def _recall(bench: _Bench, row: str, asked: Sequence[tuple[Case, str]]) -> dict[str, Any]:
    """Share of the questions for which the right edit is found."""
    decisions = _decided(bench, row, asked)
    right = [_holds(bench, decision, case) for (case, _), decision in zip(asked, decisions, strict=True)]
    bench.asked_for[row] = np.array([_score(bench, d, c) for (c, _), d in zip(asked, decisions, strict=True)])
    grey = [d.zone == "grey" and any(bench.refs.get(h.edit.id) == c.id for h in d.hits) for (c, _), d in zip(asked, decisions, strict=True)]
    _note(bench, row, [(case, text, d) for (case, text), d, ok in zip(asked, decisions, right, strict=True) if not ok])
    clusters = [case.id for case, _ in asked]
    return {"in": rate(right, clusters).as_dict(), "grey": rate(grey, clusters).as_dict()}


def _holds(bench: _Bench, decision: Decision, case: Case) -> bool:
    return decision.zone == "in" and any(bench.refs.get(hit.edit.id) == case.id for hit in decision.hits)


def _score(bench: _Bench, decision: Decision, case: Case) -> float:
    return max((score for i, score in decision.stages.get("scores", {}).items() if bench.refs.get(i) == case.id), default=NOT_JUDGED)


def _highest(decision: Decision) -> float:
    return max(decision.stages.get("scores", {}).values(), default=NOT_JUDGED)


def _triggers(bench: _Bench, row: str, asked: Sequence[tuple[Case, str]]) -> dict[str, Any]:
    """Share of the questions for which some edit is found."""
    decisions = _decided(bench, row, asked)
    wrong = [decision.zone == "in" for decision in decisions]
    bench.asked_besides[row] = np.array([_highest(decision) for decision in decisions])
    _note(bench, row, [(case, text, d) for (case, text), d, fired in zip(asked, decisions, wrong, strict=True) if fired])
    clusters = [case.id for case, _ in asked]
    return {"in": rate(wrong, clusters).as_dict(), "grey": rate([d.zone == "grey" for d in decisions], clusters).as_dict()}


def _decided(bench: _Bench, row: str, asked: Sequence[tuple[Case, str]]) -> list[Decision]:
    found: list[Decision] = []
    with bench.stages.stage(row):
        for number, (_, text) in enumerate(asked, 1):
            decision = bench.scope.decide(TENANT, Reading(text))
            for stage, milliseconds in decision.stages.get("ms", {}).items():
                bench.took.setdefault(f"{stage} ({decision.zone})", []).append(milliseconds)
            found.append(decision)
            bench.stages.tell(row, number, len(asked))
    return found


def _note(bench: _Bench, row: str, wrong: Sequence[tuple[Case, str, Decision]]) -> None:
    """Keep the worst confusions in words: the surest of the false triggers, the surest of the misses."""
    ranked = sorted(wrong, key=lambda one: -_highest(one[2]))
    order = ranked if row in {"same relation, other subject", "same subject, other relation", "unrelated"} else ranked[::-1]
    for case, text, decision in order[:MISSES_SHOWN]:
        score = max(0.0, _highest(decision))
        bench.confusions.append({"row": row, "edit": f"{case.prompt} {case.target}", "asked": text, "score": round(score, 3)})


def _names(text: str, subjects: Iterable[str]) -> bool:
    words = f" {squash(text)} "
    return any(f" {subject} " in words for subject in subjects)


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    return {"p50": round(float(np.quantile(times, 0.5)), 3), "p99": round(float(np.quantile(times, 0.99)), 3), "n": len(times)}


def _resident_mib() -> float:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def _bars(results: dict[str, Any]) -> list[Bar]:
    recall, wrong = results["recall"], results["false_triggers"]
    bars = [at_least(f"recall, {row}", _rate(recall[row]), bar) for row, bar in (("rewrite", RECALL_BAR), ("paraphrase", RECALL_BAR))]
    most = {
        "same relation, other subject": OTHER_SUBJECT_BAR,
        "same subject, other relation": SAME_SUBJECT_BAR,
        "unrelated": UNRELATED_BAR,
    }
    return [
        *(bar for bar in bars if recall[bar.name.removeprefix("recall, ")]["in"]["measured"]),
        *(at_most(f"false triggers, {row}", wrong[row]["in"]["value"], bar) for row, bar in most.items() if wrong[row]["in"]["measured"]),
    ]


def _rate(found: dict[str, Any]) -> Rate:
    row = found["in"]
    return Rate(row["value"] if row["measured"] else None, row["stderr"], row["n"], 0, row["low"], row["high"])
