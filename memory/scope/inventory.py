"""What else may be asked for: wordings of the atlas's relations and slots, as vectors.

A question that is nearer to the wordings of another relation than to the edit asks for something else, also where the edit's own relation
is none that anything was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ke_tools import atlas
from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.embedding import Embedder

__all__ = ["NEAR", "OPEN", "OPEN_QUESTIONS", "VECTORS", "Inventory", "Wordings", "of_atlas", "of_slots"]

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
_KEPT: Final = 4  # wordings of a relation that stand for all of them
_FEW: Final = 4  # vectors that are compared without BLAS, whose threads wait for a processor longer than they compute

Wordings = tuple[str, tuple[str, ...]]  # a relation's name and its masked wordings


def of_atlas() -> Iterator[Wordings]:
    """The relations that training may use, and the open questions."""
    yield from ((relation.id, relation.fitted_statements + relation.fitted_questions) for relation in atlas.relations().values())
    yield OPEN, OPEN_QUESTIONS


def of_slots() -> Iterator[Wordings]:
    """What else the atlas has wordings for."""
    yield from ((f"slot:{slot.id}", slot.statements + slot.questions) for slot in atlas.slots())


@dataclass(frozen=True, eq=False)
class Inventory:
    """Neutral wordings, those of one relation together, with their unit vectors, shape (wordings, dimension)."""

    names: tuple[str, ...]  # the relation of each
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, embedder: Embedder, relations: Sequence[Wordings]) -> Inventory:
        """Take of each relation the wordings that stand for all: the most central, then always what is farthest from those taken."""
        named = [(name, tuple(map(neutral, texts))) for name, texts in relations if texts]
        vectors = embedder.encode([text for _, texts in named for text in texts])
        ends = np.cumsum([len(texts) for _, texts in named])
        names, kept, rows = [], [], []
        for (name, texts), own in zip(named, np.split(vectors, ends[:-1]), strict=True):
            chosen = _spread(own, len(texts) if name == OPEN else _KEPT)
            names += [name] * len(chosen)
            kept += [texts[n] for n in chosen]
            rows.append(own[chosen])
        return cls(tuple(names), tuple(kept), np.concatenate(rows))

    @classmethod
    def load(cls, folder: Path) -> Inventory:
        """Read what :meth:`save` wrote.

        Raises:
            ModelUnavailable: it is missing or damaged.
        """
        try:
            with safe_open(folder / VECTORS, framework="numpy") as file:
                told = json.loads(file.metadata()["wordings"])
                rows = file.get_tensor("rows").astype(np.float32)
            names, texts = zip(*told, strict=True)
        except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
            raise ModelUnavailable(f"{folder / VECTORS} cannot be read: {error}", "Install ke-tools again.") from error
        return cls(names, texts, rows / np.linalg.norm(rows, axis=1, keepdims=True))

    def save(self, folder: Path) -> None:
        """Write it, the vectors in 8 bits."""
        rows = np.round(self.vectors / (np.abs(self.vectors).max(1, keepdims=True) / 127)).astype(np.int8)
        save_file({"rows": rows}, folder / VECTORS, {"wordings": json.dumps(list(zip(self.names, self.texts, strict=True)))})

    @cached_property
    def relations(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(dict.fromkeys(self.names))

    def likeness(self, vectors: NDArray[np.float32], besides: Sequence[str] = ()) -> NDArray[np.float32]:
        """The cosine of the nearest wording of each relation, for each row a text left out; (n, dimension) → (n, relations)."""
        found = np.einsum("nd,wd->nw", vectors, self.vectors) if len(vectors) <= _FEW else vectors @ self.vectors.T
        for row, text in enumerate(besides):
            found[row, self._places.get(text, [])] = -1
        return np.maximum.reduceat(found, self._starts, axis=1)

    def nearest(self, vectors: NDArray[np.float32], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Find the wordings nearest to any of some vectors, none of a relation ``besides`` or of one that they may be of themselves.

        Returns:
            Up to ``most`` of them, and how many there are in all.
        """
        may_be = {name for name, near in zip(self.relations, self.likeness(vectors).max(0), strict=True) if near >= NEAR}
        rows = np.array([n for n, name in enumerate(self.names) if name not in besides and name not in may_be], np.intp)
        likeness = (self.vectors[rows] @ vectors.T).max(1)
        return [self.texts[n] for n in rows[np.argsort(-likeness)[:most]]], len(rows)

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for number, text in enumerate(self.texts):
            places.setdefault(text, []).append(number)
        return places

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        names = np.array(self.names)
        return np.flatnonzero(np.r_[True, names[1:] != names[:-1]])


def _spread(vectors: NDArray[np.float32], most: int) -> list[int]:
    likeness = vectors @ vectors.T
    chosen = [int(likeness.sum(1).argmax())]
    while len(chosen) < min(most, len(vectors)):
        chosen.append(int(likeness[:, chosen].max(1).argmin()))
    return sorted(chosen)
