"""Where the one server of a home is found: a lock that says that it runs, and a unix socket that leads to it.

Whoever holds the lock owns the socket. A front that finds the lock free takes it, binds the socket, and hands both to the
process that it starts, so a home never has two servers however many windows open at once, and a caller can connect before
that process has read its libraries. The kernel frees the lock with the process; a socket left behind is replaced.

A connection opens with one line of JSON from each side: the greeting says what is wanted, the answer whether it is granted.

This module and :mod:`ke_tools.servers.front` are all that a window's own process reads: the standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ke_tools.config import Settings
from ke_tools.errors import Conflict, KeToolsError, TimedOut, cannot_write

PROTOCOL: Final = 1
LONGEST_GREETING: Final = 64 * 1024
PATIENCE_SECONDS: Final = 60.0  # until a server that ends has ended
ANSWER_SECONDS: Final = 120.0  # libraries are read before the first answer
_LONGEST_PATH: Final = 100  # a unix socket's address holds 104 bytes on macOS, 108 on Linux
_BACKLOG: Final = 128
_RETRY_SECONDS: Final = 0.03

#: What two windows of one home must agree on, where they say it at all.
SHARED: Final = (
    "tenant",
    "model",
    "edit_model",
    "engine",
    "vllm_url",
    "vllm",
    "vllm_args",
    "upstream",
    "dtype",
    "device",
    "edit_device",
    "demonstrations",
    "alpha",
    "via",
    "grey",
    "edits",
    "edits_per_minute",
    "chat_corrections",
    "trust_remote_code",
)

Want = Literal["window", "listen"]


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of a home's lock and socket."""

    folder: Path
    home: Path

    @classmethod
    def of(cls, home: Path) -> Place:
        """Give the place: inside the home, or, where that is too deep or cannot be written, in the user's runtime folder."""
        home = home.resolve()
        inside = home / "run"
        if len(os.fsencode(inside / "server.sock")) < _LONGEST_PATH and is_writable(inside):
            return cls(inside, home)
        key = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
        return cls(_runtime_folder() / key, home)

    @property
    def socket(self) -> Path:
        """The socket's path."""
        return self.folder / "server.sock"

    @property
    def lock(self) -> Path:
        """The lock's path; the file stays, its lock does not."""
        return self.folder / "server.lock"

    def make(self) -> None:
        """Make the folder, for this user alone.

        Raises:
            ReadOnly, ResourceExhausted: it cannot be made. Conflict: it is somebody else's.
        """
        try:
            for folder in (self.folder.parent, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
            if found.st_uid != os.geteuid():
                raise Conflict(f"{self.folder} belongs to another user.", "Remove it, or set --home to a folder of your own.")
            if stat.S_IMODE(found.st_mode) & 0o077:
                self.folder.chmod(0o700)
        except OSError as error:
            raise cannot_write(self.folder, error) from error


@dataclass(frozen=True, slots=True)
class Held:
    """The lock and the listening socket: who has them is the server."""

    place: Place
    lock: int
    listener: socket.socket

    @classmethod
    def take(cls, place: Place) -> Held | None:
        """Become the server of a home; ``None`` if another process is.

        Raises:
            ReadOnly, ResourceExhausted: the folder takes no files.
        """
        place.make()
        try:
            lock = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise cannot_write(place.lock, error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        try:
            return cls(place, lock, _bind(place.socket))
        except OSError as error:
            os.close(lock)
            raise cannot_write(place.socket, error) from error

    @classmethod
    def inherited(cls, home: Path, lock: int, listener: int) -> Held:
        """Take over what the process that started this one holds."""
        for descriptor in (lock, listener):
            os.set_inheritable(descriptor, False)
        return cls(Place.of(home), lock, socket.socket(fileno=listener))

    def let_go(self) -> None:
        """Close this process's share; what was handed on to another process stays."""
        self.listener.close()
        os.close(self.lock)

    def withdraw(self) -> None:
        """Take the socket away: whoever comes now finds nobody, and starts a server as soon as the lock is free."""
        with suppress(FileNotFoundError):
            self.place.socket.unlink()
        self.listener.close()


def greeting(settings: Settings, want: Want, **more: Any) -> dict[str, Any]:
    """Say what is wanted, and those settings that were given rather than left to their defaults."""
    given = {name: getattr(settings, name) for name in SHARED if settings.sources.get(name, "given") != "default"}
    return {"ke-tools": PROTOCOL, "want": want, "given": given, "read_only": settings.read_only, **more}


def dial(place: Place, words: Mapping[str, Any], descriptors: Sequence[int] = ()) -> tuple[socket.socket, dict[str, Any]] | None:
    """Connect and greet; give the connection and the server's answer (``pid`` …), ``None`` if nobody answers.

    Raises:
        KeToolsError: the server refuses; the message is the server's.
        TimedOut: it is there and says nothing.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_SECONDS)
        connection.connect(os.fspath(place.socket))
        socket.send_fds(connection, [encode(words)], list(descriptors))
        answer = _line(connection)
        connection.settimeout(None)
    except TimeoutError as error:
        connection.close()
        raise TimedOut(f"the server of {place.home} does not answer.", f"See its log, or end it: its lock is {place.lock}.") from error
    except OSError:  # no socket, nobody behind it, or a server that ends just now
        connection.close()
        return None
    if not answer:
        connection.close()
        return None
    said = json.loads(answer)
    if error_said := said.get("error"):
        connection.close()
        raise refusal(error_said)
    return connection, said


def seek(place: Place, words: Mapping[str, Any], take: Callable[[Held], None], check: Callable[[], None]) -> socket.socket:
    """Connect to the server of a home, starting one where there is none.

    ``take`` gets the lock and the socket if nobody has them; ``check`` is called between tries and may raise.

    Raises:
        KeToolsError: the server refuses, cannot be started, or neither answers nor ends.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        if (found := dial(place, words)) is not None:
            return found[0]
        check()
        if (held := Held.take(place)) is not None:
            take(held)
        elif time.monotonic() > deadline:
            raise TimedOut(f"the server of {place.home} neither answers nor ends.", f"End it; its lock is {place.lock}.")
        else:
            time.sleep(_RETRY_SECONDS)


def encode(words: Mapping[str, Any]) -> bytes:
    """Write one line of JSON."""
    return json.dumps(words).encode() + b"\n"


def refusal(said: Mapping[str, Any]) -> KeToolsError:
    """Make an error of what a server said."""
    kinds = {kind.code: kind for kind in _kinds(KeToolsError)}
    return kinds.get(str(said.get("code")), Conflict)(str(said.get("message", "refused.")), str(said.get("hint", "")))


def _bind(path: Path) -> socket.socket:
    """Listen on ``path``, replacing what a dead server left; the caller has the lock."""
    with suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _line(connection: socket.socket) -> bytes:
    """Read up to the end of a line, byte by byte: what follows belongs to somebody else."""
    read = bytearray()
    while not read.endswith(b"\n") and len(read) < LONGEST_GREETING:
        if not (byte := connection.recv(1)):
            return b""
        read += byte
    return bytes(read)


def is_writable(folder: Path) -> bool:
    """Tell whether files can be made in ``folder``, which need not exist yet."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _runtime_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(os.fsencode(runtime)) < _LONGEST_PATH // 2 and is_writable(Path(runtime)):
        return Path(runtime) / "ke-tools"
    short = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) < _LONGEST_PATH // 2 else "/tmp"  # noqa: S108  made 0700, checked
    return Path(short) / f"ke-tools-{os.geteuid()}"


def _kinds(kind: type[KeToolsError]) -> list[type[KeToolsError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _kinds(child))]
