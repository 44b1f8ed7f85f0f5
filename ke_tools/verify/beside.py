"""What weights add to the memory: the same probes, answered by a release and by the memory without it.

Told apart is whether a probe names the edit's subject, names it otherwise, or does not name it at all, as the memory finds an edit by
its names and weights need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ke_tools import atlas
from ke_tools.facts import Edit, Probe
from ke_tools.verify.rates import cluster_of, rate
from ke_tools.verify.run import judge
from ke_tools.verify.scorecard import Outcome

__all__ = ["KINDS", "MOST", "Answered", "beside_memory", "chosen"]

MOST: Final = 96  # probes
KINDS: Final = ("subject named", "another name", "subject not named")


@dataclass(frozen=True, slots=True)
class Answered:
    """Probes answered on one way, and what that took."""

    texts: Sequence[str]
    tokens: float  # that were read for a probe, on average
    milliseconds: float  # for an answer, on average


def chosen(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Up to :data:`MOST` of those that want the target, evenly from the first to the last."""
    wanting = [one for one in outcomes if one.probe.expect == "target"]
    return wanting if len(wanting) <= MOST else [wanting[n * len(wanting) // MOST] for n in range(MOST)]


def beside_memory(edits: Sequence[Edit], outcomes: Sequence[Outcome], by: Callable[[str, list[Probe]], Answered]) -> dict[str, Any]:
    """Compare.

    Args:
        edits: whose probes these are.
        outcomes: what the release answers (:func:`chosen` ones are asked again).
        by: answers probes by ``"weights"`` or by ``"memory"``.

    Returns:
        Flat and without nulls: a row a kind of probe, the costs of both ways, and all of it in words.
    """
    asked = chosen(outcomes)
    if not asked:
        return {"measured": False, "rows": [], "in_words": "not compared with the memory: no probe wants a target"}
    probes = [one.probe for one in asked]
    weights, memory = by("weights", probes), by("memory", probes)
    by_id = {edit.id: edit for edit in edits}
    rows: dict[str, list[tuple[Probe, bool, bool]]] = {kind: [] for kind in KINDS}
    for one, ours, theirs in zip(asked, weights.texts, memory.texts, strict=True):
        kind = _kind(one.probe, by_id[one.probe.edit_id])
        rows[kind].append((one.probe, judge(one.probe, one.base, ours).passed, judge(one.probe, one.base, theirs).passed))
    told = [_row(kind, found) for kind, found in rows.items() if found]
    costs = {
        "tokens_saved": round(memory.tokens - weights.tokens, 1),
        "milliseconds_saved": round(memory.milliseconds - weights.milliseconds, 1),
    }
    return {"measured": True, "probes": len(asked), "rows": told, **costs, "in_words": _in_words(told, costs)}


def _kind(probe: Probe, edit: Edit) -> str:
    if atlas.mask(probe.prompt, [edit.fact.subject]) != probe.prompt:
        return KINDS[0]
    names = [*edit.fact.aliases, *atlas.aliases(edit.fact.subject)]
    return KINDS[1] if names and atlas.mask(probe.prompt, names) != probe.prompt else KINDS[2]


def _row(kind: str, found: Sequence[tuple[Probe, bool, bool]]) -> dict[str, Any]:
    clusters = [cluster_of(probe) for probe, _, _ in found]
    gained = [probe.prompt for probe, ours, theirs in found if ours and not theirs]
    lost = [probe.prompt for probe, ours, theirs in found if theirs and not ours]
    return {
        "kind": kind,
        "weights": rate([ours for _, ours, _ in found], clusters).as_dict(),
        "memory": rate([theirs for _, _, theirs in found], clusters).as_dict(),
        "only_weights": len(gained),
        "only_memory": len(lost),
        "gained": gained[:3],
        "lost": lost[:3],
    }


def _in_words(rows: Sequence[dict[str, Any]], costs: dict[str, float]) -> str:
    told = [
        f"{row['kind']}: weights {row['weights']['value']:.2f}, memory {row['memory']['value']:.2f} (n={row['weights']['n']})"
        for row in rows
    ]
    saved = f"{costs['tokens_saved']:.0f} tokens and {costs['milliseconds_saved']:.0f} ms less an answer"
    return f"{'; '.join(told)}; without the memory {saved}"
