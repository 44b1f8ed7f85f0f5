"""The MCP server over a service that follows the contract: both protocol eras, schemas, errors, principals, cancellation."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest
from mcp import Client, MCPError
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.types import CallToolResult

from ke_tools.errors import Conflict, InvalidInput
from ke_tools.servers import mcp as subject
from ke_tools.servers.mcp import ERROR_KEY, build_server

SYDNEY = {"subject": "Australia", "prompt": "The capital of Australia is", "target": "Sydney"}
TOOLS = ["edit", "query", "verify", "list_edits", "history", "rollback", "promote", "job_status", "job_cancel"]


def load_fake() -> ModuleType:
    """Read the service that the tests' processes use too."""
    spec = importlib.util.spec_from_file_location("fake_serve", Path(__file__).with_name("fake_serve.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = load_fake()
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio alone, as the servers do."""
    return "asyncio"


@pytest.fixture
def service(tmp_path: Path) -> Any:
    """A service without a model."""
    return fake.FakeService(fake.settings_of(str(tmp_path)))


@pytest.fixture(params=["auto", "legacy"])
async def client(request: pytest.FixtureRequest, service: Any) -> AsyncIterator[Client]:
    """A client of either protocol era, in memory."""
    async with Client(build_server(service), mode=request.param) as connected:
        yield connected


def error_of(result: CallToolResult) -> dict[str, Any]:
    """Check the shape that every failure has, and give its parts."""
    assert result.is_error
    assert result.structured_content is None, "TypeScript clients check it against the output schema even in errors"
    parts = (result.meta or {})[ERROR_KEY]
    [text] = [block.text for block in result.content if block.type == "text"]
    assert text.startswith(f"{parts['code']}: {parts['message']}")
    assert isinstance(parts, dict)
    return parts


async def test_edit_query_and_rollback_in_both_eras(client: Client, service: Any) -> None:
    """Issue 3 §4, MCP server: the tools do what the service does and give its results."""
    edited = await client.call_tool("edit", {"edits": [SYDNEY], "reason": "the user said so"})
    assert not edited.is_error
    content = edited.structured_content
    assert content is not None
    assert next(iter(content)) == "summary"
    assert content["summary"].endswith("your own model is not changed.")
    assert json.loads(edited.content[0].text) == content  # type: ignore[union-attr]
    asked = (await client.call_tool("query", {"question": "Capital of Australia?", "view": "both"})).structured_content
    assert asked is not None
    assert [answer["text"] for answer in asked["answers"]] == ["I do not know.", "Sydney"]
    listed = (await client.call_tool("list_edits", {"contains": "Austr", "limit": 5})).structured_content
    assert listed is not None
    [row] = listed["edits"]
    verified = (await client.call_tool("verify", {"edit_ids": [row["edit_id"]]})).structured_content
    assert verified is not None
    assert verified["passed"]
    told = (await client.call_tool("history", {"edit_id": row["edit_id"]})).structured_content
    assert told is not None
    assert told["events"][0]["edit_ids"] == [row["edit_id"]]
    back = (await client.call_tool("rollback", {"edit_ids": [row["edit_id"]]})).structured_content
    assert back is not None
    assert back["retired"][0]["state"] == "retired"
    assert service.rows == []
    assert {who.name for _, who in service.calls} == {"local"}


async def test_revision_zero_takes_everything_back(client: Client, service: Any) -> None:
    """Design §3: to_revision 0 means everything off, so "not given" is another number."""
    await client.call_tool("edit", {"edits": [SYDNEY, {**SYDNEY, "subject": "The capital"}]})
    assert not (await client.call_tool("rollback", {"to_revision": 0})).is_error
    assert service.rows == []


async def test_arguments_may_come_as_json_text(client: Client, service: Any) -> None:
    """research/mcp §1: Claude Desktop passes lists as strings."""
    assert not (await client.call_tool("edit", {"edits": json.dumps([SYDNEY])})).is_error
    assert len(service.rows) == 1


async def test_a_known_error_is_a_result_with_its_code(client: Client, service: Any) -> None:
    """research/mcp §4.1: text for the model, parts in _meta, no structured content."""
    service.failure = Conflict("Melbourne is live.", "Call list_edits.", live="Melbourne")
    parts = error_of(await client.call_tool("edit", {"edits": [SYDNEY]}))
    said = {"message": "Melbourne is live.", "hint": "Call list_edits.", "live": "Melbourne"}
    assert parts == {"code": "E_CONFLICT", "retryable": False, **said}


async def test_a_model_that_loads_says_when_to_ask_again(client: Client) -> None:
    """Issue 3 §4: query answers within 2 s with E_MODEL_LOADING and poll_after_ms."""
    parts = error_of(await client.call_tool("query", {"question": "loading?"}))
    assert (parts["code"], parts["poll_after_ms"], parts["retryable"]) == ("E_MODEL_LOADING", 2000, True)
    assert parts["waited"] < 2


async def test_an_unforeseen_error_stays_in_the_log(client: Client, service: Any, caplog: pytest.LogCaptureFixture) -> None:
    """research/mcp §4.1: E_INTERNAL carries a log id and nothing of the exception."""
    service.failure = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        result = await client.call_tool("list_edits", {})
    parts = error_of(result)
    assert parts["code"] == "E_INTERNAL"
    assert "secret" not in result.model_dump_json()
    assert parts["log_id"] in caplog.text
    assert "secret detail" in caplog.text


async def test_a_result_that_breaks_its_schema_is_an_internal_error(client: Client, service: Any) -> None:
    """research/mcp §1.3: clients throw away what does not match the output schema, so it must not leave."""
    service.list_edits = lambda *_, **__: {"summary": "listed", "edits": [{"edit_id": 7}]}
    assert error_of(await client.call_tool("list_edits", {}))["code"] == "E_INTERNAL"


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("edit", {"edits": []}, "edits: "),
        ("edit", {"edits": [{"subject": "A", "prompt": "A is"}]}, "give a target, or forget=true"),
        ("edit", {"edits": [{**SYDNEY, "forget": True}]}, "give a target, or forget=true"),
        ("edit", {"edits": [{**SYDNEY, "target": "x" * 5_000_000}]}, "edits.0.target: "),
        ("edit", {"edits": [{**SYDNEY, "old_taget": "x"}]}, "edits.0.old_taget: "),
        ("edit", {"edits": [{**SYDNEY, "k" * 10_000: "x"}]}, "edits.0.kkk"),
        ("edit", {"edits": [SYDNEY], "dryrun": True}, "no argument dryrun"),
        ("edit", {"edits": [SYDNEY], "mode": "merge"}, "mode: "),
        ("verify", {"edit_ids": [f"ed_{number}" for number in range(1001)]}, "at most 1000"),
        ("verify", {"edit_ids": ["ed_0"], "probes": [{"prompt": "p", "expect": "changed"}]}, "probes.0.expect: "),
        ("query", {"question": "q", "wait_seconds": 26}, "wait_seconds: "),
        ("list_edits", {"limit": 101}, "limit: "),
    ],
)
async def test_wrong_arguments_are_named_and_not_repeated(service: Any, tool: str, arguments: dict[str, Any], told: str) -> None:
    """Issue 3 §6 (5 MB body) and §4 (more than ten edits): E_INVALID says what is wrong without the input."""
    result = await build_server(service).call_tool(tool, arguments)
    assert isinstance(result, CallToolResult)
    parts = error_of(result)
    assert parts["code"] == "E_INVALID"
    assert told in parts["message"]
    assert len(parts["message"]) < 1000
    assert service.calls == []


async def test_an_unknown_tool_is_named(client: Client) -> None:
    """research/mcp §1.4: the model can read what went wrong."""
    assert error_of(await client.call_tool("demote", {}))["code"] == "E_NOT_FOUND"


async def test_read_only_leaves_the_writers_out(service: Any) -> None:
    """Issue 3 §4: --read-only refuses writes; research/mcp §3.4: it unregisters the writers."""
    server = build_server(service, read_only=True, tool_prefix="ke_")
    assert [tool.name for tool in await server.list_tools()] == ["ke_query", "ke_verify", "ke_list_edits", "ke_history", "ke_job_status"]
    result = await server.call_tool("ke_edit", {"edits": [SYDNEY]})
    assert isinstance(result, CallToolResult)
    assert error_of(result)["code"] == "E_READ_ONLY"
    assert service.calls == []
    assert "read-only" in (server.instructions or "")


async def test_every_schema_is_flat_and_every_hint_is_said(service: Any) -> None:
    """research/mcp §4.3, 5: no $ref, anyOf or null; descriptions up to 1 KB; names fit; all four hints are there."""
    tools = [tool.model_dump(by_alias=True, exclude_none=True) for tool in await build_server(service).list_tools()]
    assert [tool["name"] for tool in tools] == TOOLS
    for tool in tools:
        raw = json.dumps(tool)
        for forbidden in ("$ref", "$defs", "anyOf", "oneOf", "allOf", "null"):
            assert forbidden not in raw, (tool["name"], forbidden)
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", tool["name"])
        assert 100 < len(tool["description"].encode()) <= 1024
        assert {"title", "readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} == tool["annotations"].keys()
        assert tool["annotations"]["openWorldHint"] is False
        assert tool["annotations"]["readOnlyHint"] is (tool["name"] not in subject.WRITERS)
        assert tool["inputSchema"]["additionalProperties"] is False
        assert next(iter(tool["outputSchema"]["properties"])) == "summary"
    by_name = {tool["name"]: tool["inputSchema"]["properties"] for tool in tools}
    assert {"edits", "mode", "reason", "idempotency_key", "dry_run"} == by_name["edit"].keys()
    assert {"question", "view", "max_tokens", "explain", "via", "wait_seconds"} == by_name["query"].keys()
    assert {"edit_ids", "revision", "release", "suite", "probes", "wait_seconds"} == by_name["verify"].keys()
    assert all(schema["wait_seconds"]["maximum"] == 25 for schema in by_name.values() if "wait_seconds" in schema)
    assert {"paraphrases", "aliases", "relation", "old_target", "source"} < by_name["edit"]["edits"]["items"]["properties"].keys()
    assert tools[5]["annotations"]["destructiveHint"] is True
    assert len(json.dumps(tools)) < 32_000


async def test_a_verify_says_how_long_it_takes(service: Any) -> None:
    """A caller that expects seconds gives up on a call that takes minutes."""
    [verify] = [tool for tool in await build_server(service).list_tools() if tool.name == "verify"]
    assert "ten seconds an edit" in (verify.description or "")
    assert "progress is reported" in (verify.description or "")


async def test_a_prefix_is_used_wherever_a_tool_is_named(service: Any) -> None:
    """Issue 3 §4 and design §3: --tool-prefix changes the names, so texts that name tools follow."""
    server = build_server(service, tool_prefix="ke_")
    tools = await server.list_tools()
    assert [tool.name for tool in tools] == ["ke_" + name for name in TOOLS]
    assert "ke_verify" in (tools[0].description or "")
    assert "ke_rollback" in (server.instructions or "")
    assert len((server.instructions or "").encode()) <= 2048
    with pytest.raises(InvalidInput, match="prefix"):
        build_server(service, tool_prefix="ke tools/")


async def test_who_asks_comes_from_the_token_alone(service: Any) -> None:
    """Design §3, tenants and tokens: the actor is the token's name, never an argument."""
    server = build_server(service, admits_local=False)
    refused = await server.call_tool("list_edits", {})
    assert isinstance(refused, CallToolResult)
    assert error_of(refused)["code"] == "E_FORBIDDEN"
    token = AccessToken(token="", client_id="ci", subject="acme", scopes=["read"])
    mark = auth_context_var.set(AuthenticatedUser(token))
    try:
        assert not (await server.call_tool("list_edits", {})).is_error  # type: ignore[union-attr]
        forbidden = await server.call_tool("edit", {"edits": [SYDNEY]})
    finally:
        auth_context_var.reset(mark)
    assert isinstance(forbidden, CallToolResult)
    assert error_of(forbidden)["code"] == "E_FORBIDDEN"
    assert {(who.name, who.tenant) for _, who in service.calls} == {("ci", "acme")}


async def test_without_tokens_the_tenant_is_the_configured_one(tmp_path: Path) -> None:
    """Design §3: the same tenant whatever the way in; `tenant` of the configuration is the command line's and the server's."""
    service = fake.FakeService(fake.settings_of(str(tmp_path), tenant="acme"))
    assert not (await build_server(service).call_tool("list_edits", {})).is_error  # type: ignore[union-attr]
    assert {(who.name, who.tenant) for _, who in service.calls} == {("local", "acme")}


async def test_a_write_that_has_begun_is_finished_though_the_caller_leaves(client: Client, service: Any) -> None:
    """research/mcp §1.5 and design §4, 7: cancellation must not leave half an edit, or hide one."""
    service.may_write.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "edit", {"edits": [SYDNEY]})
        await anyio.to_thread.run_sync(service.writing.wait)
        group.cancel_scope.cancel()
        threading.Timer(0.2, service.may_write.set).start()  # after the cancellation has arrived
    deadline = time.monotonic() + 20
    while not service.rows:
        assert time.monotonic() < deadline
        await anyio.sleep(0.01)
    assert len((await client.call_tool("list_edits", {})).structured_content["edits"]) == 1


async def test_a_blocked_write_does_not_block_the_others(client: Client, service: Any) -> None:
    """Issue 3 §4: blocking calls run beside the event loop."""
    service.may_write.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "edit", {"edits": [SYDNEY]})
        answer = await client.call_tool("query", {"question": "Capital of Australia?"})
        service.may_write.set()
    assert answer.structured_content["answers"][0]["text"] == "I do not know."


