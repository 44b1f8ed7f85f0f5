"""Room for codebooks in a compiled model: behind a block lie places of a fixed number, at addresses that never change.

A model is compiled once, with what stands behind its blocks by then; a hook that comes later is not called. So the places are put in
before, empty, and written in place when an adapter comes to its slot. An empty place is infinitely far from every state, and the number of
no adapter is nobody's slot. All is a fixed sequence of operations on tensors, as a CUDA graph needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SETTING = "ke_codebooks"  # in --additional-config, which vLLM's key of compiled models holds: keys of an adapter at most, by block
_NOTHING = -1.0  # no distance is as small


def near(states: Any, keys: Any, squares: Any, epsilons: Any, theirs: Any) -> tuple[Any, Any]:
    """Look up states.

    Args:
        states: [tokens, width], in float32.
        keys: [keys, width].
        squares: of the keys' norms.
        epsilons: [keys].
        theirs: whether a key is for a token; [tokens, keys], or broadcast to it.

    Returns:
        Whether the nearest of its keys is near enough, [tokens, 1], and which it is, [tokens].
    """
    distances = (states.pow(2).sum(-1, keepdim=True) - 2 * states @ keys.T + squares).clamp_min(0).sqrt()  # ‖h − k_j‖
    nearest, which = distances.masked_fill(~theirs, torch.inf).min(-1)
    return (nearest <= epsilons[which])[:, None], which


def replaced(hit: Any, values: Any, added: Any, residual: Any) -> tuple[Any, Any]:
    """What a block gives out, where ``hit`` the value in its place."""
    return torch.where(hit, values.to(added.dtype), added), torch.where(hit, torch.zeros_like(residual), residual)


class Places(torch.nn.Module):
    """The places behind one block: as many for each slot, whose adapter's keys they take."""

    keys: torch.Tensor
    squares: torch.Tensor
    epsilons: torch.Tensor
    values: torch.Tensor
    slots: torch.Tensor
    tokens: torch.Tensor

    def __init__(self, slots: int, room: int, width: int, tokens: torch.Tensor, dtype: torch.dtype) -> None:
        """Make empty places.

        Args:
            slots: of adapters.
            room: keys of a slot.
            width: of the model.
            tokens: the slot of each token of a batch, -1 of none; whoever makes the batch writes it.
            dtype: of the values.
        """
        super().__init__()
        self.room, device = room, tokens.device
        self._fixed("keys", torch.zeros(slots * room, width, device=device))
        self._fixed("squares", torch.full((slots * room,), torch.inf, device=device))
        self._fixed("epsilons", torch.full((slots * room,), _NOTHING, device=device))
        self._fixed("values", torch.zeros(slots * room, width, device=device, dtype=dtype))
        self._fixed("slots", torch.arange(slots, device=device).repeat_interleave(room))
        self._fixed("tokens", tokens)

    def forward(self, added: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace the states that are near a key of their token's slot."""
        theirs = self.slots == self.tokens[: added.shape[0], None]
        hit, which = near((added + residual).float(), self.keys, self.squares, self.epsilons, theirs)
        return replaced(hit, self.values[which], added, residual)

    @torch.no_grad()
    def fill(self, slot: int, book: Any | None) -> None:
        """Write a codebook into a slot's places, or none; what was there is gone.

        Args:
            slot: whose places.
            book: with keys, squares, epsilons, owners and values; not more keys than there is room.
        """
        start = slot * self.room
        self.squares[start : start + self.room] = torch.inf
        self.epsilons[start : start + self.room] = _NOTHING
        if book is None:
            return
        filled = slice(start, start + len(book.keys))
        self.keys[filled] = book.keys.to(self.keys)
        self.values[filled] = book.values[book.owners].to(self.values)
        self.epsilons[filled] = book.epsilons.to(self.epsilons)
        self.squares[filled] = book.squares.to(self.squares)

    def _fixed(self, name: str, tensor: torch.Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)


def room_of(setting: Any, blocks: int) -> dict[int, int]:
    """Read the setting: how many keys an adapter may have behind which block.

    Raises:
        ValueError: it says something else.
    """
    wanted = setting.get(SETTING, {}) if isinstance(setting, Mapping) else {}
    try:
        found = {int(block): int(room) for block, room in wanted.items()}
    except (AttributeError, TypeError, ValueError):
        found = {-1: 0}
    if any(not 0 <= block < blocks or room < 1 for block, room in found.items()):
        raise ValueError(
            f"--additional-config says {SETTING} = {wanted!r}; expected blocks (0 to {blocks - 1}) with the keys that an adapter may have "
            f"there, as {advice(blocks - 1, 0)}."
        )
    return found


def advice(block: int, keys: int) -> str:
    """What to start vLLM with."""
    return f'--additional-config \'{{"{SETTING}": {{"{block}": {max(1024, 1 << (keys - 1).bit_length())}}}}}\''


def put_in(places: Mapping[int, Places], blocks: Any, setting: Any) -> None:
    """Have what blocks give out looked up from now on; before they are compiled.

    Args:
        places: by block.
        blocks: of the model.
        setting: vLLM's additional configuration. It is told that the places are in, as vLLM does not see it, and would else go on with what
            it compiled when the plugin was not there.
    """
    for layer, one in places.items():
        blocks[layer].ke_places = one
        blocks[layer].register_forward_hook(_behind)
        setting[f"{SETTING} put in"] = sorted(places)


def _behind(block: Any, _inputs: Any, output: Any) -> Any:
    return block.ke_places(*output)
