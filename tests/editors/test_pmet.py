"""PMET: what the MLP shall put out comes to be put out, and what attention would have to do is not counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ke_tools.editing import edit
from ke_tools.editors._goals import goals
from ke_tools.editors._keys import look
from ke_tools.editors._solve import Factors
from ke_tools.editors._targets import Objective, optimise
from ke_tools.editors.pmet import PMET
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS

Make = Callable[[str], CausalModel]
OBJECTIVE = Objective(steps=4, clamp=2, kl=0)
BARE = tuple(replace(fact, paraphrases=()) for fact in FACTS)
HOW = PMET(layers=(2, 3), site="last", regularisation=1e-6, contexts=1, tokens=800, objective=OBJECTIVE)


@pytest.mark.parametrize("kind", ["llama", "gptj", "opt"])
def test_the_last_mlp_comes_to_put_out_its_part_of_the_change(tiny: Make, kind: str) -> None:
    """Li et al. 2024: only the MLP's delta is written, and the last layer closes what the layers below left open."""
    model = tiny(kind)
    wanted = goals(model, BARE, ("",), site="last")
    found = optimise(model, wanted, 3, OBJECTIVE, at="parts")

    with edit(model, BARE, HOW).applied(model):
        now = look(model, wanted, [3], "parts").held

    assert (found.z - found.h).norm() > 0.1 * found.h.norm()
    assert (now - found.z).norm() < 1e-2 * (found.z - found.h).norm()


def test_a_layer_takes_the_root_of_its_share(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Li et al. 2024, and PMET at c9a39ff: the residual over √(L − l + 1)."""
    model, given = tiny("llama"), list[torch.Tensor]()
    honest = PMET.solve

    def noting(self: PMET, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        given.append(R)
        return honest(self, K, R, C, earlier)

    monkeypatch.setattr(PMET, "solve", noting)
    found = optimise(model, goals(model, BARE, ("",), site="last"), 3, OBJECTIVE, at="parts")

    edit(model, BARE, HOW)

    assert (found.z - found.h).norm() > 0.1 * found.h.norm()
    assert torch.allclose(given[0], (found.z - found.h).double().T / 2**0.5, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gptj"])
def test_the_outcome_is_what_the_mlp_alone_reaches(tiny: Make, kind: str) -> None:
    """An outcome that counted the attention's delta would promise what no weight holds."""
    model = tiny(kind)

    update = edit(model, BARE, replace(HOW, layers=(3,)))

    with update.applied(model):
        for one, goal in zip(update.outcomes, goals(model, BARE, ("",), site="last"), strict=True):
            (placed,) = goal.prompts
            with torch.no_grad():
                logits = model.model(torch.tensor([placed.ids])).logits[0].float().log_softmax(-1)
            nll = -sum(float(logits[p, t]) for p, t in zip(placed.predicting, placed.target, strict=True)) / len(placed.target)
            assert one.nll == pytest.approx(nll, rel=1e-2)
