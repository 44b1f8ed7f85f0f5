"""What else may be asked for: every fitted wording of the atlas's relations and slots, as vectors.

A question that is nearer to the wordings of another relation than to the edit asks for something else, also where the edit's own relation
is none that anything was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ke_tools import atlas
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.embedding import Embedder

__all__ = ["NEAR", "OPEN", "OPEN_QUESTIONS", "VECTORS", "Inventory", "wordings"]

VECTORS: Final = "inventory.safetensors"
NEAR: Final = 0.6  # cosine from which a text may be of a relation
OPEN: Final = "open"  # the relation of questions that ask for no single thing
OPEN_QUESTIONS: Final = (
    "Tell me about {}.",
    "Tell me something interesting about {}.",
    "What do you know about {}?",
    "Who is {}?",
    "What is {}?",
    "Describe {}.",
    "Give me an overview of {}.",
    "Summarise what you know of {} in two sentences.",
    "Write a short paragraph about {}.",
    "Introduce {} to somebody who has never heard of it.",
    "Explain {} to a child.",
    "Write an encyclopedia entry for {}.",
    "List some facts about {}.",
    "I want to learn about {}.",
    "Write a short biography of {}.",
    "Give me the key facts on {}.",
    "Can you give me some background on {}?",
    "What can you tell me about {}?",
    "Who was {}?",
    "tell me more about {}",
    "{}: what should one know?",
    "Prepare a fact sheet on {}.",
)


@cache
def wordings() -> tuple[tuple[str, str], ...]:
    """All of them as (relation, neutral text), those of one relation together, in a fixed order."""
    of_atlas = [(r.id, text) for r in atlas.relations().values() for text in r.fitted_statements + r.fitted_questions]
    of_slots = [(f"slot:{slot.id}", text) for slot in atlas.slots() for text in slot.statements + slot.questions]
    return tuple((name, neutral(text)) for name, text in (*of_atlas, *of_slots, *((OPEN, text) for text in OPEN_QUESTIONS)))


@dataclass(frozen=True, eq=False)
class Inventory:
    """Unit vectors of :func:`wordings`, shape (wordings, dimension)."""

    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, embedder: Embedder, folder: Path | None = None) -> Inventory:
        """Read them from a folder, else embed them; those of another list of wordings, or damaged, are made anew."""
        if folder is not None:
            try:
                kept = load_file(folder / VECTORS)
                if bytes(kept["wordings"]).hex() == _key():
                    rows = kept["rows"].astype(np.float32)
                    return cls(rows / np.linalg.norm(rows, axis=1, keepdims=True))
            except (OSError, SafetensorError, KeyError):
                pass
        return cls(embedder.encode([text for _, text in wordings()]))

    def save(self, folder: Path) -> None:
        """Write them in 8 bits."""
        scale = np.abs(self.vectors).max(1, keepdims=True) / 127
        key = np.frombuffer(bytes.fromhex(_key()), np.uint8)
        save_file({"rows": np.round(self.vectors / scale).astype(np.int8), "wordings": key}, folder / VECTORS)

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(name for name, _ in wordings()))

    def likeness(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The cosine of the nearest wording of each relation; (n, dimension) → (n, relations)."""
        return np.maximum.reduceat(vectors @ self.vectors.T, self._starts, axis=1)

    def nearest(self, vectors: NDArray[np.float32], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Find the wordings nearest to any of some vectors, none of a relation ``besides`` or of one that they may be of themselves.

        Returns:
            Up to ``most`` of them, and how many there are in all.
        """
        may_be = {name for name, near in zip(self.relations, self.likeness(vectors).max(0), strict=True) if near >= NEAR}
        rows = np.array([n for n, (name, _) in enumerate(wordings()) if name not in besides and name not in may_be], np.intp)
        likeness = (self.vectors[rows] @ vectors.T).max(1)
        return [wordings()[n][1] for n in rows[np.argsort(-likeness)[:most]]], len(rows)

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        names = np.array([name for name, _ in wordings()])
        return np.flatnonzero(np.r_[True, names[1:] != names[:-1]])


def _key() -> str:
    return hashlib.sha256("\n".join(f"{name}\t{text}" for name, text in wordings()).encode()).hexdigest()
