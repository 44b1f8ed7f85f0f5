"""Recording a planned rollback: what it may not change, its event, and what it comes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ke_tools.memory.events import LIVE, Change, Flip, RolledBack, canonical
from ke_tools.memory.expiries import sweep
from ke_tools.memory.log import Author, append, edits_by_id, head, standings
from ke_tools.memory.protections import Guard
from ke_tools.memory.rollbacks import outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw


def roll(db: apsw.Connection, author: Author, payload: dict[str, Any], changes: Sequence[Change], flip: Flip | None) -> RolledBack:
    """Append a planned rollback, and retire what came back by it though its time has passed."""
    before = standing_of(db, author.tenant, changes)
    revision = append(db, author, "rollback", payload, changes, flip)
    if not sweep(db, author.tenant):
        return outcome(db, author.tenant, changes, before, revision)
    stands = standings(db, author.tenant)  # what came back and is over has left again
    return outcome(db, author.tenant, [change for change in changes if change == stands[change.edit_id]], before, head(db))


def refuse_if_protected(db: apsw.Connection, tenant: str, changes: Sequence[Change], *, over_protection: bool) -> None:
    """Refuse to change what acts of something protected."""
    if over_protection:
        return
    now = standing_of(db, tenant, changes)
    moved = [change.edit_id for change in changes if (change.standing in LIVE) != (now[change.edit_id].standing in LIVE)]
    Guard.of(db, tenant).refuse(*(edit.fact for edit in edits_by_id(db, tenant, moved)))


def standing_of(db: apsw.Connection, tenant: str, changes: Sequence[Change]) -> dict[str, Change]:
    """How the edits stand that changes are about."""
    ids = canonical([change.edit_id for change in changes])
    return standings(db, tenant, "AND e.id IN (SELECT value FROM json_each(?))", (ids,))
