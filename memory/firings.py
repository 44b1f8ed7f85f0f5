"""How often each edit was in what a request was about; counted beside the log, as nothing that is believed follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ke_tools.memory.events import now

if TYPE_CHECKING:
    from collections.abc import Mapping

    import apsw


def add(db: apsw.Connection, counts: Mapping[tuple[str, str], int]) -> None:
    """Add to the counts of (tenant, edit)."""
    db.executemany(
        "INSERT INTO firings VALUES (?, ?, ?, ?)"
        " ON CONFLICT (tenant, edit_id) DO UPDATE SET times = times + excluded.times, last_at = excluded.last_at",
        [(tenant, edit_id, times, now()) for (tenant, edit_id), times in counts.items()],
    )


def of(db: apsw.Connection, tenant: str) -> dict[str, int]:
    """Count by edit; an edit that never fired is not in it."""
    if not db.table_exists("main", "firings"):  # of an older form, and not to be written
        return {}
    return dict(db.execute("SELECT edit_id, times FROM firings WHERE tenant = ?", (tenant,)))
