"""The web application around its parts: health, metrics, doors and their keepers."""

from __future__ import annotations

import hashlib
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_args

import pytest
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from starlette.testclient import TestClient

from ke_tools.errors import LedgerDamaged
from ke_tools.servers.app import build_app
from ke_tools.servers.auth import LARGEST_BODY
from ke_tools.servers.damage import Damage
from ke_tools.servers.principal import Principal
from ke_tools.servers.slot import SlotState
from ke_tools.servers.tokens import Token, TokenFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

BASE = "http://127.0.0.1:8765"


class Slot:
    """A model that is as told."""

    def __init__(self) -> None:
        self.state = "ready"
        self.detail = ""
        self.trouble = ""
        self.starts = 0

    def start(self) -> None:
        """Count."""
        self.starts += 1


class Ledger:
    """Two tenants, seven events, three live edits each; or damaged."""

    damaged = False

    def head(self) -> int:
        """Give the revision."""
        if self.damaged:
            raise LedgerDamaged("page 3 cannot be read.", "Restore a copy.")
        return 7

    def tenants(self) -> list[str]:
        """Name them."""
        return ["default", "acme"]

    def edits(self, tenant: str, *, states: Any, limit: int) -> Any:
        """Give a page that knows its total."""
        assert tenant
        assert len(states) == 2
        assert limit == 1
        return SimpleNamespace(total=3)


class Service:
    """What the application needs of a service when nobody asks a question."""

    model_id = "tiny"

    def __init__(self) -> None:
        self.settings = SimpleNamespace(model="embedded", is_remote=False, read_only=False)
        self.local = Principal()
        self.models = Slot()
        self.ledger = Ledger()
        self.trouble = ""
        self.damage = Damage()

    @property
    def revision(self) -> int:
        """The ledger's."""
        return self.ledger.head()


def app_of(service: Any, **options: Any) -> Starlette:
    """Build the application of a service that only looks like one."""
    return build_app(service, **options)


def tokens(**scopes: str) -> TokenFile:
    """Tokens whose secret is their name."""
    return TokenFile(
        tuple(Token(hashlib.sha256(n.encode()).hexdigest(), Principal(n, "acme", frozenset(s.split()))) for n, s in scopes.items())
    )


@pytest.fixture
def service() -> Service:
    """A service in good health."""
    return Service()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """A client of an open server on loopback."""
    with TestClient(app_of(service), BASE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def guarded(service: Service) -> Iterator[TestClient]:
    """A client of a server with tokens."""
    app = app_of(service, token_file=tokens(talker="chat", reader="read", boss="admin"), allowed_hosts=["ke.example"])
    with TestClient(app, BASE, raise_server_exceptions=False) as client:
        yield client


def test_starting_the_server_starts_loading_the_model(client: TestClient, service: Service) -> None:
    """Issue §4: the model loads in the background."""
    assert service.models.starts == 1
    assert client.get("/healthz").status_code == 200


def test_healthz_is_200_with_the_revision_when_questions_can_be_answered(client: TestClient) -> None:
    """Issue §4."""
    answer = client.get("/healthz").json()
    assert (answer["status"], answer["reason"], answer["revision"], answer["model"]) == ("ok", "", 7, "tiny")


@pytest.mark.parametrize("state", ["empty", "loading", "failed"])
def test_healthz_is_503_with_the_reason_before_the_model_is_ready(client: TestClient, service: Service, state: str) -> None:
    """Issue §4."""
    service.models.state, service.models.detail = state, "downloading 12 %"
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["reason"] == f"the model is not ready ({state}): downloading 12 %"


def test_healthz_is_503_while_a_server_of_our_own_is_away(client: TestClient, service: Service) -> None:
    """Issue 7, §1: the model was there, and its server died."""
    service.models.trouble = "E_MODEL: vLLM does not answer: it was ended by SIGKILL and is started again."
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["reason"] == service.models.trouble


def test_healthz_is_503_when_the_ledger_cannot_be_read(client: TestClient, service: Service) -> None:
    """Contract: 200 only when model ready and ledger readable."""
    service.ledger.damaged = True
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json()["reason"].startswith("E_LEDGER: page 3")
    assert answer.json()["revision"] == -1


def test_healthz_is_200_and_degraded_when_questions_are_answered_but_something_needs_a_person(client: TestClient, service: Service) -> None:
    """Issue §4: 200 when questions can be answered; design §4 no. 8: what is wrong nonetheless is said."""
    service.trouble = "E_READ_ONLY: the home takes no writes."
    answer = client.get("/healthz")
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["reason"]) == ("degraded", service.trouble)


