"""The place where the engine is, or will be: loaded in the background, once, and asked for with a time limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Literal

from ke_tools.errors import KeToolsError, ModelLoading, ModelUnavailable
from ke_tools.models.engine import Engine

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
        self._settled = threading.Event()
        self._engine: Engine | None = None
        self._error: KeToolsError | None = None
        self.state: SlotState = "empty"
        self.detail = ""

    def start(self) -> None:
        """Begin loading unless that has happened already; returns at once."""
        with self._lock:
            if self.state in {"loading", "ready", "closed"}:
                return
            self.state, self.detail, self._error = "loading", "loading the model", None
            self._settled.clear()
            threading.Thread(target=self._run, name="ke-model-load", daemon=True).start()

    def engine(self, wait_seconds: float = 0) -> Engine:
        """Give the engine, waiting up to ``wait_seconds`` for it.

        Raises:
            ModelLoading: it is not there yet.
            ModelUnavailable: loading failed; the message says why. The next call tries again.
        """
        self._raise_if_failed()
        self.start()
        self._settled.wait(wait_seconds)
        if self._engine is not None:
            return self._engine
        self._raise_if_failed()
        raise ModelLoading(f"the model is not ready yet ({self.detail}).", f"Ask again in {POLL_AFTER_MS} ms.", poll_after_ms=POLL_AFTER_MS)

    async def engine_async(self, wait_seconds: float = 0) -> Engine:
        """Like :meth:`engine`, without blocking the event loop."""
        if self._engine is not None:
            return self._engine
        return await asyncio.to_thread(self.engine, wait_seconds)

    def peek(self) -> Engine | None:
        """Give the engine if it is there; start nothing."""
        return self._engine

    def close(self) -> None:
        """Free the engine; a load under way is dropped when it ends."""
        with self._lock:
            self.state = "closed"
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _raise_if_failed(self) -> None:
        with self._lock:
            if self.state == "failed" and self._error is not None:
                self.state = "empty"  # told; the cause may be gone by the next question, which tries again
                raise self._error

    def _run(self) -> None:
        try:
            engine = self._load(self._say)
        except KeToolsError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  whatever a foreign loader raises must reach the asker, not die in a thread
            self._fail(ModelUnavailable(f"the model could not be loaded: {type(error).__name__}: {error}", "See `ke-tools doctor`."))
        else:
            with self._lock:
                if self.state == "closed":
                    engine.close()
                else:
                    self._engine, self.state, self.detail = engine, "ready", ""
        self._settled.set()

    def _say(self, what: str) -> None:
        self.detail = what

    def _fail(self, error: KeToolsError) -> None:
        with self._lock:
            self._error, self.state, self.detail = error, "failed", str(error)
