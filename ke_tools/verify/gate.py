r"""Whether a candidate may go into the weights: when its probes show that it is good enough, not when they fail to show the contrary.

**The unit is the probe.** The claim is about the facts of the batch, so what is unknown is the share $p$ of all probes *about these facts*
that pass; what is drawn at random are the probes. (The cluster-robust errors of a scorecard answer another question: how would other
facts fare?) Let $X$ of $n$ probes pass, and $m$ be the least share that the policy asks for.

**The bound** is the exact one of Clopper and Pearson 1934, one-sided: $L_\alpha(x, n)$ is the $p$ at which $P_p(X \ge x) = \alpha$. As
$P_p(X \ge x)$ rises with $p$,

$$L_\alpha(x, n) \ge m \iff P_m(X \ge x) \le \alpha \quad (1)$$

and where $p \le m$ this happens with a chance of at most $\alpha$. Several probes are drawn for each edit, and from finitely many without
putting back; both make $X$ a sum of unlike independent trials (Vatutin and Mikhailov 1982), whose tail from $np + 1$ on is no heavier than
the binomial one (Hoeffding 1956), so (1) errs on the safe side.

**What counts.** An answer that must not change counts where the unedited model's was right, or where nobody can tell; what a model does not
know drifts with any change of its weights, and shows nothing. That depends on the unedited model alone, so all of this holds for the rest.

**Looks.** Who looks again and again until the bound is reached reaches it in the end. So the $k$-th look at the $j$-th candidate tests (1)
at $\alpha_{jk} = \alpha \, 2^{-k} / (j(j+1))$, and by the union bound

$$P(\text{any look at any candidate accepts wrongly}) \le \sum_{j,k} \alpha_{jk} = \alpha. \quad (2)$$

This covers the whole ladder, bisection and GRACE included, on one condition: a candidate that was chosen by what earlier probes gave is
judged by *fresh* ones (:class:`~ke_tools.verify.supply.Supply` with another ``draw``); asked again, those that chose it would pass.

**Dimensions.** A candidate is accepted only when all dimensions are. If one of them is too bad, it has to be accepted for the candidate to
be, so its $\alpha$ is the candidate's, and nothing has to be shared out among dimensions. One that is decided stays so.

**Refusal** is by the upper bound, $P_m(X \le x) \le \alpha_{jk}$. It claims nothing but that asking on is a waste.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Literal

from ke_tools.verify.dimensions import LABELS
from ke_tools.verify.policy import Policy
from ke_tools.verify.rates import at_least, at_most, clopper_pearson
from ke_tools.verify.scorecard import Outcome

__all__ = ["Decision", "Finding", "Limit", "Measure", "Policy", "Verdict", "decide", "look_until_clear"]

Decision = Literal["accepted", "refused", "undecided", "not measured", "only told"]
Measure = Callable[[Mapping[str, int]], Sequence[Outcome]]

_MUST_BE_MEASURED: Final = "reliability"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the probes of a dimension say."""

    dimension: str
    decision: Decision
    passed: int
    n: int
    minimum: float
    risk: float  # what the look spent at which it was decided
    worst_case: str
    least: int = 0  # probes that had to be there

    @property
    def low(self) -> float:
        """The exact lower bound, wrong with a chance of ``risk``."""
        return _bounds(self.passed, self.n, self.risk)[0]

    @property
    def high(self) -> float:
        """The exact upper bound, wrong with a chance of ``risk``."""
        return _bounds(self.passed, self.n, self.risk)[1]

    @property
    def in_words(self) -> str:
        """E.g. ``same subject .86 on 140 probes, at least .782 where .85 is asked``."""
        label = LABELS.get(self.dimension, self.dimension)
        if self.decision == "not measured":
            return f"{label} not measured"
        if not self.n:
            return f"{label} not asked about"
        told = f"{label} {_share(self.passed / self.n, 2)} on {self.n} probes"
        if self.decision == "only told":
            return told
        if self.n < self.least:
            return f"{told}, of at least {self.least}"
        bound = f"at most {_share(self.high, 3)}" if self.decision == "refused" else f"at least {_share(self.low, 3)}"
        return f"{told}, {bound} where {_share(self.minimum, 2)} is asked"

    def as_dict(self) -> dict[str, Any]:
        """Render flat, without nulls."""
        return {
            "dimension": self.dimension,
            "decision": self.decision,
            "passed": self.passed,
            "n": self.n,
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "minimum": self.minimum,
            "worst_case": self.worst_case,
            "in_words": self.in_words,
        }


