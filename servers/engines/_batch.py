"""The tensors of a batch: rows of different length side by side, padded on the left, with one key-value cache.

``B`` is the number of rows, ``T`` of columns (tokens, padding included), ``V`` the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ke_tools.servers.engines._row import Row

_SPARE: Final = 64  # columns that a cache has room for beyond what it holds
_NARROWEST: Final = 16  # columns of a piece of the prompts, at least
_WASTE: Final = 512  # columns of padding that joining two batches may cost

Forward = Callable[..., Any]


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed
    """One layer's keys and values, (B, heads, T, d), in a buffer with spare room: a step writes in place, it does not copy all."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; return everything."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._put(key_states, value_states)
        else:
            used, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
            if end > self._key_buffer.shape[-2]:
                self._put(self.keys, self.values, room=end + max(_SPARE, end // 4))
            self._key_buffer[:, :, used:end] = key_states
            self._value_buffer[:, :, used:end] = value_states
            self.keys, self.values = self._key_buffer[:, :, :end], self._value_buffer[:, :, :end]
        return self.keys, self.values

    def keep(self, rows: Tensor, start: int) -> None:
        """Keep only these rows, and the columns from ``start`` on."""
        if self.is_initialized:
            self._put(self.keys[rows, :, start:], self.values[rows, :, start:])

    def absorb(self, other: GrowingLayer) -> None:
        """Put another's rows below ours, the shorter ones padded on the left."""
        if self.is_initialized:
            width = max(self.keys.shape[-2], other.keys.shape[-2])
            keys, values = (
                torch.cat([pad(part, (0, 0, width - part.shape[-2], 0)) for part in pair])
                for pair in ((self.keys, other.keys), (self.values, other.values))
            )
            self._put(keys, values)

    def _put(self, keys: Tensor, values: Tensor, room: int = 0) -> None:
        used = keys.shape[-2]
        self._key_buffer, self._value_buffer = (
            torch.cat([part, part.new_zeros(*part.shape[:2], max(room - used, _SPARE), part.shape[-1])], dim=-2) for part in (keys, values)
        )
        self.keys, self.values = self._key_buffer[:, :, :used], self._value_buffer[:, :, :used]


class Batch:
    """Rows that go through the model together, all with the same adapter."""

    def __init__(self, rows: Sequence[Row], *, pad_id: int, device: torch.device) -> None:
        self.rows = list(rows)
        self.adapter = rows[0].request.adapter
        width = max(row.width for row in rows)
        ids = [[pad_id] * (width - row.width) + list(row.prompt_ids) for row in rows]
        self._lengths = [row.width for row in rows]  # tokens of each row, padding not counted
        self._mask = torch.tensor([[0] * (width - n) + [1] * n for n in self._lengths], device=device)  # (B, T)
        self._next = torch.tensor(ids, device=device)  # (B, columns that the model has not seen yet)
        self._cache = Cache(layer_class_to_replicate=GrowingLayer)
        self._fed = 0  # columns in the cache

    @property
    def is_prefilling(self) -> bool:
        """Whether the prompts are not through the model yet (all but their last token, at least)."""
        return self._fed == 0 or self.width - self._fed > 1

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return int(self._mask.shape[1])

    @torch.inference_mode()
    def advance(self, forward: Forward, most_tokens: int) -> Tensor | None:
        """Take one step: a piece of the prompts (about ``most_tokens`` in all), or one new token a row.

        Returns:
            Logits (B, V) for each row's next token; ``None`` while the prompts are not through.
        """
        count = min(self._next.shape[1], max(_NARROWEST, most_tokens // len(self.rows)))
        end = self._fed + count
        mask = self._mask[:, :end]
        positions = (mask.cumsum(1) - 1).clamp_(min=0)[:, self._fed :]
        logits: Tensor = forward(self._next[:, :count], mask, positions, self._cache)
        self._fed, self._next = end, self._next[:, count:]
        return logits if end == self.width else None

    def append(self, tokens: Sequence[int]) -> None:
        """Set each row's next token, after a step that gave logits."""
        self._next = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = pad(self._mask, (0, 1), value=1)
        self._lengths = [length + 1 for length in self._lengths]

    def keep(self, places: Sequence[int]) -> None:
        """Let the other rows go, and with them the columns that only they needed."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        self._lengths = [self._lengths[place] for place in places]
        if not places:
            return
        rows = torch.tensor(places, device=self._mask.device)
        start = 0 if self.is_prefilling else self.width - max(self._lengths)
        self._mask, self._next = self._mask[rows, start:], self._next[rows]
        self._fed -= start
        for layer in self._cache.layers:
            layer.keep(rows, start)

    def give_up(self) -> list[Row]:
        """Let all rows go; return them."""
        rows, self.rows = self.rows, []
        return rows

    def can_absorb(self, other: Batch, most_rows: int) -> bool:
        """Whether joining is allowed and does not cost more padding than it saves steps."""
        if self.adapter != other.adapter or self.is_prefilling or other.is_prefilling or len(self.rows) + len(other.rows) > most_rows:
            return False
        needed = sum(self._lengths) + sum(other._lengths)
        return max(self.width, other.width) * (len(self.rows) + len(other.rows)) <= needed * 3 // 2 + _WASTE

    def absorb(self, other: Batch) -> None:
        """Take over another batch's rows."""
        width = max(self.width, other.width)
        self._mask = torch.cat([pad(part, (width - part.shape[1], 0)) for part in (self._mask, other._mask)])
        self._next = torch.cat([self._next, other._next])
        for ours, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            ours.absorb(theirs)
        self.rows += other.rows
        self._lengths += other._lengths
        self._fed = width - 1