def test_metrics_show_requests_the_revision_edits_and_the_model(client: TestClient) -> None:
    """Issue §4: /metrics in Prometheus' text format."""
    client.get("/healthz")
    client.get("/nowhere/at/all")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'ke_http_requests_total{path="/healthz",route="",status="200"} 1.0',
        'ke_http_requests_total{path="other",route="",status="404"} 1.0',
        "ke_ledger_revision 7.0",
        'ke_live_edits{tenant="acme"} 3.0',
        'ke_model_state{state="ready"} 1.0',
        'ke_model_state{state="loading"} 0.0',
        "ke_ledger_up 1.0",
    ):
        assert line in answer.text


@pytest.mark.parametrize(("name", "seen"), [("reader", ["acme"]), ("boss", ["default", "acme"])])
def test_metrics_tell_of_another_tenants_edits_only_to_an_admin(guarded: TestClient, name: str, seen: list[str]) -> None:
    """Design §3: a tenant learns nothing of another, not even that it is there or how much it corrects."""
    text = guarded.get("/metrics", headers={"authorization": f"Bearer {name}"}).text
    assert re.findall(r'^ke_live_edits{tenant="(.+)"}', text, re.MULTILINE) == seen


def test_metrics_name_only_states_that_the_model_can_be_in(client: TestClient) -> None:
    """A state that never comes would have operators wait for it; a download is a part of loading."""
    states = re.findall(r'^ke_model_state{state="(.+)"}', client.get("/metrics").text, re.MULTILINE)
    assert states == list(get_args(SlotState))


def test_metrics_survive_a_damaged_ledger(client: TestClient, service: Service) -> None:
    """Design §4.8: a broken part is said, not spread."""
    service.ledger.damaged = True
    text = client.get("/metrics").text
    assert "ke_ledger_up 0.0" in text
    assert "ke_live_edits{" not in text
    assert "page 3" in service.damage.told


def test_metrics_say_that_the_ledger_is_damaged_whoever_met_the_damage(client: TestClient, service: Service) -> None:
    """One truth: /healthz and /metrics must not contradict each other."""
    service.damage.note(("history",), "E_LEDGER: page 9 is malformed.")
    text = client.get("/metrics").text
    assert "ke_ledger_up 0.0" in text
    assert "ke_live_edits{" in text


def test_two_apps_in_one_process_do_not_share_numbers(client: TestClient) -> None:
    """An own registry, nothing global."""
    client.get("/healthz")
    with TestClient(app_of(Service()), BASE) as other:
        assert 'path="/healthz"' not in other.get("/metrics").text


def test_the_first_page_says_what_is_where(client: TestClient) -> None:
    """Contract: a short plain page."""
    text = client.get("/").text
    assert "tiny:base" in text
    for place in ("/v1", "/healthz", "/metrics"):
        assert place in text


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/models", "/v1/chat/completions", "/mcp"])
def test_an_evil_host_is_421_everywhere(client: TestClient, path: str) -> None:
    """Issue §6: evil Host (DNS rebinding)."""
    answer = client.get(path, headers={"host": "evil.example:8765"})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "E_FORBIDDEN"


