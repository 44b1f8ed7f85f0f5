"""Connections to a server of this machine (issue 7, Bars: added latency), before servers that do what a server may do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpcore
import httpx
import pytest

from ke_tools.servers.engines._direct import Direct, _Backend

pytestmark = pytest.mark.anyio

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops that we run on."""
    return "asyncio", {"use_uvloop": request.param}


@asynccontextmanager
async def asked(
    serve: Serve,
    *,
    timeout: float = 10.0,  # noqa: ASYNC109  of each part
    transport: Direct | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that does as ``serve`` says with each connection."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    transport = transport or Direct(httpx.Limits())
    async with server, httpx.AsyncClient(transport=transport, base_url=f"http://{host}:{port}", timeout=timeout) as client:
        yield client


async def turns(count: int = 20) -> None:
    """Let the loop see what has come."""
    for _ in range(count):
        await asyncio.sleep(0)


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection as the kernel closes one of a process that was killed with something unread."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_request_comes_in_one_piece() -> None:
    """The server is woken up once."""
    pieces: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1_000_000):
            pieces.append(piece)
            writer.write(OK)

    async with asked(serve) as client:
        for _ in range(2):  # the second on the same connection
            assert (await client.post("/", content=b"what?" * 1_000)).text == "ok"
        assert (await client.get("/")).text == "ok"
    assert [piece.split(b"\r\n\r\n")[1] for piece in pieces] == [b"what?" * 1_000, b"what?" * 1_000, b""]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_large_body_arrives_whole(*, is_streamed: bool) -> None:
    """Pictures in a request take megabytes."""
    parts = [bytes([number % 251]) * 40_000 for number in range(100)]

    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(4_000_000) == b"".join(parts)
        writer.write(OK)

    headers = {"content-length": "4000000"}
    async with asked(serve) as client:
        answer = await client.post("/", content=stream() if is_streamed else b"".join(parts), headers=headers)
        assert answer.text == "ok"


async def test_who_refuses_a_body_before_its_end_is_heard() -> None:
    """Fault: a server that answers 413 and closes; what it said counts, not that the rest could not be written."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!")
        await writer.drain()
        await reader.read(65_536)  # or the kernel takes back what was written

    async with asked(serve) as client:
        assert (await client.post("/", content=b"a" * 60_000)).text == "no!"


@pytest.mark.parametrize("size", [2, 100_000])
async def test_what_came_before_a_reset_is_heard(size: int) -> None:
    """Fault: a server that answers and closes with something unread, as who refuses a picture does; the kernel resets then."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: %d\r\n\r\n" % size + b"a" * size)
        await turns()
        reset(writer)

    async with asked(serve) as client, client.stream("POST", "/", content=b"what?" * 5_000_000) as answer:
        await turns(40)  # the caller takes its time
        assert answer.status_code == 413
        assert await answer.aread() == b"a" * size


async def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    """Fault: an idle connection, closed by the server before the next request."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()

    async with asked(serve) as client:
        for number in range(1, 4):
            assert (await client.get("/")).text == "ok"
            await asyncio.sleep(0)
            assert connections == number


async def test_a_connection_that_was_reset_meanwhile_is_not_used_again() -> None:
    """Fault: a server that is killed while a connection is idle; no request ever came through any more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await turns()
        reset(writer)

    async with asked(serve) as client:
        for _ in range(3):
            assert (await client.get("/")).text == "ok"
            await turns(40)


async def test_a_connection_that_is_reset_before_it_is_asked_is_a_write_error() -> None:
    """Fault: it is lost between the look at it and the write; uvloop has an error of its own there, which nobody expects."""
    until = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await until.wait()
        reset(writer)

    async with asked(serve) as client:
        stream = await _Backend().connect_tcp(client.base_url.host, client.base_url.port or 0)
        until.set()
        await turns()
        with pytest.raises(httpcore.WriteError):
            await stream.write(b"what?" * 100_000)
        with pytest.raises(httpcore.ReadError):
            await stream.read(1)
        await stream.aclose()


async def test_what_nobody_asked_for_is_told_nobody() -> None:
    """Fault: a server that answers once too often; the second answer was another caller's."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await turns()
        writer.write(OK.replace(b"ok", b"no"))
        await reader.read()

    async with asked(serve) as client:
        for _ in range(3):
            assert (await client.get("/")).text == "ok"
            await turns(40)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", httpx.RemoteProtocolError),
        (b"nonsense\r\n\r\n", httpx.RemoteProtocolError),
    ],
    ids=["nothing", "torn", "nonsense"],
)
async def test_what_goes_wrong_is_told_as_httpx_tells_it(said: bytes, error: type[Exception]) -> None:
    """So that who asks need not know what the connection is made of."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with asked(serve) as client:
        with pytest.raises(error):
            await client.post("/", content=b"what?")


async def test_a_connection_that_is_reset_is_a_read_error() -> None:
    """Fault: a server that is killed; :func:`_is_worth_repeating` knows the error by its kind."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)  # the rest stays unread, so that the kernel resets
        writer.transport.abort()

    async with asked(serve) as client:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await client.post("/", content=b"what?" * 10_000)


async def test_patience_ends_as_it_was_asked() -> None:
    """Fault: a server that says nothing, one that reads nothing, and one that is not there."""
    until = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await until.wait()

    async with asked(serve, timeout=0.05) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/", content=b"what?")
        with pytest.raises(httpx.WriteTimeout):
            await client.post("/", content=b"what?" * 10_000_000)
        gone = str(client.base_url)
        until.set()
    async with httpx.AsyncClient(transport=Direct(httpx.Limits())) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(gone)


async def test_who_leaves_an_answer_closes_its_connection() -> None:
    """A caller that goes away ends the model's work for it."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"what?")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        await writer.drain()
        assert await reader.read(1) == b""
        left.set()

    async with asked(serve) as client:
        async with client.stream("POST", "/", content=b"what?") as answer:
            async for part in answer.aiter_raw():
                assert part == b"a"
                break
        await asyncio.wait_for(left.wait(), 5)


async def test_who_leaves_at_any_moment_leaves_no_connection_behind() -> None:
    """Fault: callers that go; each might leave a connection that was neither used nor closed, until there could be no more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"what?"):
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
                await turns(2)
                writer.write(b"0\r\n\r\n")

    transport, ended = Direct(httpx.Limits()), 0
    async with asked(serve, transport=transport) as client:
        for count in range(60):
            asking = asyncio.create_task(client.post("/", content=b"what?"))
            await turns(count)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                ended += (await asking).is_success
            pool = transport._pool
            assert isinstance(pool, httpcore.AsyncConnectionPool)
            assert [one for one in pool.connections if not one.is_idle()] == [], count
    assert ended  # so that it was cancelled in all that there is


async def test_who_leaves_the_queue_leaves_its_place() -> None:
    """Fault: a caller that goes just as it is given a connection, of a pool that was full."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"what?")
            writer.write(OK.replace(b"content-length", b"connection: close\r\ncontent-length"))

    async with asked(serve, transport=Direct(httpx.Limits(max_connections=1))) as client:
        for count in range(60):
            first, second = (asyncio.create_task(client.post("/", content=b"what?")) for _ in range(2))
            await turns(count)
            second.cancel()
            assert (await first).text == "ok"
            await asyncio.wait([second])
        assert (await asyncio.wait_for(client.post("/", content=b"what?"), 5)).text == "ok"
