"""What a verification found: rates with their errors, and the worst case in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

from ke_tools.facts import Probe
from ke_tools.verify.dimensions import EARLIER, FLUENCY, LABELS
from ke_tools.verify.efficiency import Efficiency
from ke_tools.verify.matching import asserts
from ke_tools.verify.rates import Rate, cluster_of, rate

__all__ = ["FORCED", "Check", "Form", "Likelihood", "Outcome", "Rates", "Scorecard", "can_tell"]

FORCED: Final = "teacher-forced"  # how the second column is labelled

Form = Literal["statement", "question", "chat", "behind a sentence"]

_COLUMNS: Final = (
    ("reliability", "reliability"),
    ("generalisation", "generalisation"),
    ("locality_same_subject", "same subject"),
    ("locality_other_subject", "other subjects"),
    ("bytes_kept", "bytes kept"),
)
_WIDEST_SUBJECT: Final = 28
_LONGEST_QUOTE: Final = 160
_MOST_ROWS: Final = 30  # of edits in a text; the document has all
_WORST_CASES: Final = 5


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Probabilities behind a prompt: of the target, and of what it replaced where that is known."""

    new: float
    old: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One probe, what was said before and after, and the verdict."""

    probe: Probe
    base: str
    edited: str
    passed: bool
    bytes_kept: bool
    leaked: bool = False  # a neighbour's answer now speaks the edit's target
    likelihood: Likelihood | None = None  # of a target, where the engine scores

    @property
    def severity(self) -> int:
        """How bad: 0 nothing, then other words, an edit that did not take, a neighbour that moved, one that speaks the target, a leak."""
        if self.passed:
            return 0
        if self.probe.expect == "refusal":
            return 5
        if self.probe.expect == "target" or self.probe.dimension == FLUENCY:
            return 2 if self.probe.dimension in {"reliability", EARLIER} else 1
        return 4 if self.leaked else 3

    @property
    def is_telling(self) -> bool:
        """Whether it can show harm: not where the unedited model was wrong anyway, for what it does not know drifts with any change."""
        return can_tell(self.probe, self.base)

    @property
    def form(self) -> Form:
        """How it was asked."""
        if self.probe.behind:
            return "behind a sentence"
        if self.probe.chat:
            return "chat"
        return "question" if self.probe.prompt.rstrip().endswith("?") else "statement"

    @property
    def in_words(self) -> str:
        """The case as a sentence."""
        if self.probe.expect == "refusal":
            how = "in chat" if self.probe.chat else "as a text to complete"
            drawn = "" if self.probe.seed is None else " at temperature 1"
            kept = "kept it back" if self.passed else "gave away what is forgotten"
            return f"asked {_quote(self.probe.prompt)} {how}{drawn} it {kept}"
        said = f"asked {_quote(self.probe.prompt)} it said {_quote(self.edited)}"
        if self.probe.expect == "target":
            return f"{said} (wanted: {_quote(self.probe.accept[0])})"
        return f"{said} (before: {_quote(self.base)})"

    def as_dict(self) -> dict[str, Any]:
        """Render flat, with the probe's origin."""
        found = self.likelihood
        forced = {"probability": round(found.new, 6)} if found else {}
        forced |= {"probability_old": round(found.old, 6)} if found and found.old is not None else {}
        return {
            "edit_id": self.probe.edit_id,
            "dimension": self.probe.dimension,
            "origin": self.probe.origin,
            "prompt": self.probe.prompt,
            "chat": self.probe.chat,
            "form": self.form,
            "expect": self.probe.expect,
            "base": self.base,
            "edited": self.edited,
            "passed": self.passed,
            "bytes_kept": self.bytes_kept,
            **forced,
        }


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of one edit, or of all."""

    reliability: Rate
    generalisation: Rate
    locality_same_subject: Rate  # the answer is kept
    locality_other_subject: Rate
    bytes_kept: Rate  # of both localities' probes: nothing at all changed

    def as_dict(self) -> dict[str, Any]:
        """Render by name."""
        return {name: getattr(self, name).as_dict() for name, _ in _COLUMNS}


@dataclass(frozen=True, slots=True)
class Check:
    """One edit's result."""

    edit_id: str
    subject: str
    passed: bool
    worst_case: str  # "" when nothing went wrong
    rates: Rates

    def as_dict(self) -> dict[str, Any]:
        """Render flat."""
        row = {"edit_id": self.edit_id, "subject": self.subject, "passed": self.passed, "worst_case": self.worst_case}
        return {**row, **self.rates.as_dict()}


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The results of a verification."""

    checks: tuple[Check, ...]
    overall: Rates
    worst_case: str
    outcomes: tuple[Outcome, ...]
    further: Mapping[str, Rate] = field(default_factory=dict)  # by dimension, where measured
    efficiency: Efficiency | None = None  # None: not measured

    @property
    def passed(self) -> bool:
        """Whether every edit took and nothing asked about moved."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Render for programs: no nulls, no unions; an unmeasured rate is ``{"measured": false, "value": 0.0, …}``."""
        return {
            "passed": self.passed,
            "checks": [check.as_dict() for check in self.checks],
            "overall": self.overall.as_dict(),
            "worst_case": self.worst_case,
            "further": [{"dimension": name, **found.as_dict()} for name, found in self.further.items()],
            "forced": [{"dimension": name, **found.as_dict()} for name, found in self._forced().items()],
            "forced_over_old": [{"dimension": name, **found.as_dict()} for name, found in self._preferred().items()],
            "efficiency": self.efficiency.in_words if self.efficiency else "not measured",
            "scorecard_text": self.text(),
        }

    def document(self, **context: Any) -> dict[str, Any]:
        """Render all there is, every question and answer too, with what the caller knows of it: model, revision, suite, seed, seconds."""
        return {
            "format": 2,
            **context,
            **self.as_dict(),
            "costs": self.efficiency.as_dict() if self.efficiency else {},
            "forms": self._forms(),
            "worst_cases": self.worst_cases,
            "outcomes": [one.as_dict() for one in self.outcomes],
        }

    @property
    def worst_cases(self) -> list[str]:
        """The gravest cases in words, no two of the same question."""
        failed = sorted((one for one in self.outcomes if one.severity), key=lambda one: -one.severity)
        return list(dict.fromkeys(one.in_words for one in failed))[:_WORST_CASES]

    def sentence(self) -> str:
        """Render in one sentence, the worst case in words."""
        took = sum(check.passed for check in self.checks)
        edits = f"{took} of {len(self.checks)} {'edit' if len(self.checks) == 1 else 'edits'} verified with {len(self.outcomes)} probes"
        return f"{edits}; worst case: {self.worst_case}." if self.worst_case else f"{edits}; nothing went wrong."

    def text(self) -> str:
        """Render for a terminal: a row an edit, the rates of all below, then the worst case."""
        headings = ["", *(label for _, label in _COLUMNS)]
        first = sorted(self.checks, key=lambda check: check.passed) if len(self.checks) > _MOST_ROWS else self.checks
        rows = [[_mark(check), *_cells(check.rates)] for check in first[:_MOST_ROWS]]
        if left := first[_MOST_ROWS:]:
            rows.append([f"  and {len(left)} more, {sum(check.passed for check in left)} passed", *("" for _ in _COLUMNS)])
        total = ["all", *_cells(self.overall, errors=True)]
        lines = _aligned([headings, *rows, total])
        if self.further:
            lines.append("; ".join(f"{LABELS[name]} {_cell(found, errors=True)}" for name, found in self.further.items()))
        lines.append(f"{FORCED}, probability of the target: {self._forced_in_words()}")
        if self.efficiency:
            lines.append(f"took {self.efficiency.in_words}")
        lines.append(f"worst case: {self.worst_case}" if self.worst_case else "nothing went wrong")
        return "\n".join(lines)

    def _forced(self) -> dict[str, Rate]:
        """The mean probability of the target, by dimension."""
        return self._of_likelihoods(lambda found: found.new)

    def _preferred(self) -> dict[str, Rate]:
        """How often the target is likelier than what it replaced, where that is known."""
        return self._of_likelihoods(lambda found: None if found.old is None else float(found.new > found.old))

    def _of_likelihoods(self, value: Callable[[Likelihood], float | None]) -> dict[str, Rate]:
        by_dimension: dict[str, list[tuple[float, str]]] = defaultdict(list)
        for one in self.outcomes:
            if one.likelihood is not None and (number := value(one.likelihood)) is not None:
                by_dimension[one.probe.dimension].append((number, cluster_of(one.probe)))
        return {name: rate([n for n, _ in rows], [cluster for _, cluster in rows]) for name, rows in by_dimension.items()}

    def _forced_in_words(self) -> str:
        over = self._preferred()
        told = [
            f"{LABELS[name]} {_cell(found, errors=True)}"
            + (f" (over the old one's in {over[name].value:.2f} of {over[name].n})" if name in over else "")
            for name, found in self._forced().items()
        ]
        return "; ".join(told) or "not measured"

    def _forms(self) -> list[dict[str, Any]]:
        """Generalisation by the form in which was asked."""
        by_form: dict[str, list[Outcome]] = defaultdict(list)
        for one in self.outcomes:
            if one.probe.dimension == "generalisation":
                by_form[one.form].append(one)
        return [{"form": form, **_rate(found).as_dict()} for form, found in sorted(by_form.items())]


