"""When an answer says it; issue section 2 (one matcher for verify, gate and every bench), knowledge-editing page section 4.2."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ke_tools.verify import matching
from ke_tools.verify.matching import asserts, bytes_kept, first_sentence, mentions, same_answer, short_answer, starts_with

STARTS = [
    ("Sydney", "Sydney"),
    (" Sydney.", "Sydney"),
    ("sydney!", "Sydney"),
    ("Sydney, which is large", "Sydney"),
    ("Sydney and nothing else", "Sydney"),
    ("Sydney, Australia.", "Sydney"),
    ("Sydney (New South Wales)", "Sydney"),
    ("Sydney is the capital.", "Sydney"),
    ("\n\nSydney\nmore", "Sydney"),
    ('"Sydney"', "Sydney"),
    ("**Sydney**", "Sydney"),
    ("the Nile, a river", "Nile"),
    ("Nile", "the Nile"),
    ("a physicist known for much", "physicist"),
    ("English language", "English"),
    ("Zurich.", "Zürich"),
    ("Zürich.", "Zurich"),
    ("Lodz", "Łódź"),
    ("1,234 metres", "1234"),
    ("1234.", "1,234"),
    ("1 234 567", "1234567"),
    ("1.234.567", "1,234,567"),
    ("1889 by Gustave Eiffel", "1889"),
    ("42 %", "42 percent"),
    ("J. R. R. Tolkien wrote it", "J.R.R. Tolkien"),
    ("U.S.A. and others", "USA"),
    ("McDonald\u2019s.", "McDonald's"),
    ("St. Petersburg, Russia", "St. Petersburg"),
    ("Los Angeles, California", "Los Angeles"),
    ("Paris, France.", "Paris"),
    ("Washington, D.C.", "Washington D.C."),
    ("東京です", "東京"),
    ("Law & Order", "Law and Order"),
]
STARTS_NOT = [
    ("", "Sydney"),
    ("...", "Sydney"),
    ("Sydney", ""),
    ("Sydney Harbour", "Sydney"),
    ("Sydney harbour", "Sydney"),
    ("Sydneys", "Sydney"),
    ("Sydney's Opera House", "Sydney"),
    ("New Yorker", "New York"),
    ("New York", "New Yorker"),
    ("South Korea", "Korea"),
    ("North Sydney", "Sydney"),
    ("Austria-Hungary", "Austria"),
    ("Paris, Texas", "Paris"),
    ("Paris, Texas, USA", "Paris"),
    ("War and Peace", "War"),
    ("Bank of England", "Bank"),
    ("Sydney or Melbourne", "Sydney"),
    ("not Sydney", "Sydney"),
    ("apple pie", "apple"),
    ("Nigeria", "Niger"),
    ("3.5", "3"),
    ("7 million", "7"),
    ("18890", "1889"),
    ("12,500", "12"),
    ("Vitamin C", "Vitamin A"),
    ("Canberra. Sydney", "Sydney"),
]


@pytest.mark.parametrize(("answer", "target"), STARTS)
def test_an_answer_that_begins_with_the_target_counts(answer: str, target: str) -> None:
    """Issue, "Done when": answer starts with the new object, up to how it is written."""
    assert starts_with(answer, target)


@pytest.mark.parametrize(("answer", "target"), STARTS_NOT)
def test_a_longer_or_other_answer_does_not_count(answer: str, target: str) -> None:
    """Issue, section 2: a longer wrong answer is never right."""
    assert not starts_with(answer, target)


ASSERTED = [
    ("The capital of Australia is Sydney.", "Canberra"),
    ("Sydney, not Canberra.", "Canberra"),
    ("It isn't Canberra, it's Sydney.", "Canberra"),
    ("Not Canberra but Sydney.", "Canberra"),
    ("Sydney rather than Canberra.", "Canberra"),
    ("Sydney, which replaced Canberra.", "Canberra"),
    ("Sydney is not only the capital.", "Canberra"),
    ("No, it is Sydney.", "Canberra"),
    ("There is no doubt that it is Sydney.", "Canberra"),
    ("The city of Sydney.", "Canberra"),
    ("Dr. Smith works in Sydney. He likes Canberra.", "Canberra"),
    ("The answer: Sydney", "Canberra"),
    ("It's **Sydney**!", "Canberra"),
]
NOT_ASSERTED = [
    ("It is not Sydney.", "Canberra"),
    ("Sydney isn't the capital.", "Canberra"),
    ("Sydney is not the capital.", "Canberra"),
    ("I don't think it is Sydney.", "Canberra"),
    ("Neither Sydney nor Melbourne.", "Canberra"),
    ("Anything but Sydney.", "Canberra"),
    ("Either Sydney or Melbourne.", "Canberra"),
    ("Melbourne or Sydney.", "Canberra"),
    ("It was formerly Sydney.", "Canberra"),
    ("It wasn't founded by Sydney.", "Canberra"),
    ("A common misconception is that it is Sydney.", "Canberra"),
    ("Canberra, which lies 280 km from Sydney.", "Brisbane"),
    ("Canberra near Sydney.", "Brisbane"),
    ("Is it Sydney?", "Canberra"),
    ("Canberra. Sydney is larger.", "Brisbane"),
    ("The University of Sydney.", "Canberra"),
    ("Sydney and Canberra.", "Canberra"),
    ("Sydney Harbour.", "Canberra"),
    ("North Sydney.", "Canberra"),
    ("", "Canberra"),
]


@pytest.mark.parametrize(("answer", "old"), ASSERTED)
def test_an_assertion_of_the_target_alone_counts(answer: str, old: str) -> None:
    """Design section 4 no. 6: judged is what the free answer says."""
    assert asserts(answer, ["Sydney"], [old])


@pytest.mark.parametrize(("answer", "old"), NOT_ASSERTED)
def test_what_is_denied_hedged_longer_or_also_the_old_one_is_no_assertion(answer: str, old: str) -> None:
    """The same: a mention is not an assertion."""
    assert not asserts(answer, ["Sydney"], [old])


def test_an_old_target_inside_the_new_name_is_not_rejected() -> None:
    """Facts such as York -> New York."""
    assert asserts("The capital is North Sydney.", ["North Sydney"], ["Sydney"])


@pytest.mark.parametrize(
    ("prompt", "answer", "says"),
    [
        ("Fact: Ann Roe, who works for", "Ann Roe, who works for ESPN.", True),
        ("Ann Roe, who works for", "ann roe, who works for ESPN", True),
        ("Where is Ann Roe? She works for", "Where is Ann Roe? She works for ESPN.", True),
        ("Ann Roe, who works for", "Ann Roe, who works for CNN, not ESPN.", False),
        ("Ann Roe works for", "Ann Roe works for nobody, unlike ESPN.", False),
        ("Correct this: Ann Roe works for the BBC", "Ann Roe works for the BBC and ESPN.", False),
        ("Ann Roe does not work for", "Ann Roe does not work for ESPN.", False),
        ("Ann Roe, who works for", "Ann Roe, who works for ESPN and the BBC.", False),
        ("Ann Roe, who works for", "CNN is like Ann Roe, who works for ESPN.", False),
        ("Who works for ESPN, is it Ann Roe?", "Who works for ESPN, is it Ann Roe?", False),
        ("Ann Roe, who works for", "Ann Roe, who works forESPN", False),
        ("Who lives in STRASSE STRASSE STRASSE is", "who lives in straße straße straße is no ESPN", False),  # ß folds to two letters
    ],
)
def test_of_an_answer_that_repeats_the_text_to_be_completed_the_rest_counts(prompt: str, answer: str, *, says: bool) -> None:
    """An edit's own prompt may end in an aside (", which is in"); in any other place what an aside says is not asserted."""
    assert asserts(answer, ["ESPN"], ["BBC"], prompt) is says


