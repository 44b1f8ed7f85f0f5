"""The trained part of the scorer: a small network over the features of a pair, run with numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.features import pair_features
from ke_tools.memory.scope.rivals import Rivals, wordings_key

__all__ = ["Head", "shipped"]

_WEIGHTS: Final = "head.safetensors"
_CARD: Final = "head.json"
_RIVALS: Final = "rivals"  # int8; every row is scaled to length 1
_WEIGHT: Final = 8.0  # of the margin, in log odds; margins beyond _WIDEST say no more
_WIDEST: Final = 0.4
_LEAST: Final = 1e-4


@dataclass(frozen=True, eq=False)
class Head:
    """Says how likely two masked texts ask for the same thing; layers of (weights (out, in), bias (out)), none for the cosine."""

    layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
    within: float  # from here a question is in scope
    grey: float  # from here it may be
    card: Mapping[str, Any]  # data, seed, how the thresholds were chosen, what was measured
    rivals: Rivals | None = None  # what else may be asked for; without them the network's word is the last

    @classmethod
    def cosine(cls, within: float = 0.7, grey: float = 0.6) -> Self:
        """Score by the cosine alone, for embedders without a trained head."""
        return cls((), within, grey, {})

    def score(self, asked: NDArray[np.float32], edit: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score pairs of unit vectors; (n, d) and (n, d) → n probabilities."""
        if not self.layers:
            return np.asarray((asked * edit).sum(-1), dtype=np.float32)
        x = pair_features(asked, edit)
        for weights, bias in self.layers[:-1]:
            x = np.maximum(x @ weights.T + bias, 0)
        weights, bias = self.layers[-1]
        logits = np.clip((x @ weights.T + bias)[:, 0], -30, 30)
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)

    def judge(self, scores: NDArray[np.float32], margins: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weigh scores by how much nearer the questions are to the edit than to its nearest rival (cosines); n and n → n."""
        odds = np.log((scores + _LEAST) / (1 - scores + _LEAST)) + _WEIGHT * np.clip(margins, -_WIDEST, _WIDEST)
        return np.asarray(1 / (1 + np.exp(-odds)), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the weights (float16) and the card."""
        named = ((f"{n}.{name}", part) for n, layer in enumerate(self.layers) for name, part in zip("wb", layer, strict=True))
        tensors = {name: part.astype(np.float16) for name, part in named}
        if self.rivals is not None:
            scale = np.abs(self.rivals.vectors).max(1, keepdims=True) / 127
            tensors |= {_RIVALS: np.round(self.rivals.vectors / scale).astype(np.int8)}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _WEIGHTS).write_bytes(save(tensors))
        card = {
            **self.card,
            "wordings": wordings_key(),
            "thresholds": {"in": self.within, "grey": self.grey, **self.card.get("thresholds", {})},
        }
        (folder / _CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(weights: bytes, card: str, *, where: str) -> Head:
    """Make a head of a weights file and its card.

    Raises:
        ModelUnavailable: either is damaged.
    """
    try:
        tensors, described = load(weights), json.loads(card)
        rivals = tensors.pop(_RIVALS, None)
        layers = [(tensors[f"{n}.w"].astype(np.float32), tensors[f"{n}.b"].astype(np.float32)) for n in range(len(tensors) // 2)]
        known = _scaled(rivals) if rivals is not None and described["wordings"] == wordings_key() else None
        return Head(layers, described["thresholds"]["in"], described["thresholds"]["grey"], described, known)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"the scope head in {where} cannot be read: {error}", "Install ke-tools again or train it anew.") from error


def _scaled(rows: NDArray[np.int8]) -> Rivals:
    vectors = rows.astype(np.float32)
    return Rivals(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@cache
def shipped() -> Head:
    """Return the head that comes with the package."""
    return of(Path(str(resources.files(__package__))))


def of(folder: Path) -> Head:
    """Read a head from its folder; :class:`~ke_tools.errors.ModelUnavailable` where it is missing or damaged."""
    try:
        weights, card = (folder / _WEIGHTS).read_bytes(), (folder / _CARD).read_text("utf-8")
    except OSError as error:
        raise ModelUnavailable(f"no scope head in {folder}: {error}", "Install ke-tools again or train it anew.") from error
    return read(weights, card, where=str(folder))
