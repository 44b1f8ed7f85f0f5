"""What the ledger keeps when processes, disks and files fail."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from ke_tools.errors import Busy, Conflict, InvalidInput, KeToolsError, LedgerDamaged, NotFound, ReadOnly, ResourceExhausted, Unsupported
from ke_tools.facts import Edit, Fact
from ke_tools.memory import migrations
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot
from ke_tools.memory.storage import Storage
from tests.faults import largest_file

Nobody = Callable[[], AbstractContextManager[None]]

# A process of its own that corrects one fact after the other and tells each id once it is acknowledged. Its slots are its own,
# so that it need not read the atlas.
WRITER = """
import sys
from ke_tools.facts import Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot

path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
ledger = Ledger(path, busy_timeout_ms=60_000)
for number in range(count):
    fact = Fact(subject=name, prompt=f"{name} says", target=f"{name}-{number}")
    (edit,) = ledger.edit("acme", [fact], actor=name, slot_of=lambda fact: Slot(fact.subject, "", functional=True))
    print(edit.id, edit.fact.target, flush=True)
ledger.close()
"""


def fact(target: str, subject: str = "Brix") -> Fact:
    """A fact of a slot of its own."""
    return Fact(subject=subject, prompt=f"{subject} says", target=target)


def rule(given: Fact) -> Slot:
    """One slot a subject."""
    return Slot(given.subject, "", functional=True)


def write(ledger: Ledger, *targets: str, subject: str = "Brix") -> list[Edit]:
    """Record facts, each in a call of its own."""
    return [ledger.edit("acme", [fact(target, subject)], actor="ann", slot_of=rule)[0] for target in targets]


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Start a process that writes."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a ledger may lie."""
    return tmp_path / "ledger.db"


# -- many processes, and their sudden end ----------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_twenty_processes_write_at_once_and_nothing_is_lost(path: Path) -> None:
    """Issue §3: several processes may write at once and none is lost (20 processes of 50 edits); they make the file together, too."""
    processes = [writer(path, f"process {number}", 50) for number in range(20)]
    told = {text for process in processes for text in process.communicate()[0].splitlines()}
    assert {process.returncode for process in processes} == {0}
    assert len(told) == 1000
    with Ledger(path) as ledger:
        assert ledger.head() == 1000
        for line in told:
            edit_id, _, target = line.partition(" ")
            assert ledger.get("acme", edit_id).fact.target == target
        assert {edit.fact.target for edit in ledger.live("acme")} == {f"process {number}-49" for number in range(20)}
        assert ledger.audit() == []


@pytest.mark.timeout(600)
def test_what_was_acknowledged_outlives_a_kill_at_any_moment(path: Path) -> None:
    """Issue §6: `kill -9` in the middle of an edit; users-trust-scale §3a no. 1: state ⊇ acknowledged, at seeded moments."""
    moments = random.Random(7)
    acknowledged: list[str] = []
    for cycle in range(5):
        process = writer(path, f"cycle {cycle}", 100_000)
        assert process.stdout is not None
        acknowledged += [process.stdout.readline() for _ in range(moments.randint(1, 12))]
        time.sleep(moments.random() / 50)  # somewhere between two acknowledgements: the moment is the test's subject
        process.send_signal(signal.SIGKILL)
        acknowledged += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        process.stdout.close()
        process.wait()
        with Ledger(path) as ledger:
            for line in acknowledged:
                edit_id, _, target = line.strip().partition(" ")
                assert ledger.get("acme", edit_id).fact.target == target
            assert len(ledger.live("acme")) == cycle + 1  # one current value a slot: no correction is half there
            assert ledger.audit() == []


def test_a_second_writer_is_told_that_the_ledger_is_busy(path: Path) -> None:
    """Errors: another writer holds the ledger; repeating works."""
    with Ledger(path) as one, Ledger(path, busy_timeout_ms=30) as two:
        with one._storage.writing(keep=False), pytest.raises(Busy, match="30 ms") as caught:
            write(two, "yes")
        assert caught.value.retryable
        write(two, "yes")


