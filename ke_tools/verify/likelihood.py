"""The scorecard's second column: how likely the target is behind its prompt, as the field's papers measure an edit.

Teacher-forced, of the whole target, in the edited view, beside what it replaced where that is known. It decides nothing: what a model
would say with its hand held is not what its users see. An engine that cannot score leaves the column "not measured".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ke_tools.facts import Probe
from ke_tools.verify.scorecard import Likelihood, Outcome

__all__ = ["Score", "with_likelihoods"]

Score = Callable[[Sequence[Probe], Sequence[str]], Sequence[float | None]]  # log-probabilities of texts behind probes


def with_likelihoods(outcomes: Sequence[Outcome], score: Score) -> tuple[Outcome, ...]:
    """Add to each probe that wants the target how likely that is, and how likely what it replaced."""
    wanted = [n for n, one in enumerate(outcomes) if one.probe.expect == "target"]
    asked = [(n, text) for n in wanted for text in (outcomes[n].probe.accept[0], *outcomes[n].probe.reject[:1])]
    scores = score([outcomes[n].probe for n, _ in asked], [text for _, text in asked])
    found: dict[int, list[float | None]] = {n: [] for n in wanted}
    for (n, _), value in zip(asked, scores, strict=True):
        found[n].append(None if value is None else math.exp(value))
    completed = list(outcomes)
    for n, (new, *old) in found.items():
        if new is not None:
            completed[n] = replace(completed[n], likelihood=Likelihood(new, old[0] if old else None))
    return tuple(completed)
