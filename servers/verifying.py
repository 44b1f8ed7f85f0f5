"""Verification as the windows see it: what is to be measured, in this process or by the home's worker, and how it is told.

A few edits and the quick suite are measured where they are asked about; what takes longer is a job of the worker. Both go through the
same serving path: now's, that of an earlier revision, or a release's weights alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from ke_tools import releases
from ke_tools.errors import InvalidInput, KeToolsError, NotFound, ReadOnly, Unavailable, Unsupported
from ke_tools.memory.events import now
from ke_tools.memory.router import Routed
from ke_tools.models.engine import Request
from ke_tools.servers.answering import Answering
from ke_tools.servers.home import Home
from ke_tools.servers.measuring import BaseAnswers, Measuring, Tell, answered_by
from ke_tools.servers.principal import Principal
from ke_tools.servers.promotions import MOST_WAIT_SECONDS, Heard
from ke_tools.servers.slot import ModelSlot
from ke_tools.servers.working import engine_of

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.facts import Edit
    from ke_tools.jobs import Reporter
    from ke_tools.memory.joblog import Job
    from ke_tools.memory.ledger import Ledger
    from ke_tools.models.engine import Engine
    from ke_tools.verify.probes import Suite
    from ke_tools.verify.scorecard import Outcome

__all__ = ["MOST_DIRECTLY", "Verifying", "Wanted", "beside_memory", "measure", "not_yet", "run_job", "served", "shown_document", "wanted"]

log = logging.getLogger(__name__)

MOST_DIRECTLY: Final = 10  # edits whose quick suite is measured at once
_NOW: Final = -1
_MOST_CHECKS: Final = 50  # told by a tool; the scorecard has all
_UNMEASURED: Final = {"measured": False, "value": 0.0, "stderr": 0.0, "n": 0, "low": 0.0, "high": 1.0}
_RATES: Final = ("reliability", "generalisation", "locality_same_subject", "locality_other_subject", "bytes_kept")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured."""

    edit_ids: tuple[str, ...]
    revision: int = _NOW  # as answers were then
    release: str = ""  # its weights alone; "": whatever serves
    suite: Suite = "quick"
    probes: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_few(self) -> bool:
        """Whether a server that writes no jobs measures it."""
        return len(self.edit_ids) <= MOST_DIRECTLY

    @property
    def is_small(self) -> bool:
        """Whether it takes seconds, as a rule."""
        return self.is_few and self.suite == "quick" and self.revision == _NOW and not self.release

    def arguments(self) -> dict[str, Any]:
        """As a job keeps it."""
        return {
            "edit_ids": list(self.edit_ids),
            "revision": self.revision,
            "release": self.release,
            "suite": self.suite,
            "probes": [dict(probe) for probe in self.probes],
        }

    @classmethod
    def from_arguments(cls, kept: Mapping[str, Any]) -> Self:
        """Read what :meth:`arguments` wrote."""
        return cls(**{**kept, "edit_ids": tuple(kept["edit_ids"]), "probes": tuple(kept["probes"])})


def wanted(
    settings: Settings,
    ledger: Ledger,
    tenant: str,
    *,
    edit_ids: Sequence[str] = (),
    revision: int | None = None,
    release: str = "",
    suite: Suite = "quick",
    probes: Sequence[Mapping[str, Any]] = (),
) -> Wanted:
    """Find out which edits are meant: those named, those live at a revision, those of a release, or else all that are live.

    Raises:
        InvalidInput: more than one way of naming them, no edit meant, or a probe that cannot be read.
        NotFound: an edit or a release is unknown to this tenant.
        ModelUnavailable: the release is damaged.
    """
    from ke_tools.verify.callers import given

    if sum((bool(edit_ids), revision is not None, bool(release))) > 1:
        raise InvalidInput("verify takes edit_ids, a revision or a release, and at most one of them.", "Leave all out for all live edits.")
    then = _NOW if revision is None or revision == ledger.head() else revision
    if edit_ids:
        edits = [ledger.get(tenant, edit_id) for edit_id in dict.fromkeys(edit_ids)]
    elif release:
        edits = _carried(settings, ledger, tenant, release)
    elif then == _NOW:
        edits = ledger.live(tenant)
    else:
        edits = [edit for edit in ledger.at(tenant, then) if edit.is_live]
    if not edits:
        raise InvalidInput("no edit is live" + (f" at revision {then}." if then != _NOW else "."), "list_edits shows what there is.")
    for probe in probes:
        given(probe, edits)
    return Wanted(edit_ids=tuple(edit.id for edit in edits), revision=then, release=release, suite=suite, probes=tuple(probes))