def test_a_second_thread_is_told_that_the_ledger_is_busy(path: Path) -> None:
    """The same, within one process."""
    with Ledger(path, busy_timeout_ms=30) as ledger, ThreadPoolExecutor(1) as pool, ledger._storage.writing(keep=False):
        attempt = pool.submit(write, ledger, "yes")
        assert isinstance(attempt.exception(timeout=60), Busy)


# -- disks -----------------------------------------------------------------------------------------------------------------------


def fill(ledger: Ledger) -> list[str]:
    """Write until the disk takes no more; what was acknowledged before."""
    acknowledged: list[str] = []
    for number in range(100_000):
        try:
            acknowledged += [edit.id for edit in write(ledger, "x" * 1900, subject=f"Brix {number}")]
        except ResourceExhausted:
            return acknowledged
    pytest.fail("the disk never was full")


def test_a_full_disk_is_told_and_loses_nothing(path: Path) -> None:
    """Issue §6: full disk."""
    with Ledger(path) as ledger:
        db = ledger._storage._main
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').get + 30}")
        acknowledged = fill(ledger)
        assert [edit.id for edit in ledger.live("acme")] == acknowledged
        assert ledger.audit() == []
        db.execute("PRAGMA max_page_count = 1000000")  # space is freed
        write(ledger, "yes")
    with Ledger(path) as ledger:
        assert len(ledger.live("acme")) == len(acknowledged) + 1


