"""What ends the wait for an answer that takes too long, and sooner where the server hangs.

An answer may take minutes, and a server that is there meanwhile says what models it has.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import httpx

__all__ = ["Hanging", "Watch"]

SECONDS: Final = 15.0  # without a byte, until it is looked whether the server is there, and again
_T = TypeVar("_T")
_END: Final = b""  # no part of a body is empty


class Hanging(httpx.ReadTimeout):
    """A server gives no byte of an answer, nor says what models it has."""


class Watch:
    """Sends requests to one server, and may look whether it is there while they wait; one look for all. For any event loop.

    Args:
        look: says whether the server answers what takes no generation; blocks.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._looking = ThreadPoolExecutor(1, "ke-look")
        self._looked = -math.inf
        self._is_there = True

    async def send(self, client: httpx.AsyncClient, request: httpx.Request, seconds: float | None, *, looks: bool) -> httpx.Response:
        """Give the answer with its body unread, which is waited for in the same way until it is closed.

        Args:
            client: that asks.
            request: without a timeout for reading, since a timer for each part costs more than to wait for it.
            seconds: most that may pass without a byte; before the first, connecting and asking count too.
            looks: whether the server is looked at meanwhile.

        Raises:
            Hanging: the server is not there. httpx.HTTPError: as the client has it.
        """
        patience = _Patience(request, math.inf if seconds is None else seconds, self.look if looks else None)
        try:
            answer = await patience.wait_for(client.send(request, stream=True))
        except BaseException:
            patience.end()
            raise
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        answer.stream = _Body(answer.stream, patience)
        return answer

    def look(self) -> asyncio.Future[bool]:
        """Look whether the server is there, in a thread.

        Raises:
            RuntimeError: the watch is closed.
        """
        return asyncio.get_running_loop().run_in_executor(self._looking, self._look_once)

    def close(self) -> None:
        """Look no more."""
        self._looking.shutdown(wait=False, cancel_futures=True)

    def _look_once(self) -> bool:
        if time.monotonic() - self._looked >= SECONDS / 2:
            self._is_there = self._look()
            self._looked = time.monotonic()
        return self._is_there


class _Patience:
    """Waits for one answer, part by part, by one timer: when it fires too early, as a part has come since, it is set anew."""

    def __init__(self, request: httpx.Request, seconds: float, look: Callable[[], asyncio.Future[bool]] | None) -> None:
        self._request = request
        self._seconds = seconds
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._wait: asyncio.Timeout | None = None  # under way
        self._end = self._due = 0.0  # when it was long enough, and when there is something to do, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self._hangs = False  # as far as who waits for this part knows

    async def wait_for(self, part: Awaitable[_T]) -> _T:
        """Wait for a part.

        Raises:
            Hanging: the server is not there. httpx.ReadTimeout: it took too long.
        """
        self._begin()
        try:
            async with asyncio.timeout(None) as wait:
                self._wait = wait
                return await part
        except TimeoutError as error:
            if wait.expired():
                kind, said = (Hanging, "it hangs") if self._hangs else (httpx.ReadTimeout, "no byte came in time")
                raise kind(said, request=self._request) from error
            raise
        finally:
            self._wait = None

    def end(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._hangs = False
        self._end = self._loop.time() + self._seconds
        self._look_later()
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._be_due)

    def _look_later(self) -> None:
        self._due = self._end if self._look is None else min(self._end, self._loop.time() + SECONDS)

    def _be_due(self) -> None:
        self._timer = None
        if (wait := self._wait) is None or wait.expired():
            return
        if (now := self._loop.time()) >= self._end:
            wait.reschedule(now)
            return
        if now >= self._due and self._look is not None:
            self._look_later()
            try:
                self._look().add_done_callback(lambda found: self._looked(wait, found))
            except RuntimeError:  # closed: who waits has what is left of its patience
                self._look, self._due = None, self._end
        self._timer = self._loop.call_at(self._due, self._be_due)

    def _looked(self, wait: asyncio.Timeout, found: asyncio.Future[bool]) -> None:
        if not found.cancelled() and not found.result() and wait is self._wait and not wait.expired():
            self._hangs = True
            wait.reschedule(self._loop.time())


class _Body(httpx.AsyncByteStream):
    """A body whose parts are waited for with patience."""

    def __init__(self, body: httpx.AsyncByteStream, patience: _Patience) -> None:
        self._body = body
        self._patience = patience

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._body)
        while part := await self._patience.wait_for(anext(parts, _END)):
            yield part

    async def aclose(self) -> None:
        self._patience.end()
        await self._body.aclose()