def _carried(settings: Settings, ledger: Ledger, tenant: str, name: str) -> list[Edit]:
    """The edits of a release, all of which must be the tenant's: a folder of releases is of all tenants."""
    release = releases.opened(settings.releases, name)
    try:
        return [ledger.get(tenant, edit_id) for edit_id in release.edit_ids]
    except NotFound as error:
        raise NotFound(
            f"there is no release {name!r} of yours.", "history names those that were live, a job the one that it made."
        ) from error


class Verifying:
    """Measures when somebody asks: here what is small, in the worker what is not. Thread safe."""

    def __init__(self, answering: Answering) -> None:
        """Take the path that serves."""
        self._answering, self._home = answering, answering.home
        self._base_answers = BaseAnswers()
        self._thread = ThreadPoolExecutor(1, "ke-verify")  # each takes all of the model, so one at a time is as fast

    async def verify(
        self,
        who: Principal,
        edit_ids: Sequence[str] = (),
        *,
        revision: int | None = None,
        release: str = "",
        suite: Literal["quick", "full"] = "quick",
        probes: Sequence[Mapping[str, Any]] = (),
        wait_seconds: float = 1.5,
        heard: Heard | None = None,
        is_patient: bool = False,
    ) -> dict[str, Any]:
        """Measure through the serving path whether edits hold and what else they moved.

        The quick suite of a few edits is measured here, one call at a time; whatever takes longer is a job of the worker, which goes on
        when the call has answered. Cancelled, the first stops after the batch of probes that is under way.

        Args:
            who: asks.
            edit_ids: which; without these all that are live.
            revision: instead: what was live then, as it was answered then.
            release: instead: what this release carries, by its weights alone.
            suite: how much is asked.
            probes: the caller's own.
            wait_seconds: for a model that is still loading, and for the end of a job.
            heard: hears how far a job is.
            is_patient: the call may take longer than others may, so that what was begun here is not handed to the worker.

        Raises:
            InvalidInput: no edits, or a probe that cannot be read. NotFound: an unknown edit or release.
            ModelLoading: as in :meth:`.Answering.query`. ReadOnly: it would take a job, and this server writes nothing.
        """
        who.require("read")
        find = partial(wanted, self._home.settings, self._home.ledger, who.tenant)
        what = await asyncio.to_thread(find, edit_ids=edit_ids, revision=revision, release=release, suite=suite, probes=probes)
        can_queue = not self._home.settings.read_only and self._home.unwritable is None
        if what.is_small or not can_queue:
            found = await self._measured_here(who, what, wait_seconds, is_patient=is_patient or not can_queue)
            if found is not None:
                return found
        job = await asyncio.to_thread(self._home.promotions.queue, who, "verify", what.arguments())
        job = await self._home.promotions.wait(who, job.id, wait_seconds, heard)
        return await asyncio.to_thread(self.verified, who, job.id)

    async def _measured_here(self, who: Principal, what: Wanted, wait_seconds: float, *, is_patient: bool) -> dict[str, Any] | None:
        """Measure in this process; ``None`` where it takes longer than a call may."""
        if not what.is_few:
            raise ReadOnly(
                f"{len(what.edit_ids)} edits are measured by a job, and this server writes none.",
                f"Verify up to {MOST_DIRECTLY} at a time.",
            )
        began = time.monotonic()
        engine = await self._home.models.engine_async(wait_seconds)
        has_left = threading.Event()

        def stop_if_left(*_: object) -> None:
            if has_left.is_set():
                raise KeToolsError("whoever asked for this has left; nobody hears of it.")

        work = partial(measure, self._answering, who, engine, what, base=self._base_answers, tell=stop_if_left)
        measured = asyncio.get_running_loop().run_in_executor(self._thread, work)
        left = None if is_patient else max(1.0, MOST_WAIT_SECONDS - (time.monotonic() - began))
        try:
            done, _ = await asyncio.wait({measured}, timeout=left)
            return measured.result() if done else None
        finally:
            has_left.set()
            measured.add_done_callback(_heard_of)
            measured.cancel()

    def verified(self, who: Principal, job_id: str) -> dict[str, Any]:
        """Say what a job of :meth:`verify` found; of one that has not ended, that it has not.

        Raises:
            NotFound: there is no such job, or its scorecard was purged with an edit.
        """
        who.require("read")
        job = self._home.promotions.job(who, job_id)
        name = str(job.result.get("scorecard", ""))
        if not name:
            return not_yet(job, self._home.model_id)
        return shown_document(self._home.ledger.scorecard(who.tenant, name), name, job)

    def forget(self) -> None:
        """Drop the base model's answers that are kept, which may quote what was purged."""
        self._base_answers = BaseAnswers()

    def close(self) -> None:
        """Begin no further measurement."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _heard_of(measured: asyncio.Future[Any]) -> None:
    """Take note of how a measurement ended that nobody waited for."""
    if not measured.cancelled():
        measured.exception()


# Measuring ------------------------------------------------------------------------------------------------------------


def measure(
    answering: Answering, who: Principal, engine: Engine, what: Wanted, *, base: BaseAnswers, tell: Tell, job: str = ""
) -> dict[str, Any]:
    """Measure, keep the scorecard where the home takes writes, and give it as the tools show it.

    Raises:
        NotFound, WrongState: an edit was purged meanwhile.
        Unsupported: a release is asked for and the engine takes none.
    """
    home = answering.home
    with _way(answering, who, engine, what) as way:
        edits = way.edits(what.edit_ids)
        generate = partial(way.serving.generated, who, engine=engine)
        measuring = Measuring(engine, way.route, base, way.live, generate, way.serving.home.forgetting, home.settings.cache, tell)
        card = measuring.scorecard(edits, what.suite, what.probes)
        compared = beside_memory(answering, who, engine, edits, card.outcomes, what.release, tell) if what.release else {}
        document = card.document(
            made_at=now(),
            model=home.model_id,
            fingerprint=engine.fingerprint,
            revision=way.revision,
            release=way.release,
            weights_alone=bool(what.release),
            suite=what.suite,
            seeds={"probes": "by edit id", "draw": 0, "decoding": "greedy"},
            states={edit.id: edit.state.value for edit in edits},
            job=job,
            sentence=card.sentence(),
            beside_memory=compared,
        )
    return shown_document(document, _kept(home, who.tenant, document, job))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How the edited view is answered, and from what."""

    serving: Answering
    route: Callable[[Request], Routed]
    ledger: Ledger
    tenant: str
    revision: int
    release: str
    is_past: bool = False

    @property
    def live(self) -> list[Edit]:
        return self.ledger.live(self.tenant)

    def edits(self, edit_ids: Sequence[str]) -> list[Edit]:
        """As they stand on this way."""
        if not self.is_past:
            return [self.ledger.get(self.tenant, edit_id) for edit_id in edit_ids]
        there = {edit.id: edit for edit in self.ledger.at(self.tenant, self.revision)}
        return [there[edit_id] for edit_id in edit_ids if edit_id in there]