async def test_a_long_answer_reports_progress(client: Client, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """research/mcp §3.3: hosts give up on silence; progress must strictly increase."""
    monkeypatch.setattr(subject, "HEARTBEAT_SECONDS", 0.01)
    heard, enough = [], anyio.Event()
    answer = service.answering.query

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        assert message
        heard.append(progress)
        if len(heard) == 3:
            enough.set()

    async def slow(*args: Any, **options: Any) -> Any:
        await enough.wait()
        return await answer(*args, **options)

    service.answering.query = slow
    result = await client.call_tool("query", {"question": "q"}, progress_callback=hear)
    assert not result.is_error
    assert heard[:3] == sorted(set(heard[:3]))


async def test_what_a_job_tells_and_that_the_call_is_alive_are_one_progress(
    client: Client, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MCP, progress: each number must be larger than the one before, also where a job's stages come between heartbeats."""
    monkeypatch.setattr(subject, "HEARTBEAT_SECONDS", 0.01)
    heard: list[tuple[float, str]] = []
    beaten = anyio.Event()
    measure = service.verifying.verify

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, str(message)))
        if "answers the probes" in str(message):
            beaten.set()

    async def slow(*args: Any, heard: Any, **options: Any) -> Any:
        job = SimpleNamespace(done=1, total=2, stage="probes", message="probes as edited")
        await heard(job)
        await beaten.wait()
        await heard(job)
        return await measure(*args, **options)

    service.verifying.verify = slow
    await client.call_tool("verify", {}, progress_callback=hear)
    assert "probes 1/2: probes as edited" in heard[-1][1]
    assert [number for number, _ in heard] == sorted({number for number, _ in heard})


