"""The served model as its own judge: one token says whether a question that the scope is undecided about needs the fact.

Meant for large models; what the embedded one makes of it stands in benchmarks/LOG.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from ke_tools import prompts
from ke_tools.models.engine import Generation, Request

__all__ = ["Generates", "needs"]

_LIKELIEST: Final = 20


class Generates(Protocol):
    """What judging needs of an engine."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer all."""


def needs(engine: Generates, question: str, facts: Sequence[str], *, chats: bool) -> bool:
    """Whether "yes" is likelier than "no" as the first token of the model's verdict; one without either is a no."""
    asked = prompts.render("judge", facts=facts, question=question)
    if chats:
        request = Request(messages=({"role": "user", "content": asked},), max_tokens=1, logprobs=_LIKELIEST)
    else:
        request = Request(prompt=f"{asked}\nAnswer:", max_tokens=1, logprobs=_LIKELIEST)
    [verdict] = engine.generate([request])
    first = verdict.logprobs[0] if verdict.logprobs else None
    return first is not None and _weight(first.top, "yes") > _weight(first.top, "no")


def _weight(top: Sequence[tuple[str, float]], word: str) -> float:
    return sum(math.exp(logprob) for text, logprob in top if text.strip(" \"'*.").casefold() == word)
