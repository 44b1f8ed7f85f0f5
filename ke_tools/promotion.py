"""The ladder: edits climb into the weights, or into a codebook, only when the gate accepts them there; else they stay in memory.

========  ==========================================================================================
rung      what is tried
========  ==========================================================================================
memit     all edits in the weights at once. What the gate refuses shrinks: the edits by which it falls
          short leave, else the worse half; what is left is a new candidate, judged by fresh probes
grace     what did not get in, in a codebook beside the weights' change; it shrinks the same way
memory    the rest stays where it is
========  ==========================================================================================

Every candidate of a ladder has its number, by which the gate shares out the risk of a wrong acceptance (:mod:`ke_tools.verify.gate`).
What holds a model stands behind :class:`Maker`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit
from ke_tools.verify.gate import Verdict, decide
from ke_tools.verify.policy import Policy
from ke_tools.verify.scorecard import Outcome

if TYPE_CHECKING:
    from ke_tools.releases import Release

__all__ = ["Candidate", "Climb", "Maker", "Method", "Rung", "Trial", "climb", "shrunk"]

Method = Literal["auto", "memit", "grace"]
Tell = Callable[[str, int, int, str], None]

METHODS: Final = ("auto", "memit", "grace")
MOST_TRIALS: Final = 5  # of a rung


class Rung:
    """Where an edit ended."""

    MEMIT: Final = "memit"
    GRACE: Final = "grace"
    MEMORY: Final = "memory"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A release that nobody is served by yet."""

    release: Release
    in_weights: tuple[Edit, ...]
    in_codebook: tuple[Edit, ...]
    perplexity: float  # of plain text, as a share of the unedited model's
    growth: float  # the largest of a layer's changes, as a share of the weight's norm

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All that it carries."""
        return (*self.in_weights, *self.in_codebook)


class Maker(Protocol):
    """What makes candidates and asks them."""

    def make(self, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]) -> Candidate:
        """Plan from the base weights, and write a release."""

    def judge(
        self, candidate: Candidate, edits: Sequence[Edit], earlier: Sequence[Edit], policy: Policy, number: int
    ) -> tuple[Verdict, Sequence[Outcome]]:
        """Ask a candidate about edits with probes that no candidate before was asked, until the gate decides."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate with what the gate said of it."""

    rung: str
    edit_ids: tuple[str, ...]  # that it was judged by
    release: str
    verdict: Verdict

    @property
    def in_words(self) -> str:
        """E.g. ``MEMIT with 10 edits refused: same subject .71 on 48 probes, …``."""
        count = f"{len(self.edit_ids)} edit{'' if len(self.edit_ids) == 1 else 's'}"
        return f"{self.rung.upper()} with {count} {self.verdict.in_words}"

    def as_dict(self) -> dict[str, Any]:
        """Render for programs."""
        told = {"rung": self.rung, "edit_ids": list(self.edit_ids), "release": self.release, "in_words": self.in_words}
        return {**told, "verdict": self.verdict.as_dict()}


@dataclass(frozen=True, slots=True)
class Climb:
    """How a ladder was walked to its end."""

    candidate: Candidate | None  # the last one that was accepted; None where nothing was
    rungs: dict[str, tuple[str, str]]  # edit → rung and why
    trials: tuple[Trial, ...]
    outcomes: tuple[Outcome, ...]  # of the accepted candidates


@dataclass(slots=True)
class _Ladder:
    """A walk under way."""

    maker: Maker
    policy: Policy
    tell: Tell
    earlier: Sequence[Edit]
    trials: list[Trial] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def rung(self, name: str, group: Sequence[Edit], make: Callable[[Sequence[Edit]], Candidate]) -> Candidate | None:
        """Try a group, and ever smaller parts of it."""
        for _ in range(MOST_TRIALS):
            if not group:
                return None
            number = len(self.trials) + 1
            self.tell(name, len(self.trials), len(self.trials) + 1, f"candidate {number}: {name.upper()} with {len(group)} edits")
            try:
                candidate = make(group)
            except InvalidInput:  # nothing can be said of the others
                group = self._fitting(name, group, make)
                continue
            verdict, outcomes = self.maker.judge(candidate, group, self.earlier, self.policy, number)
            trial = Trial(name, tuple(edit.id for edit in group), candidate.release.name, verdict)
            self.trials.append(trial)
            if verdict.decision == "accepted":
                self.outcomes += outcomes
                self.reasons |= dict.fromkeys(trial.edit_ids, trial.in_words)
                return candidate
            left = (
                shrunk(group, outcomes, self.policy, number + 1) if outcomes else self._fitting(name, group, make)
            )  # nothing is asked beyond a limit
            self.reasons |= {edit.id: trial.in_words for edit in group if edit not in left and outcomes}
            group = left
        self.reasons |= {edit.id: f"{name.upper()} was not accepted in {MOST_TRIALS} candidates" for edit in group}
        return None

    def _fitting(self, name: str, group: Sequence[Edit], make: Callable[[Sequence[Edit]], Candidate]) -> list[Edit]:
        """Those that can be planned together within the policy's limits, by bisecting; the others are told why not."""
        kept: list[Edit] = []
        waiting = _halves(group)  # all together they do not fit
        while waiting:
            part = waiting.pop()
            self.tell(name, len(kept), len(group), f"{name.upper()}: looking for what keeps {len(group)} edits out")
            if not (obstacle := self._obstacle([*kept, *part], make)):
                kept += part
            elif len(part) > 1:
                waiting += _halves(part)
            else:
                self.reasons[part[0].id] = f"{name.upper()} with it {obstacle}"
        return kept

    def _obstacle(self, group: Sequence[Edit], make: Callable[[Sequence[Edit]], Candidate]) -> str:
        try:
            candidate = make(group)
        except InvalidInput as error:
            return f"could not be planned: {error.message}"
        verdict = decide((), self.policy, perplexity=candidate.perplexity, growth=candidate.growth)
        return verdict.in_words if verdict.decision == "refused" else ""


