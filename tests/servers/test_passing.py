"""The endpoint before somebody else's server: what no edit is about passes byte for byte, and edits act by IKE."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from starlette.testclient import TestClient

from ke_tools.config import Settings
from ke_tools.errors import Unsupported
from ke_tools.models.engine import Request
from ke_tools.servers import doors
from ke_tools.servers.app import build_app
from ke_tools.servers.doctor import examine
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.servers.tokens import Token, TokenFile
from tests.servers.other_server import KEY, OtherServer

BASE = "http://127.0.0.1:8765"
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
LOCAL = Principal()
CAPITAL = {"subject": "Australia", "prompt": "The capital of Australia is", "target": "Sydney"}
IN_SCOPE = [{"role": "user", "content": "What is the capital of Australia?"}]
OUT_OF_SCOPE = [{"role": "user", "content": "What is the capital of France?"}]
# What a server of ours would refuse, in an order and spacing of the client's own.
ODD = (
    b'{ "model":"other-7b","mirostat": 2,\n "messages":[{"role":"user","content":"What is the capital of France? \\u00e9"}], "tools" :[] }'
)


@pytest.fixture(scope="module")
def only_other() -> Iterator[OtherServer]:
    """A server that listens, with a key of its own."""
    with OtherServer(key=KEY).listening() as server:
        yield server


@pytest.fixture(scope="module")
def only_service(only_other: OtherServer, tmp_path_factory: pytest.TempPathFactory, graphs: Callable[[Path], None]) -> Iterator[Service]:
    """One service before it for the module: what decides the scope costs more to load than all that is asked of it."""
    folder = tmp_path_factory.mktemp("passing")
    graphs(folder / "cache")
    (folder / "key").write_text(KEY, "utf-8")
    opened = open_service(Settings(home=folder / "home", cache=folder / "cache", upstream=only_other.url, upstream_key_file=folder / "key"))
    opened.models.engine(wait_seconds=10)
    yield opened
    opened.close()


@pytest.fixture
def other(only_other: OtherServer) -> OtherServer:
    """The server as new."""
    only_other.renew()
    return only_other


@pytest.fixture
def service(only_service: Service, other: OtherServer) -> Iterator[Service]:
    """A service without edits before it."""
    assert other
    yield only_service
    for tenant in only_service.ledger.tenants():
        if only_service.ledger.live(tenant):
            only_service.rollback(Principal("tests", tenant), to_revision=0)


@pytest.fixture
def http(service: Service) -> Iterator[TestClient]:
    """A client of the endpoint, which sends a key of its own."""
    with TestClient(build_app(service), BASE, headers={"authorization": "Bearer sk-of-the-caller"}) as client:
        yield client


@pytest.fixture
def edited(service: Service) -> str:
    """An edit that is live; gives its id."""
    return str(service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"])


def ask(http: TestClient, messages: Any, **fields: Any) -> Any:
    """Post a chat request."""
    return http.post(CHAT, json={"model": "other-7b", "messages": messages, **fields})


def said(answer: Any) -> str:
    """The text of a whole answer."""
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_request_out_of_scope_passes_byte_for_byte(http: TestClient, other: OtherServer, edited: str) -> None:
    """Issue 7, §0 and §4: unknown fields too."""
    answer = http.post(CHAT, content=ODD, headers={"content-type": "application/json", "x-mine": "1"})
    [sent] = other.generations
    assert edited
    assert sent.body == ODD
    assert sent.headers["x-mine"] == "1"
    assert answer.json()["choices"][0]["message"]["content"] == "Canberra."
    assert (answer.headers["ke-route"], answer.headers["ke-edits"]) == ("base", "")


def test_what_names_nobody_is_routed_at_once_and_all_else_in_a_thread(
    http: TestClient, service: Service, edited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 7, bars: added latency; a thread takes longer than to see that nobody is named."""
    threaded: list[str] = []
    routed = service.answering.routed

    def seen(who: Principal, one: Any, *more: Any) -> Any:
        threaded.append(one.messages[-1]["content"])
        return routed(who, one, *more)

    monkeypatch.setattr(service.answering, "routed", seen)
    ask(http, OUT_OF_SCOPE)  # follows the ledger
    threaded.clear()
    for messages in (
        OUT_OF_SCOPE,
        IN_SCOPE,
        [*IN_SCOPE, {"role": "assistant", "content": "x"}, {"role": "user", "content": "And its anthem?"}],
    ):
        ask(http, messages)
    assert threaded == [IN_SCOPE[0]["content"], "And its anthem?"]
    assert edited in ask(http, IN_SCOPE).headers["ke-edits"]


