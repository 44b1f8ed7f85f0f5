"""Nearest vectors, for questions that name nobody: a flat FAISS index, derived from the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorIndex"]


class VectorIndex:
    """Several unit vectors an edit; exact search by inner product. Thread safe."""

    def __init__(self, dimension: int) -> None:
        """Begin empty; FAISS is loaded here."""
        import faiss

        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
        self._rows: dict[str, list[int]] = {}  # edit → numbers of its vectors
        self._edits: dict[int, str] = {}
        self._next = 0
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Count the edits."""
        return len(self._rows)

    def add(self, edit_id: str, vectors: NDArray[np.float32]) -> None:
        """Let the vectors, shape (n, dimension), point to the edit; those given earlier for it are forgotten."""
        with self._lock:
            self.discard(edit_id)
            numbers = list(range(self._next, self._next + len(vectors)))
            self._next += len(vectors)
            self._index.add_with_ids(np.ascontiguousarray(vectors, dtype=np.float32), np.array(numbers, dtype=np.int64))
            self._rows[edit_id] = numbers
            self._edits.update(dict.fromkeys(numbers, edit_id))

    def discard(self, edit_id: str) -> None:
        """Forget an edit; unknown ones are no error."""
        with self._lock:
            numbers = self._rows.pop(edit_id, [])
            if numbers:
                self._index.remove_ids(np.array(numbers, dtype=np.int64))
            for number in numbers:
                del self._edits[number]

    def search(self, vector: NDArray[np.float32], most: int) -> list[tuple[str, float]]:
        """Return up to ``most`` edits with their best inner product, the nearest first."""
        with self._lock:
            if not self._rows:
                return []
            widest = max(len(numbers) for numbers in self._rows.values())
            wanted = min(len(self._edits), most * widest)
            scores, numbers = self._index.search(np.ascontiguousarray(vector[None], dtype=np.float32), wanted)
            best: dict[str, float] = {}
            for edit_id, score in self._named(numbers[0], scores[0]):
                best.setdefault(edit_id, score)
        return list(best.items())[:most]

    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """Every edit's vectors, shape (n, dimension)."""
        with self._lock:
            return {edit_id: np.stack([self._index.reconstruct(n) for n in numbers]) for edit_id, numbers in self._rows.items() if numbers}

    def _named(self, numbers: NDArray[np.int64], scores: NDArray[np.float32]) -> Iterator[tuple[str, float]]:
        found = zip(numbers.tolist(), scores.tolist(), strict=True)
        return ((self._edits[number], score) for number, score in found if number in self._edits)
