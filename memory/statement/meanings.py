"""How near a wording is to those that training may use, by the scope's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.embedding import Embedder, tuned
from ke_tools.memory.scope.inventory import OPEN, Inventory
from ke_tools.memory.scope.scorer import shipped_folder

__all__ = ["InventoryMeanings"]


class InventoryMeanings:
    """The shipped scorer's inventory of wordings, which holds none that only probes may use. Thread safe; read with the first text."""

    def __init__(self, *, cache: Path | None = None) -> None:
        self._embedder: Embedder = tuned(shipped_folder(), cache=cache)

    def likely(self, masked: str, within: float) -> list[str]:
        """The relations that are as near to a text as the nearest, or less so by at most ``within``."""
        [row] = self._likeness([masked])
        return [self._relations[place] for place in np.flatnonzero(row >= row.max() - within)]

    def nearest(self, masked: Sequence[str]) -> list[tuple[str, float]]:
        """For each subject-masked text the relation that is nearest, and its cosine."""
        likeness = self._likeness(masked)
        return [(self._relations[place], float(row[place])) for row, place in zip(likeness, np.argmax(likeness, axis=1), strict=True)]

    @cached_property
    def _inventory(self) -> Inventory:
        return Inventory.load(shipped_folder())

    @property
    def _relations(self) -> tuple[str, ...]:
        return self._inventory.relations

    def _likeness(self, masked: Sequence[str]) -> NDArray[np.float32]:
        """To each relation; what is no relation of the atlas counts as opposite."""
        likeness = self._inventory.likeness(self._embedder.encode([neutral(text) for text in masked]))
        likeness[:, [name == OPEN or name.startswith("slot:") for name in self._relations]] = -1.0
        return likeness
