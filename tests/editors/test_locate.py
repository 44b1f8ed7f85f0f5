"""Where a subject ends and a target begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.editors._goals import refuse_contradictions
from ke_tools.editors._locate import padded, place
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact


@pytest.mark.parametrize(
    ("prompt", "names", "until"),
    [
        ("The capital of Norway is", ["Norway"], "The capital of Norway"),
        ("Norway's capital is", ["Norway"], "Norway"),
        ("In Norway people pay with the", ["norway"], "In Norway"),
        ("In Peru people pay with the", ["Republic of Peru", "Peru"], "In Peru"),
    ],
)
def test_the_site_is_the_last_token_of_the_subject(tokenizer: Any, prompt: str, names: list[str], until: str) -> None:
    """The token that MEMIT edits, with the name as it stands in the prompt, or an alias."""
    found = place(tokenizer, prompt, names, "Oslo")

    assert tokenizer.decode(found.ids[: found.site + 1], skip_special_tokens=True).strip() == until


def test_the_target_is_predicted_from_the_prompts_last_token_on(tokenizer: Any) -> None:
    """The last token of the target is predicted and not read."""
    found = place(tokenizer, "The capital of Norway is ", ["Norway"], "the city of Oslo")

    text = tokenizer("The capital of Norway is the city of Oslo")["input_ids"]
    assert [*found.ids, found.target[-1]] == text
    assert [text[position + 1] for position in found.predicting] == list(found.target)
    assert tokenizer.decode(found.target).strip() == "the city of Oslo"


def test_a_prompt_without_a_target_predicts_once(tokenizer: Any) -> None:
    """The essence prompt."""
    found = place(tokenizer, "Norway is a", ["Norway"])

    assert found.target == ()
    assert list(found.predicting) == [found.prompt_length - 1] == [len(found.ids) - 1]


def test_the_last_site_is_the_prompts_last_token(tokenizer: Any) -> None:
    """Where tiny models read the fact; the subject need not stand in the prompt then."""
    found = place(tokenizer, "It lies in", ["Norway"], "Europe", site="last")

    assert found.site == found.prompt_length - 1


def test_a_subject_that_is_not_there_or_ends_inside_a_token_is_refused(tokenizer: Any) -> None:
    """Issue, bad input."""
    with pytest.raises(InvalidInput, match="Sweden"):
        place(tokenizer, "The capital of Norway is", ["Sweden"], "Oslo")
    words = sorted(token.strip("Ġ▁") for token in tokenizer.get_vocab())  # the vocabulary comes in another order each time
    alone = len(tokenizer("The")["input_ids"]) + 1
    word = next(w for w in words if w.isalpha() and len(w) > 4 and len(tokenizer(f"The {w}")["input_ids"]) == alone)
    with pytest.raises(InvalidInput, match="inside the token"):
        place(tokenizer, f"The {word}", [word[:3]], "Oslo")


@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=5), st.booleans())
def test_padding_keeps_every_row(rows: list[list[int]], left: bool) -> None:
    """Whichever side it is on."""
    ids, mask = padded(rows, 0, torch.device("cpu"), left=left)

    assert [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)] == rows
    assert not ids[~mask.bool()].any()
    if left and ids.shape[1]:
        assert all(mask[n, -1] for n, row in enumerate(rows) if row)


def test_one_prompt_with_two_targets_is_refused_with_both_named() -> None:
    """Issue, bad input: two facts with the same key and different targets."""
    one = Fact(subject="France", prompt="The capital of France is", target="Oslo")
    same = Fact(subject="France", prompt="the capital of France is", target="Oslo")
    other = Fact(subject="France", prompt="The capital of France is", target="Rome")

    refuse_contradictions([one, same])
    with pytest.raises(InvalidInput, match=r"Oslo.*Rome"):
        refuse_contradictions([one, other])


@pytest.mark.parametrize("before", ["France is far. ", "Francelike people came. "])
def test_the_edited_token_is_never_in_a_text_before_the_prompt(tokenizer: Any, before: str) -> None:
    """The model's own text may name the subject, or hold it inside a word."""
    text = f"{before}The capital of France is"

    found = place(tokenizer, text, ["France"], behind=len(before))

    _, end = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][found.site]
    assert end == text.rindex("France") + len("France")


def test_a_name_as_a_word_goes_before_one_inside_of_another(tokenizer: Any) -> None:
    """The subject "Ada" does not stand in the word "Adams"."""
    text = "Adams met Ada in"

    found = place(tokenizer, text, ["Ada"])

    _, end = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][found.site]
    assert end == text.index("Ada ") + len("Ada")
