"""Appending to the log and reading it back; everything here works inside a transaction that the caller holds.

:func:`project` is the only writer of the tables that follow from the log, so that an audit can replay the log through it.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import LedgerDamaged
from ke_tools.facts import Edit, squash
from ke_tools.memory.checks import check, noted
from ke_tools.memory.events import GENESIS, Change, Event, Flip, Standing, canonical, chain_hash, content_hash, now, recalled
from ke_tools.memory.names import name_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Self

    import apsw

_SALT_BYTES: Final = 16
_EVENTS: Final = (
    "SELECT v.seq, v.tenant, v.kind, v.actor, v.at, p.payload FROM events AS v LEFT JOIN payloads AS p USING (seq) WHERE v.tenant = ?"
)
_MADE: Final = "SELECT e.id, e.tenant, e.seq, e.slot, e.standing, e.superseded_by, v.at, v.actor, p.payload"
_FROM: Final = "FROM edits AS e JOIN events AS v USING (seq) JOIN payloads AS p USING (seq)"
_EDITS: Final = (
    f"{_MADE}, a.seq, w.actor, g.payload {_FROM} LEFT JOIN approvals AS a ON a.tenant = e.tenant AND a.edit_id = e.id"
    " LEFT JOIN events AS w ON w.seq = a.seq LEFT JOIN payloads AS g ON g.seq = a.seq WHERE e.tenant = ?"
)
_EDITS_OF_OLD: Final = f"{_MADE}, NULL, NULL, NULL {_FROM} WHERE e.tenant = ?"
_STANDINGS: Final = "SELECT e.id, e.standing, e.superseded_by FROM edits AS e WHERE e.tenant = ?"
_LAST_FLIP: Final = "FROM flips WHERE tenant = ? AND seq <= ? ORDER BY seq DESC LIMIT 1"
_LATEST: Final = 2**62
_COUNT_EVENTS: Final = "SELECT count(*) FROM events AS v WHERE v.tenant = ?"
_COUNT_EDITS: Final = "SELECT count(*) FROM edits AS e WHERE e.tenant = ?"


@dataclass(frozen=True, slots=True)
class Author:
    """Who writes, for which tenant, and why."""

    tenant: str
    name: str
    reason: str = ""

    @classmethod
    def of(cls, tenant: str, actor: str, reason: str = "", idempotency_key: str = "") -> Self:
        """Check what a caller gives.

        Raises:
            InvalidInput: a text is empty, too long, or hides characters.
        """
        check(tenant=tenant, actor=actor)
        return cls(tenant, actor, noted(reason, idempotency_key))


def append(
    db: apsw.Connection, author: Author, kind: str, payload: Mapping[str, Any], changes: Sequence[Change], flip: Flip | None = None
) -> int:
    """Write one event with what follows from it; return its sequence number."""
    last = db.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    seq, previous = (last[0] + 1, last[1]) if last else (1, GENESIS)
    salt, text = secrets.token_bytes(_SALT_BYTES), canonical({**payload, "reason": author.reason})
    content = content_hash(salt, text)
    row = (seq, author.tenant, kind, author.name, now())
    chained = chain_hash(previous, row, content, changes, flip)
    db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, content, previous, chained))
    db.execute("INSERT INTO payloads VALUES (?, ?, ?, ?)", (seq, author.tenant, salt, text))
    db.executemany(
        "INSERT INTO changes VALUES (?, ?, ?, ?, ?)",
        [(seq, author.tenant, change.edit_id, change.standing.value, change.superseded_by) for change in changes],
    )
    if flip is not None:
        db.execute("INSERT INTO flips VALUES (?, ?, ?, ?)", (seq, author.tenant, flip.release, canonical(sorted(flip.edit_ids))))
    project(db, author.tenant, seq, payload, changes)
    return seq


def project(db: apsw.Connection, tenant: str, seq: int, payload: Mapping[str, Any], changes: Sequence[Change]) -> None:
    """Bring the tables that follow from the log up to one event; of a purged one (empty payload) only its changes are left."""
    if "fact" in payload:
        _project_edit(db, tenant, seq, payload)
    if "approves" in payload:
        db.execute("INSERT OR REPLACE INTO approvals VALUES (?, ?, ?)", (tenant, payload["approves"], seq))
        _project_names(db, tenant, payload["approves"], payload.get("aliases", ()))
    if "protects" in payload:
        db.execute("INSERT INTO protections VALUES (?, ?, ?)", (tenant, payload["protects"], seq))
    if "unprotects" in payload:
        db.execute("DELETE FROM protections WHERE tenant = ? AND id = ?", (tenant, payload["unprotects"]))
    db.executemany(
        "UPDATE edits SET standing = ?, superseded_by = ? WHERE tenant = ? AND id = ?",
        [(change.standing.value, change.superseded_by, tenant, change.edit_id) for change in changes],
    )


def _project_edit(db: apsw.Connection, tenant: str, seq: int, payload: Mapping[str, Any]) -> None:
    fact = recalled(payload["fact"])
    words = squash(" ".join((payload["id"], payload["ref"], fact.subject, fact.prompt, fact.target, *fact.aliases)))
    db.execute(
        "INSERT INTO edits VALUES (?, ?, ?, ?, ?, '', ?)",
        (tenant, payload["id"], seq, payload["slot"], Standing.PROPOSED.value, words),
    )
    _project_names(db, tenant, payload["id"], (fact.subject, *fact.aliases))
    if fact.expires:
        db.execute("INSERT INTO expiries VALUES (?, ?, ?)", (tenant, fact.expires, payload["id"]))


def _project_names(db: apsw.Connection, tenant: str, edit_id: str, names: Iterable[str]) -> None:
    rows = [(tenant, name, edit_id) for name in sorted({name_key(name) for name in names})]
    db.executemany("INSERT OR IGNORE INTO names VALUES (?, ?, ?)", rows)


def head(db: apsw.Connection, tenant: str = "") -> int:
    """Return the last sequence number, of all tenants or of one; 0 before the first event."""
    if tenant:
        return int(db.execute("SELECT coalesce(max(seq), 0) FROM events WHERE tenant = ?", (tenant,)).get)
    return int(db.execute("SELECT coalesce(max(seq), 0) FROM events").get)


def edits_where(db: apsw.Connection, tenant: str, condition: str = "", values: Sequence[Any] = ()) -> list[Edit]:
    """Select a tenant's edits; ``condition`` begins with AND or ORDER and is never made of a caller's text."""
    edits = _EDITS if db.table_exists("main", "approvals") else _EDITS_OF_OLD  # a file that is only read may be older
    return [_edit(row) for row in db.execute(f"{edits} {condition}", (tenant, *values))]


def count_edits(db: apsw.Connection, tenant: str, condition: str = "", values: Sequence[Any] = ()) -> int:
    """Count a tenant's edits; ``condition`` as in :func:`edits_where`."""
    return int(db.execute(f"{_COUNT_EDITS} {condition}", (tenant, *values)).get)