def test_an_empty_file_that_has_been_there_for_a_while_is_not_taken_without_a_word(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that lost its content looks like one that another process is about to set up, but for its age."""
    path.touch()
    Ledger(path).close()
    assert not caplog.records
    path.write_bytes(b"")
    os.utime(path, (time.time() - 3600,) * 2)
    with Ledger(path) as ledger:
        assert ledger.head() == 0
    assert "was empty and begins anew" in caplog.text


@pytest.mark.parametrize("size", [0, 100])
def test_a_full_disk_without_room_for_sqlites_own_file_leaves_the_ledger_readable(path: Path, size: int) -> None:
    """Issue §6: full disk. A ledger that was closed well has no shared-memory file, and one is made to open it."""
    with Ledger(path) as ledger:
        (kept,) = write(ledger, "yes")
    with largest_file(size):
        with pytest.raises(ResourceExhausted):
            Ledger(path)
        with Ledger(path, read_only=True) as ledger:
            assert ledger.live("acme") == [kept]
            assert ledger.audit() == []


def test_what_is_written_once_there_is_space_again_is_seen(path: Path) -> None:
    """A reader of a full disk locks nothing; it must not go on with what it read before others wrote."""
    with Ledger(path) as ledger:
        write(ledger, "yes")
    with largest_file(0):
        reader = Ledger(path, read_only=True)
        assert len(reader.live("acme")) == 1
    with Ledger(path) as ledger:
        write(ledger, "later", subject="Peru")
        assert [edit.fact.target for edit in reader.live("acme")] == ["yes", "later"]
    assert len(reader.live("acme")) == 2
    reader.close()


def test_a_write_that_the_system_refuses_is_told_and_loses_nothing(path: Path) -> None:
    """Issue §6: full disk, here as a failing write system call in the log's file."""
    with Ledger(path) as ledger:
        (kept,) = write(ledger, "yes")
        with largest_file(Path(f"{path}-wal").stat().st_size + 60_000):
            acknowledged = fill(ledger)
        assert [edit.id for edit in ledger.live("acme")] == [kept.id, *acknowledged]
        write(ledger, "again")
        assert ledger.audit() == []


def test_every_refused_write_leaves_all_or_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """users-trust-scale §3a: make the N-th write fail for N = 1, 2, … until a run completes, then check everything."""
    with Ledger(path) as ledger:
        write(ledger, "first")
    for nth in range(1, 400):
        with _failing(path, nth, monkeypatch) as ledger:
            before = ledger.head()
            try:
                write(ledger, f"value {nth}")
                done = True
            except (ResourceExhausted, LedgerDamaged):
                done = False
                assert ledger.head() == before
        with Ledger(path) as ledger:
            assert len(ledger.live("acme")) == 1
            assert ledger.audit() == []
        if done:
            break
    assert done
    assert nth > 3


@contextmanager
def _failing(path: Path, nth: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Give a ledger on a file system of which the ``nth`` write, and those after it, fail."""
    writes = [-(10**9)]

    class File(apsw.VFSFile):
        def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 (SQLite's name)
            writes[0] += 1
            if writes[0] >= nth:
                raise apsw.IOError
            super().xWrite(data, offset)

    class FileSystem(apsw.VFS):
        def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
            return File("", name, flags)

    vfs = FileSystem("ke-failing", "")
    connection = apsw.Connection
    with monkeypatch.context() as patched:
        patched.setattr("ke_tools.memory.storage.apsw.Connection", lambda name, flags: connection(name, flags=flags, vfs="ke-failing"))
        ledger = Ledger(path)
        writes[0] = 0
        try:
            yield ledger
        finally:
            writes[0] = -(10**9)
            ledger.close()
            vfs.unregister()


@pytest.fixture
def shown() -> Iterator[Path]:
    """A folder that everybody may read and nobody but its owner may write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Ledger(folder / "ledger.db") as ledger:
            write(ledger, "yes")
        (folder / "ledger.db").chmod(0o444)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


def test_a_home_that_takes_no_writes_is_told(shown: Path, nobody: Nobody) -> None:
    """Issue §6: read-only home; the message says what to do."""
    with nobody():
        for name in ("ledger.db", "new.db", "new/ledger.db"):
            with pytest.raises(ReadOnly, match=r"writable|--read-only|--home"), Ledger(shown / name) as ledger:
                write(ledger, "no")


def test_a_home_that_takes_no_writes_can_be_read(shown: Path, nobody: Nobody) -> None:
    """Design §4 no. 8: the last known edits are served where nothing can be written."""
    with nobody(), Ledger(shown / "ledger.db", read_only=True) as ledger:
        assert [edit.fact.target for edit in ledger.live("acme")] == ["yes"]
        assert ledger.audit() == []


def test_reading_does_not_pretend_that_a_pending_log_is_not_there(shown: Path, nobody: Nobody) -> None:
    """What was acknowledged must not vanish because the folder takes no shared-memory file."""
    with Ledger(shown / "ledger.db") as ledger:
        write(ledger, "later")
        pending = Path(f"{shown / 'ledger.db'}-wal").read_bytes()
    shown.chmod(0o755)
    Path(f"{shown / 'ledger.db'}-wal").write_bytes(pending)
    shown.chmod(0o555)
    with nobody(), pytest.raises(ReadOnly):
        Ledger(shown / "ledger.db", read_only=True)


# -- files -----------------------------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_damaged_and_left_alone(path: Path) -> None:
    """Issue §6: corrupt ledger."""
    path.write_bytes(b"These are my notes, not a ledger.\n" * 200)
    for read_only in (False, True):
        with pytest.raises(LedgerDamaged, match="not a database"):
            Ledger(path, read_only=read_only)
    assert path.read_bytes().startswith(b"These are my notes")


def test_a_database_of_another_program_is_left_alone(path: Path) -> None:
    """Nothing may be written into somebody else's file."""
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE notes (text)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(LedgerDamaged, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_ledger_of_a_newer_version_is_left_alone(path: Path) -> None:
    """Numbered migrations: an older program does not guess."""
    with Ledger(path) as ledger:
        ledger._storage._main.execute("PRAGMA user_version = 99")
    with pytest.raises(Unsupported, match="99"):
        Ledger(path)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.parent.joinpath("file").write_text("x")])
def test_a_folder_or_file_in_the_way_is_told(path: Path, make: Any) -> None:
    """Issue §6: bad input gets a clear error."""
    make(path)
    with pytest.raises(InvalidInput, match="cannot be a ledger"):
        Ledger(path if path.is_dir() else path.parent / "file" / "ledger.db")


def test_reading_a_ledger_that_is_not_there_makes_none(path: Path) -> None:
    """Contract: loading creates nothing."""
    with pytest.raises(NotFound):
        Ledger(path, read_only=True)
    assert not path.exists()


def test_an_empty_file_is_set_up_by_a_writer_only(path: Path) -> None:
    """A process killed while it made the file leaves an empty one."""
    path.touch()
    with pytest.raises(ReadOnly, match="empty"):
        Ledger(path, read_only=True)
    with Ledger(path) as ledger:
        write(ledger, "yes")


def test_corrupt_pages_are_told_and_nothing_is_acknowledged_on_them(path: Path) -> None:
    """Issue §6: corrupt ledger page; every page in turn, seeded."""
    with Ledger(path) as ledger:
        for number in range(60):
            write(ledger, "x" * 300, subject=f"Brix {number}")
    whole = path.read_bytes()
    noise = random.Random(3)
    seen = set()
    for page in range(1, len(whole) // 4096):
        broken = bytearray(whole)
        broken[page * 4096 : page * 4096 + 2048] = noise.randbytes(2048)
        path.write_bytes(broken)
        try:
            with Ledger(path) as ledger:
                seen.add(any(finding.is_damage for finding in ledger.audit()))
                with suppress(LedgerDamaged):
                    write(ledger, "more")
        except LedgerDamaged:
            seen.add(True)
        for name in ("-wal", "-shm"):
            Path(f"{path}{name}").unlink(missing_ok=True)
    assert seen == {True}
    path.write_bytes(whole)
    with Ledger(path) as ledger:
        assert ledger.audit() == []


def tamper(path: Path, *statements: str) -> list[tuple[str, int]]:
    """Change a ledger behind its back, its triggers aside meanwhile; what its audit says, by kind and event."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA foreign_keys = ON")
    triggers = list(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in (*statements, *(sql for _, sql in triggers)):
        db.execute(statement)
    db.close()
    with Ledger(path) as ledger:
        return [(finding.kind, finding.seq) for finding in ledger.audit()]


def forgetting(seq: int) -> list[str]:
    """Statements that take an event out without a trace."""
    return [f"DELETE FROM {table} WHERE seq = {seq}" for table in ("changes", "payloads", "edits", "events")]  # noqa: S608 (ours)


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        (["UPDATE events SET actor = 'eve' WHERE seq = 2"], {("chain", 2)}),
        (["UPDATE events SET at = '2020' WHERE seq = 3"], {("chain", 3)}),
        (["UPDATE changes SET standing = 'rolled back' WHERE seq = 3"], {("chain", 3), ("projection", 0)}),
        (["UPDATE payloads SET payload = replace(payload, 'two', 'six') WHERE seq = 2"], {("payload", 2), ("projection", 0)}),
        (["UPDATE edits SET standing = 'active'"], {("projection", 0)}),
        (["UPDATE edits SET words = 'other' WHERE seq = 1"], {("projection", 0)}),
        (["DELETE FROM names"], {("projection", 0)}),
        (["INSERT INTO changes VALUES (2, 'other', 'ed_x', 'active', '')"], {("chain", 2)}),
        (["UPDATE changes SET standing = 'bogus' WHERE seq = 3"], {("chain", 3), ("projection", 0)}),
        (["UPDATE edits SET standing = 'bogus' WHERE seq = 1"], {("projection", 0)}),
        (["UPDATE events SET actor = CAST(x'ff' AS TEXT) WHERE seq = 2"], {("chain", 2), ("projection", 0)}),
        (["UPDATE edits SET words = CAST(x'ff' AS TEXT)"], {("file", 0)}),
        (["DROP INDEX edits_by_slot"], {("file", 0)}),
        (["DROP INDEX edits_by_slot", "CREATE INDEX edits_by_slot ON edits (slot)"], {("file", 0)}),
        (["CREATE TRIGGER quiet BEFORE INSERT ON names BEGIN SELECT raise(IGNORE); END"], {("file", 0)}),
        (["CREATE TABLE copies (of_what TEXT)"], set()),
        (["DROP TABLE names"], {("file", 0)}),
        (
            forgetting(3),
            {("chain", 3), ("projection", 0)},
        ),
        (
            forgetting(2),
            {("chain", 3), ("projection", 0)},
        ),
    ],
)
def test_an_audit_finds_what_was_altered(path: Path, statements: list[str], expected: set[tuple[str, int]]) -> None:
    """Issue §3: `doctor --deep` re-derives every projection from the log, checks the hash chain, and reports any difference."""
    with Ledger(path) as ledger:
        write(ledger, "one", "two", "three")
    assert set(tamper(path, *statements)) == expected


@pytest.mark.parametrize("name", ["events_stay", "events_are_kept", "events_are_numbered", "payloads_stay", "changes_stay"])
def test_an_audit_misses_a_trigger_that_keeps_the_log_append_only(path: Path, name: str) -> None:
    """Issue §3: an append-only log; a file whose guards were taken away is not as it was made."""
    with Ledger(path) as ledger:
        write(ledger, "one")
        ledger._storage._main.execute(f"DROP TRIGGER {name}")
        (finding,) = ledger.audit()
    assert (finding.kind, finding.is_damage) == ("file", True)
    assert name in finding.message


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE idempotency_keys SET first_seq = 2, last_seq = 2", {("key", 2)}),  # another tenant's event
        ("UPDATE idempotency_keys SET last_seq = 2", {("key", 1)}),
        ("UPDATE idempotency_keys SET first_seq = 2, last_seq = 1", {("key", 2)}),
        ("UPDATE idempotency_keys SET tenant = 'other'", {("key", 1)}),
        ("UPDATE idempotency_keys SET arguments = x''", {("key", 1)}),
        ("UPDATE idempotency_keys SET key = CAST(x'ff' AS TEXT)", {("file", 0)}),
    ],
)
def test_an_audit_finds_an_idempotency_key_that_stands_for_what_its_tenant_never_did(
    path: Path, statement: str, expected: set[tuple[str, int]]
) -> None:
    """Issue §3: idempotency keys; one that was altered would answer a repeated call with somebody else's events."""
    with Ledger(path) as ledger:
        ledger.edit("acme", [fact("one")], actor="ann", slot_of=rule, idempotency_key="once")
        ledger.edit("other", [fact("two")], actor="bob", slot_of=rule)
    assert set(tamper(path, statement)) == expected


def test_an_edit_that_stands_as_none_can_is_damage_to_every_reader(path: Path) -> None:
    """Style §4 no. 10: what a damaged file holds is told as damage, never as a fault of the program."""
    with Ledger(path) as ledger:
        (made,) = write(ledger, "one")
        ledger._storage._main.execute("UPDATE edits SET standing = 'bogus'")
        for read in (lambda: ledger.get("acme", made.id), lambda: ledger.rollback("acme", [made.id], actor="ann")):
            with pytest.raises(LedgerDamaged, match="bogus"):
                read()


def purge(ledger: Ledger, edit: Edit) -> None:
    """Erase an edit as a test's usual actor."""
    ledger.purge("acme", edit.id, actor="ann", reason="asked for")


def test_a_purged_payload_is_purged_not_broken(path: Path) -> None:
    """Issue §3: a later purge can erase a payload and `doctor` says "purged"; supersession and chain stay whole."""
    with Ledger(path) as ledger:
        one, two, three = write(ledger, "one", "two", "three")
        purge(ledger, two)
        (finding,) = ledger.audit()
        assert (finding.kind, finding.seq, finding.is_damage) == ("purged", 2, False)
        with pytest.raises(NotFound):
            ledger.get("acme", two.id)
        page = ledger.history("acme")
        assert [(event.action, event.purged, not event.payload) for event in page.items] == [
            ("purge", False, False),
            ("edit", False, False),
            ("edit", True, True),
            ("edit", False, False),
        ]
        assert page.items[2].edit_ids == tuple(sorted((one.id, two.id)))
        assert ledger.since("acme", 0) == ledger.edits("acme").items[::-1]
        ledger.rollback("acme", [three.id], actor="ann")
        assert [edit.fact.target for edit in ledger.live("acme")] == ["one"]
        assert [finding.kind for finding in ledger.audit()] == ["purged"]


def test_an_audit_tells_where_a_purged_text_still_stands(path: Path) -> None:
    """Issue §3: a purge erases a text; one that left it where lists are searched is unfinished, and not a broken ledger."""
    with Ledger(path) as ledger:
        first, second = (
            ledger.edit("acme", [fact(target)], actor="ann", slot_of=rule, idempotency_key=target)[0] for target in ("one", "two")
        )
        ledger._storage._main.execute("DELETE FROM payloads WHERE seq = ?", (second.revision,))

        found = ledger.audit()

    assert [(finding.kind, finding.seq) for finding in found] == [("purged", 2), ("unerased", 2), ("unerased", 2), ("unerased", 2)]
    assert [word for word in ("edits", "names", "idempotency") if any(word in finding.message for finding in found[1:])] == [
        "edits",
        "names",
        "idempotency",
    ]
    assert not any(first.id in finding.message for finding in found)


def test_a_call_repeated_after_its_purge_writes_nothing_again(path: Path) -> None:
    """Issue §3: idempotency keys; a client that repeats itself late must not bring back what was erased."""
    with Ledger(path) as ledger:
        (made,) = ledger.edit("acme", [fact("one")], actor="ann", slot_of=rule, idempotency_key="once")
        purge(ledger, made)
        with pytest.raises(Conflict):
            ledger.edit("acme", [fact("one")], actor="ann", slot_of=rule, idempotency_key="once")
        assert ledger.edits("acme").total == 0
        assert [finding.kind for finding in ledger.audit()] == ["purged"]


def test_an_error_of_the_database_is_never_shown_raw(path: Path) -> None:
    """Style §4 no. 10: foreign errors are mapped at one seam."""
    with Ledger(path) as ledger:
        ledger._storage._main.execute("DROP TABLE names")
        with pytest.raises(KeToolsError) as caught:
            write(ledger, "yes")
        assert caught.value.code == "E_LEDGER"
        assert isinstance(caught.value.__cause__, apsw.Error)


@pytest.mark.parametrize("broken", [b"\x7b\x22\xff\x22", b'{"id": "ed_'], ids=["no text", "no whole JSON"])
def test_a_broken_text_of_the_database_is_damage_to_every_reader(path: Path, broken: bytes) -> None:
    """Issue §6: a corrupt page may still be a page to SQLite, with broken texts in it."""
    with Ledger(path) as ledger:
        (edit,) = write(ledger, "yes")
        ledger._storage._main.execute("DROP TRIGGER payloads_stay; UPDATE payloads SET payload = CAST(? AS TEXT)", (broken,))
        for read in (ledger.live, ledger.edits, ledger.history, lambda tenant: ledger.get(tenant, edit.id), lambda _: write(ledger, "no")):
            with pytest.raises(LedgerDamaged, match="cannot be read"):
                read("acme")


# -- migrations ------------------------------------------------------------------------------------------------------------------


def test_the_whole_schema_is_as_published(path: Path) -> None:
    """Style §4 no. 14: whole schemas are compared; a published step never changes."""
    with Ledger(path) as ledger:
        rows = ledger._storage._main.execute(
            "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
        )
        schema = [" ".join(sql.split()) for (sql,) in rows]
        assert ledger._storage._main.execute("PRAGMA application_id").get == 0x6B65746C
        assert ledger._storage._main.execute("PRAGMA user_version").get == len(migrations.MIGRATIONS)
        assert ledger._storage._main.execute("PRAGMA journal_mode").get == "wal"
    assert schema == [" ".join(statement.split()) for statement in SCHEMA.split("\n\n")]


def test_every_migration_says_what_it_is_for() -> None:
    """Style §4 no. 14: numbered functions with a sentence each."""
    for number, step in enumerate(migrations.MIGRATIONS, 1):
        assert step.__name__.startswith(f"m{number:03d}_")
        assert (step.__doc__ or "").endswith(".")


def test_an_older_ledger_is_brought_up_and_keeps_its_edits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §3: numbered migrations."""
    with Ledger(path) as ledger:
        (made,) = write(ledger, "yes")

    def m999_later(db: apsw.Connection) -> None:
        """Add something."""
        db.execute("CREATE TABLE later (x)")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m999_later))
    with Ledger(path) as ledger:
        assert ledger.get("acme", made.id) == made
        assert ledger._storage._main.execute("PRAGMA user_version").get == len(migrations.MIGRATIONS)


def test_an_older_ledger_that_may_not_be_written_is_sound_as_it_was_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its schema is that of its own version; what later steps add is not missing."""
    with Ledger(path) as ledger:
        write(ledger, "yes")

    def m999_later(db: apsw.Connection) -> None:
        """Add something."""
        db.execute("CREATE INDEX later ON names (name)")

    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m999_later))
    with Ledger(path, read_only=True) as ledger:
        assert ledger.audit() == []


