"""How likely a question asks for an edit: by the edit's own words, and by its relation's where these leave a doubt.

Which of a relation's wordings an edit has is chance, and so is a part of what a scorer says of it. Where that is not clear, the question is
compared with some more of the relation's wordings, and the mean of all log odds counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.scorer import Pair, Scorer

__all__ = ["Wanted", "best", "settled", "wordings_of"]

K = TypeVar("K", bound=Hashable)

_MORE: Final = 3  # wordings of its relation that a doubtful edit is judged by beside its own


@dataclass(frozen=True, slots=True)
class Wanted:
    """What asks for an edit: its wordings, masked and neutral, its target, and its relation where that is recognised."""

    texts: tuple[str, ...]
    target: str = ""
    relation: str = ""

    @property
    def key(self) -> str:
        """Equal for edits that say the same of two subjects."""
        return hashlib.sha256("\n".join((self.relation, self.target, *self.texts)).encode()).hexdigest()[:24]

    @property
    def more(self) -> tuple[str, ...]:
        """Wordings of its relation that it has not itself, questions first."""
        return tuple(text for text in _chosen(self.relation) if text not in self.texts)[:_MORE]


def best(
    scorer: Scorer, asked: Mapping[K, Sequence[str]], texts: Mapping[K, Sequence[str]], wanted: Mapping[K, Wanted]
) -> dict[K, tuple[float, float]]:
    """Of each edit the best pair of a question's view and one of some texts, as (same, open)."""
    by_text = _by_text(scorer, asked, texts, wanted)
    return {key: max((same, open_) for same, open_ in rows.reshape(-1, 2).tolist()) for key, rows in by_text.items()}


def settled(
    scorer: Scorer, asked: Mapping[K, Sequence[str]], found: Mapping[K, tuple[float, float]], wanted: Mapping[K, Wanted]
) -> dict[K, tuple[float, float]]:
    """What was found, but where that is doubtful with the mean of the log odds of it and of the relation's other wordings."""
    low, high = scorer.doubtful
    more = {key: wanted[key].more for key, (same, _) in found.items() if low < same < high and wanted[key].more}
    means = {
        key: (_mean([found[key][0], *rows[:, :, 0].max(1).tolist()]), found[key][1])
        for key, rows in _by_text(scorer, {key: asked[key] for key in more}, more, wanted).items()
    }
    return {**found, **means}


@cache
def wordings_of(relation: str) -> tuple[str, ...]:
    """The neutral wordings of a relation that training may use; none where it is not known."""
    known = atlas.relations().get(relation)
    return tuple(map(neutral, known.fitted_statements + known.fitted_questions)) if known else ()


@cache
def _chosen(relation: str) -> tuple[str, ...]:
    known = atlas.relations().get(relation)
    return tuple(dict.fromkeys(map(neutral, known.fitted_questions[:2] + known.fitted_statements[:_MORE]))) if known else ()


def _by_text(
    scorer: Scorer, asked: Mapping[K, Sequence[str]], texts: Mapping[K, Sequence[str]], wanted: Mapping[K, Wanted]
) -> dict[K, NDArray[np.float32]]:
    """The scores of each text of an edit with each view, shape (texts, views, 2)."""
    pairs = [Pair(view, text, wanted[key].target) for key, views in asked.items() for text in texts[key] for view in views]
    scores, found, start = scorer.score(pairs), {}, 0
    for key, views in asked.items():
        shape = (len(texts[key]), len(views), 2)
        end = start + shape[0] * shape[1]
        if end > start:
            found[key] = scores[start:end].reshape(shape)
        start = end
    return found


def _mean(probabilities: Sequence[float]) -> float:
    odds = [np.log(p / (1 - p)) for p in np.clip(probabilities, 1e-9, 1 - 1e-9)]
    return float(1 / (1 + np.exp(-np.mean(odds))))
