"""MEMIT as published: what our way computes is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ke_tools.benches import _naive
from ke_tools.benches._naive import SAVINGS, values
from ke_tools.editing import edit
from ke_tools.editors._goals import goals
from ke_tools.editors._targets import Objective, optimise
from ke_tools.editors.memit import MEMIT
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS, FAMILIES, tiny, tokenizer

pytestmark = pytest.mark.slow  # real models or processes; minutes on a slow machine

__all__ = ["tiny", "tokenizer"]

BEFORE = ("", "It rains. ")
EQUAL = Objective(steps=8, reached=0.0, clamp=50)  # no fact stops early
Make = Callable[[str], CausalModel]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest relative distance of two facts' values."""
    return float(((one - other).double().norm(dim=1) / other.double().norm(dim=1)).max())


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_fast_search_finds_the_values_of_the_published_one(tiny: Make, kind: str) -> None:
    """Issue, cost: the ratio is worth something only if both compute the same: ≤ 1e-6 at equal contexts and steps."""
    model = tiny(kind)
    wanted = goals(model, FACTS, BEFORE)

    ours = optimise(model, wanted, 1, EQUAL)
    naive = values(model, wanted, 1, EQUAL, "steepest descent")

    assert naive.steps == ours.steps == (8, 8, 8)
    assert apart(naive.z, ours.z) <= 1e-6
    assert apart(naive.z, ours.h) > 1e-2


@pytest.mark.parametrize(
    "saving", [saving for saving in SAVINGS if saving not in {"none", "our contexts", "steepest descent", "stop by likelihood"}]
)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_a_saving_changes_the_cost_and_not_the_values(tiny: Make, kind: str, saving: _naive.Saving) -> None:
    """The ladder shows each alone; one that found other values would not be a saving."""
    model = tiny(kind)
    wanted = goals(model, FACTS, BEFORE)

    assert apart(values(model, wanted, 1, EQUAL, saving).z, values(model, wanted, 1, EQUAL).z) <= 1e-6


@pytest.mark.parametrize(("saving", "counted"), [("blocks above L", "block"), ("logits where needed", "head"), ("prefix once", "tokens")])
def test_a_saving_saves_what_it_says(tiny: Make, saving: _naive.Saving, counted: str) -> None:
    """What a step runs: blocks up to L, rows of logits, tokens."""
    model = tiny("llama")
    wanted = goals(model, FACTS[2:], BEFORE)
    run = {"block": 0, "head": 0, "tokens": 0}

    def count(name: str, size: Callable[[torch.Tensor], int]) -> Callable[..., None]:
        def hook(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            run[name] += size(args[0])

        return hook

    head = model.model.get_output_embeddings()
    handles = [
        model.blocks[0].register_forward_pre_hook(count("block", lambda _: 1)),
        head.register_forward_pre_hook(count("head", lambda top: top.numel() // top.shape[-1])),
        model.blocks[3].register_forward_pre_hook(count("tokens", lambda stream: stream.shape[0] * stream.shape[1])),
    ]
    values(model, wanted, 1, EQUAL, saving)
    saved = run[counted]
    run[counted] = 0
    values(model, wanted, 1, EQUAL)
    for handle in handles:
        handle.remove()

    assert saved < 0.7 * run[counted]


def test_each_fact_of_a_batch_stops_where_it_would_alone(tiny: Make) -> None:
    """The published search ends a fact by its whole loss; batches keep that."""
    model = tiny("llama")
    wanted = goals(model, FACTS, BEFORE)
    how = replace(EQUAL, steps=12, learning_rate=0.5, reached=29.0)

    alone, together = values(model, wanted, 1, how), values(model, wanted, 1, how, "batches")

    assert alone.steps == together.steps
    assert min(alone.steps) < max(alone.steps)
    assert apart(together.z, alone.z) <= 1e-6


def test_the_plan_is_ours_at_equal_settings_and_leaves_the_model_as_it_was(tiny: Make) -> None:
    """The solve too, where a fact has one prompt: ours factors λC, the published way solves with λC + KKᵀ, a layer after another."""
    model, facts = tiny("llama"), [replace(fact, paraphrases=()) for fact in FACTS]
    editor = MEMIT(layers=(1, 2, 3), site="last", regularisation=1e-3, contexts=1, tokens=400, objective=EQUAL, damping="none")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    prepared = editor.prepare(model)

    naive = _naive.plan(editor, prepared, goals(model, facts, prepared.contexts, site="last"), EQUAL, "steepest descent")

    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert all(weight.grad is None for weight in model.model.parameters())
    ours = edit(model, facts, editor)
    assert naive.changes.keys() == ours.changes.keys()
    for layer, change in ours.changes.items():
        exact, other = change.left @ change.right, naive.changes[layer].left @ naive.changes[layer].right
        assert float((exact - other).norm() / exact.norm()) <= 1e-4
    assert naive.efficiency.seconds.keys() == {"z", "solve"}


def test_the_published_prompts_are_six_without_paraphrases(tiny: Make) -> None:
    """Meng et al. 2023: "{}" and five beginnings of ten tokens."""
    model = tiny("llama")

    wanted = _naive.wants(MEMIT(layers=(1,), site="subject", contexts=1, tokens=200).prepare(model), FACTS, seed=0)

    assert {len(goal.prompts) for goal in wanted} == {6}
    assert model.tokenizer.decode(wanted[0].prompts[0].ids) == FACTS[0].prompt
    assert all(model.tokenizer.decode(placed.ids).endswith(FACTS[0].prompt) for placed in wanted[0].prompts)
