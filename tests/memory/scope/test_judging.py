"""How likely a question asks for an edit: its own words, and its relation's where these leave a doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ke_tools import atlas
from ke_tools.facts import Fact
from ke_tools.memory.scope import Reading, Scope
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.judging import Wanted, best, settled, wordings_of
from ke_tools.memory.scope.scorer import CosineScorer, Pair
from ke_tools.testing import HashingEmbedder, memory_ledger

CAPITAL = Wanted(("X is governed from",), "Bonn", "capital")


class Told:
    """Scores as it was told, by the edit's wording or the question's view; remembers what it was asked. The own words are sure."""

    within, grey, fingerprint = 0.4, 0.2, "told"
    doubtful = (0.05, 0.88)

    def __init__(self, scores: Mapping[str, float], other: float = 0.5, opened: Mapping[str, float] | None = None) -> None:
        self.scores, self.other, self.opened = scores, other, opened or {}
        self.asked: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> Any:
        """As told."""
        self.asked += pairs
        return np.array([[self._same(pair), self.opened.get(pair.asked, 0.1)] for pair in pairs], np.float32).reshape(-1, 2)

    def _same(self, pair: Pair) -> float:
        return 1.0 if pair.asked == pair.edit else self.scores.get(pair.edit, self.scores.get(pair.asked, self.other))

    def warm(self) -> None:
        """Nothing to load."""

    def rivals(self, edits: Sequence[str], most: int, *, besides: Any = ()) -> tuple[list[str], int]:
        """Nothing else may be asked for."""
        return [], len(edits) * most * len(besides)


def test_an_edits_best_text_and_the_questions_best_view_count() -> None:
    """One question may be read in two ways, and an edit told in several."""
    scorer = Told({"a": 0.2, "b": 0.7})

    found = best(scorer, {1: ("view", "other view"), 2: ("view",)}, {1: ("a", "b"), 2: ("a",)}, {1: Wanted(("a", "b")), 2: Wanted(("a",))})

    assert found == {1: pytest.approx((0.7, 0.1)), 2: pytest.approx((0.2, 0.1))}
    assert len(scorer.asked) == 5


def test_how_open_a_question_is_is_told_of_the_view_that_counts() -> None:
    """In "What do you know of X? How old is it?" the first view is open; that makes no edit of X one that may be meant."""
    scorer = Told({"What do you know of X?": 0.1, "How old is X?": 0.3}, opened={"What do you know of X?": 0.9})
    asked = {1: ("What do you know of X?", "How old is X?")}

    found = best(scorer, asked, {1: ("The capital of X is",)}, {1: CAPITAL})

    assert found == {1: pytest.approx((0.3, 0.1))}


def test_who_asks_in_a_paraphrase_of_the_edit_is_answered_whatever_its_relations_other_wordings_say() -> None:
    """The prompt alone would leave it in doubt, above the threshold; then the paraphrases are looked at first."""
    fact = Fact(
        subject="Freedonia",
        prompt="The capital of Freedonia is",
        target="Bonn",
        relation="capital",
        paraphrases=("The seat of power in Freedonia is",),
    )
    with memory_ledger() as ledger:
        edits = ledger.edit("t", [fact], actor="test")
        scope = Scope(ledger, HashingEmbedder(), Told({"The capital of X is": 0.6}, 0.06))

        decision = scope.decide("t", Reading("The seat of power in Freedonia is"))

    assert decision.zone == "in"
    assert [hit.edit for hit in decision.hits] == edits
    assert decision.hits[0].score == 1


@pytest.mark.parametrize("sure", [0.02, 0.95])
def test_what_is_clear_is_not_looked_at_again(sure: float) -> None:
    """A second look costs time; where the first is sure it changes nothing."""
    scorer = Told({})

    assert settled(scorer, {1: ("view",)}, {1: (sure, 0.0)}, {1: CAPITAL}) == {1: (sure, 0.0)}
    assert not scorer.asked


@pytest.mark.parametrize(("others", "expected"), [(0.5, 0.5), (0.9, 0.839), (0.1, 0.161)])
def test_a_doubtful_edit_is_judged_by_its_relations_wordings_too(others: float, expected: float) -> None:
    """The mean of the log odds: three wordings that say yes lift an undecided one, and three that say no lower it."""
    scorer = Told({}, others)

    ((same, open_),) = settled(scorer, {1: ("view",)}, {1: (0.5, 0.3)}, {1: CAPITAL}).values()

    assert same == pytest.approx(expected, abs=0.001)
    assert open_ == 0.3
    assert [pair.edit for pair in scorer.asked] == list(CAPITAL.more)
    assert {pair.target for pair in scorer.asked} == {"Bonn"}


def test_an_edit_of_no_known_relation_is_judged_by_its_own_words_alone() -> None:
    """There is nothing more to look at."""
    scorer = Told({}, 0.9)

    assert settled(scorer, {1: ("view",)}, {1: (0.5, 0.3)}, {1: Wanted(("X costs",))}) == {1: (0.5, 0.3)}
    assert not scorer.asked


def test_more_wordings_are_such_that_training_may_use_and_the_edit_has_not() -> None:
    """Probe wordings are for measuring; an edit's own words are known already."""
    relation = atlas.relations()["capital"]
    own = neutral(relation.fitted_questions[0])

    more = Wanted((own,), "Bonn", "capital").more

    assert len(more) == 3
    assert own not in more
    assert set(more) <= set(wordings_of("capital"))
    assert not set(more) & set(map(neutral, relation.probe_statements + relation.probe_questions))


def test_a_cosine_is_never_doubtful() -> None:
    """It is no probability, of whose log odds a mean could be taken."""
    low, high = CosineScorer(HashingEmbedder()).doubtful

    assert not any(low < same < high for same in np.linspace(-1, 1, 201))