@contextmanager
def _way(answering: Answering, who: Principal, engine: Engine, what: Wanted) -> Iterator[_Way]:
    home, tenant = answering.home, who.tenant
    if what.release:
        with served(home.settings, engine, what.release):
            revision = home.revision

            route = _by_weights(what.release, revision)
            yield _Way(serving=answering, route=route, ledger=home.ledger, tenant=tenant, revision=revision, release=what.release)
        return
    if what.revision != _NOW:
        past = _past(home, engine, what.revision)
        name = past.home.promotions.adapter(tenant, engine)
        route = past.path(who, engine)
        yield _Way(serving=past, route=route, ledger=past.home.ledger, tenant=tenant, revision=what.revision, release=name, is_past=True)
        return
    name = home.promotions.adapter(tenant, engine)
    route = answering.path(who, engine)
    yield _Way(serving=answering, route=route, ledger=home.ledger, tenant=tenant, revision=home.revision, release=name)


def _by_weights(release: str, revision: int) -> Callable[[Request], Routed]:
    return lambda request: replace(Routed.untouched(replace(request, adapter=release), "", revision), route="weights")


def beside_memory(
    answering: Answering, who: Principal, engine: Engine, edits: Sequence[Edit], outcomes: Sequence[Outcome], release: str, tell: Tell
) -> dict[str, Any]:
    """What a release that this engine serves adds to the memory; where that cannot be asked, that it was not."""
    from ke_tools.verify.beside import beside_memory

    ways = {"weights": _by_weights(release, answering.home.revision), "memory": answering.memory_path(who, engine)}
    try:
        return beside_memory(edits, outcomes, answered_by(engine, ways, tell))
    except KeToolsError as error:
        log.warning("the weights were not compared with the memory: %s", error)
        return {"measured": False, "rows": [], "in_words": f"not compared with the memory: {error.message}"}


