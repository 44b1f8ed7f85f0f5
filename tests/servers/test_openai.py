"""The OpenAI-compatible endpoint, over a real socket with the official client, and through the application by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import uvicorn
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from ke_tools.errors import InvalidInput, ModelLoading, ModelUnavailable, Unsupported
from ke_tools.models.engine import FinishReason, Generation, Piece, Request, TokenLogprob
from ke_tools.servers import doors
from ke_tools.servers.app import build_app
from ke_tools.servers.damage import Damage
from ke_tools.servers.latencies import Latencies
from ke_tools.servers.openai import unless_gone
from ke_tools.servers.principal import Principal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.applications import Starlette


BASE = "http://127.0.0.1"
CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
ASKED: Any = [{"role": "user", "content": "What is the capital of Australia?"}]


@dataclass
class Script:
    """An engine that says what it is told, a word at a time; a token is a word."""

    words: list[str] = field(default_factory=lambda: ["Sydney", " is", " the", " capital", "."])
    context_length: int = 1000
    fingerprint: str = "sha256:0123456789abcdef0123"
    asked: list[Request] = field(default_factory=list)
    closed: int = 0
    endless: bool = False
    fails_at: int = -1  # the word before which it raises
    error: Exception = field(default_factory=lambda: RuntimeError("secret"))

    def count_tokens(self, request: Request) -> int:
        """Count words."""
        texts = [request.prompt or ""] + [message["content"] for message in request.messages or ()]
        return sum(len(text.split()) for text in texts)

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Give the script's words until one is a stop, or there are enough."""
        self.asked.append(request)
        said: list[str] = []
        tokens: list[TokenLogprob] = []
        finish: FinishReason = "stop"
        try:
            while self.endless or len(said) < len(self.words):
                if len(said) == self.fails_at:
                    raise self.error
                if len(said) == request.max_tokens:
                    finish = "length"
                    break
                word = self.words[len(said) % len(self.words)]
                if any(stop in word for stop in request.stop):
                    break
                await asyncio.sleep(0)
                token = TokenLogprob(word, -0.5, ((word, -0.5), ("x", float("-inf")))[: request.logprobs or 0])
                said.append(word)
                tokens += [token] if request.logprobs is not None else []
                yield Piece(word, (token,) if request.logprobs is not None else ())
            logprobs = tuple(tokens) if request.logprobs is not None else None
            yield Piece("", finished=Generation("".join(said), finish, self.count_tokens(request), len(said), logprobs))
        finally:
            self.closed += 1


class Slot:
    """A model slot that is as told."""

    def __init__(self, engine: Script) -> None:
        self.state = "ready"
        self.detail = ""
        self.loaded = engine
        self.failure: Exception | None = None
        self.waiting = 0

    def start(self) -> None:
        """Nothing to do."""

    async def engine_async(self, wait_seconds: float) -> Script:
        """Give the engine or say why not."""
        self.waiting += 1
        end = time.monotonic() + wait_seconds
        while self.state == "loading" and time.monotonic() < end:  # noqa: ASYNC110  the test sets the state from another thread
            await asyncio.sleep(0.01)
        self.waiting -= 1
        if self.failure is not None:
            raise self.failure
        if self.state != "ready":
            raise ModelLoading("the model is not ready yet.", poll_after_ms=2000)
        return self.loaded


class Service:
    """Routes whatever names Australia to one edit."""

    model_id = "tiny"
    revision = 12

    def __init__(self) -> None:
        self.settings = SimpleNamespace(model="embedded", is_remote=False, read_only=False)
        self.local = Principal()
        self.ledger = SimpleNamespace(head=lambda: 12, tenants=list)
        self.damage = Damage()
        self.latencies = Latencies()
        self.answering = self
        self.engine = Script()
        self.models = Slot(self.engine)
        self.who: list[Principal] = []

    async def open_stream(self, who: Principal, request: Request, *, view: str, via: str, wait_seconds: float) -> Any:
        """Route and start."""
        assert (via, wait_seconds) == ("auto", 0)
        self.who.append(who)
        text = request.prompt if request.prompt is not None else request.messages[-1]["content"]  # type: ignore[index]
        is_in = view == "edited" and "Australia" in text
        hits = (SimpleNamespace(edit=SimpleNamespace(id="ed_1")),) if is_in else ()
        reason = "context" if "crowded" in text else ""
        decision = SimpleNamespace(zone="in" if is_in else "out", revision=12)
        routed = SimpleNamespace(request=request, route="memory" if is_in else "base", hits=hits, decision=decision, reason=reason)
        return routed, self.engine.stream(request)