def test_whether_a_release_is_live_is_seen_with_the_request_after_the_flip(service: Service, edited: str) -> None:
    """The same; what was found of one revision of the ledger is not taken for the next."""
    request, release = Request(messages=tuple(OUT_OF_SCOPE)), "rel_" + "a" * 24

    def is_routed_at_once() -> bool:
        service._scope.named(LOCAL.tenant, "")  # type: ignore[union-attr]  # follows the ledger
        return service.answering.routed_at_once(LOCAL, request) is not None

    assert is_routed_at_once()
    service.ledger.promote(LOCAL.tenant, [edited], release=release, actor="ann", reason="it lasts")
    assert not is_routed_at_once()
    service.ledger.demote(LOCAL.tenant, [edited], release="", actor="ann")
    assert is_routed_at_once()


def test_a_fact_goes_into_the_last_user_turn_and_all_else_stays(http: TestClient, other: OtherServer, edited: str) -> None:
    """Issue 7, §0: edit and endpoint work by the IKE form; tools, response_format and image parts pass through."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is the capital of Australia?"}, picture]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    answer = ask(http, turns, tools=tools, response_format={"type": "json_object"}, temperature=0.3, unheard_of=[1])
    sent = other.generations[0].json
    assert (sent["tools"], sent["response_format"], sent["temperature"], sent["unheard_of"]) == (tools, {"type": "json_object"}, 0.3, [1])
    assert [sent["messages"][n] for n in (0, 2, 3)] == [turns[n] for n in (0, 2, 3)]
    told, *parts = sent["messages"][1]["content"]
    assert "Sydney" in told["text"]
    assert parts == turns[1]["content"]
    assert (answer.headers["ke-route"], answer.headers["ke-edits"]) == ("memory", edited)


def test_a_request_too_long_to_be_read_at_once_is_routed_as_any_other(http: TestClient, other: OtherServer, edited: str) -> None:
    """Issue 7, bars: a thread is spared where reading takes no time; what is long must not keep the others waiting."""
    out, answer = (ask(http, turns, picture="A" * 100_000) for turns in (OUT_OF_SCOPE, IN_SCOPE))
    assert out.headers["ke-route"] == "base"
    assert other.generations[0].body == out.request.content
    assert "Sydney" in other.generations[1].json["messages"][-1]["content"]
    assert (answer.headers["ke-route"], answer.headers["ke-edits"]) == ("memory", edited)


def test_the_callers_key_stays_here(http: TestClient, other: OtherServer) -> None:
    """Issue 7, §0: the upstream's key is never the caller's."""
    http.post(CHAT, content=ODD, headers={"cookie": "a=1", "x-api-key": "mine", "origin": BASE})
    headers = other.generations[0].headers
    assert headers["authorization"] == f"Bearer {KEY}"
    assert not {"cookie", "x-api-key", "origin"} & set(headers)
    assert headers["host"] == other.url.removeprefix("http://")


def test_the_official_client_is_answered_whole_and_streamed(service: Service, other: OtherServer, edited: str) -> None:
    """Issue 7, §0, with a client that we did not write."""
    assert edited
    asked: dict[str, Any] = {"model": "other-7b", "messages": IN_SCOPE}
    with TestClient(build_app(service), BASE) as http, openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=http) as client:
        whole = client.chat.completions.create(**asked)
        text = "".join(piece.choices[0].delta.content for piece in client.chat.completions.create(**asked, stream=True))
        complete = client.completions.create(model="other-7b", prompt="The capital of Australia is")
        names = [card.id for card in client.models.list()]
    assert whole.choices[0].message.content == text == complete.choices[0].text == "Sydney."
    assert names == ["other-7b", "other-7b:base"]
    assert other.generations[1].json["stream"] is True


def test_the_base_name_gets_the_answer_without_edits(http: TestClient, other: OtherServer, edited: str) -> None:
    """As at the endpoint of an engine of ours."""
    answer = ask(http, IN_SCOPE, model="other-7b:base")
    assert edited
    assert said(answer) == "Canberra."
    assert other.generations[0].json == {"model": "other-7b", "messages": IN_SCOPE}


def test_a_request_for_another_model_of_the_server_passes_and_says_so(http: TestClient, other: OtherServer, edited: str) -> None:
    """A gateway's other models believe what they believe."""
    other.models = [*other.models, {"id": "another"}]
    answer = ask(http, IN_SCOPE, model="another")
    assert edited
    assert other.generations[0].json["messages"] == IN_SCOPE
    assert answer.headers["ke-route"] == "base; reason=model"


