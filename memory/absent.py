"""Ids that have no edit: unknown to the tenant, or of edits that were purged, of which the log keeps the changes alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ke_tools.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import apsw


def absent(db: apsw.Connection, tenant: str, edit_ids: Sequence[str], then: str = "") -> NotFound:
    """The error that says of ids without an edit why there is none; ``then`` is what came of the call, e.g. "nothing was changed"."""
    ending = f"; {then}." if then else "."
    if gone := purged_among(db, tenant, edit_ids):
        return NotFound(f"{', '.join(gone)} was purged, and what it said erased{ending}", "history of that id says by whom, when and why.")
    return NotFound(f"there is no edit {', '.join(map(repr, edit_ids))}{ending}", "list_edits shows the ids.")


def purged_among(db: apsw.Connection, tenant: str, edit_ids: Iterable[str]) -> list[str]:
    """Return those of the ids whose edits were purged."""
    gone = (
        "SELECT DISTINCT c.edit_id FROM changes AS c WHERE c.tenant = ? AND c.edit_id IN (SELECT value FROM json_each(?))"
        " AND NOT EXISTS (SELECT 1 FROM edits AS e WHERE e.tenant = c.tenant AND e.id = c.edit_id) ORDER BY 1"
    )
    return [edit_id for (edit_id,) in db.execute(gone, (tenant, json.dumps(sorted(edit_ids))))]
