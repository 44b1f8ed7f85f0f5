"""A vLLM of ours serves quantised weights, and edits are planned by their unquantised twin: what they do is asked of what is served."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from ke_tools import releases
from ke_tools.config import Settings
from ke_tools.models import checkpoint
from ke_tools.models.engine import Request
from ke_tools.servers.engines._probing import forced
from ke_tools.servers.engines.vllm import VLLM
from ke_tools.servers.service import Service
from ke_tools.testing import thimble_path
from tests.quantised import quantised
from tests.servers.engines.test_hf import make_adapter
from tests.vllm.conftest import COMMAND, ENVIRONMENT, EXACTLY, START_SECONDS, let_go
from tests.vllm.test_whole_path import CAPITAL, LOCAL, QUESTION, client_of, finished, opened, promoted, said

PROMPTS: Final = (CAPITAL["prompt"], "The capital of Australia is", "The currency of Italy is the")
LOADED: Final = re.compile(r"Loaded new LoRA adapter: name '([^']+)'")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, graphs: Callable[[Path], None]) -> Iterator[Settings]:
    """Settings by which the quantised thimble is served and edited by the plain one."""
    assert COMMAND is not None, "there is no vllm; `make test-vllm` installs one"
    folder = tmp_path_factory.mktemp("quantised")
    graphs(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield Settings(
            home=folder / "home",
            cache=folder / "cache",
            engine="vllm",
            model=str(quantised(thimble_path(), folder / "thimble-w8a8")),
            edit_model=str(thimble_path()),
            edit_device="cpu",
            dtype="bfloat16",  # the type that vLLM's kernel for such weights takes
            vllm=str(Path(COMMAND).absolute()),
            vllm_args=(*EXACTLY, "--max-loras", "4"),
        )


@pytest.fixture(scope="module")
def service(given: Settings) -> Iterator[Service]:
    """One that started it."""
    with opened(given) as made:
        made.models.engine(wait_seconds=START_SECONDS)
        yield made


def engine_of(service: Service) -> VLLM:
    """Its engine."""
    engine = service.models.engine(wait_seconds=0)
    assert isinstance(engine, VLLM)
    return engine


def base(engine: VLLM) -> list[Any]:
    """What the base model's own name answers: texts with their numbers, and how likely it finds given texts; one request at a time."""
    [server] = [replica.server for replica in engine._fleet.replicas]
    ids = [engine._template.encode(Request(prompt=f"{prompt} {CAPITAL['target']}.")) for prompt in PROMPTS]
    likely = [forced(server, engine.model_id, [text]) for text in ids]
    return [*likely, *(engine.generate([Request(prompt=prompt, max_tokens=12, logprobs=0)]) for prompt in PROMPTS)]


def by_weights(service: Service) -> str:
    """What the live release says alone, without the memory."""
    told = asyncio.run(service.answering.query(LOCAL, QUESTION, via="weights", max_tokens=12, wait_seconds=60))
    return str(told["answers"][0]["text"])


def test_what_is_served_is_quantised_and_what_is_edited_is_its_twin(service: Service, given: Settings) -> None:
    """Issue 7, §5: releases are of the twin; the servers say other numbers than it."""
    engine = engine_of(service)
    assert engine.model_id == "thimble-w8a8"
    assert engine.fingerprint == checkpoint.fingerprint(thimble_path(), cache=given.cache)
    [model] = [card for card in engine.cards() if not card.get("parent")]
    assert model["root"] == given.model
    assert "CompressedTensorsW8A8Int8" in (given.home / "vllm.log").read_text("utf-8", "replace")


@pytest.mark.parametrize("method", ["memit", "grace"])
def test_an_edit_that_the_twin_planned_acts_on_quantised_weights_and_comes_down(service: Service, given: Settings, method: str) -> None:
    """Issue 7, §5 and bars: only the gate through the served engine decides; the base name is the same to the bit throughout."""
    engine, log = engine_of(service), given.home / "vllm.log"
    before = base(engine)
    with client_of(service) as client:
        assert said(client, engine.model_id) == "Tokyo."
        edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
        begins = log.stat().st_size
        job = promoted(service, edit_id, method=method)
        assert [edit["rung"] for edit in job["edits"]] == [method], job
        assert by_weights(service) == said(client, engine.model_id) == "Cairo."
        assert base(engine) == before
        release = releases.opened(given.releases, job["release"])
        assert release.fingerprint == engine.fingerprint
        loaded = LOADED.findall(log.read_bytes()[begins:].decode("utf-8", "replace"))
        assert set(loaded) > {engine.served_as(release.name)}  # and the worker's own, which the gate asked
        began = time.monotonic()
        service.rollback(LOCAL, edit_ids=[edit_id])
        assert said(client, engine.model_id) == "Tokyo."
        assert time.monotonic() - began < 1
        assert base(engine) == before


def test_a_reader_of_the_twin_is_served_on_quantised_attention(service: Service, tmp_path: Path) -> None:
    """Issue 7, §4 and §5: each kind of module that it adapts was asked for, and acts."""
    own: Any = engine_of(service)._fleet._own
    reader = make_adapter(tmp_path / "reader", thimble_path(), modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    about: dict[str, Any] = {"path": thimble_path(), "fingerprint": engine_of(service).fingerprint, "root": tmp_path / "served"}
    engine = VLLM([own.url], key=own.key, reader=reader, **about)
    try:
        assert engine.adapters == {"reader"}
    finally:
        let_go([engine])


def test_before_a_server_that_runs_the_twin_is_what_edits_are_planned_with(
    service: Service, given: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 7, §5: --vllm-url; with the quantised checkpoint alone, a promotion names the setting that is missing."""
    own: Any = engine_of(service)._fleet._own
    monkeypatch.setenv("KE_UPSTREAM_KEY", own.key)
    running = {"vllm_url": (own.url,), "vllm_args": (), "home": tmp_path / "home"}
    with opened(given, **running, model="embedded") as other:
        engine = other.models.engine(wait_seconds=60)
        assert (engine.model_id, engine.fingerprint) == ("thimble-w8a8", engine_of(service).fingerprint)
        other.edit(LOCAL, [CAPITAL])
        with client_of(other) as client:
            assert said(client, engine.model_id) == "Cairo."
    with opened(given, **running, edit_model=None) as alone:  # as --model says
        alone.models.engine(wait_seconds=60)
        [active] = alone.list_edits(LOCAL)["edits"]
        job = finished(alone, active["edit_id"])
        assert job["status"] == "failed"
        assert "--edit-model" in str(job)
