"""Long work as rows of the ledger's file: what was asked for, how far it is, and what came of it.

A row outlives the server that was asked and the worker that does it. It goes one way::

    queued ──► working ──► completed | failed | cancelled
       └────────────────────────────────────────► cancelled

What a job does to the log and its end are one transaction (:meth:`Jobs.commit`): a job has taken effect if and only if it is completed.

The rows are no part of the log: nothing that is believed follows from them. They may quote what was asked and answered, so a
purge of an edit calls :func:`erase` too.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.errors import Conflict, Interrupted, InvalidInput, NotFound, WrongState
from ke_tools.memory.checks import check, noted
from ke_tools.memory.events import Page, canonical, now
from ke_tools.memory.listing import Listing
from ke_tools.memory.migrations import version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import apsw

    from ke_tools.memory.storage import Storage

Status = Literal["queued", "working", "completed", "failed", "cancelled"]

LARGEST: Final = 1 << 20  # bytes of arguments or of a result
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
_LONGEST_STAGE: Final = 100
_LONGEST_TEXT: Final = 2000  # of a message or a hint
_FORM: Final = 4  # the step that made the table; a ledger that may not be written can be older
_NOTHING: Final = "{}"
_NAMES: Final = "instr(arguments || message || result || error, ?)"
_JOB_ID: Final = re.compile(r"job_[0-9a-f]{16}")
_JOBS: Final = (
    "SELECT id, tenant, actor, kind, arguments, status, stage, done, total, message, result, error, created_at, updated_at, is_cancelling"
    " FROM jobs"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A piece of long work as it stands now."""

    id: str  # "job_" and 16 hexadecimal digits
    tenant: str
    actor: str
    kind: str
    arguments: Mapping[str, Any]
    status: Status
    stage: str = ""
    done: int = 0  # of ``total``, in the stage's own unit
    total: int = 0
    message: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)  # of a completed one
    error: Mapping[str, Any] = field(default_factory=dict)  # of a failed one: code, message, hint
    created_at: str = ""  # UTC, ISO 8601
    updated_at: str = ""
    is_cancelling: bool = False  # it was asked to stop, and works until it notices

    @property
    def has_ended(self) -> bool:
        """Whether nothing about it changes any more."""
        return self.status in ENDED


