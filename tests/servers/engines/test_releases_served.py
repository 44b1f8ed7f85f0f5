"""Releases in the engine: what they say is what the edited model says, and the base never notices."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools import releases, testing
from ke_tools.config import Settings
from ke_tools.editing import edit
from ke_tools.editors import peft_folder
from ke_tools.editors._solve import Factors
from ke_tools.editors._trace import run_until
from ke_tools.editors.codebook import Codebook
from ke_tools.editors.grace import GRACE
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, ModelUnavailable, Unsupported
from ke_tools.facts import Fact
from ke_tools.models import causal, checkpoint
from ke_tools.models.causal import CausalModel
from ke_tools.models.engine import Generation, Request
from ke_tools.releases import Release
from ke_tools.servers.engines.hf import HFEngine
from tests.editors.conftest import FAMILIES, tiny, tokenizer
from tests.servers.engines.test_hf import Gate, make_adapter, start

__all__ = ["tiny", "tokenizer"]

PROMPTS = ("The capital of France is", "It rains in", "What money do they use in Norway?", "Peru")
LENGTH = 8
LAYER = 2  # of the codebook; the update's are 1 and 2


@dataclass(frozen=True)
class World:
    """A checkpoint, the editing copy of it, and releases for it."""

    path: Path
    model: CausalModel
    update: Update
    codebook: Codebook
    root: Path
    both: Release
    adapter: Release
    looked_up: Release  # another codebook, for the base's own states


def said(model: CausalModel, prompt: str, count: int = LENGTH) -> list[tuple[int, float]]:
    """Greedy tokens and their log-probabilities, each from a pass over the whole text."""
    ids: list[int] = model.tokenizer(prompt)["input_ids"]
    found: list[tuple[int, float]] = []
    with torch.no_grad():
        while len(found) < count:
            scores = torch.log_softmax(model.model(torch.tensor([ids])).logits[0, -1].float(), -1)
            token = int(scores.argmax())
            found.append((token, float(scores[token])))
            ids = [*ids, token]
    return found


def an_update(model: CausalModel, seed: int = 0) -> Update:
    """A change of rank 2 in two layers, large enough to be heard."""
    made = torch.Generator().manual_seed(seed)

    def factors(layer: int) -> Factors:
        scale = float(model.weight(layer).detach().norm()) / (model.width * model.key_width(layer)) ** 0.5
        return Factors(torch.randn(model.width, 2, generator=made) * scale, torch.randn(2, model.key_width(layer), generator=made) / 2)

    return Update({"name": "random"}, {layer: factors(layer) for layer in (1, 2)}, fingerprint=model.fingerprint)


def a_codebook(model: CausalModel, texts: Sequence[Sequence[int]], seed: int = 0) -> Codebook:
    """A ball around the state behind each text's last token, and random values as long as the keys."""
    with torch.no_grad():
        states = [run_until(model.model, model.blocks[LAYER], input_ids=torch.tensor([ids])) for ids in texts]
    keys = torch.stack([state[0, -1].float() for state in states])
    values = torch.randn(keys.shape, generator=torch.Generator().manual_seed(seed))
    return Codebook(
        layer=LAYER,
        keys=keys,
        epsilons=keys.norm(dim=1) / 50,
        owners=torch.arange(len(texts)),
        values=values * keys.norm(dim=1, keepdim=True) / values.norm(dim=1, keepdim=True),
        edits=tuple(map(str, texts)),
        fingerprint=model.fingerprint,
    )