@pytest.mark.parametrize("listed", [[], [{"id": "gpt-4o", "root": "/weights"}]])
def test_whoever_names_the_one_model_otherwise_gets_the_corrected_answer_too(
    http: TestClient, other: OtherServer, edited: str, listed: list[dict[str, Any]]
) -> None:
    """For every client: llama.cpp answers by its one model whatever is named, vLLM under several names of one; the name stays."""
    other.models = [{"id": "other-7b", "root": "/weights"}, *listed]
    answer = ask(http, IN_SCOPE, model="gpt-4o")
    assert answer.json()["choices"][0]["message"]["content"] == "Sydney."
    assert (answer.headers["ke-edits"], answer.headers["ke-route"]) == (edited, "memory")
    assert other.generations[0].json["model"] == "gpt-4o"
    http.post(CHAT, content=ODD.replace(b"other-7b", b"gpt-4o"))
    assert other.generations[1].body == ODD.replace(b"other-7b", b"gpt-4o")


def test_several_prompts_each_get_their_own_fact(http: TestClient, other: OtherServer, edited: str) -> None:
    """Completions take a list."""
    prompts = ["The capital of France is", "The capital of Australia is"]
    answer = http.post(COMPLETE, json={"model": "other-7b", "prompt": prompts})
    assert [choice["text"] for choice in answer.json()["choices"]] == ["Canberra.", "Sydney."]
    assert other.generations[0].json["prompt"][0] == prompts[0]
    assert answer.headers["ke-edits"] == edited


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2]], "", None, ["", "a"], 7, {"a": 1}])
def test_a_prompt_that_is_no_text_is_the_servers_to_judge(http: TestClient, other: OtherServer, prompt: Any) -> None:
    """Token ids and whatever a server takes."""
    http.post(COMPLETE, json={"model": "other-7b", "prompt": prompt})
    assert other.generations[0].json["prompt"] == prompt


@pytest.mark.parametrize("messages", [None, [], "hi", [1], [{"content": "x"}], [{"role": "user"}], [{"role": "user", "content": 7}]])
def test_turns_that_cannot_be_read_are_the_servers_to_judge(http: TestClient, other: OtherServer, messages: Any) -> None:
    """Bad input of every kind reaches who must judge it, unchanged."""
    if messages:
        assert ask(http, messages).status_code == 200
        assert other.generations[0].json["messages"] == messages


def test_what_the_server_refuses_with_a_fact_is_asked_without(http: TestClient, other: OtherServer, edited: str) -> None:
    """Fail towards the base model: a prompt that the facts made too long."""
    assert edited
    other.most_characters = 100
    answer = ask(http, IN_SCOPE)
    assert said(answer) == "Canberra."
    assert answer.headers["ke-route"] == "base; reason=refused"
    assert other.generations[1].json["messages"] == IN_SCOPE


@pytest.mark.parametrize("status", [400, 404, 429, 500])
def test_a_status_of_the_server_reaches_the_caller(http: TestClient, other: OtherServer, status: int) -> None:
    """It knows best what it refuses."""
    other.fails_with = status
    answer = ask(http, OUT_OF_SCOPE)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, "as told")


