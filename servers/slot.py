"""The place where the engine is, or will be: loaded in the background, once, and asked for with a time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OutOfTime
from contextlib import suppress
from typing import Literal

from ke_tools.errors import KeToolsError, ModelLoading, ModelUnavailable
from ke_tools.models.engine import Engine, Troubled

SlotState = Literal["empty", "loading", "ready", "failed", "closed"]
Say = Callable[[str], None]
POLL_AFTER_MS = 2000


class ModelSlot:
    """Loads an engine in a background thread; a failed load is reported to every asker and may be started again.

    ``load`` is called once a start with a function to which it says what it is doing ("downloading …").
    """

    def __init__(self, load: Callable[[Say], Engine]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._loading: Future[Engine] = Future()  # of the latest start: all who wait for it learn how it ended
        self.state: SlotState = "empty"
        self.detail = ""

    def start(self) -> None:
        """Begin loading unless that has happened already; returns at once."""
        with self._lock:
            if self.state not in {"loading", "ready", "closed"}:
                self._start()

    def engine(self, wait_seconds: float = 0) -> Engine:
        """Give the engine, waiting up to ``wait_seconds`` for it.

        Raises:
            ModelLoading: it is not there yet.
            ModelUnavailable: loading failed; the message says why. The next call tries again.
        """
        loading = self._begun()
        with suppress(OutOfTime, KeToolsError):  # told below
            loading.result(wait_seconds)
        return self._outcome(loading)

    async def engine_async(self, wait_seconds: float = 0) -> Engine:
        """Like :meth:`engine`, without blocking the event loop; whoever waits holds no thread."""
        loading = self._begun()
        if wait_seconds > 0 and not loading.done():
            await _ended(loading, wait_seconds)
        return self._outcome(loading)

    def peek(self) -> Engine | None:
        """Give the engine if it is there; start nothing."""
        return self._engine

    @property
    def trouble(self) -> str:
        """Why an engine that was ready answers nobody just now; else empty. Asks and starts nothing."""
        return self._engine.trouble if isinstance(self._engine, Troubled) else ""

    def close(self) -> None:
        """Free the engine; a load under way is dropped when it ends."""
        with self._lock:
            self.state = "closed"
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _begun(self) -> Future[Engine]:
        """Give the load that is to be waited for; a failed one is given once more, that its failure is told before a new one starts."""
        with self._lock:
            if self.state == "closed":
                raise _closed()
            if self.state == "empty":
                self._start()
            return self._loading

    def _outcome(self, loading: Future[Engine]) -> Engine:
        if not loading.done():
            hint = f"Ask again in {POLL_AFTER_MS} ms."
            raise ModelLoading(f"the model is not ready yet ({self.detail}).", hint, poll_after_ms=POLL_AFTER_MS)
        with self._lock:
            if self.state == "failed" and self._loading is loading:
                self.state = "empty"  # told; the cause may be gone by the next question, which tries again
        return loading.result()

    def _start(self) -> None:
        self.state, self.detail, self._loading = "loading", "loading the model", Future()
        threading.Thread(target=self._run, args=(self._loading,), name="ke-model-load", daemon=True).start()

    def _run(self, loading: Future[Engine]) -> None:
        try:
            engine = self._load(self._say)
        except KeToolsError as error:
            self._fail(loading, error)
        except Exception as error:  # noqa: BLE001  whatever a foreign loader raises must reach the asker, not die in a thread
            unavailable = ModelUnavailable(f"the model could not be loaded: {type(error).__name__}: {error}", "See `ke-tools doctor`.")
            self._fail(loading, unavailable)
        else:
            self._settle(loading, engine)

    def _settle(self, loading: Future[Engine], engine: Engine) -> None:
        with self._lock:
            if self.state != "closed":
                self._engine, self.state, self.detail = engine, "ready", ""
                loading.set_result(engine)
                return
        engine.close()
        loading.set_exception(_closed())

    def _say(self, what: str) -> None:
        self.detail = what

    def _fail(self, loading: Future[Engine], error: KeToolsError) -> None:
        with self._lock:
            if self.state != "closed":
                self.state, self.detail = "failed", str(error)
            loading.set_exception(error)


async def _ended(loading: Future[Engine], seconds: float) -> None:
    """Wait until a load has ended, or for so long."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def tell(_: Future[Engine]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(ended.set)

    loading.add_done_callback(tell)
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await ended.wait()


def _closed() -> ModelUnavailable:
    return ModelUnavailable("the model has been put away, since the server ends.", "Start the server again.")
