"""What ends the wait for a server that hangs: an answer may take minutes, and one that is there meanwhile says what models it has."""

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
    """Sends requests to one server, and looks whether it is there while they wait; one look for all. For any event loop.

    Args:
        look: says whether the server answers what takes no generation; blocks.
    """

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._looking = ThreadPoolExecutor(1, "ke-look")
        self._looked = -math.inf
        self._is_there = True

    async def send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Give the answer with its body unread, which is watched as well.

        Raises:
            Hanging: the server is not there. httpx.HTTPError: as the client has it.
        """
        answer = await self._unless_hanging(client.send(request, stream=True), request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        answer.stream = _Body(answer.stream, lambda part: self._unless_hanging(part, request))
        return answer

    def close(self) -> None:
        """Look no more."""
        self._looking.shutdown(wait=False, cancel_futures=True)

    async def _unless_hanging(self, asked: Awaitable[_T], request: httpx.Request) -> _T:
        loop, has_ended = asyncio.get_running_loop(), False
        due: asyncio.TimerHandle

        def look() -> None:
            nonlocal due
            due = loop.call_later(SECONDS, look)
            try:
                loop.run_in_executor(self._looking, self._look_once).add_done_callback(looked)
            except RuntimeError:  # closed: who waits has what is left of the client's patience
                due.cancel()

        def looked(found: asyncio.Future[bool]) -> None:
            if not found.cancelled() and not found.result() and not has_ended and not patience.expired():
                patience.reschedule(loop.time())

        due = loop.call_later(SECONDS, look)
        try:
            async with asyncio.timeout(None) as patience:
                return await asked
        except TimeoutError as error:
            if patience.expired():
                raise Hanging("it hangs", request=request) from error
            raise
        finally:
            has_ended = True
            due.cancel()

    def _look_once(self) -> bool:
        if time.monotonic() - self._looked >= SECONDS / 2:
            self._is_there = self._look()
            self._looked = time.monotonic()
        return self._is_there


class _Body(httpx.AsyncByteStream):
    """A body whose parts are waited for in a way."""

    def __init__(self, body: httpx.AsyncByteStream, wait: Callable[[Awaitable[bytes]], Awaitable[bytes]]) -> None:
        self._body = body
        self._wait = wait

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._body)
        while part := await self._wait(anext(parts, _END)):
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()