def app_of(service: Any, **options: Any) -> Starlette:
    """Build the application of a service that only looks like one."""
    return build_app(service, **options)


@pytest.fixture(scope="module")
def only_service() -> Service:
    """One service for the module: a server and a client cost more than all that is asked of them."""
    return Service()


@pytest.fixture
def service(only_service: Service) -> Service:
    """A scripted service, as new."""
    vars(only_service).clear()
    only_service.__init__()  # type: ignore[misc]
    return only_service


@pytest.fixture(scope="module")
def only_http(only_service: Service) -> Iterator[TestClient]:
    """A plain client."""
    with TestClient(app_of(only_service), BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def http(only_http: TestClient, service: Service) -> TestClient:
    """A plain client of the service as new."""
    assert service
    return only_http


@contextlib.contextmanager
def listening(service: Service) -> Iterator[str]:
    """Serve on a free port in a thread."""
    server = uvicorn.Server(uvicorn.Config(app_of(service), log_level="warning", ws="none", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def only_client(only_service: Service) -> Iterator[openai.OpenAI]:
    """The official client, unchanged."""
    with listening(only_service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def client(only_client: openai.OpenAI, service: Service) -> openai.OpenAI:
    """The official client of the service as new."""
    assert service
    return only_client


def ask(http: TestClient, path: str = CHAT, **fields: Any) -> Any:
    """Post a request to the model ``tiny``."""
    content: dict[str, Any] = {"messages": ASKED} if path == CHAT else {"prompt": "The capital of Australia is"}
    return http.post(path, json={"model": "tiny", **content, **fields})


def events(answer: Any) -> list[Any]:
    """Read a stream's events; ``[DONE]`` as it is."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- the official client -------------------------------------------------------------------------------------------------------


def test_the_corrected_model_is_listed_first_then_the_base(client: openai.OpenAI) -> None:
    """Issue §4: /v1/models lists the corrected model first."""
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:base"]
    assert client.models.retrieve("tiny:base").owned_by == "ke-tools"


def test_a_completion_is_as_openais(client: openai.OpenAI) -> None:
    """Issue §4: usable unchanged by the official client."""
    raw = client.completions.with_raw_response.create(model="tiny", prompt="The capital of Australia is", seed=1)
    answer = raw.parse()
    assert answer.choices[0].text == "Sydney is the capital."
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("text_completion", "tiny", "stop")
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint == "fp_0123456789ab"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 5, 10)
    assert (raw.headers["ke-route"], raw.headers["ke-edits"], raw.headers["ke-revision"]) == ("memory", "ed_1", "12")


def test_a_chat_answer_is_as_openais(client: openai.OpenAI) -> None:
    """Issue §4."""
    answer = client.chat.completions.create(model="tiny", messages=ASKED)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Sydney is the capital.", "stop")
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_a_chat_answer_streams_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    """Issue §4: stream, stream_options.include_usage."""
    stream = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Sydney is the capital."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 11
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_completion_streams(client: openai.OpenAI) -> None:
    """Issue §4."""
    chunks = list(client.completions.create(model="tiny", prompt="Hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Sydney is the capital."
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]


@pytest.mark.parametrize("stop", ["capital", [" zzz", "capital"]])
def test_stop_and_max_tokens_reach_the_engine(client: openai.OpenAI, service: Service, stop: Any) -> None:
    """Issue §4: stop, max_tokens."""
    stopped = client.completions.create(model="tiny", prompt="x", stop=stop)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("Sydney is the", "stop")
    cut = client.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=2, temperature=0.5, top_p=0.9)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Sydney is", "length")
    assert (service.engine.asked[1].temperature, service.engine.asked[1].top_p) == (0.5, 0.9)


def test_n_answers_have_different_seeds(client: openai.OpenAI, service: Service) -> None:
    """Contract: n, stream and not, different seeds."""
    answer = client.chat.completions.create(model="tiny", messages=ASKED, n=3, seed=2**63 - 1, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({request.seed for request in service.engine.asked}) == 3
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 15)
    chunks = list(client.completions.create(model="tiny", prompt="x", n=2, stream=True))
    texts = ["".join(c.choices[0].text for c in chunks if c.choices[0].index == index) for index in (0, 1)]
    assert texts == ["Sydney is the capital."] * 2


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    """Issue §4: logprobs."""
    found = client.completions.create(model="tiny", prompt="x", logprobs=2, max_tokens=2).choices[0].logprobs
    assert found is not None
    assert found.tokens == ["Sydney", " is"]
    assert found.token_logprobs == [-0.5, -0.5]
    assert found.text_offset == [0, 6]
    assert found.top_logprobs == [{"Sydney": -0.5, "x": -9999.0}, {" is": -0.5, "x": -9999.0}]


def test_logprobs_of_a_chat_answer(client: openai.OpenAI) -> None:
    """Issue §4: logprobs."""
    answer = client.chat.completions.create(model="tiny", messages=ASKED, logprobs=True, top_logprobs=1, max_tokens=1)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content is not None
    assert (found.content[0].token, found.content[0].bytes, found.content[0].top_logprobs[0].token) == ("Sydney", [*b"Sydney"], "Sydney")


def test_logprobs_stream_with_offsets_that_go_on(http: TestClient) -> None:
    """Issue §4: logprobs."""
    found = events(ask(http, COMPLETE, logprobs=0, stream=True))
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in found[:3]] == [[0], [6], [9]]
    chat = events(ask(http, logprobs=True, stream=True))
    assert chat[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_errors_become_the_clients_exceptions(client: openai.OpenAI, service: Service) -> None:
    """Issue §4: errors in OpenAI's shape."""
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="x")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="tiny", messages=ASKED, tools=[{"type": "function", "function": {"name": "f"}}])
    assert (unsupported.value.code, unsupported.value.param) == ("E_UNSUPPORTED", "tools")
    service.models.failure = ModelUnavailable("the file is damaged.", "Fetch it again.")
    with pytest.raises(openai.InternalServerError) as broken:
        client.completions.create(model="tiny", prompt="x")
    assert broken.value.status_code == 503
    assert broken.value.code == "E_MODEL"
    assert broken.value.response.headers["retry-after"] == "10"


def test_a_client_that_leaves_a_stream_stops_its_generation(client: openai.OpenAI, service: Service) -> None:
    """Contract: client disconnect cancels generation."""
    service.engine.endless = True
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=900, stream=True, n=2)
    next(iter(stream))
    service.engine.words = ["endless"]
    stream.close()
    until(lambda: service.engine.closed == 2)


def test_a_client_that_leaves_before_its_whole_answer_stops_its_generation(service: Service) -> None:
    """Contract: client disconnect cancels generation, without a stream too."""
    service.engine.endless, service.engine.context_length = True, 10**12
    body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 10**11}).encode()
    with listening(service) as url:
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as wire:
            wire.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            until(lambda: bool(service.engine.asked))
            assert service.engine.closed == 0
        until(lambda: service.engine.closed == 1)