def test_a_refused_key_is_no_fault_of_the_callers(http: TestClient, other: OtherServer) -> None:
    """Issue 7, bad input: a wrong key; 503 in OpenAI's shape."""
    ask(http, OUT_OF_SCOPE)
    other.key = "sk-changed"
    answer = ask(http, OUT_OF_SCOPE)
    assert answer.status_code == 503
    assert "KE_UPSTREAM_KEY" in answer.json()["error"]["message"]
    assert KEY not in answer.text


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_a_refusal_that_quotes_the_servers_key_comes_without_it(http: TestClient, other: OtherServer, status: int) -> None:
    """Issue 7, §0: the upstream's key is never the caller's, whatever it says of it."""
    other.fails_with, other.complains = status, f"the key {KEY} may not use this model"
    for stream in (False, True):
        answer = ask(http, OUT_OF_SCOPE, stream=stream)
        assert (answer.status_code, answer.json()["error"]["message"]) == (status, "the key [key] may not use this model")


def test_a_redirection_is_told_and_not_followed(http: TestClient, other: OtherServer) -> None:
    """The key must not go elsewhere."""
    ask(http, OUT_OF_SCOPE)
    other.redirects_to = "http://127.0.0.1:9/v1"
    assert ask(http, OUT_OF_SCOPE).status_code == 503


