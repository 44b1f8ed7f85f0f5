"""The serving path as a bench walks it: the engine with its reader, the router, batches."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.models.engine import Engine, Generation, Request

if TYPE_CHECKING:
    from ke_tools.benches._report import Stages
    from ke_tools.config import Settings
    from ke_tools.facts import Edit
    from ke_tools.memory.scope import Decision, Reading

BATCH: Final = 64
TENANT: Final = "bench"


@contextmanager
def serving(settings: Settings, engine: Engine | None, stages: Stages) -> Generator[Engine]:
    """The given engine, or the settings' model with its reader, loaded as the stage "load" and closed at the end."""
    if engine is not None:
        yield engine
        return
    with stages.stage("load"):
        from ke_tools.servers.engines.loading import load_engine

        opened = load_engine(settings, lambda _what: None)
    try:
        yield opened
    finally:
        opened.close()


def answers(engine: Engine, requests: Sequence[Request], stages: Stages, stage: str) -> list[str]:
    """Answer all in batches, in order, timed as ``stage``."""
    found: list[Generation] = []
    with stages.stage(stage):
        for start in range(0, len(requests), BATCH):
            found += engine.generate(requests[start : start + BATCH])
            stages.tell(stage, len(found), len(requests))
    return [generation.text for generation in found]


def completion(prompt: str, max_tokens: int) -> Request:
    """A prompt to be completed, greedily."""
    return Request(prompt=prompt, max_tokens=max_tokens)


def chat(question: str, max_tokens: int) -> Request:
    """One chat turn, greedily."""
    return Request(messages=({"role": "user", "content": question},), max_tokens=max_tokens)


class ForcedScope:
    """A scope that finds the given edits in every question, to measure what the model makes of a fact in its context."""

    def __init__(self, edits: Sequence[Edit], zone: Literal["in", "grey"] = "in") -> None:
        self._edits = tuple(edits)
        self._zone = zone

    def decide(self, tenant: str, reading: Reading) -> Decision:  # noqa: ARG002  the shape of Scope.decide
        """Say the zone, whatever is asked."""
        from ke_tools.memory.scope import Decision, Hit

        stages: Mapping[str, Any] = MappingProxyType({})
        hits = tuple(Hit(edit=edit, score=1.0, how="forced") for edit in self._edits)
        return Decision(zone=self._zone, hits=hits, stages=stages, reason="forced by the bench", revision=0)
