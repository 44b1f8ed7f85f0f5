"""The descent that both trainings share: AdamW, one cycle of the learning rate, clipped gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["Tell", "descend"]

_CLIP: Final = 1.0
_WARMING: Final = 0.08  # share of the steps in which the rate rises

Tell = Callable[[int, float], None]  # hears of each step and its loss


def descend(learnt: Sequence[Any], backward: Callable[[], float], *, steps: int, rate: float, tell: Tell) -> None:
    """Change the weights ``learnt``; ``backward`` adds the gradients of a batch and returns its loss."""
    import torch

    optimizer = torch.optim.AdamW(learnt, lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=_WARMING, anneal_strategy="linear")
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = backward()
        torch.nn.utils.clip_grad_norm_(learnt, _CLIP)
        optimizer.step()
        schedule.step()
        tell(step, loss)
