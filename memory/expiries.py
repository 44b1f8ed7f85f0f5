"""Edits that act until a moment: what is over is retired by the next event of its tenant, and served no longer from that moment on.

An edit that has expired leaves as one that is rolled back does: what it superseded comes back, unless that is over too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from ke_tools.errors import WrongState
from ke_tools.memory.events import Change, Standing, now
from ke_tools.memory.log import Author, append, edits_by_id, standings
from ke_tools.memory.promotions import lawful
from ke_tools.memory.rollbacks import take_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from ke_tools.memory.storage import Storage

_NEXT: Final = (
    "SELECT min(x.expires) FROM expiries AS x JOIN edits AS e ON e.tenant = x.tenant AND e.id = x.edit_id"
    " WHERE e.standing IN ('active', 'promoted', 'superseded')"
)
EXPIRY: Final = "(expiry)"  # the actor of these events; no token can have the name
_OVER: Final = (
    "SELECT x.edit_id FROM expiries AS x JOIN edits AS e ON e.tenant = x.tenant AND e.id = x.edit_id"
    " WHERE x.tenant = ? AND x.expires <= ? AND e.standing IN ('active', 'promoted', 'superseded') ORDER BY x.expires, x.edit_id"
)


class Expiries:
    """The expiries of all tenants, as the ledger keeps them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def sweep(self) -> list[str]:
        """Retire what has expired, of all tenants; return the ids. Each edit, approval and rollback does so for its tenant."""
        with self._storage.writing() as db:
            tenants = [tenant for (tenant,) in db.execute("SELECT DISTINCT tenant FROM expiries ORDER BY tenant")]
            return [edit_id for tenant in tenants for edit_id in sweep(db, tenant)]

    def next(self) -> str:
        """Return the moment at which the next edit of any tenant expires, "" where none does."""
        with self._storage.reading() as db:
            if not db.table_exists("main", "expiries"):
                return ""  # a file that is only read may be older
            return db.execute(_NEXT).get or ""


def sweep(db: apsw.Connection, tenant: str) -> list[str]:
    """Retire a tenant's edits whose time has passed, in one event; return their ids."""
    over = [edit_id for (edit_id,) in db.execute(_OVER, (tenant, now()))]
    if not over:
        return []
    stands = standings(db, tenant, "AND e.id IN (SELECT value FROM json_each(?))", (json.dumps(over),))
    moved: dict[str, Change] = {}
    for edit_id in over:
        take_out(db, tenant, moved.get(edit_id, stands[edit_id]), moved, Standing.EXPIRED)
    append(db, Author(tenant, EXPIRY), "expire", {"edit_ids": over}, lawful(db, tenant, list(moved.values()), None))
    return over


def refuse_if_expiring(db: apsw.Connection, tenant: str, edit_ids: Sequence[str]) -> None:
    """Refuse edits that act until a moment only: weights do not forget by themselves.

    Raises:
        WrongState: one is among them.
    """
    for edit in edits_by_id(db, tenant, edit_ids):
        if edit.fact.expires:
            raise WrongState(
                f"{edit.id} expires at {edit.fact.expires}, and weights do not; nothing was promoted.",
                "Leave it in the memory, or record it without an expiry.",
            )
