"""The worker's two views of one model: an engine that answers, and an editing copy, with the weights there once (issue 6 §3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ke_tools.config import Settings
from ke_tools.editors._solve import Factors
from ke_tools.editors.update import Update
from ke_tools.models.causal import load
from ke_tools.models.engine import Request
from ke_tools.servers.engines.hf import HFEngine
from ke_tools.servers.engines.loading import load_engine
from ke_tools.testing import thimble_path

ASKED = [Request(prompt=prompt, max_tokens=8) for prompt in ("The capital of France is", "The currency of Italy is the")]


def settings(tmp_path: Path) -> Settings:
    """Of the thimble."""
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(thimble_path()))


def test_an_editing_copy_takes_no_memory_of_its_own_and_changes_no_answer(tmp_path: Path) -> None:
    """The engine's answers stay the base model's while an update is applied to the copy, and gradients are the copy's alone."""
    engine = HFEngine(thimble_path(), model_id="thimble")
    try:
        model = load(settings(tmp_path), beside=engine.weights)
        own = dict(model.model.named_parameters())
        assert {name: weight.data_ptr() for name, weight in own.items()} == {name: w.data_ptr() for name, w in engine.weights.items()}
        before, kept = engine.generate(ASKED), {name: weight.clone() for name, weight in engine.weights.items()}
        dice = torch.Generator().manual_seed(0)
        change = Factors(torch.randn(model.width, 1, generator=dice), torch.randn(1, model.key_width(2), generator=dice))
        ids = torch.tensor([[1, 2, 3]])
        plain = model.model(input_ids=ids).logits
        with Update({}, {2: change}, fingerprint=model.fingerprint).applied(model):
            changed = model.model(input_ids=ids).logits
            changed.sum().backward()
            assert not torch.equal(changed, plain)
            assert engine.generate(ASKED) == before
        assert torch.equal(model.model(input_ids=ids).logits, plain)
        assert all(torch.equal(weight, kept[name]) for name, weight in engine.weights.items())
        assert not any(weight.requires_grad or weight.grad is not None for weight in engine.weights.values())
        assert own["model.norm.weight"].grad is not None
    finally:
        engine.close()
    assert engine.weights == {}


def test_an_engine_of_another_type_shares_nothing(tmp_path: Path) -> None:
    """Editors compute in float32; an engine in half the bits has other numbers."""
    engine = HFEngine(thimble_path(), model_id="thimble", dtype="bfloat16")
    try:
        model = load(settings(tmp_path), beside=engine.weights)
        assert model.dtype == torch.float32
        ours = {weight.data_ptr() for weight in model.model.parameters()}
        assert not ours & {weight.data_ptr() for weight in engine.weights.values()}
    finally:
        engine.close()


def test_where_edits_are_planned_is_nothing_to_the_engine(tmp_path: Path) -> None:
    """Issue 7, §5: --edit-device, which this machine need not have; the engine in the process goes on with --device."""
    engine = load_engine(replace(settings(tmp_path), device="cpu", edit_device="cuda:99"), lambda _said: None)
    try:
        assert engine.generate(ASKED[:1])[0].text
    finally:
        engine.close()
