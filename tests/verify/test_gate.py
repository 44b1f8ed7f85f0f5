"""The gate accepts by evidence, and seldom wrongly; issue 6 §2 and its bars."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ke_tools.facts import Expect, Probe
from ke_tools.verify.gate import Policy, Verdict, decide, look_until_clear
from ke_tools.verify.scorecard import Outcome

TRIALS = 1_000
ONE = Policy(generalisation=0, locality_same_subject=0, locality_other_subject=0, forgetfulness=0, other_tasks=0, earlier=0)


def _tolerated(trials: int) -> float:
    """At most 5 % of the trials, and two standard errors on top: the bar."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def _outcome(dimension: str, *, passed: bool, prompt: str = "Where?", edited: str = "Nowhere.", right: str = "Here") -> Outcome:
    expect: Expect = "target" if dimension in {"reliability", "generalisation"} else "unchanged"
    probe = Probe(edit_id="ed_1", dimension=dimension, prompt=prompt, expect=expect, origin="edit", accept=(right,))
    return Outcome(probe, "Here.", edited, passed, bytes_kept=passed)


def _some(dimension: str, passed: int, n: int) -> list[Outcome]:
    return [_outcome(dimension, passed=True)] * passed + [_outcome(dimension, passed=False)] * (n - passed)


def _model(rates: Mapping[str, float], chance: np.random.Generator) -> Callable[[Mapping[str, int]], Sequence[Outcome]]:
    """A candidate that passes a probe of each dimension with a chance."""

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        return [one for name, n in wanted.items() for one in _some(name, int(chance.binomial(n, rates[name])), n)]

    return measure


def test_a_candidate_at_the_threshold_is_accepted_in_at_most_five_percent_of_trials() -> None:
    """Issue 6, bars: 1,000 false-positive trials, a candidate at exactly the threshold; ≤ 5 % + 2 standard errors."""
    chance = np.random.default_rng(0)
    wrong = [look_until_clear(_model({"reliability": 0.9}, chance), ONE).decision == "accepted" for _ in range(TRIALS)]
    assert sum(wrong) / TRIALS <= _tolerated(TRIALS)
    assert any(wrong), "a rule that never accepts keeps this bar too"


@pytest.mark.parametrize("trials", [200, pytest.param(TRIALS, marks=pytest.mark.slow)])
def test_a_ladder_of_bad_candidates_is_accepted_in_at_most_five_percent_of_trials(trials: int) -> None:
    """Issue 6 §2: the row holds for the whole ladder, bisection and GRACE included."""
    chance, wrong = np.random.default_rng(1), 0
    for _ in range(trials):
        measure = _model({"reliability": 0.9}, chance)
        wrong += any(look_until_clear(measure, ONE, candidate=j).decision == "accepted" for j in range(1, 9))
    assert wrong / trials <= _tolerated(trials)


def test_facts_that_are_unlike_do_not_fool_the_bound() -> None:
    """The gate's docstring (Hoeffding): half of a batch never fails, half fails one time in five; together they are at the threshold."""
    chance = np.random.default_rng(6)

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        good = wanted["reliability"] // 2
        bad = wanted["reliability"] - good
        return _some("reliability", good + int(chance.binomial(bad, 0.8)), good + bad)

    wrong = sum(look_until_clear(measure, ONE).decision == "accepted" for _ in range(TRIALS))
    assert wrong / TRIALS <= _tolerated(TRIALS)


def test_without_spending_the_same_looks_would_be_wrong_too_often() -> None:
    """Why there is a sequential rule: each look at the full five percent, over eight candidates, is not five percent."""
    chance = np.random.default_rng(2)
    wrong = 0
    for _ in range(100):
        for _ in range(8):
            outcomes: list[Outcome] = []
            for n in (40, 40, 80, 160):
                outcomes += _model({"reliability": 0.9}, chance)({"reliability": n})
                if decide(outcomes, Policy(alpha=0.2)).decision == "accepted":  # spends 0.2/2/2 = .05 at its first look
                    wrong += 1
                    break
    assert wrong / 100 > 2 * _tolerated(100)


