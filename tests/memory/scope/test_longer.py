"""A part of a longer name is not the name."""

from __future__ import annotations

import pytest

from ke_tools.memory.scope.longer import is_part_of_longer


def part(text: str, name: str, own: str = "") -> bool:
    """Whether the name's first place is a part of a longer one."""
    start = text.index(name)
    return is_part_of_longer(text, start, start + len(name), own=own)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is the rate limit of Quillon Gateway Lite?", "Quillon Gateway"),
        ("Who starred in The Sun Also Rises?", "The Sun"),
        ("What is the port of tarn-sync-lite?", "tarn-sync"),
        ("What is the capital of New Freedonia?", "Freedonia"),
        ("Who owns pre-Acme?", "Acme"),
    ],
)
def test_a_longer_name_is_another_one(text: str, name: str) -> None:
    """Issue §1: longest whole span, "North Korea" is not "Korea"; here nobody has listed the longer name."""
    assert part(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("What is the capital of Freedonia?", "Freedonia"),
        ("Who is Freedonia's ruler?", "Freedonia"),
        ("Who is the Acme Corp CEO?", "Acme Corp"),
        ("What did Freedonia, Sylvania and Zembla sign?", "Freedonia"),
        ("Is Freedonia rich? What is its capital?", "Freedonia"),
        ("Does Freedonia have a king?", "Freedonia"),
        ("What Is The Capital Of Freedonia Today?", "Freedonia"),
        ("The president of Lake Freedonia is", "Freedonia"),
        ("the population of Freedonia 2020", "Freedonia"),
    ],
)
def test_what_stands_beside_a_name_by_chance_makes_no_other(text: str, name: str) -> None:
    """A miss leaves the old belief standing."""
    assert not part(text, name)


def test_what_stands_beside_the_name_in_the_edit_belongs_to_it() -> None:
    """An edit that says "Acme Corp Ltd" is asked about so."""
    assert not part("The owner of Acme Corp Ltd is", "Acme Corp", own="The owner of Acme Corp Ltd is")
