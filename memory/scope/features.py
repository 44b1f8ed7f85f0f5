"""What the scorer compares: views of a text with the subject masked, and the features of a pair of their vectors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEUTRAL", "neutral", "pair_features", "resolve", "sentences_of", "views"]

NEUTRAL: Final = "X"  # stands for the subject; measured against "it", "this", "someone", the type's name
_LONGEST: Final = 1000  # characters of a text that are read, from its end
_FEWEST: Final = 3  # words of a sentence that asks something by itself
_SHORT: Final = 8  # words: "and the capital?" goes on with what was named before

_SENTENCE_END: Final = re.compile(r"(?P<mark>[.!?])[\"')\u201d]*\s+(?=[\"'(\u201c]*[A-Z0-9{])|\n+")
_ABBREVIATION: Final = re.compile(r"(?:^|[\s.(])(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Mt|No|vs|cf|e\.g|i\.e|[A-Z])$")
_PRONOUN: Final = re.compile(
    r"\b(?P<owner>its|his|their|that (?:country|city|person|company|place|film|book|team)(?:'s|\u2019s))\b|\bher\b(?P<her>\s+\w)?"
    r"|\b(?P<self>it|he|she|they|him|them|that (?:country|city|person|company|place|film|book|team)|there)\b",
    re.IGNORECASE,
)
_GOES_ON: Final = re.compile(r"^\s*(?:and|but|or|what about|how about|and what about)\b\s*", re.IGNORECASE)
_SOMEBODY: Final = re.compile(r"(?<=[\w,;:'\u2019]\s)(?!I\b)[A-Z]\w+")


def neutral(masked: str) -> str:
    """Put the neutral word where the subject was."""
    return masked.replace("{}", NEUTRAL)


def views(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Mask the subject's spans, and cut what is asked of the subject out of what stands around it.

    The last sentence is what is asked. If it names the subject, or goes on about it by a pronoun, it is the view. If it names
    somebody else, nothing is asked of the subject. Else it belongs to what stands before it ("…? Answer in one word."), and the
    views are the question that names the subject and the whole text.
    """
    masked = _masked(text, spans)
    sentences = sentences_of(masked)
    last = sentences[-1] if sentences else ""
    if "{}" in last:
        return (last,) if len(last.split()) >= _FEWEST else (masked,)
    resolved = resolve(last)
    if resolved is not None:
        return (resolved,)
    if _SOMEBODY.search(last):
        return ()
    questions = [sentence for sentence in sentences if "{}" in sentence and sentence.endswith("?")]
    return tuple(dict.fromkeys((*questions[-1:], masked)))


def resolve(text: str) -> str | None:
    """Put ``{}`` where the last sentence of a text speaks of something named before; ``None`` where it does not."""
    last = (sentences_of(text) or [""])[-1]
    replaced = _PRONOUN.sub(_subject, last)
    if replaced != last:
        return replaced
    rest = _GOES_ON.sub("", last)
    if rest != last and rest.rstrip().endswith("?") and len(rest.split()) <= _SHORT:
        return rest.rstrip("? ") + " of {}?"
    return None


def sentences_of(text: str) -> list[str]:
    """Cut a text into sentences and lines."""
    parts, start = [], 0
    for found in _SENTENCE_END.finditer(text):
        if found["mark"] == "." and _ABBREVIATION.search(text, start, found.start()):
            continue
        parts.append(text[start : found.end()].strip())
        start = found.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def pair_features(asked: NDArray[np.float32], edit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compare unit vectors row by row; (n, d) and (n, d) → (n, 2 d + 1): u·v, |u − v|, u ∗ v, each scaled to about 1."""
    d = asked.shape[-1]
    product = asked * edit
    return np.concatenate([product.sum(-1, keepdims=True), np.abs(asked - edit) * d**0.5, product * d], axis=-1, dtype=np.float32)


def _masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    parts, position = [], 0
    for start, end in sorted(spans):
        parts += [text[position:start].replace("{}", " "), "{}"]
        position = end
    masked = "".join([*parts, text[position:].replace("{}", " ")])
    return masked[-_LONGEST:].strip()


def _subject(found: re.Match[str]) -> str:
    if found["owner"]:
        return "{}'s"
    if found["self"]:
        return "{}"
    return "{}'s" + found["her"] if found["her"] else "{}"
