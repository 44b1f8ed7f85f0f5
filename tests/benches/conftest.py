"""A serving path small enough to reason about: a model that obeys what stands in its prompt, a router that finds subjects."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.models.engine import Generation, Request


@dataclass
class ObedientEngine:
    """Says the last fact's target where a fact stands in the prompt, the known answer else, "Nothing." when it has none."""

    known: dict[str, str] = field(default_factory=dict)  # a part of the prompt → the answer
    adapters: frozenset[str] = frozenset()
    obeys: bool = True
    asked: list[Request] = field(default_factory=list)
    model_id: str = "obedient"
    fingerprint: str = "sha256:0123"
    context_length: int = 2048
    chat_roles: frozenset[str] = frozenset({"system"})

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """As the engine's."""
        self.asked += requests
        return [Generation(self._said(request), "stop", 1, 1) for request in requests]

    def count_tokens(self, request: Request) -> int:
        """As the engine's."""
        return len(str(request))

    def _said(self, request: Request) -> str:
        text = request.prompt or " ".join(str(m["content"]) for m in request.messages or ())
        fact = re.findall(r"<<(.*?)>>", text)
        if fact and self.obeys:
            return f" {fact[-1]}."
        return next((f" {said}." for part, said in self.known.items() if part in text), " Nothing.")


@dataclass
class SubjectScope:
    """Finds every live edit whose subject stands in the text."""

    ledger: Any
    router: Any = None

    def decide(self, tenant: str, reading: Any) -> Any:
        """As the scope's."""
        hits = tuple(SimpleNamespace(edit=e, score=1.0) for e in self.ledger.live(tenant) if e.fact.subject in reading.text)
        return SimpleNamespace(zone="in" if hits else "out", hits=hits)


@dataclass
class MarkingRouter:
    """Puts the target between marks in front of the prompt."""

    scope: Any
    demonstrations: int = 6
    grey: str = "base"

    def route(self, tenant: str, request: Request, *, engine: Any, via: str = "auto") -> Any:  # noqa: ARG002  the router's shape
        """As the router's."""
        text = request.prompt if request.prompt is not None else str((request.messages or ())[-1]["content"])
        decision = self.scope.decide(tenant, SimpleNamespace(text=text, carried=()))
        if decision.zone == "out":
            return SimpleNamespace(request=request, route="base", hits=())
        marks = "".join(f"<<{hit.edit.fact.target}>>" for hit in decision.hits)
        if request.prompt is None:
            routed = replace(request, messages=({"role": "user", "content": f"{marks} {text}"},))
        else:
            routed = replace(request, prompt=f"{marks} {text}", adapter="reader" if via == "reader" else "")
        return SimpleNamespace(request=routed, route="memory", hits=decision.hits)


@dataclass(frozen=True)
class PlainHit:
    """As the scope's."""

    edit: Any
    score: float
    how: str


@dataclass(frozen=True)
class PlainDecision:
    """As the scope's."""

    zone: str
    hits: tuple[PlainHit, ...]
    stages: Any
    reason: str
    revision: int


@pytest.fixture
def serving_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the small router and scope in the place of the real ones."""
    monkeypatch.setitem(sys.modules, "ke_tools.memory.router", SimpleNamespace(Router=MarkingRouter))
    for name, small in {"Scope": SubjectScope, "Decision": PlainDecision, "Hit": PlainHit}.items():
        monkeypatch.setattr(f"ke_tools.memory.scope.{name}", small, raising=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that touch nothing of the user's."""
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache")


@pytest.fixture
def engine() -> ObedientEngine:
    """A model that obeys."""
    return ObedientEngine()
