"""Edits that say two things of the same: the memory takes the question of the one for a question about the other.

Two wordings whose relation nobody recognises can ask for the same, and no ledger sees it. From the memory both facts go into the context;
in the weights a question has one answer, and each edit's own probes would not show which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ke_tools.facts import Edit, squash
from ke_tools.memory.scope import Reading

if TYPE_CHECKING:
    from ke_tools.memory.scope import Scope

__all__ = ["contradicted"]


def contradicted(scope: Scope, tenant: str, climbing: Sequence[Edit], carried: Sequence[Edit]) -> dict[str, str]:
    """Of edits that are to climb, those that another one contradicts, and why.

    What is carried already stays; of two that are to climb, the later does.
    """
    kept, found = list(carried), dict[str, str]()
    for edit in sorted(climbing, key=lambda one: one.revision, reverse=True):
        against = [one for one in kept if _says_otherwise(edit, one)]
        other = next((one for one in against if one.id in _about(scope, tenant, edit) or edit.id in _about(scope, tenant, one)), None)
        if other is None:
            kept.append(edit)
        else:
            found[edit.id] = f"{other.id} says {other.fact.target!r} of the same; only one of the two can be in the weights"
    return found


def _about(scope: Scope, tenant: str, edit: Edit) -> set[str]:
    """The edits that the memory takes the edit's own prompt to be about."""
    decision = scope.decide(tenant, Reading(text=edit.fact.prompt))
    return {hit.edit.id for hit in decision.hits} if decision.zone == "in" else set()


def _says_otherwise(one: Edit, other: Edit) -> bool:
    """Whether two edits have a subject in common that they cannot both be right about, if they speak of the same."""
    same = squash(one.fact.subject) == squash(other.fact.subject)
    return same and one.functional and other.functional and squash(one.fact.target) != squash(other.fact.target)
