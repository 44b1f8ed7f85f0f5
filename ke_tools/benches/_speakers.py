"""Who answers: a model as its weights are, perhaps behind a text, or the memory's whole path."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from ke_tools.benches._scoring import Forced, Read, forced, greedy
from ke_tools.benches._serving import BATCH, TENANT, completion
from ke_tools.models.causal import CausalModel
from ke_tools.models.engine import Engine, Request

if TYPE_CHECKING:
    from ke_tools.memory.router import Router

__all__ = ["ANSWER_TOKENS", "Memory", "Speaker", "Weights"]

ANSWER_TOKENS: Final = 16


class Speaker(Protocol):
    """What answers and can be read."""

    def say(self, prompts: Sequence[str], tokens: int = ANSWER_TOKENS) -> list[str]:
        """Go on from each, greedily, to the natural stop or so many tokens."""

    def forced(self, asked: Sequence[tuple[str, str]]) -> list[Forced] | None:
        """Read each prompt with its target; none where what the model is sent cannot be read."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model in memory."""

    model: CausalModel
    behind: Read | None = None

    def say(self, prompts: Sequence[str], tokens: int = ANSWER_TOKENS) -> list[str]:
        """As a speaker's."""
        return greedy(self.model, prompts, tokens, behind=self.behind)

    def forced(self, asked: Sequence[tuple[str, str]]) -> list[Forced] | None:
        """As a speaker's."""
        return forced(self.model, asked, behind=self.behind)


@dataclass(frozen=True, slots=True)
class Memory:
    """The router and the engine behind it; without a router, the engine by itself.

    The engine tells no likelihoods of a given target, so that these come from ``model``, which has the engine's weights, on the prompt as
    the path sends it; where that goes to the reader, with the adapter in ``reader``.
    """

    engine: Engine
    router: Router | None = None
    via: Literal["ike", "reader"] = "ike"
    model: CausalModel | None = None
    reader: Path | None = None
    _sent: dict[tuple[str, int], Request] = field(default_factory=dict)

    def say(self, prompts: Sequence[str], tokens: int = ANSWER_TOKENS) -> list[str]:
        """As a speaker's."""
        sent = [self._as_sent(prompt, tokens) for prompt in prompts]
        parts = (sent[start : start + BATCH] for start in range(0, len(sent), BATCH))
        return [generation.text for part in parts for generation in self.engine.generate(part)]

    def forced(self, asked: Sequence[tuple[str, str]]) -> list[Forced] | None:
        """As a speaker's."""
        sent = [self._as_sent(prompt, ANSWER_TOKENS) for prompt, _ in asked]
        adapted = {n for n, request in enumerate(sent) if request.adapter}
        if self.model is None or (adapted and self.reader is None):
            return None
        found: dict[int, Forced] = {}
        for part, folder in ((sorted(set(range(len(sent))) - adapted), None), (sorted(adapted), self.reader)):
            if part:
                with _adapted(self.model, folder):
                    found |= zip(part, forced(self.model, [(sent[n].prompt or "", asked[n][1]) for n in part]), strict=True)
        return [found[n] for n in range(len(sent))]

    def _as_sent(self, prompt: str, tokens: int) -> Request:
        """The request that reaches the engine."""
        request = completion(prompt.rstrip(), tokens)
        if self.router is None:
            return request
        if (prompt, tokens) not in self._sent:
            sent = self.router.route(TENANT, request, engine=self.engine, via=self.via).request
            self._sent[prompt, tokens] = replace(sent, max_tokens=min(tokens, sent.max_tokens))
        return self._sent[prompt, tokens]


@contextmanager
def _adapted(model: CausalModel, folder: Path | None) -> Iterator[None]:
    """The model with an adapter of PEFT's for as long as the block lasts."""
    if folder is None:
        yield
        return
    from peft import PeftModel

    needed = [weight.requires_grad for weight in model.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers under an old name
        tuned: Any = PeftModel.from_pretrained(model.model, str(folder))
    try:
        yield
    finally:
        tuned.unload()
        model.model.__dict__.pop("peft_config", None)  # else the next adapter warns of this one
        for weight, is_needed in zip(model.model.parameters(), needed, strict=True):
            weight.requires_grad_(is_needed)