def climb(
    edits: Sequence[Edit],
    maker: Maker,
    *,
    policy: Policy,
    method: Method = "auto",
    in_weights: Sequence[Edit] = (),
    in_codebook: Sequence[Edit] = (),
    tell: Tell = lambda *_: None,
) -> Climb:
    """Walk the ladder.

    Args:
        edits: that shall climb.
        maker: makes candidates.
        policy: what the gate asks.
        method: one rung alone, or both.
        in_weights: edits that were promoted before and are planned with them; none may be lost.
        in_codebook: the same, of the codebook.
        tell: hears (stage, done, total, message); what it raises ends the walk, and nothing was changed.

    Raises:
        InvalidInput: there is no such method.
    """
    if method not in METHODS:
        raise InvalidInput(f"there is no method {method!r} to promote by.", f"Use one of {', '.join(METHODS)}.")
    ladder = _Ladder(maker, policy, tell, (*in_weights, *in_codebook))
    found: Candidate | None = None
    if method != "grace":
        found = ladder.rung(Rung.MEMIT, edits, lambda group: maker.make([*in_weights, *group], in_codebook))
    weights = tuple(found.in_weights) if found else tuple(in_weights)
    inside = {edit.id for edit in weights}
    rest = [edit for edit in edits if edit.id not in inside]
    if found is not None:  # the codebook makes another release of them
        ladder.earlier = found.edits
    if method != "memit" and rest:
        found = ladder.rung(Rung.GRACE, rest, lambda group: maker.make(weights, [*in_codebook, *group])) or found
    return Climb(found, _rungs(edits, found, ladder.reasons), tuple(ladder.trials), tuple(ladder.outcomes))


def shrunk(group: Sequence[Edit], outcomes: Sequence[Outcome], policy: Policy, candidate: int) -> list[Edit]:
    """What is left of a refused group: without the edits by which it falls short, the worst first; else without its worse half.

    In each dimension what is left shall have failed no more often than the policy allows the next ``candidate``, so that fresh probes can
    show the least. Where nothing does, only those with a failure leave, if they are fewer than half. One that was asked nothing counts as
    one that failed nothing. Of a single edit nothing is left.
    """
    telling = [outcome for outcome in outcomes if outcome.is_telling]
    allowed = {dimension: policy.allowed(dimension, candidate) for dimension in policy.minima}
    left = list(group)
    while left and (blamed := _blamed(left, telling, allowed)):
        left = [edit for edit in left if edit.id != blamed]
    if len(left) < len(group) or len(group) == 1:
        return left if len(group) > 1 else []
    failed = Counter(outcome.probe.edit_id for outcome in telling if not outcome.passed)
    half = (len(group) + 1) // 2
    clean = sum(not failed[edit.id] for edit in group)
    better = {edit.id for edit in sorted(group, key=lambda edit: failed[edit.id])[: clean if half < clean < len(group) else half]}
    return [edit for edit in group if edit.id in better]


def _blamed(left: Sequence[Edit], telling: Sequence[Outcome], allowed: Mapping[str, float]) -> str:
    """The edit to whom most is due of what some dimension lacks; "" where none lacks anything."""
    ids = {edit.id for edit in left}
    lacking: dict[str, float] = {}  # failures beyond what is wished for, by edit, of the dimension that lacks most
    for dimension, share in allowed.items():
        excess = defaultdict[str, float](float)
        for outcome in telling:
            if outcome.probe.dimension == dimension and outcome.probe.edit_id in ids:
                excess[outcome.probe.edit_id] += (not outcome.passed) - share
        if sum(excess.values()) > max(0.0, sum(lacking.values())):
            lacking = dict(excess)
    return max(lacking, key=lambda edit_id: lacking[edit_id], default="")


def _halves(group: Sequence[Edit]) -> list[Sequence[Edit]]:
    """The second and the first half; of a single edit, that."""
    middle = len(group) // 2
    return [part for part in (group[middle:], group[:middle]) if part]


def _rungs(edits: Sequence[Edit], found: Candidate | None, reasons: dict[str, str]) -> dict[str, tuple[str, str]]:
    weights = {edit.id for edit in found.in_weights} if found else set()
    codebook = {edit.id for edit in found.in_codebook} if found else set()
    rung = {edit.id: Rung.MEMIT if edit.id in weights else Rung.GRACE if edit.id in codebook else Rung.MEMORY for edit in edits}
    return {edit.id: (rung[edit.id], reasons.get(edit.id, "")) for edit in edits}
