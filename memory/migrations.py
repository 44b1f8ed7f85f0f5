"""How a ledger's file came to its form: numbered steps, each in one transaction with those before it.

A step that was published is never changed; a later one changes what it made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ke_tools.errors import LedgerDamaged, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

APPLICATION_ID: Final = 0x6B65_746C  # "ketl", in the file's header


def m001_the_log(db: apsw.Connection) -> None:
    """Events form a hash chain that takes nothing but appends; what they say lies in a table of its own, so that it can be erased."""
    db.execute(
        """
        CREATE TABLE events (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            tenant TEXT NOT NULL CHECK (tenant <> ''),
            kind TEXT NOT NULL,
            actor TEXT NOT NULL,
            at TEXT NOT NULL,
            content BLOB NOT NULL,  -- sha256(salt + payload)
            previous BLOB NOT NULL,
            hash BLOB NOT NULL
        ) STRICT;
        CREATE INDEX events_of_tenant ON events (tenant, seq);
        CREATE TRIGGER events_are_numbered BEFORE INSERT ON events
            WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM events)
            BEGIN SELECT raise(ABORT, 'an event must follow the last one'); END;
        CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END;
        CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END;

        CREATE TABLE payloads (
            seq INTEGER PRIMARY KEY REFERENCES events (seq),
            tenant TEXT NOT NULL,
            salt BLOB NOT NULL,
            payload TEXT NOT NULL
        ) STRICT;
        CREATE TRIGGER payloads_stay BEFORE UPDATE ON payloads BEGIN SELECT raise(ABORT, 'a payload can only be erased'); END;

        CREATE TABLE changes (
            seq INTEGER NOT NULL REFERENCES events (seq),
            tenant TEXT NOT NULL,
            edit_id TEXT NOT NULL,
            standing TEXT NOT NULL,
            superseded_by TEXT NOT NULL,
            PRIMARY KEY (tenant, seq, edit_id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX changes_of_edit ON changes (tenant, edit_id, seq);
        CREATE TRIGGER changes_stay BEFORE UPDATE ON changes BEGIN SELECT raise(ABORT, 'changes are append-only'); END;
        CREATE TRIGGER changes_are_kept BEFORE DELETE ON changes BEGIN SELECT raise(ABORT, 'changes are append-only'); END;
        """
    )


def m002_projections(db: apsw.Connection) -> None:
    """What is asked often is kept ready: each edit as it stands now, and every name of its subject; both follow from the log."""
    db.execute(
        """
        CREATE TABLE edits (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL UNIQUE,
            seq INTEGER NOT NULL UNIQUE REFERENCES events (seq),
            slot TEXT NOT NULL,
            standing TEXT NOT NULL,
            superseded_by TEXT NOT NULL,
            words TEXT NOT NULL,  -- folded text that a list is searched in
            PRIMARY KEY (tenant, id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX edits_by_standing ON edits (tenant, standing, seq);
        CREATE INDEX edits_by_age ON edits (tenant, seq);
        CREATE INDEX edits_by_slot ON edits (tenant, slot, seq);
        CREATE INDEX edits_by_successor ON edits (tenant, superseded_by, seq);

        CREATE TABLE names (
            tenant TEXT NOT NULL,
            name TEXT NOT NULL,
            edit_id TEXT NOT NULL,
            PRIMARY KEY (tenant, name, edit_id),
            FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX names_of_edit ON names (tenant, edit_id);
        """
    )


def m003_idempotency_keys(db: apsw.Connection) -> None:
    """A caller that lost the answer may ask again under the same key, and nothing happens twice."""
    db.execute(
        """
        CREATE TABLE idempotency_keys (
            tenant TEXT NOT NULL,
            key TEXT NOT NULL,
            arguments BLOB NOT NULL,  -- sha256 of what was asked
            first_seq INTEGER NOT NULL REFERENCES events (seq),
            last_seq INTEGER NOT NULL REFERENCES events (seq),
            PRIMARY KEY (tenant, key)
        ) STRICT, WITHOUT ROWID;
        """
    )


def m004_jobs(db: apsw.Connection) -> None:
    """Long work is a row, so that it outlives whoever asked for it; nothing that is believed follows from it."""
    db.execute(
        """
        CREATE TABLE jobs (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL CHECK (tenant <> ''),
            actor TEXT NOT NULL,
            kind TEXT NOT NULL,
            arguments TEXT NOT NULL,
            key TEXT NOT NULL,  -- the caller's, that a repeated call is known by; '' for none
            status TEXT NOT NULL CHECK (status IN ('queued', 'working', 'completed', 'failed', 'cancelled')),
            is_cancelling INTEGER NOT NULL DEFAULT 0,
            is_committing INTEGER NOT NULL DEFAULT 0,  -- from then on it cannot be cancelled
            stage TEXT NOT NULL DEFAULT '',
            done INTEGER NOT NULL DEFAULT 0,
            total INTEGER NOT NULL DEFAULT 0,
            message TEXT NOT NULL DEFAULT '',
            result TEXT NOT NULL DEFAULT '{}',
            error TEXT NOT NULL DEFAULT '{}',
            created_at TEXT NOT NULL,
            updated_at TEXT NOT NULL
        ) STRICT;
        CREATE INDEX jobs_of_tenant ON jobs (tenant, seq);
        CREATE INDEX jobs_by_status ON jobs (status, seq);
        CREATE UNIQUE INDEX jobs_by_key ON jobs (tenant, key) WHERE key <> '';
        """
    )


def m005_live_releases_and_scorecards(db: apsw.Connection) -> None:
    """A flip stands beside an event's changes and is chained with them; scorecards lie under the hash that an event names."""
    db.execute(
        """
        CREATE TABLE flips (
            seq INTEGER NOT NULL REFERENCES events (seq),
            tenant TEXT NOT NULL,
            release TEXT NOT NULL,  -- live from this event on; '' for none
            edit_ids TEXT NOT NULL,  -- JSON: what it carries
            PRIMARY KEY (tenant, seq)
        ) STRICT, WITHOUT ROWID;
        CREATE TRIGGER flips_stay BEFORE UPDATE ON flips BEGIN SELECT raise(ABORT, 'flips are append-only'); END;
        CREATE TRIGGER flips_are_kept BEFORE DELETE ON flips BEGIN SELECT raise(ABORT, 'flips are append-only'); END;

        CREATE TABLE scorecards (
            tenant TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            scorecard TEXT NOT NULL,
            PRIMARY KEY (tenant, sha256)
        ) STRICT;
        CREATE TRIGGER scorecards_stay BEFORE UPDATE ON scorecards BEGIN SELECT raise(ABORT, 'a scorecard can only be erased'); END;
        """
    )


def m006_firings(db: apsw.Connection) -> None:
    """How often edits were asked for; no part of the log."""
    db.execute(
        """
        CREATE TABLE firings (
            tenant TEXT NOT NULL,
            edit_id TEXT NOT NULL,
            times INTEGER NOT NULL,
            last_at TEXT NOT NULL,
            PRIMARY KEY (tenant, edit_id)
        ) STRICT, WITHOUT ROWID;
        """
    )


def m007_approvals_expiries_and_protections(db: apsw.Connection) -> None:
    """Which event made a proposal act, until when an edit acts, and what may not be edited; all three follow from the log."""
    db.execute(
        """
        CREATE TABLE approvals (
            tenant TEXT NOT NULL,
            edit_id TEXT NOT NULL,
            seq INTEGER NOT NULL REFERENCES events (seq),
            PRIMARY KEY (tenant, edit_id),
            FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE expiries (
            tenant TEXT NOT NULL,
            expires TEXT NOT NULL,
            edit_id TEXT NOT NULL,
            PRIMARY KEY (tenant, expires, edit_id),
            FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX expiries_of_edit ON expiries (tenant, edit_id);

        CREATE TABLE protections (
            tenant TEXT NOT NULL,
            id TEXT NOT NULL,
            seq INTEGER NOT NULL REFERENCES events (seq),
            PRIMARY KEY (tenant, id)
        ) STRICT, WITHOUT ROWID;

        CREATE INDEX events_by_actor ON events (tenant, actor, at);
        """
    )


MIGRATIONS: Final[tuple[Callable[[apsw.Connection], None], ...]] = (
    m001_the_log,
    m002_projections,
    m003_idempotency_keys,
    m004_jobs,
    m005_live_releases_and_scorecards,
    m006_firings,
    m007_approvals_expiries_and_protections,
)


def version_of(db: apsw.Connection) -> int:
    """Return the number of steps that the file has taken; 0 for an empty one.

    Raises:
        LedgerDamaged: it is a database of another program.
        Unsupported: a newer version of ke-tools wrote it.
    """
    # In this order, as another process may set the file up in between: what was not empty has its version, what has a version an owner.
    is_empty = not db.execute("SELECT count(*) FROM sqlite_master").get
    version = int(db.execute("PRAGMA user_version").get)
    owner = int(db.execute("PRAGMA application_id").get)
    if owner != APPLICATION_ID and not (is_empty and owner == 0 and version == 0):
        raise LedgerDamaged("the file is an SQLite database, but not a ledger of ke-tools.", "Check --home.")
    if version > len(MIGRATIONS):
        raise Unsupported(f"the ledger has form {version}; this version reads forms up to {len(MIGRATIONS)}.", "Upgrade ke-tools.")
    return version


def migrate(db: apsw.Connection, version: int | None = None) -> None:
    """Take the steps that are missing, all (or those up to ``version``) or none; several processes may try at once."""
    wanted = len(MIGRATIONS) if version is None else version
    if version_of(db) >= wanted:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[version_of(db) : wanted]:
            step(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {wanted}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
