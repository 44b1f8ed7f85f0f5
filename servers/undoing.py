"""Taking back all that one token changed since a moment, in one step of the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ke_tools.errors import NotFound
from ke_tools.memory.moments import ago
from ke_tools.servers.service import event_row, row

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["undo"]

_LEFT = frozenset({"rollback", "reject", "promote", "demote", "purge", "protect", "unprotect"})


def undo(service: Service, who: Principal, actor: str, since: str, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
    """Take back every edit that an actor recorded, proposed or approved since a moment; what they superseded comes back.

    What else the actor did (rollbacks, rejections, promotions, protections) is not undone, but named in ``left``.

    Args:
        service: of the home.
        who: asks.
        actor: the token's name, as the history has it.
        since: a date, a moment, or a duration back from now.
        reason: kept in the history.
        dry_run: only report.

    Raises:
        NotFound: the actor changed nothing since.
        InvalidInput, WrongState, Forbidden, ReadOnly: nothing was changed.
    """
    service.check_writable(who)
    moment, tenant = ago(since), who.tenant
    with service.damage.watching("write", tenant):
        edits = service.ledger.made_by(tenant, actor, moment)
        left = [event_row(event) for event in service.ledger.events_by(tenant, actor, moment) if event.action in _LEFT]
        if not edits and not left:
            raise NotFound(f"{actor!r} changed nothing since {moment} that stands.", "history shows who did what.")
        if not edits:
            return _shown(service, [], [], left, f"No edit of {actor!r} since {moment} stands; nothing was changed.", "", "")
        ids = [edit.id for edit in edits]
        old = service.ledger.live_release(tenant)
        done = service.ledger.rollback(
            tenant,
            ids,
            actor=who.name,
            reason=reason or f"all that {actor} changed since {moment}",
            release=service.promotions.without(tenant, ids),
            over_protection=who.may("admin"),
            dry_run=dry_run,
        )
    flip, job_id = ("", "") if dry_run else service.flip_told(who, old, ids)
    verb = "would be taken back" if dry_run else "taken back"
    back = f", {_count(len(done.restored), 'earlier edit')} {'would come' if dry_run else 'came'} back" if done.restored else ""
    told = f"{_count(len(edits), 'edit')} of {actor!r} since {moment} {verb}{back}.{flip}"
    told += " Nothing was changed." if dry_run else f" {service.target_of_change()}"
    told += f" Not undone: {_count(len(left), 'other step')}, see left." if left else ""
    return _shown(service, done.retired, done.restored, left, told, done.release, job_id)


def _shown(
    service: Service,
    retired: list[Edit],
    restored: list[Edit],
    left: list[dict[str, Any]],
    summary: str,
    release: str,
    job_id: str,
) -> dict[str, Any]:
    return {
        "summary": summary,
        "retired": [row(edit) for edit in retired],
        "restored": [row(edit) for edit in restored],
        "left": left,
        "revision": service.revision,
        "model": service.model_id,
        "release": release,
        "job_id": job_id,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