def test_one_dimension_at_the_threshold_keeps_a_candidate_out_whatever_the_others_are() -> None:
    """All dimensions must clear, so that none needs a share of the risk."""
    chance, policy = np.random.default_rng(3), Policy()
    rates = dict.fromkeys(policy.minima, 1.0) | {"locality_same_subject": policy.locality_same_subject}
    wrong = sum(look_until_clear(_model(rates, chance), policy).decision == "accepted" for _ in range(300))
    assert wrong / 300 <= _tolerated(300)


@pytest.mark.parametrize("candidate", [1, 4])
def test_a_good_candidate_is_accepted(candidate: int) -> None:
    """A gate that refuses everything would be safe and useless: .98 where .90 is asked."""
    chance, policy = np.random.default_rng(4), Policy()
    rates = dict.fromkeys(policy.minima, 0.98)
    accepted = sum(look_until_clear(_model(rates, chance), policy, candidate=candidate).decision == "accepted" for _ in range(100))
    assert accepted >= 95


def test_a_bad_candidate_is_refused_at_the_first_look() -> None:
    """Asking on would be a waste."""
    verdict = look_until_clear(_model({"reliability": 0.3}, np.random.default_rng(5)), ONE)
    assert (verdict.decision, verdict.look) == ("refused", 1)


def test_probes_grow_until_the_budget_is_spent() -> None:
    """Issue 6 §2: the number of probes is chosen so that the bound can be reached and grows until the budget is spent."""
    asked: list[int] = []

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        asked.append(wanted["reliability"])
        return _some("reliability", round(0.93 * wanted["reliability"]), wanted["reliability"])

    verdict = look_until_clear(measure, ONE)
    assert verdict.decision == "undecided"
    assert asked == [42, 42, 84, 152], "doubled each time, up to 320"
    assert sum(asked) == ONE.most


def test_of_several_edits_what_would_end_undecided_is_not_asked_on() -> None:
    """Issue 6 §2, bars: a group that falls short shrinks; asking it on would cost minutes and accept nothing."""
    asked: list[int] = []

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        asked.append(wanted["reliability"])
        return _some("reliability", round(0.93 * wanted["reliability"]), wanted["reliability"])

    verdict = look_until_clear(measure, ONE, edits=10)
    assert (verdict.decision, asked) == ("undecided", [42])


def test_each_edit_is_asked_at_the_first_look() -> None:
    """What is refused shrinks by what is to blame, which takes some probes of each."""
    asked: list[int] = []

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        asked.append(wanted["reliability"])
        return _some("reliability", wanted["reliability"], wanted["reliability"])

    assert look_until_clear(measure, ONE, edits=60).decision == "accepted"
    assert asked == [60 * ONE.of_each]


def test_only_what_is_open_is_asked_on() -> None:
    """What is decided stays so, and costs nothing more."""
    asked: list[set[str]] = []

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        asked.append(set(wanted))
        rates = {"reliability": 0.94, "generalisation": 1.0}
        return [one for name, n in wanted.items() for one in _some(name, round(rates[name] * n), n)]

    look_until_clear(measure, Policy(locality_same_subject=0, locality_other_subject=0, forgetfulness=0, other_tasks=0, earlier=0))
    assert asked[:2] == [{"reliability", "generalisation"}, {"reliability"}]


def test_the_first_look_of_a_later_candidate_is_at_enough_probes_for_its_smaller_risk() -> None:
    """Issue 6 §2: the number of probes is chosen so that the bound can be reached."""
    for candidate in range(1, 12):
        n = ONE.size("reliability", candidate, 1)
        assert decide(_some("reliability", n, n), ONE, candidate=candidate).decision == "accepted"
        if n > ONE.probes:
            assert decide(_some("reliability", n - 1, n - 1), ONE, candidate=candidate).decision == "undecided"


def test_a_dimension_without_probes_is_not_measured_and_keeps_nobody_out() -> None:
    """Issue 6 §1: where the atlas has nothing to ask, "not measured", never 1.0."""
    verdict = decide(_some("reliability", 60, 60), Policy())
    assert verdict.decision == "accepted"
    found = {finding.dimension: finding.decision for finding in verdict.findings}
    assert found["locality_same_subject"] == "not measured"
    assert "same subject not measured" in verdict.in_words


def test_without_reliability_nothing_is_accepted() -> None:
    """Nothing measured proves nothing."""
    assert decide([], Policy()).decision == "undecided"
    assert decide(_some("locality_other_subject", 80, 80), Policy()).decision == "undecided"
    assert decide(_some("generalisation", 80, 80), Policy(reliability=0)).decision == "accepted"
    assert decide([], Policy(reliability=0)).decision == "undecided"