def can_tell(probe: Probe, base: str) -> bool:
    """Whether a probe that the unedited model answers so can show harm (:attr:`Outcome.is_telling`)."""
    return probe.expect != "unchanged" or not probe.accept or _is_right(base, probe.accept)


@lru_cache(maxsize=8192)  # asked again at each of the gate's looks
def _is_right(answer: str, right: tuple[str, ...]) -> bool:
    return asserts(answer, right)


def _rate(outcomes: Sequence[Outcome]) -> Rate:
    return rate([one.passed for one in outcomes], [cluster_of(one.probe) for one in outcomes])


def _mark(check: Check) -> str:
    name = check.subject if len(check.subject) <= _WIDEST_SUBJECT else check.subject[: _WIDEST_SUBJECT - 1] + "…"
    return f"{'✓' if check.passed else '✗'} {name}"


def _cells(rates: Rates, *, errors: bool = False) -> list[str]:
    return [_cell(getattr(rates, name), errors=errors) for name, _ in _COLUMNS]


def _cell(rate: Rate, *, errors: bool) -> str:
    if rate.value is None:
        return "-"
    return f"{rate.value:.2f} ± {rate.stderr:.2f}" if errors else f"{round(rate.value * rate.n)}/{rate.n}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return f"'{line if len(line) <= _LONGEST_QUOTE else line[: _LONGEST_QUOTE - 1] + '…'}'"
