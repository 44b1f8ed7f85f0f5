"""Checking a ledger against itself: the file, its schema, the chain, and everything that follows from the log.

Every finding names what is damaged, and one damage does not hide the next. What was purged (:mod:`ke_tools.memory.purging` says what
that takes) is told apart from what is broken, and from what was purged in part only.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import apsw

from ke_tools.memory.events import GENESIS, Change, Finding, Standing, chain_hash, content_hash
from ke_tools.memory.log import flip_of, has_flips, project
from ke_tools.memory.migrations import migrate, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_FINDINGS: Final = 100  # of one kind; a ledger of which more is broken is broken
_UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what values lead to that we never wrote
_KNOWN: Final = frozenset(Standing)
_DIGEST: Final = hashlib.sha256().digest_size
_SCHEMA: Final = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite!_%' ESCAPE '!'"
_EVENT: Final = (
    "SELECT v.seq, v.tenant, v.kind, v.actor, v.at, v.content, v.previous, v.hash, p.salt, p.payload, p.tenant"
    " FROM events AS v LEFT JOIN payloads AS p USING (seq) WHERE v.seq = ?"
)
_MADE: Final = (
    "SELECT c.edit_id FROM changes AS c WHERE c.tenant = ? AND c.seq = ?"
    " AND NOT EXISTS (SELECT 1 FROM changes AS b WHERE b.tenant = c.tenant AND b.edit_id = c.edit_id AND b.seq < c.seq)"
)
_PROJECTIONS: Final = {
    "edits": "SELECT id, tenant, seq, slot, standing, superseded_by, words FROM edits",
    "names": "SELECT edit_id, tenant, name FROM names",
    "approvals": "SELECT edit_id, tenant, seq FROM approvals",
    "expiries": "SELECT edit_id, tenant, expires FROM expiries",
    "protections": "SELECT id, tenant, seq FROM protections",
}
_KEYS: Final = (  # with how many events of its tenant each stands for, and how many of these still say something
    "SELECT k.tenant, k.key, length(k.arguments), k.first_seq, k.last_seq, count(v.seq), count(p.seq)"
    " FROM idempotency_keys AS k LEFT JOIN events AS v ON v.seq BETWEEN k.first_seq AND k.last_seq AND v.tenant = k.tenant"
    " LEFT JOIN payloads AS p ON p.seq = v.seq GROUP BY k.tenant, k.key"
)
_LAST_FLIPS: Final = (
    "SELECT f.tenant, f.release, f.edit_ids FROM flips AS f WHERE f.seq = (SELECT max(l.seq) FROM flips AS l WHERE l.tenant = f.tenant)"
)


def findings(db: apsw.Connection) -> Iterator[Finding]:
    """Say everything that is wrong, and what was purged; nothing is changed."""
    yield from _file(db)
    replayed = apsw.Connection(":memory:")
    purged: dict[str, int] = {}  # edit → the event that made it, of which only the changes are left
    try:
        migrate(replayed, version_of(db))
        yield from _schema(db, replayed)
        replayed.execute("PRAGMA foreign_keys = OFF")  # it holds no log, only what follows from one
        replayed.execute("BEGIN")
        yield from _chain(db, replayed, purged)
        for table in _PROJECTIONS:
            if not replayed.table_exists("main", table):
                continue  # the file is older
            yield from _readable(f"the table {table}", _projection(db, replayed, table, purged))
        yield from _readable("the table flips", _releases(db, replayed))
        yield from _readable("the table scorecards", _scorecards(db, purged))
        yield from _readable("the table idempotency_keys", _keys(db))
    finally:
        replayed.close()


def _readable(what: str, found: Iterator[Finding], seq: int = 0) -> Iterator[Finding]:
    """Pass on what is found; that it cannot be read to the end is a finding as well."""
    try:
        yield from found
    except _UNREADABLE as error:
        yield Finding("chain" if seq else "file", f"{what} cannot be read: {type(error).__name__}: {error}.", seq)


def _file(db: apsw.Connection) -> Iterator[Finding]:
    for (message,) in db.execute(f"PRAGMA integrity_check({_MOST_FINDINGS})"):
        if message != "ok":
            yield Finding("file", message)
    for table, row, parent, _ in db.execute("PRAGMA foreign_key_check"):
        which = "a row" if row is None else f"row {row}"
        yield Finding("file", f"{which} of {table} belongs to nothing in {parent}.")


def _schema(db: apsw.Connection, fresh: apsw.Connection) -> Iterator[Finding]:
    """Compare with a ledger that was just made. Tables besides are left alone, as tools that copy a database keep theirs in it."""
    stored, wanted = ({(kind, name): rest for kind, name, *rest in source.execute(_SCHEMA)} for source in (db, fresh))
    for kind, name in sorted(wanted):
        if (kind, name) not in stored:
            yield Finding("file", f"the {kind} {name} is missing.")
        elif stored[kind, name] != wanted[kind, name]:
            yield Finding("file", f"the {kind} {name} was altered.")
    for kind, name in sorted(stored.keys() - wanted.keys()):
        if kind == "trigger":
            yield Finding("file", f"the trigger {name} belongs to no ledger.")


def _chain(db: apsw.Connection, replayed: apsw.Connection, purged: dict[str, int]) -> Iterator[Finding]:
    previous, expected = GENESIS, 1
    for seq, follows, chained in db.execute("SELECT seq, previous, hash FROM events ORDER BY seq"):
        if seq != expected:
            yield Finding("chain", f"events {expected} to {seq - 1} are missing.", seq)
        elif follows != previous:
            yield Finding("chain", f"event {seq} does not follow event {seq - 1}.", seq)
        yield from _readable(f"event {seq}", _event(db, replayed, seq, purged), seq)
        previous, expected = chained, seq + 1
    for (seq,) in db.execute("SELECT DISTINCT c.seq FROM changes AS c JOIN events AS v USING (seq) WHERE c.tenant <> v.tenant"):
        yield Finding("chain", f"event {seq} changes another tenant's edits.", seq)
    if has_flips(db):
        for (seq,) in db.execute("SELECT DISTINCT f.seq FROM flips AS f JOIN events AS v USING (seq) WHERE f.tenant <> v.tenant"):
            yield Finding("chain", f"event {seq} changes another tenant's live release.", seq)
    last = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").get or 0
    if last >= expected:
        yield Finding("chain", f"events {expected} to {last} are missing at the end.", expected)


def _event(db: apsw.Connection, replayed: apsw.Connection, seq: int, purged: dict[str, int]) -> Iterator[Finding]:
    ((*head, content, follows, chained, salt, text, owner),) = db.execute(_EVENT, (seq,))
    tenant = head[1]
    stored = list(db.execute("SELECT edit_id, standing, superseded_by FROM changes WHERE tenant = ? AND seq = ?", (tenant, seq)))
    changes = tuple(Change(edit_id, Standing(standing), by) for edit_id, standing, by in stored if standing in _KNOWN)
    for edit_id, standing, _ in stored:
        if standing not in _KNOWN:
            yield Finding("chain", f"event {seq} gives {edit_id} the unknown standing {standing!r}.", seq)
    if len(changes) < len(stored) or chain_hash(follows, tuple(head), content, changes, flip_of(db, tenant, seq)) != chained:
        yield Finding("chain", f"event {seq} or what it changed was altered.", seq)
    if text is None:
        purged |= {edit_id: seq for (edit_id,) in db.execute(_MADE, (tenant, seq))}
    payload, problem = _payload(content, salt, text, is_foreign=owner not in {None, tenant}, seq=seq)
    if problem:
        yield problem
    _replay(replayed, tenant, seq, payload, changes)


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


def _projection(db: apsw.Connection, replayed: apsw.Connection, table: str, purged: dict[str, int]) -> Iterator[Finding]:
    stored, derived = (set(source.execute(_PROJECTIONS[table])) for source in (db, replayed))
    differing = sorted({str(row[0]) for row in stored ^ derived})
    for edit_id in differing[:_MOST_FINDINGS]:
        if edit_id in purged:
            seq = purged[edit_id]
            yield Finding("unerased", f"what event {seq} said was purged, but the table {table} still shows it for {edit_id}.", seq)
        else:
            yield Finding("projection", f"the table {table} shows {edit_id} otherwise than the log.")


def _releases(db: apsw.Connection, replayed: apsw.Connection) -> Iterator[Finding]:
    """Compare each live release with the edits that the replayed log promoted."""
    live: dict[str, tuple[str, set[str]]] = {}
    if has_flips(db):
        live = {tenant: (release, set(json.loads(ids))) for tenant, release, ids in db.execute(_LAST_FLIPS)}
    for edit_id, tenant, standing in replayed.execute("SELECT id, tenant, standing FROM edits WHERE standing IN ('active', 'promoted')"):
        release, carried = live.get(tenant, ("", set[str]()))
        if (edit_id in carried) != (standing == Standing.PROMOTED):
            carries = f"the live release {release} carries it" if edit_id in carried else "no live release carries it"
            yield Finding("release", f"{edit_id} is {standing}, but {carries}.")


def _scorecards(db: apsw.Connection, purged: dict[str, int]) -> Iterator[Finding]:
    if not has_flips(db):
        return
    for name, text in db.execute("SELECT sha256, scorecard FROM scorecards"):
        if hashlib.sha256(text.encode()).hexdigest() != name:
            yield Finding("scorecard", f"the scorecard {name} was altered.")
        for edit_id, seq in purged.items():
            if edit_id in text:
                yield Finding("unerased", f"what event {seq} said was purged, but the scorecard {name} still tells of {edit_id}.", seq)


def _keys(db: apsw.Connection) -> Iterator[Finding]:
    """A key does not follow from the log: of one that is gone nothing tells, of those there are what they stand for is checked."""
    for tenant, key, size, first, last, events, payloads in db.execute(_KEYS):
        which = f"the idempotency key {key!r} of {tenant}"
        if last < first or events != last - first + 1:
            yield Finding("key", f"{which} stands for the events {first} to {last}, which are not all there and its tenant's.", first)
        elif payloads < events and size:
            yield Finding("unerased", f"what an event of {first} to {last} said was purged, but {which} still has its digest.", first)
        elif payloads == events and size != _DIGEST:
            yield Finding("key", f"{which} has no digest of what was asked under it.", first)
