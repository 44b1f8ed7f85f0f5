"""Whether a new statement corrects what a live edit of the subject says, in other words than a list of relations knows.

Both directions must be sure: the new statement asks for what the edit says, and the edit for what the new one says. An edit that gave way
wrongly would be lost unseen, and one that stays wrongly is only answered beside the new one; so the bar is high.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Final

from ke_tools import atlas
from ke_tools.errors import KeToolsError
from ke_tools.facts import Edit, Fact
from ke_tools.memory.names import names_of
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.scorer import Pair, Scorer
from ke_tools.memory.slots import Slot, SlotRule, slot_of

__all__ = ["SURE", "likeness", "slot_rule"]

log = logging.getLogger(__name__)

SURE: Final = 0.9  # probability of *same*, both ways; `python benchmarks/same_slot.py` prints what passes here and elsewhere
_MOST: Final = 16  # edits of one subject that are compared, the latest


def slot_rule(live: Callable[[str], Iterable[Edit]], scorer: Callable[[], Scorer]) -> SlotRule:
    """Make a rule that knows a slot by what live edits of the subject say, where its relation is not recognised.

    Args:
        live: the live edits of whoever has a name.
        scorer: gives what judges; where it fails, the words alone decide, and nothing is lost.
    """

    def rule(fact: Fact) -> Slot:
        slot = slot_of(fact)
        if slot.relation or fact.relation:
            return slot
        others = [edit for edit in live(fact.subject) if edit.slot != slot.key and not edit.relation]
        try:
            same = _surest(fact, sorted(others, key=lambda edit: -edit.revision)[:_MOST], scorer)
        except (KeToolsError, RuntimeError) as error:
            log.warning("slots are compared by their words alone: %s", error)
            return slot
        return Slot(same.slot, "", same.functional) if same else slot

    return rule


def likeness(one: Fact, other: Fact, scorer: Scorer) -> float:
    """The lower of both directions' probabilities that one asks for what the other says."""
    texts = [neutral(atlas.mask(fact.prompt, names_of(fact.subject, fact.aliases))) for fact in (one, other)]
    scores = scorer.score([Pair(texts[0], texts[1], other.target), Pair(texts[1], texts[0], one.target)])
    return float(scores[:, 0].min())


def _surest(fact: Fact, others: list[Edit], scorer: Callable[[], Scorer]) -> Edit | None:
    scored = [(likeness(fact, edit.fact, scorer()), edit) for edit in others]
    best, edit = max(scored, key=lambda one: one[0], default=(0.0, None))
    return edit if best >= SURE else None
