"""A row that says what it is told: the probability of a given text, token by token, as a model in service has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ke_tools.models.engine import Request, TokenLogprob
from ke_tools.servers.engines._row import Choice, Row, Sink


class ForcedRow(Row):
    """Takes the tokens of ``target`` whatever is likeliest, and keeps their log-probabilities."""

    def __init__(self, request: Request, prompt_ids: Sequence[int], target: Sequence[int], *, tokenizer: Any, sink: Sink) -> None:
        super().__init__(request, prompt_ids, budget=len(target), tokenizer=tokenizer, sink=sink, streams=False, is_urgent=False)
        self._target = tuple(target)

    def choose(self, logits: torch.Tensor, greedy: int) -> Choice:  # noqa: ARG002  what it would have said
        """Take the next token of the target."""
        token = self._target[self._tokens]
        return Choice(token, TokenLogprob("", float(torch.log_softmax(logits.float(), dim=-1)[token])))

    def accept(self, choice: Choice, ends: frozenset[int]) -> bool:  # noqa: ARG002  a target may hold such a token
        """Count a token; say whether it was the last."""
        self._tokens += 1
        if choice.logprob is not None:
            self._logprobs.append(choice.logprob)
            self._starts.append(-1)
        return self._tokens == len(self._target) and self.finish("length")
