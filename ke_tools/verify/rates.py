"""A rate never comes without its uncertainty.

Paraphrases of one fact succeed and fail together, so they are one cluster: the standard error is cluster-robust, and
:func:`cluster_of` is the only place that says what a cluster is. Nothing measured is ``value=None``, never 1.0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Self

from ke_tools.errors import InvalidInput
from ke_tools.facts import Probe

__all__ = ["NOT_MEASURED", "Rate", "at_least", "at_most", "clopper_pearson", "cluster_of", "rate", "wilson"]

Z95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of successes.

    ``low`` and ``high`` are the Wilson 95 % bounds for the number of *independent* outcomes that the clustering leaves.
    """

    value: float | None  # None: not measured
    stderr: float
    n: int
    clusters: int
    low: float
    high: float

    @property
    def measured(self) -> bool:
        """Whether there was anything to measure."""
        return self.value is not None

    def as_dict(self) -> dict[str, Any]:
        """Render flat, without nulls: ``{"measured", "value", "stderr", "n", "low", "high"}``."""
        numbers = {"value": self.value or 0.0, "stderr": self.stderr, "low": self.low, "high": self.high}
        return {"measured": self.measured, **{name: round(number, 4) for name, number in numbers.items()}, "n": self.n}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """Read what :meth:`as_dict` wrote, which does not say of how many clusters it was."""
        value = found["value"] if found["measured"] else None
        return cls(value, found["stderr"], found["n"], 0, found["low"], found["high"])

    def __str__(self) -> str:
        """Render for a terminal, e.g. ``.97 ± .01 (n=200)``."""
        if self.value is None:
            return "not measured"
        return f"{_short(self.value)} ± {_short(self.stderr)} (n={self.n})"


NOT_MEASURED: Final = Rate(None, 0.0, 0, 0, 0.0, 1.0)


def cluster_of(probe: Probe) -> str:
    """What a probe shares its fate with: all questions about one edit."""
    return probe.edit_id


def rate(outcomes: Sequence[float], clusters: Sequence[str] | None = None) -> Rate:
    """The share of successes with its cluster-robust standard error.

    The error is the sandwich estimate of a mean, with the finite-cluster correction G/(G-1). Within a single cluster it is the
    binomial one: the wordings of one fact are then the population.

    Args:
        outcomes: one per question, true or not, or how much of it is true (0 to 1); empty means not measured.
        clusters: which cluster each belongs to; without, every outcome stands for itself.

    Raises:
        InvalidInput: the lengths differ.
    """
    names = [str(i) for i in range(len(outcomes))] if clusters is None else list(clusters)
    if len(names) != len(outcomes):
        raise InvalidInput(f"{len(outcomes)} outcomes have {len(names)} clusters.", "Name the cluster of each outcome.")
    n = len(outcomes)
    if n == 0:
        return NOT_MEASURED
    mean = sum(outcomes) / n
    residuals: dict[str, float] = defaultdict(float)
    for outcome, name in zip(outcomes, names, strict=True):
        residuals[name] += outcome - mean
    groups = len(residuals)
    spread = groups / (groups - 1) * sum(r * r for r in residuals.values()) / n if groups > 1 else mean * (1 - mean)
    variance = spread / n
    low, high = wilson(mean, _independent(mean, variance, n, groups))
    return Rate(mean, math.sqrt(variance), n, groups, low, high)


def wilson(value: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share ``value`` of ``n`` independent outcomes (``n`` may be fractional)."""
    if n <= 0:
        return 0.0, 1.0
    shrunk = 1 + z * z / n
    centre = (value + z * z / (2 * n)) / shrunk
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n)) / shrunk
    # At the ends the bound is exact; rounding must not put the estimate outside its own interval.
    return min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact (conservative) interval of ``successes`` out of ``n`` independent outcomes.

    Raises:
        InvalidInput: ``successes`` is not between 0 and ``n``, or the level not between 0 and 1.
    """
    if not 0 <= successes <= n:
        raise InvalidInput(f"{successes} successes out of {n} outcomes.", "Successes lie between 0 and the number of outcomes.")
    if not 0 < level < 1:
        raise InvalidInput(f"a confidence level of {level}.", "Give a level between 0 and 1, e.g. 0.95.")
    if n == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else _bisect(lambda p: 1 - _cdf(successes - 1, n, p) < tail)
    high = 1.0 if successes == n else _bisect(lambda p: _cdf(successes, n, p) > tail)
    return min(low, successes / n), max(high, successes / n)


@cache
def at_least(k: int, n: int, p: float) -> float:
    """P(X >= k) of the binomial distribution, 0 < p < 1."""
    return _cdf(n - k, n, 1 - p)


@cache
def at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of the binomial distribution, 0 < p < 1."""
    return _cdf(k, n, p)


def _independent(mean: float, variance: float, n: int, groups: int) -> float:
    """How many independent outcomes carry the same information; where all agree, one for each cluster."""
    if variance == 0.0:
        return n if groups == 1 else groups
    return min(float(n), mean * (1 - mean) / variance)


def _cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) of the binomial distribution, 0 < p < 1."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * math.log(p) + (n - i) * math.log1p(-p) for i in range(k + 1)
    ]
    return math.fsum(math.exp(value) for value in logs)


def _bisect(below: Callable[[float], bool]) -> float:
    """The point of (0, 1) at which ``below`` turns false."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def _short(number: float) -> str:
    return "1.0" if number >= 0.995 else f"{number:.2f}".removeprefix("0")  # noqa: PLR2004  what rounds to 1.00