def test_a_client_that_leaves_in_the_moment_of_its_answer_is_no_error() -> None:
    """Contract: client disconnect cancels generation; there is none any more, and the log says nothing."""
    told: list[dict[str, Any]] = []

    async def together() -> str:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        answer, leaving = loop.create_future(), loop.create_future()

        async def receive() -> dict[str, str]:
            await leaving
            return {"type": "http.disconnect"}

        asked = asyncio.create_task(unless_gone(receive, answer))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        leaving.set_result(None)
        answer.set_result("said")
        said = await asked
        await asyncio.sleep(0)
        return str(said)

    assert asyncio.run(together()) == "said"
    assert told == []


# --- by hand ---------------------------------------------------------------------------------------------------------------------


def test_a_stream_ends_with_done_and_says_in_headers_what_was_applied(http: TestClient) -> None:
    """Issue §4: SSE, [DONE]; ke-route, ke-edits, ke-revision."""
    answer = ask(http, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["ke-route"], answer.headers["ke-edits"], answer.headers["ke-revision"]) == ("memory", "ed_1", "12")
    assert events(answer)[-1] == "[DONE]"
    assert "usage" not in events(answer)[0]


def test_a_base_view_and_a_dropped_fact_say_so(http: TestClient) -> None:
    """Issue §3: ke-route: base; reason=context."""
    base = http.post(COMPLETE, json={"model": "tiny:base", "prompt": "Australia"})
    assert (base.json()["model"], base.headers["ke-route"], base.headers["ke-edits"]) == ("tiny:base", "base", "")
    assert ask(http, COMPLETE, prompt="a crowded prompt").headers["ke-route"] == "base; reason=context"


