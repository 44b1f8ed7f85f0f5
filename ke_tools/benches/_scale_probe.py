"""What ``bench scope --synthetic`` measures in a process of its own: ``python -m ke_tools.benches._scale_probe cold|all``.

The plan is read from standard input; what was found is written to standard output. Both are JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ke_tools.benches._serving import TENANT
from ke_tools.benches.scale import ONE_SUBJECTS_TENANT, RISKY_TENANT, Plan
from ke_tools.facts import Fact

if TYPE_CHECKING:
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.scope import Scope

T = TypeVar("T")

_LONG: Final = 100_000  # characters
_LONG_ASKED: Final = 20


def measure(plan: Plan, what: str) -> dict[str, Any]:
    """Open the ledger and measure the first question, or everything."""
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.scope import Scope, minilm
    from ke_tools.memory.scope.scorer import TrainedScorer, shipped_folder
    from ke_tools.testing import HashingEmbedder

    embedder, scorer = (minilm(), TrainedScorer(shipped_folder())) if plan.embedder == "minilm" else (HashingEmbedder(), None)
    _decide_once()
    started, busy = time.perf_counter(), time.process_time()
    ledger = Ledger(plan.ledger)
    scope = Scope(ledger, embedder, scorer, cache=Path(plan.cache))
    first = _decider(scope, TENANT)(plan.questions[0])
    found: dict[str, Any] = {"cold": {"seconds": _seconds(started), "processor_seconds": round(time.process_time() - busy, 2)}}
    if note := first["stages"].get("index"):
        found["cold"]["note"] = note
    _wait_for_files()
    return found if what == "cold" else {**found, **_everything(plan, ledger, scope)}


def _everything(plan: Plan, ledger: Ledger, scope: Scope) -> dict[str, Any]:
    ask = _decider(scope, TENANT)
    out = _timed(ask, plan.questions)
    busy = _timed(ask, plan.questions, time.thread_time)  # what is left where other programs take no time
    size = {"scope": _resident_mib()}
    long = _timed(ask, [_long(question) for question in plan.questions[:_LONG_ASKED]])
    more = _one_more(plan, ledger, ask)
    scope.warm()
    named, took = zip(*_answered(ask, plan.named), strict=True)
    size["with_questions_embedded"] = _resident_mib()
    risky = _timed(_decider(scope, RISKY_TENANT), plan.risky)
    one = _timed(_decider(scope, ONE_SUBJECTS_TENANT), plan.one_subject)
    size["in_the_end"] = _resident_mib()
    stage0 = [answer["stages"]["ms"]["mentions"] for answer in named]
    return {
        "memory_mib": size,
        "question": {
            "out": _percentiles(out),
            "out_processor": _percentiles(busy),
            "out_100_kB": _percentiles(long),
            "named_stage_0": _percentiles(stage0),
            "named_scoring": _percentiles(answer["stages"]["ms"]["scores"] for answer in named),
            "in": _percentiles(ms for answer, ms in zip(named, took, strict=True) if answer["zone"] == "in"),
            "grey": _percentiles(ms for answer, ms in zip(named, took, strict=True) if answer["zone"] == "grey"),
            "own_words_in_scope": round(sum(ask(text)["zone"] == "in" for text in plan.own) / max(1, len(plan.own)), 4),
            "risky": _percentiles(risky),
            "one_subject_first": round(one[0], 3) if one else None,
            "one_subject": _percentiles(one[1:]),
        },
        "one_more_edit": more,
        "head": _percentiles(_timed(lambda _: ledger.head(), plan.questions)),
    }


def _one_more(plan: Plan, ledger: Ledger, ask: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Record an edit, then find its subject in a text; nothing is embedded."""
    recorded, followed, effective = [], [], []
    for subject, prompt, target in plan.new:
        started = time.perf_counter()
        (edit,) = ledger.edit(TENANT, [Fact(subject=subject, prompt=prompt, target=target)], actor="bench")
        between = time.perf_counter()
        found = ask(f"{subject} is nice. What is two plus two?")
        ended = time.perf_counter()
        if [edit.id] not in [mention["edits"] for mention in found["stages"]["mentions"]]:
            raise RuntimeError(f"the edit of {subject} had no effect: {found}")
        recorded.append((between - started) * 1000)
        followed.append((ended - between) * 1000)
        effective.append((ended - started) * 1000)
    return {"recorded": _percentiles(recorded), "followed": _percentiles(followed), "effective": _percentiles(effective)}


def _decider(scope: Scope, tenant: str) -> Callable[[str], dict[str, Any]]:
    from ke_tools.memory.scope import Reading

    def decide(text: str) -> dict[str, Any]:
        decision = scope.decide(tenant, Reading(text))
        if "error" in decision.stages:
            raise RuntimeError(decision.reason)
        return {"zone": decision.zone, "stages": decision.stages}

    return decide


def _decide_once() -> None:
    """Load the tables of the atlas, which is no part of a ledger's start."""
    from ke_tools.memory.scope import Scope
    from ke_tools.testing import HashingEmbedder, memory_ledger

    with memory_ledger() as ledger:
        ledger.edit("t", [Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="X")], actor="bench")
        _decider(Scope(ledger, HashingEmbedder()), "t")("The capital of Freedonia is")


def _long(question: str) -> str:
    return (f"{question} ".replace("?", ".") * (_LONG // len(question)))[:_LONG] + question


def _answered(call: Callable[[str], T], texts: Iterable[str], clock: Callable[[], float] = time.perf_counter) -> Iterator[tuple[T, float]]:
    """Each answer, and the milliseconds that it took."""
    for text in texts:
        started = clock()
        answer = call(text)
        yield answer, (clock() - started) * 1000


def _timed(call: Callable[[str], object], texts: Iterable[str], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Milliseconds of each call."""
    return [milliseconds for _, milliseconds in _answered(call, texts, clock)]


def _percentiles(milliseconds: Iterable[float]) -> dict[str, Any]:
    ordered = sorted(milliseconds)
    if not ordered:
        return {"n": 0}
    at = {"p50": len(ordered) // 2, "p99": int(len(ordered) * 0.99), "max": len(ordered) - 1}
    return {"n": len(ordered), **{name: round(ordered[place], 3) for name, place in at.items()}}


def _seconds(since: float) -> float:
    return round(time.perf_counter() - since, 2)


def _wait_for_files() -> None:
    for thread in threading.enumerate():
        if thread.name == "ke-scope-save":
            thread.join()


def _resident_mib() -> float:
    """Resident memory now; where the system does not tell, the most there ever was."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(most / (2**20 if sys.platform == "darwin" else 1024), 1)


def _read_plan(text: str) -> Plan:
    given = json.loads(text)
    return Plan(**{name: _frozen(value) for name, value in given.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _main() -> Iterator[str]:
    yield json.dumps(measure(_read_plan(sys.stdin.read()), sys.argv[1])) + "\n"


if __name__ == "__main__":
    sys.stdout.writelines(_main())
