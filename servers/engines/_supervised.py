"""A vLLM of ke-tools' own: started, watched, started again when it dies, and ended with ke-tools.

One process of a home runs it, who holds the lock ``vllm.lock`` in the home's ``run`` folder; the others (the worker, a verb of the command
line) find address and key in ``vllm.json`` beside it and ask the same server. Both stay the same from one start to the next where the port
is still free, so that who asks need not notice. Where the holder is gone, a process that serves takes over.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from ke_tools.errors import Conflict, ModelUnavailable, cannot_write
from ke_tools.servers.doors import free_port
from ke_tools.servers.engines._keeper import GRACE_SECONDS
from ke_tools.servers.engines.recipe import Recipe

__all__ = ["Pace", "Supervised", "running"]

log = logging.getLogger(__name__)

_LOCK, _RECORD = "vllm.lock", "vllm.json"
_LEEWAY_SECONDS: Final = 3.0  # for the keeper, beyond what it gives the server to end
_PATIENCE_SECONDS: Final = 5.0  # until who holds the lock has written where its server is
_ASKING_SECONDS: Final = 5.0
_SICK: Final = 3  # looks in a row at which the server says that its engine is dead
_READ: Final = 64_000  # bytes of the log, of which the end is told
_LINES: Final = 4
_SHOWN: Final = 300
_PREFIX: Final = re.compile(r"^(\(.*? pid=\d+\) )?([A-Z]+ [\d-]+ [\d:]+ \[\S+?\] )?")  # of vLLM's lines
_IS_ERROR: Final = re.compile(r"^[\w.]*(Error|Exception): |^\S+: error: ")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is looked, and how patient we are, in seconds."""

    look: float = 0.2
    health: float = 5.0
    first: float = 1.0  # before it is started again; twice as long each time
    longest: float = 60.0
    steady: float = 120.0  # so long it answered, where its death is not one of several in a row
    most: int = 5  # deaths in a row


PACE: Final = Pace()


