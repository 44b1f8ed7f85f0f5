"""Which questions about a promoted edit its release answers by itself, so that the memory may be left out.

A promoted edit stays in the memory, as a second line. It is left out of a question only where the release's own probes show that the
weights answer that *kind* of question: of all probes of the promotion that expect a target and were asked in that form, the share that
passed is at least the policy's ``reliability`` by the exact lower bound at ``alpha``, and of the edit's own none failed and one was
asked. With ``memory_after_promotion = "off"`` all forms count together, and what they show holds for every kind of question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from ke_tools.facts import Edit, squash
from ke_tools.models.engine import Request
from ke_tools.verify.dimensions import EARLIER
from ke_tools.verify.policy import Policy
from ke_tools.verify.rates import at_least
from ke_tools.verify.scorecard import Outcome

__all__ = ["Kind", "answered", "kind_of"]

Kind = Literal["statement", "question", "chat", "other"]

_KINDS: Final[tuple[Kind, ...]] = ("statement", "question", "chat")
_EVERY: Final[tuple[Kind, ...]] = (*_KINDS, "other")
_SHOWN_BY: Final = frozenset({"reliability", "generalisation", EARLIER})


def answered(edits: Sequence[Edit], outcomes: Sequence[Outcome], policy: Policy) -> dict[str, list[Kind]]:
    """The kinds of question that the weights answer, by edit; an edit without any is left out."""
    telling = [one for one in outcomes if one.probe.dimension in _SHOWN_BY]
    by_kind: Mapping[tuple[Kind, ...], Sequence[Outcome]]
    if policy.memory_after_promotion == "off":
        by_kind = {_EVERY: telling}
    else:
        by_kind = {(kind,): [one for one in telling if one.form == kind] for kind in _KINDS}
    shown = {kinds: asked for kinds, asked in by_kind.items() if _is_shown(asked, policy)}
    found: dict[str, list[Kind]] = {}
    for edit in edits:
        for kinds, asked in shown.items():
            own = [one.passed for one in asked if one.probe.edit_id == edit.id]
            if own and all(own):
                found.setdefault(edit.id, []).extend(kinds)
    return found


def kind_of(request: Request, subject: str) -> Kind:
    """What a request is, as probes are asked: one text that names the subject as the edit does."""
    turns = request.messages or ()
    text = request.prompt if request.prompt is not None else turns[0].get("content") if len(turns) == 1 else None
    if not isinstance(text, str) or f" {squash(subject)} " not in f" {squash(text)} ":
        return "other"
    if request.prompt is None:
        return "chat"
    return "question" if text.rstrip().endswith("?") else "statement"


def _is_shown(asked: Sequence[Outcome], policy: Policy) -> bool:
    return policy.reliability > 0 and at_least(sum(one.passed for one in asked), len(asked), policy.reliability) <= policy.alpha
