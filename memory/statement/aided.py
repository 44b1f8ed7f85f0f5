"""Where a sentence has several readings, a model may choose among them; it can say nothing that is no span of the sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from ke_tools import prompts
from ke_tools.memory.statement.parts import Doubt, Split

__all__ = ["SURE", "Scored", "aided"]

SURE: Final = 0.999  # of the candidates' probability, above which the first is taken; benches/statements.py says what that gives

Scored = Callable[[str, Sequence[str]], Sequence[float | None]]  # a prompt, endings → the log-probability of each


def aided(doubt: Doubt, score: Scored, *, sure: float = SURE) -> Split | Doubt:
    """Let a model choose among a doubt's candidates; where it is not sure, the doubt stays.

    Args:
        doubt: with two candidates or more; one candidate alone is nothing to choose from.
        score: gives the log-probability of endings behind a prompt.
        sure: the least share of the best candidate.
    """
    if len(doubt.candidates) < 2:  # noqa: PLR2004
        return doubt
    endings = [f"{one.subject}\nAnswer: {one.target}\n" for one in doubt.candidates]
    found = score(prompts.render("split_statement", statement=doubt.sentence), endings)
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return doubt
    best = max(range(len(known)), key=known.__getitem__)
    share = 1 / sum(math.exp(min(value - known[best], 0.0)) for value in known)
    return replace(doubt.candidates[best], how="model") if share >= sure else doubt
