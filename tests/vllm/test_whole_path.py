"""The main job before a real vLLM: edit, query, endpoint, verify, promote, roll back; servers that lack something, and that die."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from starlette.testclient import TestClient

from ke_tools.errors import KeToolsError, ModelUnavailable, Unsupported
from ke_tools.models import checkpoint
from ke_tools.models.engine import Request
from ke_tools.servers.app import build_app
from ke_tools.servers.engines.vllm import VLLM
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.testing import thimble_path
from tests.servers.engines.test_hf import make_adapter
from tests.vllm.conftest import let_go
from tests.vllm.test_releases import FACTS, World, world

if TYPE_CHECKING:
    from pathlib import Path

    from ke_tools.config import Settings
    from tests.vllm.conftest import Server

__all__ = ["world"]

BASE = "http://127.0.0.1:8765"
LOCAL = Principal()
QUESTION = "What is the capital of Japan?"
CAPITAL = {"subject": "Japan", "prompt": "The capital of Japan is", "target": "Cairo"}


@contextmanager
def opened(settings: Settings, **changes: Any) -> Iterator[Service]:
    """A service of these settings."""
    service = open_service(dataclasses.replace(settings, **changes))
    try:
        yield service
    finally:
        service.close()


@contextmanager
def client_of(service: Service) -> Iterator[openai.OpenAI]:
    """The official client, before the endpoint."""
    with TestClient(build_app(service), BASE) as http, openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=http) as client:
        yield client


def said(client: openai.OpenAI, model: str = "thimble", **more: Any) -> str:
    """The answer to the question, whole and streamed, which must be the same."""
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked, **more)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in client.chat.completions.create(**asked, **more, stream=True))
    assert whole.model == model
    assert whole.choices[0].message.content == streamed
    return streamed.strip()


def verified(service: Service, edit_id: str) -> Any:
    """Verify one edit."""
    return asyncio.run(service.verifying.verify(LOCAL, [edit_id], wait_seconds=25, is_patient=True))


def finished(service: Service, edit_id: str, **more: Any) -> Any:
    """The job that promotes an edit, at its end, through a gate that asks little: the gate itself is tested elsewhere.

    It may draw many probes, as which are drawn follows from the edit's random id, and the tiny model knows few of its neighbours.
    """
    unasked = ("generalisation", "locality_same_subject", "forgetfulness", "earlier")
    policy = {**dict.fromkeys(unasked, 0.0), "reliability": 0.3, "locality_other_subject": 0.3, "probes": 8, "most": 96}
    job = asyncio.run(service.promote(LOCAL, [edit_id], policy=policy, **more))
    end = time.monotonic() + 400
    while job["poll_after_ms"]:
        assert time.monotonic() < end, job
        job = asyncio.run(service.job_status(LOCAL, job["job_id"], wait_seconds=5))
    return job


def promoted(service: Service, edit_id: str, **more: Any) -> Any:
    """The job that promoted it."""
    job = finished(service, edit_id, **more)
    assert job["status"] == "completed", job
    return job


def test_a_stock_server_without_a_flag_of_ours_serves_the_main_job(settings: Settings, servers: dict[str, Server]) -> None:
    """Issue 7, bars: edit, query, endpoint, verify, rollback by IKE."""
    with opened(settings, upstream=servers["stock"].url) as service, client_of(service) as client:
        assert said(client) == "Tokyo."
        edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
        assert said(client) == "Cairo."
        [check] = verified(service, edit_id)["checks"]
        assert check["edit_id"] == edit_id
        with pytest.raises(Unsupported):
            asyncio.run(service.promote(LOCAL, [edit_id]))
        service.rollback(LOCAL, edit_ids=[edit_id])
        assert said(client) == "Tokyo."


def test_an_edit_climbs_into_the_weights_and_comes_down(settings: Settings, replica: Server) -> None:
    """Issue 7, §2 and bars: gated through the served engine, flipped and taken back in well under a second."""
    changes: dict[str, Any] = {"engine": "vllm", "vllm_url": (replica.url,), "model": str(thimble_path())}
    with opened(settings, **changes) as service, client_of(service) as client:
        edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
        job = promoted(service, edit_id)
        assert job["release"], job["decisions"]
        by_weights = asyncio.run(service.answering.query(LOCAL, QUESTION, via="weights", max_tokens=12, wait_seconds=10))
        assert by_weights["answers"][0]["text"] == "Cairo."
        assert said(client) == "Cairo."
        began = time.monotonic()
        service.rollback(LOCAL, edit_ids=[edit_id])
        took = time.monotonic() - began
        assert said(client) == "Tokyo."
        assert took < 1


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[..., VLLM]]:
    """Connects an engine to servers."""
    made: list[VLLM] = []

    def connect(*urls: str, reader: Path | None = None) -> VLLM:
        path = thimble_path()
        fingerprint = checkpoint.fingerprint(path, cache=tmp_path / "cache")
        made.append(VLLM(urls, path=path, fingerprint=fingerprint, root=tmp_path / "served", reader=reader))
        return made[-1]

    yield connect
    let_go(made)


def test_a_server_without_adapters_says_so(world: World, connect: Callable[..., VLLM], servers: dict[str, Server]) -> None:
    """Issue 7, bad input: a vLLM without LoRA; the memory still works there."""
    engine = connect(servers["stock"].url)
    with pytest.raises(KeToolsError, match="does not load it"):
        engine.load_adapter(world.adapter.name, world.adapter.folder)
    assert engine.adapters == frozenset()
    assert engine.generate([Request(prompt=FACTS[0].prompt, max_tokens=4)])[0].text


def test_without_the_plugin_codebooks_are_refused_and_updates_served(
    world: World, connect: Callable[..., VLLM], servers: dict[str, Server]
) -> None:
    """Issue 7, §3: a server without it ignores codebooks silently."""
    engine = connect(servers["bare"].url)
    with pytest.raises(Unsupported, match="plugin of ke-tools is missing"):
        engine.load_adapter(world.book.name, world.book.folder)
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    assert engine.adapters == {world.adapter.name}


def test_too_small_a_rank_is_told_with_the_flag(world: World, connect: Callable[..., VLLM], servers: dict[str, Server]) -> None:
    """Issue 7, bad input: what an update of full rank would lose at rank 8."""
    engine = connect(servers["bare"].url)
    engine.load_adapter(world.wide.name, world.wide.folder)  # two directions in two hundred: nothing is lost
    assert engine._fleet.wanted[world.wide.name].rank == 8


@pytest.mark.parametrize(("modules", "is_served"), [(("q_proj", "v_proj"), True), (("q_proj", "o_proj"), False)])
def test_a_reader_of_which_a_server_ignores_modules_is_not_served_there(
    connect: Callable[..., VLLM],
    servers: dict[str, Server],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    modules: tuple[str, ...],
    is_served: bool,
) -> None:
    """Issue 7, §4: modules that the server does not target are ignored silently, so it is checked; half a reader is none."""
    bare = servers["bare"]
    engine = connect(bare.url, reader=make_adapter(tmp_path / "reader", thimble_path(), modules=modules))
    assert ("reader" in engine.adapters) == is_served
    assert ("ignores the reader's o_proj: it was started without" in caplog.text) != is_served
    assert len([card for card in engine.cards() if card.get("parent")]) == is_served


def test_one_server_that_refuses_leaves_none_with_a_release(
    world: World, connect: Callable[..., VLLM], servers: dict[str, Server], replica: Server
) -> None:
    """Issue 7, §2: partial failure rolls back and says which replica."""
    engine = connect(replica.url, servers["stock"].url)
    before = {card["id"] for card in engine._fleet.replicas[0].server.cards()}
    with pytest.raises(KeToolsError, match=servers["stock"].url):
        engine.load_adapter(world.adapter.name, world.adapter.folder)
    assert {card["id"] for card in engine._fleet.replicas[0].server.cards()} == before


def test_traffic_goes_on_when_a_server_is_killed_and_the_next_one_has_all_before_it_is_asked(
    world: World, connect: Callable[..., VLLM], servers: dict[str, Server], replica: Server
) -> None:
    """Issue 7, bars: replica killed and restarted during traffic; never a wrong release; recovers by itself."""
    second = servers["second"]
    engine = connect(replica.url, second.url)
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    plain, released = (Request(prompt=FACTS[1].prompt, max_tokens=6, adapter=name, logprobs=0) for name in ("", world.adapter.name))
    wanted = {name: _numbers(engine, one) for name, one in (("base", plain), ("release", released))}
    stop, wrong, count = threading.Event(), [], 0

    def ask() -> None:
        nonlocal count
        while not stop.wait(0.2):
            for name, one in (("base", plain), ("release", released)):
                found = _numbers(engine, one)
                count += 1
                if found != pytest.approx(wanted[name], abs=1e-4):
                    wrong.append((name, found))

    threads = [threading.Thread(target=_noting(ask, wrong)) for _ in range(2)]
    for thread in threads:
        thread.start()
    second.kill()
    second.start()
    second.wait()
    before = count
    end = time.monotonic() + 60
    while not all(one.is_current for one in engine._fleet.replicas) or count < before + 40:
        assert time.monotonic() < end
        assert threads[0].is_alive(), wrong
        time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert engine.served_as(world.adapter.name) in {card["id"] for card in engine._fleet.replicas[1].server.cards()}


def _numbers(engine: VLLM, request: Request) -> list[float]:
    [made] = engine.generate([request])
    return [token.logprob for token in made.logprobs or ()]


def _noting(work: Callable[[], None], wrong: list[Any]) -> Callable[[], None]:
    """Work whose failure is noted, as a thread's would be lost."""

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001
            wrong.append(error)

    return run


def test_when_all_servers_are_dead_it_is_told_and_they_are_found_again(
    world: World, connect: Callable[..., VLLM], servers: dict[str, Server]
) -> None:
    """Issue 7, bad input: dead; recovers by itself."""
    second = servers["second"]
    engine = connect(second.url)
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    request = Request(prompt=FACTS[0].prompt, max_tokens=4, adapter=world.adapter.name)
    before = engine.generate([request])
    second.kill()
    with pytest.raises(ModelUnavailable):
        engine.generate([request])
    second.start()
    second.wait()
    end = time.monotonic() + 30
    while True:
        try:
            assert engine.generate([request]) == before
            break
        except ModelUnavailable:
            assert time.monotonic() < end
            time.sleep(0.2)
