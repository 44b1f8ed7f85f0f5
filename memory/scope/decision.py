"""The nouns of a scope decision: what is read, which edits it is about, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ke_tools.facts import Edit

Zone = Literal["in", "grey", "out"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What of a request is read: the prompt or last user turn, and earlier turns, the latest first."""

    text: str
    carried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """An edit that the question is about; ``how`` says how its subject was found (named, carried, similar)."""

    edit: Edit
    score: float
    how: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which edits a question is about, best first, and why."""

    zone: Zone
    hits: tuple[Hit, ...]
    stages: Mapping[str, Any]
    reason: str
    revision: int
