"""Edits to be verified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.facts import Edit, Fact, State, squash

MakeEdit = Callable[..., Edit]


@pytest.fixture
def make_edit() -> MakeEdit:
    """A live edit, its relation recognised as the ledger would."""

    def make(subject: str, prompt: str, target: str, *, id: str = "", **rest: Any) -> Edit:  # noqa: A002  the field's name
        fact = Fact(subject=subject, prompt=prompt, target=target, **rest)
        relation = atlas.recognise(prompt, subject)
        name = relation.id if relation else ""
        return Edit(
            id=id or f"ed_{squash(subject)}_{name}",
            tenant="default",
            fact=fact,
            state=State.ACTIVE,
            slot=f"{squash(subject)}\x1f{name}",
            relation=name,
            functional=relation.functional if relation else True,
            revision=1,
            created_at="2025-01-01T00:00:00Z",
            actor="test",
        )

    return make


@pytest.fixture
def capital(make_edit: MakeEdit) -> Edit:
    """Australia's capital becomes Sydney."""
    return make_edit("Australia", "The capital of Australia is", "Sydney", old_target="Canberra", paraphrases=("Australia is ruled from",))


@pytest.fixture
def house_rule(make_edit: MakeEdit) -> Edit:
    """Something that no inventory has heard of."""
    return make_edit("Zembla Ltd", "At Zembla Ltd the travel budget is approved by", "Ada Byron")
