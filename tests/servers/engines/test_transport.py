"""The way to another server: what httpx promises still holds over aiohttp's connections (issue 7, §0 and *Bad input*)."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from ke_tools.servers.doors import free_port
from ke_tools.servers.engines._server import limits
from ke_tools.servers.engines._transport import Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Scripted:
    """Gives one connection after the other its words, a text a request, and remembers what it was sent."""

    def __init__(self, *connections: list[bytes], waits: threading.Event | None = None) -> None:
        self.sent: list[bytes] = []
        self.was_left, self.dropped = threading.Event(), threading.Event()
        self._connections, self._waits = connections, waits
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            for answers in self._connections:
                connection, _ = self._listener.accept()
                with connection:
                    for answer in answers:
                        self.sent.append(_whole_request(connection))
                        connection.sendall(answer)
                    if self._waits is not None:
                        connection.settimeout(10)
                        self.was_left.set() if connection.recv(1) == b"" else None
                self.dropped.set()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def _whole_request(connection: socket.socket) -> bytes:
    read = b""
    while b"\r\n\r\n" not in read and (part := connection.recv(65536)):
        read += part
    head, _, body = read.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length and (part := connection.recv(65536)):
        body += part
    return head + b"\r\n\r\n" + body


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    """Makes servers that are closed with the test."""
    made: list[Scripted] = []

    def make(*connections: list[bytes], **options: Any) -> Scripted:
        made.append(Scripted(*connections, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _by(url: str, ask: Callable[[httpx.AsyncClient], Awaitable[Any]], *, seconds: float = 10) -> Any:
    async def asked() -> Any:
        async with httpx.AsyncClient(timeout=seconds, transport=Transport(url, limits())) as client:
            return await ask(client)

    return asyncio.run(asked())


def _post(url: str, *, seconds: float = 10, **content: Any) -> httpx.Response:
    return _by(url, lambda client: client.post(f"{url}/chat/completions", **content), seconds=seconds)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"what is this\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", httpx.RemoteProtocolError),
    ],
)
def test_a_request_whose_answer_breaks_off_is_sent_once_and_told(
    scripted: Callable[..., Scripted], answer: bytes, error: type[Exception]
) -> None:
    """Issue 7, *Bad input*: a server that dies; what it may have begun to answer is never asked for a second time."""
    server = scripted([answer], [OK])
    with pytest.raises(error):
        _post(server.url, content=b"{}")
    assert len(server.sent) == 1


def test_nobody_there_is_a_connect_error() -> None:
    """The circuit and `_open` tell connections that did not come about from answers that did not."""
    with pytest.raises(httpx.ConnectError):
        _post(f"http://127.0.0.1:{free_port()}/v1")


def test_a_slow_answer_is_a_read_timeout() -> None:
    """Issue 7, *Bad input*: a slow server (timeouts); one of connecting would be tried again."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(httpx.ReadTimeout):
        _post(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", seconds=0.2)


def test_a_connection_that_the_server_dropped_meanwhile_is_not_asked_by(scripted: Callable[..., Scripted]) -> None:
    """A server gives up idle connections whenever it likes; the next request takes a new one."""
    server = scripted([OK], [OK])

    async def twice(client: httpx.AsyncClient) -> list[str]:
        first = await client.post(f"{server.url}/a", content=b"1")
        await asyncio.to_thread(server.dropped.wait, 10)
        await asyncio.sleep(0)  # the loop hears of it
        second = await client.post(f"{server.url}/b", content=b"2")
        return [first.text, second.text]

    assert _by(server.url, twice) == ["ok", "ok"]
    assert [sent[:7] for sent in server.sent] == [b"POST /v", b"POST /v"]


def test_one_connection_serves_several_requests(scripted: Callable[..., Scripted]) -> None:
    """A new connection for each would cost more than all else."""
    server = scripted([OK, OK, OK])

    async def thrice(client: httpx.AsyncClient) -> list[str]:
        return [(await client.get(f"{server.url}/models")).text for _ in range(3)]

    assert _by(server.url, thrice) == ["ok"] * 3


def test_one_callers_cookie_is_not_sent_with_anothers_request(scripted: Callable[..., Scripted]) -> None:
    """Never another tenant's: all callers share the connections."""
    server = scripted([OK.replace(b"\r\n\r\n", b"\r\nset-cookie: who=me; path=/\r\n\r\n"), OK])

    async def twice(client: httpx.AsyncClient) -> list[str]:
        answers = [await client.get(f"{server.url}/models") for _ in range(2)]
        return [name for answer in answers for name in answer.headers]

    assert "set-cookie" not in _by(server.url, twice)
    assert b"cookie" not in server.sent[1].lower()


def test_headers_go_and_come_to_the_byte(scripted: Callable[..., Scripted]) -> None:
    """Issue 7, §0: whatever is not ours passes; long ones, and what is no ASCII."""
    long = b"x" * 20_000
    server = scripted([b"HTTP/1.1 200 Fine\r\nX-Long: " + long + b"\r\nX-Name: \xc3\xa9\xff\r\ncontent-length: 0\r\n\r\n"])
    answer = _post(server.url, content=b"{}", headers=[(b"X-Mine", "é".encode()), (b"X-Mine", b"two")])
    assert dict(answer.headers.raw)[b"X-Long"] == long
    assert dict(answer.headers.raw)[b"X-Name"] == b"\xc3\xa9\xff"
    assert answer.reason_phrase == "Fine"
    assert b"x-mine: \xc3\xa9\r\nx-mine: two" in server.sent[0].lower().replace(b"\xc3\x89", b"\xc3\xa9")


def test_no_header_is_sent_that_nobody_gave(scripted: Callable[..., Scripted]) -> None:
    """A content type guessed for the caller would be read by the server."""
    server = scripted([OK])

    async def bare(client: httpx.AsyncClient) -> None:
        request = httpx.Request("POST", f"{server.url}/x", content=b"{}")
        await (await client.send(request)).aread()

    _by(server.url, bare)
    names = {line.split(b":")[0].lower() for line in server.sent[0].split(b"\r\n\r\n")[0].split(b"\r\n")[1:]}
    assert names == {b"host", b"content-length"}


def test_a_path_goes_as_it_is_escaped(scripted: Callable[..., Scripted]) -> None:
    """`%2F` and `/` lead to different places."""
    server = scripted([OK])
    _by(server.url, lambda client: client.get(f"{server.url}/files/a%2Fb%20c?q=%2B+1"))
    assert server.sent[0].startswith(b"GET /v1/files/a%2Fb%20c?q=%2B+1 HTTP/1.1")


def test_a_compressed_body_comes_as_it_is_where_it_is_passed_on(scripted: Callable[..., Scripted]) -> None:
    """Issue 7, §0: byte for byte."""
    packed = gzip.compress(b"hello")
    server = scripted([b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(packed) + packed])

    async def raw(client: httpx.AsyncClient) -> bytes:
        async with client.stream("GET", f"{server.url}/models") as answer:
            return b"".join([part async for part in answer.aiter_raw()])

    assert _by(server.url, raw) == packed


def test_an_answer_let_go_of_early_ends_at_the_server(scripted: Callable[..., Scripted]) -> None:
    """A client that leaves ends the generation: the server must see it."""
    server = scripted([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"], waits=threading.Event())

    async def some(client: httpx.AsyncClient) -> bytes:
        async with client.stream("POST", f"{server.url}/x", content=b"{}") as answer:
            return await anext(answer.aiter_raw())

    assert _by(server.url, some) == b"half"
    assert server.was_left.wait(10)


def test_the_environments_proxy_is_used_but_for_what_it_leaves_out(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As httpx does by itself."""
    proxy, server = scripted([OK]), scripted([OK])
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    _by(server.url, lambda client: client.get(f"{server.url}/models"))
    assert (len(proxy.sent), len(server.sent)) == (0, 1)
    _by("http://elsewhere.invalid/v1", lambda client: client.get("http://elsewhere.invalid/v1/models"))
    assert proxy.sent[0].startswith(b"GET http://elsewhere.invalid/v1/models HTTP/1.1")
