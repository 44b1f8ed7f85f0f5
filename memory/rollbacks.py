"""Taking corrections back: what it retires, and what it brings back.

A superseded edit points at the one it gave way to. When that one is rolled back, those that point at it come back; when it was
superseded itself, they point at its successor from then on. So what was superseded by another live edit stays away, and what was
rolled back comes back only by a rollback to a revision at which it was live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ke_tools.errors import WrongState
from ke_tools.memory.absent import absent
from ke_tools.memory.events import LIVE, Change, RolledBack, Standing
from ke_tools.memory.log import edits_by_id, release_at, standings, standings_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw


def changes_of_rollback(db: apsw.Connection, tenant: str, edit_ids: Sequence[str]) -> list[Change]:
    """Plan to take back these edits, in whatever order they are named.

    Raises:
        NotFound: an id is unknown to this tenant.
        WrongState: an edit is rolled back already.
    """
    stands: dict[str, Change] = {}
    for edit_id in edit_ids:
        stands |= standings(db, tenant, "AND e.id = ?", (edit_id,))
    if unknown := [edit_id for edit_id in edit_ids if edit_id not in stands]:
        raise absent(db, tenant, unknown, "nothing was rolled back")
    for standing in (Standing.ROLLED_BACK, Standing.EXPIRED):
        if gone := [edit_id for edit_id in edit_ids if stands[edit_id].standing is standing]:
            raise WrongState(f"{', '.join(gone)} is {standing.value} already; nothing was changed.", "history shows by whom.")
    moved: dict[str, Change] = {}
    for edit_id in edit_ids:
        take_out(db, tenant, moved.get(edit_id, stands[edit_id]), moved)
    return list(moved.values())


def changes_to_revision(db: apsw.Connection, tenant: str, revision: int) -> list[Change]:
    """Plan to let everything stand as after the event ``revision``; what was made since is rolled back.

    Proposals that are open stay, and those that were rejected or withdrawn since are not open again.
    """
    then = standings_at(db, tenant, revision)
    changes = []
    for edit_id, now in standings(db, tenant).items():
        if edit_id not in then and now.standing in {Standing.PROPOSED, Standing.EXPIRED}:
            continue
        wanted = then.get(edit_id, Change(edit_id, Standing.ROLLED_BACK))
        if wanted.standing is Standing.PROPOSED and now.standing in {Standing.ROLLED_BACK, Standing.EXPIRED}:
            continue
        if wanted != now:
            changes.append(wanted)
    return changes


def outcome(db: apsw.Connection, tenant: str, changes: Sequence[Change], before: Mapping[str, Change], revision: int) -> RolledBack:
    """Name the edits that lost or won their effect, or were refused, by these changes."""
    retired = [change.edit_id for change in changes if change.standing is Standing.ROLLED_BACK or _lost(before[change.edit_id], change)]
    restored = [change.edit_id for change in changes if change.standing in LIVE and before[change.edit_id].standing not in LIVE]
    return RolledBack(edits_by_id(db, tenant, retired), edits_by_id(db, tenant, restored), revision, release_at(db, tenant, revision))


def _lost(before: Change, after: Change) -> bool:
    return before.standing in LIVE and after.standing not in LIVE


def take_out(
    db: apsw.Connection, tenant: str, leaving: Change, moved: dict[str, Change], standing: Standing = Standing.ROLLED_BACK
) -> None:
    """Plan that an edit, as it stands by now, leaves for this standing; what pointed at it comes back, or points on."""
    pointing = [edit_id for edit_id in standings(db, tenant, "AND e.superseded_by = ?", (leaving.edit_id,)) if edit_id not in moved]
    pointing += [edit_id for edit_id, change in moved.items() if change.superseded_by == leaving.edit_id]
    for edit_id in pointing:
        by = leaving.superseded_by
        moved[edit_id] = Change(edit_id, Standing.SUPERSEDED, by) if by else Change(edit_id, Standing.ACTIVE)
    moved[leaving.edit_id] = Change(leaving.edit_id, standing)
