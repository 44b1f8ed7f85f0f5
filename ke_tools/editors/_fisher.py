r"""The Fisher information of the residual stream behind a block: how much a change there, in which direction, changes what the model says.

$$F = \mathbb{E}\bigl[g_t\, g_t^\top\bigr], \qquad g_t = \nabla_{h_t^L} \log p(x_{t+1}, x_{t+2}, \dots \mid x_1, \dots, x_t),$$

over tokens $t$ of text that the model itself wrote, so that the continuation is drawn from $p$ and, to second order,
$D_{\mathrm{KL}}(p \,\|\, p_{h_t^L \mathrel{+}= \epsilon}) = \tfrac12\, \epsilon^\top F \epsilon$. A row's first token is left out: its
stream is where attention rests, and unlike that of any edited token.

*What the search for z does with it.* A change of weights that adds $\delta$ at an edited key adds $\alpha(k)\,\delta$ at every other key
$k$ (``_solve``: the columns of $R$ are the δ). Over ordinary text that costs
$\tfrac12\, \mathbb{E}[\alpha(k)^2]\; \delta^\top F \delta$: of $\delta$ it is not the length that counts, but $\delta^\top F \delta$.
The way to take from the loss the most at a given cost,

$$\arg\max_d\; -g^\top d \quad \text{subject to}\quad d^\top \Bigl(\frac{F}{\bar f} + \rho I\Bigr) d = 1,$$

with $\bar f$ the mean of F's diagonal, is $d \propto -(F/\bar f + \rho I)^{-1} g$ (Lagrange), the natural gradient (Amari 1998) damped by
$\rho$, which keeps the directions that the text hardly needed from being free. $\rho \to \infty$ is steepest descent.

Like C (:mod:`ke_tools.editors._statistics`), F depends on the model alone, and is kept under a hash of everything it depends on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.editors._budget import Budget
from ke_tools.editors._locate import padded
from ke_tools.editors._safetensors import SampledKey, keep, kept
from ke_tools.editors._statistics import TOKENS_A_DIMENSION, Tell, samples
from ke_tools.editors._trace import changing
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["damped_inverse", "fisher", "information"]

_AT_ONCE: Final = 1024  # tokens of a batch, with gradients and all logits


def fisher(
    model: CausalModel, layer: int, *, tokens: int | None = None, seed: int = 0, cache: Path | None = None, tell: Tell | None = None
) -> torch.Tensor:
    """F behind a block, [width, width] in float64; from the cache where it is.

    Args:
        model: whose.
        layer: the block L.
        tokens: of the model's samples; ten a dimension of the stream unless given.
        seed: of the samples.
        cache: folder to keep it in; nothing is kept without one, nor for a model without fingerprint.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: the gradients hold numbers that are none.
    """
    wanted = tokens or TOKENS_A_DIMENSION * model.width
    key = SampledKey(model=model.fingerprint, layer=layer, tokens=wanted, seed=seed, dtype=str(model.dtype))
    file = cache / "fisher" / f"{key.name}.safetensors" if cache and model.fingerprint else None
    if file and (found := kept(file)) is not None and found.shape == (model.width, model.width):
        return found
    found = information(model, layer, samples(model, wanted, seed=seed, tell=tell), tell=tell)
    if file and not model.edits:
        keep(file, found, key)
    return found


def information(model: CausalModel, layer: int, rows: Sequence[Sequence[int]], *, tell: Tell | None = None) -> torch.Tensor:
    """The mean of g gᵀ over the tokens of rows, but the first and the last of each.

    Raises:
        InvalidInput: the gradients hold numbers that are none.
    """
    import torch

    total = torch.zeros(model.width, model.width, dtype=torch.float64, device=model.device)
    count = 0

    def run(part: list[Sequence[int]]) -> None:
        nonlocal count
        ids, mask = padded(part, model.pad, model.device)
        counted = mask.bool()
        counted[:, 0] = False
        counted[:, :-1] &= mask[:, 1:].bool()  # the last token is followed by nothing
        counted[:, -1] = False
        g = _gradients(model, layer, ids, mask)[counted].double()
        total.addmm_(g.T, g)
        count += len(g)
        if tell:
            tell("fisher", count, sum(map(len, rows)))

    Budget(_AT_ONCE).each(sorted(rows, key=len), len, run)
    if not total.isfinite().all():
        raise InvalidInput(
            f"in ordinary text, the gradients in layer {layer} hold numbers that are none.",
            "Nothing was kept. Load the model in float32; if it is, its weights are damaged.",
        )
    return total.cpu() / max(1, count)


def _gradients(model: CausalModel, layer: int, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of the log-likelihood of what follows, by the stream behind the block, [rows, tokens, width]."""
    import torch

    streams: list[torch.Tensor] = []

    def from_here(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        streams.append(output.detach().requires_grad_(True))
        return streams[0]

    handle = model.blocks[layer].register_forward_hook(changing(from_here))
    try:
        with torch.enable_grad():
            logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
            followed = mask[:, 1:].bool()
            likelihood = -torch.nn.functional.cross_entropy(logits[followed], ids[:, 1:][followed], reduction="sum")
            return torch.autograd.grad(likelihood, streams[0])[0]
    finally:
        handle.remove()


def damped_inverse(F: torch.Tensor, rho: float) -> torch.Tensor:
    """Invert F over its mean diagonal, damped: (F / f̄ + rho I)⁻¹."""
    import torch

    scale = F.diagonal().mean().clamp_min(torch.finfo(F.dtype).tiny)
    inverse: torch.Tensor = torch.linalg.inv(F / scale + rho * torch.eye(len(F), dtype=F.dtype, device=F.device))
    return inverse