class Supervised:
    """The vLLM of a home. Thread safe.

    Args:
        folder: the home's ``run`` folder, of this user alone.
        log_file: gets what the server says; kept small.
        recipe: what to start.
        environment: of the server, without its key.
        takes_over: whether to run it once the process that does is gone.
        pace: for tests.

    Raises:
        Conflict: another process of the home runs one with another model.
        ReadOnly, ResourceExhausted: the folder takes no files.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        *,
        log_file: Path,
        environment: Mapping[str, str],
        takes_over: bool = True,
        pace: Pace = PACE,
    ) -> None:
        self._folder, self._recipe, self._environment = folder, recipe, dict(environment)
        self._takes_over, self._pace, self._log = takes_over, pace, log_file
        self._ready, self._closing = threading.Event(), threading.Event()
        self._why, self._gave_up = "it is starting", ""
        self._has_answered = False
        self._lock = _locked(folder)
        self._where = self._claim() if self._lock is not None else self._join()
        self._thread = threading.Thread(target=self._watch, name="ke-vllm-watch", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._where.port}"

    @property
    def key(self) -> str:
        """That it asks for."""
        return self._where.key

    @property
    def is_ours(self) -> bool:
        """Whether this process runs it, so that it ends with it."""
        return self._lock is not None

    def wait(self, say: Callable[[str], None]) -> None:
        """Wait until it answers, saying how long that takes already.

        Raises:
            ModelUnavailable: it died before; the last lines of its log are told.
        """
        began = time.monotonic()
        while not self._ready.wait(self._pace.look):
            if (error := self.error()) is not None and (self._gave_up or self._closing.is_set()):
                raise error
            say(f"starting vLLM, {time.monotonic() - began:.0f} s so far")

    def error(self) -> ModelUnavailable | None:
        """Why it does not answer; ``None`` where it does."""
        if self._gave_up:
            return ModelUnavailable(self._gave_up, f"See {self._log}; then start ke-tools again.")
        if not self._why:
            return None
        return ModelUnavailable(f"vLLM does not answer: {self._why}.", f"See {self._log}.", poll_after_ms=2000)

    def close(self) -> None:
        """End it, where it is ours."""
        self._closing.set()
        self._thread.join()

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _claim(self) -> _Where:
        """Choose and write down where it will be: as before, where that is free."""
        before = _read(self._folder)
        kept = before if before is not None and _is_free(before.port) else None
        where = _Where(
            port=kept.port if kept else free_port(),
            key=kept.key if kept else secrets.token_urlsafe(32),
            model=str(self._recipe.model),
            holder=os.getpid(),
        )
        _write(self._folder, where)
        return where

    def _join(self) -> _Where:
        """Find what another process runs.

        Raises:
            Conflict: another model.
        """
        end = time.monotonic() + _PATIENCE_SECONDS
        while True:
            found = _read(self._folder)
            if found is not None and found.model == str(self._recipe.model):
                self._why = f"process {found.holder} starts it"
                return found
            if time.monotonic() > end:
                break
            time.sleep(self._pace.look)
        holder, model = (found.holder, found.model) if found else ("unknown", "an unknown model")
        raise Conflict(f"the vLLM of this home, run by process {holder}, serves {model}.", "End that process, or use another --home.")

    def _watch(self) -> None:
        try:
            if self._lock is not None or self._is_left_alone():
                self._supervise()
        except Exception as error:
            log.exception("vLLM is not watched any more")
            self._give_up(f"vLLM is not watched any more: {type(error).__name__}: {error}.")
        finally:
            if self._lock is not None:
                os.close(self._lock)

    def _is_left_alone(self) -> bool:
        """Look at another process's server until that process is gone and this one is to run it; false where this one ends."""
        while not self._closing.wait(self._pace.look):
            if self._health() == httpx.codes.OK:
                self._answers()
            elif self._ready.is_set():
                self._why = f"process {self._where.holder}, which ran it, or its vLLM is gone"
            if (lock := _locked(self._folder)) is None:
                continue
            if self._takes_over:
                self._lock = lock
                break
            os.close(lock)
            if not self._ready.is_set():
                self._give_up(f"process {self._where.holder}, which was starting vLLM, is gone.")
                return False
        end = time.monotonic() + GRACE_SECONDS + _LEEWAY_SECONDS  # the other's server may be ending
        while not _is_free(self._where.port) and time.monotonic() < end and not self._closing.wait(self._pace.look):
            pass
        if self._lock is not None:
            _write(self._folder, _Where(self._where.port, self._where.key, self._where.model, os.getpid()))
        return self._lock is not None

    def _supervise(self) -> None:
        """Run it until it is to end, or ends too often."""
        deaths = 0
        while not self._closing.is_set():
            run = _Run(self._recipe.command(self._where.port), self._log, {**self._environment, "VLLM_API_KEY": self.key})
            try:
                answered = self._follow(run)
            finally:
                run.end()
            if self._closing.is_set():
                return
            deaths = 1 if answered >= self._pace.steady else deaths + 1
            words = f"it {run.ending}{run.last_words()}"
            if not self._has_answered:
                self._give_up(f"vLLM did not start: {words}")
                return
            if deaths >= self._pace.most:
                self._give_up(f"vLLM died {deaths} times in a row and is not started again: {words}")
                return
            pause = min(self._pace.first * 2 ** (deaths - 1), self._pace.longest)
            log.warning("vLLM: %s; it is started again in %g s", words, pause)
            self._why = f"it {run.ending} and is started again"
            self._closing.wait(pause)

    def _follow(self, run: _Run) -> float:
        """Watch one run until it has ended, is sick or is to end; gives for how long it answered."""
        since, sick, next_look = 0.0, 0, 0.0
        log.info("vLLM is process %d; it writes %s", run.pid, self._log)
        while not self._closing.wait(self._pace.look) and run.is_alive:
            if time.monotonic() < next_look:
                continue
            status = self._health()
            if status == httpx.codes.OK and not since:
                since = time.monotonic()
                log.info("vLLM answers at %s", self.url)
                self._answers()
            sick = sick + 1 if since and status == httpx.codes.SERVICE_UNAVAILABLE else 0
            if sick >= _SICK:
                log.warning("vLLM says that its engine is dead; it is ended")
                break
            next_look = time.monotonic() + (self._pace.health if since and not sick else self._pace.look)
        self._why = "it is ending"
        return time.monotonic() - since if since else 0.0

    def _answers(self) -> None:
        self._why, self._has_answered = "", True
        self._ready.set()

    def _give_up(self, why: str) -> None:
        log.error("%s", why)
        self._gave_up = why

    def _health(self) -> int:
        """Status of its health; 0 where nobody answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=_ASKING_SECONDS, trust_env=False).status_code
        except httpx.HTTPError:
            return 0


class _Run:
    """One run of the server, below its keeper."""

    def __init__(self, command: Sequence[str], path: Path, environment: Mapping[str, str]) -> None:
        self._path = path
        self._begins = path.stat().st_size if path.exists() else 0
        self._keeper = subprocess.Popen(
            [sys.executable, "-P", "-m", "ke_tools.servers.engines._keeper", os.fspath(path), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
        assert self._keeper.stdout is not None
        self.pid = int(self._keeper.stdout.readline() or 0)

    @property
    def is_alive(self) -> bool:
        """Whether it runs, and its keeper."""
        return self._keeper.poll() is None

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._keeper.returncode
        if code < 0:
            return "lost its keeper"
        if code > 128:  # noqa: PLR2004  as a shell has it
            with suppress(ValueError):
                return f"was ended by {signal.Signals(code - 128).name}"
        return f"ended with code {code}"

    def end(self) -> None:
        """Have it end, and wait for that; who does not is killed."""
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with suppress(OSError):
            self._keeper.stdin.close()
        try:
            code = self._keeper.wait(GRACE_SECONDS + _LEEWAY_SECONDS)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            code = self._keeper.wait()
        self._keeper.stdout.close()
        if code < 0 and self.pid:  # the keeper was killed, and could not end it
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The first error of this run and the last lines of its log, to be put behind how it ended."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - _READ, self._begins if self._begins <= size else 0))
                said = file.read(_READ).decode("utf-8", "replace")
        except OSError:
            return "."
        lines = [line for one in said.splitlines() if (line := _PREFIX.sub("", one).strip())]
        errors = [line for line in lines if _IS_ERROR.match(line)]
        told = dict.fromkeys(line[:_SHOWN] for line in [*errors[:1], *lines[-_LINES:]])
        return f"; the log says: {' | '.join(told)}." if told else " without a word."


# -- who runs it, and where --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Where:
    """What ``vllm.json`` says."""

    port: int
    key: str
    model: str
    holder: int


def running(folder: Path) -> bool:
    """Whether a process of the home runs a vLLM just now, or is starting it."""
    if not (folder / _LOCK).exists():
        return False
    if (lock := _locked(folder)) is None:
        return True
    os.close(lock)
    return False


def _locked(folder: Path) -> int | None:
    """Take the lock; ``None`` where another process, or another part of this one, has it."""
    with _writing(folder / _LOCK):
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _read(folder: Path) -> _Where | None:
    try:
        said: Any = json.loads((folder / _RECORD).read_text("utf-8"))
        return _Where(int(said["port"]), str(said["key"]), str(said["model"]), int(said["holder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, where: _Where) -> None:
    said = {"port": where.port, "key": where.key, "model": where.model, "holder": where.holder}
    with _writing(folder / _RECORD), tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:  # of mode 0600
        json.dump(said, file)
    with _writing(folder / _RECORD):
        Path(file.name).replace(folder / _RECORD)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
