"""The way to another server that requests are passed on by: httpx's client over aiohttp's connections.

httpx's own connections are three libraries of Python, which cost a request that is passed on more time than all that is done with it
here (`benchmarks/LOG.md`). What httpx does otherwise stays so: errors are its errors, a request is sent once, redirects and compressed
bodies come as they are, the environment's proxies are used. Cookies, which httpx's client would send with the next caller's request, are
kept by nobody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
from yarl import URL

__all__ = ["Transport"]

_LONGEST_HEADER: Final = 65_536  # bytes
_ERRORS: Final = (  # the first that fits
    (aiohttp.ConnectionTimeoutError, httpx.ConnectTimeout),
    ((aiohttp.ServerTimeoutError, TimeoutError), httpx.ReadTimeout),
    (aiohttp.ClientConnectorError, httpx.ConnectError),
    ((aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientResponseError), httpx.RemoteProtocolError),
    ((aiohttp.ClientError, OSError), httpx.ReadError),
)


class Transport(httpx.AsyncBaseTransport):
    """Connections of one event loop, to servers whose addresses begin alike.

    Args:
        address: what all begin with.
        limits: how many connections, and how long one is kept that nobody uses.
    """

    def __init__(self, address: str, limits: httpx.Limits) -> None:
        parts = httpx.URL(address)
        self._limits = limits
        self._tls = httpx.create_ssl_context() if parts.scheme == "https" else False
        self._proxy = None if proxy_bypass(parts.host) else getproxies().get(parts.scheme)
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and give its answer with the body unread."""
        session = self._session = self._session or self._new_session()
        patience = request.extensions.get("timeout", {})
        with _as_httpx():
            answer = await session.request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=[(name.decode("ascii"), _text(value)) for name, value in request.headers.raw],
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=patience.get("pool"), sock_connect=patience.get("connect"), sock_read=patience.get("read")
                ),
            )
        headers = [(name, value) for name, value in answer.raw_headers if name.lower() != b"set-cookie"]
        told = {"http_version": b"HTTP/1.1", "reason_phrase": (answer.reason or "").encode("utf-8", "surrogateescape")}
        return httpx.Response(answer.status, headers=headers, stream=_Body(answer), request=request, extensions=told)

    async def aclose(self) -> None:
        """Let the connections go."""
        if self._session is not None:
            await self._session.close()

    def _new_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._limits.max_connections or 0, keepalive_timeout=self._limits.keepalive_expiry, ssl=self._tls
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            auto_decompress=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
            proxy=self._proxy,
        )


class _Body(httpx.AsyncByteStream):
    """An answer's bytes as they come; the connection is kept where it was read to its end."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._answer.content.iter_any():
                yield part

    async def aclose(self) -> None:
        self._answer.close()


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        fits = next(theirs for ours, theirs in _ERRORS if isinstance(error, ours))
        raise fits(str(error) or type(error).__name__) from error


def _text(value: bytes) -> str:
    """A header's value as aiohttp takes it, which writes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
