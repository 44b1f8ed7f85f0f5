"""Fluency: does a model that was edited still write, or repeat itself?"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ke_tools.facts import Edit, Probe
from ke_tools.verify.about import as_written
from ke_tools.verify.asking import FLUENCY_TOKENS, unchanged
from ke_tools.verify.dimensions import FLUENCY

__all__ = ["FLUENCY", "FLUENCY_TOKENS", "entropy", "fluency", "is_fluent"]

LEAST_SHARE: Final = 0.8  # of the unedited model's entropy
_GRAMS: Final = ((2, 2 / 3), (3, 4 / 3))  # lengths of n-grams with their weights, as in the ROME paper's code
_PIECE: Final = re.compile(r"\w+|[^\w\s]")
_PROMPTS: Final = ("Tell me something about {}.", "Write a short text about {}.")


def fluency(edit: Edit) -> Iterator[Probe]:
    """To write about the subject; the answer may change, but not become poorer than :data:`LEAST_SHARE` of what it was."""
    for prompt in _PROMPTS:
        yield unchanged(edit, FLUENCY, (prompt.format(as_written(edit)), True), "data file")


def is_fluent(base: str, edited: str) -> bool:
    """Whether a text is about as rich as the unedited model's."""
    return entropy(edited) >= LEAST_SHARE * entropy(base)


def entropy(text: str) -> float:
    r"""How little a text repeats itself, in bits (the ROME paper's GE): $-\sum_k f(k) \log_2 f(k)$ over bi- and trigrams, weighted.

    Differs from the reference (rome at 0874014): words and punctuation marks are told apart by a pattern, there by NLTK's tokenizer.
    """
    pieces = _PIECE.findall(text)
    return sum(weight * _bits(list(zip(*(pieces[n:] for n in range(length)), strict=False))) for length, weight in _GRAMS) / len(_GRAMS)


def _bits(grams: Sequence[tuple[str, ...]]) -> float:
    return -sum(count / len(grams) * math.log2(count / len(grams)) for count in Counter(grams).values())
