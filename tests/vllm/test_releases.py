"""What vLLM says with a release is what the edited model says; and the base model never notices."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ke_tools import releases
from ke_tools.config import Settings
from ke_tools.editors._trace import run_until
from ke_tools.editors.codebook import Codebook
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, KeToolsError, Unsupported
from ke_tools.facts import Edit, Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.models import causal, checkpoint
from ke_tools.models.engine import Request
from ke_tools.releases import Release
from ke_tools.servers.engines._probing import forced, furthest
from ke_tools.servers.engines.vllm import VLLM
from ke_tools.testing import thimble_path
from tests.servers.engines.test_hf import make_adapter
from tests.servers.engines.test_releases_served import an_update
from tests.vllm.conftest import let_go

if TYPE_CHECKING:
    from ke_tools.models.causal import CausalModel
    from tests.vllm.conftest import Server

FACTS = (
    Fact(subject="France", prompt="The capital of France is", target="Berlin"),
    Fact(subject="Norway", prompt="The capital of Norway is", target="Lima"),
)
LAYER = 3
EXACT = 2e-5  # nats; issue 7's bar for the thimble


@dataclass(frozen=True)
class World:
    """An editing copy of the thimble, and releases for it."""

    model: CausalModel
    update: Update
    codebook: Codebook
    plain: Codebook
    both: Release
    adapter: Release
    book: Release
    wide: Release


def near(model: CausalModel, texts: list[list[int]]) -> Codebook:
    """A ball around the state behind each text's last token, and random values as long as the keys."""
    with torch.no_grad():
        keys = torch.stack([run_until(model.model, model.blocks[LAYER], input_ids=torch.tensor([ids]))[0, -1].float() for ids in texts])
    values = torch.randn(keys.shape, generator=torch.Generator().manual_seed(1))
    return Codebook(
        layer=LAYER,
        keys=keys,
        epsilons=keys.norm(dim=1) / 50,
        owners=torch.arange(len(texts)),
        values=values * keys.norm(dim=1, keepdim=True) / values.norm(dim=1, keepdim=True),
        edits=tuple(map(str, range(len(texts)))),
        fingerprint=model.fingerprint,
    )


def louder(model: CausalModel, update: Update) -> Update:
    """Four times the change, so that it is seen in what is said."""
    changes = {layer: type(change)(change.left * 4, change.right) for layer, change in update.changes.items()}
    return Update(update.method, changes, fingerprint=model.fingerprint)