@dataclass(frozen=True, slots=True)
class Limit:
    """A number that must not be larger than the policy allows."""

    name: str
    value: float | None
    maximum: float

    @property
    def decision(self) -> Decision:
        """Exact: there is nothing to draw."""
        if self.value is None:
            return "not measured"
        return "accepted" if self.value <= self.maximum else "refused"

    @property
    def in_words(self) -> str:
        """E.g. ``perplexity 1.031 where at most 1.02 is allowed``."""
        if self.value is None:
            return f"{self.name} not measured"
        return f"{self.name} {self.value:.4g} where at most {self.maximum:g} is allowed"

    def as_dict(self) -> dict[str, Any]:
        """Render flat, without nulls."""
        return {
            "name": self.name,
            "decision": self.decision,
            "value": self.value or 0.0,
            "maximum": self.maximum,
            "in_words": self.in_words,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision, with what it rests on."""

    decision: Literal["accepted", "refused", "undecided"]
    findings: tuple[Finding, ...]
    limits: tuple[Limit, ...]
    candidate: int = 1
    look: int = 1

    @property
    def is_clear(self) -> bool:
        """Whether more probes would change nothing."""
        return self.decision != "undecided"

    @property
    def in_words(self) -> str:
        """The decision with the dimensions that made it, and the worst case of these."""
        all_parts: list[Finding | Limit] = [*self.findings, *self.limits]
        refused = [part for part in all_parts if part.decision == "refused"]
        undecided = [part for part in all_parts if part.decision == "undecided"]
        parts = refused or undecided or [part for part in all_parts if part.decision != "not measured"]
        unmeasured = [] if refused else [part for part in all_parts if part.decision == "not measured"]
        told = f"{self.decision}: {'; '.join(part.in_words for part in [*parts, *unmeasured])}"
        worst = next((part.worst_case for part in parts if isinstance(part, Finding) and part.worst_case), "")
        return f"{told}; worst: {worst}" if worst else told

    def as_dict(self) -> dict[str, Any]:
        """Render for programs, without nulls."""
        return {
            "decision": self.decision,
            "in_words": self.in_words,
            "candidate": self.candidate,
            "look": self.look,
            "findings": [finding.as_dict() for finding in self.findings],
            "limits": [limit.as_dict() for limit in self.limits],
        }


def decide(
    outcomes: Sequence[Outcome],
    policy: Policy,
    *,
    candidate: int = 1,
    look: int = 1,
    before: Verdict | None = None,
    perplexity: float | None = None,
    growth: float | None = None,
) -> Verdict:
    """Look at all outcomes that there are so far of a candidate.

    A dimension without any probe is "not measured" and keeps nobody out, but for reliability; one with fewer than the policy asks for is
    undecided.

    Args:
        outcomes: of every probe asked.
        policy: what is asked of it.
        candidate: which of the ladder's it is, from 1; each has a smaller part of the risk.
        look: which look at it this is, from 1.
        before: the verdict of the look before; what it decided stays.
        perplexity: of plain text, as a share of the unedited model's.
        growth: the largest of a layer's changes, as a share of the weight's norm.
    """
    risk = policy.risk(candidate, look)
    settled = {finding.dimension: finding for finding in before.findings if finding.decision in {"accepted", "refused"}} if before else {}
    by_dimension: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in (one for one in outcomes if one.is_telling):
        by_dimension[outcome.probe.dimension].append(outcome)
    names = dict.fromkeys((*policy.minima, *by_dimension))
    findings = tuple(settled.get(name) or _finding(name, by_dimension[name], policy, risk) for name in names)
    limits = (Limit("perplexity", perplexity, policy.perplexity), Limit("growth", growth, policy.growth))
    return Verdict(_overall(findings, limits), findings, limits, candidate, look)


def look_until_clear(
    measure: Measure,
    policy: Policy,
    *,
    candidate: int = 1,
    edits: int = 1,
    perplexity: float | None = None,
    growth: float | None = None,
) -> Verdict:
    """Ask for ever more probes until the decision is clear, the policy's most are spent, or there are no more.

    Of several edits it also ends where going on as it began would end undecided; to end early accepts nothing wrongly.

    Args:
        measure: takes how many more probes of each dimension are wanted; asks as many fresh ones as there are, and gives their outcomes.
            What it raises ends the asking.
        policy: what is asked of the candidate.
        candidate: which of the ladder's it is, from 1.
        edits: of how many the candidate is judged.
        perplexity: as for :func:`decide`.
        growth: as for :func:`decide`.
    """
    outcomes: list[Outcome] = []
    look, verdict = 0, decide((), policy, candidate=candidate, look=0, perplexity=perplexity, growth=growth)
    while not verdict.is_clear:
        look += 1
        wanted = _wanted(outcomes, partial(policy.size, candidate=candidate, look=look, edits=edits), policy, verdict)
        fresh = measure(wanted) if wanted else ()
        if not fresh:
            break
        outcomes += fresh
        verdict = decide(outcomes, policy, candidate=candidate, look=look, before=verdict, perplexity=perplexity, growth=growth)
        if edits > 1 and _is_hopeless(verdict, policy):
            break
    return verdict


def _is_hopeless(verdict: Verdict, policy: Policy) -> bool:
    """Whether some dimension, going on as it began, would not be accepted with the most probes: a smaller group fares better."""
    risk = policy.risk(verdict.candidate, verdict.look + 1)
    return any(
        at_least(round(policy.most * one.passed / one.n), policy.most, one.minimum) > risk
        for one in verdict.findings
        if one.decision == "undecided" and one.n >= policy.probes
    )


def _wanted(outcomes: Sequence[Outcome], size: Callable[[str], int], policy: Policy, verdict: Verdict) -> dict[str, int]:
    asked = Counter(outcome.probe.dimension for outcome in outcomes)
    counted = Counter(outcome.probe.dimension for outcome in outcomes if outcome.is_telling)
    is_open = {finding.dimension for finding in verdict.findings if verdict.look == 0 or finding.decision == "undecided"}
    missing = {name: min(size(name) - counted[name], policy.most - asked[name]) for name in policy.minima if name in is_open}
    return {name: number for name, number in missing.items() if number > 0}


def _finding(name: str, outcomes: Sequence[Outcome], policy: Policy, risk: float) -> Finding:
    minimum = policy.minima.get(name, 0.0)
    passed, n = sum(outcome.passed for outcome in outcomes), len(outcomes)
    worst = max(outcomes, key=lambda outcome: outcome.severity, default=None)
    told = worst.in_words if worst is not None and worst.severity else ""
    return Finding(name, _decision(name, passed, n, minimum, policy, risk), passed, n, minimum, risk, told, policy.probes if minimum else 0)


def _decision(name: str, passed: int, n: int, minimum: float, policy: Policy, risk: float) -> Decision:
    if n == 0:
        return "undecided" if name == _MUST_BE_MEASURED and minimum else "not measured"
    if not minimum:
        return "only told"
    if n < policy.probes:
        return "undecided"
    if at_least(passed, n, minimum) <= risk:  # (1)
        return "accepted"
    return "refused" if at_most(passed, n, minimum) <= risk else "undecided"


def _overall(findings: Sequence[Finding], limits: Sequence[Limit]) -> Literal["accepted", "refused", "undecided"]:
    of_probes = {finding.decision for finding in findings}
    if "refused" in of_probes | {limit.decision for limit in limits}:
        return "refused"
    return "accepted" if "accepted" in of_probes and "undecided" not in of_probes else "undecided"


@cache
def _bounds(passed: int, n: int, risk: float) -> tuple[float, float]:
    return clopper_pearson(passed, n, level=1 - 2 * risk)


def _share(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else "1.0"
