"""A correction in other words than a list of relations knows gives way to nothing wrongly, and replaces what it corrects."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from ke_tools.errors import ModelUnavailable
from ke_tools.facts import Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Scope
from ke_tools.memory.scope.scorer import Pair
from ke_tools.testing import HashingEmbedder, memory_ledger

LIMIT = Fact(subject="Quillon", prompt="The rate limit of Quillon is", target="100 a minute")
REWORDED = Fact(subject="Quillon", prompt="Per minute Quillon answers at most", target="200 calls")
PORT = Fact(subject="Quillon", prompt="Quillon listens on port", target="8443")


class Knowing:
    """A scorer that knows which words mean the same."""

    within, grey, fingerprint = 0.5, 0.25, "knowing"

    def __init__(self, *meanings: set[str], one_way: bool = False, error: Exception | None = None) -> None:
        self.meanings = meanings
        self.one_way = one_way
        self.error = error

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """1 for two of one meaning; ``one_way`` only from the first word on."""
        if self.error:
            raise self.error
        return np.array([(float(self._same(pair)), 0.0) for pair in pairs], np.float32)

    def rivals(self, edits: Sequence[str], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Not asked for."""
        raise NotImplementedError(edits, most, besides)

    def _same(self, pair: Pair) -> bool:
        alike = any(self._says(pair.asked, words) and self._says(pair.edit, words) for words in self.meanings)
        return alike and not (self.one_way and "rate limit" in pair.asked)

    @staticmethod
    def _says(text: str, words: set[str]) -> bool:
        return any(word in text for word in words)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger."""
    with memory_ledger() as opened:
        yield opened


def corrected(ledger: Ledger, scorer: Knowing, *facts: Fact) -> list[str]:
    """Make edits one after the other; the targets that are live at the end."""
    scope = Scope(ledger, HashingEmbedder(), scorer)
    for fact in facts:
        ledger.edit("t", [fact], actor="test", slot_of=scope.slot_rule("t"))
    return [edit.fact.target for edit in ledger.live("t")]


def test_the_same_in_other_words_gives_way(ledger: Ledger) -> None:
    """Issue "same slot in other words": two live answers to one question are no correction."""
    assert corrected(ledger, Knowing({"rate limit", "at most"}), LIMIT, PORT, REWORDED) == ["8443", "200 calls"]


def test_another_attribute_of_the_subject_stays(ledger: Ledger) -> None:
    """An edit that gave way wrongly would be lost unseen."""
    assert corrected(ledger, Knowing({"rate limit"}), LIMIT, PORT) == ["100 a minute", "8443"]


def test_both_directions_must_be_sure(ledger: Ledger) -> None:
    """Asked where X is, a city will do; asked in which city, a country will not."""
    assert corrected(ledger, Knowing({"rate limit", "at most"}, one_way=True), LIMIT, REWORDED) == ["100 a minute", "200 calls"]


def test_another_subject_is_not_compared(ledger: Ledger) -> None:
    """What is asked is only half of a slot."""
    other = Fact(subject="Tarn", prompt="Per minute Tarn answers at most", target="5 calls")

    assert corrected(ledger, Knowing({"rate limit", "at most"}), LIMIT, other) == ["100 a minute", "5 calls"]


def test_a_recognised_relation_is_left_to_the_inventory(ledger: Ledger) -> None:
    """Its wordings are known, and so is whether it can have several objects."""
    capital = Fact(subject="Australia", prompt="The capital of Australia is", target="Sydney")
    currency = Fact(subject="Australia", prompt="The currency of Australia is", target="the crown")

    assert corrected(ledger, Knowing({"of X"}), capital, currency) == ["Sydney", "the crown"]


@pytest.mark.parametrize("error", [ModelUnavailable("no model"), RuntimeError("broken")])
def test_without_a_scorer_the_words_decide_and_nothing_is_lost(ledger: Ledger, error: Exception) -> None:
    """Design §4 no. 8: a correction is recorded whatever breaks beside it."""
    assert corrected(ledger, Knowing({"rate limit", "at most"}, error=error), LIMIT, REWORDED) == ["100 a minute", "200 calls"]
