"""Undoing all that one actor did since a moment, the latest first.

What it recorded or proposed leaves as by a rollback, and what it approved waits again. What it took back or rejected stands again as
before, if nothing has moved it since and nothing else of its subject and relation is live. The rest (promotions, protections, purges, and
what cannot stand again) is left, and named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ke_tools.memory.checks import check
from ke_tools.memory.events import LIVE, Change, Event, RolledBack, Standing
from ke_tools.memory.expiries import sweep
from ke_tools.memory.log import Author, edits_by_id, edits_where, events_where, head, release_at, standings, standings_at
from ke_tools.memory.moments import has_passed
from ke_tools.memory.promotions import flip_without, lawful
from ke_tools.memory.rollbacks import take_out
from ke_tools.memory.rolling import refuse_if_protected, roll

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

    from ke_tools.facts import Edit
    from ke_tools.memory.storage import Storage

__all__ = ["Undoing", "Undone"]

_GONE: Final = (Standing.ROLLED_BACK, Standing.EXPIRED)
_SINCE: Final = "AND v.actor = ? AND v.at >= ? ORDER BY v.seq DESC"
_MADE_BY: Final = (  # recorded, proposed or approved by an actor from a moment on, and not taken back
    "AND e.standing NOT IN ('rolled back', 'expired')"
    " AND (e.seq IN (SELECT seq FROM events INDEXED BY events_by_actor WHERE tenant = ? AND actor = ? AND at >= ?)"
    " OR e.id IN (SELECT edit_id FROM approvals WHERE tenant = ? AND seq IN"
    " (SELECT seq FROM events INDEXED BY events_by_actor WHERE tenant = ? AND actor = ? AND at >= ?))) ORDER BY +e.seq"
)


@dataclass(frozen=True, slots=True)
class Undone:
    """What undoing an actor changed."""

    rolled: RolledBack
    waiting: list[Edit]  # proposals that wait again
    left: list[Event]  # what the actor did besides, oldest first


class Undoing:
    """Undoes what actors did, of all tenants; a tenant never sees another's."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def undo(
        self,
        tenant: str,
        by: str,
        since: str,
        *,
        actor: str,
        reason: str = "",
        release: str | None = None,
        over_protection: bool = False,
        dry_run: bool = False,
    ) -> Undone:
        """Take back, in one event, all that one actor did from a moment on; where that is nothing, record nothing.

        Args:
            tenant: whose.
            by: whose doing it was.
            since: the moment, in UTC, ISO 8601.
            actor: who says so.
            reason: why.
            release: as :meth:`~ke_tools.memory.ledger.Ledger.rollback` says.
            over_protection: what is protected may be changed.
            dry_run: change nothing, and return what would be.

        Raises:
            WrongState: the live release would carry an edit that is taken back.
            Forbidden: it changes what acts of something protected.
        """
        author = Author.of(tenant, actor, reason)
        with self._storage.writing(keep=not dry_run) as db:
            sweep(db, tenant)
            changes, left = changes_of_undoing(db, tenant, by, since)
            if not changes:
                return Undone(RolledBack([], [], head(db), release_at(db, tenant)), [], left)
            refuse_if_protected(db, tenant, changes, over_protection=over_protection)
            gone = {change.edit_id for change in changes if change.standing in {Standing.ROLLED_BACK, Standing.PROPOSED}}
            flip = flip_without(db, tenant, gone, changes, release, None)
            rolled = roll(db, author, {"undone": by, "since": since}, lawful(db, tenant, changes, flip), flip)
            waiting = edits_by_id(db, tenant, [change.edit_id for change in changes if change.standing is Standing.PROPOSED])
            return Undone(replace(rolled, retired=[edit for edit in rolled.retired if edit not in waiting]), waiting, left)

    def made_by(self, tenant: str, actor: str, since: str) -> list[Edit]:
        """Return what an actor recorded, proposed or approved from a moment on (UTC, ISO 8601) and is not taken back, oldest first."""
        check(tenant=tenant, actor=actor)
        with self._storage.reading() as db:
            return edits_where(db, tenant, _MADE_BY, (tenant, actor, since, tenant, tenant, actor, since))


def made(event: Event) -> str:
    """The edit that an event recorded, proposed or approved; "" where it did something else, or what it said was purged."""
    return str(event.payload.get("id" if event.action in {"edit", "propose"} else "approves", ""))


def changes_of_undoing(db: apsw.Connection, tenant: str, by: str, since: str) -> tuple[list[Change], list[Event]]:
    """Plan it; return the changes, and the events that stay as they are, oldest first."""
    stands, moved, left = standings(db, tenant), dict[str, Change](), list[Event]()
    for event in events_where(db, tenant, _SINCE, (by, since)):
        if edit_id := made(event):
            now = moved.get(edit_id) or stands.get(edit_id)
            if now is not None and now.standing not in _GONE:
                take_out(db, tenant, now, moved, Standing.PROPOSED if event.action == "approve" else Standing.ROLLED_BACK)
        elif event.action in {"rollback", "reject"} and (before := _before(db, event, stands | moved)):
            moved |= before
        else:
            left.append(event)
    return [change for change in moved.values() if change != stands[change.edit_id]], left[::-1]


def _before(db: apsw.Connection, event: Event, now: Mapping[str, Change]) -> dict[str, Change]:
    """How what an event moved stood before it; empty where it cannot stand so again."""
    then = standings_at(db, event.tenant, event.seq - 1)
    if any(now.get(change.edit_id) != change or change.edit_id not in then for change in event.changes):
        return {}
    back = {change.edit_id: then[change.edit_id] for change in event.changes}
    acting = [edit_id for edit_id, change in back.items() if change.standing in LIVE]
    is_blocked = any(has_passed(edit.fact.expires) or _is_taken(db, edit, now, back) for edit in edits_by_id(db, event.tenant, acting))
    return {} if is_blocked else {edit_id: _unpromoted(change) for edit_id, change in back.items()}


def _is_taken(db: apsw.Connection, edit: Edit, now: Mapping[str, Change], back: Mapping[str, Change]) -> bool:
    """Whether something else is live where only one can be."""
    others: Sequence[Edit] = edits_where(db, edit.tenant, "AND e.slot = ?", (edit.slot,)) if edit.functional else ()
    return any(other.id not in back and now[other.id].standing in LIVE for other in others)


def _unpromoted(change: Change) -> Change:
    """Without the weights: which edits the live release carries is found afterwards."""
    return Change(change.edit_id, Standing.ACTIVE) if change.standing in LIVE else change
