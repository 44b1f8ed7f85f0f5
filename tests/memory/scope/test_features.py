"""What is asked of a subject, cut out of what stands around it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory.scope.features import pair_features, resolve, sentences_of, views


def seen(text: str, name: str = "Australia") -> tuple[str, ...]:
    """The views of a text that names somebody."""
    starts = [n for n in range(len(text)) if text.startswith(name, n)]
    return views(text, [(n, n + len(name)) for n in starts])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital of Australia is", ("The capital of {} is",)),
        ("It rained all day. The capital of Australia is", ("The capital of {} is",)),
        ("References\n\nCategory: Ferries Australia is in", ("Category: Ferries {} is in",)),
        ("I love Australia. What is its capital?", ("What is {}'s capital?",)),
        ("Is Australia big? And the capital?", ("the capital of {}?",)),
        ("What is Australia's capital? Answer in one word.", ("What is {}'s capital?", "What is {}'s capital? Answer in one word.")),
        ("Australia's capital is Canberra.\nWhat is the capital of France?", ()),
        ("Write {} for Australia please", ("Write   for {} please",)),
    ],
)
def test_the_last_sentence_is_what_is_asked(text: str, expected: tuple[str, ...]) -> None:
    """CounterFact's rephrases stand behind unrelated sentences; few-shot prompts and documents name subjects that nobody asks about."""
    assert seen(text) == expected


@pytest.mark.parametrize("text", ["The book by Dr. John F. Kennedy is", "Mt. St. Helens is 3.5 km away"])
def test_abbreviations_end_no_sentence(text: str) -> None:
    """A subject's sentence is not cut at an abbreviation."""
    assert sentences_of(text) == [text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("and its capital?", "and {}'s capital?"),
        ("And the capital?", "the capital of {}?"),
        ("Where was he born?", "Where was {} born?"),
        ("Who is her mother?", "Who is {}'s mother?"),
        ("Have you seen her?", "Have you seen {}?"),
        ("What do people speak there?", "What do people speak {}?"),
        ("What is that country's currency?", "What is {}'s currency?"),
        ("Tell me more about cooking.", None),
        ("", None),
    ],
)
def test_pronouns_and_ellipses_go_on_about_what_was_named(text: str, expected: str | None) -> None:
    """Issue §3: subjects carried from earlier turns ("and its capital?")."""
    assert resolve(text) == expected


@given(st.text(max_size=200), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=3))
def test_no_text_breaks_the_views(text: str, places: list[tuple[int, int]]) -> None:
    """Never raises on odd text."""
    views(text, [(a, b) for a, b in places if a < b <= len(text)])
    resolve(text)


def test_the_features_of_a_pair_are_symmetric_and_scaled() -> None:
    """u·v, |u − v|, u ∗ v for each row."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 5, 8)).astype(np.float32)

    features = pair_features(u, v)

    assert features.shape == (5, 17)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, pair_features(v, u), rtol=1e-6)
    np.testing.assert_allclose(features[:, 0], (u * v).sum(1), rtol=1e-5)
