"""A server that hangs, over real connections (issue 7, bad input: dead or slow), and one that only takes long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from ke_tools.errors import ModelUnavailable
from ke_tools.models.engine import Request
from ke_tools.servers.engines import _server, _watch
from ke_tools.servers.engines._server import Server
from ke_tools.servers.engines.upstream import Upstream

ASKED = Request(prompt="The", max_tokens=1)
WHOLE = json.dumps({"choices": [{"text": "said", "finish_reason": "stop"}], "usage": {}}).encode()
PARTS = [b'data: {"choices": [{"text": "sa"}]}\n\n', b'data: {"choices": [{"text": "id", "finish_reason": "stop"}]}\n\n']


class Moody(ThreadingHTTPServer):
    """Gives the first ``begins`` parts of an answer, and the rest when it is let; says what models it has, or hangs there too."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.begins = 0
        self.status = 200  # of the list of its models
        self.is_there = True
        self.owned_by = "vllm"
        self.looked = threading.Semaphore(0)
        self.looks = 0
        self.posted = threading.Semaphore(0)
        self.going_on = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Moody

    def do_GET(self) -> None:
        self.server.looks += 1
        self.server.looked.release()
        if not self.server.is_there:
            self.server.going_on.wait(30)
        self._say(json.dumps({"data": [{"id": "m", "owned_by": self.server.owned_by}]}).encode(), self.server.status)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.posted.release()
        if not asked.get("stream"):
            self.server.going_on.wait(30)
            self._say(WHOLE)
            return
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in PARTS]
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.wfile.write(b"".join([head, *parts[: self.server.begins]]) if self.server.begins else b"")
        self.server.going_on.wait(30)
        rest = parts[self.server.begins :]
        self.wfile.write(b"".join([b"" if self.server.begins else head, *rest, b"0\r\n\r\n"]))

    def _say(self, said: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def handle(self) -> None:
        """Serve, and say nothing of who left."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moody]:
    """One that listens, and is looked at often."""
    monkeypatch.setattr(_watch, "SECONDS", 0.05)
    with Moody() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server
        server.going_on.set()
        server.shutdown()
        thread.join(10)


@pytest.fixture
def hanging(moody: Moody, monkeypatch: pytest.MonkeyPatch) -> Moody:
    """The same that hangs; a look at it does not take as long as usual."""
    monkeypatch.setattr(_server, "_ASKING_SECONDS", 0.2)
    moody.is_there = False
    return moody


@pytest.fixture
def watched(moody: Moody) -> Iterator[Server]:
    """What asks it."""
    server = Server(moody.url, is_watched=True)
    yield server
    server.close()


def ask(server: Server) -> str:
    """An answer as a whole, for who blocks."""
    return server.ask(ASKED, "m", 1).text


def stream(server: Server) -> str:
    """The same in pieces."""

    async def said() -> str:
        return "".join([piece.text async for piece in server.stream(ASKED, "m", 1)])

    return asyncio.run(said())


WAYS = [ask, stream]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begins", [0, 1])
def test_who_waits_at_a_server_that_hangs_is_told(hanging: Moody, watched: Server, way: Callable[[Server], str], begins: int) -> None:
    """Not after the ten minutes that an answer may take; also where the answer has begun."""
    hanging.begins = begins
    began = time.monotonic()
    with pytest.raises(ModelUnavailable, match="it hangs"):
        way(watched)
    assert time.monotonic() - began < 10


def test_a_stream_that_is_passed_on_ends_where_its_server_hangs_in_the_middle(hanging: Moody, watched: Server) -> None:
    """What came is the caller's; the connection is not kept open for nothing."""
    hanging.begins = 1
    came = []

    async def passed() -> None:
        async with watched.new_client() as client:
            answer = await watched.send(client, "POST", "/completions", content=b'{"stream": true}')
            async for part in answer.aiter_raw():
                came.append(part)  # noqa: PERF401  what came before it broke off is looked at

    with pytest.raises(httpx.ReadTimeout, match="it hangs"):
        asyncio.run(passed())
    assert came == PARTS[:1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("begins", [0, 1])
def test_a_slow_answer_of_a_server_that_is_there_is_waited_for(
    moody: Moody, watched: Server, way: Callable[[Server], str], status: int, begins: int
) -> None:
    """A long answer's first byte may take minutes; and a server that is asked too often is there, too."""
    moody.status, moody.begins = status, begins
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(way, watched)
        for _ in range(3):
            assert moody.looked.acquire(timeout=10)
        assert not said.done()
        moody.going_on.set()
        assert said.result(10) == "said"


def test_what_takes_too_long_is_told_by_the_time_since_the_last_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input: dead or slow; an answer may take longer as a whole than any part of it."""
    now, came = [0.0], list[bytes]()

    async def passed() -> None:
        parts = asyncio.Queue[bytes]()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0])

        class Body(httpx.AsyncByteStream):
            async def __aiter__(self) -> AsyncIterator[bytes]:
                while True:
                    yield await parts.get()

        async def read(client: httpx.AsyncClient) -> None:
            answer = await server.send(client, "POST", "/completions")
            async for part in answer.aiter_raw():
                came.append(part)

        async def later(seconds: float) -> None:
            now[0] += seconds
            for _ in range(20):
                await asyncio.sleep(0)

        server = Server("http://127.0.0.1:9")
        async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(200, stream=Body())), timeout=600) as client:
            reading = asyncio.create_task(read(client))
            for number in range(3):
                await later(400)
                parts.put_nowait(b"%d" % number)
            await later(0)
            assert came == [b"0", b"1", b"2"]
            await later(599)
            assert not reading.done()
            await later(1)
            with pytest.raises(httpx.ReadTimeout, match="in time"):
                await reading

    asyncio.run(passed())


def test_what_was_found_while_one_part_came_says_nothing_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input: dead or slow, and which of the two is told."""
    monkeypatch.setattr(_watch, "SECONDS", 0.01)

    async def waited() -> None:
        looked, part = asyncio.Queue[asyncio.Future[bool]](), asyncio.Future[bytes]()

        def look() -> asyncio.Future[bool]:
            looked.put_nowait(found := asyncio.Future[bool]())
            return found

        patience = _watch._Patience(httpx.Request("GET", "http://127.0.0.1:9"), 0.05, look)
        waiting = asyncio.create_task(patience.wait_for(part))
        (await looked.get()).set_result(False)
        part.set_result(b"came")
        assert await waiting == b"came"
        with pytest.raises(httpx.ReadTimeout, match="in time"):
            await patience.wait_for(asyncio.Future[bytes]())
        patience.end()

    asyncio.run(waited())


def test_not_all_who_wait_look(hanging: Moody, watched: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is late must not be asked by hundreds for the list of its models."""
    monkeypatch.setattr(_watch, "SECONDS", 0.3)
    with ThreadPoolExecutor(20) as pool:
        waiting = [pool.submit(ask, watched) for _ in range(20)]
    assert {type(one.exception()) for one in waiting} == {ModelUnavailable}
    assert hanging.looks < 5


@pytest.mark.parametrize(("owner", "is_watched"), [("vllm", True), ("somebody", False)])
def test_behind_upstream_only_a_server_that_answers_beside_its_work_is_looked_at(hanging: Moody, owner: str, is_watched: bool) -> None:
    """One that does one thing at a time gives no list of its models while it generates, and does not hang."""
    hanging.owned_by = owner
    hanging.going_on.set()
    upstream = Upstream(hanging.url)
    try:
        hanging.going_on.clear()
        while hanging.looked.acquire(blocking=False):
            pass
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(upstream.generate, [ASKED])
            assert hanging.looked.acquire(timeout=10 if is_watched else 0.3) == is_watched
            if is_watched:
                assert isinstance(said.exception(10), ModelUnavailable)
            hanging.going_on.set()
    finally:
        upstream.close()


def test_who_waits_is_let_go_when_the_server_is_asked_no_more(moody: Moody) -> None:
    """An engine that ends keeps no thread waiting for ten minutes."""
    server = Server(moody.url)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(ask, server)
        assert moody.posted.acquire(timeout=10)
        server.close()
        assert isinstance(said.exception(10), ModelUnavailable)
    with pytest.raises(ModelUnavailable, match="asked no more"):
        server.cards()


def test_who_waits_for_an_answer_when_nobody_looks_any_more_gets_it(moody: Moody) -> None:
    """An engine that ends leaves what is passed on to its end; no error of the looking goes to the log."""
    server = Server(moody.url, is_watched=True)
    server.close()
    errors: list[dict[str, Any]] = []

    async def said() -> bytes:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(context))
        loop.call_later(0.2, moody.going_on.set)  # a look would have been due before
        async with server.new_client() as client:
            return await (await server.send(client, "POST", "/completions", content=b"{}")).aread()

    assert asyncio.run(said()) == WHOLE
    assert not errors
