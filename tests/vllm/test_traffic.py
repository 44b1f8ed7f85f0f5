"""Many clients of several tenants at once, while releases are promoted and rolled back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from ke_tools.models.engine import Request
from ke_tools.servers.app import build_app
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.servers.tokens import Token, TokenFile
from ke_tools.testing import thimble_path
from tests.vllm.test_releases import FACTS, World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

    from ke_tools.config import Settings
    from tests.vllm.conftest import Server

__all__ = ["world"]

CLIENTS = 32
REQUESTS = int(os.environ.get("TRAFFIC_REQUESTS", "600"))  # 2,000 for benchmarks/LOG.md
FLIP_SECONDS = 2.0
SCOPES = frozenset({"chat", "read", "write", "admin"})
TENANTS = ("one", "two", "three")  # the last has no edits
QUESTIONS = ("What is the capital of France?", "What is the capital of Spain?")


@pytest.fixture
def service(settings: Settings, replica: Server, world: World) -> Iterator[Service]:
    """Two tenants with the same edits and a release each."""
    changed = dataclasses.replace(settings, engine="vllm", vllm_url=(replica.url,), model=str(thimble_path()))
    for release in (world.adapter, world.both):
        shutil.copytree(release.folder, changed.releases / release.name)
    opened = open_service(changed)
    yield opened
    engine: Any = opened.models.engine(wait_seconds=60)
    for name in sorted(engine.adapters):
        engine.unload_adapter(name)
    opened.close()


@dataclass
class Traffic:
    """Clients that ask, and somebody who promotes and rolls back meanwhile."""

    service: Service
    releases: dict[str, str]  # of tenants
    ids: dict[str, list[str]]
    allowed: dict[tuple[str, str], dict[str, list[float]]]
    wrong: list[Any] = field(default_factory=list)
    seen: set[tuple[str, str]] = field(default_factory=set)
    flips: int = 0

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        """One request; what its header says of the route must fit what it says."""
        tenant, question = TENANTS[number % 3], QUESTIONS[number % 2]
        asked = [{"role": "user", "content": question}]
        body = {"model": "thimble", "messages": asked, "max_tokens": 1, "temperature": 0, "logprobs": True}
        answer = await client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {tenant}"})
        if answer.status_code != 200:
            self.wrong.append((tenant, question, answer.status_code, answer.text[:300]))
            return
        route = answer.headers["ke-route"]
        self.seen.add((tenant, route))
        found = answer.json()["choices"][0]["logprobs"]["content"][0]["logprob"]
        allowed = self.allowed[tenant, question][route]
        if not any(found == pytest.approx(one, abs=1e-4) for one in allowed):
            self.wrong.append((tenant, question, route, found, allowed))

    async def flip(self, has_ended: asyncio.Event) -> None:
        """Promote and roll back in turn, for each tenant."""
        ledger = self.service.ledger
        while not has_ended.is_set():
            for tenant, release in self.releases.items():
                step = ledger.demote if ledger.live_release(tenant) else ledger.promote
                to = "" if ledger.live_release(tenant) else release
                await asyncio.to_thread(step, tenant, self.ids[tenant], release=to, actor="tests")
                self.flips += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(has_ended.wait(), FLIP_SECONDS)

    async def run(self, app: Starlette) -> None:
        """All of it."""
        numbers, has_ended = iter(range(REQUESTS)), asyncio.Event()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8765", timeout=120) as client,
        ):
            flipping = asyncio.create_task(self.flip(has_ended))

            async def work() -> None:
                for number in numbers:
                    await self.ask(client, number)

            await asyncio.gather(*(work() for _ in range(CLIENTS)))
            has_ended.set()
            await flipping


def test_nobody_gets_the_answer_of_another_release_while_releases_come_and_go(service: Service, world: World) -> None:
    """Issue 7, bars: 32 clients over base, two tenants' releases and the memory; 0 wrong, 0 errors."""
    releases = {"one": world.adapter.name, "two": world.both.name}
    facts = [{"subject": fact.subject, "prompt": fact.prompt, "target": fact.target} for fact in FACTS]
    made = {tenant: service.edit(Principal(tenant, tenant, SCOPES), facts)["edits"] for tenant in releases}
    ids = {tenant: [edit["edit_id"] for edit in edits] for tenant, edits in made.items()}
    tokens = TokenFile(tuple(Token(hashlib.sha256(n.encode()).hexdigest(), Principal(n, n, SCOPES)) for n in TENANTS))
    engine = service.models.engine(wait_seconds=60)
    for tenant, release in releases.items():
        service.ledger.promote(tenant, ids[tenant], release=release, actor="tests")
        service.promotions.adapter(tenant, engine)
    pairs = [(tenant, question) for tenant in TENANTS for question in QUESTIONS]
    allowed = {pair: _allowed(service, engine, pair[0], releases.get(pair[0], ""), pair[1]) for pair in pairs}
    traffic = Traffic(service, releases, ids, allowed)
    asyncio.run(traffic.run(build_app(service, token_file=tokens)))
    print({"requests": REQUESTS, "flips": traffic.flips, "wrong": len(traffic.wrong)})  # noqa: T201  for benchmarks/LOG.md
    assert not traffic.wrong
    assert traffic.flips > 2
    assert {("one", "memory"), ("three", "base")} <= traffic.seen
    assert {("one", "weights"), ("two", "weights")} & traffic.seen


def _allowed(service: Service, engine: Any, tenant: str, release: str, question: str) -> dict[str, list[float]]:
    """By route, what a tenant may be told: with its release, without any, with the fact told."""
    request = Request(messages=({"role": "user", "content": question},), max_tokens=1, logprobs=0)
    who = Principal(tenant, tenant, SCOPES)
    told = service.answering.memory_path(who, engine)(request).request

    def said(asked: Request, adapter: str) -> float:
        [made] = engine.generate([dataclasses.replace(asked, adapter=adapter)])
        assert made.logprobs
        return float(made.logprobs[0].logprob)

    adapters = ["", release] if release else [""]
    return {
        "base": [said(request, "")],
        "weights": [said(request, release)] if release else [],
        "memory": [said(told, adapter) for adapter in adapters],
    }