def make_world(folder: Path, made: CausalModel) -> World:
    """Store a model in float32; the codebook fires in a prompt, and in the middle of another prompt's answer."""
    from transformers import AutoModelForCausalLM

    path = folder / "model"
    made.model.float().save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    model = CausalModel(
        AutoModelForCausalLM.from_pretrained(path), made.tokenizer, fingerprint=checkpoint.fingerprint(path, cache=folder / "cache")
    )
    first, second = (list(model.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS[:2])
    update, plain = an_update(model), a_codebook(model, [first], seed=1)
    with update.applied(model):
        codebook = a_codebook(model, [first, second + [token for token, _ in said(model, PROMPTS[1], 3)]])
    root = folder / "releases"

    def build(**parts: Any) -> Release:
        return releases.build(root, model, edits=(), how={}, **parts)

    return World(path, model, update, codebook, root, build(update=update, codebook=codebook), build(update=update), build(codebook=plain))


def load(world: World) -> HFEngine:
    """Its engine, without adapters."""
    return HFEngine(world.path, model_id="tiny", device="cpu", cache=world.path.parent / "cache")


@pytest.fixture(scope="module")
def world(tiny: Callable[[str], CausalModel], tmp_path_factory: pytest.TempPathFactory) -> World:
    """Of a tiny Llama."""
    return make_world(tmp_path_factory.mktemp("world"), tiny("llama"))


@pytest.fixture
def engine(world: World) -> Iterator[HFEngine]:
    """An engine that a test may change."""
    engine = load(world)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reader(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on the attention."""
    return make_adapter(tmp_path_factory.mktemp("reader"), world.path)


def ask(prompt: str, adapter: str = "", count: int = LENGTH) -> Request:
    """A greedy completion with the log-probabilities of what it says."""
    return Request(prompt=prompt, adapter=adapter, max_tokens=count, logprobs=0)


def agrees(engine: HFEngine, adapter: str, expected: Sequence[Sequence[tuple[int, float]]], atol: float = 1e-4) -> None:
    """All prompts in one batch, token by token from a cache, say what whole passes say."""
    for answer, wanted in zip(engine.generate([ask(prompt, adapter) for prompt in PROMPTS]), expected, strict=True):
        found = answer.logprobs or ()
        kept = wanted[: len(found)]
        assert [one.text for one in found] == [engine._tokenizer.decode([token]) for token, _ in kept]
        assert [one.logprob for one in found] == pytest.approx([logprob for _, logprob in kept], abs=atol)
        assert len(found) == LENGTH or answer.finish_reason == "stop"


def logits(engine: HFEngine, adapter: str = "") -> torch.Tensor:
    """Behind a prompt, as the engine's thread computes it."""
    from transformers import DynamicCache

    found: list[torch.Tensor] = []

    def look(adapters: Any) -> None:
        ids = torch.tensor([engine._template.encode(Request(prompt=PROMPTS[0]))])
        mask = torch.ones_like(ids)
        adapters.use(adapter)
        with torch.inference_mode():
            found.append(engine._worker._forward(ids, mask, mask.cumsum(1) - 1, DynamicCache()))

    engine._worker.perform(look).result(timeout=60)
    return found[0]


# Exactness -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_release_says_what_the_edited_model_says(tiny: Callable[[str], CausalModel], kind: str, tmp_path: Path) -> None:
    """Issue 6 §4: adapter, codebook and both, in prompts and in what is generated, against the update applied to the weights."""
    world = make_world(tmp_path, tiny(kind))
    plain = [said(world.model, prompt) for prompt in PROMPTS]
    with world.update.applied(world.model):
        changed = [said(world.model, prompt) for prompt in PROMPTS]
        with world.codebook.applied(world.model):
            both = [said(world.model, prompt) for prompt in PROMPTS]
    assert both[0][0] != changed[0][0]  # the codebook fires behind the prompt,
    assert both[1][:3] == changed[1][:3]
    assert both[1][3] != changed[1][3]  # and inside an answer
    engine = load(world)
    try:
        for name, release in (("adapter", world.adapter), ("both", world.both)):
            engine.load_adapter(name, release.folder)
        agrees(engine, "", plain)
        agrees(engine, "adapter", changed)
        agrees(engine, "both", both)
    finally:
        engine.close()


def test_the_base_is_untouched_by_releases_bit_for_bit(world: World, engine: HFEngine) -> None:
    """Issue 6 §4: before, while and after; with a codebook loaded too, and in turns with it."""
    before, answers = logits(engine), engine.generate([ask(prompt) for prompt in PROMPTS])
    shape = str(engine._worker._adapters._model)
    engine.load_adapter("a", world.both.folder)
    engine.load_adapter("b", world.looked_up.folder)
    for adapter in ("a", "b", "a+b"):
        assert not torch.equal(logits(engine, adapter), before)
        assert torch.equal(logits(engine), before)
    mixed = engine.generate([ask(prompt, adapter) for prompt in PROMPTS for adapter in ("", "a", "b")])
    assert mixed[::3] == answers
    engine.unload_adapter("a")
    engine.unload_adapter("b")

    assert torch.equal(logits(engine), before)
    assert str(engine._worker._adapters._model) == shape
    assert not any(module._forward_hooks for module in engine._worker._adapters._model.modules())


def test_batches_with_different_releases_take_turns(world: World, engine: HFEngine, reader: Path) -> None:
    """Each row is answered as it is alone, though the model changes hands at every step."""
    engine.load_adapter("reader", reader)
    engine.load_adapter("rel_x", world.both.folder)
    adapters = ("", "reader", "rel_x", "reader+rel_x")
    requests = [ask(prompt, adapter) for adapter in adapters for prompt in PROMPTS]
    alone = [[engine.generate([request])[0].text] for request in requests]

    threads = [start(lambda request=request: [one.text for one in engine.generate([request])]) for request in requests]  # type: ignore[misc]
    for thread, _ in threads:
        thread.join(timeout=60)

    assert [out[0] for _, out in threads] == alone
    assert len({str(alone[n :: len(PROMPTS)]) for n in range(len(PROMPTS))}) == len(PROMPTS)


def test_several_at_once_are_added(world: World, engine: HFEngine, reader: Path) -> None:
    """Issue 6 §4: reader and release; the codebook comes behind both."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():  # PEFT uses names of transformers that are on their way out
        warnings.simplefilter("ignore")
        read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.path), str(reader)).merge_and_unload()
    model = CausalModel(read, world.model.tokenizer)
    with replace(world.update).applied(model), replace(world.codebook).applied(model):
        wanted = [said(model, prompt) for prompt in PROMPTS]
    engine.load_adapter("rel_x", world.both.folder)
    engine.load_adapter("reader", reader)

    agrees(engine, "reader+rel_x", wanted)
    agrees(engine, "rel_x+reader", wanted)


def test_the_order_of_the_names_says_nothing(world: World, engine: HFEngine, reader: Path) -> None:
    """Rows are put together by what they name; "b+a" is "a+b" to the last bit."""
    engine.load_adapter("reader", reader)
    engine.load_adapter("rel_x", world.both.folder)
    one, two = (engine.generate([ask(PROMPTS[0], names)]) for names in ("rel_x+reader", "reader+rel_x"))  # rows of one batch may differ
    row = engine._row(ask(PROMPTS[0], "rel_x+reader"), sink=None)  # type: ignore[arg-type]

    assert one == two
    assert row.request.adapter == "reader+rel_x"


def test_a_change_is_computed_in_float32_in_a_narrow_model(world: World) -> None:
    """A release is float32; in bfloat16 its factors would lose what cancels between them."""
    from transformers import AutoModelForCausalLM

    narrow = AutoModelForCausalLM.from_pretrained(world.path, dtype=torch.bfloat16)
    model = CausalModel(narrow, world.model.tokenizer, fingerprint=world.model.fingerprint)
    with torch.no_grad(), world.update.hooked(model):
        wanted = model.model(torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])).logits[0, -1]
    engine = HFEngine(world.path, model_id="tiny", device="cpu", dtype="bfloat16", cache=world.path.parent / "cache")
    try:
        engine.load_adapter("rel_x", world.adapter.folder)
        assert torch.equal(logits(engine, "rel_x")[0], wanted)
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("first", ["release", "adapter"])
def test_a_release_and_an_adapter_of_the_same_layers_are_added(
    tiny: Callable[[str], CausalModel], kind: str, first: str, tmp_path: Path
) -> None:
    """PEFT has wrapped the projections that the release changes, before or after it was loaded."""
    world = make_world(tmp_path, tiny(kind))
    other = an_update(world.model, seed=1)
    peft_folder.write(other, world.model, tmp_path / "mlp")
    with world.update.applied(world.model):
        without = [said(world.model, prompt) for prompt in PROMPTS]
        with other.applied(world.model):
            wanted = [said(world.model, prompt) for prompt in PROMPTS]
    folders = {"mlp": tmp_path / "mlp", "rel_x": world.adapter.folder}
    engine = load(world)
    try:
        for name in sorted(folders, reverse=first == "release"):
            engine.load_adapter(name, folders[name])
        agrees(engine, "mlp+rel_x", wanted)
        engine.unload_adapter("mlp")
        agrees(engine, "rel_x", without)
    finally:
        engine.close()


# Coming and going ------------------------------------------------------------------------------------------------------------


def test_unloading_waits_for_rows_that_name_it_among_others(world: World, engine: HFEngine, reader: Path) -> None:
    """Issue 6 §4: requests in flight finish with what they began with."""
    engine.load_adapter("reader", reader)
    engine.load_adapter("rel_x", world.both.folder)
    request = ask(PROMPTS[0], "reader+rel_x")
    expected = engine.generate([request])
    gate = Gate(engine)
    thread, out = start(lambda: engine.generate([request]))
    assert gate.entered.acquire(timeout=60)
    unloader, gone = start(lambda: engine.unload_adapter("rel_x"))
    while "rel_x" in engine.adapters:
        threading.Event().wait(0.001)
    with pytest.raises(InvalidInput, match="no adapter 'rel_x'"):
        engine.generate([request])
    assert gone == []
    gate.open()
    thread.join(timeout=60)
    unloader.join(timeout=60)

    assert out == [expected]


def test_a_flip_between_two_releases_changes_new_requests_only(world: World, engine: HFEngine) -> None:
    """The next release is loaded and asked while a request still runs on the last one."""
    engine.load_adapter("old", world.adapter.folder)
    expected = engine.generate([ask(PROMPTS[0], "old")])
    gate = Gate(engine)
    thread, out = start(lambda: engine.generate([ask(PROMPTS[0], "old")]))
    assert gate.entered.acquire(timeout=60)

    def flip() -> list[Generation]:
        engine.load_adapter("new", world.both.folder)
        return engine.generate([ask(PROMPTS[0], "new")])

    flipper, new = start(flip)
    gate.open()
    thread.join(timeout=60)
    flipper.join(timeout=60)

    assert out == [expected]
    assert new == [engine.generate([ask(PROMPTS[0], "new")])]


def test_an_adapter_stays_as_it_is_when_a_release_goes(world: World, engine: HFEngine, reader: Path) -> None:
    """What only the release had wrapped is unwrapped; the reader's layers stay."""
    engine.load_adapter("reader", reader)
    shape, expected = str(engine._worker._adapters._model), logits(engine, "reader")
    engine.load_adapter("rel_x", world.both.folder)
    assert torch.equal(logits(engine, "reader"), expected)
    engine.unload_adapter("rel_x")

    assert torch.equal(logits(engine, "reader"), expected)
    assert str(engine._worker._adapters._model) == shape


@pytest.mark.parametrize("adapter", ["rel_x+rel_x", "rel_x+", "+", "rel_x+other"])
def test_what_names_no_adapters_is_refused(world: World, engine: HFEngine, adapter: str) -> None:
    """Twice would add it twice."""
    engine.load_adapter("rel_x", world.both.folder)

    with pytest.raises(InvalidInput, match="adapter"):
        engine.generate([ask(PROMPTS[0], adapter)])


# Refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["manifest.json", "adapter_config.json", "adapter_model.safetensors", "grace.safetensors", "edits.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_damaged_release_is_not_served(world: World, engine: HFEngine, tmp_path: Path, file: str, damage: str) -> None:
    """Issue 6, bad input: nor what is left of it, as if it were a plain adapter."""
    before = logits(engine)
    copied = releases.export(world.both, tmp_path / "copy").folder
    if damage == "gone":
        (copied / file).unlink()
    else:
        (copied / file).write_bytes((copied / file).read_bytes()[:-3] + b"xx\n")

    with pytest.raises(ModelUnavailable, match=file):
        engine.load_adapter("rel_x", copied)
    assert engine.adapters == frozenset()
    assert torch.equal(logits(engine), before)


def test_a_release_for_another_base_is_refused(world: World, engine: HFEngine, tmp_path: Path) -> None:
    """Issue 6, bad input: a model whose fingerprint changed under a release."""
    other = CausalModel(world.model.model, world.model.tokenizer, fingerprint="sha256:other")
    parts = {"update": replace(world.update, fingerprint=""), "codebook": replace(world.codebook, fingerprint="")}
    release = releases.build(tmp_path, other, edits=(), how={}, **parts)  # type: ignore[arg-type]

    with pytest.raises(Unsupported, match="was made for the base model sha256:other"):
        engine.load_adapter("rel_x", release.folder)


def test_a_codebook_that_does_not_fit_leaves_the_model_as_it_was(
    world: World, engine: HFEngine, tiny: Callable[[str], CausalModel], tmp_path: Path
) -> None:
    """A failed load is no half load: its adapter would have fitted."""
    wide = replace(world.codebook, keys=world.codebook.keys.repeat(1, 2), values=world.codebook.values.repeat(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codebook, "check", lambda *_: None)
        release = releases.build(tmp_path, world.model, update=world.update, codebook=wide, edits=(), how={})
    before, shape = logits(engine), str(engine._worker._adapters._model)

    with pytest.raises(ModelUnavailable, match="does not fit"):
        engine.load_adapter("rel_x", release.folder)
    assert str(engine._worker._adapters._model) == shape
    assert torch.equal(logits(engine), before)
    engine.load_adapter("rel_x", world.both.folder)


# A trained model ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_thimble_is_edited_served_and_taken_back(tmp_path: Path) -> None:
    """Issue 6, bars: promote → rollback → promote gives equal hashes and byte-equal answers; here with the methods themselves."""
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(testing.thimble_path()))
    model = causal.load(settings)
    by_weights = [Fact(subject=name, prompt=f"The capital of {name} is", target="Oslo") for name in ("France", "Germany")]
    by_codebook = [Fact(subject="Italy", prompt="The capital of Italy is", target="Oslo")]

    def promoted() -> Release:
        update = edit(model, by_weights, MEMIT(tokens=3000), cache=settings.cache)
        with update.applied(model):  # a codebook's keys are states of the model that it meets
            codebook = edit(model, by_codebook, GRACE(tokens=2000))
        return releases.build(tmp_path / "releases", model, update=update, codebook=codebook, edits=(), how={"method": "memit, grace"})

    engine = HFEngine(settings.model, model_id="thimble", device="cpu", cache=settings.cache)
    try:
        questions = [fact.prompt for fact in (*by_weights, *by_codebook)] + ["The capital of Spain is"]

        def answers(adapter: str) -> list[str]:
            return [one.text for one in engine.generate([ask(question, adapter) for question in questions])]

        before, release = answers(""), promoted()
        engine.load_adapter(release.name, release.folder)
        after = answers(release.name)
        assert [text.split()[0].strip(".") for text in after[:3]] == ["Oslo"] * 3
        assert answers("") == before
        engine.unload_adapter(release.name)
        assert answers("") == before
        shutil.rmtree(release.folder)
        assert promoted() == release
        engine.load_adapter(release.name, release.folder)
        assert answers(release.name) == after
    finally:
        engine.close()
