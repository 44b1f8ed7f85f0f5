"""Undoing all that one actor did since a moment, the latest first.

What it recorded or proposed leaves as by a rollback, and what it approved waits again. What it took back or rejected stands again as
before, if nothing has moved it since and nothing else of its subject and relation is live. The rest (promotions, protections, purges, and
what cannot stand again) is left, and named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ke_tools.memory.events import LIVE, Change, Event, Standing
from ke_tools.memory.log import edits_by_id, edits_where, events_where, standings, standings_at
from ke_tools.memory.moments import has_passed
from ke_tools.memory.rollbacks import take_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

    from ke_tools.facts import Edit
    from ke_tools.memory.events import RolledBack

__all__ = ["Undone", "changes_of_undoing", "made"]

_GONE: Final = (Standing.ROLLED_BACK, Standing.EXPIRED)
_SINCE: Final = "AND v.actor = ? AND v.at >= ? ORDER BY v.seq DESC"


@dataclass(frozen=True, slots=True)
class Undone:
    """What undoing an actor changed."""

    rolled: RolledBack
    waiting: list[Edit]  # proposals that wait again
    left: list[Event]  # what the actor did besides, oldest first


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
