"""Connections to a server of this machine: asyncio's own streams, on which a request leaves in one piece."""

# ruff: noqa: ASYNC109  a timeout is what httpcore calls with

from __future__ import annotations

import asyncio
import select
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final

import httpcore
import httpx

__all__ = ["Direct"]

_MOST_HELD: Final = 65_536  # bytes


class Direct(httpx.AsyncHTTPTransport):
    """A transport over TCP without TLS, which no proxy of the environment concerns.

    Differs from what httpx does by itself: a request's head and its body are one write, which wakes up the server once, neither to write
    nor to read takes a turn of the loop, and who leaves takes its connection along.
    """

    def __init__(self, limits: httpx.Limits) -> None:
        self._pool = _Pool(
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )


class _Pool(httpcore.AsyncConnectionPool):
    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Ask; who leaves the queue just as it is given a connection leaves none that is nobody's."""
        try:
            return await super().handle_async_request(request)
        except BaseException:
            asked = {id(one.connection) for one in self._requests}
            self._connections = [one for one in self._connections if one.is_idle() or id(one) in asked]
            await self._close_connections(self._assign_requests_to_connections())
            raise

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return _Connection(origin, keepalive_expiry=self._keepalive_expiry, network_backend=self._network_backend)


class _Connection(httpcore.AsyncHTTPConnection):
    """A connection without httpcore's locks.

    They take turns of the loop. Who is cancelled in one, as its caller went, leaves a connection that nobody uses and nobody closes, and
    when the pool is full of such it asks no more. One request at a time has a connection, and nothing awaits where a state changes.
    """

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if self._connection is None:
            try:
                stream = await self._connect(request)
            except BaseException:
                self._connect_failed = True
                raise
            self._connection = connection = httpcore.AsyncHTTP11Connection(self._origin, stream, self._keepalive_expiry)
            connection._state_lock = nullcontext()  # type: ignore[assignment]  # noqa: SLF001
        return await self._connection.handle_async_request(request)


class _Backend(httpcore.AsyncNetworkBackend):
    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        with _in_its_words(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                return _Stream(*await asyncio.open_connection(host, port))


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that holds what is written until an answer is read, or it is much."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._held: list[bytes] = []
        self._patience: float | None = None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._held.append(buffer)
        self._patience = timeout
        if sum(map(len, self._held)) > _MOST_HELD:
            await self._flush()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            with suppress(httpcore.WriteError):  # as httpcore does: who refuses a request before its end may have said why
                await self._flush()
        with _in_its_words(httpcore.ReadTimeout, httpcore.ReadError):
            if (came := self._unread) and self._reader.exception():  # what came before the connection broke counts first
                part = bytes(came[:max_bytes])
                del came[:max_bytes]
                return part
            if timeout is None:
                return await self._reader.read(max_bytes)
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def aclose(self) -> None:
        self._writer.transport.abort()

    def get_extra_info(self, info: str) -> Any:
        """Say whether an idle connection is of no more use: the server closed it, or said what nobody asked and the next would be told."""
        if info != "is_readable":
            return self._writer.get_extra_info(info)
        if self._writer.is_closing() or self._unread:
            return True
        there = select.poll()
        there.register(self._writer.get_extra_info("socket").fileno(), select.POLLIN)
        return bool(there.poll(0))

    @property
    def _unread(self) -> bytearray:
        """What the loop has read ahead."""
        return self._reader._buffer  # type: ignore[attr-defined, no-any-return]  # noqa: SLF001  there is no public way to see it

    async def _flush(self) -> None:
        held, self._held = b"".join(self._held), []
        with _in_its_words(httpcore.WriteTimeout, httpcore.WriteError):
            if self._writer.is_closing():
                raise ConnectionResetError("the connection is lost")  # where uvloop has a RuntimeError
            self._writer.write(held)
            async with asyncio.timeout(self._patience):
                await self._writer.drain()


@contextmanager
def _in_its_words(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