def test_a_ledger_from_before_there_were_approvals_is_read_as_it_is(path: Path) -> None:
    """Issue 3, §3: numbered migrations; a file that may not be written keeps its form, and is read all the same."""
    with Ledger(path) as ledger:
        (made,) = write(ledger, "yes")
        for table in ("approvals", "expiries", "protections"):
            ledger._storage._main.execute(f"DROP TABLE {table}")
        ledger._storage._main.execute("DROP INDEX events_by_actor; PRAGMA user_version = 6")
    with Ledger(path, read_only=True) as ledger:
        assert (ledger.live("acme"), ledger.get("acme", made.id), ledger.edits("acme").items) == ([made], made, [made])
        assert (ledger.protections.all("acme"), ledger.expiries.next(), ledger.audit()) == ([], "", [])
    with Ledger(path) as ledger:
        ledger.protections.protect("acme", "Norway", actor="ann")
        assert ledger.audit() == []


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the missing steps or none."""
    with Ledger(path) as ledger:
        write(ledger, "yes")

    def m999_bad(db: apsw.Connection) -> None:
        """Fail half-way."""
        db.execute("CREATE TABLE later (x)")
        db.execute("CREATE TABLE later (x)")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, m999_bad))
        with pytest.raises(LedgerDamaged):
            Ledger(path)
    with Ledger(path) as ledger:
        assert ledger.audit() == []


def test_a_storage_keeps_no_more_readers_than_read_at_once(path: Path) -> None:
    """Connections are used again."""
    storage = Storage(path, read_only=False, busy_timeout_ms=1000)
    with storage.reading(), storage.reading():
        pass
    with storage.reading():
        assert len(storage._idle) == 1
    assert len(storage._idle) == 2
    storage.close()
    assert len(storage._idle) == 0


SCHEMA = """
CREATE TABLE events ( seq INTEGER PRIMARY KEY AUTOINCREMENT, tenant TEXT NOT NULL CHECK (tenant <> ''), kind TEXT NOT
NULL, actor TEXT NOT NULL, at TEXT NOT NULL, content BLOB NOT NULL, -- sha256(salt + payload) previous BLOB NOT NULL,
hash BLOB NOT NULL ) STRICT

