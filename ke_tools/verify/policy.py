"""What the gate asks of a candidate: all its numbers, their defaults, and how the risk of a wrong acceptance is spent."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, Self, get_args

from ke_tools.errors import InvalidInput
from ke_tools.verify.rates import at_least

__all__ = ["Memory", "Policy"]

Memory = Literal["fallback", "off"]

_COUNTS: Final = ("probes", "most", "of_each")
_LIMITS: Final = ("perplexity", "growth")
_NO_MINIMA: Final = frozenset({*_COUNTS, *_LIMITS, "alpha", "memory_after_promotion"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    r"""Least shares of passed probes, each to be shown by a lower bound; 0: not asked about, only told where it was measured.

    ``alpha`` is the chance with which a whole ladder of candidates may end in a wrong acceptance (see :mod:`ke_tools.verify.gate`).
    Candidate $j$ spends $1/(j(j+1))$ of it, its look $k$ at the probes $2^{-k}$ of that:
    $\sum_{j \ge 1} \sum_{k \ge 1} \frac{2^{-k}}{j(j+1)} = 1$, however many there are of both.

    Raises:
        InvalidInput: a number is out of its range, or no candidate could pass.
    """

    reliability: float = 0.90
    generalisation: float = 0.50
    locality_same_subject: float = 0.85
    locality_other_subject: float = 0.90
    forgetfulness: float = 0.85
    distracting_prefix: float = 0.0
    other_tasks: float = 0.0
    portability_alias: float = 0.0
    portability_reversed: float = 0.0
    portability_hop: float = 0.0
    fluency: float = 0.0
    earlier: float = 0.90  # of edits promoted before
    perplexity: float = 1.02  # at most, as a share of the unedited model's
    growth: float = 12.0  # at most, of a layer: the change as a share of the weight, by norm (MEMIT: thimble, fifty facts: 7 to 10)
    probes: int = 40  # a dimension, at least
    of_each: int = 2  # edit and dimension, at the first look: what is refused must shrink by what is to blame
    most: int = 320  # to be asked in a dimension; then it stays undecided
    alpha: float = 0.05
    memory_after_promotion: Memory = "fallback"  # what :mod:`ke_tools.verify.answered` makes of it

    def __post_init__(self) -> None:
        """Check every number."""
        for field in fields(self):
            self._check(field.name, getattr(self, field.name))
        if self.of_each < 0:
            raise InvalidInput(f"of_each of a policy is {self.of_each}.", "Give a number of probes, from 0.")
        if not 0 < self.probes <= self.most:
            raise InvalidInput(
                f"the policy asks for {self.probes} to {self.most} probes.", "Let probes be at least 1, and most no less than probes."
            )
        for name, minimum in self.minima.items():
            if (needed := self.needed(name)) > self.most:
                raise InvalidInput(
                    f"nothing could pass {name} = {minimum}: with no failure at all it takes {needed} probes, and most is {self.most}.",
                    "Lower it, or raise most.",
                )

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """The defaults with some numbers replaced.

        Raises:
            InvalidInput: a name is unknown, or as for the class.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise InvalidInput(f"a policy has no {', '.join(map(repr, unknown))}.", f"It has: {', '.join(known)}.")
        return cls(**given)

    @property
    def minima(self) -> dict[str, float]:
        """The least share by dimension, where one is asked for."""
        names = (field.name for field in fields(self) if field.name not in _NO_MINIMA)
        return {name: getattr(self, name) for name in names if getattr(self, name) > 0}

    def risk(self, candidate: int, look: int) -> float:
        """What the ``look``-th look at the ``candidate``-th candidate may spend of ``alpha``; both count from 1."""
        return float(self.alpha / (candidate * (candidate + 1)) / 2**look)

    def needed(self, dimension: str, candidate: int = 1) -> int:
        """The fewest probes with which a first look can accept when all pass, as the minimum to the power of their number is its risk."""
        return math.ceil(math.log(self.risk(candidate, 1)) / math.log(getattr(self, dimension)))

    def size(self, dimension: str, candidate: int, look: int, edits: int = 1) -> int:
        """How many probes a look is at: at the first enough for an acceptance and for each edit, then twice as many, up to ``most``."""
        first = max(self.probes, self.needed(dimension, candidate), self.of_each * edits)
        return int(min(self.most, first * 2 ** (look - 1)))

    def allowed(self, dimension: str, candidate: int) -> float:
        """The share of failures with which the ``most`` probes show the least at the first look at a candidate."""
        n, least, risk = self.most, getattr(self, dimension), self.risk(candidate, 1)
        failures = bisect_right(range(n), risk, key=lambda lost: at_least(n - lost, n, least)) - 1
        return max(0, failures) / n

    def _check(self, name: str, value: Any) -> None:
        if name == "memory_after_promotion":
            if value not in get_args(Memory):
                raise InvalidInput(f"{name} of a policy is {value!r}.", f"Use one of {', '.join(get_args(Memory))}.")
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput(f"{name} of a policy is {value!r}.", "Give a number.")
        if name in _COUNTS and not isinstance(value, int):
            raise InvalidInput(f"{name} of a policy is {value!r}.", "Give a whole number of probes.")
        if name == "alpha" and not 0 < value < 0.5:  # noqa: PLR2004  beyond, the bound would lie above the estimate
            raise InvalidInput(f"alpha of a policy is {value}.", "Give a chance above 0 and below 0.5, e.g. 0.05.")
        if name in _LIMITS and value <= 0:
            raise InvalidInput(f"{name} of a policy is {value}; nothing could pass.", "Give a number above 0.")
        if name not in _NO_MINIMA and not 0 <= value < 1:
            raise InvalidInput(
                f"{name} of a policy is {value}.", "Give a share from 0 up to, but without, 1: no number of probes can show that all pass."
            )