def _past(home: Home, engine: Engine, revision: int) -> Answering:
    """What answered at a revision; it is never closed, as all that it holds is another's."""
    from ke_tools.memory.past import Past

    return Answering(Home(home.settings, Past(home.ledger, revision), ModelSlot(lambda _say: engine), model_id=home.model_id))


@contextmanager
def served(settings: Settings, engine: Any, name: str) -> Iterator[None]:
    """A release in an engine, taken out again if it was not there before."""
    if name in engine.adapters:
        yield
        return
    if not hasattr(engine, "load_adapter"):
        raise Unsupported("this engine takes no releases.", "Verify through the one that serves them.")
    engine.load_adapter(name, releases.opened(settings.releases, name).folder)
    try:
        yield
    finally:
        engine.unload_adapter(name)


def _kept(home: Home, tenant: str, document: Mapping[str, Any], job: str) -> str:
    """The hash under which the scorecard was kept; "" where nothing can be written, but for a job, which has no other end."""
    if home.settings.read_only or home.ledger.read_only:
        return ""
    try:
        return home.ledger.keep_scorecard(tenant, document)
    except Unavailable as error:
        if job:
            raise
        log.warning("a scorecard was not kept: %s", error)
        return ""


# Telling --------------------------------------------------------------------------------------------------------------


def shown_document(document: Mapping[str, Any], scorecard: str, job: Job | None = None) -> dict[str, Any]:
    """A scorecard as the tool shows it: of many edits first those that did not pass."""
    checks = document["checks"]
    if len(checks) > _MOST_CHECKS:
        checks = sorted(checks, key=lambda check: bool(check["passed"]))[:_MOST_CHECKS]
    names = ("suite", "passed", "overall", "worst_case", "further", "efficiency", "scorecard_text")
    beside = document.get("beside_memory", {}).get("in_words", "")
    return {
        "summary": f"{'Passed' if document['passed'] else 'Not passed'}: {document['sentence']}" + (f" {beside}." if beside else ""),
        **{name: document[name] for name in names},
        "checks": checks,
        "scorecard": scorecard,
        "revision": document["revision"],
        "release": document["release"],
        "model": document["model"],
        **_followed(job),
    }


def not_yet(job: Job, model_id: str) -> dict[str, Any]:
    """The same of a job that has no scorecard, or none yet."""
    ended = "Cancelled; nothing was changed." if job.status == "cancelled" else "Its scorecard is not there any more; verify again."
    told = job.error.get("message") or (ended if job.has_ended else f"{job.id} measures; call job_status until it has ended.")
    return {
        "summary": told,
        "suite": str(job.arguments.get("suite", "")),
        "passed": False,
        "checks": [],
        "overall": {name: dict(_UNMEASURED) for name in _RATES},
        "worst_case": "",
        "further": [],
        "efficiency": "not measured",
        "scorecard_text": "",
        "scorecard": "",
        "revision": 0,
        "release": "",
        "model": model_id,
        **_followed(job),
    }


def _followed(job: Job | None) -> dict[str, Any]:
    return {
        "job_id": job.id if job else "",
        "status": "completed" if job is None else "working" if job.status == "queued" else job.status,
        "poll_after_ms": 0 if job is None or job.has_ended else 1000,
        "error_code": str(job.error.get("code", "")) if job else "",
    }


# In the worker --------------------------------------------------------------------------------------------------------


def run_job(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Measure what a job of the kind ``verify`` asks for.

    Raises:
        KeToolsError: as :func:`measure`.
    """
    from ke_tools.servers.engines.loading import model_id
    from ke_tools.verify import peak

    reporter.tell("loading the model", 0, 1)
    engine = engine_of(settings)
    before = engine.adapters
    peak.reset()
    answering = Answering(Home(settings, ledger, ModelSlot(lambda _say: engine), model_id=model_id(settings)))
    who = Principal(name=job.actor, tenant=job.tenant)
    try:
        found = measure(answering, who, engine, Wanted.from_arguments(job.arguments), base=BaseAnswers(), tell=reporter.tell, job=job.id)
    finally:
        _unload(engine, before)
    failed = [{"edit_id": check["edit_id"], "rung": "", "reason": check["worst_case"]} for check in found["checks"] if not check["passed"]]
    kept = ("summary", "passed", "suite", "scorecard", "scorecard_text", "revision", "release")
    return {**{name: found[name] for name in kept}, "edits": failed}


def _unload(engine: Any, before: frozenset[str]) -> None:
    """Take out the releases that were served meanwhile: a promotion puts in its own."""
    for name in engine.adapters - before:
        try:
            engine.unload_adapter(name)
        except KeToolsError as error:
            log.warning("a release could not be unloaded: %s", error)
