"""Keys: what enters an MLP's output projection at the edited token of each prompt; and the residual stream there."""

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

    keys: Mapping[int, torch.Tensor]  # layer → [rows, d_key], a row a prompt
    held: torch.Tensor  # [rows, width]: the stream after the last layer looked at, or its MLP's output
    owners: torch.Tensor  # [facts, rows]: 1/P where one of a fact's P prompts is the row's, else 0

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Of each fact, the mean over its prompts, [facts, …]."""
        return self.owners @ rows


def look(model: CausalModel, goals: Sequence[Goal], layers: Sequence[int], at: At = "block") -> Seen:
    """Run the facts' prompts up to the last of the layers."""
    import torch

    rows = [(n, placed) for n, goal in enumerate(goals) for placed in goal.prompts]
    order = sorted(enumerate(rows), key=lambda row: len(row[1][1].ids))
    last = max(layers)
    keys = {layer: torch.zeros(len(rows), model.key_width(layer), dtype=torch.float64) for layer in layers}
    held = torch.zeros(len(rows), model.width, dtype=torch.float64)
    owners = torch.zeros(len(goals), len(rows), dtype=torch.float64)
    for row, (n, _) in enumerate(rows):
        owners[n, row] = 1 / len(goals[n].prompts)

    def run(part: list[tuple[int, tuple[int, Placed]]]) -> None:
        ids, mask = padded([placed.ids[: placed.site + 1] for _, (_, placed) in part], model.pad, model.device)
        with torch.inference_mode(), inputs_of({layer: model.projection(layer) for layer in layers}) as entered:
            out = run_until(model.model, sites(model, last, at)[-1], input_ids=ids, attention_mask=mask, use_cache=False)
        where, places = [row for row, _ in part], (range(len(part)), [placed.site for _, (_, placed) in part])
        for layer in layers:
            keys[layer][where] = entered[layer].reshape(*ids.shape, -1)[places].double().cpu()
        held[where] = out.reshape(*ids.shape, -1)[places].double().cpu()

    Budget(_TOKENS).each(order, lambda row: len(row[1][1].ids), run)
    return Seen(keys, held, owners)


def streams(model: CausalModel, placed: Sequence[Placed], layer: int) -> list[torch.Tensor]:
    """The residual stream behind a block at every token up to the edited one, of each row [tokens, width], in float32."""
    import torch

    found: dict[int, torch.Tensor] = {}
    rows = sorted(((n, 0, one) for n, one in enumerate(placed)), key=lambda row: len(row[2].ids))

    def run(part: list[tuple[int, int, Placed]]) -> None:
        ids, mask = padded([one.ids[: one.site + 1] for _, _, one in part], model.pad, model.device)
        with torch.inference_mode():
            out = run_until(model.model, model.blocks[layer], input_ids=ids, attention_mask=mask, use_cache=False)
        for place, (n, _, one) in enumerate(part):
            found[n] = out[place, : one.site + 1].float().cpu().clone()

    Budget(_TOKENS).each(rows, lambda row: len(row[2].ids), run)
    return [found[n] for n in range(len(placed))]