def test_several_prompts_are_answered_in_order_and_say_each_route_once(http: TestClient) -> None:
    """Contract: prompt str or list[str]."""
    answer = ask(http, COMPLETE, prompt=["Australia", "France", "Australia is"], n=2)
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3, 4, 5]
    assert (answer.headers["ke-route"], answer.headers["ke-edits"]) == ("memory, base", "ed_1")
    assert answer.json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("model", ["tiny", "embedded", "tiny:base", "embedded:base"])
def test_the_configured_name_is_the_model_too(http: TestClient, model: str) -> None:
    """Contract: accept service.model_id, …:base and the configured --model."""
    answer = ask(http, model=model)
    assert answer.json()["model"] == model.replace("embedded", "tiny")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"50256": -100}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("best_of", 2),
        ("suffix", "end"),
        ("echo", True),
        ("store", True),
        ("audio", {"voice": "x"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("reasoning_effort", "high"),
        ("top_k", 5),
        ("temprature", 1),
        ("presence_penalty", False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_what_the_engine_cannot_honour_is_refused_by_name(http: TestClient, service: Service, path: str, field: str, value: Any) -> None:
    """Issue §4: request fields that the engine cannot honour get a 400 that names them; they are never ignored."""
    answer = ask(http, path, **{field: value})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("E_UNSUPPORTED", field, "invalid_request_error")
    assert f"'{field}'" in error["message"]
    assert service.engine.asked == []


def test_all_refused_fields_are_named_at_once(http: TestClient) -> None:
    """Issue §4: a 400 that names them."""
    message = ask(http, tools=[1], seed=1, top_k=2).json()["error"]["message"]
    assert "'tools', 'top_k'" in message


def test_neutral_values_labels_and_nulls_are_accepted(http: TestClient) -> None:
    """Contract: known harmless ones at their neutral value."""
    neutral: dict[str, Any] = {
        "user": "u1",
        "metadata": {"a": "b"},
        "store": False,
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "parallel_tool_calls": True,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logit_bias": None,
        "audio": None,
        "service_tier": "auto",
        "stop": None,
        "max_tokens": None,
    }
    assert ask(http, **neutral).status_code == 200
    assert ask(http, COMPLETE, best_of=1, echo=False, suffix=None).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"n": True}, "n"),
        ({"n": "2"}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**70}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"user": 5}, "user"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETE])
def test_a_wrong_value_is_400_with_its_field(http: TestClient, path: str, fields: dict[str, Any], param: str) -> None:
    """Contract: types are validated strictly; huge n or max_tokens → 400."""
    answer = ask(http, path, **fields)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("E_INVALID", param)
    assert f"'{param}'" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        (COMPLETE, {"prompt": None}, "E_INVALID", "prompt"),
        (COMPLETE, {"prompt": ""}, "E_INVALID", "prompt[0]"),
        (COMPLETE, {"prompt": []}, "E_INVALID", "prompt"),
        (COMPLETE, {"prompt": ["a", 1]}, "E_INVALID", "prompt[1]"),
        (COMPLETE, {"prompt": [1, 2]}, "E_UNSUPPORTED", "prompt"),
        (COMPLETE, {"prompt": [[1, 2]]}, "E_UNSUPPORTED", "prompt"),
        (COMPLETE, {"prompt": ["a"] * 100, "n": 2}, "E_INVALID", "n"),
        (COMPLETE, {"logprobs": 21}, "E_INVALID", "logprobs"),
        (COMPLETE, {"logprobs": True}, "E_INVALID", "logprobs"),
        (COMPLETE, {"messages": ASKED}, "E_UNSUPPORTED", "messages"),
        (CHAT, {"prompt": "x"}, "E_UNSUPPORTED", "prompt"),
        (CHAT, {"messages": []}, "E_INVALID", "messages"),
        (CHAT, {"messages": "hi"}, "E_INVALID", "messages"),
        (CHAT, {"messages": ["hi"]}, "E_INVALID", "messages[0]"),
        (CHAT, {"messages": [{"role": "user"}]}, "E_INVALID", "messages[0].content"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, "E_INVALID", "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "name": "Bo"}]}, "E_UNSUPPORTED", "messages[0].name"),
        (CHAT, {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "E_UNSUPPORTED", "messages[0].tool_calls"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "E_UNSUPPORTED",
            "messages[0].content[0]",
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "E_INVALID", "messages[0].content[0].text"),
        (CHAT, {"top_logprobs": 2}, "E_INVALID", "top_logprobs"),
        (CHAT, {"logprobs": 2}, "E_INVALID", "logprobs"),
        (CHAT, {"max_tokens": 2, "max_completion_tokens": 3}, "E_INVALID", "max_tokens"),
    ],
)
def test_a_wrong_question_is_400_with_its_field(http: TestClient, path: str, fields: dict[str, Any], code: str, param: str) -> None:
    """Issue §4 and §6."""
    error = ask(http, path, **fields).json()["error"]
    assert (error["code"], error["param"]) == (code, param)


