"""Taking back all that one token changed since a moment, in one step of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ke_tools.errors import NotFound
from ke_tools.memory.moments import ago
from ke_tools.servers.rows import event_row, row

if TYPE_CHECKING:
    from ke_tools.memory.undoing import Undone
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["undo"]


def undo(service: Service, who: Principal, actor: str, since: str, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Undo what an actor recorded, proposed, approved, took back or rejected since a moment (see :mod:`ke_tools.memory.undoing`).

    What else the actor did, or what cannot stand again, is named in ``left``.

    Args:
        service: of the home.
        who: asks.
        actor: the token's name, as the history has it.
        since: a date, a moment, or a duration back from now.
        reason: kept in the history.
        dry_run: only report.

    Raises:
        NotFound: the actor did nothing since.
        InvalidInput, WrongState, Forbidden, ReadOnly: nothing was changed.
    """
    service.check_writable(who)
    moment, tenant, ledger = ago(since), who.tenant, service.ledger
    with service.damage.watching("write", tenant):
        ids = [edit.id for edit in ledger.undoing.made_by(tenant, actor, moment)]
        old = ledger.live_release(tenant)
        done = ledger.undoing.undo(
            tenant,
            actor,
            moment,
            actor=who.name,
            reason=reason or f"all that {actor} changed since {moment}",
            release=service.promotions.without(tenant, ids),
            over_protection=who.may("admin"),
            dry_run=dry_run,
        )
    if not (done.rolled.retired or done.rolled.restored or done.waiting or done.left):
        raise NotFound(f"{actor!r} changed nothing since {moment} that stands.", "history shows who did what.")
    flip, job_id = ("", "") if dry_run else service.flip_told(who, old, ids)
    return {
        "summary": _summary(done, f"{actor!r} since {moment}", dry_run=dry_run)
        + (" Nothing was changed." if dry_run else f"{flip} {service.target_of_change()}"),
        "retired": [row(edit) for edit in done.rolled.retired],
        "restored": [row(edit) for edit in done.rolled.restored],
        "waiting": [row(edit) for edit in done.waiting],
        "left": [event_row(event) for event in done.left],
        "revision": service.revision,
        "model": service.model_id,
        "release": done.rolled.release,
        "job_id": job_id,
    }


def _summary(done: Undone, whose: str, *, dry_run: bool) -> str:
    parts = [(done.rolled.retired, "taken back"), (done.rolled.restored, "live again"), (done.waiting, "waiting again")]
    told = ", ".join(f"{len(edits)} {state}" for edits, state in parts if edits) or "nothing to take back"
    left = f" {len(done.left)} steps are not undone, see left." if len(done.left) > 1 else " 1 step is not undone, see left."
    return f"Of {whose}{', edits would be' if dry_run else ''}: {told}.{left if done.left else ''}"
