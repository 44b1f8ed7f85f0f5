"""A process between ke-tools and a server of its own: it ends the server when ke-tools is gone, however ke-tools ended.

``python -m ke_tools.servers.engines._keeper LOG COMMAND…`` runs the command in a process group of its own and copies what it says into
``LOG``, which it keeps small. Standard input is a pipe whose other end ke-tools holds: the kernel closes it with ke-tools, and then the
whole group ends. One line on standard output tells the command's process id. The exit code is the command's. The standard library only.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["MOST_BYTES", "keep"]

MOST_BYTES: Final = 2 << 20  # of the log; what was in it before lies beside it as LOG.1
GRACE_SECONDS: Final = 5.0  # from being told to end to being killed
_LOOK_SECONDS: Final = 0.2
_CHUNK: Final = 1 << 16
_DIE_WITH_PARENT: Final = 1  # PR_SET_PDEATHSIG of Linux's prctl
_NOT_STARTED: Final = 127


class Log:
    """A file that is appended to, and put aside when it has become large."""

    def __init__(self, path: Path, most: int = MOST_BYTES) -> None:
        self._path, self._most = path, most
        self._file = self._opened()

    def write(self, said: bytes) -> None:
        """Append; a disk that is full costs the log, not the server."""
        with suppress(OSError):
            if self._file.tell() + len(said) > self._most:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._opened()
            self._file.write(said)

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def _opened(self) -> BinaryIO:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "ab", buffering=0)


def keep(log: Log, command: Sequence[str], watched: int, told: int) -> int:
    """Run a command until it ends or until nobody holds the other end of ``watched`` any more; gives its exit code.

    Args:
        log: gets what it says.
        command: and its arguments.
        watched: descriptor of the pipe.
        told: descriptor that the process id is written to, as a line.
    """
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_ask_to_die_with_parent,  # noqa: PLW1509  there is one thread here
        )
    except OSError as error:
        log.write(f"{command[0]} cannot be started: {error.strerror}\n".encode())
        _tell(told, 0)
        return _NOT_STARTED
    _tell(told, child.pid)
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector, child.stdout as said:
        os.set_blocking(said.fileno(), False)
        selector.register(said, selectors.EVENT_READ)
        selector.register(watched, selectors.EVENT_READ)
        end = float("inf")
        while child.poll() is None and time.monotonic() < end:
            for key, _ in selector.select(_LOOK_SECONDS):
                chunk = os.read(key.fd, _CHUNK)
                if not chunk:
                    selector.unregister(key.fd)
                if key.fd != watched:
                    log.write(chunk)
                elif not chunk:
                    end = time.monotonic() + GRACE_SECONDS
                    _signal(child.pid, signal.SIGTERM)
        _signal(child.pid, signal.SIGKILL)  # whoever of its group is left
        code = child.wait()
        with suppress(BlockingIOError):
            while chunk := os.read(said.fileno(), _CHUNK):
                log.write(chunk)
    return code


def _tell(descriptor: int, pid: int) -> None:
    with suppress(OSError):  # nobody is left to hear it, which the other pipe tells too
        os.write(descriptor, b"%d\n" % pid)


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _ask_to_die_with_parent() -> None:
    """Have Linux tell the server when this process was killed; elsewhere ke-tools sees it and ends the group."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Be the keeper; signals meant for ke-tools' terminal do not end it, the end of its pipe does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the command would inherit
    code = keep(Log(Path(arguments[0])), arguments[1:], sys.stdin.fileno(), sys.stdout.fileno())
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