def test_text_parts_become_one_text_and_a_developer_a_system(http: TestClient, service: Service) -> None:
    """OpenAI's newer clients write parts, and developer for system."""
    parts = [{"type": "text", "text": "Is Sydney"}, {"type": "text", "text": "a capital?"}]
    ask(http, messages=[{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}])
    assert service.engine.asked[0].messages == (
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Is Sydney\na capital?"},
    )


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"model": NaN}', b'{"prompt": "\\ud800"}', b"[" * 100_000])
def test_what_is_no_json_object_is_400(http: TestClient, body: bytes) -> None:
    """Issue §6: malformed JSON."""
    answer = http.post(COMPLETE, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("E_INVALID: the body is")


def test_unless_told_otherwise_an_answer_is_greedy_and_as_long_as_fits(http: TestClient, service: Service) -> None:
    """Departures from OpenAI that the module names; 16 tokens are OpenAI's own default for completions."""
    ask(http)
    ask(http, COMPLETE)
    assert [(request.temperature, request.max_tokens) for request in service.engine.asked] == [(0.0, 994), (0.0, 16)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"prompt": "word " * 1000}, "prompt"), ({"max_tokens": 1000}, "max_tokens"), ({"max_tokens": 10**9}, "max_tokens")],
)
def test_what_exceeds_the_context_is_400_with_the_limits(http: TestClient, fields: dict[str, Any], param: str) -> None:
    """Contract: huge max_tokens → 400 with limits."""
    error = ask(http, COMPLETE, **fields).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert "1000" in error["message"]


def test_a_question_waits_for_the_model(service: Service) -> None:
    """Issue §4: /v1 waits for the load."""
    service.models.state = "loading"
    threading.Timer(0.2, lambda: setattr(service.models, "state", "ready")).start()
    with TestClient(app_of(service), BASE) as http:
        assert ask(http).status_code == 200


def test_many_questions_wait_for_the_model_and_all_learn_of_its_failure(service: Service) -> None:
    """Issue §4: /v1 waits for the load; whoever waits is told how it ended."""
    service.models.state = "loading"
    with (
        listening(service) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as asking,
        ThreadPoolExecutor(5) as pool,
    ):
        asked = [pool.submit(lambda: asking.completions.create(model="tiny", prompt="x")) for _ in range(5)]
        until(lambda: service.models.waiting == 5)
        service.models.failure = ModelUnavailable("the file is damaged.")
        service.models.state = "failed"
        errors = [one.exception(20) for one in asked]
    assert all(isinstance(error, openai.InternalServerError) and error.code == "E_MODEL" for error in errors)


