"""What the model knows, asked once; issue section 2 (bench model)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.models.engine import Generation, Request
from ke_tools.verify import knows, remembered


class Quizzed:
    """A model that knows where France is ruled from, and counts its questions."""

    fingerprint = "sha256:abc"
    chat_roles = frozenset({"system"})

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """As the engine's."""
        self.asked += requests
        return [Generation("Paris." if "France" in str(r.messages or r.prompt) else "No idea.", "stop", 1, 1) for r in requests]


def _facts() -> list[atlas.AtlasFact]:
    return [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject in {"France", "Japan"}]


def test_only_rightly_answered_facts_are_known_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    """Results are kept by the model's fingerprint and the atlas's hash."""
    engine: Any = Quizzed()
    assert remembered(engine, tmp_path) is None
    assert [fact.subject for fact in knows(engine, _facts(), cache=tmp_path)] == ["France"]
    assert len(engine.asked) == 2
    again: Any = Quizzed()
    assert [fact.subject for fact in knows(again, _facts(), cache=tmp_path)] == ["France"]
    assert again.asked == []
    assert [fact.subject for fact in remembered(again, tmp_path) or []] == ["France"]


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    """The fingerprint is part of the key."""
    first: Any = Quizzed()
    knows(first, _facts(), cache=tmp_path)
    other: Any = Quizzed()
    other.fingerprint = "sha256:def"
    knows(other, _facts(), cache=tmp_path)
    assert len(other.asked) == 2


def test_a_model_without_chat_template_is_asked_plainly() -> None:
    """Base models have none."""
    engine: Any = Quizzed()
    engine.chat_roles = frozenset()
    assert len(knows(engine, _facts())) == 1
    assert all(request.messages is None for request in engine.asked)


def test_a_damaged_or_unwritable_cache_costs_only_time(tmp_path: Path) -> None:
    """Failure paths are real."""
    engine: Any = Quizzed()
    knows(engine, _facts(), cache=tmp_path)
    for file in (tmp_path / "known").iterdir():
        file.write_text("{half", "utf-8")
    assert len(knows(engine, _facts(), cache=tmp_path)) == 1
    blocked = tmp_path / "file"
    blocked.write_text("", "utf-8")
    assert len(knows(engine, _facts(), cache=blocked)) == 1


def test_progress_is_told() -> None:
    """A long wait shows how far it is."""
    told: list[tuple[str, int, int]] = []
    engine: Any = SimpleNamespace(fingerprint="", chat_roles=frozenset(), generate=Quizzed().generate)
    knows(engine, _facts(), progress=lambda *state: told.append(state))
    assert told == [("known facts", 2, 2)]


def test_what_was_answered_before_an_interruption_is_not_asked_again(tmp_path: Path) -> None:
    """Whoever leaves a long verification and comes back does not begin anew."""
    engine: Any = Quizzed()

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        knows(engine, _facts(), cache=tmp_path, progress=leave)
    assert len(knows(engine, _facts(), cache=tmp_path)) == 1
    assert len(engine.asked) == 2
