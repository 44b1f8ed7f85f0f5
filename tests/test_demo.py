"""The demo's story on scripted clients: it is told as it is, and any step that is not as told makes it fail."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import mcp
import openai
import pytest
from rich.console import Console

from ke_tools import atlas, demo
from ke_tools.config import Settings
from ke_tools.demo import _lasting
from ke_tools.demo._story import Story
from ke_tools.errors import Unsupported


@dataclass
class World:
    """A served model that knows the first of every two facts, obeys edits, and may misbehave in one way."""

    fault: str = ""
    edits: list[dict[str, Any]] = field(default_factory=list)
    retired: int = 0
    card: dict[str, Any] = field(default_factory=dict)

    def answer(self, prompt: str) -> str:
        """Say the target of an edit whose subject is named, else what the base says."""
        live = [edit for edit in self.edits if edit["state"] == "active" and edit["subject"] in prompt]
        if live and self.fault != "disobeys":
            return f"It is {live[-1]['target']}."
        if self.fault == "moves neighbours" and self.edits:
            return "It is something else now."
        if self.fault == "does not come back" and self.retired:
            return "It is not what it was."
        named = [fact for fact in atlas.facts() if fact.subject in prompt and any(w in prompt for w in _asking(fact))]
        knows = self.fault == "knows everything" or len(prompt) % 2
        return f"It is {named[0].objects[0]}." if named and knows else "I have no idea."

    async def call_tool(self, tool: str, arguments: dict[str, Any]) -> Any:
        """Do what the MCP tools do, as far as the story needs it."""
        if self.fault == "fails" and tool == "edit":
            return SimpleNamespace(is_error=True, content=[SimpleNamespace(text="E_INTERNAL: broken.")])
        done: dict[str, Any] = {"summary": f"{tool} done"}
        if tool == "edit":
            made = [{**edit, "edit_id": f"ed_{number}", "state": "active"} for number, edit in enumerate(arguments["edits"])]
            self.edits += made
            done["edits"] = made
        if tool == "list_edits":
            done["edits"] = [edit for edit in self.edits if arguments.get("contains", "") in edit["subject"]]
        if tool == "rollback":
            self.retired += 1
            for edit in self.edits:
                if edit["edit_id"] in arguments["edit_ids"]:
                    edit["state"] = "retired"
        if tool == "verify":
            value = 0.5 if self.fault == "does not verify" else 1.0
            self.card = {"scorecard_text": "all well", "overall": {"reliability": {"value": value, "n": 6, "measured": True}}}
            slow = {"poll_after_ms": 1000, "job_id": "job_1", "scorecard_text": "", "overall": {}}
            done |= slow if self.fault == "measures in a job" else {**self.card, "poll_after_ms": 0}
        if tool == "job_status":
            done |= {"poll_after_ms": 0, "job_id": arguments["job_id"], "scorecard": "ab12", "error_code": ""}
        return SimpleNamespace(is_error=False, structured_content=done)

    async def read_resource(self, uri: str) -> Any:
        """The scorecard that the job kept."""
        assert uri == "ke://scorecards/ab12"
        return SimpleNamespace(contents=[SimpleNamespace(text=json.dumps(self.card))])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def _asking(fact: atlas.AtlasFact) -> list[str]:
    return [wording.replace("{}", fact.subject) for wording in atlas.relations()[fact.relation].wordings]


class Client:
    """The ``openai`` client's calls that the story makes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.models = SimpleNamespace(list=self._models)
        self.completions = SimpleNamespace(create=self._complete)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._chat))

    async def _models(self) -> Any:
        return SimpleNamespace(data=[SimpleNamespace(id="scripted")])

    async def _chat(self, *, messages: list[dict[str, str]], **_: Any) -> Any:
        message = SimpleNamespace(content=self._world.answer(messages[-1]["content"]))
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    async def _complete(self, *, prompt: str, **_: Any) -> Any:
        return SimpleNamespace(choices=[SimpleNamespace(text=self._world.answer(prompt))])


def tell(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, as_json: bool = True) -> tuple[int, str]:
    """Run the demo on a world; give its exit code and what it printed."""

    @asynccontextmanager
    async def server(*_: object) -> AsyncIterator[str]:
        yield "http://127.0.0.1:1"

    monkeypatch.setattr(demo, "_server", server)
    monkeypatch.setattr(mcp, "Client", lambda _url: world)
    monkeypatch.setattr(openai, "AsyncOpenAI", lambda **_: Client(world))
    code = demo.run(Settings.load(), as_json=as_json)
    return code, capsys.readouterr().out


