"""Idempotency keys: the same call under the same key happens once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ke_tools.errors import Conflict
from ke_tools.memory.events import canonical

if TYPE_CHECKING:
    import apsw


def seen(db: apsw.Connection, tenant: str, key: str, arguments: Any) -> tuple[int, int] | None:
    """Return the first and last event of the call that used this key, if there was one; "" is no key.

    Raises:
        Conflict: that call had other arguments.
    """
    if not key:
        return None
    query = "SELECT arguments, first_seq, last_seq FROM idempotency_keys WHERE tenant = ? AND key = ?"
    row = db.execute(query, (tenant, key)).fetchone()
    if row is None:
        return None
    if row[0] != _digest(arguments):
        raise Conflict(f"the idempotency key {key!r} was used with other arguments.", "Use a new key for a new call.")
    return row[1], row[2]


def is_known(db: apsw.Connection, tenant: str, key: str) -> bool:
    """Whether a call used this key."""
    return db.execute("SELECT 1 FROM idempotency_keys WHERE tenant = ? AND key = ?", (tenant, key)).fetchone() is not None


def remember(db: apsw.Connection, tenant: str, key: str, arguments: Any, span: tuple[int, int]) -> None:
    """Keep which events a call made."""
    if key:
        db.execute("INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?)", (tenant, key, _digest(arguments), *span))


def _digest(arguments: Any) -> bytes:
    return hashlib.sha256(canonical(arguments).encode()).digest()
