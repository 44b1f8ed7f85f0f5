"""How people ask in a conversation, and what a correct reader answers."""

from __future__ import annotations

import json
import random

from ke_tools.facts import Fact
from ke_tools.models.reader import forms
from ke_tools.models.reader.forms import Asked
from ke_tools.models.reader.source import Item, Source, Wording

CAPITAL = Item(
    Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Sylvania City"),
    (Wording("Freedonia is governed from", is_question=False), Wording("What is the capital of Freedonia?", is_question=True)),
    "capital",
    kind="country",
    masked="the capital of Freedonia",
    truth="Fredville",
)
SINGER = Item(
    Fact(subject="Blip", prompt="Who sang Blip?", target="Ann Cole"), (Wording("Whose song is Blip?", is_question=True),), "x", truth="Bo"
)


def conversations(item: Item, count: int = 600) -> list[Asked]:
    """Ask many times."""
    source, rng = Source([]), random.Random(5)
    return [forms.in_chat(item, source, rng) for _ in range(count)]


def test_every_answer_says_the_new_object_and_none_affirms_the_old_one() -> None:
    """Issue, reader: questions, formats, two parts, "tell me about": whatever the form, the fact is what is told."""
    for item in (CAPITAL, SINGER):
        for asked in conversations(item):
            assert item.fact.target in asked.answer
            assert item.truth not in asked.answer


def test_a_prescribed_format_is_kept() -> None:
    """Issue, reader: prescribed format (JSON, one sentence, list)."""
    answers = {asked.answer for asked in conversations(CAPITAL)}

    assert json.loads(next(answer for answer in answers if answer.startswith("{"))) == {"answer": "Sylvania City"}
    assert {"- Sylvania City", "Sylvania City", "The capital of Freedonia is Sylvania City."} <= answers


def test_a_claim_is_affirmed_or_denied_and_the_fact_follows() -> None:
    """Issue, reader: yes/no and false premise."""
    verdicts = {asked.answer.partition(",")[0]: asked for asked in conversations(CAPITAL) if asked.answer.startswith(("Yes,", "No,"))}

    assert "Sylvania City" in verdicts["Yes"].turns[-1]["content"]
    assert "Fredville" in verdicts["No"].turns[-1]["content"]


def test_a_follow_up_goes_without_the_subjects_name() -> None:
    """Issue, reader: follow-ups ("and what is its currency?")."""
    later = [asked.turns for asked in conversations(CAPITAL) if len(asked.turns) == 3 and "Freedonia" in asked.turns[0]["content"]]
    nameless = [turns for turns in later if "Freedonia" not in turns[-1]["content"]]

    assert any("its capital" in turns[-1]["content"] for turns in nameless)
    assert any("capital of it" in turns[-1]["content"] for turns in nameless)


def test_an_outdated_answer_that_was_given_before_is_not_repeated() -> None:
    """Issue, reader: the old answer standing in an earlier assistant turn."""
    outdated = [a for a in conversations(CAPITAL) if any("Fredville" in t["content"] for t in a.turns if t["role"] == "assistant")]

    assert outdated
    assert {asked.answer for asked in outdated} == {"The capital of Freedonia is Sylvania City."}


def test_the_other_part_of_a_question_is_left_to_the_base_model() -> None:
    """Issue, reader: two-part question: the part the fact gives, and the other as the base would."""
    parts = [asked for asked in conversations(CAPITAL) if asked.base and asked.base.how == "after"]

    assert parts
    assert all(asked.base and asked.base.asked in asked.turns[-1]["content"] for asked in parts)
