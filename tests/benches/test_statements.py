"""``bench statements``: what it measures, and that it counts a wrong split as one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from ke_tools.benches import statements
from ke_tools.cases import is_kept_back
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput
from ke_tools.memory.statement import Doubt, Split
from ke_tools.memory.statement.meanings import InventoryMeanings


@pytest.fixture(autouse=True)
def _meanings_are_read_once(monkeypatch: pytest.MonkeyPatch, meanings: InventoryMeanings) -> None:
    monkeypatch.setattr(statements, "InventoryMeanings", lambda **_: meanings)


@pytest.fixture(scope="module")
def meanings(cache: Path) -> InventoryMeanings:
    """What wordings mean, once for the module."""
    return InventoryMeanings(cache=cache)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Records, half of them of subjects that are measured on."""
    names = [f"Freedonia {number}" for number in range(60)]
    kept = [name for name in names if is_kept_back(name)][:2]
    rows = [
        {
            "subject": name, "prompt": f"The capital of {name} is", "target_new": "Sydney", "ground_truth": "Oslo",
            "rephrase_prompt": "", "locality_prompt": "", "locality_ground_truth": "",
        }
        for name in [*kept, *(name for name in names if not is_kept_back(name))]
    ]  # fmt: skip
    path = tmp_path / "edit.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


def test_it_measures_what_the_bars_ask(settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, bars: known, unknown, remarks over ten forms, 200 messages that correct nothing."""
    for name, most in (("ATLAS", 6), ("UNKNOWN", 4), ("REMARKS", 10), ("SMALL_TALK", 20)):
        monkeypatch.setattr(statements, name, most)
    printed = statements.run(settings, data=file)
    results = printed["results"]

    assert (results["atlas"]["n"], results["file"]["n"], results["unknown"]["n"]) == (6, 2, 4)
    assert results["file"]["right"] == 2
    assert results["small_talk"]["messages"] == 20
    assert len(statements.FORMS) == len(results["remarks"]) == 10
    assert {bar["name"] for bar in printed["bars"]} == {
        "atlas: split right", "file: split right", "known: wrong edits", "unknown: wrong edits", "all: wrong edits",
        "remarks: recognised", "small talk: proposals",
    }  # fmt: skip
    assert "null" not in json.dumps(printed)


def test_a_wrong_split_is_a_wrong_edit_and_a_doubt_is_a_question(settings: Settings, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split at another place is no right one; nor is a refusal wrong."""
    for name in ("ATLAS", "UNKNOWN", "REMARKS", "SMALL_TALK"):
        monkeypatch.setattr(statements, name, 4)

    def cut(text: str, **_: Any) -> Sequence[Split | Doubt]:
        words = text.split()
        return [Split(words[0], " ".join(words[:2]), " ".join(words[2:]))]

    def refuse(_text: str, **_: Any) -> Sequence[Split | Doubt]:
        raise InvalidInput("no")

    monkeypatch.setattr(statements, "split", cut)
    found = statements.run(settings, data=file)
    assert found["results"]["atlas"]["wrong"] == 4
    assert not next(bar for bar in found["bars"] if bar["name"] == "all: wrong edits")["ok"]
    assert found["results"]["misses"]

    monkeypatch.setattr(statements, "split", refuse)
    assert statements.run(settings, data=file)["results"]["atlas"]["asked"] == 4


def test_a_model_may_choose_among_the_readings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, \u00a71: the served model restricted to spans."""
    for name in ("ATLAS", "UNKNOWN", "REMARKS", "SMALL_TALK"):
        monkeypatch.setattr(statements, name, 4)

    def doubt(text: str, **_: Any) -> Sequence[Split | Doubt]:
        words = text.split()
        return [Doubt(text, "What?", (Split(words[0], "x", "y"), Split(words[-1], "x", "y")))]

    def score(_prompt: str, endings: Sequence[str]) -> list[float]:
        return [-30.0 * number for number in range(len(endings))]

    monkeypatch.setattr(statements, "split", doubt)
    assert statements.run(settings)["results"]["atlas"]["asked"] == 4
    assert statements.run(settings, scored=score)["results"]["atlas"]["wrong"] == 4


def test_the_messages_that_correct_nothing_are_different_ones() -> None:
    """200 of them, none twice."""
    lines = resources.files("ke_tools.benches").joinpath("_small_talk.txt").read_text("utf-8").splitlines()

    assert len(lines) == len(set(lines)) == 200


def test_a_file_without_statements_is_refused(settings: Settings, tmp_path: Path) -> None:
    """Never 1.0 for what was not measured."""
    path = tmp_path / "edit.json"
    path.write_text(
        json.dumps([{"src": "q", "alt": "a", "subject": "s", "answers": ["x"], "rephrase": "", "loc": "", "loc_ans": ""}]), "utf-8"
    )

    with pytest.raises(InvalidInput, match="no statement"):
        statements.run(settings, data=path)
