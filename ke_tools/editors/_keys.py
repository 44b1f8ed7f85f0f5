"""Keys: what enters an MLP's output projection at the edited token, the mean over a fact's prompts; and the residual stream there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ke_tools.editors._budget import Budget
from ke_tools.editors._locate import Placed, padded
from ke_tools.editors._targets import At, Goal, sites
from ke_tools.editors._trace import inputs_of, run_until
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["Seen", "look", "streams"]

_TOKENS: Final = 8192  # of a padded batch; no gradients are kept


class Seen(NamedTuple):
    """What is found at the edited tokens of facts."""

    keys: Mapping[int, torch.Tensor]  # layer → [facts, d_key], the mean over a fact's prompts
    held: torch.Tensor  # [facts, width]: the stream after the last layer looked at, or its MLP's output, of a fact's first prompt


def look(model: CausalModel, goals: Sequence[Goal], layers: Sequence[int], at: At = "block") -> Seen:
    """Run the facts' prompts up to the last of the layers."""
    import torch

    rows = sorted(
        ((n, k, placed) for n, goal in enumerate(goals) for k, placed in enumerate(goal.prompts)), key=lambda row: len(row[2].ids)
    )
    last = max(layers)
    keys = {layer: torch.zeros(len(goals), model.key_width(layer), dtype=torch.float64) for layer in layers}
    held = torch.zeros(len(goals), model.width, dtype=torch.float64)

    def run(part: list[tuple[int, int, Placed]]) -> None:
        ids, mask = padded([placed.ids[: placed.site + 1] for _, _, placed in part], _pad(model), model.device)
        with torch.inference_mode(), inputs_of({layer: model.projection(layer) for layer in layers}) as entered:
            out = run_until(model.model, sites(model, last, at)[-1], input_ids=ids, attention_mask=mask, use_cache=False)
        for place, (n, k, placed) in enumerate(part):
            for layer in layers:
                key = entered[layer].reshape(*ids.shape, -1)[place, placed.site]
                keys[layer][n] += key.double().cpu() / len(goals[n].prompts)
            if k == 0:
                held[n] = out.reshape(*ids.shape, -1)[place, placed.site].double().cpu()

    Budget(_TOKENS).each(rows, lambda row: len(row[2].ids), run)
    return Seen(keys, held)


def streams(model: CausalModel, placed: Sequence[Placed], layer: int) -> list[torch.Tensor]:
    """The residual stream behind a block at every token up to the edited one, of each row [tokens, width], in float32."""
    import torch

    found: dict[int, torch.Tensor] = {}
    rows = sorted(((n, 0, one) for n, one in enumerate(placed)), key=lambda row: len(row[2].ids))

    def run(part: list[tuple[int, int, Placed]]) -> None:
        ids, mask = padded([one.ids[: one.site + 1] for _, _, one in part], _pad(model), model.device)
        with torch.inference_mode():
            out = run_until(model.model, model.blocks[layer], input_ids=ids, attention_mask=mask, use_cache=False)
        for place, (n, _, one) in enumerate(part):
            found[n] = out[place, : one.site + 1].float().cpu().clone()

    Budget(_TOKENS).each(rows, lambda row: len(row[2].ids), run)
    return [found[n] for n in range(len(placed))]


def _pad(model: CausalModel) -> int:
    pad = model.tokenizer.pad_token_id
    return int(pad if pad is not None else model.tokenizer.eos_token_id or 0)
