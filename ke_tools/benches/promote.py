"""``ke-tools bench promote``: edits climb by the ladder as an agent has them climb, and everything about it is measured.

In a home of its own: all edits at once, one ``promote`` with the defaults, followed to its end; then the whole set is verified with the
memory beside the weights, what got in by the weights alone, and the release is flipped out and in again.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import cases
from ke_tools.benches._report import Bar, Progress, Stages, at_most, report
from ke_tools.benches._sample import sample
from ke_tools.benches.editors import atlas_cases
from ke_tools.errors import KeToolsError
from ke_tools.models.engine import Request
from ke_tools.servers.principal import Principal
from ke_tools.testing import thimble_facts, thimble_path
from ke_tools.verify import knows, rate
from ke_tools.verify.asking import request_of
from ke_tools.verify.probes import candidates
from ke_tools.verify.run import answer
from ke_tools.verify.supply import Supply

if TYPE_CHECKING:
    from ke_tools.cases import Case
    from ke_tools.config import Settings
    from ke_tools.facts import Edit, Probe
    from ke_tools.memory.joblog import Job
    from ke_tools.memory.router import Via
    from ke_tools.servers.service import Service

__all__ = ["run"]

WHO: Final = Principal()
WITH_MEMORY: Final = {"reliability": 0.98, "generalisation": 0.95, "locality_same_subject": 0.98, "locality_other_subject": 0.98}
BY_WEIGHTS: Final = {"reliability": 0.95, "generalisation": 0.5, "locality_same_subject": 0.95, "locality_other_subject": 0.95}
CARRIED: Final = 0.6
SECONDS: Final = 300.0
THIMBLE_SECONDS: Final = 15.0
SILENT_SECONDS: Final = 2.0
FLIP_SECONDS: Final = 0.5
_PROBES: Final = {"reliability": 4, "generalisation": 6, "locality_same_subject": 6, "locality_other_subject": 4}  # an edit
_FRESH: Final = 1_000  # a draw that no candidate was judged by


def run(
    settings: Settings,
    *,
    edits: int,
    data: Path | None = None,
    method: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Promote that many edits and measure.

    Args:
        settings: the model; the home is a new one.
        edits: how many; half of them of ``data`` where that is given, the others counterfactuals about facts of the atlas.
        data: a file of benchmark records.
        method: as for ``promote``.
        seed: of the choice.
        progress: hears (stage, done, total).

    Raises:
        InvalidInput: the file has no usable edit.
        KeToolsError: the job failed.
    """
    stages = Stages(progress)
    chosen = _chosen(settings, edits, data, seed)
    with tempfile.TemporaryDirectory() as folder, _opened(replace(settings, home=Path(folder))) as service:
        with stages.stage("edit"):
            made = service.edit(WHO, [_given(case) for case in chosen])["edits"]
        ids = [edit["edit_id"] for edit in made]
        job, silent = _followed(service, ids, method, stages)
        live = service.ledger.live(WHO.tenant)
        rungs = Counter(edit["rung"] for edit in job["edits"])
        results: dict[str, Any] = {
            "edits": len(ids),
            "rungs": dict(rungs),
            "decisions": job["decisions"],
            "longest_silence_seconds": round(silent, 2),
            "with_memory": _rates(service, stages, live, ids, "auto"),
        }
        carried = [edit["edit_id"] for edit in job["edits"] if edit["rung"] != "memory"]
        if carried:
            results |= _of_release(service, stages, job, live, carried, [case.prompt for case in chosen])
        fingerprint = service.models.engine(wait_seconds=0).fingerprint
    results["seconds"] = stages.as_dict()
    return report("promote", fingerprint, seed, results, _bars(results, len(carried) / len(ids), is_thimble=_is_thimble(settings)))