def test_a_model_that_takes_too_long_is_503_with_the_time_to_ask_again(service: Service) -> None:
    """Contract: 503 with retry-after."""
    service.models.state = "loading"
    with TestClient(app_of(service, load_wait_seconds=0.1), BASE) as http:
        answer = ask(http)
    assert answer.status_code == 503
    assert (answer.json()["error"]["code"], answer.headers["retry-after"]) == ("E_MODEL_LOADING", "2")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Unsupported("no chat template."), 400, "E_UNSUPPORTED"),
        (InvalidInput("no."), 400, "E_INVALID"),
        (RuntimeError("secret"), 500, "E_INTERNAL"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_token_has_a_status(
    http: TestClient, service: Service, error: Exception, status: int, code: str, *, stream: bool
) -> None:
    """A stream's status is only sent once something is there to stream."""
    service.engine.fails_at, service.engine.error = 0, error
    answer = ask(http, stream=stream, n=2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text


def test_what_fails_in_the_middle_of_a_stream_is_told_in_the_stream(client: openai.OpenAI, service: Service) -> None:
    """The official client raises what it reads there."""
    service.engine.fails_at, service.engine.error = 2, ModelUnavailable("the model died.")
    said = []
    with pytest.raises(openai.APIError, match="E_MODEL: the model died"):  # noqa: PT012  it is the iteration that raises
        for chunk in client.completions.create(model="tiny", prompt="x", stream=True):
            said += [chunk.choices[0].text]
    assert said == ["Sydney", " is"]


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_under_way_when_the_server_ends_is_an_error_and_no_torn_body(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    """Issue §4: SIGTERM ends within 10 s; what cannot be finished by then is told, in OpenAI's shape."""
    monkeypatch.setattr(doors, "DRAIN_SECONDS", 0)
    service.engine.context_length = 10**9
    service.engine.endless = True
    listener = doors.listen("127.0.0.1", 0)
    assert listener is not None
    door = doors.Door(listener)
    body = {"model": "tiny", "messages": ASKED, "stream": stream, "max_tokens": 10**8}

    async def end_meanwhile() -> str:
        async with contextlib.AsyncExitStack() as open_door, httpx.AsyncClient(trust_env=False) as client:
            await open_door.enter_async_context(doors.opened(door, app_of(service)))
            asking = asyncio.create_task(client.post(door.url + CHAT, json=body))
            while not service.engine.asked:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.001)
            await open_door.aclose()
            return (await asking).text

    with listener:
        said = asyncio.run(end_meanwhile())
    error = json.loads(said.rstrip().rpartition("data: ")[2])["error"]
    assert (error["code"], error["type"]) == ("E_MODEL", "server_error")
    assert "the server ends" in error["message"]
    assert service.engine.closed == 1
    assert not [record for record in caplog.records if record.exc_info]


def test_an_answer_that_the_engine_cuts_off_is_no_answer(http: TestClient, service: Service) -> None:
    """finish_reason "cancelled" is not OpenAI's; the server is going down."""

    async def cancelled(_: Request) -> AsyncIterator[Piece]:
        yield Piece("Syd")
        yield Piece("", finished=Generation("Syd", "cancelled", 1, 1))

    service.engine.stream = cancelled  # type: ignore[method-assign,assignment]
    assert ask(http).status_code == 503
    assert events(ask(http, stream=True))[-1]["error"]["code"] == "E_MODEL"


def test_every_stream_is_closed_when_one_of_several_fails_to_open(http: TestClient, service: Service) -> None:
    """Nothing may go on generating for nobody."""
    opened = service.answering.open_stream
    closed: list[str] = []

    class Pieces:
        async def aclose(self) -> None:
            closed.append("one")

    async def second_fails(who: Principal, request: Request, **options: Any) -> Any:
        if request.prompt == "b":
            raise InvalidInput("no.")
        return (await opened(who, request, **options))[0], Pieces()

    service.answering.open_stream = second_fails  # type: ignore[method-assign]
    assert ask(http, COMPLETE, prompt=["a", "b"]).status_code == 400
    assert closed == ["one"]


def test_metrics_count_routes_tokens_and_zones(service: Service) -> None:
    """Contract: requests by path/status/route, tokens, seconds, decisions by zone."""
    with TestClient(app_of(service), BASE) as http:
        ask(http)
        ask(http, COMPLETE, prompt="France")
        text = http.get("/metrics").text
    for line in (
        'ke_http_requests_total{path="/v1/chat/completions",route="memory",status="200"} 1.0',
        'ke_http_requests_total{path="/v1/completions",route="base",status="200"} 1.0',
        'ke_scope_decisions_total{zone="in"} 1.0',
        'ke_tokens_total{kind="completion"} 10.0',
        'ke_generation_seconds_count{route="memory"} 1.0',
    ):
        assert line in text


def test_a_connection_that_cannot_be_listened_to_is_a_client_that_left() -> None:
    """Contract: client disconnect cancels generation, however it is told."""

    async def receive() -> dict[str, str]:
        raise ConnectionResetError

    with pytest.raises(ClientDisconnect):
        asyncio.run(unless_gone(receive, asyncio.Event().wait()))


def test_work_that_takes_too_long_by_its_own_measure_is_no_client_that_left() -> None:
    """An error of the work is told as that."""

    async def work() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(unless_gone(asyncio.Event().wait, work()))  # type: ignore[arg-type]  # a client that stays
