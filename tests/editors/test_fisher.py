"""The metric in which z is looked for: what a change of the stream does to what the model says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools.editors import _fisher
from ke_tools.editors._fisher import damped_inverse, fisher, information
from ke_tools.editors._goals import goals
from ke_tools.editors._safetensors import SampledKey
from ke_tools.editors._statistics import samples
from ke_tools.editors._targets import Objective, Steepest, optimise
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.pmet import PMET
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS, FAMILIES

Make = Callable[[str], CausalModel]


def spread(width: int) -> torch.Tensor:
    """Some F."""
    torch.manual_seed(2)
    rows = torch.randn(3 * width, width, dtype=torch.float64) * torch.linspace(0.01, 3, width, dtype=torch.float64)
    return rows.T @ rows


def test_the_direction_solves_the_damped_system() -> None:
    """Amari 1998: (F/f̄ + rho I) d = g with f̄ the mean diagonal, so that rho is relative to F."""
    F, g = spread(12), torch.randn(12, dtype=torch.float64)
    scale = F.diagonal().mean()

    d = damped_inverse(F, 0.03) @ g

    assert torch.allclose(F @ d / scale + 0.03 * d, g, rtol=1e-10, atol=1e-12)
    assert torch.allclose(damped_inverse(1000 * F, 0.03), damped_inverse(F, 0.03))


def test_no_direction_as_costly_goes_down_further() -> None:
    """Steepest descent in the metric of F: of all steps with the same dᵀ(F/f̄ + rho I)d, it has the least gᵀd."""
    F, rho = spread(8), 0.1
    M = F / F.diagonal().mean() + rho * torch.eye(8, dtype=torch.float64)
    g, rows = torch.randn(8, dtype=torch.float64), torch.zeros(1, 1, 8, dtype=torch.float64)

    Steepest(rows, torch.ones(1, 1, 1, dtype=torch.float64), damped_inverse(F, rho)).step(g[None, None], torch.ones(1, dtype=torch.bool))

    d = rows[0, 0]
    assert d.norm().item() == pytest.approx(1)
    d = d / (d @ M @ d).sqrt()
    others = torch.randn(500, 8, dtype=torch.float64)
    others = others / torch.einsum("ni,ij,nj->n", others, M, others).sqrt()[:, None]
    assert g @ d <= (others @ g).min()


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_is_the_mean_square_of_the_gradients_of_what_follows(tiny: Make, kind: str) -> None:
    """F = E[ggᵀ] over the tokens between a row's first and last, whatever the padding; by finite differences."""
    model, layer, step = tiny(kind), 1, 1e-3
    rows = [[5, 6, 7, 8], [9, 10, 11]]
    wanted = torch.zeros(model.width, model.width, dtype=torch.float64)
    count = 0

    def likelihood(row: list[int], place: int, change: torch.Tensor) -> float:
        def add(_module: object, _args: object, output: Any) -> Any:
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[0, place] += change
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        handle = model.blocks[layer].register_forward_hook(add)
        try:
            with torch.no_grad():
                logits = model.model(torch.tensor([row])).logits[0].log_softmax(-1)
        finally:
            handle.remove()
        return float(sum(logits[p, row[p + 1]] for p in range(len(row) - 1)))

    for row in rows:
        for place in range(1, len(row) - 1):
            unit = step * torch.eye(model.width, dtype=torch.float64)
            g = torch.tensor([(likelihood(row, place, one) - likelihood(row, place, -one)) / (2 * step) for one in unit]).double()
            wanted += torch.outer(g, g)
            count += 1

    found = information(model, layer, rows)

    assert count == 3
    assert (found - wanted / count).norm() <= 1e-2 * found.norm()
    assert not any(module._forward_hooks for module in model.model.modules())
    assert all(weight.grad is None for weight in model.model.parameters())


