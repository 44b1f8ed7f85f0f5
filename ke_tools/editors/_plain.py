"""States of ordinary text behind a block, which a codebook must leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ke_tools.editors._keys import streams
from ke_tools.editors._locate import Placed
from ke_tools.editors._safetensors import SampledKey, keep, kept
from ke_tools.editors._statistics import Tell, samples
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["plain_states"]


def plain_states(
    model: CausalModel, layer: int, *, tokens: int, seed: int = 0, cache: Path | None = None, tell: Tell | None = None
) -> torch.Tensor:
    """The residual stream behind a block over the model's own samples, [tokens, width]; from the cache where it is.

    Args:
        model: whose.
        layer: the block.
        tokens: of the samples, at least.
        seed: of the samples.
        cache: folder to keep them in; nothing is kept without one, nor for a model without fingerprint or with edits applied.
        tell: hears (stage, done, total).
    """
    import torch

    key = SampledKey(model=model.fingerprint, layer=layer, tokens=tokens, seed=seed, dtype=str(model.dtype))
    file = cache / "plain" / f"{key.name}.safetensors" if cache and model.fingerprint and not model.edits else None
    if file and (found := kept(file)) is not None and found.shape[1:] == (model.width,):
        return found
    rows = samples(model, tokens, seed=seed, tell=tell)
    found = torch.cat(streams(model, [Placed(tuple(row), len(row) - 1, len(row)) for row in rows], layer))
    if file:
        keep(file, found, key)
    return found
