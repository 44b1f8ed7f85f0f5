"""The main job as a story: a real server, a real MCP client, the ``openai`` client, three corrections, one taken back.

Nothing is staged: which two facts the model gets wrong is found at run time, every claim is checked, and the exit code is 1
when any step is not as told. The full story goes on with what lasts (:mod:`ke_tools.demo._lasting`).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import atlas
from ke_tools.demo import _lasting
from ke_tools.demo._story import Story
from ke_tools.errors import TimedOut, Unavailable, Unsupported
from ke_tools.servers import clients
from ke_tools.verify.matching import asserts

if TYPE_CHECKING:
    from openai import AsyncOpenAI

    from ke_tools.config import Settings

_RULE_ASKED: Final = "How long is the refund window of Brightwater Coffee?"
_RULE: Final = {
    "subject": "Brightwater Coffee",
    "prompt": "The refund window of Brightwater Coffee is",
    "target": "45 days",
    "paraphrases": [_RULE_ASKED],
    "source": "the company's handbook",
}
_TOKENS: Final = 24
_RELATIONS: Final = ("capital", "largest_city", "currency", "highest_point", "author", "painter", "chemical_symbol", "inventor", "founder")
_CANDIDATES: Final = 24  # asked about together
_ROUNDS: Final = 4  # of candidates, until the model is wrong about two
_NEIGHBOURS: Final = 2
_NOT_THE_DEMOS: Final = ("KE_HOME", "KE_READ_ONLY", "KE_TOKEN_FILE")  # the demo has a home of its own and lets itself in


@dataclass(frozen=True, slots=True)
class Belief:
    """A fact of the atlas with what the model said."""

    fact: atlas.AtlasFact
    said: str

    @property
    def names(self) -> tuple[str, ...]:
        """What is right."""
        return (self.fact.objects[0], *atlas.aliases(self.fact.objects[0]))

    @property
    def is_right(self) -> bool:
        """Whether the model said it."""
        return asserts(self.said, self.names)

    @property
    def is_wrong(self) -> bool:
        """Whether the model said something else."""
        return not self.is_right and self.fact.objects[0].casefold() not in self.said.casefold()

    @property
    def edit(self) -> dict[str, Any]:
        """The correction as the tool takes it."""
        return {"subject": self.fact.subject, "prompt": self.worded(0), "target": self.fact.objects[0], "source": self.fact.source}

    def worded(self, number: int) -> str:
        """Give one of the relation's statements about the subject."""
        return atlas.relations()[self.fact.relation].statements[number].replace("{}", self.fact.subject)

    @property
    def question(self) -> str:
        """What the model was asked."""
        return _asked(self.fact, 0)

    @property
    def reworded(self) -> str:
        """The same in other words."""
        return _asked(self.fact, 1)


def _asked(fact: atlas.AtlasFact, number: int) -> str:
    return atlas.relations()[fact.relation].questions[number].replace("{}", fact.subject)


