"""What listens on a port."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from anyio.abc import SocketStream
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ke_tools.errors import InvalidInput
from ke_tools.servers import doors


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_small_writes_leave_at_once(host: str) -> None:
    """A stream's head and its first event are two writes: held back until the first is acknowledged, each answer would take 40 ms more."""
    try:
        listener = doors.listen(host, 0)
    except InvalidInput:
        pytest.skip(f"this machine has no {host}")
    assert listener is not None
    with listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@asynccontextmanager
async def connected(app: ASGIApp) -> AsyncIterator[SocketStream]:
    """A connection to an app that is served as ours is."""
    listener = doors.listen("127.0.0.1", 0)
    assert listener is not None
    door = doors.Door(listener)
    with listener:
        async with doors.opened(door, app), await anyio.connect_tcp(*door.address) as client:
            yield client


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what came."""
    request = Request(scope, receive)
    await Response(f"{request.method} {len(await request.body())};")(scope, receive, send)


async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse without having read, as who has no token is refused."""
    await Response(status_code=401)(scope, receive, send)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nx: ",
        b"GET /",
        b"\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: ",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;x=",
    ],
    ids=["header", "path", "nothing", "trailer", "chunk"],
)
async def test_who_never_ends_a_line_is_shut_out_before_much_of_it_is_kept(start: bytes) -> None:
    """Nobody is asked for a token before the headers have ended, so that their size alone keeps a stranger from filling the memory."""
    filling = start if start == b"\r\n" else b"a"
    sent, most = 0, 16_000_000
    async with connected(nobody) as client:
        with suppress(anyio.BrokenResourceError):
            await client.send(start)
            while sent < most:
                await client.send(filling * (65_536 // len(filling)))
                sent += 65_536
    assert sent < most


@pytest.mark.anyio
async def test_what_is_within_the_bounds_is_answered() -> None:
    """A long header, a body of megabytes, a few requests at once, and HTTP/2 offered, as Java's client does by default."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 60_000 + b"\r\ncontent-length: 3000000\r\n\r\n"
    few = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 8
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    java = b"POST / HTTP/1.1\r\nhost: x\r\n" + upgrade + b"content-length: 5\r\n\r\nhello"
    async with connected(echo) as client:
        for sent, told in [
            (head + b"a" * 3_000_000, [b"POST 3000000;"]),
            (few, [b"GET 0;"] * 8),
            (java, [b"POST 5;"]),
            (java, [b"POST 5;"]),
            (few, [b"GET 0;"] * 8),
        ]:
            await client.send(sent)
            said = b""
            while said.count(b";") < len(told):
                said += await client.receive()
            assert re.findall(rb"[A-Z]+ \d+;", said) == told
