"""The thread that owns the model: it gathers waiting requests into batches and lets the batches take turns, step by step."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from ke_tools.errors import KeToolsError, ModelUnavailable, ResourceExhausted
from ke_tools.servers.engines._adapters import Adapters, names_in
from ke_tools.servers.engines._batch import Batch, Forward
from ke_tools.servers.engines._row import Row

MOST_ROWS: Final = 32  # of one batch
_MOST_URGENT: Final = 64  # rows under way that somebody waits for
_MOST_COLUMNS: Final = 32_768  # of a new batch, padding and answers included
_REFILL: Final = 8  # rows of the bulk that must have ended before new ones join: joining copies the cache


@dataclass(slots=True)
class _Task:
    """Something to do with the adapters between two steps, once no row uses ``free_of``."""

    run: Callable[[Adapters], None]
    done: Future[None]
    free_of: str = ""


class Worker:
    """Runs rows. :meth:`submit`, :meth:`perform` and :meth:`close` may be called from any thread."""

    def __init__(
        self,
        forward: Forward,
        adapters: Adapters,
        *,
        ends: frozenset[int],
        pad_id: int,
        device: torch.device,
        step_tokens: int,
        threads: int | None = None,
    ) -> None:
        self._forward, self._adapters = forward, adapters
        self._ends, self._pad_id, self._device, self._step_tokens = ends, pad_id, device, step_tokens
        self._threads = threads
        self._wake = threading.Condition()
        self._urgent: deque[Row] = deque()
        self._bulk: deque[Row] = deque()
        self._tasks: deque[_Task] = deque()
        self._batches: list[Batch] = []
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ke-engine", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Row]) -> None:
        """Queue rows; their sinks hear of everything that follows.

        Raises:
            ModelUnavailable: the engine was closed.
        """
        with self._wake:
            if self._closed:
                raise _closed()
            for row in rows:
                (self._urgent if row.is_urgent else self._bulk).append(row)
            self._wake.notify()

    def perform(self, task: Callable[[Adapters], None], *, free_of: str = "") -> Future[None]:
        """Have the adapters changed between two steps, when no row uses the adapter ``free_of`` any more."""
        done: Future[None] = Future()
        with self._wake:
            if self._closed:
                raise _closed()
            self._tasks.append(_Task(task, done, free_of))
            self._wake.notify()
        return done

    def close(self) -> None:
        """End after the present step; rows that are not done fail. Waits for the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=30)

    def _work(self) -> None:
        if self._threads:
            torch.set_num_threads(self._threads)  # OpenMP counts its threads for each calling thread
        while self._wait():
            self._run_tasks()
            self._admit()
            for batch in list(self._batches):
                self._step(batch)
            self._batches = [batch for batch in self._batches if batch.rows]
            self._join()
        self._end()

    def _wait(self) -> bool:
        """Sleep until there is something to do; say whether to go on."""
        with self._wake:
            while not (self._closed or self._batches or self._urgent or self._bulk or self._tasks):
                self._wake.wait()
            return not self._closed

    def _run_tasks(self) -> None:
        with self._wake:
            adapters = {row.request.adapter for row in (*self._urgent, *self._bulk)} | {batch.adapter for batch in self._batches}
            busy = {name for adapter in adapters for name in names_in(adapter)}
            ready = [task for task in self._tasks if not task.free_of or task.free_of not in busy]
            self._tasks = deque(task for task in self._tasks if task not in ready)
        for task in ready:
            try:
                task.run(self._adapters)
            except Exception as error:  # noqa: BLE001  the caller gets it
                task.done.set_exception(error)
            else:
                task.done.set_result(None)

    def _admit(self) -> None:
        """Make new batches of what waits, as far as there is room."""
        under_way = [row.is_urgent for batch in self._batches for row in batch.rows]
        urgent, bulk = sum(under_way), len(under_way) - sum(under_way)
        with self._wake:
            new = self._take(self._urgent, min(MOST_ROWS, _MOST_URGENT - urgent))
            others = self._take(self._bulk, MOST_ROWS - bulk if bulk <= MOST_ROWS - _REFILL else 0)
        self._open(new)
        self._open(others)

    def _open(self, rows: Sequence[Row]) -> None:
        with _blaming(lambda: rows):
            if rows:
                self._batches.append(Batch(rows, pad_id=self._pad_id, device=self._device))

    def _take(self, waiting: deque[Row], count: int) -> list[Row]:
        """Take the first row and those after it that fit to it: the same adapter, not too much padding."""
        taken: list[Row] = []
        left: deque[Row] = deque()
        while waiting and len(taken) < count:
            row = waiting.popleft()
            if row.is_cancelled:
                row.finish("cancelled")
            elif not taken or (row.request.adapter == taken[0].request.adapter and _columns([*taken, row]) <= _MOST_COLUMNS):
                taken.append(row)
            else:
                left.append(row)
        waiting.extendleft(reversed(left))
        return taken

    def _step(self, batch: Batch) -> None:
        """Take one step; an error ends this batch's rows and no others."""
        with _blaming(batch.give_up):
            self._drop_cancelled(batch)
            if not batch.rows:
                return
            self._adapters.use(batch.adapter)
            logits = batch.advance(self._forward, self._step_tokens)
            if logits is not None:
                self._deal(batch, logits)

    def _deal(self, batch: Batch, logits: torch.Tensor) -> None:
        """Give each row its next token; let the finished ones go."""
        likeliest = logits.argmax(dim=-1).tolist()
        if bool(logits.amax(dim=-1).isnan().any()):
            raise KeToolsError("the model's output is not a number.", "Try --dtype float32; a damaged checkpoint does this too.")
        places, tokens = [], []
        for place, row in enumerate(batch.rows):
            choice = row.choose(logits[place], likeliest[place])
            if not row.accept(choice, self._ends):
                places.append(place)
                tokens.append(choice.token)
        batch.keep(places)
        if places:
            batch.append(tokens)

    def _drop_cancelled(self, batch: Batch) -> None:
        gone = [row for row in batch.rows if row.is_cancelled]
        if gone:
            batch.keep([place for place, row in enumerate(batch.rows) if not row.is_cancelled])
            for row in gone:
                row.finish("cancelled")

    def _join(self) -> None:
        """Put batches together where that saves steps."""
        joined: list[Batch] = []
        for batch in self._batches:
            host = next((host for host in joined if host.can_absorb(batch, MOST_ROWS)), None)
            if host is None:
                joined.append(batch)
            else:
                _merge(host, batch)
        self._batches = joined

    def _end(self) -> None:
        with self._wake:
            rows = [*self._urgent, *self._bulk, *(row for batch in self._batches for row in batch.rows)]
            tasks = list(self._tasks)
            self._urgent.clear()
            self._bulk.clear()
            self._tasks.clear()
            self._batches = []
        for row in rows:
            row.fail(_closed())
        for task in tasks:
            task.done.set_exception(_closed())
        del self._forward, self._adapters  # the model's memory


def _merge(host: Batch, guest: Batch) -> None:
    with _blaming(lambda: [*host.give_up(), *guest.give_up()]):
        host.absorb(guest)


@contextmanager
def _blaming(rows: Callable[[], Sequence[Row]]) -> Iterator[None]:
    """Let an error end these rows; the thread lives on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever the model raises belongs to the rows that it was working on
        for row in rows():
            row.fail(_explained(error))


def _columns(rows: Sequence[Row]) -> int:
    return len(rows) * max(row.width + row.budget for row in rows)


def _closed() -> ModelUnavailable:
    return ModelUnavailable("the engine was closed.", "Load the model again.")


def _explained(error: Exception) -> KeToolsError:
    """Turn what a model raised into an error of ours, a new one for each row."""
    if isinstance(error, KeToolsError):
        return type(error)(error.message, error.hint, **error.data)
    text = " ".join(str(error).split())[:400]
    lacks_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
    if lacks_memory:
        return ResourceExhausted(f"not enough memory for this batch: {text}", "Ask again with fewer or shorter requests.")
    return KeToolsError(f"the model failed: {type(error).__name__}: {text}", "The engine goes on; see the log if it happens again.")
