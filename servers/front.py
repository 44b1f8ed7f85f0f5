"""The thin front of a window: joins this process's standard input and output to the server of the home.

It reads nothing but the standard library and the settings, so that a host gets its first answer soon; all that is heavy
happens once, in the server.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from ke_tools.config import Settings
from ke_tools.errors import KeToolsError, ModelUnavailable
from ke_tools.servers import home_socket
from ke_tools.servers.home_socket import Held, Place

IDLE_SECONDS: Final = 60.0  # how long a server that a window started outlives the last window
_CHUNK: Final = 1 << 16
_LARGEST_LOG: Final = 1 << 20
_DEATH_SECONDS: Final = 2.0  # between a server's last word and its end
_TOLD: Final = 2000  # characters of a failed server's log that are repeated
# -P: the window's current folder may hold a memory/ or an mcp.py of its own, which must not be imported.
_COMMAND: Final = (sys.executable, "-P", "-m", "ke_tools.servers.home_server")


def run(settings: Settings, *, tool_prefix: str = "", idle_seconds: float = IDLE_SECONDS, command: Sequence[str] = _COMMAND) -> int:
    """Serve one window until its host closes standard input; returns the exit code.

    Raises:
        KeToolsError: no server could be reached or started, or it holds another model than this window asks for.
    """
    place = Place.of(settings.home)
    daemon = Daemon(settings, command, idle_seconds=idle_seconds, tool_prefix=tool_prefix)
    words = home_socket.greeting(settings, "window", tool_prefix=tool_prefix)
    connection = home_socket.seek(place, words, daemon.start, daemon.check)
    return join(connection)


class Daemon:
    """The server that this window may have to start."""

    def __init__(self, settings: Settings, command: Sequence[str], *, idle_seconds: float, tool_prefix: str) -> None:
        self._settings = settings
        self._tool_prefix = tool_prefix
        self._command = command
        self._idle_seconds = idle_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None
        self._log_began = 0

    def start(self, held: Held) -> None:
        """Start the server in a session of its own; it inherits the lock and the socket."""
        import json

        # Read-only is this window, and what its server offers on loopback; the next window may write, if the home can.
        read_only = self._settings.read_only
        settings = replace(self._settings, read_only=read_only and not home_socket.is_writable(self._settings.home))
        orders = {
            "tool_prefix": self._tool_prefix,
            "settings": settings.to_json(),
            "read_only": read_only,
            "lock": held.lock,
            "listener": held.listener.fileno(),
            "idle_seconds": self._idle_seconds,
        }
        with suppress(OSError):
            self._log = _log_file(self._settings, held.place)
            self._log_began = self._log.stat().st_size if self._log.exists() else 0
        try:
            with open(self._log or os.devnull, "ab") as output:  # noqa: PTH123  either of the two
                self._process = subprocess.Popen(
                    [*self._command, json.dumps(orders)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(held.lock, held.listener.fileno()),
                    start_new_session=True,
                    cwd="/",
                )
        finally:
            held.let_go()

    def check(self) -> None:
        """Raise if the server that was started has failed; called when it did not answer."""
        if self._process is None:
            return
        try:
            code = self._process.wait(_DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            return
        self._process = None
        if code == 0:  # it was idle for too long before this window came; another is started
            return
        said = self._log.read_bytes()[self._log_began :].decode("utf-8", "replace")[-_TOLD:].strip() if self._log else ""
        raise ModelUnavailable(f"the server could not start (exit code {code}): {said or 'it said nothing'}", "See `ke-tools doctor`.")


def join(connection: socket.socket) -> int:
    """Be the window of the server behind ``connection`` until either side is done; returns the exit code."""
    if carry(connection):
        return 0
    sys.stderr.write("ke-tools: the server of this home has ended; start the window again.\n")
    return 1


def carry(connection: socket.socket) -> bool:
    """Carry bytes between standard input and output and ``connection``; tell whether it was the host that ended it."""
    finished = threading.Event()  # the host has closed our input: an end from the server is then no failure

    def carry_in() -> None:
        with suppress(OSError):
            while chunk := os.read(0, _CHUNK):
                connection.sendall(chunk)
        finished.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)

    threading.Thread(target=carry_in, name="ke-stdin", daemon=True).start()
    try:
        while chunk := connection.recv(_CHUNK):
            _write_all(1, chunk)
    except BrokenPipeError:
        return True  # the host reads no more
    except ConnectionResetError:
        pass
    return finished.is_set()


def fail(error: KeToolsError) -> int:
    """Tell the host why there is no server (on stderr: stdout is the protocol's) and give the exit code."""
    sys.stderr.write(f"ke-tools: {error}\n")
    return error.exit_code


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _log_file(settings: Settings, place: Place) -> Path:
    """Give the log of this home's server; a large one is started anew, one older is kept."""
    import hashlib

    folder = settings.cache / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"server-{hashlib.sha256(os.fsencode(place.home)).hexdigest()[:8]}.log"
    if path.exists() and path.stat().st_size > _LARGEST_LOG:
        path.replace(path.with_suffix(".log.1"))
    return path
