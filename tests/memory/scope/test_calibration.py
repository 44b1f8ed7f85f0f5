"""A threshold for each edit."""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ke_tools.memory.scope.calibration import Calibrator
from ke_tools.memory.scope.inventory import Inventory, of_atlas
from ke_tools.memory.scope.judging import Wanted
from ke_tools.memory.scope.scorer import Pair
from ke_tools.testing import HashingEmbedder

RULER = Wanted(("The ruler of X is",), "Ada")


class Marked:
    """A scorer that is sure of some questions."""

    within, grey, fingerprint = 0.5, 0.25, "marked"
    doubtful = (1.0, 0.0)

    def __init__(self, likely: str = "", score: float = 0.8) -> None:
        self.likely = likely
        self.given = score
        self.asked = threading.Event()

    def warm(self) -> None:
        """Nothing to load."""

    def rivals(self, edits: Sequence[str], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """By words in common."""
        return Inventory.of(HashingEmbedder(), list(of_atlas())).nearest(HashingEmbedder().encode(edits), most, besides=besides)

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """1 for the edit's own words, ``score`` for questions with the marked word, else nothing."""
        self.asked.set()
        return np.array([(1.0 if p.asked == p.edit else self.given if self.likely in p.asked else 0.0, 0.0) for p in pairs], np.float32)


def calibrator(scorer: Marked, path: Path | None = None, alpha: float = 0.005) -> Calibrator:
    """A calibrator without a model."""
    return Calibrator(scorer, alpha=alpha, path=path)


def test_an_edit_without_rivals_has_the_scorers_threshold() -> None:
    """Issue §3: its own negatives decide; nothing comes near it."""
    found = calibrator(Marked("no such word")).calibrate(RULER)

    assert found.threshold == Marked.within
    assert found.false_triggers == 0


def test_an_edit_with_many_rivals_needs_more() -> None:
    """Issue §3: no more of the negatives may pass than the bound says."""
    found = calibrator(Marked("", 0.8), alpha=0.01).calibrate(RULER)

    assert found.threshold == pytest.approx(0.8, abs=0.01)
    assert found.false_triggers <= 0.01


def test_a_bound_that_so_few_rivals_cannot_show_asks_for_the_edits_own_words() -> None:
    """Vovk et al. 2005, ch. 4: below 1 / (n + 1) the threshold is infinite; the edit's own words still trigger it."""
    found = calibrator(Marked("no such word"), alpha=1e-5).calibrate(RULER)

    assert Marked.within < found.threshold < 1


def test_who_asks_in_the_edits_own_words_is_answered() -> None:
    """Never a threshold above what the edit itself scores."""
    found = calibrator(Marked("", 0.999), alpha=0.0001).calibrate(RULER)

    assert found.threshold < 1


def test_a_recognised_relation_is_no_rival_of_itself() -> None:
    """Its other wordings count for the recall instead."""
    scorer = Marked("capital")
    found = calibrator(scorer).calibrate(Wanted(("The capital of X is",), "Sydney", "capital"))

    assert 0 < found.recall <= 1


def test_what_is_not_calibrated_yet_has_the_scorers_threshold() -> None:
    """Issue §3: calibration runs after the acknowledgement."""
    scorer = Marked()
    asked = calibrator(scorer)

    assert asked.reached(RULER) is None
    assert scorer.asked.wait(30)


def test_results_are_remembered_across_processes(tmp_path: Path) -> None:
    """A cache: what was calibrated once is not calibrated again."""
    path = tmp_path / "deep" / "thresholds.db"
    first = calibrator(Marked(), path)
    first.ask(RULER)
    first.settle()

    again = calibrator(Marked(), path)

    assert again.known(RULER) == first.known(RULER) is not None
    assert calibrator(Marked(), path, alpha=0.1).known(RULER) is None


@pytest.mark.parametrize("damage", [b"", b"no database at all", None])
def test_a_file_that_is_no_good_is_not_used(tmp_path: Path, damage: bytes | None) -> None:
    """Failure paths are real; it is a cache."""
    path = tmp_path / "thresholds.db"
    if damage is None:
        path.mkdir()
    else:
        path.write_bytes(damage)
    tried = calibrator(Marked(), path)

    assert tried.known(RULER) is None
    tried.ask(RULER)
    tried.settle()
    assert tried.known(RULER) is not None


def test_what_was_erased_is_found_out_again_for_another_edit_with_the_same_words(tmp_path: Path) -> None:
    """A purge takes what is known of an edit's words; another edit that says them keeps its threshold."""
    path = tmp_path / "thresholds.db"
    asked = calibrator(Marked(), path)
    asked.ask(RULER)
    asked.settle()
    asked.erase(RULER)

    assert calibrator(Marked(), path).known(RULER) is None
    assert asked.reached(RULER) is None
    asked.settle()
    assert asked.known(RULER) is not None