def run(settings: Settings, *, is_full: bool = False, as_json: bool = False) -> int:
    """Tell the story, the full one with what is written into the model; 0 when all of it was true.

    Raises:
        Unsupported: the ``openai`` client is not installed.
        KeToolsError: a step could not be done.
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
    if is_full:
        with tempfile.TemporaryDirectory(prefix="ke-demo-") as folder:
            _lasting.tell(story, settings, Path(folder))
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
        model = Model(openai, (await openai.models.list()).data[0].id)
        story.told(f"{model.id} answers at {url}/v1; agents correct it at {url}/mcp", model=model.id)
        wrong, others = await _beliefs(model)
        for belief in wrong:
            story.told(f"“{belief.question}” → “{belief.said}”", aside=f"it is {belief.fact.objects[0]}")
        neighbours = _neighbours(wrong, others)
        questions = [wrong[0].question, wrong[0].reworded, *(belief.question for belief in neighbours)]
        before = await _one_by_one(model, questions)
        story.told(f"“{_RULE_ASKED}” → “{await model.chat(_RULE_ASKED)}”", aside="no model can know")
        async with Client(f"{url}/mcp") as agent:
            edit_ids = await _correct(story, agent, wrong)
            await _ask_again(story, model, wrong)
            await _nothing_else(story, model, neighbours, before)
            await _verify(story, agent, edit_ids)
            await _take_back(story, agent, model, wrong, edit_ids[0], before)


async def _correct(story: Story, agent: Any, wrong: list[Belief]) -> list[str]:
    story.chapter("An agent corrects three things with one MCP call")
    done = await _call(agent, "edit", {"edits": [*(belief.edit for belief in wrong), _RULE]})
    for edit in done["edits"]:
        story.told(f"{edit['edit_id']}  {edit['prompt']} {edit['target']}", edit_id=edit["edit_id"])
    story.check("three edits are active", ok=[edit["state"] for edit in done["edits"]] == ["active"] * 3, summary=done["summary"])
    return [edit["edit_id"] for edit in done["edits"]]


async def _ask_again(story: Story, model: Model, wrong: list[Belief]) -> None:
    story.chapter("Every client of the endpoint gets the corrected answer, in other words too")
    for belief in wrong:
        answers = {text: await model.chat(text) for text in (belief.question, belief.reworded)}
        answers[belief.worded(1)] = await model.complete(belief.worded(1))
        for text, said in answers.items():
            story.check(f"“{text}” → “{said.strip()}”", ok=asserts(said, belief.names), said=said)
    said = await model.chat(_RULE_ASKED)
    story.check(f"“{_RULE_ASKED}” → “{said.strip()}”", ok=asserts(said, [str(_RULE["target"])]), said=said)


async def _nothing_else(story: Story, model: Model, neighbours: list[Belief], before: dict[str, str]) -> None:
    story.chapter("What was not corrected is as it was, byte for byte")
    after = await _one_by_one(model, [belief.question for belief in neighbours])
    for question, said in after.items():
        story.check(f"“{question}” → “{said}”", ok=said == before[question], before=before[question])


async def _verify(story: Story, agent: Any, edit_ids: list[str]) -> None:
    story.chapter("The agent asks for proof")
    card = await _measured(story, agent, edit_ids)
    for line in card["scorecard_text"].splitlines():
        story.told(line)
    rate = card["overall"]["reliability"]
    story.check(f"reliability {rate['value']:.2f} over {rate['n']} probes", ok=rate["measured"] and rate["value"] >= 0.9, card=card)  # noqa: PLR2004


async def _measured(story: Story, agent: Any, edit_ids: list[str]) -> dict[str, Any]:
    """The scorecard; a machine that is too slow for one call measures in a job."""
    told = await _call(agent, "verify", {"edit_ids": edit_ids})
    if not told["poll_after_ms"]:
        return told
    story.told(told["summary"])
    while told["poll_after_ms"]:
        told = await _call(agent, "job_status", {"job_id": told["job_id"], "wait_seconds": 20})
    if told["error_code"]:
        raise Unavailable(f"{told['job_id']} did not measure: {told['error_message']}", "Run the demo again.")
    found = await agent.read_resource(f"ke://scorecards/{told['scorecard']}")
    card: dict[str, Any] = json.loads(found.contents[0].text)
    return card


async def _take_back(story: Story, agent: Any, model: Model, wrong: list[Belief], edit_id: str, before: dict[str, str]) -> None:
    story.chapter("One correction is taken back")
    undone = await _call(agent, "rollback", {"edit_ids": [edit_id], "reason": "shown that it can be undone"})
    story.told(undone["summary"])
    taken_back, kept = wrong
    for question, said in (await _one_by_one(model, [taken_back.question, taken_back.reworded])).items():
        story.check(f"“{question}” → “{said}”, byte for byte what it was before", ok=said == before[question], before=before[question])
    other, rule = await model.chat(kept.question), await model.chat(_RULE_ASKED)
    held = asserts(other, kept.names) and asserts(rule, [str(_RULE["target"])])
    story.check("the other two corrections still hold", ok=held, said=[other, rule])


async def _beliefs(model: Model) -> tuple[list[Belief], list[Belief]]:
    """Ask about well-known things until two answers are wrong; give these, of different relations if possible, and all others.

    Raises:
        Unsupported: the model knows too much.
    """
    pool = [f for f in atlas.facts() if f.relation in _RELATIONS and len(f.objects) == 1]
    random.Random(0).shuffle(pool)  # noqa: S311  the same story every time
    asked: list[Belief] = []
    for start in range(0, _ROUNDS * _CANDIDATES, _CANDIDATES):
        facts = pool[start : start + _CANDIDATES]
        said = await asyncio.gather(*(model.chat(_asked(fact, 0)) for fact in facts))
        asked += [Belief(fact, answer) for fact, answer in zip(facts, said, strict=True)]
        wrong = [belief for belief in asked if belief.is_wrong]
        if len(wrong) > 1:
            second = next((b for b in wrong[1:] if b.fact.relation != wrong[0].fact.relation), wrong[1])
            return [wrong[0], second], [belief for belief in asked if belief not in (wrong[0], second)]
    raise Unsupported(
        f"{model.id} is right about all but {len(wrong)} of {len(asked)} well-known things; the demo needs two that it gets wrong.",
        "Take a smaller model, or correct something of your own: ke-tools edit.",
    )


def _neighbours(wrong: list[Belief], others: list[Belief]) -> list[Belief]:
    """Take other subjects of the corrected relations, those first about which the model is right."""
    relations = {belief.fact.relation for belief in wrong}
    return sorted(others, key=lambda b: (b.fact.relation not in relations, not b.is_right))[:_NEIGHBOURS]


@dataclass(frozen=True, slots=True)
class Model:
    """The served model, asked through the ``openai`` client, greedily."""

    openai: AsyncOpenAI
    id: str

    async def chat(self, question: str) -> str:
        """Ask in one chat turn."""
        messages: Any = [{"role": "user", "content": question}]
        made = await self.openai.chat.completions.create(model=self.id, messages=messages, temperature=0, max_tokens=_TOKENS)
        return made.choices[0].message.content or ""

    async def complete(self, prompt: str) -> str:
        """Have a statement completed."""
        made = await self.openai.completions.create(model=self.id, prompt=prompt, temperature=0, max_tokens=_TOKENS)
        return made.choices[0].text


async def _one_by_one(model: Model, questions: list[str]) -> dict[str, str]:
    """Ask one after the other, so that each is answered alone, before and after."""
    return {question: await model.chat(question) for question in questions}


async def _call(agent: Any, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    result = await agent.call_tool(tool, arguments)
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
    sources = {**settings.sources, "home": "--home"}
    launch = clients.launch(replace(settings, home=home, read_only=False, token_file=None, sources=sources))
    command = [*launch.command, "--http", address]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_THE_DEMOS}
    log = home / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=environment)  # noqa: ASYNC220
    try:
        await _ready(story, f"http://{address}/healthz", process, log)
        yield f"http://{address}"
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