class Jobs:
    """The jobs of all tenants; a tenant never sees another's.

    Raises:
        Busy, ReadOnly, ResourceExhausted, LedgerDamaged: by every method, as :class:`~ke_tools.memory.ledger.Ledger` says.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    # -- for those who ask -------------------------------------------------------------------------------------------------------

    def submit(self, tenant: str, kind: str, arguments: Mapping[str, Any], *, actor: str, idempotency_key: str = "") -> Job:
        """Queue a job; what was submitted under the key before is returned as it stands now.

        The keys are the jobs' own: the same key may have been given to an edit.

        Raises:
            InvalidInput: the arguments are not JSON, or larger than 1 MB.
            Conflict: the key belongs to a job of another kind or with other arguments.
        """
        check(tenant=tenant, actor=actor, kind=kind)
        noted("", idempotency_key)
        text = _written("the arguments", arguments)
        with self._storage.writing() as db:
            if idempotency_key and (found := _rows(db, "WHERE tenant = ? AND key = ?", (tenant, idempotency_key))):
                if (found[0].kind, canonical(found[0].arguments)) != (kind, text):
                    raise Conflict(f"the idempotency key {idempotency_key!r} was used for another job.", "Use a new key for a new job.")
                return found[0]
            job_id, at = f"job_{secrets.token_hex(8)}", now()
            db.execute(
                "INSERT INTO jobs (id, tenant, actor, kind, arguments, key, status, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, 'queued', ?, ?)",
                (job_id, tenant, actor, kind, text, idempotency_key, at, at),
            )
            return _one(db, tenant, job_id)

    def get(self, tenant: str, job_id: str) -> Job:
        """Return a job.

        Raises:
            NotFound: it does not exist, or is another tenant's.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            return _one(db, tenant, job_id)

    def list(self, tenant: str, limit: int = 20, cursor: str = "") -> Page[Job]:
        """List jobs, newest first; ``limit`` from 1 to 1000, ``cursor`` the ``next_cursor`` of the page before."""
        check(tenant=tenant)
        listing = Listing(["jobs", tenant], limit, cursor)
        with self._storage.reading() as db:
            if version_of(db) < _FORM:
                return Page([], 0, "")
            total = int(db.execute("SELECT count(*) FROM jobs WHERE tenant = ?", (tenant,)).get)
            seqs = [
                seq
                for (seq,) in db.execute(
                    "SELECT seq FROM jobs WHERE tenant = ? AND seq < ? ORDER BY seq DESC LIMIT ?", (tenant, *listing.bounds)
                )
            ]
            rows = _rows(db, "WHERE seq IN (SELECT value FROM json_each(?)) ORDER BY seq DESC", (canonical(seqs[:limit]),))
        return Page(rows, total, listing.next_cursor(seqs))

    def under_way(self, tenant: str, *, but: str = "") -> Sequence[Job]:
        """Return the jobs that have not ended, oldest first; without the one that was asked for under the key ``but``."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            if version_of(db) < _FORM:
                return []
            condition = "WHERE tenant = ? AND status IN ('queued', 'working') AND (key = '' OR key <> ?) ORDER BY seq"
            return _rows(db, condition, (tenant, but))

    def has(self, tenant: str, idempotency_key: str) -> bool:
        """Whether a job was asked for under a key."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            if not idempotency_key or version_of(db) < _FORM:
                return False
            return bool(_rows(db, "WHERE tenant = ? AND key = ?", (tenant, idempotency_key)))

    def cancel(self, tenant: str, job_id: str) -> Job:
        """Cancel a job: at once where it waits, soon where it is worked on; one that has ended stays as it is.

        Raises:
            NotFound: it does not exist, or is another tenant's.
        """
        check(tenant=tenant)
        with self._storage.writing() as db:
            job = _one(db, tenant, job_id)
            if job.status == "queued":
                db.execute("UPDATE jobs SET status = 'cancelled', updated_at = ? WHERE id = ?", (now(), job_id))
            elif job.status == "working":
                db.execute("UPDATE jobs SET is_cancelling = 1, updated_at = ? WHERE id = ?", (now(), job_id))
            else:
                return job
            return _one(db, tenant, job_id)

    # -- for the worker, over all tenants ----------------------------------------------------------------------------------------

    def is_waiting(self) -> bool:
        """Tell whether a job is queued; cheap."""
        with self._storage.reading() as db:
            return bool(db.execute("SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'queued')").get)

    def claim(self) -> Job | None:
        """Take the job that has waited longest; ``None`` where none waits."""
        with self._storage.writing() as db:
            taken = db.execute(
                "UPDATE jobs SET status = 'working', updated_at = ?"
                " WHERE seq = (SELECT min(seq) FROM jobs WHERE status = 'queued') RETURNING id",
                (now(),),
            ).get
            return _rows(db, "WHERE id = ?", (taken,))[0] if taken else None

    def tell(self, job_id: str, stage: str, done: int, total: int, message: str) -> bool:
        """Write how far a job is; return whether it is to stop: it was cancelled, or is not worked on any more."""
        with self._storage.writing() as db:
            stopping = db.execute(
                "UPDATE jobs SET stage = ?, done = ?, total = ?, message = ?, updated_at = ? WHERE id = ? AND status = 'working'"
                " RETURNING is_cancelling",
                (stage[:_LONGEST_STAGE], done, total, message[:_LONGEST_TEXT], now(), job_id),
            ).get
        return stopping is None or bool(stopping)

    def commit(self, job_id: str, effect: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Let a job take effect and end; return what came of it, or ``None``, and nothing happens, if it is to stop.

        What ``effect`` writes into this ledger, and that the job is completed with what it returns, is one transaction.
        """
        with self._storage.writing() as db:
            if not db.execute("SELECT count(*) FROM jobs WHERE id = ? AND status = 'working' AND NOT is_cancelling", (job_id,)).get:
                return None
            result = bounded(effect())
            _finish(db, job_id, "completed", result=canonical(result))
            return result

    def complete(self, job_id: str, result: Mapping[str, Any]) -> None:
        """Say what came of a job.

        Raises:
            InvalidInput: the result is not JSON, or larger than 1 MB (:func:`bounded` makes it fit); the job is worked on as before.
            WrongState: the job is not being worked on; so :meth:`fail` and :meth:`stop`.
        """
        self._end(job_id, "completed", result=_written("the result", result))

    def fail(self, job_id: str, error: Mapping[str, Any]) -> None:
        """Say why a job came to nothing: ``code``, ``message`` and ``hint``."""
        self._end(job_id, "failed", error=_error(error))

    def stop(self, job_id: str) -> None:
        """Say that a job stopped as it was asked to."""
        self._end(job_id, "cancelled")

    def interrupt(self) -> Sequence[Job]:
        """Fail every job that is said to be worked on; only for who holds the worker's lock, so that nobody works."""
        with self._storage.writing() as db:
            rows = list(db.execute("SELECT id, stage FROM jobs WHERE status = 'working' ORDER BY seq"))
            for job_id, stage in rows:
                _finish(db, job_id, "failed", error=_error(_interrupted(stage).as_dict()))
            return _rows(db, "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY seq", (canonical([row[0] for row in rows]),))

    def _end(self, job_id: str, status: Status, *, result: str = _NOTHING, error: str = _NOTHING) -> None:
        with self._storage.writing() as db:
            if not _finish(db, job_id, status, result=result, error=error):
                raise WrongState(f"the job {job_id!r} is not being worked on, so it cannot end as {status}.", "Claim a job first.")


def bounded(result: Mapping[str, Any]) -> dict[str, Any]:
    """Leave the largest parts of a result out until the rest fits into a row; ``left_out`` names them."""
    sizes = {name: len(canonical({name: value}).encode()) for name, value in result.items()}
    left_out: list[str] = []
    while sum(sizes.values()) + len(canonical(left_out).encode()) + _LONGEST_STAGE > LARGEST and sizes:
        left_out.append(max(sizes, key=lambda name: sizes[name]))
        del sizes[left_out[-1]]
    return {name: result[name] for name in sizes} | ({"left_out": left_out} if left_out else {})


def erase(db: apsw.Connection, tenant: str, edit_id: str) -> None:
    """Empty what the tenant's jobs say that name an edit, inside the purge's transaction; their keys stay taken.

    Raises:
        WrongState: a job that has not ended names it, and would write of it again.
    """
    for job in _rows(db, f"WHERE tenant = ? AND {_NAMES} ORDER BY seq", (tenant, edit_id)):
        if not job.has_ended:
            raise WrongState(f"the job {job.id} works with {edit_id}.", "Wait for its end, or cancel it.")
        db.execute("UPDATE jobs SET arguments = '{}', message = '', result = '{}', error = '{}' WHERE id = ?", (job.id,))


def _rows(db: apsw.Connection, condition: str, values: Sequence[Any]) -> list[Job]:
    return [_job(row) for row in db.execute(f"{_JOBS} {condition}", values)]


def _one(db: apsw.Connection, tenant: str, job_id: str) -> Job:
    is_there = _JOB_ID.fullmatch(job_id) and version_of(db) >= _FORM
    found = _rows(db, "WHERE tenant = ? AND id = ?", (tenant, job_id)) if is_there else []
    if not found:
        raise NotFound(f"there is no job {job_id!r}.", "The answer that began it named it; history shows what was done.")
    return found[0]


def _finish(db: apsw.Connection, job_id: str, status: Status, *, result: str = _NOTHING, error: str = _NOTHING) -> bool:
    db.execute(
        "UPDATE jobs SET status = ?, result = ?, error = ?, updated_at = ?, is_cancelling = 0,"
        " done = iif(? = 'completed', total, done) WHERE id = ? AND status = 'working'",
        (status, result, error, now(), status, job_id),
    )
    return bool(db.changes())


def _interrupted(stage: str) -> Interrupted:
    where = f" at the stage {stage!r}" if stage else ""
    return Interrupted(
        f"the worker ended before the job did{where}; nothing was changed.",
        "Ask again. If the system killed it for want of memory, free some, give fewer edits a call, or take a smaller --dtype.",
    )


def _written(what: str, values: Mapping[str, Any]) -> str:
    try:
        text = canonical(dict(values))
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{what} of the job cannot be written as JSON: {error}.", "Give text, numbers, lists and objects.") from error
    if size > LARGEST:
        raise InvalidInput(f"{what} of the job take {size} bytes; at most {LARGEST} are kept.", "Ask for less in one job.")
    return text


def _error(error: Mapping[str, Any]) -> str:
    return canonical({name: str(error.get(name, ""))[:_LONGEST_TEXT] for name in ("code", "message", "hint")})


def _job(row: Sequence[Any]) -> Job:
    job_id, tenant, actor, kind, arguments, status, stage, done, total, message, result, error, created_at, updated_at, cancelling = row
    return Job(
        id=job_id,
        tenant=tenant,
        actor=actor,
        kind=kind,
        arguments=json.loads(arguments),
        status=status,
        stage=stage,
        done=done,
        total=total,
        message=message,
        result=json.loads(result),
        error=json.loads(error),
        created_at=created_at,
        updated_at=updated_at,
        is_cancelling=bool(cancelling),
    )
