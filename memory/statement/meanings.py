"""How near a wording is to those that training may use, by the scope's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.embedding import Embedder, tuned
from ke_tools.memory.scope.inventory import OPEN, Inventory
from ke_tools.memory.scope.scorer import shipped_folder

__all__ = ["InventoryMeanings"]


class InventoryMeanings:
    """The shipped scorer's inventory of wordings, which holds none that only probes may use. Thread safe; read with the first text."""

    def __init__(self, *, cache: Path | None = None) -> None:
        self._embedder: Embedder = tuned(shipped_folder(), cache=cache)
        self._inventory: Inventory | None = None

    def nearest(self, masked: Sequence[str]) -> list[tuple[str, float]]:
        """For each subject-masked text the relation that is nearest, and its cosine."""
        if self._inventory is None:
            self._inventory = Inventory.load(shipped_folder())
        inventory = self._inventory
        likeness = inventory.likeness(self._embedder.encode([neutral(text) for text in masked]))
        likeness[:, [name == OPEN or name.startswith("slot:") for name in inventory.relations]] = -1.0
        return [(inventory.relations[place], float(row[place])) for row, place in zip(likeness, np.argmax(likeness, axis=1), strict=True)]
