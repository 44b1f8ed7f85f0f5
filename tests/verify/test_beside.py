"""What weights add to the memory, on the same probes; issue 6 §4 (``memory_after_promotion``)."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ke_tools.facts import Edit, Probe
from ke_tools.verify.asking import wanted
from ke_tools.verify.beside import MOST, Answered, beside_memory, chosen
from ke_tools.verify.run import judge


def probe(edit: Edit, prompt: str) -> Probe:
    """One that wants the target."""
    return wanted(edit, "generalisation", (prompt, False))


def test_the_two_ways_are_told_apart_by_how_the_subject_is_named(capital: Edit) -> None:
    """Issue 6 §4: the scorecard says what the weights add: open mentions, subject not named, tokens and milliseconds saved."""
    edit = dataclasses.replace(capital, fact=dataclasses.replace(capital.fact, aliases=("Oz",)))
    prompts = ["The capital of Australia is", "Australia is ruled from", "The capital of Oz is", "The country down under is ruled from"]
    outcomes = [judge(probe(edit, prompt), "Canberra.", "Sydney.") for prompt in prompts]
    kept = judge(dataclasses.replace(probe(edit, "The capital of Japan is"), expect="unchanged"), "Tokyo.", "Tokyo.")

    def by(way: str, probes: list[Probe]) -> Answered:
        assert [one.prompt for one in probes] == prompts, "what must not change has nothing to add"
        if way == "weights":
            return Answered(["Sydney.", "Canberra.", "Sydney.", "Sydney."], 8.0, 20.0)
        return Answered(["Sydney.", "Sydney.", "Canberra.", "Canberra."], 48.0, 35.0)

    found = beside_memory([edit], [*outcomes, kept], by)
    rows = {row["kind"]: row for row in found["rows"]}

    assert list(rows) == ["subject named", "another name", "subject not named"]
    assert (rows["subject named"]["weights"]["value"], rows["subject named"]["memory"]["value"]) == (0.5, 1.0)
    assert rows["subject named"]["lost"] == ["Australia is ruled from"]
    assert (rows["another name"]["only_weights"], rows["another name"]["only_memory"]) == (1, 0)
    assert rows["subject not named"]["gained"] == ["The country down under is ruled from"]
    assert (found["tokens_saved"], found["milliseconds_saved"], found["probes"]) == (40.0, 15.0, 4)
    assert "subject not named: weights 1.00, memory 0.00 (n=1)" in found["in_words"]
    assert "null" not in json.dumps(found)


def test_nothing_to_ask_is_not_compared(capital: Edit) -> None:
    """What was not measured is not made up."""
    found = beside_memory([capital], [], lambda *_: pytest.fail("nothing is asked"))

    assert not found["measured"]


def test_many_probes_are_sampled_from_all_of_them(capital: Edit) -> None:
    """A promotion of fifty edits must not take twice as long for its comparison."""
    outcomes = [judge(probe(capital, f"Of Australia {n}, the capital is"), "Canberra.", "Sydney.") for n in range(5 * MOST)]
    taken = chosen(outcomes)

    assert len(taken) == MOST
    assert (taken[0], taken[-1]) == (outcomes[0], outcomes[-5])
