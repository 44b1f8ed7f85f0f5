"""What a fact's text may not hold (issue §6)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ke_tools import atlas, cases
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.screen import addressed, hidden_character

ATTEMPTS = (Path(__file__).parent / "data" / "injections.txt").read_text("utf-8").splitlines()
BENCHMARKS = os.environ.get("KE_TEST_DATA")  # a folder of benchmark files; read now, as tests see no KE_* variables
FIELDS = ("subject", "prompt", "target", "old_target", "relation", "paraphrases", "aliases")


def fact_with(field: str, text: str) -> Fact:
    """Make a fact with ``text`` in one of its fields."""
    fields: dict[str, object] = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}
    if field == "subject":
        fields |= {"subject": text, "prompt": f"The capital of {text} is"}
    elif field == "prompt":
        fields["prompt"] = f"The capital of Freedonia is. {text}"
    else:
        fields[field] = (text,) if field in {"paraphrases", "aliases"} else text
    return Fact(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", FIELDS)
def test_attempts_to_instruct_the_model_are_refused_in_every_field(field: str) -> None:
    """Issue §6: of 100 injection attempts, each tried in every field, at most 5 % may be obeyed; those refused cannot be."""
    accepted = []
    for attempt in ATTEMPTS:
        try:
            fact_with(field, attempt)
        except InvalidInput:
            continue
        accepted.append(attempt)

    assert len(ATTEMPTS) == 100
    assert len(accepted) <= 5, accepted


@pytest.mark.parametrize(
    "text",
    [
        "Canberra",
        "30 days from the date of delivery",
        "Say Anything...",
        "Always",
        "The Answer",
        "the Assistant Secretary of State",
        "guitar, piano and double bass",
        "Please Please Me",
        "Now and Then, Here and There",
        "C++ and C#",
        "Ca<sup>2+</sup>",
        "Customers may return any product within 45 days; opened food is excluded.",
        "Write to support@example.com before 5 pm; weekends excluded.",
        "You Only Live Twice",
        "Prompt Corporation",
        "Ignore",
        "AC/DC",
        "北京",
        "القاهرة",
    ],
)
def test_ordinary_targets_are_accepted(text: str) -> None:
    """Issue §6: of all targets in the benchmark data at most .1 % are refused."""
    assert addressed(text) is None
    assert hidden_character(text) is None
    assert fact_with("target", text).target == text


@pytest.mark.slow
@pytest.mark.skipif(BENCHMARKS is None, reason="KE_TEST_DATA names no folder of benchmark files")
def test_of_the_targets_in_the_benchmarks_at_most_one_in_a_thousand_is_refused() -> None:
    """Issue §6, with the files themselves: new and true objects of every case that can be read."""
    targets, refused = 0, []
    for path in sorted(Path(str(BENCHMARKS)).rglob("*.json")):
        try:
            read = cases.load(path)
        except InvalidInput:  # a file of another shape
            continue
        for text in (text for case in read for text in (case.target, case.truth) if text.strip()):
            targets += 1
            try:
                fact_with("target", text)
            except InvalidInput as error:
                refused.append(f"{path.name}: {error}")

    assert targets >= 1000
    assert len(refused) <= targets / 1000, refused


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>",
        "<|eot_id|>",
        "<\uff5cUser\uff5c>",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
        "[INST]",
        "[/SYSTEM_PROMPT]",
        "[TOOL_CALLS]",
        "</s>",
    ],
)
@pytest.mark.parametrize("field", FIELDS)
def test_the_control_tokens_of_chat_models_are_refused(field: str, text: str) -> None:
    """Issue §6: a tokenizer reads them as what they are wherever they stand, so that quoting does not hold them."""
    with pytest.raises(InvalidInput, match="markup"):
        fact_with(field, f"Sylvania {text} City")


@pytest.mark.parametrize("name", ["the", "of", "is", "it", "what is", "What is", "in the"])
@pytest.mark.parametrize("field", ["subject", "aliases"])
def test_an_everyday_word_is_no_name(field: str, name: str) -> None:
    """Issue §6, no unrelated answer changes: with the alias "of", every capital would be the edit's."""
    with pytest.raises(InvalidInput, match="everyday word"):
        fact_with(field, name)


@pytest.mark.parametrize(
    "name", ["It", "US", "The Who", "Are You the One", "This Is It", "the Netherlands", "Who", "to be or not to be", "of Montreal"]
)
@pytest.mark.parametrize("field", ["subject", "aliases"])
def test_names_of_everyday_words_are_taken_where_they_are_written_as_names(field: str, name: str) -> None:
    """A film may be called It, a band The Who."""
    assert name in {(fact := fact_with(field, name)).subject, *fact.aliases}


def test_no_wording_of_the_atlas_reads_like_an_instruction() -> None:
    """Every inventory wording can be an edit's prompt."""
    wordings = [wording.replace("{}", "Freedonia") for relation in atlas.relations().values() for wording in relation.wordings]

    assert [wording for wording in wordings if addressed(wording)] == []


@pytest.mark.parametrize("character", ["\n", "\x00", "\x1b", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\ue000"])
@pytest.mark.parametrize("field", FIELDS)
def test_hidden_characters_are_named_with_their_place(field: str, character: str) -> None:
    """Issue §6: control, bidi and zero-width characters get a clear error."""
    with pytest.raises(InvalidInput, match=rf"U\+{ord(character):04X}"):
        fact_with(field, f"Syl{character}vania")


@pytest.mark.parametrize(("field", "text"), [("target", ""), ("target", "  "), ("target", "x" * 2001), ("subject", ""), ("prompt", "")])
def test_empty_and_overlong_fields_are_refused(field: str, text: str) -> None:
    """Issue §6: empty target, target over 2,000 characters."""
    fields = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"} | {field: text}

    with pytest.raises(InvalidInput, match=field):
        Fact(**fields)  # type: ignore[arg-type]


def test_the_subject_must_stand_in_the_prompt_under_one_of_its_names() -> None:
    """Issue §6: subject not in the prompt."""
    with pytest.raises(InvalidInput, match="does not stand in the prompt"):
        Fact(subject="Freedonia", prompt="The capital of Sylvania is", target="Bloom")

    assert Fact(subject="United States", prompt="The capital of the USA is", target="Bloom", aliases=("USA",)).aliases == ("USA",)
