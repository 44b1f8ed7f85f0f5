"""A rate declares its uncertainty; style page 2.8, design section 4 no. 6."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_tools.errors import InvalidInput
from ke_tools.verify.rates import NOT_MEASURED, clopper_pearson, rate, wilson

COUNTS = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_no_outcomes_are_not_measured() -> None:
    """Issue section 2: "not measured", never 1.0."""
    found = rate([], [])
    assert found == NOT_MEASURED
    assert found.value is None
    assert not found.measured
    assert found.as_dict() == {"measured": False, "value": 0.0, "stderr": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    assert str(found) == "not measured"


def test_the_standard_error_is_clustered_as_computed_by_hand() -> None:
    """Three facts with two paraphrases each: p = 1/2, residual sums +1, -1, 0; 3/2 * 2 / 36 = 1/12."""
    found = rate([True, True, False, False, True, False], ["a", "a", "b", "b", "c", "c"])
    assert found.value == 0.5
    assert found.stderr == pytest.approx(math.sqrt(1 / 12))
    assert (found.n, found.clusters) == (6, 3)


def test_paraphrases_that_share_their_fate_are_worth_one_outcome() -> None:
    """Ten copies of each outcome do not shrink the error."""
    outcomes = [True, False, True, True]
    once = rate(outcomes)
    often = rate([o for o in outcomes for _ in range(10)], [str(i) for i in range(4) for _ in range(10)])
    assert often.stderr == pytest.approx(once.stderr)
    assert often.low == pytest.approx(once.low, abs=0.02)


def test_a_single_cluster_has_the_binomial_error() -> None:
    """Within one fact its wordings are the population."""
    found = rate([True, True, True, False], ["a"] * 4)
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_bounds_are_open_even_when_every_outcome_agrees() -> None:
    """A standard error of 0 is no certainty."""
    few = rate([True] * 9, ["a", "a", "a", "b", "b", "b", "c", "c", "c"])
    assert few.stderr == 0
    assert few.low == pytest.approx(wilson(1.0, 3)[0])
    assert few.high == 1.0


def test_clusters_must_match_outcomes() -> None:
    """A bad call is an error, not a silent truncation."""
    with pytest.raises(InvalidInput, match="2 outcomes have 1 clusters"):
        rate([True, False], ["a"])


def test_known_intervals() -> None:
    """Textbook values: 8 of 10."""
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert clopper_pearson(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "level"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0)])
def test_impossible_counts_are_refused(successes: int, n: int, level: float) -> None:
    """Bad numbers are the caller's mistake."""
    with pytest.raises(InvalidInput):
        clopper_pearson(successes, n, level)


@settings(max_examples=60, deadline=None)
@given(COUNTS)
def test_intervals_contain_the_estimate_and_grow_with_successes(counts: tuple[int, int]) -> None:
    """Clopper-Pearson and Wilson: contain k/n, lie in [0, 1], rise with k."""
    successes, n = counts
    for bounds in (clopper_pearson, lambda k, m: wilson(k / m, m)):
        low, high = bounds(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
        if successes < n:
            next_low, next_high = bounds(successes + 1, n)
            assert next_low >= low
            assert next_high >= high


@settings(max_examples=40, deadline=None)
@given(COUNTS)
def test_the_exact_interval_is_no_narrower_at_a_higher_level(counts: tuple[int, int]) -> None:
    """More confidence, wider interval."""
    low, high = clopper_pearson(*counts)
    wider_low, wider_high = clopper_pearson(*counts, level=0.99)
    assert wider_low <= low + 1e-9
    assert wider_high >= high - 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef")), min_size=1, max_size=40))
def test_a_rate_lies_within_its_bounds(rows: list[tuple[bool, str]]) -> None:
    """Whatever the clusters."""
    found = rate([ok for ok, _ in rows], [name for _, name in rows])
    assert found.value is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.stderr >= 0
