"""What generates text: the one seam between ke-tools and whatever runs the model.

The in-process engine (:mod:`ke_tools.servers.engines.hf`) and vLLM implement :class:`Engine`; the router and the
verifier know nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Message = Mapping[str, Any]  # as in the OpenAI API: {"role": …, "content": text or parts}
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation. Exactly one of ``prompt`` (completed as it is) and ``messages`` (through the chat template)."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    max_tokens: int = 128
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # None: none; k: the chosen token's and the k likeliest ones'
    adapter: str = ""  # a loaded adapter, or several at once joined by "+" in any order; "" is the base model, bit for bit


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One generated token with its log-probability and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a streamed answer; the last one carries the finish reason and the whole :class:`Generation`."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finished: Generation | None = None


class Engine(Protocol):
    """A loaded model that answers."""

    @property
    def model_id(self) -> str:
        """The name under which the base model is served."""

    @property
    def fingerprint(self) -> str:
        """Hash over the base weights (``sha256:…``), or of another kind where these are out of reach."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the loaded adapters (``reader``, releases …)."""

    @property
    def chat_roles(self) -> frozenset[str]:
        """Roles that the chat template accepts directly before the last user turn; empty without a chat template."""

    def count_tokens(self, request: Request) -> int:
        """Count the prompt's tokens, the chat template included."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer all, batched, in order; blocks the calling thread."""

    def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Answer piece by piece; closing the iterator cancels the generation."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class Scores(Protocol):
    """What some engines can do beside: say how likely a text is that they would not have said."""

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[float | None]:
        """Give the log-probability of each target behind its request, ``None`` where it cannot stand there as tokens of its own.

        Behind a prompt to be completed a space stands before it; an answer to messages begins with it.
        """


@runtime_checkable
class Troubled(Protocol):
    """What engines can say beside whose model may be away for a while: why it is."""

    @property
    def trouble(self) -> str:
        """Why nobody is answered just now; empty where all are."""


def tells_weights(engine: Engine) -> bool:
    """Whether the fingerprint is of the weights, so that what the model said once it says again."""
    return engine.fingerprint.startswith("sha256:")


def one_turn(question: str, engine: Engine, max_tokens: int) -> Request:
    """A greedy request that asks ``question`` as one chat turn, or as a completion of a model without a chat template."""
    if engine.chat_roles:
        return Request(messages=({"role": "user", "content": question},), max_tokens=max_tokens)
    return Request(prompt=question, max_tokens=max_tokens)