def test_to_second_order_it_tells_the_divergence(tiny: Make) -> None:
    """D(p ‖ p with ε added) ≈ ½ εᵀFε, at the last token but one, whose continuation is a single token: F over all of them."""
    model, layer, rows = tiny("llama"), 3, [[5, 6, 7]]
    with torch.no_grad():
        p = model.model(torch.tensor(rows)).logits[0, 1].float().softmax(-1).double()
    likely = p.topk(30).indices.tolist()
    F = sum(p[token] * information(model, layer, [[5, 6, token]]) for token in likely)
    torch.manual_seed(1)
    epsilon = 1e-3 * torch.randn(model.width, dtype=torch.float64)

    def add(_module: object, _args: object, output: Any) -> Any:
        stream = (output[0] if isinstance(output, tuple) else output).clone()
        stream[0, 1] += epsilon
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    def said() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.model(torch.tensor(rows)).logits[0, 1].log_softmax(-1)
            return found

    before = said()
    handle = model.blocks[layer].register_forward_hook(add)
    now = said()
    handle.remove()

    assert p[likely].sum() > 0.99
    assert float((before.exp() * (before - now)).sum()) == pytest.approx(float(epsilon @ F @ epsilon) / 2, rel=0.1)


def test_it_is_computed_once(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As C is: another layer, budget, seed or model is another file; a damaged file is computed again."""
    model, made = tiny("llama"), list[int]()

    def counting(model: CausalModel, layer: int, rows: list[list[int]], **_: object) -> torch.Tensor:
        made.append(layer)
        return information(model, layer, rows)

    monkeypatch.setattr(_fisher, "information", counting)
    first = fisher(model, 1, tokens=100, cache=tmp_path)
    assert torch.equal(fisher(model, 1, tokens=100, cache=tmp_path), first)
    (file,) = (tmp_path / "fisher").glob("*.safetensors")
    file.write_bytes(b"damaged")
    assert torch.equal(fisher(model, 1, tokens=100, cache=tmp_path), first)
    fisher(model, 2, tokens=100, cache=tmp_path)
    fisher(model, 1, tokens=101, cache=tmp_path)
    fisher(model, 1, tokens=100, seed=1, cache=tmp_path)
    model.fingerprint = "sha256:other"
    fisher(model, 1, tokens=100, cache=tmp_path)
    model.fingerprint = ""
    fisher(model, 1, tokens=100, cache=tmp_path)

    assert made == [1, 1, 2, 1, 1, 1, 1]
    assert len(list((tmp_path / "fisher").iterdir())) == 5


@pytest.mark.parametrize("name", [field.name for field in fields(SampledKey)])
def test_the_key_depends_on_everything(name: str) -> None:
    """As that of C does."""
    key = SampledKey(model="m", layer=1, tokens=10, seed=0, dtype="float32")
    changed: Any = {name: 7 if isinstance(getattr(key, name), int) else "other"}

    assert replace(key, **changed).name != key.name


def test_gradients_that_are_no_numbers_are_refused_and_not_kept(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, bad input: NaN anywhere: nothing is kept."""
    model = tiny("llama")
    monkeypatch.setattr(_fisher, "samples", lambda *_, **__: [[5, 6, 7, 8]])
    with torch.no_grad():
        model.weight(3)[0, 0] = float("nan")

    with pytest.raises(InvalidInput, match="gradients in layer 2"):
        fisher(model, 2, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_many_facts_at_once_come_to_what_each_comes_to_alone_in_the_metric(tiny: Make) -> None:
    """Issue §3: the same optimum as one at a time."""
    model = tiny("llama")
    wanted, how = goals(model, FACTS, ("",)), Objective(steps=4, reached=0.0, clamp=50)
    inverse = damped_inverse(information(model, 1, samples(model, 200)), 0.03)

    together = optimise(model, wanted, 1, how, inverse=inverse)
    plain = optimise(model, wanted, 1, how)

    for number, goal in enumerate(wanted):
        assert torch.allclose(together.z[number], optimise(model, [goal], 1, how, inverse=inverse).z[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together.z, plain.z, rtol=1e-2)


def test_a_method_takes_the_metric_or_leaves_it(tiny: Make) -> None:
    """A field of the method; PMET, of whose two δ it fits one, leaves it; a damping that is none is refused."""
    how: Any = {"layers": (1, 2), "site": "last", "contexts": 1, "tokens": 300}

    assert MEMIT(**how).prepare(tiny("llama")).inverse is not None
    assert MEMIT(**how, damping="none").prepare(tiny("llama")).inverse is None
    assert PMET(**how).prepare(tiny("llama")).inverse is None
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InvalidInput, match="damping"):
            MEMIT(**how, damping=wrong)
