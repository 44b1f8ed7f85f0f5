"""Causal tracing: what must hold whatever the weights are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ke_tools.editors.tracing import trace
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FAMILIES

PROMPT, SUBJECT = "The capital of Norway is", "Norway"
Make = Callable[[str], CausalModel]


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_last_state_of_all_carries_the_whole_answer(tiny: Make, kind: str) -> None:
    """Behind the last block the last token's state is all that the head sees: restored, the clean probability is back."""
    model = tiny(kind)
    heat = trace(model, PROMPT, SUBJECT, samples=3)

    assert heat.effect.shape == (len(heat.tokens), 4)
    assert heat.effect[-1, -1].item() == pytest.approx(heat.clean - heat.corrupted, abs=1e-6)
    assert heat.effect[:-1, -1].abs().max() < 1e-6, "other tokens' last states are read by nobody"


def test_what_stands_before_the_subject_carries_nothing(tiny: Make) -> None:
    """The noise does not reach it, so that there is nothing to restore."""
    heat = trace(tiny("llama"), PROMPT, SUBJECT, samples=3)

    assert heat.subject.start > 0
    assert heat.effect[: heat.subject.start].abs().max() < 1e-6


@pytest.mark.parametrize("part", ["mlp", "attention"])
def test_restoring_every_block_of_one_part_stays_between_probabilities(tiny: Make, part: str) -> None:
    """A window as wide as the model; effects are differences of probabilities."""
    heat = trace(tiny("llama"), PROMPT, SUBJECT, kind=part, samples=2, window=4)  # type: ignore[arg-type]

    assert (heat.effect.abs() <= 1).all()
    assert heat.effect.isfinite().all()


def test_the_same_seed_traces_the_same_and_the_model_is_as_it_was(tiny: Make) -> None:
    """Reproducible; no hook stays."""
    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    one, two = (trace(model, PROMPT, SUBJECT, samples=2, seed=5) for _ in range(2))

    assert torch.equal(one.effect, two.effect)
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    token, layer = one.best()
    assert one.effect[token, layer] == one.effect.max()


def test_a_subject_that_is_not_there_is_refused(tiny: Make) -> None:
    """Issue, bad input."""
    with pytest.raises(InvalidInput, match="Sweden"):
        trace(tiny("llama"), PROMPT, "Sweden")
