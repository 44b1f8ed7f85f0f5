"""``ke-tools bench answers``: published edits, imported at once, answered through the serving path.

Free generation, greedy, to the natural stop or ``max_tokens``; "right" means that the answer *starts with* the new object as a
whole name. What must not change is generated in both views and compared byte by byte. Subjects that occur in our own training
data are left out.

A file has the rows that its format gives: statement (or question) and rephrasings everywhere; CounterFact neighbours; KnowEdit the subject
under another name (given with the edit, and not), the reversed relation, one hop, the subject's other relations; zsRE unrelated
questions and one hop; MQuAKE several hops; the house's facts things of nearly the same name.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import cases
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._sample import Sample, hops, imported, names_any, record_of, sample, trained, with_other_names
from ke_tools.benches._serving import TENANT, ForcedScope, answers, completion, serving
from ke_tools.cases import Case
from ke_tools.facts import Edit, squash
from ke_tools.models.engine import Engine, Request
from ke_tools.verify import Rate, bytes_kept, mentions, rate, same_answer, starts_with

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.router import Routed, Router

__all__ = ["run"]

Via = Literal["auto", "ike", "reader", "weights"]

# (row, measure, bar, its name), by format: what the issue asks for.
BARS: Final[Mapping[str, tuple[tuple[str, str, float, str], ...]]] = {
    "counterfact": (
        ("statement", "starts_with", 0.99, "statement starts with the new object"),
        ("paraphrase", "starts_with", 0.97, "paraphrase starts with the new object"),
        ("neighbourhood", "identical", 0.97, "neighbourhood byte-identical"),
    ),
    "zsre": (
        ("statement", "starts_with", 0.99, "question answered with the new object"),
        ("paraphrase", "starts_with", 0.97, "rephrased question answered with the new object"),
    ),
    "knowedit": (
        ("paraphrase", "starts_with", 0.97, "rephrased question answered with the new object"),
        ("aliased_given", "starts_with", 0.9, "under another name, given with the edit, starts with the new object"),
    ),
    "mquake": (),
    "house": (
        ("statement", "says_it", 0.9, "statement answered with the target in it"),
        ("paraphrase", "says_it", 0.9, "rewording answered with the target in it"),
    ),
}
UNRELATED_BAR: Final = 1.0
SECONDS_BAR: Final = 360.0  # of two hundred CounterFact edits
UNRELATED_QUESTIONS: Final = 200
MISSES_SHOWN: Final = 10
TIMED: Final = 12


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question, the edit it belongs to and what it must give (nothing: the base's answer)."""

    case: str
    prompt: str
    wanted: tuple[str, ...] = ()
    target: str = ""


@dataclass(slots=True)
class _Bench:
    """What all stages share; ``forced`` finds each question's own edits instead of asking the scope."""

    engine: Engine
    settings: Settings
    stages: Stages
    via: Via
    max_tokens: int
    forced: bool
    router: Router
    edits: dict[str, Edit] = field(default_factory=dict)  # by case id
    misses: list[dict[str, str]] = field(default_factory=list)  # of all that come from one another by ``holding``

    def router_for(self, case: str) -> Router:
        """The router that decides about a case's questions."""
        if not self.forced:
            return self.router
        own = [edit for name, edit in self.edits.items() if record_of(name) == record_of(case)]
        return replace(self.router, scope=ForcedScope(own))

    def holding(self, ledger: Ledger, edits: Iterable[Edit]) -> _Bench:
        """The same with other edits live."""
        from ke_tools.memory.scope import Scope

        return replace(self, router=replace(self.router, scope=Scope(ledger)), edits={edit.ref: edit for edit in edits})


