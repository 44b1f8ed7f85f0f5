"""Ask every probe twice, of the corrected model and of the base, and judge what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Probe
from ke_tools.verify.dimensions import EARLIER, FLUENCY, FURTHER, WITHHELD
from ke_tools.verify.fluency import is_fluent
from ke_tools.verify.forgotten import Keeper, shown
from ke_tools.verify.matching import asserts, bytes_kept, mentions, same_answer
from ke_tools.verify.rates import Rate, cluster_of, rate
from ke_tools.verify.scorecard import Check, Outcome, Rates, Scorecard

__all__ = ["Ask", "answer", "judge", "outcomes_of", "summarise", "verify"]

Ask = Callable[[list[Probe]], list[str]]

# An edit took when its own prompt is answered with the target in every form, three of four other wordings are too, and
# every neighbour's answer is kept.
LEAST_GENERALISATION: Final = 0.75


def verify(edits: Sequence[Edit], probes: Sequence[Probe], ask_edited: Ask, ask_base: Ask, *, keeper: Keeper | None = None) -> Scorecard:
    """Answer the probes in both views and compare.

    Args:
        edits: what is verified; an edit without probes is "not measured" and does not pass.
        probes: all their probes.
        ask_edited: answers a batch through the serving path, free generation, greedy, to the natural stop.
        ask_base: answers the same batch with the model as it is without edits.
        keeper: tells whether an answer gives away what an edit forgets.

    Raises:
        InvalidInput: a probe belongs to none of the edits, or there is an edit that forgets and no ``keeper``.
    """
    known = {edit.id: edit for edit in edits}
    for probe in probes:
        if probe.edit_id not in known:
            raise InvalidInput(f"the probe {probe.prompt!r} belongs to {probe.edit_id!r}.", "Give probes of the edits that are verified.")
    return summarise(edits, outcomes_of(edits, probes, ask_edited, ask_base, keeper=keeper))


def outcomes_of(
    edits: Sequence[Edit], probes: Sequence[Probe], ask_edited: Ask, ask_base: Ask, *, keeper: Keeper | None = None
) -> tuple[Outcome, ...]:
    """Ask and judge; what edits forget is in none of the outcomes.

    Raises:
        InvalidInput: there is an edit that forgets and no ``keeper``.
    """
    forgetting = {edit.id: edit for edit in edits if edit.fact.forget}
    outcomes = answer([probe for probe in probes if probe.expect != "refusal"], ask_edited, ask_base)
    if not forgetting:
        return outcomes
    if keeper is None:
        raise InvalidInput("nobody can tell what these edits forget.", "Give a keeper.")
    hidden = (_hidden(keeper, forgetting[o.probe.edit_id], o) if o.probe.edit_id in forgetting else o for o in outcomes)
    return (*_withheld(forgetting, probes, ask_edited, keeper), *hidden)


def _withheld(edits: Mapping[str, Edit], probes: Sequence[Probe], ask_edited: Ask, keeper: Keeper) -> tuple[Outcome, ...]:
    """Ask what must not be given away. An outcome keeps of an answer that gives it away nothing, and nowhere the value."""
    asked = [probe for probe in probes if probe.expect == "refusal"]
    outcomes = []
    for probe, text in zip(asked, ask_edited(asked) if asked else [], strict=True):
        leaks = keeper.leaks(edits[probe.edit_id], probe, text)
        outcomes.append(Outcome(shown(probe), "", "" if leaks else keeper.hidden(edits[probe.edit_id], text), not leaks, bytes_kept=False))
    return tuple(outcomes)


def _hidden(keeper: Keeper, edit: Edit, outcome: Outcome) -> Outcome:
    return replace(outcome, base=keeper.hidden(edit, outcome.base), edited=keeper.hidden(edit, outcome.edited))


def answer(probes: Sequence[Probe], ask_edited: Ask, ask_base: Ask) -> tuple[Outcome, ...]:
    """Ask each view once with all probes, and judge."""
    batch = list(probes)
    edited, base = (ask_edited(batch), ask_base(batch)) if batch else ([], [])
    return tuple(judge(probe, before, after) for probe, before, after in zip(batch, base, edited, strict=True))


def summarise(edits: Sequence[Edit], outcomes: Sequence[Outcome]) -> Scorecard:
    """What outcomes say of edits, those that the gate has gathered too."""
    checks = tuple(_check(edit, [o for o in outcomes if o.probe.edit_id == edit.id]) for edit in edits)
    further = {name: _rate_of(outcomes, name) for name in (WITHHELD, *FURTHER, EARLIER)}
    measured = {name: found for name, found in further.items() if found.measured}
    return Scorecard(checks, _rates(outcomes), _worst(outcomes), tuple(outcomes), measured)


def judge(probe: Probe, base: str, edited: str) -> Outcome:
    """One probe's verdict.

    A probe that expects the target passes when the answer asserts it and no longer what is rejected. One that expects no change
    passes when the base's short answer is still given and the edit's target is not spoken where it was not before. A text that is to be
    fluent may say anything else.
    """
    same_bytes = bytes_kept(base, edited)
    if probe.expect == "target":
        return Outcome(probe, base, edited, asserts(edited, probe.accept, probe.reject, probe.prompt), same_bytes)
    if probe.dimension == FLUENCY:
        return Outcome(probe, base, edited, is_fluent(base, edited), same_bytes)
    leaked = mentions(edited, probe.reject) and not mentions(base, probe.reject)
    return Outcome(probe, base, edited, same_bytes or (same_answer(base, edited, probe.prompt) and not leaked), same_bytes, leaked)


def _check(edit: Edit, outcomes: Sequence[Outcome]) -> Check:
    rates = _rates(outcomes)
    if edit.fact.forget:
        found = _rate_of(outcomes, WITHHELD)
        took = found.measured and _at_least(found, 1.0)
    else:
        took = rates.reliability.measured and _at_least(rates.reliability, 1.0) and _at_least(rates.generalisation, LEAST_GENERALISATION)
    kept = _at_least(rates.locality_same_subject, 1.0) and _at_least(rates.locality_other_subject, 1.0)
    return Check(edit.id, edit.fact.subject, took and kept, _worst(outcomes), rates)


def _at_least(found: Rate, least: float) -> bool:
    return found.value is None or found.value >= least


def _rates(outcomes: Iterable[Outcome]) -> Rates:
    all_of_them = list(outcomes)
    neighbours = [o for o in all_of_them if o.probe.dimension in {"locality_same_subject", "locality_other_subject"}]
    return Rates(
        reliability=_rate_of(all_of_them, "reliability"),
        generalisation=_rate_of(all_of_them, "generalisation"),
        locality_same_subject=_rate_of(all_of_them, "locality_same_subject"),
        locality_other_subject=_rate_of(all_of_them, "locality_other_subject"),
        bytes_kept=rate([o.bytes_kept for o in neighbours], [cluster_of(o.probe) for o in neighbours]),
    )


def _rate_of(outcomes: Sequence[Outcome], dimension: str) -> Rate:
    chosen = [o for o in outcomes if o.probe.dimension == dimension]
    return rate([o.passed for o in chosen], [cluster_of(o.probe) for o in chosen])


def _worst(outcomes: Sequence[Outcome]) -> str:
    worst = max(outcomes, key=lambda o: o.severity, default=None)
    return worst.in_words if worst is not None and worst.severity else ""