CREATE INDEX events_of_tenant ON events (tenant, seq)

CREATE TRIGGER events_are_numbered BEFORE INSERT ON events WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM
events) BEGIN SELECT raise(ABORT, 'an event must follow the last one'); END

CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END

CREATE TRIGGER events_are_kept BEFORE DELETE ON events BEGIN SELECT raise(ABORT, 'events are append-only'); END

CREATE TABLE payloads ( seq INTEGER PRIMARY KEY REFERENCES events (seq), tenant TEXT NOT NULL, salt BLOB NOT NULL,
payload TEXT NOT NULL ) STRICT

CREATE TRIGGER payloads_stay BEFORE UPDATE ON payloads BEGIN SELECT raise(ABORT, 'a payload can only be erased'); END

CREATE TABLE changes ( seq INTEGER NOT NULL REFERENCES events (seq), tenant TEXT NOT NULL, edit_id TEXT NOT NULL,
standing TEXT NOT NULL, superseded_by TEXT NOT NULL, PRIMARY KEY (tenant, seq, edit_id) ) STRICT, WITHOUT ROWID

CREATE INDEX changes_of_edit ON changes (tenant, edit_id, seq)

CREATE TRIGGER changes_stay BEFORE UPDATE ON changes BEGIN SELECT raise(ABORT, 'changes are append-only'); END