def _chosen(settings: Settings, count: int, data: Path | None, seed: int) -> list[Case]:
    known = thimble_facts() if _is_thimble(settings) else ()
    of_file = list(sample(cases.load(data), count // 2, seed, lambda _subject: False).chosen) if data else []
    subjects = {case.subject for case in of_file}
    of_atlas = [case for case in atlas_cases(count, seed, known) if case.subject not in subjects]
    return [*of_file, *of_atlas[: count - len(of_file)]]


def _is_thimble(settings: Settings) -> bool:
    return Path(settings.edited).resolve() == thimble_path().resolve()


def _given(case: Case) -> dict[str, Any]:
    return {"subject": case.subject, "prompt": case.prompt, "target": case.target, "old_target": case.truth}


@contextmanager
def _opened(settings: Settings) -> Iterator[Service]:
    from ke_tools.servers.service import open_service

    service = open_service(settings)
    try:
        service.models.engine(wait_seconds=3600)
        yield service
    finally:
        service.close()


def _followed(service: Service, ids: Sequence[str], method: str, stages: Stages) -> tuple[dict[str, Any], float]:
    """The job at its end, and the longest time in which nothing was heard of it."""
    heard_at, silent = time.monotonic(), 0.0

    async def heard(job: Job) -> None:
        nonlocal heard_at, silent
        silent, heard_at = max(silent, time.monotonic() - heard_at), time.monotonic()
        stages.tell(job.stage, job.done, job.total)

    with stages.stage("promote"):
        job = asyncio.run(service.promote(WHO, ids, method=method))
        while job["poll_after_ms"]:
            job = asyncio.run(service.job_status(WHO, job["job_id"], wait_seconds=20, heard=heard))
    if job["status"] != "completed":
        raise KeToolsError(f"the job {job['status']}: {job['error_message']}", "Its message says why.")
    return job, silent


def _rates(service: Service, stages: Stages, live: Sequence[Edit], ids: Collection[str], via: Via) -> dict[str, Any]:
    """Of these edits, by fresh probes, counted as the gate counts: what the base model had wrong shows no harm."""
    asked = [edit for edit in live if edit.id in ids]
    engine = service.models.engine(wait_seconds=0)

    def ask(probes: list[Probe], view: Literal["edited", "base"]) -> list[str]:
        made = service.answering.answer_batch(WHO, [request_of(probe, engine) for probe in probes], view=view, via=via)
        return [one.text for _, one in made]

    with stages.stage("ask"):
        near = [fact for edit in asked for fact in candidates(edit, live=live, suite="full")]
        known = knows(engine, list(dict.fromkeys(near)), cache=service.settings.cache, progress=stages.tell)
        supply = Supply(asked, known=known, live=live, draw=_FRESH)
        probes = supply.more({name: of_each * len(asked) for name, of_each in _PROBES.items()})
        outcomes = answer(probes, lambda probes: ask(probes, "edited"), lambda probes: ask(probes, "base"))
    told = [one for one in outcomes if one.is_telling]
    return {
        name: rate(
            [one.passed for one in told if one.probe.dimension == name], [one.probe.edit_id for one in told if one.probe.dimension == name]
        ).as_dict()
        for name in _PROBES
    }


def _of_release(
    service: Service, stages: Stages, job: Mapping[str, Any], live: Sequence[Edit], carried: Sequence[str], prompts: Sequence[str]
) -> dict[str, Any]:
    """What the weights say alone, and how long it takes to flip them out and in again."""
    alone = _rates(service, stages, live, carried, "weights")
    before = _said(service, prompts, "weights")
    out = _flipped(service, prompts[0], lambda: service.rollback(WHO, edit_ids=carried, to="memory"))
    in_again = _flipped(service, prompts[0], lambda: service.rollback(WHO, to_revision=job["revision"]))
    return {
        "by_weights": alone,
        "flip_out_seconds": out,
        "flip_in_seconds": in_again,
        "same_answers_again": _said(service, prompts, "weights") == before,
        "release": job["release"],
    }


def _flipped(service: Service, prompt: str, flip: Callable[[], object]) -> float:
    """Seconds from the call to the first answer under the other release."""
    began = time.monotonic()
    flip()
    _said(service, [prompt], "auto", tokens=1)
    return round(time.monotonic() - began, 3)


def _said(service: Service, prompts: Sequence[str], via: Via, tokens: int = 12) -> list[str]:
    asked = [Request(prompt=prompt, max_tokens=tokens) for prompt in prompts]
    return [made.text for _, made in service.answering.answer_batch(WHO, asked, via=via)]


def _bars(results: Mapping[str, Any], carried: float, *, is_thimble: bool) -> list[Bar]:
    seconds = results["seconds"]["promote"]
    bars = [
        *_of_rates("memory included", results["with_memory"], WITH_MEMORY),
        Bar("carried by weights or codebook", carried, 0.0, CARRIED, carried >= CARRIED),
        *_of_rates("by the weights alone", results.get("by_weights", {}), BY_WEIGHTS),
        at_most("seconds to promote", seconds, THIMBLE_SECONDS if is_thimble else SECONDS),
        at_most("longest silence in seconds", results["longest_silence_seconds"], SILENT_SECONDS),
    ]
    if "flip_out_seconds" in results:
        bars += [at_most(f"seconds to flip {way}", results[f"flip_{way}_seconds"], FLIP_SECONDS) for way in ("out", "in")]
    return bars


def _of_rates(of: str, rates: Mapping[str, Any], least: Mapping[str, float]) -> list[Bar]:
    found = [(name, rates[name], bar) for name, bar in least.items() if name in rates and rates[name]["measured"]]
    return [Bar(f"{name}, {of}", one["value"], one["stderr"], bar, one["value"] >= bar) for name, one, bar in found]