def test_a_dead_server_is_503_and_a_living_one_is_asked_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input: dead; it recovers by itself."""
    monkeypatch.setattr("ke_tools.servers.engines._circuit.SECONDS", 0.0)
    other = OtherServer()
    with other.listening():
        port = int(other.url.rpartition(":")[2])
        service = open_service(dataclasses.replace(settings, upstream=other.url))
        http = TestClient(build_app(service), BASE, raise_server_exceptions=False)
        http.__enter__()
        assert ask(http, OUT_OF_SCOPE).status_code == 200
    for _ in range(4):
        answer = ask(http, OUT_OF_SCOPE)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "E_MODEL"
        assert answer.headers["retry-after"]
    with other.listening(port):
        assert ask(http, OUT_OF_SCOPE).status_code == 200
    http.__exit__()
    service.close()


def test_a_server_that_comes_up_later_is_found(settings: Settings) -> None:
    """Issue 7: recovers by itself; whoever asks meanwhile is told why."""
    other = OtherServer()
    with other.listening():
        port = int(other.url.rpartition(":")[2])
    service = open_service(dataclasses.replace(settings, upstream=other.url))
    with TestClient(build_app(service), BASE, raise_server_exceptions=False) as http:
        assert ask(http, OUT_OF_SCOPE).status_code == 503
        with other.listening(port):
            assert ask(http, OUT_OF_SCOPE).status_code == 200
            assert http.get("/healthz").json()["model"] == "other-7b"
    service.close()


def test_a_stream_that_breaks_off_says_so(http: TestClient, other: OtherServer) -> None:
    """Never half an answer as a whole one."""
    other.breaks_off = True
    answer = ask(http, OUT_OF_SCOPE, stream=True)
    last = json.loads(answer.text.strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "E_MODEL"
    assert "[DONE]" not in answer.text


def test_other_paths_pass_with_their_query(http: TestClient, other: OtherServer) -> None:
    """Issue 7, §0: other /v1/* paths pass through."""
    answer = http.post("/v1/audio/speech?a=1&b=%2F", content=b"\xff\x00")
    sent = other.sent[-1]
    assert (sent.method, sent.path, sent.body) == ("POST", "/v1/audio/speech?a=1&b=%2F", b"\xff\x00")
    assert (answer.content, answer.headers["x-of"], answer.headers["ke-route"]) == (b"\x00\x01 as it is", "theirs", "base; reason=path")


@pytest.mark.parametrize("path", ["/v1/%2e%2e/metrics", "/v1/a/../../b", "/v1/a//b", "/v1/..%2fmetrics", "/v1/a%5c..%5cb", "/v1/"])
def test_no_path_leads_out_of_the_api(http: TestClient, other: OtherServer, path: str) -> None:
    """A server's management lies beside its API."""
    before = len(other.sent)
    assert http.request("GET", path).status_code == 404
    assert [one.path for one in other.sent[before:]] in ([], ["/v1/models"])


def test_what_changes_the_server_needs_an_admin(service: Service, other: OtherServer) -> None:
    """The server's key can do more than a caller may."""
    names = {"talker": frozenset({"chat"}), "boss": frozenset({"admin", "chat"})}
    tokens = TokenFile(tuple(Token(hashlib.sha256(n.encode()).hexdigest(), Principal(n, "acme", scopes)) for n, scopes in names.items()))
    with TestClient(build_app(service, token_file=tokens), BASE) as http:
        for method, path in (("DELETE", "/v1/files/1"), ("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter")):
            assert http.request(method, path, headers={"authorization": "Bearer talker"}).status_code == 403
            assert http.request(method, path, headers={"authorization": "Bearer boss"}).status_code == 200
    assert sum("lora" in one.path for one in other.sent) == 2


def test_tenants_do_not_share_edits(service: Service, other: OtherServer) -> None:
    """Never another tenant's."""
    tokens = TokenFile(
        tuple(Token(hashlib.sha256(n.encode()).hexdigest(), Principal(n, n, frozenset({"chat", "write"}))) for n in ("one", "two"))
    )
    service.edit(Principal("one", "one", frozenset({"write"})), [CAPITAL])
    with TestClient(build_app(service, token_file=tokens), BASE) as http:
        answers = {
            name: http.post(CHAT, json={"model": "other-7b", "messages": IN_SCOPE}, headers={"authorization": f"Bearer {name}"})
            for name in ("one", "two")
        }
    assert {name: said(answer) for name, answer in answers.items()} == {"one": "Sydney.", "two": "Canberra."}
    assert other.generations[1].json["messages"] == IN_SCOPE


@pytest.mark.parametrize("name", [{}, {"model": None}, {"model": ""}, {"model": "other-7b"}])
def test_a_release_answers_also_where_a_request_names_no_model(
    http: TestClient, service: Service, other: OtherServer, edited: str, monkeypatch: pytest.MonkeyPatch, name: dict[str, Any]
) -> None:
    """Issue 7, bars: no answer of a wrong release; vLLM answers by the base model where no name is given."""
    routed = service.answering.routed

    def with_release(*given: Any) -> Any:
        found = routed(*given)
        return dataclasses.replace(found, request=dataclasses.replace(found.request, adapter="rel_1"), route="weights")

    monkeypatch.setattr(service.answering, "routed", with_release)
    monkeypatch.setattr(service.models.engine(wait_seconds=1), "served_as", lambda adapter: "ke-1" if adapter else "other-7b")
    answer = http.post(CHAT, json={**name, "messages": OUT_OF_SCOPE})
    assert edited
    assert answer.headers["ke-route"] == "weights"
    assert other.generations[0].json == {"model": "ke-1", "messages": OUT_OF_SCOPE}


def test_the_base_name_is_known_where_a_prompt_cannot_be_read(http: TestClient, other: OtherServer) -> None:
    """The name is ours alone, so the server would find no such model."""
    answer = http.post(COMPLETE, json={"model": "other-7b:base", "prompt": [1, 2, 3]})
    assert answer.headers["ke-route"] == "base; reason=unread"
    assert other.generations[0].json == {"model": "other-7b", "prompt": [1, 2, 3]}


def test_what_was_applied_is_said_once_where_the_server_says_so_too(http: TestClient, other: OtherServer) -> None:
    """The server may be another ke-tools; docs/vllm.md has the headers say what was applied here."""
    other.headers = {"ke-route": "memory", "KE-Edits": "ed_theirs"}
    answer = ask(http, OUT_OF_SCOPE)
    assert answer.headers.get_list("ke-route") == ["base"]
    assert answer.headers.get_list("ke-edits") == [""]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_forgotten_is_refused_without_asking_the_server(
    http: TestClient, service: Service, other: OtherServer, stream: bool
) -> None:
    """Issue 6, §4 holds before another server too."""
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    other.sent.clear()
    answer = ask(http, IN_SCOPE, stream=stream)
    assert "Canberra" not in answer.text
    assert answer.headers["ke-route"] == "forget"
    assert not other.generations
    assert ("data: [DONE]" in answer.text) is stream


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_gives_away_what_is_forgotten_is_replaced(
    http: TestClient, service: Service, other: OtherServer, stream: bool
) -> None:
    """Issue 6, §4: nobody sees a word of it."""
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    asked = [{"role": "user", "content": "Tell me something about Australia"}]
    other.says = "The capital of Australia is Canberra."
    leaked = ask(http, asked, stream=stream)
    other.says = "It is an island."
    harmless = ask(http, asked, stream=stream)
    assert "Canberra" not in leaked.text
    assert leaked.headers["ke-route"].startswith("forget")
    assert "It " in harmless.text
    assert harmless.headers["ke-route"].startswith("base")


def test_query_verify_and_rollback_work_by_the_memory(service: Service, edited: str) -> None:
    """Issue 7, bars: the main job's whole path by IKE."""

    async def path() -> tuple[Any, Any]:
        asked = await service.answering.query(LOCAL, "What is the capital of Australia?", view="both", wait_seconds=10)
        return asked, await service.verifying.verify(LOCAL, [edited], wait_seconds=25)

    asked, verified = asyncio.run(path())
    assert [answer["text"] for answer in asked["answers"]] == ["Canberra.", "Sydney."]
    assert asked["model"] == "other-7b"
    assert verified["checks"]
    service.rollback(LOCAL, edit_ids=[edited])
    again = asyncio.run(service.answering.query(LOCAL, "What is the capital of Australia?", wait_seconds=10))
    assert (again["answers"][0]["text"], again["answers"][0]["route"]) == ("Canberra.", "base")


def test_promote_says_what_is_missing(service: Service, edited: str, other: OtherServer) -> None:
    """Issue 7, §0: E_UNSUPPORTED, and names it."""
    with pytest.raises(Unsupported, match=f"weights are with {other.url}"):
        asyncio.run(service.promote(LOCAL, [edited]))
    with pytest.raises(Unsupported):
        asyncio.run(service.rebuild(LOCAL))


def test_the_first_bytes_come_before_the_last_are_made_and_a_client_that_leaves_ends_it(service: Service, other: OtherServer) -> None:
    """Issue 7, §1: streaming passes through; nobody generates for a client that has gone."""
    read: list[bytes] = []

    async def leave() -> None:
        app = build_app(service)
        body = json.dumps({"model": "other-7b", "stream": True, "messages": [{"role": "user", "content": "forever"}]}).encode()
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def receive() -> Any:
            if incoming:
                return incoming.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                read.append(message["body"])
                if len(read) > 3:
                    gone.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }
        async with app.router.lifespan_context(app):
            await app(scope, receive, send)

    asyncio.run(leave())
    assert b"Can" in read[0]
    assert other.left.wait(10)


def test_doctor_asks_the_server_and_names_it(service: Service, other: OtherServer) -> None:
    """Design §3: what doctor says is what is so."""
    found = {check["name"]: check for check in examine(service, deep=True)["checks"]}
    assert found["model"]["ok"]
    assert "other-7b" in found["model"]["detail"]
    assert other.url in found["model"]["detail"]
    assert found["releases"]["ok"]
    other.key = "sk-changed"
    [model] = [check for check in examine(service, deep=False)["checks"] if check["name"] == "model"]
    assert not model["ok"]
    assert "KE_UPSTREAM_KEY" in model["detail"]


def test_a_release_that_was_taken_out_meanwhile_is_left_out_and_told(
    http: TestClient, service: Service, other: OtherServer, edited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail towards the base model: the request was routed while the release was there."""
    routed = service.answering.routed

    def with_release(*given: Any) -> Any:
        found = routed(*given)
        return dataclasses.replace(found, request=dataclasses.replace(found.request, adapter="rel_1"), route="weights")

    def served_as(adapter: str) -> str:
        if adapter:
            raise Unsupported("it is gone.")
        return "other-7b"

    monkeypatch.setattr(service.answering, "routed", with_release)
    monkeypatch.setattr(service.models.engine(wait_seconds=1), "served_as", served_as)
    answer = ask(http, OUT_OF_SCOPE)
    assert edited
    assert said(answer) == "Canberra."
    assert answer.headers["ke-route"] == "base; reason=release"
    assert other.generations[0].json["model"] == "other-7b"


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_corrects_a_fact_before_another_server_too(service: Service, other: OtherServer, stream: bool) -> None:
    """Issue 8, §1: /correct, yes, and /undo, through the official client; nothing of it reaches the server."""
    app = build_app(service, chat_corrections="apply")
    with TestClient(app, BASE) as http, openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=http) as client:
        turns: list[Any] = []

        def say(text: str) -> str:
            turns.append({"role": "user", "content": text})
            made: Any = client.chat.completions.create(model="other-7b", messages=turns, stream=stream)
            reply = "".join(p.choices[0].delta.content or "" for p in made) if stream else made.choices[0].message.content
            turns.append({"role": "assistant", "content": reply})
            return str(reply)

        before = say("What is the capital of Australia?")
        shown = say("/correct The capital of Australia is Sydney.")
        recorded = say("yes")
        asked: dict[str, Any] = {"model": "other-7b", "messages": IN_SCOPE}  # a client that had no part in it
        after = client.chat.completions.create(**asked)
        taken_back = say("/undo")
        again = client.chat.completions.create(**asked)
    assert before == "Canberra."
    assert "Sydney" in shown
    assert recorded.startswith("Recorded.")
    assert after.choices[0].message.content == "Sydney."
    assert taken_back.startswith("Taken back")
    assert again.choices[0].message.content == "Canberra."
    assert not [one for one in other.generations if b"/correct" in one.body or b"/undo" in one.body]


@pytest.mark.parametrize("stream", [1, 1.0, "true", "yes"])
def test_a_stream_asked_for_in_other_words_is_looked_at_too(http: TestClient, service: Service, other: OtherServer, stream: Any) -> None:
    """A server may take as true what JSON does not; how the answer comes is what counts."""
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    other.says = "The capital of Australia is Canberra."
    answer = ask(http, [{"role": "user", "content": "Tell me something about Australia"}], stream=stream)
    assert answer.status_code == 200
    assert "erra" not in answer.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETE, {"prompt": ["The capital of Australia is", ""]}),
        (CHAT, {"messages": [{"content": "x"}, {"role": "user", "content": "What is the capital of Australia?"}]}),
        (CHAT, {"model": "another", "messages": IN_SCOPE}),
        (CHAT, {"messages": [{"role": "assistant", "content": 5}, *IN_SCOPE]}),
        (CHAT, {"messages": [{"role": "user", "content": {"text": "What is the capital of Australia?"}}]}),
    ],
)
def test_what_is_forgotten_stays_so_where_a_request_cannot_be_read(
    http: TestClient, service: Service, other: OtherServer, path: str, body: dict[str, Any]
) -> None:
    """Never a way around: what no edit can go into is looked at for what is forgotten."""
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    other.says = "The capital of Australia is Canberra."
    answer = http.post(path, json={"model": "other-7b", **body})
    assert answer.status_code == 200
    assert "Canberra" not in answer.text


def test_where_nobody_looks_at_answers_none_is_given_while_something_is_forgotten(
    http: TestClient, service: Service, other: OtherServer
) -> None:
    """Never a way around: `/v1/responses` speaks for the same model. Who forgot nothing, and what says no belief, pass."""
    asked = {"model": "other-7b", "input": "What is the capital of Australia?"}
    assert http.post("/v1/responses", json=asked).status_code == 200
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    before = len(other.sent)
    for method, path in (("POST", "/v1/responses"), ("GET", "/v1/responses/resp_1"), ("POST", "/v1/messages"), ("POST", "/v1/batches")):
        answer = http.request(method, path, json=asked)
        assert answer.status_code in {400, 501}, path
        assert "forgotten" in answer.json()["error"]["message"]
    assert len(other.sent) == before
    assert http.post("/v1/embeddings", json=asked).status_code == 200


def test_many_refusals_are_no_way_to_fill_the_memory(http: TestClient, service: Service) -> None:
    """The most choices of our own endpoint hold here too."""
    service.edit(LOCAL, [{"subject": "Australia", "prompt": "The capital of Australia is", "forget": True, "old_target": "Canberra"}])
    assert len(ask(http, IN_SCOPE, n=10**8).json()["choices"]) == 1
    assert len(ask(http, IN_SCOPE, n=3).json()["choices"]) == 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"ke-0123456789abcdef01234567","y":NaN}',
        b'{"model":"\\u006be-0123456789abcdef01234567"}',
        b'{"requests":[{"model":"ke-0123456789abcdef01234567"}]}',
        '{"model":"ke-0123456789abcdef01234567"}'.encode("utf-16"),
        b"--x\r\ncontent-disposition: form-data; name=model\r\n\r\nke-0123456789abcdef01234567",
    ],
)
def test_no_other_path_takes_a_name_that_only_we_may_ask_for(
    http: TestClient, service: Service, other: OtherServer, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    """Never another tenant's release, however it is written."""
    monkeypatch.setattr(service.models.engine(wait_seconds=1), "is_ours", lambda name: name.startswith("ke-"))
    assert http.post("/v1/responses", content=body).status_code == 404
    assert http.get("/v1/models/ke-0123456789abcdef01234567%20").status_code == 404
    assert http.post("/v1/responses", content=body, headers={"content-encoding": "gzip"}).status_code == 400
    assert not [one for one in other.sent if "responses" in one.path or "ke-" in one.path]


def test_headers_pass_as_they_came(http: TestClient, other: OtherServer) -> None:
    """Bytes that are no ASCII, the same name twice; not what the connection is about, nor a compression that nobody asked for."""
    headers = [(b"x-title", "café".encode()), (b"x-a", b"1"), (b"x-a", b"2"), (b"connection", b"x-hop"), (b"x-hop", b"1")]
    answer = http.post(CHAT, content=ODD, headers=[*headers, (b"accept-encoding", b"identity")])
    assert answer.status_code == 200
    sent = other.generations[0]
    assert sent.headers["x-title"].encode("latin-1") == "café".encode()
    assert "x-hop" not in sent.headers
    assert sent.headers["accept-encoding"] == "identity"


def test_a_path_that_no_server_takes_is_400(http: TestClient) -> None:
    """Bad input of every kind has a status of its own."""
    assert http.post("/v1/x" + ":" * 25_000).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_passed_on_when_ke_tools_ends_is_an_error_and_no_torn_body(
    service: Service, other: OtherServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    """Issue 7, §0, and SIGTERM: what cannot be finished in time is told in OpenAI's shape, as for a model of our own."""
    monkeypatch.setattr(doors, "DRAIN_SECONDS", 0)
    listener = doors.listen("127.0.0.1", 0)
    assert listener is not None
    body = {"model": "other-7b", "messages": OUT_OF_SCOPE, "stream": stream, "user": "forever"}

    async def end_meanwhile() -> str:
        door = doors.Door(listener)
        async with contextlib.AsyncExitStack() as open_door, httpx.AsyncClient(trust_env=False) as client:
            await open_door.enter_async_context(doors.opened(door, build_app(service)))
            asked = client.build_request("POST", door.url + CHAT, json=body)
            asking = asyncio.create_task(client.send(asked, stream=True))
            while not (asking.done() if stream else other.generations):  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.001)
            await open_door.aclose()
            return (await (await asking).aread()).decode()

    with listener:
        told = asyncio.run(end_meanwhile())
    if stream:
        assert other.left.wait(10)  # or that it was left would be told to the next test
    other.left.set()
    error = json.loads(told.rstrip().rpartition("data: ")[2])["error"]
    assert (error["code"], error["type"]) == ("E_MODEL", "server_error")
    assert "the server ends" in error["message"]
    assert not [record for record in caplog.records if record.exc_info]
