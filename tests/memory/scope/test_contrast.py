"""The loss that the embedding is tuned by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ke_tools.memory.scope.batches import NOBODY, Batch
from ke_tools.memory.scope.contrast import contrast


def loss(vectors: Sequence[Sequence[float]], owners: list[int], against: list[int] | None = None, *, unsure: bool = False) -> float:
    """The loss of two-dimensional unit vectors."""
    import torch

    z = torch.nn.functional.normalize(torch.tensor(vectors, dtype=torch.float32), dim=-1)
    batch = Batch([""] * len(owners), owners, against or [NOBODY] * len(owners))
    return float(contrast(z, batch, np.full((3, 3), unsure) & ~np.eye(3, dtype=bool), 0.1))


def test_the_loss_wants_wordings_of_one_relation_together_and_others_apart() -> None:
    """Khosla et al. 2020, eq. 2."""
    good = loss([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], [0, 0, 1, 1])
    bad = loss([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], [0, 0, 1, 1])

    assert good < 0.1
    assert bad > 1


def test_the_loss_is_that_of_the_formula() -> None:
    """One positive, one negative: softplus of the difference over the temperature, here 1/0.1 for the first and the second text."""
    found = loss([[1, 0], [1, 0], [0, 1]], [0, 0, 1])

    assert found == pytest.approx(np.log1p(np.exp((0 - 1) / 0.1)), rel=1e-3)


def test_a_negative_of_one_relation_does_not_push_another() -> None:
    """What a file says of one subject is no negative of everything."""
    texts = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.0]]

    of_its_own = loss(texts, [0, 0, 1, 1, NOBODY], [NOBODY] * 4 + [0])
    of_the_other = loss(texts, [0, 0, 1, 1, NOBODY], [NOBODY] * 4 + [1])

    assert of_its_own > 10 * of_the_other


def test_relations_that_may_be_one_do_not_push_each_other() -> None:
    """Two names for one relation."""
    texts = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.0], [1.0, 0.1]]

    assert loss(texts, [0, 0, 1, 1]) > 0.5
    assert loss(texts, [0, 0, 1, 1], unsure=True) < 0.1
