"""The embedder: unit vectors, each text computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ke_tools.memory.scope import embedding
from ke_tools.memory.scope.embedding import minilm
from ke_tools.memory.scope.graph import Graph
from ke_tools.memory.scope.remembering import Remembered


class Counting:
    """Computes the lengths of keys; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, keys: Sequence[str]) -> Any:
        """Rows of one number."""
        self.asked += keys
        return np.array([[len(key)] for key in keys], np.float32)


def test_each_key_is_computed_once() -> None:
    """LRU cache; order and repetitions of the question are kept."""
    counting = Counting()
    lengths = Remembered[str](10, 2, counting, len)

    assert [row.item() for row in lengths.of(["bb", "a", "bb", "ccc"])] == [2, 1, 2, 3]
    assert [row.item() for row in lengths.of(["ccc", "dddd"])] == [3, 4]
    assert counting.asked == ["a", "bb", "ccc", "dddd"]


def test_what_was_not_asked_for_longest_is_forgotten() -> None:
    """Memory stays bounded."""
    counting = Counting()
    lengths = Remembered[str](2, 2, counting, len)
    for key in ("a", "bb", "a", "ccc", "a", "bb"):
        lengths.of([key])

    assert counting.asked == ["a", "bb", "ccc", "bb"]


def test_no_texts_have_no_vectors() -> None:
    """The shape stays (n, d)."""
    assert minilm().encode([]).shape == (0, 384)


def test_padding_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is taken over a text's own tokens, and every row has length 1."""
    hidden = np.zeros((1, 3, 384), np.float32)
    hidden[0, :2, 0], hidden[0, 2, 1] = 2, 9
    monkeypatch.setattr(Graph, "run", lambda _self, _texts: (hidden, np.array([[1, 1, 0]])))

    (vector,) = embedding.minilm().encode(["a b"])

    assert vector[0] == pytest.approx(1)