@pytest.mark.parametrize("machine", ["", "measures in a job"])
def test_the_story_holds_on_a_model_that_does_as_it_should(
    machine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 3 §5: ask, correct three, ask again in other words, neighbours, verify, roll back; with --json for programs."""
    code, printed = tell(World(machine), monkeypatch, capsys)
    story = json.loads(printed)
    assert (code, story["ok"]) == (0, True)
    claims = [step["claim"] for step in story["steps"] if "claim" in step]
    assert len(claims) == 1 + 7 + 2 + 1 + 2 + 1
    assert all(step["ok"] for step in story["steps"] if "claim" in step)


@pytest.mark.parametrize("fault", ["disobeys", "moves neighbours", "does not verify", "does not come back"])
def test_one_false_claim_makes_it_fail(fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §5: non-zero exit if any step is not as told."""
    code, printed = tell(World(fault), monkeypatch, capsys)
    assert (code, json.loads(printed)["ok"]) == (1, False)


def test_a_false_claim_is_marked_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §5: a readable story."""
    code, printed = tell(World("moves neighbours"), monkeypatch, capsys, as_json=False)
    assert code == 1
    assert "✗" in printed
    assert "NOT everything was as told" in printed


def test_a_tool_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """House rule: what fails says what was found."""
    with pytest.raises(Unsupported, match="E_INTERNAL: broken"):
        tell(World("fails"), monkeypatch, capsys)


def test_a_model_that_knows_everything_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §5: two that the model really gets wrong; nothing is staged where there are none."""
    with pytest.raises(Unsupported, match="needs two that it gets wrong"):
        tell(World("knows everything"), monkeypatch, capsys)


def test_the_neighbours_are_other_subjects_of_the_corrected_relations() -> None:
    """Issue 3 §5: asks about neighbours."""
    capitals = [fact for fact in atlas.facts() if fact.relation == "capital"][:3]
    author = next(fact for fact in atlas.facts() if fact.relation == "author")
    wrong = [demo.Belief(capitals[0], "no idea")]
    others = [demo.Belief(author, author.objects[0]), demo.Belief(capitals[1], "no idea"), demo.Belief(capitals[2], capitals[2].objects[0])]
    assert [belief.fact for belief in demo._neighbours(wrong, others)] == [capitals[2], capitals[1]]


async def _started(settings: Settings, monkeypatch: pytest.MonkeyPatch, home: Path) -> tuple[list[str], dict[str, str]]:
    seen: list[Any] = []

    class Process:
        def __init__(self, command: list[str], **given: Any) -> None:
            seen.extend((command, given["env"]))

        def terminate(self) -> None:
            pass

        def wait(self, timeout: float) -> None:
            pass

    async def ready(*_: object) -> None:
        pass

    monkeypatch.setattr(demo.subprocess, "Popen", Process)  # type: ignore[attr-defined]
    monkeypatch.setattr(demo, "_ready", ready)
    async with demo._server(Story(SimpleNamespace()), settings, home):  # type: ignore[arg-type]
        command, environment = seen
        return command, environment


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_server_gets_the_users_settings_and_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3: flags hold for what a verb starts; the demo's corrections never enter the user's ledger."""
    monkeypatch.setenv("KE_READ_ONLY", "1")
    settings = Settings.load(home=tmp_path / "mine", model=str(tmp_path), dtype="bfloat16", device="cpu", token_file=tmp_path / "tokens")
    command, environment = await _started(settings, monkeypatch, tmp_path)
    given = dict(pairwise(command))
    assert (given["--dtype"], given["--device"], given["--model"]) == ("bfloat16", "cpu", str(tmp_path))
    assert given["--home"] == str(tmp_path)
    assert "--token-file" not in command
    assert "--read-only" not in command
    assert "KE_READ_ONLY" not in environment


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_lasts_is_promoted_refused_taken_by_the_codebook_and_rolled_back(settings: Settings, tmp_path: Path) -> None:
    """Issue 6 §5: ten by whichever rung, a batch refused by MEMIT that GRACE takes, and everything byte-identical afterwards."""
    story = Story(Console(quiet=True))
    _lasting.tell(story, settings, tmp_path / "demo")
    claims = [step for step in story.steps if "claim" in step]
    assert [step for step in claims if not step["ok"]] == []
    assert "byte for byte" in claims[-1]["claim"]
