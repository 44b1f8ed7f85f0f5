"""What does not exist."""

from __future__ import annotations

import random

import pytest

from ke_tools.facts import squash
from ke_tools.models.reader import invented


@pytest.mark.parametrize("subject", ["Orsk", "the Velmar pump P3", "Ottilie Brandvik", "X"])
def test_a_look_alike_is_another_name(subject: str) -> None:
    """Issue, scope and reader: look-alikes must keep the base's answer; one that is the same name would teach the contrary."""
    rng = random.Random(1)

    made = {invented.look_alike(subject, rng) for _ in range(40)}

    assert squash(subject) not in {squash(name) for name in made}
    assert len(made) > 5


def test_a_clause_is_long_but_not_longer_than_what_is_to_be_copied() -> None:
    """Issue, reader: long targets, clauses up to 200 characters."""
    parts = ["two of the wardens sign", "the bridge is closed after dusk", "nobody waits for the second ferry"] * 3
    lengths = [len(invented.clause(parts, random.Random(seed))) for seed in range(50)]

    assert max(lengths) <= invented.LONGEST_CLAUSE
    assert max(lengths) > 150