def edits_by_id(db: apsw.Connection, tenant: str, ids: Sequence[str]) -> list[Edit]:
    """Select edits by id, oldest first; what is not there or not this tenant's is left out."""
    return edits_where(db, tenant, "AND e.id IN (SELECT value FROM json_each(?)) ORDER BY +e.seq", (json.dumps(list(ids)),))


def standings(db: apsw.Connection, tenant: str, condition: str = "", values: Sequence[Any] = ()) -> dict[str, Change]:
    """Select how a tenant's edits stand, oldest edit first."""
    rows = db.execute(f"{_STANDINGS} {condition} ORDER BY e.seq", (tenant, *values))
    return {edit_id: Change(edit_id, _standing(standing), by) for edit_id, standing, by in rows}


def standings_at(db: apsw.Connection, tenant: str, revision: int) -> dict[str, Change]:
    """How a tenant's edits stood after the event ``revision``; those made later are not in it."""
    rows = db.execute(
        "SELECT c.edit_id, c.standing, c.superseded_by, max(c.seq) FROM changes AS c WHERE c.tenant = ? AND c.seq <= ? GROUP BY c.edit_id",
        (tenant, revision),
    )
    return {edit_id: Change(edit_id, _standing(standing), by) for edit_id, standing, by, _ in rows}


