"""The main job as a story: a real server, a real MCP client, the ``openai`` client, three corrections, one taken back.

Nothing is staged: which two facts the model gets wrong is found at run time, every claim is checked, and the exit code is 1
when any step is not as told.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from ke_tools import atlas
from ke_tools.errors import TimedOut, Unsupported
from ke_tools.verify.matching import asserts

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from rich.console import Console

    from ke_tools.config import Settings

_RULE: Final = {
    "subject": "Brightwater Coffee",
    "prompt": "The refund window of Brightwater Coffee is",
    "target": "45 days",
    "paraphrases": ["How long is the refund window of Brightwater Coffee?"],
    "source": "the company's handbook",
}
_RELATIONS: Final = ("capital", "largest_city", "currency", "highest_point", "author", "painter", "chemical_symbol", "inventor", "founder")
_CANDIDATES: Final = 24
_NEIGHBOURS: Final = 2


@dataclass(slots=True)
class Story:
    """What was told and whether it was true."""

    console: Console
    steps: list[dict[str, Any]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """Open a chapter."""
        self.console.print(f"\n[bold cyan]{title}[/]")

    def told(self, line: str, *, aside: str = "", **facts: Any) -> None:
        """Say something that needs no proof; an aside stands behind it in red."""
        self.console.print(f"  {escape(line)}" + (f"  [red]({escape(aside)})[/]" if aside else ""), highlight=False)
        self.steps.append({"told": f"{line}  ({aside})" if aside else line, **facts})

    def check(self, claim: str, *, ok: bool, **facts: Any) -> None:
        """Say something that must be so."""
        self.console.print(f"  [{'green' if ok else 'bold red'}]{'✓' if ok else '✗'}[/] {escape(claim)}", highlight=False)
        self.steps.append({"claim": claim, "ok": ok, **facts})

    @property
    def ok(self) -> bool:
        """Whether all claims held."""
        return all(step.get("ok", True) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Belief:
    """A fact of the atlas with what the model said."""

    fact: atlas.AtlasFact
    question: str
    said: str

    @property
    def edit(self) -> dict[str, Any]:
        """The correction as the tool takes it."""
        relation = atlas.relations()[self.fact.relation]
        return {
            "subject": self.fact.subject,
            "prompt": relation.statements[0].replace("{}", self.fact.subject),
            "target": self.fact.objects[0],
            "source": self.fact.source,
        }


def run(settings: Settings, *, as_json: bool = False) -> int:
    """Tell the story; 0 when all of it was true.

    Raises:
        Unsupported: the ``openai`` client is not installed.
    """
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise Unsupported("the demo talks through the openai client, which is not installed.", "pip install 'ke-tools[demo]'") from error
    from rich.console import Console

    story = Story(Console(quiet=as_json, soft_wrap=True))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ke-demo-") as folder:
        asyncio.run(_tell(story, settings, Path(folder)))
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        sys.stdout.write(json.dumps({"ok": story.ok, "seconds": seconds, "steps": story.steps}, ensure_ascii=False) + "\n")
    story.chapter(f"{'Every claim above was checked and held' if story.ok else 'NOT everything was as told'} ({seconds} s).")
    return 0 if story.ok else 1


async def _tell(story: Story, settings: Settings, home: Path) -> None:
    from mcp import Client
    from openai import AsyncOpenAI

    story.chapter("A server with a real language model, and nothing corrected yet")
    async with _server(story, settings, home) as url:
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
        model = (await openai.models.list()).data[0].id
        story.told(f"{model} answers at {url}/v1; agents correct it at {url}/mcp", model=model)
        wrong, known = await _beliefs(openai, model)
        for belief in wrong:
            story.told(f"“{belief.question}” → “{belief.said}”", aside=f"it is {belief.fact.objects[0]}")
        neighbours = _neighbours(wrong, known)
        before = await _snapshot(openai, model, wrong, neighbours)
        story.told(f"“{_RULE['paraphrases'][0]}” → “{before['rule']}”", aside="no model can know")
        async with Client(f"{url}/mcp") as agent:
            await _correct(story, agent, wrong)
            await _ask_again(story, openai, model, wrong)
            await _nothing_else(story, openai, model, wrong, neighbours, before)
            await _verify(story, agent)
            await _take_back(story, agent, openai, model, wrong, before)


async def _correct(story: Story, agent: Any, wrong: list[Belief]) -> None:
    story.chapter("An agent corrects three things with one MCP call")
    done = await _call(agent, "edit", {"edits": [*(belief.edit for belief in wrong), _RULE]})
    for edit in done["edits"]:
        story.told(f"{edit['edit_id']}  {edit['prompt']} {edit['target']}", edit_id=edit["edit_id"])
    story.check("three edits are active", ok=[edit["state"] for edit in done["edits"]] == ["active"] * 3, summary=done["summary"])


async def _ask_again(story: Story, openai: AsyncOpenAI, model: str, wrong: list[Belief]) -> None:
    story.chapter("Every client of the endpoint gets the corrected answer, in other words too")
    for belief in wrong:
        relation = atlas.relations()[belief.fact.relation]
        names = (belief.fact.objects[0], *atlas.aliases(belief.fact.objects[0]))
        statement = relation.statements[1].replace("{}", belief.fact.subject)
        for text, answer in (
            (belief.question, await _chat(openai, model, belief.question)),
            (relation.questions[1].replace("{}", belief.fact.subject), ""),
            (statement, await _complete(openai, model, statement)),
        ):
            said = answer or await _chat(openai, model, text)
            story.check(f"“{text}” → “{said.strip()}”", ok=asserts(said, names), said=said)
    said = await _chat(openai, model, _RULE["paraphrases"][0])
    story.check(f"“{_RULE['paraphrases'][0]}” → “{said.strip()}”", ok=asserts(said, [str(_RULE["target"])]), said=said)


async def _nothing_else(
    story: Story, openai: AsyncOpenAI, model: str, wrong: list[Belief], neighbours: list[Belief], before: dict[str, str]
) -> None:
    story.chapter("What was not corrected is as it was, byte for byte")
    after = await _snapshot(openai, model, wrong, neighbours)
    for belief in neighbours:
        same = after[belief.question] == before[belief.question]
        story.check(f"“{belief.question}” → “{after[belief.question]}”", ok=same, before=before[belief.question])


async def _verify(story: Story, agent: Any) -> None:
    story.chapter("The agent asks for proof")
    listed = await _call(agent, "list_edits", {"state": "active"})
    ids = [edit["edit_id"] for edit in listed["edits"]]
    for _ in range(30):
        result = await agent.call_tool("verify", {"edit_ids": ids})
        if not (result.is_error and "E_MODEL_LOADING" in result.content[0].text):
            break
        await asyncio.sleep(2)
    card = _structured(result)
    for line in card["scorecard_text"].splitlines():
        story.told(line)
    rate = card["overall"]["reliability"]
    story.check(f"reliability {rate['value']:.2f} over {rate['n']} probes", ok=rate["measured"] and rate["value"] >= 0.9, card=card)  # noqa: PLR2004


async def _take_back(
    story: Story,
    agent: Any,
    openai: AsyncOpenAI,
    model: str,
    wrong: list[Belief],
    before: dict[str, str],
) -> None:
    story.chapter("One correction is taken back")
    listed = await _call(agent, "list_edits", {"contains": wrong[0].fact.subject})
    undone = await _call(agent, "rollback", {"edit_ids": [listed["edits"][0]["edit_id"]], "reason": "shown that it can be undone"})
    story.told(undone["summary"])
    question = wrong[0].question
    said = await _chat(openai, model, question)
    story.check(f"“{question}” → “{said}”, byte for byte what it was before", ok=said == before[question])
    rule = await _chat(openai, model, str(_RULE["paraphrases"][0]))
    story.check("the other corrections still hold", ok=asserts(rule, [str(_RULE["target"])]), said=rule)


async def _beliefs(openai: AsyncOpenAI, model: str) -> tuple[list[Belief], list[Belief]]:
    """Ask about well-known things; give two that the model gets wrong, and all that it gets right."""
    pool = [f for f in atlas.facts() if f.relation in _RELATIONS and len(f.objects) == 1]
    drawn = random.Random(0).sample(pool, _CANDIDATES)  # noqa: S311
    questions = [atlas.relations()[f.relation].questions[0].replace("{}", f.subject) for f in drawn]
    said = await asyncio.gather(*(_chat(openai, model, question) for question in questions))
    asked = [Belief(*parts) for parts in zip(drawn, questions, said, strict=True)]
    right = [b for b in asked if asserts(b.said, (b.fact.objects[0], *atlas.aliases(b.fact.objects[0])))]
    wrong = [b for b in asked if b not in right and b.fact.objects[0].casefold() not in b.said.casefold()]
    # Two corrections of different kinds are worth more than two of one.
    first = wrong[0]
    second = next((b for b in wrong[1:] if b.fact.relation != first.fact.relation), wrong[1])
    return [first, second], right


def _neighbours(wrong: list[Belief], known: list[Belief]) -> list[Belief]:
    relations = {belief.fact.relation for belief in wrong}
    near = sorted(known, key=lambda belief: belief.fact.relation not in relations)
    return near[:_NEIGHBOURS]


async def _snapshot(openai: AsyncOpenAI, model: str, wrong: list[Belief], neighbours: list[Belief]) -> dict[str, str]:
    """Ask one after the other, so that each is answered alone both times."""
    questions = [belief.question for belief in (*wrong, *neighbours)]
    answers = {question: await _chat(openai, model, question) for question in questions}
    return answers | {"rule": await _chat(openai, model, str(_RULE["paraphrases"][0]))}


async def _chat(openai: AsyncOpenAI, model: str, question: str) -> str:
    made = await openai.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24)
    return made.choices[0].message.content or ""


async def _complete(openai: AsyncOpenAI, model: str, prompt: str) -> str:
    return (await openai.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=24)).choices[0].text


async def _call(agent: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return _structured(await agent.call_tool(tool, arguments))


def _structured(result: Any) -> dict[str, Any]:
    if result.is_error:
        raise Unsupported(f"a tool failed in the demo: {result.content[0].text}")
    found: dict[str, Any] = result.structured_content
    return found


@asynccontextmanager
async def _server(story: Story, settings: Settings, home: Path) -> AsyncIterator[str]:
    """Start ``ke-tools serve --http`` on a home of its own; wait until it can answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-P", "-m", "ke_tools", "--home", str(home), "--model", settings.model, "serve", "--http", address]
    log = home / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)  # noqa: ASYNC220
    try:
        await _ready(story, f"http://{address}/healthz", process, log)
        yield f"http://{address}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()


async def _ready(story: Story, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    told = ""
    deadline = time.monotonic() + 900  # a first download on a slow line
    async with httpx.AsyncClient() as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                health = await client.get(url)
            except httpx.TransportError:
                await asyncio.sleep(0.2)
                continue
            if health.status_code == httpx.codes.OK:
                return
            reason = str(health.json().get("reason", ""))
            if reason and reason != told:
                story.told(reason)
                told = reason
            await asyncio.sleep(0.3)
    raise TimedOut(f"the server did not get ready. Its log ends: {_end_of(log)}", "See `ke-tools doctor`.")


def _end_of(log: Path) -> str:
    return log.read_text("utf-8", "replace")[-2000:]
