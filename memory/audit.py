"""Checking a ledger against itself: the file, the chain, and everything that follows from the log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import apsw

from ke_tools.memory.events import GENESIS, Change, Finding, chain_hash, content_hash
from ke_tools.memory.log import changes_of, project
from ke_tools.memory.migrations import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_FINDINGS: Final = 100  # of one kind; a ledger of which more is broken is broken
_PROJECTIONS: Final = {
    "edits": "SELECT id, tenant, seq, slot, standing, superseded_by, words FROM edits",
    "names": "SELECT edit_id, tenant, name FROM names",
}


def findings(db: apsw.Connection) -> Iterator[Finding]:
    """Say everything that is wrong, and what was purged; nothing is changed."""
    for (message,) in db.execute(f"PRAGMA integrity_check({_MOST_FINDINGS})"):
        if message != "ok":
            yield Finding("file", message)
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        yield Finding("file", f"row {row} of {table} belongs to nothing in {parent}.")
    replayed = apsw.Connection(":memory:")
    try:
        migrate(replayed)
        replayed.execute("PRAGMA foreign_keys = OFF")  # it holds no log, only what follows from one
        replayed.execute("BEGIN")
        yield from _chain(db, replayed)
        yield from _projections(db, replayed)
    finally:
        replayed.close()


def _chain(db: apsw.Connection, replayed: apsw.Connection) -> Iterator[Finding]:
    previous, expected = GENESIS, 1
    rows = db.execute(
        "SELECT v.seq, v.tenant, v.kind, v.actor, v.at, v.content, v.previous, v.hash, p.salt, p.payload, p.tenant"
        " FROM events AS v LEFT JOIN payloads AS p USING (seq) ORDER BY v.seq"
    )
    for *head, content, follows, chained, salt, text, owner in rows:
        seq, tenant = head[0], head[1]
        changes = changes_of(db, tenant, seq)
        if seq != expected:
            yield Finding("chain", f"events {expected} to {seq - 1} are missing.", seq)
        elif follows != previous:
            yield Finding("chain", f"event {seq} does not follow event {seq - 1}.", seq)
        if chain_hash(follows, tuple(head), content, changes) != chained:
            yield Finding("chain", f"event {seq} or what it changed was altered.", seq)
        payload, problem = _payload(content, salt, text, is_foreign=owner not in {None, tenant}, seq=seq)
        if problem:
            yield problem
        _replay(replayed, tenant, seq, payload, changes)
        previous, expected = chained, seq + 1
    for (seq,) in db.execute("SELECT DISTINCT c.seq FROM changes AS c JOIN events AS v USING (seq) WHERE c.tenant <> v.tenant"):
        yield Finding("chain", f"event {seq} changes another tenant's edits.", seq)
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").get or 0
    if last >= expected:
        yield Finding("chain", f"events {expected} to {last} are missing at the end.", expected)


def _payload(content: bytes, salt: bytes | None, text: str | None, *, is_foreign: bool, seq: int) -> tuple[dict[str, Any], Finding | None]:
    if salt is None or text is None:
        return {}, Finding("purged", f"what event {seq} said was purged.", seq)
    if is_foreign or content_hash(salt, text) != content:
        return {}, Finding("payload", f"what event {seq} said was altered.", seq)
    return json.loads(text), None


def _replay(replayed: apsw.Connection, tenant: str, seq: int, payload: dict[str, Any], changes: tuple[Change, ...]) -> None:
    try:
        project(replayed, tenant, seq, payload, changes)
    except apsw.ConstraintError:  # one id made twice: the comparison of the tables names it
        return


def _projections(db: apsw.Connection, replayed: apsw.Connection) -> Iterator[Finding]:
    for table, query in _PROJECTIONS.items():
        stored, derived = set(db.execute(query)), set(replayed.execute(query))
        differing = sorted({str(row[0]) for row in stored ^ derived})
        for edit_id in differing[:_MOST_FINDINGS]:
            yield Finding("projection", f"the table {table} shows {edit_id} otherwise than the log.")