@pytest.mark.parametrize("path", ["/", "/healthz", "/metrics", "/v1/models", "/mcp"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_an_evil_origin_is_403_everywhere(client: TestClient, path: str, origin: str) -> None:
    """Issue §6: evil Origin."""
    answer = client.get(path, headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["type"] == "permission_error"


def test_an_allowed_host_and_a_local_page_come_in(guarded: TestClient) -> None:
    """Contract: loopback names, the bound one, and those allowed."""
    headers = {"host": "ke.example:8765", "origin": "http://localhost:3000", "authorization": "Bearer talker"}
    assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer nobody"}])
def test_a_wrong_token_is_401_in_openais_shape(guarded: TestClient, header: dict[str, str]) -> None:
    """Issue §6: wrong token."""
    answer = guarded.get("/v1/models", headers=header)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["message"].startswith("E_FORBIDDEN: ")
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_wrong_token_at_mcp_is_401_with_a_bearer_challenge(guarded: TestClient) -> None:
    """research/mcp.md §1.8: a plain 401, no OAuth discovery bait."""
    answer = guarded.post("/mcp", headers={"authorization": "Bearer nobody"}, json={})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert answer.json()["error"] == "invalid_token"


def test_healthz_and_the_first_page_need_no_token(guarded: TestClient) -> None:
    """Contract: healthz open."""
    assert guarded.get("/healthz").status_code == 200
    assert guarded.get("/").status_code == 200


@pytest.mark.parametrize(
    ("name", "path", "status"),
    [
        ("talker", "/v1/models", 200),
        ("talker", "/metrics", 403),
        ("reader", "/metrics", 200),
        ("reader", "/v1/models", 403),
        ("boss", "/metrics", 200),
        ("boss", "/v1/models", 200),
    ],
)
def test_a_token_opens_what_its_scopes_say(guarded: TestClient, name: str, path: str, status: int) -> None:
    """Design §3: chat opens /v1 only; metrics need read."""
    answer = guarded.get(path, headers={"authorization": f"Bearer {name}"})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "E_FORBIDDEN"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/mcp"])
def test_a_five_megabyte_body_is_413(client: TestClient, path: str) -> None:
    """Issue §6: 5 MB body; the limit is 4 MiB."""
    answer = client.post(path, content=b"[" + b" " * LARGEST_BODY + b"]")
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "E_INVALID"


@pytest.mark.parametrize("path", ["/v1/completions", "/mcp"])
def test_a_large_body_of_undeclared_size_is_413_too(service: Service, path: str) -> None:
    """Issue §6: a chunked body has no content-length."""
    headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    with TestClient(app_of(service, mcp=MCPServer("t")), BASE) as client:
        answer = client.post(path, content=(b" " * 100_000 for _ in range(50)), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "E_INVALID"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"), [("GET", "/v1/nothing", 404, "E_NOT_FOUND"), ("GET", "/v1/completions", 405, "E_INVALID")]
)
def test_a_wrong_path_or_method_is_told_in_openais_shape(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    """Issue §4: errors in OpenAI's shape."""
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_a_bug_is_500_without_its_text(client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What broke inside is for the log, not for the client."""
    monkeypatch.setattr(type(service), "model_id", property(lambda _: 1 / 0))
    answer = client.get("/v1/models")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "E_INTERNAL"
    assert "division" not in answer.text


def initialize(client: TestClient, token: str, headers: dict[str, str] | None = None) -> Any:
    """Open an MCP session (2025-11-25)."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    return post(client, token, {"id": 1, "method": "initialize", "params": params}, headers)


def post(client: TestClient, token: str, message: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
    """Send one JSON-RPC message."""
    sent = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream", **(headers or {})}
    return client.post("/mcp", headers=sent, json={"jsonrpc": "2.0", **message})


def test_an_mcp_tool_sees_the_principal_of_each_request_and_a_session_is_its_openers(service: Service) -> None:
    """Design §3: tenant and actor come from the token alone; research/mcp.md §1.8: sessions are bound to their principal."""
    server = MCPServer("t")
    seen: list[Principal] = []

    @server.tool()
    def whoami() -> str:
        """Say who asks."""
        token = get_access_token()
        assert token is not None
        seen.append(Principal(token.client_id, token.subject or "", frozenset(token.scopes)))
        return "ok"

    app = app_of(service, token_file=tokens(ann="read", bob="read"), allowed_hosts=["ke.example"], mcp=server)
    with TestClient(app, BASE) as client:
        opened = initialize(client, "ann")
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        call = {"id": 2, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
        post(client, "ann", {"method": "notifications/initialized"}, session)
        assert post(client, "ann", call, session).status_code == 200
        assert post(client, "bob", call, session).status_code == 404
        assert initialize(client, "bob", {"host": "ke.example"}).status_code == 200
        assert initialize(client, "bob", {"host": "evil.example"}).status_code == 421
    assert seen == [Principal("ann", "acme", frozenset({"read"}))]