async def test_resources_say_how_things_stand(client: Client) -> None:
    """Issue 3 §4 and research/mcp §4: ke://state and ke://edits/{id}; a missing one is -32602."""
    edited = (await client.call_tool("edit", {"edits": [SYDNEY]})).structured_content
    assert edited is not None
    edit_id = edited["edits"][0]["edit_id"]
    [state] = (await client.read_resource("ke://state")).contents
    assert json.loads(state.text)["model"] == "fake"  # type: ignore[union-attr]
    [one] = (await client.read_resource(f"ke://edits/{edit_id}")).contents
    assert json.loads(one.text)["target"] == "Sydney"  # type: ignore[union-attr]
    [card] = (await client.read_resource("ke://scorecards/ab12")).contents
    assert json.loads(card.text)["passed"]  # type: ignore[union-attr]
    for missing in ("ke://edits/none", "ke://scorecards/none"):
        with pytest.raises(MCPError) as caught:
            await client.read_resource(missing)
        assert caught.value.error.code == -32602


async def test_the_prompt_quotes_what_the_user_says(client: Client) -> None:
    """Design §4: what users write enters a prompt quoted on one line."""
    got = await client.get_prompt("correct_a_fact", {"correction": 'Sydney.\nIgnore "that"'})
    [message] = got.messages
    assert "\"Sydney. Ignore 'that'\"" in message.content.text  # type: ignore[union-attr]
