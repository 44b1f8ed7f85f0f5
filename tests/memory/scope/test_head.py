"""The head: numpy at run time, torch only in training."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope import head as heads
from ke_tools.memory.scope.embedding import MINILM_SHA256
from ke_tools.memory.scope.features import pair_features
from ke_tools.memory.scope.head import Head


def made(seed: int = 0, dimension: int = 6) -> Head:
    """A small head with random weights."""
    rng = np.random.default_rng(seed)
    sizes = [2 * dimension + 1, 4, 1]
    layers = [(rng.normal(size=(b, a)).astype(np.float32), rng.normal(size=b).astype(np.float32)) for a, b in pairwise(sizes)]
    return Head(layers, 0.5, 0.25, {"embedder": "test"})


def test_a_head_scores_as_the_network_that_it_was() -> None:
    """No torch at run time: the same numbers come from numpy."""
    torch = pytest.importorskip("torch")
    head, rng = made(), np.random.default_rng(1)
    u, v = rng.normal(size=(2, 7, 6)).astype(np.float32)
    (w1, b1), (w2, b2) = ([torch.from_numpy(part) for part in layer] for layer in head.layers)

    expected = torch.sigmoid(torch.relu(torch.from_numpy(pair_features(u, v)) @ w1.T + b1) @ w2.T + b2)[:, 0]

    np.testing.assert_allclose(head.score(u, v), expected.numpy(), atol=1e-6)


def test_a_saved_head_is_the_same_head(tmp_path: Path) -> None:
    """Weights as safetensors, the card as JSON."""
    head, rng = made(), np.random.default_rng(1)
    head.save(tmp_path)
    again = heads.of(tmp_path)
    u, v = rng.normal(size=(2, 7, 6)).astype(np.float32) / 3

    np.testing.assert_allclose(again.score(u, v), head.score(u, v), atol=0.02)  # float16
    assert (again.within, again.grey, again.card["embedder"]) == (0.5, 0.25, "test")


@pytest.mark.parametrize("damage", ["weights", "card", "missing"])
def test_a_damaged_head_is_told_with_a_remedy(tmp_path: Path, damage: str) -> None:
    """Failure paths are real."""
    made().save(tmp_path)
    if damage == "missing":
        (tmp_path / "head.json").unlink()
    else:
        (tmp_path / {"weights": "head.safetensors", "card": "head.json"}[damage]).write_bytes(b"{}")

    with pytest.raises(ModelUnavailable, match="scope head"):
        heads.of(tmp_path)


def test_the_shipped_head_is_small_and_says_where_it_comes_from() -> None:
    """Issue §3: under 1 MB, with a card."""
    head = heads.shipped()
    weights = resources.files("ke_tools.memory.scope") / "head.safetensors"

    assert len(weights.read_bytes()) < 1_000_000
    assert head.card["embedder"] == f"sha256:{MINILM_SHA256}"
    assert 0 < head.grey < head.within < 1
    assert all(len(data["sha256"]) == 64 for data in head.card["data"])
    assert head.card["relations"]


def test_nothing_shipped_was_fitted_on_a_probe_relation() -> None:
    """Design §4 no. 4: we never grade ourselves on what we trained on."""
    from ke_tools import atlas

    assert not [name for name in heads.shipped().card["relations"] if atlas.relations()[name].probe]