CREATE TRIGGER changes_are_kept BEFORE DELETE ON changes BEGIN SELECT raise(ABORT, 'changes are append-only'); END

CREATE TABLE edits ( tenant TEXT NOT NULL, id TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL UNIQUE REFERENCES events (seq),
slot TEXT NOT NULL, standing TEXT NOT NULL, superseded_by TEXT NOT NULL, words TEXT NOT NULL, -- folded text that a list
is searched in PRIMARY KEY (tenant, id) ) STRICT, WITHOUT ROWID

CREATE INDEX edits_by_standing ON edits (tenant, standing, seq)

CREATE INDEX edits_by_age ON edits (tenant, seq)

CREATE INDEX edits_by_slot ON edits (tenant, slot, seq)

CREATE INDEX edits_by_successor ON edits (tenant, superseded_by, seq)

CREATE TABLE names ( tenant TEXT NOT NULL, name TEXT NOT NULL, edit_id TEXT NOT NULL, PRIMARY KEY (tenant, name,
edit_id), FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE ) STRICT, WITHOUT ROWID

CREATE INDEX names_of_edit ON names (tenant, edit_id)

CREATE TABLE idempotency_keys ( tenant TEXT NOT NULL, key TEXT NOT NULL, arguments BLOB NOT NULL, -- sha256 of what was
asked first_seq INTEGER NOT NULL REFERENCES events (seq), last_seq INTEGER NOT NULL REFERENCES events (seq), PRIMARY KEY
(tenant, key) ) STRICT, WITHOUT ROWID