def test_too_few_probes_decide_nothing() -> None:
    """Issue 6 §2: at least 40 a dimension."""
    verdict = decide([*_some("reliability", 60, 60), *_some("generalisation", 39, 39)], Policy())
    assert verdict.decision == "undecided"
    assert verdict.in_words == "undecided: generalisation 1.0 on 39 probes, of at least 40; " + "; ".join(
        f"{name} not measured"
        for name in (
            "same subject",
            "other subjects",
            "forgetfulness",
            "edits promoted earlier",
            "perplexity",
            "growth",
        )
    )


def test_a_refusal_is_told_in_words_with_numbers_and_the_worst_case() -> None:
    """Issue 6 §2: "same-subject locality .86 < .90 on 140 probes; worst: …"."""
    moved = _outcome("locality_same_subject", passed=False, prompt="The currency of Australia is", edited="Sydney dollars.")
    verdict = decide([*_some("reliability", 60, 60), *_some("locality_same_subject", 80, 139), moved], Policy())
    assert verdict.decision == "refused"
    assert verdict.in_words.startswith("refused: same subject .57 on 140 probes, at most .6")
    assert "where .85 is asked; worst: asked " in verdict.in_words


@pytest.mark.parametrize(("limits", "named"), [({"perplexity": 1.03}, "perplexity 1.03"), ({"growth": 13.0}, "growth 13")])
def test_damage_beyond_a_limit_is_refused_before_anything_is_asked(limits: dict[str, Any], named: str) -> None:
    """Issue 6 §2: perplexity +2 %, norm growth."""

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        raise AssertionError(wanted)

    verdict = look_until_clear(measure, Policy(), **limits)
    assert verdict.decision == "refused"
    assert f"refused: {named} where at most " in verdict.in_words


def test_what_the_unedited_model_did_not_know_shows_no_harm() -> None:
    """Its answers drift with any change; a neighbour about which it knew nothing says nothing, neither for nor against."""
    took = _some("reliability", 60, 60)
    drifted = [_outcome("locality_other_subject", passed=False, right="Elsewhere")] * 60
    assert decide([*took, *drifted], Policy()).decision == "accepted"
    verdict = decide([*took, *drifted, *_some("locality_other_subject", 20, 60)], Policy())
    assert verdict.decision == "refused"
    assert "other subjects .33 on 60 probes" in verdict.in_words


def test_the_budget_counts_what_was_asked_not_what_was_telling() -> None:
    """Asking ends even where the model knows next to nothing."""
    asked: list[int] = []

    def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
        asked.append(wanted.get("locality_other_subject", 0))
        known = _some("locality_other_subject", 1, 1)
        strange = [_outcome("locality_other_subject", passed=False, right="Elsewhere")] * (asked[-1] - 1)
        return [*_some("reliability", wanted.get("reliability", 0), wanted.get("reliability", 0)), *known, *strange]

    assert look_until_clear(measure, Policy()).decision == "undecided"
    assert sum(asked) == Policy().most


def test_a_dimension_that_is_only_told_decides_nothing() -> None:
    """Portability is reported."""
    outcomes = [*_some("reliability", 60, 60), *_some("portability_hop", 0, 60)]
    assert decide(outcomes, Policy()).decision == "accepted"
    assert decide(outcomes, Policy(portability_hop=0.5)).decision == "refused"


def test_the_bounds_are_the_exact_one_sided_ones() -> None:
    """Clopper and Pearson: at the lower bound, as many or more pass with a chance of just the risk. All of 42: risk^(1/42)."""
    [finding] = [one for one in decide(_some("reliability", 42, 42), ONE).findings if one.dimension == "reliability"]
    assert finding.risk == 0.05 / 4
    assert finding.low == pytest.approx((0.05 / 4) ** (1 / 42), abs=1e-9)
    assert (finding.decision, finding.high) == ("accepted", 1.0)


def test_a_verdict_is_rendered_without_nulls() -> None:
    """For the ledger and for MCP."""
    verdict: Verdict = decide(_some("reliability", 60, 60), Policy(), growth=0.2)
    text = json.dumps(verdict.as_dict())
    assert "null" not in text
    assert json.loads(text)["decision"] == "accepted"
