"""What the gate asks: defaults in one place, overridable; issue 6 §2."""

from __future__ import annotations

from typing import Any

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.verify.policy import Policy
from ke_tools.verify.rates import at_least


def test_the_defaults_are_those_of_the_issue() -> None:
    """Issue 6 §2: .90, .50, .90, same subject .85, perplexity +2 %, at least 40 probes."""
    policy = Policy()
    assert (policy.reliability, policy.generalisation) == (0.90, 0.50)
    assert (policy.locality_other_subject, policy.locality_same_subject) == (0.90, 0.85)
    assert (policy.perplexity, policy.probes, policy.alpha) == (1.02, 40, 0.05)


def test_a_mapping_overrides_some_numbers() -> None:
    """Issue 6 §5: promote(policy{})."""
    assert Policy.from_mapping({"generalisation": 0.7, "most": 500}) == Policy(generalisation=0.7, most=500)
    assert Policy.from_mapping({}) == Policy()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"reliabilty": 0.9}, "no 'reliabilty'"),
        ({"reliability": 1.0}, "no number of probes"),
        ({"reliability": -0.1}, "share from 0"),
        ({"reliability": "high"}, "'high'"),
        ({"reliability": True}, "True"),
        ({"reliability": float("nan")}, "nan"),
        ({"probes": 0}, "0 to 320 probes"),
        ({"probes": 40.5}, "whole number"),
        ({"probes": 400}, "400 to 320"),
        ({"alpha": 0.5}, "below 0.5"),
        ({"perplexity": 0}, "nothing could pass"),
        ({"reliability": 0.99}, "it takes 437 probes"),
        ({"alpha": 1e-20}, "nothing could pass reliability"),
    ],
)
def test_a_policy_that_cannot_be_read_or_that_nothing_can_pass_is_refused(given: dict[str, Any], told: str) -> None:
    """Issue 6, bad input: unknown keys, and a policy that nothing can pass."""
    with pytest.raises(InvalidInput, match=told):
        Policy.from_mapping(given)


def test_the_risk_spent_over_all_candidates_and_looks_is_alpha() -> None:
    """The sum of the gate's (2)."""
    spent = sum(Policy().risk(j, k) for j in range(1, 400) for k in range(1, 40))
    assert spent == pytest.approx(0.05, rel=0.01)
    assert spent <= 0.05


def test_so_many_failures_are_allowed_as_the_most_probes_forgive() -> None:
    """What is left of a refused group shall be able to pass: with one failure more it could not."""
    policy = Policy()
    for name, least in policy.minima.items():
        for candidate in (1, 2, 5):
            failures = round(policy.allowed(name, candidate) * policy.most)
            risk = policy.risk(candidate, 1)
            assert at_least(policy.most - failures, policy.most, least) <= risk < at_least(policy.most - failures - 1, policy.most, least)