def events_where(db: apsw.Connection, tenant: str, condition: str = "", values: Sequence[Any] = ()) -> Iterator[Event]:
    """Select a tenant's events; ``condition`` as in :func:`edits_where`."""
    for seq, owner, kind, actor, at, text in db.execute(f"{_EVENTS} {condition}", (tenant, *values)):
        changes = changes_of(db, owner, seq)
        payload = json.loads(text) if text else {}
        made = payload.get("id", "")
        yield Event(
            seq=seq,
            at=at,
            actor=actor,
            action=kind,
            edit_ids=tuple(sorted((change.edit_id for change in changes), key=lambda edit_id: (edit_id != made, edit_id))),
            reason=payload.get("reason", ""),
            payload=payload,
            tenant=owner,
            changes=changes,
            flip=flip_of(db, owner, seq),
            purged=text is None,
        )


def count_events(db: apsw.Connection, tenant: str, condition: str = "", values: Sequence[Any] = ()) -> int:
    """Count a tenant's events; ``condition`` as in :func:`edits_where`."""
    return int(db.execute(f"{_COUNT_EVENTS} {condition}", (tenant, *values)).get)


def changes_of(db: apsw.Connection, tenant: str, seq: int) -> tuple[Change, ...]:
    """Every change that one event made."""
    rows = db.execute("SELECT edit_id, standing, superseded_by FROM changes WHERE tenant = ? AND seq = ?", (tenant, seq))
    return tuple(Change(edit_id, _standing(standing), by) for edit_id, standing, by in rows)


def release_at(db: apsw.Connection, tenant: str, revision: int = _LATEST) -> str:
    """Return the tenant's release that was live after the event ``revision``, or is now; "" where none was."""
    found = db.execute(f"SELECT release {_LAST_FLIP}", (tenant, revision)).fetchone() if has_flips(db) else None
    return str(found[0]) if found else ""


def flip_at(db: apsw.Connection, tenant: str, revision: int = _LATEST) -> Flip:
    """Return the same with what it carries."""
    found = db.execute(f"SELECT release, edit_ids {_LAST_FLIP}", (tenant, revision)).fetchone() if has_flips(db) else None
    return Flip(found[0], tuple(json.loads(found[1]))) if found else Flip()


def flip_of(db: apsw.Connection, tenant: str, seq: int) -> Flip | None:
    """Return the flip that one event made, if it made one."""
    if not has_flips(db):
        return None
    found = db.execute("SELECT release, edit_ids FROM flips WHERE tenant = ? AND seq = ?", (tenant, seq)).fetchone()
    return Flip(found[0], tuple(json.loads(found[1]))) if found else None


def carried_by(db: apsw.Connection, tenant: str, release: str) -> tuple[str, ...] | None:
    """Return the edits of a release, if it ever was live for the tenant."""
    if not has_flips(db):
        return None
    found = db.execute("SELECT edit_ids FROM flips WHERE tenant = ? AND release = ? LIMIT 1", (tenant, release)).fetchone()
    return tuple(json.loads(found[0])) if found else None


def has_flips(db: apsw.Connection) -> bool:
    """Whether the file has taken the step that lets it have flips and scorecards; one that is only read may be older."""
    return db.table_exists("main", "flips")


def _standing(text: str) -> Standing:
    try:
        return Standing(text)
    except ValueError as error:
        raise LedgerDamaged(
            f"the ledger gives an edit the unknown standing {text!r}.",
            "Keep the file, run `ke-tools doctor --deep`, and restore it from a copy or an export.",
        ) from error


def _edit(row: Sequence[Any]) -> Edit:
    edit_id, tenant, seq, slot, standing, superseded_by, at, actor, text, approved, approver, approving = row
    payload = json.loads(text)
    is_approved = approved is not None and standing != Standing.PROPOSED  # it waits again where it was rolled back to that
    told = {**payload, **json.loads(approving)} if is_approved and approving else payload
    return Edit(
        id=edit_id,
        tenant=tenant,
        fact=recalled({**payload["fact"], "aliases": told["aliases"]} if "aliases" in told else payload["fact"]),
        state=_standing(standing).state,
        slot=slot,
        relation=payload["relation"],
        functional=payload["functional"],
        revision=seq,
        created_at=at,
        actor=actor,
        ref=payload["ref"],
        supersedes=tuple(told["supersedes"]),
        superseded_by=superseded_by,
        warnings=tuple(told["warnings"]),
        alias_risky=told["alias_risky"],
        approved_by=approver if is_approved else "",
        approved_revision=approved if is_approved else 0,
    )
