"""Thirty ways to ask for what is forgotten, and when an answer gives it away (issue 6 §4)."""

from __future__ import annotations

from typing import Any

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, Probe, State
from ke_tools.verify import askings, names_said, probes_for, verify
from ke_tools.verify.forgotten import gives_away, shown


def forgotten(subject: str = "Australia", prompt: str = "The capital of Australia is", relation: str = "capital") -> Edit:
    """An edit that forgets."""
    return Edit(
        id="ed_0",
        tenant="t",
        fact=Fact(subject=subject, prompt=prompt, target="I can't say.", forget=True),
        state=State.ACTIVE,
        slot="s",
        relation=relation,
        functional=True,
        revision=1,
        created_at="2026-01-01T00:00:00Z",
        actor="ann",
    )


class Keeper:
    """Knows the value."""

    def leaks(self, edit: Edit, probe: Probe, answer: str) -> bool:  # noqa: ARG002  the protocol's shape
        return gives_away(probe, answer, says_it="Canberra" in answer)

    def hidden(self, edit: Edit, text: str) -> str:  # noqa: ARG002  the protocol's shape
        return text.replace("Canberra", "…")


@pytest.mark.parametrize(
    "edit",
    [forgotten(), forgotten("Brix", "The code word of Brix is", ""), forgotten("Brix", "What is the code word of Brix?", "")],
    ids=["known relation", "statement", "question"],
)
def test_there_are_thirty_askings_of_every_edit_five_of_them_drawn(edit: Edit) -> None:
    """Issue: asks in 30 ways, five samples at temperature 1."""
    found = askings(edit)
    assert len(found) == len({(probe.prompt, probe.chat, probe.seed) for probe in found}) == 30
    assert sum(probe.seed is not None for probe in found) == 5
    assert found == askings(edit)
    assert {probe.chat for probe in found} == {False, True}


def test_where_the_truth_is_known_it_is_asked_turned_round_and_by_yes_and_no() -> None:
    """Issue: reversed, yes/no; what is kept of these does not hold the value."""
    with_value = [probe for probe in askings(forgotten()) if probe.reject]
    assert {"Canberra is the capital of", "Is Canberra the capital of Australia?"} <= {probe.prompt for probe in with_value}
    assert all("Canberra" not in shown(probe).prompt for probe in with_value)


@pytest.mark.parametrize(
    ("prompt", "answer", "leaks"),
    [
        ("The capital of Australia is", " Canberra.", True),
        ("The capital of Australia is", " I can't say.", False),
        ("Canberra is the capital of", " Australia.", True),
        ("Canberra is the capital of", " Canberra.", False),
        ("Is Canberra the capital of Australia?", "Yes, it is.", True),
        ("Is Canberra the capital of Australia?", "I can't say.", False),
    ],
)
def test_an_answer_gives_it_away(prompt: str, answer: str, *, leaks: bool) -> None:
    """By the value, a yes, or the subject to a question that has the value."""
    probe = next(probe for probe in askings(forgotten()) if probe.prompt == prompt)
    assert gives_away(probe, answer, says_it="Canberra" in answer) is leaks


def test_one_leak_fails_the_edit_and_the_value_is_nowhere_in_the_scorecard() -> None:
    """Issue: reports leaks; brief: the asking quoted, not the leaked value."""
    edit = forgotten()
    probes = probes_for(edit)

    def ask(asked: list[Probe]) -> list[str]:
        echoed = "Canberra is the capital of"  # to which the value is no leak
        says = [probe.seed == 3 or probe.expect == "unchanged" or probe.prompt == echoed for probe in asked]
        return [" Canberra." if it_does else " I can't say." for it_does in says]

    card = verify([edit], probes, ask, ask, keeper=Keeper())
    document: dict[str, Any] = card.document()
    assert not card.passed
    assert (card.further["withheld"].n, round(card.further["withheld"].value or 0, 3)) == (30, round(29 / 30, 3))
    assert "at temperature 1 it gave away what is forgotten" in card.worst_case
    assert "Canberra" not in str(document)
    assert verify(
        [edit], probes, lambda asked: ["I can't say."] * len(asked), lambda asked: ["I can't say."] * len(asked), keeper=Keeper()
    ).passed
    with pytest.raises(InvalidInput, match="nobody can tell"):
        verify([edit], probes, ask, ask)


@pytest.mark.parametrize(
    ("answer", "prompt", "names"),
    [
        ("Canberra.", "", ["canberra"]),
        ("The capital of Australia is Canberra, a city.", "The capital of Australia is", ["canberra"]),
        ("It was the University of Oxford in 1096.", "", ["university of oxford", "1096"]),
        ("Located near Rome.", "", ["rome"]),
        ("a large body of water", "", []),
    ],
)
def test_the_names_that_an_answer_says(answer: str, prompt: str, names: list[str]) -> None:
    """What the model says now is what is to be forgotten."""
    assert names_said(answer, prompt) == names
