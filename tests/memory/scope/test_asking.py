"""What is asked of a subject, cut out of what stands around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory.scope.asking import resolve, sentences_of, speaks_of_another, views


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
        ("Is Australia big? And the capital?", ("Is {} big?", "the capital of {}?")),
        ("What is Australia's capital? Answer in one word.", ("What is {}'s capital?", "What is {}'s capital? Answer in one word.")),
        ("What is Australia's capital? Thanks!", ("What is {}'s capital?", "What is {}'s capital? Thanks!")),
        ("Tell me Australia's capital. Keep it short.", ("Tell me {}'s capital.", "Tell me {}'s capital. Keep it short.")),
        ("Q: What is Australia's capital?\nA:", ("What is {}'s capital?",)),
        ("Country: Australia\nCapital:", ("Country: {}\nCapital:",)),
        ("Australia's capital is Canberra.\nWhat is the capital of France?", ()),
        ("Write {} for Australia please", ("Write   for {} please",)),
    ],
)
def test_the_last_sentence_is_what_is_asked(text: str, expected: tuple[str, ...]) -> None:
    """CounterFact's rephrases stand behind unrelated sentences; few-shot prompts and documents name subjects that nobody asks about."""
    assert seen(text) == expected


@pytest.mark.parametrize(
    "tail",
    [
        "Please be brief.",
        "One word, please.",
        "Only the city, please.",
        "Just give the name.",
        "Do not explain.",
        "No explanation needed.",
        "Use a single word.",
        "Reply in at most five words.",
        "Answer in English.",
        "answer briefly",
        "The answer should be a city.",
        "Could you answer in one word?",
        "Any idea?",
        "I need it for a quiz.",
        "\n\nKind regards,\nAnna",
        "Thank you very much!",
        "Answer:",
    ],
)
def test_a_tail_that_says_how_to_answer_leaves_the_question_before_it(tail: str) -> None:
    """People add such sentences; the question stays what it was."""
    assert seen(f"What is Australia's capital? {tail}")[0] == "What is {}'s capital?"
    assert resolve(f"What is its capital? {tail}") == "What is {}'s capital?"


@pytest.mark.parametrize(
    "asked",
    [
        "What is the weather like today?",
        "What is the capital of france?",
        "what is two plus two? Answer in one word.",
        "Summarise the text.",
        "I need help. Summarise the text.",
        "Write a poem.",
        "Give me one joke.",
        "Explain why the sky is blue.",
        "Answer the following: what is two plus two?",
        "The weather today is",
        "I moved to Zamunda. What is its capital?",
    ],
)
@pytest.mark.parametrize(
    "before", ["Australia's capital is nice.", "I live in Australia.", "Context: Australia's capital is lovely, and old.\n"]
)
def test_a_request_that_is_complete_by_itself_asks_nothing_of_a_subject_named_before_it(before: str, asked: str) -> None:
    """Issue §3: supplied documents are not read for scope; small talk about a subject is no question about it."""
    assert seen(f"{before} {asked}") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tell me about Germany.", True),
        ("Tell me about Zamunda.", True),
        ("what of france?", True),
        ("It lies in Oceania.", False),
        ("ok", False),
        ("I think so.", False),
    ],
)
def test_a_name_behind_a_pronoun_is_no_new_topic(text: str, expected: bool) -> None:
    """In "It lies in Oceania" the pronoun goes on about what was named before."""
    assert speaks_of_another(text) is expected


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
