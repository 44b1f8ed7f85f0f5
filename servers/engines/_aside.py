"""An event loop of its own in a thread, for who may block and yet wants to be told when there is nothing to wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

__all__ = ["Aside"]

_END_SECONDS: Final = 2.0
_T = TypeVar("_T")


class Aside:
    """Runs coroutines; its thread starts with the first, and keeps no process from ending. Thread safe.

    Args:
        name: of the thread.
        at_end: is called in the loop when nothing runs any more.
    """

    def __init__(self, name: str, at_end: Callable[[], Awaitable[None]]) -> None:
        self._name, self._at_end = name, at_end
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_ended = False

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for what comes of it; not for a thread with an event loop.

        Raises:
            concurrent.futures.CancelledError: this is closed.
        """
        with self._starting:
            if self._has_ended:
                work.close()
                raise concurrent.futures.CancelledError
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_turn, args=[self._loop], name=self._name, daemon=True).start()
            running = asyncio.run_coroutine_threadsafe(work, self._loop)
        return running.result()

    def close(self) -> None:
        """Break off what runs."""
        with self._starting:
            self._has_ended, loop, self._loop = True, self._loop, None
        if loop is not None:
            ending = asyncio.run_coroutine_threadsafe(_break_off(self._at_end), loop)
            with suppress(concurrent.futures.TimeoutError):
                ending.result(_END_SECONDS)
            loop.call_soon_threadsafe(loop.stop)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _break_off(at_end: Callable[[], Awaitable[None]]) -> None:
    under_way = asyncio.all_tasks() - {asyncio.current_task()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    await at_end()