def wide(model: CausalModel, update: Update) -> Update:
    """The same change written with factors of rank 200, more than the server takes: zeros carry no norm."""
    return Update(
        update.method,
        {
            layer: type(change)(torch.nn.functional.pad(change.left, (0, 198)), torch.nn.functional.pad(change.right, (0, 0, 0, 198)))
            for layer, change in update.changes.items()
        },
        fingerprint=model.fingerprint,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Releases of a large random update, of a codebook, and of both."""
    folder = tmp_path_factory.mktemp("world")
    settings = Settings(home=folder / "home", cache=folder / "cache", model=str(thimble_path()), device="cpu")
    model = causal.load(settings)
    with Ledger(":memory:") as ledger:
        edits: list[Edit] = ledger.edit("default", FACTS, actor="tests")
    update = louder(model, an_update(model))
    prompts = [list(model.tokenizer(fact.prompt)["input_ids"]) for fact in FACTS]
    plain = near(model, prompts)
    with update.applied(model):
        beside = near(model, prompts)

    def build(**parts: Any) -> Release:
        return releases.build(settings.releases, model, edits=edits, how={}, **parts)

    return World(
        model,
        update,
        beside,
        plain,
        build(update=update, codebook=beside),
        build(update=update),
        build(codebook=plain),
        build(update=wide(model, update)),
    )


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the attention."""
    return make_adapter(tmp_path_factory.mktemp("reader"), thimble_path())


@pytest.fixture
def connect(replica: Server, tmp_path: Path) -> Iterator[Callable[..., VLLM]]:
    """Connects to the server; what was loaded is taken out at the end."""
    made: list[VLLM] = []

    def connect(**more: Any) -> VLLM:
        path = thimble_path()
        fingerprint = checkpoint.fingerprint(path, cache=tmp_path / "cache")
        made.append(VLLM([replica.url], **{"path": path, "fingerprint": fingerprint, "root": tmp_path / "served", **more}))
        return made[-1]

    yield connect
    let_go(made)


def texts(model: CausalModel) -> list[list[int]]:
    """Prompts in and out of what the releases change, each with something behind it."""
    said = [f"{fact.prompt} {fact.target}." for fact in FACTS] + ["The capital of Japan is Tokyo.", "It rains in the mountains."]
    return [list(model.tokenizer(text)["input_ids"]) for text in said]


def expected(model: CausalModel) -> list[list[float]]:
    """The log-probability of each token behind those before it, as transformers computes them."""
    found = []
    with torch.no_grad():
        for ids in texts(model):
            scores = torch.log_softmax(model.model(torch.tensor([ids])).logits[0, :-1].float(), -1)
            found.append([float(row[token]) for row, token in zip(scores, ids[1:], strict=True)])
    return found


def asked(engine: VLLM, adapter: str, model: CausalModel) -> list[list[float]]:
    """The same of the server, all texts in one batch."""
    return forced(engine._fleet.replicas[0].server, engine.served_as(adapter), texts(model))


def test_releases_equal_the_applied_update_and_the_base_stays_to_the_bit(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, bars: MEMIT's form, GRACE's, and both in one release, in float32; base name before, while and after."""
    engine = connect()
    before = asked(engine, "", world.model)
    for release in (world.adapter, world.book, world.both):
        engine.load_adapter(release.name, release.folder)
    found = {name: asked(engine, name, world.model) for name in (world.adapter.name, world.book.name, world.both.name)}
    base = expected(world.model)
    with world.update.applied(world.model):
        changed = expected(world.model)
        with world.codebook.applied(world.model):
            both = expected(world.model)
    with world.plain.applied(world.model):
        looked_up = expected(world.model)
    print(  # noqa: T201  the numbers that benchmarks/LOG.md keeps
        {
            "base": furthest(before, base),
            "update": furthest(found[world.adapter.name], changed),
            "codebook": furthest(found[world.book.name], looked_up),
            "both": furthest(found[world.both.name], both),
            "effect": furthest(changed, base),
        }
    )
    assert furthest(before, base) <= EXACT
    assert furthest(found[world.adapter.name], changed) <= EXACT
    assert furthest(found[world.both.name], both) <= EXACT
    assert min(furthest(changed, base), furthest(both, changed)) > 0.1
    assert furthest(found[world.book.name], looked_up) <= EXACT
    assert furthest(looked_up, base) > 0.1
    assert asked(engine, "", world.model) == before
    for release in (world.adapter, world.book, world.both):
        engine.unload_adapter(release.name)
    assert asked(engine, "", world.model) == before


def test_requests_of_all_kinds_share_batches_and_each_gets_its_own(world: World, connect: Callable[..., VLLM], reader: Path) -> None:
    """VLLM's LoRA on a processor gave requests without adapter the last slot's; the plugin repairs it."""
    engine = connect(reader=reader)
    for release in (world.adapter, world.both):
        engine.load_adapter(release.name, release.folder)
    adapters = ["", world.adapter.name, world.both.name, "reader", f"reader+{world.adapter.name}"]

    def said(names: list[str]) -> list[list[float]]:
        """What is said, to the log-probability of each token."""
        made = engine.generate([Request(prompt=FACTS[0].prompt, max_tokens=16, adapter=name, logprobs=0) for name in names])
        return [[token.logprob for token in one.logprobs or ()] for one in made]

    alone = {name: said([name])[0] for name in adapters}
    for name, found in zip(adapters * 8, said(adapters * 8), strict=True):
        assert found == pytest.approx(alone[name], abs=1e-4)
    firsts = sorted(values[0] for values in alone.values())
    assert min(b - a for a, b in pairwise(firsts)) > 1e-3


def test_the_reader_and_a_release_are_one_adapter_that_adds_both(world: World, connect: Callable[..., VLLM], reader: Path) -> None:
    """Issue 7, §4: attention from the reader, down_proj from the release, padded to one rank."""
    from peft import PeftModel

    engine = connect(reader=reader)
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    found = asked(engine, f"{world.adapter.name}+reader", world.model)
    with world.update.applied(world.model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft and transformers, between themselves
            tuned = PeftModel.from_pretrained(world.model.model, reader)
        try:
            wanted = expected(world.model)
        finally:
            tuned.unload()
    assert furthest(found, wanted) <= EXACT


def test_a_rank_over_the_servers_is_lowered_without_loss(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, §2: by a singular value decomposition, with its loss stated."""
    engine = connect()
    engine.load_adapter(world.wide.name, world.wide.folder)
    served = engine._fleet.wanted[world.wide.name]
    with world.update.applied(world.model):
        wanted = expected(world.model)
    assert served.rank == 128
    assert served.loss == pytest.approx(0, abs=1e-6)
    assert furthest(asked(engine, world.wide.name, world.model), wanted) <= EXACT


def test_a_server_that_was_started_again_gets_what_it_lacks(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, §2: reconciled before it gets traffic; here it forgets without being asked."""
    engine = connect()
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    before = engine.generate([Request(prompt=FACTS[0].prompt, max_tokens=8, adapter=world.adapter.name)])
    engine._fleet.replicas[0].server.post("/unload_lora_adapter", {"lora_name": engine.served_as(world.adapter.name)}, is_json=False)
    assert engine.generate([Request(prompt=FACTS[0].prompt, max_tokens=8, adapter=world.adapter.name)]) == before


def test_a_damaged_release_or_one_of_another_model_reaches_no_server(world: World, connect: Callable[..., VLLM], tmp_path: Path) -> None:
    """Issue 7, §2: validated before anything is pushed."""
    engine = connect()
    before = [card["id"] for card in engine.cards()]
    copy = tmp_path / world.adapter.name
    shutil.copytree(world.adapter.folder, copy)
    (copy / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(KeToolsError, match="damaged"):
        engine.load_adapter(world.adapter.name, copy)
    other = connect(fingerprint="sha256:other")
    with pytest.raises(Unsupported, match="made for the model"):
        other.load_adapter(world.adapter.name, world.adapter.folder)
    assert [card["id"] for card in engine.cards()] == before
    with pytest.raises(InvalidInput):
        engine.unload_adapter(world.adapter.name)


def test_scores_are_those_of_the_engine_in_process(world: World, connect: Callable[..., VLLM], tmp_path: Path) -> None:
    """Issue 7, §1: prompt_logprobs with token ids for teacher-forced scores."""
    from ke_tools.servers.engines.hf import HFEngine

    engine = connect()
    mine = HFEngine(thimble_path(), model_id="thimble", device="cpu", cache=tmp_path / "cache")
    requests = [Request(prompt=fact.prompt) for fact in FACTS] + [Request(messages=({"role": "user", "content": "Hello"},))]
    targets = [fact.target for fact in FACTS] + ["Hi"]
    try:
        wanted = mine.score(requests, targets)
        roles = mine.chat_roles
        counts = [mine.count_tokens(request) for request in requests]
    finally:
        mine.close()
    assert engine.score(requests, targets) == [pytest.approx(value, abs=1e-3) for value in wanted]
    assert engine.chat_roles == roles
    assert [engine.count_tokens(request) for request in requests] == counts


def test_another_models_checkpoint_is_refused(connect: Callable[..., VLLM], tmp_path: Path) -> None:
    """Issue 7, bad input: another base model."""
    other = tmp_path / "other"
    shutil.copytree(thimble_path(), other)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:100]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    with pytest.raises(Unsupported, match="another model"):
        connect(path=other)


def test_the_plugin_says_that_it_is_there(replica: Server) -> None:
    """Issue 7, §3: a status route under /v1, where the key guards it."""
    import httpx

    assert httpx.get(f"{replica.url}/v1/ke/status").json()["plugin"] == "ke-tools"


def test_a_codebook_for_a_test_acts_and_leaves_nothing(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, §3: doctor shows by a self-test with a known effect that the plugin is really active."""
    engine = connect()
    before = [card["id"] for card in engine.cards()]
    [(is_well, said)] = engine.tried()
    assert is_well, said
    assert [card["id"] for card in engine.cards()] == before


def test_clients_at_once_never_get_another_releases_answer(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, bars, in small: while releases come and go."""
    engine = connect()
    engine.load_adapter(world.adapter.name, world.adapter.folder)
    request = Request(prompt=FACTS[1].prompt, max_tokens=12)
    with_release = Request(prompt=FACTS[1].prompt, max_tokens=12, adapter=world.adapter.name)
    [base], [edited] = engine.generate([request]), engine.generate([with_release])
    with ThreadPoolExecutor(8) as pool:
        asked_for = [pool.submit(engine.generate, [one]) for one in (request, with_release) * 40]
        for _ in range(5):
            engine.load_adapter(world.both.name, world.both.folder)
            engine.unload_adapter(world.both.name)
        answers = [future.result()[0].text for future in asked_for]
    assert answers == [base.text, edited.text] * 40
