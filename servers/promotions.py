"""Promotion as the windows see it: jobs are begun and followed here, and the live release is put into the engine that serves.

The work itself is done by the home's worker (:mod:`ke_tools.jobs`). Which release is live the ledger says; this follows it at the next
request, so that every process of a home serves the same one.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.errors import Conflict, InvalidInput, KeToolsError, NotFound, Unsupported, WrongState
from ke_tools.jobs import ensure_worker
from ke_tools.promotion import METHODS
from ke_tools.servers.candidates import Wanted
from ke_tools.servers.promoting import acting
from ke_tools.servers.unserved import Unserved
from ke_tools.verify.answered import kind_of
from ke_tools.verify.policy import Policy

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.facts import Edit
    from ke_tools.memory.joblog import Job
    from ke_tools.memory.ledger import Ledger
    from ke_tools.models.engine import Engine, Request
    from ke_tools.servers.principal import Principal

__all__ = ["Promotions", "Rest", "shown"]

log = logging.getLogger(__name__)

MOST_WAIT_SECONDS: Final = 25.0  # of one call, which must answer within thirty
_LOOK_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 1.5  # at most, before who waits hears again where a job is
_MOST_KEPT: Final = 4  # releases in the engine, so that the one before is there at once when it is flipped back to

_PATIENCE_SECONDS: Final = 5.0  # that a request waits for a release to be loaded before the memory answers it
_GLANCE_SECONDS: Final = 0.02  # at whether somebody else's load has ended

_PROMOTING: Final = frozenset({"promote", "rebuild"})  # kinds of jobs that change what is in the weights
_MOST_READ: Final = 256  # releases of which it is known what they answer

Heard = Callable[["Job"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rest:
    """What should be in the weights and is not, as the release that carries it cannot be live; it acts from the memory."""

    edit_ids: tuple[str, ...] = ()
    job_id: str = ""  # that promotes it anew; "" where none could be queued

    @property
    def in_words(self) -> str:
        """A sentence with a blank before it; nothing where there is nothing to tell."""
        if not self.edit_ids:
            return ""
        one = len(self.edit_ids) == 1
        what = "1 other edit" if one else f"{len(self.edit_ids)} other edits"
        until = f"{self.job_id} promotes {'it' if one else 'them'} anew" if self.job_id else "promote has been called again"
        return f" {what} that {'was' if one else 'were'} in the weights {'acts' if one else 'act'} from the memory until {until}."


class Promotions:
    """The jobs and releases of one home. Thread safe."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings, self._ledger = settings, ledger
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # held as long as an engine takes
        self._began = 0.0  # the load that holds it
        self._loaded: OrderedDict[str, None] = OrderedDict()  # the one used last at the end
        self._unserved = Unserved()
        self._answered: dict[tuple[str, str], Mapping[str, Sequence[str]]] = {}  # (tenant, release) → edit → kinds of question
        self._check_settings()

    @property
    def trouble(self) -> str:
        """Why a live release is not served; empty where all are."""
        return self._unserved.told

    def _check_settings(self) -> None:
        """Tell a mistake in the settings at the start, and where it stands."""
        try:
            for tenant in ("", *self._settings.promote.get("tenants", {})):
                self.asked_of(tenant)
            Wanted.from_mapping(self._settings.promote.get("auto", {}))
        except InvalidInput as error:
            raise InvalidInput(
                f"[promote] in {self._settings.sources.get('promote', 'the settings')}: {error.message}", error.hint
            ) from error

    # -- jobs --------------------------------------------------------------------------------------------------------------------

    def begin(
        self,
        who: Principal,
        edit_ids: Sequence[str],
        *,
        method: str = "auto",
        policy: Mapping[str, Any] | None = None,
        reason: str = "",
        idempotency_key: str = "",
    ) -> Job:
        """Queue a promotion; what cannot be right whatever the gate says is refused at once.

        Raises:
            InvalidInput: no edits, no such method, or a policy that nothing can pass.
            NotFound, WrongState: an edit is unknown, proposed or retired, or all are in a release that is damaged.
            Conflict: another job promotes one of them.
            Unsupported: another server runs the model.
        """
        self._refuse_without_weights()
        ids = list(dict.fromkeys(edit_ids))
        if not ids:
            raise InvalidInput("no edit ids were given.", "list_edits shows them.")
        if method not in METHODS:
            raise InvalidInput(f"there is no method {method!r} to promote by.", f"Use one of {', '.join(METHODS)}.")
        arguments = {"edit_ids": ids, "method": method, "policy": self.asked_of(who.tenant, policy), "reason": reason}
        if self._ledger.jobs.has(who.tenant, idempotency_key):  # a repeated call begins nothing, whatever became of its edits
            return self.queue(who, "promote", arguments, idempotency_key=idempotency_key)
        for edit_id in ids:
            acting(self._ledger, who.tenant, edit_id)
        live = self._ledger.live_release(who.tenant)
        if set(ids) <= {*self._ledger.carried_by(who.tenant, live)} and (damage := self.damage(live)):
            raise WrongState(f"these edits are in {live}, which cannot be served: {damage}", "`ke-tools rebuild` makes it again.")
        self._refuse_while_promoted(who.tenant, ids, idempotency_key)
        return self.queue(who, "promote", arguments, idempotency_key=idempotency_key)

    def queue(self, who: Principal, kind: str, arguments: Mapping[str, Any], *, idempotency_key: str = "") -> Job:
        """Have the worker do a job of this kind.

        Raises:
            InvalidInput, Conflict: as :meth:`~ke_tools.memory.joblog.Jobs.submit`.
        """
        job = self._ledger.jobs.submit(who.tenant, kind, arguments, actor=who.name, idempotency_key=idempotency_key)
        self._ensure_worker(job)
        return job

    def promote_rest(self, who: Principal, old: str, leaving: Collection[str]) -> Rest:
        """See what of the release ``old`` is not in the weights now, ``leaving`` aside, and queue its promotion anew.

        It is asked what it was asked before. Where no job can be queued the rest acts from the memory until somebody promotes it.
        """
        tenant, live = who.tenant, self._ledger.live_release(who.tenant)
        if old in {"", live}:
            return Rest()
        can = {edit.id for edit in self._ledger.live(tenant)} - {*self._ledger.carried_by(tenant, live), *leaving}
        rest = [edit_id for edit_id in self._ledger.carried_by(tenant, old) if edit_id in can]
        if not rest:
            return Rest()
        try:
            how = self._asked_for(tenant, old)
            job = self.begin(
                who, rest, method=how.get("method", "auto"), policy=how.get("policy"), reason=f"{old} without {', '.join(sorted(leaving))}"
            )
        except KeToolsError as error:  # what it follows is done and told
            log.warning("what is left of %s is not promoted anew: %s", old, error)
            return Rest(tuple(rest))
        return Rest(tuple(rest), job.id)

    def _asked_for(self, tenant: str, release: str) -> Mapping[str, Any]:
        """What the job was asked that promoted a release; nothing where that is not known."""
        try:
            return self._ledger.jobs.get(tenant, str(self._ledger.evidence_of(tenant, release).get("job", ""))).arguments
        except NotFound:
            return {}

    def asked_of(self, tenant: str, policy: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the gate is asked: the settings for all tenants, for this one, and a call's own, the later before the earlier.

        Raises:
            InvalidInput: it is no policy, or one that nothing can pass.
        """
        for_all = {name: value for name, value in self._settings.promote.items() if name not in {"tenants", "auto"}}
        asked = {**for_all, **self._settings.promote.get("tenants", {}).get(tenant, {}), **(policy or {})}
        Policy.from_mapping(asked)
        return asked

    def rebuild(self, who: Principal, *, idempotency_key: str = "") -> Job:
        """Queue that the live release is made again.

        Raises:
            WrongState: none is live.
            Conflict: a job is at work with its edits.
        """
        self._refuse_without_weights()
        live = self._ledger.live_release(who.tenant)
        if not live:
            raise WrongState("no release is live, so there is nothing to rebuild.", "promote makes one.")
        ids = list(self._ledger.carried_by(who.tenant, live))
        self._refuse_while_promoted(who.tenant, ids, idempotency_key)
        arguments = {"release": live, "edit_ids": ids, "policy": self.asked_of(who.tenant)}
        return self.queue(who, "rebuild", arguments, idempotency_key=idempotency_key)

    def _refuse_without_weights(self) -> None:
        if self._settings.upstream:
            raise Unsupported(
                f"nothing can be promoted: the model's weights are with {self._settings.upstream}, which is asked over its API alone.",
                "The edits act from the memory. To promote, serve the model with --engine hf.",
            )

    def _refuse_while_promoted(self, tenant: str, edit_ids: Sequence[str], idempotency_key: str) -> None:
        """Refuse what another job is at; a repeated call is none, and a job that slips in between finds nothing left to do."""
        for job in self._ledger.jobs.under_way(tenant, but=idempotency_key):
            if job.kind in _PROMOTING and (both := sorted(set(edit_ids) & set(job.arguments.get("edit_ids", ())))):
                raise Conflict(
                    f"{both[0]} is being promoted by {job.id}; nothing was begun.", "Wait for its end, or cancel it.", job_id=job.id
                )

    def job(self, who: Principal, job_id: str) -> Job:
        """Say how a job stands; one whose worker died has failed by this call.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        job = self._ledger.jobs.get(who.tenant, job_id)
        self._ensure_worker(job)
        return job

    def cancel(self, who: Principal, job_id: str) -> Job:
        """Stop a job that has not begun to publish.

        Raises:
            NotFound: as :meth:`job`.
        """
        return self._ledger.jobs.cancel(who.tenant, job_id)

    async def wait(self, who: Principal, job_id: str, seconds: float, heard: Heard | None = None) -> Job:
        """Wait for a job's end, but not longer; whoever waits may leave, the job goes on. ``heard`` is told at least every two seconds."""
        until = time.monotonic() + min(seconds, MOST_WAIT_SECONDS)
        told, again = None, 0.0
        while True:
            job = await asyncio.to_thread(self.job, who, job_id)
            if heard is not None and ((job.stage, job.done, job.message) != told or time.monotonic() >= again):
                told, again = (job.stage, job.done, job.message), time.monotonic() + _SILENT_SECONDS
                await heard(job)
            if job.has_ended or time.monotonic() >= until:
                return job
            await asyncio.sleep(_LOOK_SECONDS)

    def _ensure_worker(self, job: Job) -> None:
        if not job.has_ended and not self._settings.read_only:
            ensure_worker(self._settings)

    # -- releases ----------------------------------------------------------------------------------------------------------------

    def adapter(self, tenant: str, engine: Engine) -> str:
        """The tenant's live release as an adapter of this engine, "" where none is live or it cannot be served.

        A release that is damaged, or of another model, is not served: the memory answers, and ``trouble`` says why.
        """
        name = self._ledger.live_release(tenant)
        if not name:
            self._unserved.forget(tenant)
            return ""
        if name not in engine.adapters and not self._has_loaded(tenant, name, engine):
            return ""
        with self._lock:
            self._loaded[name] = None
            self._loaded.move_to_end(name)
            self._unserved.forget(tenant)
            return name

    def drop(self, names: Collection[str], engine: Engine | None) -> None:
        """Take releases out of the engine that were erased; one that is just being loaded is waited for, and comes out too."""
        if engine is None or not names:
            return
        with self._loading:
            for name in names:
                with self._lock:
                    self._loaded.pop(name, None)
                if name in engine.adapters:
                    _forget(engine, name)

    def without(self, tenant: str, edit_ids: Sequence[str]) -> str | None:
        """The release to flip to when edits are taken back, "" where there is none; ``None`` where the live one carries none of them."""
        if not set(self._ledger.carried_by(tenant, self._ledger.live_release(tenant))) & set(edit_ids):
            return None
        name = self._ledger.release_without(tenant, edit_ids)
        if damage := self.damage(name):
            log.warning("no release without these edits can be flipped to: %s", damage)
            return ""
        return name

    def damage(self, name: str) -> str:
        """Why a release cannot be served from its folder; "" where it can, or is loaded, or has no name."""
        with self._lock:
            if not name or name in self._loaded:
                return ""
        try:
            releases.opened(self._settings.releases, name)
        except KeToolsError as error:
            return error.message
        return ""

    def answers(self, tenant: str, release: str, edit: Edit, request: Request) -> bool:
        """Whether a release's scorecard shows that it answers such a question about an edit without the memory."""
        known = self._answered.get((tenant, release))
        if known is None:
            known = self._shown_by(tenant, release)
            if len(self._answered) >= _MOST_READ:
                self._answered.clear()
            self._answered[tenant, release] = known
        return kind_of(request, edit.fact.subject) in known.get(edit.id, ())

    def _shown_by(self, tenant: str, release: str) -> Mapping[str, Sequence[str]]:
        try:
            card = self._ledger.scorecard(tenant, str(self._ledger.evidence_of(tenant, release).get("scorecard", "")))
        except KeToolsError as error:
            log.info("of %s no scorecard shows what the weights answer: %s", release, error)
            return {}
        shown: Mapping[str, Sequence[str]] = card.get("answered", {})
        return shown

    def _has_loaded(self, tenant: str, name: str, engine: Engine) -> bool:
        """Load a release, unless somebody else is at one and takes longer than all others can wait: they wait at its beginning only."""
        while not self._loading.acquire(timeout=_GLANCE_SECONDS):
            if time.monotonic() - self._began > _PATIENCE_SECONDS:
                log.info("%s is not served yet, the memory answers: another release is still being loaded", name)
                return False
        try:
            self._began = time.monotonic()
            return name in engine.adapters or self._load(tenant, name, engine)
        finally:
            self._loading.release()

    def _load(self, tenant: str, name: str, engine: Any) -> bool:
        folder = self._settings.releases / name
        written = folder.stat().st_mtime_ns if folder.exists() else 0  # a folder is written once; another one may be sound
        if self._unserved.is_to_wait(tenant, (name, written)):
            return False
        try:
            engine.load_adapter(name, releases.opened(self._settings.releases, name).folder)
        except Exception as error:  # noqa: BLE001  whatever it is, the memory can answer
            why = str(error) if isinstance(error, KeToolsError) else f"{type(error).__name__}: {error}"
            self._unserved.note(tenant, (name, written), f"{why} `ke-tools rebuild` makes it again.")
            return False
        with self._lock:
            while len(self._loaded) >= _MOST_KEPT:
                oldest, _ = self._loaded.popitem(last=False)
                threading.Thread(target=_forget, args=(engine, oldest), daemon=True).start()  # waits for requests under way
        return True


def _forget(engine: Any, name: str) -> None:
    try:
        engine.unload_adapter(name)
    except KeToolsError as error:
        log.warning("a release could not be unloaded: %s", error)


def shown(job: Job) -> dict[str, Any]:
    """A job as the tools show it: flat, without nulls."""
    result = dict(job.result)
    why = " ".join(job.error[part] for part in ("message", "hint") if job.error.get(part))
    return {
        "summary": result.get("summary") or why or _under_way(job),
        "job_id": job.id,
        "kind": job.kind,
        "status": "working" if job.status == "queued" else job.status,
        "stage": job.stage,
        "progress": job.done,
        "total": job.total,
        "message": job.message or ("waiting for its turn" if job.status == "queued" else ""),
        "poll_after_ms": 0 if job.has_ended else 1000,
        "release": result.get("release", ""),
        "revision": result.get("revision", 0),
        "edits": result.get("edits", []),
        "decisions": [trial["in_words"] for trial in result.get("trials", [])],
        "scorecard": result.get("scorecard", ""),
        "scorecard_text": result.get("scorecard_text", ""),
        "error_code": job.error.get("code", ""),
        "error_message": why,
    }


def _under_way(job: Job) -> str:
    if job.status == "cancelled":
        return "Cancelled; nothing was changed."
    if job.status == "queued":
        return f"{job.id} waits for its turn."
    if job.has_ended:
        return f"{job.id} has ended; what it found was erased with an edit that was purged."
    where = f" ({job.done} of {job.total})" if job.total else ""
    return f"{job.id} is at work: {job.message or job.stage or 'it begins'}{where}."