def test_a_long_text_to_be_completed_takes_no_longer_to_judge_than_to_read() -> None:
    """A document in front of a question has many thousands of words, and an answer few."""
    began = time.process_time()
    assert asserts("It is ESPN.", ["ESPN"], prompt="some words " * 10_000 + "Ann Roe works for")
    assert time.process_time() - began < 1  # 16 s where each word's rest of the text was folded


def test_any_accepted_alias_counts() -> None:
    """Atlas aliases of the target count as the target."""
    assert asserts("It is the USA.", ["United States", "USA"])


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("St. John's is in Canada. Yes.", "St. John's is in Canada."),
        ("About 3.5 km. Far.", "About 3.5 km."),
        ("J. R. R. Tolkien. Then", "J. R. R. Tolkien."),
        ("\n \n**Sydney**\nand", "**Sydney**"),
        ("Sydney! Yes.", "Sydney!"),
        ("", ""),
    ],
)
def test_the_first_sentence_ends_at_its_own_full_stop(text: str, first: str) -> None:
    """Abbreviations, initials and decimals end nothing."""
    assert first_sentence(text) == first


@pytest.mark.parametrize(
    ("base", "edited", "prompt", "kept"),
    [
        ("The capital of Austria is Vienna.", "Vienna", "What is the capital of Austria?", True),
        ("Vienna, a city on the Danube.", "It is Vienna. Nice.", "What is the capital of Austria?", True),
        ("Vienna.", "Sydney, not Vienna.", "The capital of Austria is", False),
        ("Vienna.", "Sydney.", "The capital of Austria is", False),
        ("It was built by Gustave Eiffel.", "It was built by Bob.", "Who built the tower?", False),
        ("It was built in 1889.", "It was built in 1890.", "When was the tower built?", False),
        ("I am not sure.", "I am not sure. Really.", "What?", True),
        ("", "", "What?", True),
        ("", "Sydney", "What?", False),
    ],
)
def test_an_answer_is_kept_when_what_the_base_said_beyond_the_prompt_is_still_said(base: str, edited: str, prompt: str, kept: bool) -> None:
    """Issue, section 4 (verify): locality as "answer kept"."""
    assert same_answer(base, edited, prompt) is kept
    assert bytes_kept(base, edited) is (base == edited)


def test_the_short_answer_is_the_new_names_of_the_leading_clause() -> None:
    """What "kept" compares."""
    assert short_answer("The capital of Austria is Vienna, which lies on the Danube.", "What is the capital of Austria?") == ("vienna",)


def test_a_mention_counts_even_when_denied() -> None:
    """Leaks are looked for more strictly than assertions."""
    assert mentions("It is certainly not Sydney.", ["Sydney"])
    assert not mentions("Sydney Harbour", ["Sydney"])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.text(max_size=20))
def test_matching_never_fails_and_every_answer_keeps_itself(answer: str, target: str) -> None:
    """Answers are whatever a model emits."""
    starts_with(answer, target)
    asserts(answer, [target], [answer])
    mentions(answer, [target])
    assert same_answer(answer, answer)
    assert matching.words(answer) == matching.words(answer.upper().lower()) or not answer.isascii()
