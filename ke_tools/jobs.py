"""Long work, done by one process of a home: the worker.

A server writes a job's row and calls :func:`ensure_worker`; the worker takes one job after the other, oldest first, and ends when
there was none for a while. It alone holds gradients and an editing copy of a model, so that its end, for want of memory or by a
crash, takes no server with it.

Who holds the lock on ``worker.lock`` in the home is the worker; the kernel frees the lock with the process. A row that is said to
be worked on while the lock is free is thus what a dead worker left; the next one fails it before it does anything else, and no
job is begun twice. So a server calls :func:`ensure_worker` also whenever it is asked about a job that has not ended.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from ke_tools.config import Settings
from ke_tools.errors import Busy, KeToolsError, ResourceExhausted, Unavailable, Unsupported, cannot_write
from ke_tools.memory.joblog import Job, Jobs, bounded

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from ke_tools.memory.ledger import Ledger

log = logging.getLogger("ke_tools.jobs")  # it is run as __main__ too

#: Who does which kind of job, as ``module:function``; imported in the worker only.
HANDLERS: Final[Mapping[str, str]] = {
    "promote": "ke_tools.servers.promoting:run_job",
    "rebuild": "ke_tools.servers.rebuilding:run_job",
    "verify": "ke_tools.servers.verifying:run_job",
}

IDLE_SECONDS: Final = 60.0  # how long the worker, and the model it holds, outlive the last job
BEAT_SECONDS: Final = 0.5  # between two writes of a job's progress
_LOOK_SECONDS: Final = 0.05  # between two looks for a job
_PAUSE_SECONDS: Final = 1.0  # after the ledger could not be written
_PATIENCE_SECONDS: Final = 60.0  # for what came of a job to be written
_LARGEST_LOG: Final = 1 << 20
_LOG_KEPT: Final = 1 << 18
_kept: Final[list[Callable[[], None]]] = []  # see at_end
_FIRST_TO_GO: Final = 500  # of 1000: where memory runs out, Linux ends the worker rather than a server
_LESS: Final = "Free some memory, give fewer edits a call, or take a smaller --dtype."

Handler = Callable[[Settings, "Ledger", Job, "Reporter"], Mapping[str, Any]]
Written = TypeVar("Written")


class Cancelled(BaseException):
    """The job was cancelled; no ``except Exception`` of a handler takes it for a failure of its own."""


class Reporter:
    """Says how far a job is, and hears whether it is to stop.

    Telling costs nothing and touches no disk: a thread writes what was told last, at most every ``beat_seconds`` and once at the
    end. What cannot be written is told again at the next beat; it holds up no work.
    """

    def __init__(self, jobs: Jobs, job: Job, *, beat_seconds: float = BEAT_SECONDS, on_beat: Callable[[], None] = lambda: None) -> None:
        self._jobs = jobs
        self._job = job
        self._beat_seconds = beat_seconds
        self._on_beat = on_beat
        self._told: tuple[str, int, int, str] | None = None
        self._written: tuple[str, int, int, str] | None = None
        self._is_to_stop = False
        self.has_committed = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="ke-progress", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what was told last."""
        self._ended.set()
        self._thread.join()

    def tell(self, stage: str, done: int, total: int, message: str = "") -> None:
        """Say that ``done`` of ``total`` of a stage are done.

        Raises:
            Cancelled: the job is to stop.
        """
        self._told = (stage, done, total, message)
        if self._is_to_stop and not self.has_committed:
            raise Cancelled

    def commit(self, effect: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Let the job take effect and end, in one transaction of the ledger; give what came of it, for the handler to return.

        Args:
            effect: writes into the job's ledger, and returns what came of the job. It may be called again where that could not be kept.

        Raises:
            Cancelled: the job is to stop; nothing took effect.
            Unavailable: the ledger could not be written for a minute; nothing took effect.
        """
        self._write()  # what was told last, as nothing is written of a job that has ended
        found = _patiently(partial(self._jobs.commit, self._job.id, effect))
        if found is None:
            raise Cancelled
        self.has_committed = True
        return found

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            self._write()
            self._on_beat()
        self._write()

    def _write(self) -> None:
        told = self._told
        try:
            if told is None or told is self._written:
                job = self._jobs.get(self._job.tenant, self._job.id)
                self._is_to_stop = job.is_cancelling or job.has_ended
            else:
                self._is_to_stop = self._jobs.tell(self._job.id, *told)
                self._written = told
        except KeToolsError as error:
            log.warning("the progress of %s cannot be written: %s", self._job.id, error)


# -- in a server -----------------------------------------------------------------------------------------------------------------


def ensure_worker(settings: Settings, *, handlers: Mapping[str, str] = HANDLERS, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Start the home's worker unless it runs; return whether it was started. Cheap where it runs.

    The worker outlives this process; what it has to say stands in ``worker.log`` in the home.

    Raises:
        ReadOnly, ResourceExhausted: the home takes no files, or no process can be started.
    """
    if (lock := _take(settings.home)) is None:
        return False
    path = _log_file(settings)
    orders = {"settings": settings.to_json(), "handlers": dict(handlers), "idle_seconds": idle_seconds, "lock": lock}
    try:
        with _appending(path) as output:
            process = subprocess.Popen(
                # -P: the current folder may hold a memory/ of its own, which must not be imported.
                [sys.executable, "-P", "-m", "ke_tools.jobs", json.dumps(orders)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
                cwd="/",
            )
    except OSError as error:
        raise ResourceExhausted(f"the worker could not be started: {error.strerror}.", "Free some memory, then repeat.") from error
    finally:
        os.close(lock)
    threading.Thread(target=_bury, args=(process, path), name="ke-worker-end", daemon=True).start()
    return True


def _bury(process: subprocess.Popen[bytes], path: Path) -> None:
    """Wait for a worker's end; of one that was killed the log tells, as it could not do so itself."""
    code = process.wait()
    if code < 0:
        name = signal.Signals(-code).name
        with suppress(OSError), _appending(path) as output:
            output.write(f"the worker was ended by {name}; without anybody's doing that is for want of memory. {_LESS}\n".encode())


# -- in the worker ---------------------------------------------------------------------------------------------------------------


def run_worker(
    settings: Settings, *, handlers: Mapping[str, str] = HANDLERS, idle_seconds: float = IDLE_SECONDS, lock: int | None = None
) -> None:
    """Do the home's jobs until there was none for ``idle_seconds``; ``lock`` is the worker's lock where it is held already.

    Raises:
        Busy: another process is the worker.
        KeToolsError: the ledger cannot be opened or read, or what came of a job could not be written for a minute.
    """
    from ke_tools.memory.ledger import Ledger

    held = _take(settings.home) if lock is None else lock
    if held is None:
        raise Busy(f"another process is the worker of {settings.home}.", "It takes what is queued; nothing needs to be done.")
    try:
        with Ledger(settings.ledger_file) as ledger:
            while held is not None:
                try:
                    _work(settings, ledger, handlers, idle_seconds)
                finally:
                    _let_go()
                os.close(held)
                # What was queued after the last look but before the lock was free found a worker, and started none.
                held = None
                held = _take(settings.home) if ledger.jobs.is_waiting() else None
    finally:
        if held is not None:
            os.close(held)


def at_end(let_go: Callable[[], None]) -> None:
    """Have something that jobs keep let go when this worker ends, before another process can be the worker."""
    _kept.append(let_go)


def _let_go() -> None:
    while _kept:
        try:
            _kept.pop()()
        except Exception:
            log.exception("something could not be let go")


def _work(settings: Settings, ledger: Ledger, handlers: Mapping[str, str], idle_seconds: float) -> None:
    for job in ledger.jobs.interrupt():
        log.warning("%s: %s", job.id, job.error["message"])
    tidy = partial(_shorten, _log_file(settings))
    idle_since = time.monotonic()
    while True:
        taken: Job | None = None
        pause = _LOOK_SECONDS
        try:
            taken = ledger.jobs.claim() if ledger.jobs.is_waiting() else None
        except Unavailable as error:
            log.warning("no job can be taken: %s", error)
            pause = _PAUSE_SECONDS
        tidy()
        if taken is not None:
            _patiently(_done(settings, ledger, taken, handlers, on_beat=tidy))
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since >= idle_seconds:
            return
        else:
            time.sleep(pause)


def _done(settings: Settings, ledger: Ledger, job: Job, handlers: Mapping[str, str], *, on_beat: Callable[[], None]) -> Callable[[], None]:
    """Do a job; return what writes what came of it."""
    jobs = ledger.jobs
    log.info("%s: %s", job.id, job.kind)
    try:
        with Reporter(jobs, job, on_beat=on_beat) as reporter:
            result = _handler(handlers, job.kind)(settings, ledger, job, reporter)
        return _nothing if reporter.has_committed else partial(jobs.complete, job.id, bounded(result))
    except Cancelled:
        return partial(jobs.stop, job.id)
    except KeToolsError as error:
        log.warning("%s: %s", job.id, error)
        return partial(jobs.fail, job.id, error.as_dict())
    except Exception as error:
        log.exception("%s failed", job.id)
        return partial(jobs.fail, job.id, _ours(error).as_dict())


def _handler(handlers: Mapping[str, str], kind: str) -> Handler:
    if kind not in handlers:
        raise Unsupported(f"nobody does jobs of the kind {kind!r}.", f"Known are {', '.join(sorted(handlers))}.")
    module, _, name = handlers[kind].partition(":")
    handler: Handler = getattr(import_module(module), name)
    return handler


def _ours(error: Exception) -> KeToolsError:
    said = str(error)
    if isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said:  # the last two: torch's words
        return ResourceExhausted(f"memory ran out: {said or type(error).__name__}.", _LESS)
    return KeToolsError(f"{type(error).__name__}: {said}", "This is a defect of ke-tools; worker.log in the home has the details.")


def _nothing() -> None:
    """What is left to write of a job that has committed."""


def _patiently(write: Callable[[], Written]) -> Written:
    """Write what came of a job, as soon as that can be written."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return write()
        except Unavailable as error:
            if time.monotonic() > deadline:
                raise
            log.warning("what came of a job cannot be written: %s", error)
            time.sleep(_PAUSE_SECONDS)


# -- the lock and the log --------------------------------------------------------------------------------------------------------


def _take(home: Path) -> int | None:
    """Become the worker of a home: give the descriptor that holds its lock, ``None`` where another process does."""
    path = home / "worker.lock"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except OSError as error:  # a file system without locks
        os.close(lock)
        raise cannot_write(path, error) from error
    return lock


def _log_file(settings: Settings) -> Path:
    return settings.home / "worker.log"


@contextmanager
def _appending(path: Path) -> Iterator[IO[bytes]]:
    """Open the log; where it cannot be, what is said is lost."""
    _shorten(path)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
    with os.fdopen(descriptor, "ab") as output:
        yield output


def _shorten(path: Path) -> None:
    """Keep the end of a log that has grown too large; who has it open for appending goes on behind it."""
    with suppress(OSError):
        if path.stat().st_size <= _LARGEST_LOG:
            return
        with path.open("r+b") as file:
            file.seek(-_LOG_KEPT, os.SEEK_END)
            end = file.read(_LOG_KEPT)
            file.truncate(0)
            file.seek(0)
            file.write(end)


def main(arguments: Sequence[str] = sys.argv) -> None:
    """Be the worker that a server started; its one argument is the orders that :func:`ensure_worker` writes."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    with suppress(OSError):  # there is no such file on macOS
        Path("/proc/self/oom_score_adj").write_text(str(_FIRST_TO_GO), "ascii")
    orders = json.loads(arguments[1])
    os.set_inheritable(orders["lock"], False)
    try:
        run_worker(
            Settings.from_json(orders["settings"]), handlers=orders["handlers"], idle_seconds=orders["idle_seconds"], lock=orders["lock"]
        )
    except KeToolsError as error:
        log.error("%s", error)  # noqa: TRY400  no defect, so no traceback
        sys.exit(1)


if __name__ == "__main__":
    import_module("ke_tools.jobs").main()  # the module that handlers import, not a second copy of it