CREATE TABLE jobs ( seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL CHECK (tenant
<> ''), actor TEXT NOT NULL, kind TEXT NOT NULL, arguments TEXT NOT NULL, key TEXT NOT NULL, -- the caller's, that a
repeated call is known by; '' for none status TEXT NOT NULL CHECK (status IN ('queued', 'working', 'completed',
'failed', 'cancelled')), is_cancelling INTEGER NOT NULL DEFAULT 0, is_committing INTEGER NOT NULL DEFAULT 0, -- from
then on it cannot be cancelled stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL
DEFAULT 0, message TEXT NOT NULL DEFAULT '', result TEXT NOT NULL DEFAULT '{}', error TEXT NOT NULL DEFAULT '{}',
created_at TEXT NOT NULL, updated_at TEXT NOT NULL ) STRICT

CREATE INDEX jobs_of_tenant ON jobs (tenant, seq)

CREATE INDEX jobs_by_status ON jobs (status, seq)

CREATE UNIQUE INDEX jobs_by_key ON jobs (tenant, key) WHERE key <> ''

CREATE TABLE flips ( seq INTEGER NOT NULL REFERENCES events (seq), tenant TEXT NOT NULL, release TEXT NOT NULL, -- live
from this event on; '' for none edit_ids TEXT NOT NULL, -- JSON: what it carries PRIMARY KEY (tenant, seq) ) STRICT,
WITHOUT ROWID

