"""A whole server with tokens, as clients reach it over HTTP; the model behind it says what it was asked and what it was told."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from starlette.testclient import TestClient

from ke_tools.config import ChatCorrections, Settings
from ke_tools.memory.ledger import Ledger
from ke_tools.servers.app import build_app
from ke_tools.servers.mcp import ERROR_KEY, build_server
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot
from ke_tools.servers.tokens import Token, TokenFile
from tests.servers.test_service import Scripted

WHO: Final = {
    "root": Principal("root", "acme", frozenset({"admin"})),
    "ann": Principal("ann", "acme", frozenset({"write", "chat"})),
    "bob": Principal("bob", "acme", frozenset({"write"})),
    "eve": Principal("eve", "acme", frozenset({"propose", "chat"})),
    "busy": Principal("busy", "acme", frozenset({"propose"}), 3),
    "carl": Principal("carl", "acme", frozenset({"chat"})),
    "reader": Principal("reader", "acme", frozenset({"read"})),
}


def opened(settings: Settings) -> Service:
    """A service on a scripted model."""
    return Service(settings, Ledger(settings.ledger_file), ModelSlot(lambda _say: Scripted()), model_id="scripted")


def tokens_of(people: Mapping[str, Principal]) -> TokenFile:
    """A token for each, whose secret is the name."""
    return TokenFile(tuple(Token(hashlib.sha256(name.encode()).hexdigest(), who) for name, who in people.items()))


class Door:
    """The HTTP side of a service."""

    def __init__(self, service: Service, client: TestClient) -> None:
        self.service = service
        self._client = client

    @classmethod
    @contextmanager
    def of(cls, service: Service, chat_corrections: ChatCorrections = "off") -> Iterator[Door]:
        """Open it; each token's secret is its name."""
        app = build_app(
            service, token_file=tokens_of(WHO), mcp=build_server(service, admits_local=False), chat_corrections=chat_corrections
        )
        service.models.engine(20)
        with TestClient(app, "http://127.0.0.1:8765") as client:
            yield cls(service, client)

    def chat(self, name: str, *turns: str) -> str:
        """Say something as a user of the endpoint, the model's answers in between; return its last one."""
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            answer = self._client.post(
                "/v1/chat/completions",
                headers={"authorization": f"Bearer {name}"},
                json={"model": "scripted", "messages": messages, "max_tokens": 16},
            )
            assert answer.status_code == 200, answer.text
            messages.append(answer.json()["choices"][0]["message"])
        return messages[-1]["content"]

    def call(self, name: str, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call an MCP tool in a session of its own; return its result, or its error."""
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        hello = self._post(name, {"id": 1, "method": "initialize", "params": params}, {})
        session = {"mcp-session-id": hello.headers["mcp-session-id"]}
        self._post(name, {"method": "notifications/initialized"}, session)
        said = self._post(name, {"id": 2, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}, session)
        [line] = [line for line in said.text.splitlines() if line.startswith("data: {")]
        result = json.loads(line.removeprefix("data: "))["result"]
        found: dict[str, Any] = {"error": result["_meta"][ERROR_KEY]} if result.get("isError") else result["structuredContent"]
        return found

    def _post(self, name: str, message: dict[str, Any], headers: dict[str, str]) -> Any:
        sent = {"authorization": f"Bearer {name}", "accept": "application/json, text/event-stream", **headers}
        return self._client.post("/mcp", headers=sent, json={"jsonrpc": "2.0", **message})
