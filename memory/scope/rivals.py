"""What else a question may ask for: the wordings of the atlas's other relations.

A question that is nearer to another relation's wordings than to the edit's own asks for something else, also where the edit's relation
is none that the head was trained on. Only fitted wordings are used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.features import neutral

__all__ = ["Rivals", "wordings", "wordings_key"]

_SAME: Final = 0.75  # cosine from which a relation may be the one of an edit that is not recognised


@cache
def wordings() -> tuple[tuple[str, str], ...]:
    """All fitted wordings of the atlas as (relation, neutral text), in a fixed order."""
    return tuple((r.id, neutral(text)) for r in atlas.relations().values() for text in r.fitted_statements + r.fitted_questions)


def wordings_key() -> str:
    """A hash of :func:`wordings`; vectors belong to one such list."""
    return hashlib.sha256("\n".join(f"{relation}\t{text}" for relation, text in wordings()).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Rivals:
    """Unit vectors of :func:`wordings`, shape (wordings, dimension)."""

    vectors: NDArray[np.float32]

    def against(self, relation: str, told: NDArray[np.float32], *, besides: str = "") -> NDArray[np.intp]:
        """Choose the rivals of an edit.

        Args:
            relation: the atlas's, or "" where the edit's prompt is not recognised.
            told: unit vector of the edit's masked prompt; relations that are worded like it are no rivals of an edit whose own
                relation the atlas does not know, or keeps for probing.
            besides: a relation that is no rival, for measuring.
        """
        known = atlas.relations().get(relation)
        own = {besides, known.id, known.inverse} if known else {besides}
        if known is None or known.probe:
            own |= {_relations()[row] for row in np.flatnonzero(self.vectors @ told >= _SAME)}
        kind = known.subject if known else ""
        return np.array([n for n, name in enumerate(_relations()) if name not in own and kind in {"", _kind(name)}], np.intp)

    def nearest(self, asked: NDArray[np.float32], rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Cosine of the nearest rival for each question, shape (n,); 0 without rivals."""
        if not rows.size:
            return np.zeros(len(asked), np.float32)
        return np.asarray((asked @ self.vectors[rows].T).max(1), dtype=np.float32)


@cache
def _relations() -> tuple[str, ...]:
    return tuple(relation for relation, _ in wordings())


def _kind(relation: str) -> str:
    return atlas.relations()[relation].subject