CREATE TRIGGER flips_stay BEFORE UPDATE ON flips BEGIN SELECT raise(ABORT, 'flips are append-only'); END

CREATE TRIGGER flips_are_kept BEFORE DELETE ON flips BEGIN SELECT raise(ABORT, 'flips are append-only'); END

CREATE TABLE scorecards ( tenant TEXT NOT NULL, sha256 TEXT NOT NULL, scorecard TEXT NOT NULL, PRIMARY KEY (tenant,
sha256) ) STRICT

CREATE TRIGGER scorecards_stay BEFORE UPDATE ON scorecards BEGIN SELECT raise(ABORT, 'a scorecard can only be erased');
END

CREATE TABLE firings ( tenant TEXT NOT NULL, edit_id TEXT NOT NULL, times INTEGER NOT NULL, last_at TEXT NOT NULL,
PRIMARY KEY (tenant, edit_id) ) STRICT, WITHOUT ROWID

CREATE TABLE approvals (
    tenant TEXT NOT NULL,
    edit_id TEXT NOT NULL,
    seq INTEGER NOT NULL REFERENCES events (seq),
    PRIMARY KEY (tenant, edit_id),
    FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID

CREATE TABLE expiries (
    tenant TEXT NOT NULL,
    expires TEXT NOT NULL,
    edit_id TEXT NOT NULL,
    PRIMARY KEY (tenant, expires, edit_id),
    FOREIGN KEY (tenant, edit_id) REFERENCES edits (tenant, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID

CREATE INDEX expiries_of_edit ON expiries (tenant, edit_id)

CREATE TABLE protections (
    tenant TEXT NOT NULL,
    id TEXT NOT NULL,
    seq INTEGER NOT NULL REFERENCES events (seq),
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID

CREATE INDEX events_by_actor ON events (tenant, actor, at)
"""
