"""Connections to one SQLite file, and the only place where SQLite's errors become ours.

One connection writes; as many as needed read, each in a snapshot of its own, so that a reader on the path of a request never
waits for a writer. An in-memory database has one connection and one lock.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Final

import apsw

from ke_tools.errors import (
    Busy,
    InvalidInput,
    KeToolsError,
    LedgerDamaged,
    NotFound,
    ReadOnly,
    ResourceExhausted,
    Unsupported,
    cannot_write,
)
from ke_tools.memory.migrations import migrate, version_of

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

_MEMORY: Final = ":memory:"
_SETTING_UP: Final = 60.0  # seconds within which an empty file may still be one that another process sets up
_CHECK_AGAIN: Final = 0.005  # seconds between two tries to switch a file to its write-ahead log

# A disk that refuses a write is full or over a limit; any other I/O error means that what is there cannot be read.
_REFUSED_WRITES: Final = frozenset(
    {
        apsw.SQLITE_IOERR_WRITE,
        apsw.SQLITE_IOERR_FSYNC,
        apsw.SQLITE_IOERR_DIR_FSYNC,
        apsw.SQLITE_IOERR_TRUNCATE,
        apsw.SQLITE_IOERR_SHMOPEN,
        apsw.SQLITE_IOERR_SHMSIZE,
        apsw.SQLITE_IOERR_NOMEM,
        apsw.SQLITE_IOERR_COMMIT_ATOMIC,
        apsw.SQLITE_IOERR_BEGIN_ATOMIC,
    }
)


class Storage:
    """The ledger's file: :meth:`reading` and :meth:`writing` give a connection inside a transaction.

    Raises:
        ReadOnly: the folder or the file takes no writes.
        LedgerDamaged: the file is not a ledger, or a page of it is broken.
        NotFound: ``read_only`` and there is no file.
        Unsupported: a newer version wrote the file, or its file system cannot hold a write-ahead log.
    """

    def __init__(self, path: Path | str, *, read_only: bool, busy_timeout_ms: int) -> None:
        self.path = str(path)
        self.read_only = read_only
        self._busy_timeout_ms = busy_timeout_ms
        self._in_memory = self.path == _MEMORY
        self._closed = False
        self._lay_empty = False
        self._write_lock = threading.RLock()
        self._idle: deque[apsw.Connection] = deque()
        if not self._in_memory:
            self._lay_empty = _lies_empty(Path(self.path))
            _prepare_file(Path(self.path), read_only=read_only)
        with self._translated():
            self._main = self._open_read_only() if read_only else self._open_writer()

    @contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """Give a connection that sees one consistent state, whatever is written meanwhile."""
        if self._in_memory:
            with self.writing(keep=False) as db:
                yield db
            return
        self._refuse_if_closed()
        with self._translated():
            db = self._idle_reader() or self._open_reader()
            try:
                db.execute("BEGIN")
                yield db
            finally:
                _abandon(db)
                self._park(db)

    @contextmanager
    def writing(self, *, keep: bool = True) -> Iterator[apsw.Connection]:
        """Give the writing connection inside one transaction: all of it is kept, or on an error (or without ``keep``) nothing.

        Inside another :meth:`writing` of the same thread it is a part of that transaction: what it keeps, the outer one may still undo.

        Raises:
            Busy: another writer held the ledger for longer than the timeout.
        """
        if self.read_only:
            raise ReadOnly(f"the ledger {self.path} is open for reading only.", "Start without --read-only to correct facts.")
        if not self._write_lock.acquire(timeout=self._busy_timeout_ms / 1000):
            raise self._busy()
        try:
            self._refuse_if_closed()
            with self._translated(), _part(self._main, keep) if self._main.in_transaction else _whole(self._main, keep):
                yield self._main
        finally:
            self._write_lock.release()

    def rewrite(self) -> None:
        """Write the file anew and empty its log, so that neither keeps bytes of what was erased.

        Free pages and the gaps in pages that were split keep old bytes, which ``PRAGMA secure_delete`` does not reach once they are
        there.

        Raises:
            Busy: another process writes, or reads what is to go, for longer than the timeout.
        """
        if not self._write_lock.acquire(timeout=self._busy_timeout_ms / 1000):
            raise self._busy()
        try:
            self._refuse_if_closed()
            with self._translated():
                self._main.execute("VACUUM")
                is_held, *_ = self._main.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()[0]
        finally:
            self._write_lock.release()
        if is_held:
            raise Busy("the ledger's write-ahead log is read by another process and could not be emptied.", "Repeat in a moment.")

    def close(self) -> None:
        """Close every connection; readers at work close theirs when they are done."""
        with self._write_lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._main.close()

    def _idle_reader(self) -> apsw.Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _park(self, db: apsw.Connection) -> None:
        if self._closed or db.open_flags & apsw.SQLITE_OPEN_URI:  # one that locks nothing would not see what others write
            db.close()
        else:
            self._idle.append(db)

    def _open_writer(self) -> apsw.Connection:
        db = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        if version_of(db) == 0 and self._lay_empty:  # a file that is not ours is refused before anything is written to it
            log.warning("the ledger %s was empty and begins anew; if it held corrections, restore it from a copy or an export.", self.path)
        if not self._in_memory:
            self._log_ahead(db)
        migrate(db)
        return db

    def _open_reader(self) -> apsw.Connection:
        if self.read_only:
            return self._open_read_only()
        db = self._connect(apsw.SQLITE_OPEN_READWRITE)
        db.execute("PRAGMA query_only = ON")
        return db

    def _open_read_only(self) -> apsw.Connection:
        try:
            db = self._connect(apsw.SQLITE_OPEN_READONLY)
            version = version_of(db)
        except apsw.Error as error:
            # A folder or a full disk that does not even take the shared-memory file. Without a pending log the file alone is all there is.
            pending = Path(self.path + "-wal")
            is_refused = isinstance(error, (apsw.CantOpenError, apsw.ReadOnlyError)) or _is_full(error)
            if not is_refused or (pending.exists() and pending.stat().st_size):
                raise
            db = self._connect(apsw.SQLITE_OPEN_READONLY, locks=False)
            version = version_of(db)
        if version == 0:
            raise ReadOnly(f"the ledger {self.path} is empty and may not be set up.", "Open it once without --read-only.")
        return db

    def _connect(self, flags: int, *, locks: bool = True) -> apsw.Connection:
        name = self.path
        if not locks:
            name, flags = Path(self.path).absolute().as_uri() + "?immutable=1", flags | apsw.SQLITE_OPEN_URI
        db = apsw.Connection(name, flags=flags)
        db.set_busy_timeout(self._busy_timeout_ms)
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA synchronous = FULL")  # what was acknowledged outlives a loss of power
        return db

    def _log_ahead(self, db: apsw.Connection) -> None:
        deadline = time.monotonic() + self._busy_timeout_ms / 1000
        while True:  # SQLite does not wait by itself while another process makes the same switch
            try:
                mode = db.execute("PRAGMA journal_mode = WAL").get
                break
            except apsw.BusyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_CHECK_AGAIN)
        if mode != "wal":
            raise Unsupported(f"the file system of {self.path} cannot hold a write-ahead log.", "Put --home on a local disk.")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise self._ours(error) from error
        except (UnicodeDecodeError, JSONDecodeError) as error:  # a broken page may still be one to SQLite
            raise self._damaged(error) from error

    def _ours(self, error: apsw.Error) -> KeToolsError:
        if isinstance(error, (apsw.BusyError, apsw.LockedError)):
            return self._busy()
        if isinstance(error, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError)):
            return ReadOnly(f"the ledger {self.path} cannot be written: {error}.", "Make its folder writable, or start with --read-only.")
        if _is_full(error):
            return ResourceExhausted(
                f"the ledger {self.path} could not grow: {error}; nothing was changed.", "Free disk space, then repeat."
            )
        return self._damaged(error)

    def _damaged(self, error: Exception) -> LedgerDamaged:
        return LedgerDamaged(
            f"the ledger {self.path} cannot be read: {error}.",
            "Keep the file, run `ke-tools doctor --deep`, and restore it from a copy or an export.",
        )

    def _busy(self) -> Busy:
        return Busy(f"another writer held the ledger for over {self._busy_timeout_ms} ms; nothing was changed.", "Repeat in a moment.")

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise KeToolsError(f"the ledger {self.path} is closed.")


def _is_full(error: apsw.Error) -> bool:
    return isinstance(error, (apsw.FullError, apsw.NoMemError)) or getattr(error, "extendedresult", 0) in _REFUSED_WRITES


@contextmanager
def _whole(db: apsw.Connection, keep: bool) -> Iterator[None]:
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        if keep:
            db.execute("COMMIT")
    finally:
        _abandon(db)


@contextmanager
def _part(db: apsw.Connection, keep: bool) -> Iterator[None]:
    db.execute("SAVEPOINT part")
    is_kept = False
    try:
        yield
        is_kept = keep
    finally:
        if db.in_transaction:  # SQLite itself has left it after some errors
            db.execute("RELEASE part" if is_kept else "ROLLBACK TO part; RELEASE part")


def _abandon(db: apsw.Connection) -> None:
    """Leave a transaction that is still open; SQLite itself has left it after some errors."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def _lies_empty(path: Path) -> bool:
    """Whether a file without content has been there for longer than another process needs to set it up."""
    with suppress(OSError):
        found = path.stat()
        return found.st_size == 0 and time.time() - found.st_mtime > _SETTING_UP
    return False


def _refuse_if_missing(path: Path) -> None:
    try:
        is_there = path.exists()
    except OSError as error:
        raise LedgerDamaged(f"the ledger {path} cannot be reached: {error.strerror}.", "Check --home and the rights to it.") from error
    if not is_there:
        raise NotFound(f"there is no ledger at {path}.", "Correct a first fact without --read-only, or check --home.")


def _prepare_file(path: Path, *, read_only: bool) -> None:
    if read_only:
        _refuse_if_missing(path)
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only a new file is opened here: closing a second descriptor of a database would drop this process's locks on it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError as error:
        if path.is_dir() or not path.parent.is_dir():
            raise InvalidInput(f"{path} cannot be a ledger: a folder or file is in its place.", "Check --home.") from error
    except NotADirectoryError as error:
        raise InvalidInput(f"{path} cannot be a ledger: a file stands where its folder should be.", "Check --home.") from error
    except PermissionError as error:
        raise ReadOnly(f"{path.parent} takes no new files.", "Make it writable, or choose another --home.") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ReadOnly(f"{path.parent} lies on a read-only file system.", "Choose another --home.") from error
        raise cannot_write(path, error) from error
