"""ROME: one fact after another, each as a rank-one change of one MLP (Meng et al. 2022)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ke_tools.editors._goals import contexts, goals
from ke_tools.editors._keys import look
from ke_tools.editors._locate import Site
from ke_tools.editors._site import Auto, Choice, resolve
from ke_tools.editors._solve import Factors, rank_one
from ke_tools.editors._spread import Clock, Prepared, Progress, described, reached, refuse_nonsense, values
from ke_tools.editors._statistics import moments
from ke_tools.editors._targets import Objective
from ke_tools.editors.update import Efficiency, Update
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["ROME"]


@dataclass(frozen=True, kw_only=True)
class ROME:
    r"""Insert each fact as a new pair of key and value of one layer's projection (eq. 2).

    $$\Delta = (v_* - W \bar k)\,\frac{(C^{-1} \bar k)^\top}{\bar k^\top C^{-1} \bar k}, \qquad v_* = W k + \delta,$$

    with $\bar k$ the mean key over the fact's prompts, $k$ that of the bare prompt, and $\delta$ found as for MEMIT with $L$ this layer:
    what is added to the MLP's output is added to the residual stream.

    ``key="mean"`` is R-ROME (Gupta et al. 2024): $\bar k$ everywhere, so that $(W + \Delta) \bar k = v_*$. ``key="reference"`` is what the
    published code does: $\delta (C^{-1}\bar k)^\top / (k^\top C^{-1} \bar k)$, where $k$ and $\bar k$ are mixed, which now and then makes
    a single edit ruin the model.

    Differs from the reference (rome at 0874014): 1. the δ of a batch are found together, on the unedited model; 2. the clamp is in lengths
    of the residual stream, there of the MLP's output; 3. C is taken of ten tokens a dimension of the key; 4. a fact that the model holds
    already is given $v_* = W \bar k$, which changes nothing.
    """

    layer: int | Auto = "auto"  # the middle one of what MEMIT takes
    site: Site | Auto = "auto"
    key: Literal["mean", "reference"] = "mean"
    contexts: int = 6
    objective: Objective = field(default_factory=Objective)
    text: Path | None = None
    tokens: int | None = None
    seed: int = 0

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> Prepared:
        """Take the layer, its C, and texts to stand before prompts.

        Raises:
            InvalidInput: the model has no such layer, or knows too little to be traced.
        """
        began = time.monotonic()
        site, layers = resolve(model, "auto" if self.layer == "auto" else (self.layer,), self.site, cache=cache, tell=tell)
        where = Choice(site, (layers[len(layers) // 2],))
        found = moments(model, where.layers, text=self.text, tokens=self.tokens, seed=self.seed, cache=cache, tell=tell)
        return Prepared(model, where, found, contexts(model, self.contexts, seed=self.seed), time.monotonic() - began)

    def plan(self, prepared: Prepared, facts: Sequence[Fact], *, earlier: Sequence[Update] = (), tell: Progress | None = None) -> Update:
        """Plan an update; the model stays as it is. Earlier updates are not heeded: each fact overrides what it must.

        Raises:
            InvalidInput: a value, a key or the change holds numbers that are none.
        """
        import torch

        del earlier
        model, clock = prepared.model, Clock()
        site, (layer,) = prepared.where
        wanted = goals(model, facts, prepared.contexts, site=site)
        with clock.stage("z"):
            found = values(model, facts, wanted, layer, self.objective, tell=tell)
        with clock.stage("solve"):
            seen = look(model, wanted, [layer])
            mean = seen.mean(seen.keys[layer])
            bare = seen.keys[layer][seen.owners.argmax(1)]  # the first of each fact's prompts
            for keys in (mean, bare):
                refuse_nonsense(keys, facts, f"the key in layer {layer}")
            is_known = torch.tensor([steps == 0 for steps in found.steps])[:, None]
            change = self._one_by_one(prepared, mean, mean.where(is_known, bare), (found.z - found.h).double().cpu())
        seconds = {"statistics": round(prepared.seconds, 2), **clock.seconds}
        method, outcomes, efficiency = (
            described(self, layer=layer, site=site),
            reached(facts, found, self.objective),
            Efficiency(seconds=seconds),
        )
        made = Update(method, {layer: change}, outcomes, model.fingerprint, efficiency, {layer: mean}, prepared.moments.notes())
        made.check(model)
        return made

    def _one_by_one(self, prepared: Prepared, mean: torch.Tensor, bare: torch.Tensor, delta: torch.Tensor) -> Factors:
        """Insert the facts in order, each into what those before it made of W. Rows are facts."""
        import torch

        (layer,) = prepared.where.layers
        weight = prepared.model.weight(layer).detach().double().cpu()
        W = weight.T if prepared.model.is_transposed(layer) else weight
        values = bare @ W.T + delta  # v* = Wk + δ
        made = Factors(torch.zeros(len(W), 0, dtype=W.dtype), torch.zeros(0, W.shape[1], dtype=W.dtype))
        for k_mean, k_bare, v in zip(mean, bare, values, strict=True):
            k = k_mean if self.key == "mean" else k_bare
            now = W @ k + made.left @ (made.right @ k)
            one = rank_one(k_mean, k, v - now, prepared.moments.of(layer))
            made = Factors(torch.cat([made.left, one.left], 1), torch.cat([made.right, one.right], 0))
        return made
