"""The flat index for questions that name nobody."""

from __future__ import annotations

import numpy as np
import pytest

from ke_tools.memory.index import VectorIndex


def unit(*places: int) -> np.ndarray:
    """Unit vectors along the axes."""
    return np.eye(4, dtype=np.float32)[list(places)]


@pytest.fixture
def index() -> VectorIndex:
    """Two edits, one with two wordings."""
    index = VectorIndex(4)
    index.add("a", unit(0, 1))
    index.add("b", unit(2))
    return index


def test_an_edit_is_found_once_by_its_nearest_wording(index: VectorIndex) -> None:
    """Each edit counts with its best vector."""
    asked = np.array([0.6, 0.8, 0, 0], np.float32)

    assert dict(index.search(asked, 5)) == pytest.approx({"a": 0.8, "b": 0.0})
    assert [edit_id for edit_id, _ in index.search(asked, 5)] == ["a", "b"]
    assert [edit_id for edit_id, _ in index.search(unit(2)[0], 1)] == ["b"]


def test_a_discarded_edit_is_gone_and_an_added_one_replaces(index: VectorIndex) -> None:
    """The index follows the ledger."""
    index.discard("a")
    index.discard("unknown")
    index.add("b", unit(3))

    assert dict(index.search(unit(3)[0], 5)) == pytest.approx({"b": 1.0})
    assert len(index) == 1


def test_an_empty_index_finds_nothing() -> None:
    """No crash before the first edit."""
    assert VectorIndex(4).search(unit(0)[0], 3) == []
