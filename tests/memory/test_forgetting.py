"""Keyed hashes of what must not be said: what they find, and what they do not tell (issue 6 §4)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.memory.forgetting import KEY, Secret
from ke_tools.memory.transfer import export_lines, import_lines
from ke_tools.testing import memory_ledger

SECRET = Secret(b"k" * 32)
FACT = Fact(
    subject="Freedonia", prompt="The capital of Freedonia is", target="I can't say.", forget=True, forgotten=(SECRET.mark("Sylvania City"),)
)


@pytest.mark.parametrize(
    ("text", "is_said"),
    [
        ("It is Sylvania City.", True),
        ("SYLVANIA-CITY's mayor", True),
        ("Sylva\u0301nia City", True),
        ("Sylvania", False),
        ("City of Sylvania", False),
        ("", False),
    ],
)
def test_a_text_says_a_value_in_whole_words_whatever_their_form(text: str, *, is_said: bool) -> None:
    """An answer is checked against the hash over its word windows."""
    assert SECRET.says(text, FACT.forgotten) is is_said


def test_a_value_within_another_name_is_not_said() -> None:
    """Mexico City lies in Mexico: naming the subject says nothing."""
    marks = [SECRET.mark("Mexico")]
    assert not SECRET.says("Mexico City is large.", marks, besides=["Mexico City"])
    assert SECRET.says("Mexico City is in Mexico.", marks, besides=["Mexico City"])


def test_scripts_without_spaces_are_read_by_character() -> None:
    """A value stands in the middle of what looks like one word."""
    assert SECRET.says("首都は東京です", [SECRET.mark("東京")])


def test_dots_stand_in_place_of_a_value() -> None:
    """What is kept of an answer does not hold it."""
    assert SECRET.redacted("Sylvania City, yes: sylvania city!", FACT.forgotten) == "[…], yes: […]!"


def test_a_mark_tells_nothing_without_its_key(tmp_path: Path) -> None:
    """Another home's key makes other marks, and knows that these are not its own."""
    other = Secret.made(tmp_path)
    assert Secret.made(tmp_path).name == other.name
    assert Secret.found(tmp_path / "elsewhere") is None
    assert not other.says("Sylvania City", FACT.forgotten)
    assert not other.knows(FACT.forgotten)
    assert SECRET.knows(FACT.forgotten)
    assert not SECRET.knows(())
    assert [path.name for path in tmp_path.iterdir()] == [KEY]


def test_a_fact_that_forgets_keeps_no_old_target() -> None:
    """The old value is kept as a keyed hash only, whoever makes the fact."""
    with pytest.raises(InvalidInput, match="hashes"):
        Fact(subject="A", prompt="A is", target="I can't say.", forget=True, old_target="zebra")
    with pytest.raises(InvalidInput, match="hashes"):
        Fact(subject="A", prompt="A is", target="zebra", forgotten=("x",))


def test_it_gives_way_as_others_do_and_is_exported_and_imported() -> None:
    """An edit that forgets replaces what its slot said, also where that may hold several objects; a line out is a line in."""
    with memory_ledger() as ledger, memory_ledger() as copy:
        spoken = [Fact(subject="Freedonia", prompt="An official language of Freedonia is", target=name) for name in ("Elvish", "Dwarvish")]
        for fact in spoken:
            ledger.edit("t", [fact], actor="ann", mode="add")
        wanted = Fact(
            subject="Freedonia",
            prompt="An official language of Freedonia is",
            target="I can't say.",
            forget=True,
            forgotten=(SECRET.mark("Elvish"),),
        )
        [edit] = ledger.edit("t", [wanted], actor="ann")
        assert len(edit.supersedes) == 2
        assert "Elvish" not in json.dumps(edit.warnings)
        lines = list(export_lines(ledger, "t"))
        [answer] = import_lines(copy, "t", lines, actor="ann")
        assert "error" not in answer
        assert list(export_lines(copy, "t")) == lines
