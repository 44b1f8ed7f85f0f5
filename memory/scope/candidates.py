"""Which of very many edits of one subject are worth being judged, by their words alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from ke_tools import atlas
from ke_tools.facts import Edit, squash

__all__ = ["likeliest"]


def likeliest(edits: Mapping[str, Edit], asked: str, most: int) -> Mapping[str, Edit]:
    """Return up to ``most`` edits: those that share most words with what is asked, rare words first, the newest of equals."""
    if len(edits) <= most:
        return edits
    wanted = frozenset(squash(asked).split())
    shared = {edit_id: (_words(edit) | _words_of(edit.relation)) & wanted for edit_id, edit in edits.items()}
    counts = Counter(word for words in shared.values() for word in words)
    weights = {edit_id: sum(1 / counts[word] for word in words) for edit_id, words in shared.items()}
    best = sorted(edits, key=lambda edit_id: (-weights[edit_id], -edits[edit_id].revision))[:most]
    return {edit_id: edits[edit_id] for edit_id in best}


def _words(edit: Edit) -> frozenset[str]:
    return frozenset(squash(" ".join((edit.fact.prompt, *edit.fact.paraphrases))).split())


@cache
def _words_of(relation: str) -> frozenset[str]:
    known = atlas.relations().get(relation)
    return frozenset(squash(" ".join(known.fitted_statements + known.fitted_questions)).split()) if known else frozenset()