def run(
    settings: Settings,
    *,
    data: Path,
    kind: cases.Format = "auto",
    edits: int = 200,
    unrelated: Path | None = None,
    seed: int = 0,
    max_tokens: int = 24,
    via: Via = "auto",
    forced: bool = False,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Import a sample of a benchmark's edits and measure the answers.

    Args:
        settings: which model, how many demonstrations; the user's own ledger is not touched.
        data: a file that :func:`ke_tools.cases.load` reads.
        kind: its format.
        edits: how many edits, one a subject.
        unrelated: a file whose unrelated questions (zsRE's ``loc``) must keep their answers; without it, the data's own.
        seed: of the sample.
        max_tokens: longest answer.
        via: how facts reach the model.
        forced: leave the scope out: each question is told its own edits, to measure what the model makes of them.
        progress: told (stage, done, total).
        engine: a loaded engine to measure instead of the settings' model.

    Raises:
        InvalidInput: a file is unreadable, or holds no usable edit.
    """
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.router import Router

    stages = Stages(progress)
    loaded = cases.load(data, kind)
    others = [] if forced else _unrelated_questions(loaded if unrelated is None else cases.load(unrelated), seed)
    with serving(settings, engine, stages) as served, closing(Ledger(":memory:")) as ledger, closing(Ledger(":memory:")) as renamed:
        chosen = sample(loaded, edits, seed, trained(served.fingerprint, settings, with_scope=not forced))
        router = Router(ForcedScope([]), demonstrations=settings.demonstrations, grey=settings.grey)
        empty = _Bench(served, settings, stages, via, max_tokens, forced, router)
        with stages.stage("import"):
            bench = empty.holding(ledger, imported(ledger.edit, chosen.chosen, Case.fact))
            named = empty.holding(renamed, imported(renamed.edit, chosen.chosen, with_other_names))
        results = {**_measure(bench, chosen, others), **_further(bench, named, chosen.chosen), "cost": _cost(bench, chosen.chosen)}
        results |= {"via": via, "forced": forced, "misses": bench.misses, "seconds": stages.as_dict()}
        return report("answers", served.model_id, seed, results, _bars(results, cases.format_of(data) if kind == "auto" else kind))


# The measures


def _measure(bench: _Bench, chosen: Sample, unrelated: Sequence[_Asked]) -> dict[str, Any]:
    every = chosen.chosen
    rephrased = [(case, text) for case in every for text in case.rephrases]
    naming = [(case, text) for case, text in rephrased if f" {squash(case.subject)} " in f" {squash(text)} "]
    neighbours = [_Asked(case.id, prompt, target=case.target) for case in every for prompt, _ in case.neighbours]
    clear = [asked for asked in neighbours if not names_any(asked.prompt, every)]
    return {
        "edits": len(every),
        "left_out": {
            "subject_in_training_data": chosen.trained,
            "not_a_fact": chosen.refused,
            "paraphrase_without_subject": len(rephrased) - len(naming),
            "neighbour_names_an_edited_subject": len(neighbours) - len(clear),
        },
        "statement": _must_say(bench, "statement", [_Asked(case.id, case.prompt, (case.target,)) for case in every]),
        "paraphrase": _must_say(bench, "paraphrase", [_Asked(case.id, text, (case.target,)) for case, text in naming]),
        "neighbourhood": _must_stay(bench, "neighbourhood", clear),
        "unrelated": _must_stay(bench, "unrelated", unrelated),
    }


def _further(bench: _Bench, named: _Bench, chosen: Sequence[Case]) -> dict[str, Any]:
    """What only some formats ask: the subject under another name, turned round, with hops, another relation of the subject."""
    aliased = [_Asked(case.id, prompt, (case.target, *right)) for case in chosen for prompt, right in case.aliased[:1]]
    back = [_Asked(case.id, prompt, right) for case in chosen for prompt, right in case.reversed[:1] if right]
    further = [_Asked(case.id, prompt, right) for case in chosen for prompt, right in hops(case)[:1] if right]
    same = [_Asked(case.id, prompt, target=case.target) for case in chosen for prompt, _ in case.same_subject[:1]]
    rows = (("aliased", bench, aliased), ("aliased_given", named, aliased), ("reversed", bench, back), ("reasoning", bench, further))
    found = {stage: _must_say(which, stage, asked) for stage, which, asked in rows if asked}
    return {**found, "same_subject": _must_stay(bench, "same_subject", same)} if same else found


def _bars(results: dict[str, Any], kind: str) -> list[Bar]:
    """The bars that the data defines: its format's, and unrelated questions wherever there are any."""
    due = [one for one in BARS[kind] if one[0] in results and _asked(results[one[0]])]
    # Told a fact that does not apply, no model answers byte for byte as if it were not there.
    bars = [_bar(name, results[row][measure], bar) for row, measure, bar, name in due if measure != "identical" or not results["forced"]]
    if kind == "counterfact" and not results["forced"]:
        bars.append(at_most("seconds", results["seconds"]["total"], SECONDS_BAR))
    if _asked(results["unrelated"]):
        bars.append(_bar("unrelated byte-identical", results["unrelated"]["identical"], UNRELATED_BAR))
    return bars


def _asked(row: Mapping[str, Any]) -> bool:
    return any(isinstance(found, Mapping) and found["measured"] for found in row.values())


def _bar(name: str, found: dict[str, Any], bar: float) -> Bar:
    value = found["value"] if found["measured"] else None
    return at_least(name, Rate(value, found["stderr"], found["n"], 0, found["low"], found["high"]), bar)


def _must_say(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> dict[str, Any]:
    """Share of answers that start with what is wanted, or say it at all, and of questions for which the right edit fired."""
    routed = _routed(bench, stage, asked)
    said = answers(bench.engine, [one.request for one in routed], bench.stages, stage)
    right = [any(starts_with(answer, name) for name in one.wanted) for one, answer in zip(asked, said, strict=True)]
    spoken = [mentions(answer, one.wanted) for one, answer in zip(asked, said, strict=True)]
    fired = [any(hit.edit.ref == one.case for hit in way.hits) for one, way in zip(asked, routed, strict=True)]
    _note(bench, stage, zip(asked, said, routed, right, strict=True))
    clusters = [one.case for one in asked]
    measures = {"starts_with": right, "says_it": spoken, "scope_recall": fired}
    return {name: rate(outcomes, clusters).as_dict() for name, outcomes in measures.items()}


def _must_stay(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> dict[str, Any]:
    """Share of answers that stay: byte for byte, in substance; how often an edit fired, how often its target is spoken."""
    routed = _routed(bench, stage, asked)
    edited = answers(bench.engine, [one.request for one in routed], bench.stages, stage)
    base = answers(bench.engine, [completion(one.prompt, bench.max_tokens) for one in asked], bench.stages, f"{stage}, base")
    pairs = list(zip(asked, base, edited, strict=True))
    same = [bytes_kept(before, after) for _, before, after in pairs]
    _note(bench, stage, zip(asked, edited, routed, same, strict=True))
    clusters = [one.case for one in asked]
    spoken = [bool(one.target) and mentions(after, [one.target]) and not mentions(before, [one.target]) for one, before, after in pairs]
    return {
        "identical": rate(same, clusters).as_dict(),
        "answer_kept": rate([same_answer(before, after, one.prompt) for one, before, after in pairs], clusters).as_dict(),
        "speaks_the_target": rate(spoken, clusters).as_dict(),
        "scope_fired": rate([way.route != "base" for way in routed], clusters).as_dict(),
    }


def _routed(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> list[Routed]:
    found: list[Routed] = []
    with bench.stages.stage("route"):
        for number, one in enumerate(asked, 1):
            request: Request = completion(one.prompt, bench.max_tokens)
            found.append(bench.router_for(one.case).route(TENANT, request, engine=bench.engine, via=bench.via))
            bench.stages.tell(f"route {stage}", number, len(asked))
    return found


def _note(bench: _Bench, stage: str, rows: Iterable[tuple[_Asked, str, Routed, bool]]) -> None:
    """Keep the first misses of a stage in words."""
    missed = [row for row in rows if not row[3]]
    for one, answer, way, _ in missed[:MISSES_SHOWN]:
        wanted = one.wanted[0] if one.wanted else "the base's answer"
        bench.misses.append({"stage": stage, "prompt": one.prompt, "answer": answer, "wanted": wanted, "route": way.route})


def _unrelated_questions(loaded: Sequence[Case], seed: int) -> list[_Asked]:
    prompts = list(dict.fromkeys(prompt for case in loaded for prompt, _ in case.unrelated))
    random.Random(seed).shuffle(prompts)  # noqa: S311  reproducible choice, no secret
    return [_Asked(case=f"unrelated:{number}", prompt=prompt) for number, prompt in enumerate(prompts[:UNRELATED_QUESTIONS])]


def _cost(bench: _Bench, chosen: Sequence[Case]) -> dict[str, float]:
    """What a fact in the prompt adds: tokens, and milliseconds until the first token of the answer (medians)."""
    tokens, milliseconds = [], []
    for case in chosen[:TIMED]:
        alone = completion(case.prompt, 1)
        told = bench.router_for(case.id).route(TENANT, alone, engine=bench.engine, via=bench.via).request
        tokens.append(bench.engine.count_tokens(told) - bench.engine.count_tokens(alone))
        milliseconds.append(_took(bench.engine, told) - _took(bench.engine, alone))
    return {"tokens_added": statistics.median(tokens), "milliseconds_added": round(statistics.median(milliseconds), 1)}


def _took(engine: Engine, request: Request) -> float:
    started = time.perf_counter()
    engine.generate([request])
    return (time.perf_counter() - started) * 1000
