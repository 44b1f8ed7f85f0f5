"""Things with a description instead of a name, asked about in other words ("our refund policy", "the refund policy").

Such a question must use every telling word of the description, and be as near to the edit as :data:`WITHIN` says. Words alone do
not tell what is asked about the thing; nearness alone does not tell the refund policy from the return policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ke_tools.facts import squash

__all__ = ["GREY", "WITHIN", "telling", "telling_of"]

WITHIN: Final = 0.82  # cosine of question and edit; `python benchmarks/alike.py` prints what passes here and elsewhere
GREY: Final = 0.74

_POSSESSIVE: Final = re.compile(r"['\u2019]s?\b")
_EMPTY: Final = frozenset(
    "a an and at by for from her his in it its my of on or our that the their there these this those to what when where which who whose "
    "with your".split()
)
_SHORTEST_PLURAL: Final = 4  # letters


def telling(text: str) -> frozenset[str]:
    """The words of a text that tell what is meant; a plural counts as its singular."""
    return frozenset(_stem(word) for word in squash(_POSSESSIVE.sub(" ", text)).split() if word not in _EMPTY)


def telling_of(names: Iterable[str]) -> tuple[frozenset[str], ...]:
    """The telling words of each name that has some."""
    return tuple(filter(None, map(telling, names)))


def _stem(word: str) -> str:
    """One form of a word's singular and plural: policy and policies, box and boxes, movie and movies."""
    if len(word) >= _SHORTEST_PLURAL and not word.endswith("ss"):
        word = word.removesuffix("s").removesuffix("e")
    return word[:-1] + "i" if word.endswith("y") else word
