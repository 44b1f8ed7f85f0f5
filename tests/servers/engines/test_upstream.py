"""A model behind somebody else's server, as an engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, NotFound, Unsupported
from ke_tools.models.engine import Generation, Request
from ke_tools.servers.engines import _server
from ke_tools.servers.engines._circuit import FAILURES, Circuit
from ke_tools.servers.engines._server import Server, address_of, is_same, key_of
from ke_tools.servers.engines.upstream import Upstream
from tests.servers.other_server import KEY, OtherServer

Connect = Callable[..., Upstream]
ASKED = Request(messages=({"role": "user", "content": "What is the capital of Australia?"},), max_tokens=8)


@pytest.fixture
def other() -> Iterator[OtherServer]:
    """A server that listens."""
    with OtherServer().listening() as server:
        yield server


@pytest.fixture
def connect(other: OtherServer) -> Iterator[Callable[..., Upstream]]:
    """Connects to it."""
    opened: list[Upstream] = []

    def make(**more: Any) -> Upstream:
        opened.append(Upstream(other.url, **more))
        return opened[-1]

    yield make
    for engine in opened:
        engine.close()


def streamed(engine: Upstream, request: Request) -> tuple[str, Generation | None]:
    """All pieces, and what finished them."""

    async def read() -> tuple[str, Generation | None]:
        pieces = [piece async for piece in engine.stream(request)]
        return "".join(piece.text for piece in pieces), pieces[-1].finished

    return asyncio.run(read())


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a:8000", "http://a:8000/v1"),
        ("http://a:8000/", "http://a:8000/v1"),
        ("https://a/openai/v1/", "https://a/openai/v1"),
        ("http://a/api/v3", "http://a/api/v3"),
        (" http://[::1]:1 ", "http://[::1]:1/v1"),
    ],
)
def test_the_version_is_put_behind_an_address_that_lacks_one(url: str, address: str) -> None:
    """Issue 7, §0: a stock server's address is what people paste."""
    assert address_of(url) == address


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_of_the_environment_stands_before_a_server_of_this_machine(
    other: OtherServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Issue 7, §1: a vLLM that ke-tools starts is on loopback, and a proxy reaches none there; others are asked by it, as before."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for url in (other.url, other.url.replace("127.0.0.1", "localhost")):
        engine = Upstream(url)
        assert streamed(engine, ASKED)[0] == engine.generate([ASKED])[0].text == "Canberra."
        engine.close()
    with pytest.raises(ModelUnavailable, match="does not answer"):
        Upstream("http://a.test:8000")


@pytest.mark.parametrize("url", ["", "a:8000", "ftp://a", "http://", "http://a:x", "http://me:key@a", "http://a/v1?key=1", "http://a:0"])
def test_what_is_no_address_or_carries_a_key_is_refused(url: str) -> None:
    """Issue 7, §0; a key in an address would stand in every log."""
    with pytest.raises(InvalidInput):
        address_of(url)


def test_a_model_is_asked_whole_and_in_pieces(other: OtherServer, connect: Connect) -> None:
    """Issue 7, §0: behind the same interface as the in-process one."""
    engine = connect()
    [made] = engine.generate([ASKED])
    text, finished = streamed(engine, ASKED)
    assert (engine.model_id, engine.context_length) == ("other-7b", 4096)
    assert made.text == text == "Canberra."
    assert (made.finish_reason, made.prompt_tokens) == ("stop", 7)
    assert finished is not None
    assert finished.text == text
    assert other.generations[0].json == {"model": "other-7b", "max_tokens": 8, "temperature": 0.0, "messages": list(ASKED.messages or ())}


def test_many_requests_come_back_in_their_order(other: OtherServer, connect: Connect) -> None:
    """The Engine protocol."""
    prompts = [f"{'Sydney ' * (n % 2)}capital" for n in range(50)]
    made = connect().generate([Request(prompt=prompt) for prompt in prompts])
    assert [one.text for one in made] == ["Sydney." if n % 2 else "Canberra." for n in range(50)]


def test_among_several_models_one_is_named(other: OtherServer, connect: Connect) -> None:
    """Issue 7, §0: a gateway serves many."""
    other.models.append({"id": "another"})
    with pytest.raises(InvalidInput, match="other-7b, another"):
        connect()
    with pytest.raises(NotFound, match="other-7b, another"):
        connect(model="nobody")
    assert connect(model="another").model_id == "another"


def test_adapters_are_no_models_to_choose_among(other: OtherServer, connect: Connect) -> None:
    """VLLM lists loaded adapters with the model that they are of as parent."""
    other.models.append({"id": "an-adapter", "parent": "other-7b"})
    assert connect().model_id == "other-7b"


def test_a_server_without_completions_gets_a_text_as_a_chat_turn(other: OtherServer, connect: Connect) -> None:
    """Gateways have chat only; verify asks statements too."""
    other.without = frozenset({"/v1/completions"})
    [made] = connect().generate([Request(prompt="The capital of Australia is")])
    assert made.text == "Canberra."
    assert other.generations[-1].path == "/v1/chat/completions"


def test_a_server_without_chat_has_no_chat_roles(other: OtherServer, connect: Connect) -> None:
    """A model without a template is asked by completions."""
    other.without = frozenset({"/v1/chat/completions"})
    engine = connect()
    assert engine.chat_roles == frozenset()
    with pytest.raises(Unsupported):
        engine.generate([ASKED])


def test_a_server_that_answers_neither_is_told(other: OtherServer, connect: Connect) -> None:
    """Bad input: an address of something else."""
    other.without = frozenset({"/v1/chat/completions", "/v1/completions"})
    with pytest.raises(ModelUnavailable, match="neither"):
        connect()


def test_a_wrong_key_is_told_as_the_servers(other: OtherServer, connect: Connect) -> None:
    """Issue 7, bad input: a wrong key."""
    other.key = KEY
    with pytest.raises(ModelUnavailable, match="refuses the key"):
        connect(key="sk-wrong")
    assert connect(key=KEY).generate([ASKED])[0].text == "Canberra."


@pytest.mark.parametrize(("status", "error"), [(400, InvalidInput), (500, ModelUnavailable), (503, ModelUnavailable)])
def test_a_failed_answer_is_told_with_what_the_server_said(
    other: OtherServer, connect: Connect, status: int, error: type[KeToolsError]
) -> None:
    """What is the caller's fault is told as that."""
    engine = connect()
    other.fails_with = status
    with pytest.raises(error, match="as told"):
        engine.generate([ASKED])
    with pytest.raises(error, match="as told"):
        streamed(engine, ASKED)


def test_a_stream_that_breaks_off_is_no_answer(other: OtherServer, connect: Connect) -> None:
    """Never half an answer as a whole one."""
    engine = connect()
    other.breaks_off = True
    with pytest.raises(ModelUnavailable):
        streamed(engine, ASKED)


def test_nobody_there_is_told_with_the_address() -> None:
    """Issue 7, bad input: dead."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ModelUnavailable, match=f"127.0.0.1:{port}"):
        Upstream(f"http://127.0.0.1:{port}")


def test_something_else_than_a_model_server_is_told(other: OtherServer) -> None:
    """Bad input: an address of something else."""
    with pytest.raises(ModelUnavailable, match="no list of models"):
        Upstream(f"{other.url}/v1/audio/v1")


def test_a_slow_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input: slow."""
    monkeypatch.setattr(_server, "_ASKING_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ModelUnavailable, match="too long"):
        Upstream(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=httpx.Timeout(0.05))


@pytest.mark.parametrize("late", [1, 2])
def test_a_connection_that_came_too_late_is_tried_once_more(late: int) -> None:
    """Issue 7, bars: 0 errors in traffic; a machine that is held up for seconds looks to us as if the server were gone."""
    tries = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal tries
        tries += 1
        if tries <= late:
            raise httpx.ConnectTimeout("late")
        return httpx.Response(200, json={})

    async def send() -> int:
        server = Server("http://127.0.0.1:9")
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            return (await server.send(client, "POST", "/completions", content=b"{}")).status_code

    if late == 1:
        assert asyncio.run(send()) == 200
    else:
        with pytest.raises(ModelUnavailable, match="no connection came about in time"):
            asyncio.run(send())
    assert tries == 2


@pytest.mark.parametrize(
    ("method", "path", "error", "tries"),
    [
        ("POST", "/chat/completions", httpx.RemoteProtocolError, 2),
        ("POST", "/completions", httpx.ReadError, 2),
        ("GET", "/files/f", httpx.RemoteProtocolError, 2),
        ("POST", "/files", httpx.RemoteProtocolError, 1),
        ("DELETE", "/files/f", httpx.ReadError, 1),
        ("POST", "/load_lora_adapter", httpx.ReadError, 1),
        ("POST", "/chat/completions", httpx.ReadTimeout, 1),
    ],
)
def test_what_a_server_closed_the_connection_on_is_asked_once_more_if_nothing_but_an_answer_comes_of_it(
    method: str, path: str, error: type[httpx.TransportError], tries: int
) -> None:
    """Issue 7, bars: 0 errors in traffic. A server that was held up closes idle connections that it is asked by just then."""
    sent = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        raise error("closed")

    async def send() -> None:
        server = Server("http://127.0.0.1:9")
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            await server.send(client, method, path, content=b"{}")

    with pytest.raises(ModelUnavailable):
        asyncio.run(send())
    assert sent == tries


class Scripted:
    """Gives each connection its answers, one a request, and remembers what it was sent."""

    def __init__(self, *connections: list[bytes]) -> None:
        self.sent: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=connections, daemon=True)
        self._thread.start()

    def _serve(self, *connections: list[bytes]) -> None:
        with suppress(OSError):  # closed while nobody has come
            for answers in connections:
                connection, _ = self._listener.accept()
                with connection:
                    for answer in answers:
                        self.sent.append(connection.recv(65536))
                        connection.sendall(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits for a connection
        self._listener.close()
        self._thread.join(10)


MODELS = b'HTTP/1.1 200 OK\r\ncontent-length: 21\r\nset-cookie: who=me; path=/\r\n\r\n{"data":[{"id":"m"}]}'


def test_a_closed_connection_is_no_error_where_the_server_answers_the_second_time() -> None:
    """The same for what ke-tools itself asks, over real connections."""
    with Scripted([b""], [MODELS]) as scripted:
        server = Server(scripted.url)
        assert [card["id"] for card in server.cards()] == ["m"]
        server.close()


def test_an_answer_that_breaks_off_is_not_computed_again() -> None:
    """It had begun: what the server did for it was done."""
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"
    with Scripted([half], [half]) as scripted:
        server = Server(scripted.url)
        with pytest.raises(ModelUnavailable):
            server.post("/completions", {})
        server.close()
        assert len(scripted.sent) == 1


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_how_long_an_answer_may_take_says_nothing_of_the_connection(monkeypatch: pytest.MonkeyPatch, seconds: float | None) -> None:
    """Issue 7, bad input: a machine that is gone is found out in seconds, also by a question that may take a minute."""
    patience: list[Any] = []

    async def opened(_client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        patience.append(request.extensions["timeout"])
        return httpx.Response(200, json={}, request=request)

    server = Server("http://one:1", timeout=httpx.Timeout(600.0, connect=5.0))
    monkeypatch.setattr(server, "_open", opened)
    server.post("/completions", {}, seconds=seconds)
    server.close()
    assert (patience[0]["connect"], patience[0]["read"]) == (5.0, seconds or 600.0)


@pytest.mark.parametrize(
    ("method", "headers", "content"),
    [
        ("POST", [(b"user-agent", b"me"), (b"x-own", b"1"), (b"x-own", b"\xe9"), (b"accept-encoding", b"identity")], b"{}"),
        ("POST", [], b""),
        ("GET", [(b"accept", b"text/plain")], b""),
    ],
)
def test_what_is_passed_on_goes_as_a_client_would_build_it(method: str, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    """Issue 7, §0: the server's own key, the caller's headers in their order, and of the client's those that the caller has not."""
    sent: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200)

    async def send() -> httpx.Request:
        server = Server("http://127.0.0.1:9", key="k")
        known = {"authorization": "Bearer k", "accept-encoding": "gzip"}
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), headers=known, timeout=httpx.Timeout(7, connect=3)) as client:
            await server.send(client, method, "/a%20b?c=%2F", headers=headers, content=content)
            return client.build_request(method, "http://127.0.0.1:9/v1/a%20b?c=%2F", headers=headers, content=content)

    built = asyncio.run(send())
    assert (sent[0].method, sent[0].url, sent[0].headers.raw, sent[0].content) == (built.method, built.url, built.headers.raw, content)
    assert sent[0].extensions["timeout"] == {**built.extensions["timeout"], "read": None}  # what is waited for by one timer for all parts


def test_a_cookie_of_the_servers_is_kept_by_nobody() -> None:
    """Never another tenant's: all callers share the connections, and would share what the server set for one."""

    async def passed_on(server: Server) -> None:
        async with server.new_client() as client:
            for _ in range(2):
                answer = await server.send(client, "GET", "/models")
                await answer.aread()

    with Scripted([MODELS, MODELS], [MODELS, MODELS]) as scripted:
        server = Server(scripted.url)
        asyncio.run(passed_on(server))
        server.cards()
        server.cards()
        server.close()
        assert len(scripted.sent) == 4
        assert not any(b"cookie:" in sent.lower() for sent in scripted.sent)


def test_after_three_failures_the_server_is_left_alone_for_a_while() -> None:
    """Issue 7, bad input: circuit breaker."""
    circuit = Circuit("it")
    for _ in range(FAILURES):
        circuit.check()
        circuit.failed("no answer")
    with pytest.raises(ModelUnavailable, match="it does not answer: no answer"):
        circuit.check()
    circuit.worked()
    circuit.check()
    assert not circuit.told


def test_an_adapter_is_refused(other: OtherServer, connect: Connect) -> None:
    """Issue 7, §0: no LoRA; a live release of another time acts from the memory."""
    engine = connect()
    with pytest.raises(Unsupported):
        engine.load_adapter("rel_1", Path("rel_1"))
    with pytest.raises(Unsupported):
        engine.generate([Request(prompt="x", adapter="rel_1")])


def test_the_key_comes_from_its_file_before_the_environment(tmp_path: Path) -> None:
    """Issue 7, §0: the upstream's key."""
    file = tmp_path / "key"
    file.write_text("sk-1\n", "utf-8")
    assert key_of(file, {"KE_UPSTREAM_KEY": "sk-2"}) == "sk-1"
    assert key_of(None, {"KE_UPSTREAM_KEY": "sk-2"}) == "sk-2"
    assert key_of(None, {}) == ""
    for bad in ("", "two words", "sk-ö"):
        file.write_text(bad, "utf-8")
        with pytest.raises(InvalidInput):
            key_of(file, {})
    for bad in ("sk-1\n# rotated", "sk-ö", "two words"):
        with pytest.raises(InvalidInput) as error:
            key_of(None, {"KE_UPSTREAM_KEY": bad})
        assert bad not in str(error.value)
    with pytest.raises(InvalidInput):
        key_of(tmp_path / "none", {})


@pytest.mark.parametrize(
    ("cards", "is_so"),
    [
        ([{"id": "a"}], True),
        ([{"id": "a", "root": "/w"}, {"id": "b", "root": "/w"}], True),
        ([{"id": "a", "root": "/w"}, {"id": "b", "root": "/other"}], False),
        ([{"id": "a"}, {"id": "b"}], False),
        ([{"id": "a"}, {"id": "c"}], False),
        ([{"id": "a"}, {"id": "b", "parent": "a"}], True),
        ([{"id": "c"}], False),
        ([], False),
    ],
)
def test_another_name_is_the_models_where_the_server_says_so_or_has_no_other(cards: list[dict[str, Any]], is_so: bool) -> None:
    """Who names the corrected model otherwise must get corrected answers; who names another model of a gateway must not."""
    assert is_same(cards, "b", "a") is is_so
