"""What a question asks of a subject, against what an edit says of it: the trained scorer, and the plain cosine where there is none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.embedding import Embedder
from ke_tools.memory.scope.graph import Graph
from ke_tools.memory.scope.network import WEIGHTS
from ke_tools.memory.scope.remembering import Remembered

__all__ = ["CARD", "LONGEST_TARGET", "CosineScorer", "Pair", "Scorer", "TrainedScorer", "shipped_folder"]

CARD: Final = "card.json"
LONGEST_TARGET: Final = 60  # characters of it that are read
_CACHED: Final = 100_000  # pairs
_AT_ONCE: Final = 32
_REMEDY: Final = "Install ke-tools again, or train one: ke-tools scope train."


class Pair(NamedTuple):
    """A question and an edit's wording, both with the subject masked and then made neutral, and the edit's target."""

    asked: str
    edit: str
    target: str = ""

    @property
    def told(self) -> str:
        """The edit as the trained scorer reads it."""
        return f"{self.edit} {self.target[:LONGEST_TARGET]}".strip()


class Scorer(Protocol):
    """Judges pairs."""

    @property
    def within(self) -> float:
        """From this probability of *same* on, a question is about the edit, unless the edit has a threshold of its own."""

    @property
    def grey(self) -> float:
        """From this probability of *same* on, it may be."""

    @property
    def fingerprint(self) -> str:
        """What scores depend on."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return for each pair the probabilities of *same* and of *open* (the answer needs the fact, or may speak of it); (n, 2)."""


class TrainedScorer:
    """MiniLM, trained, with a classifier (:mod:`ke_tools.memory.scope.network`); thread safe, keeps what it judged last."""

    def __init__(self, folder: Path, *, minilm: Path | None = None, cache: Path | None = None) -> None:
        """Read the card of a trained scorer; the model is loaded with the first pair.

        Raises:
            ModelUnavailable: the folder holds none, or a damaged one.
        """
        try:
            self.card: Mapping[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
            self.within = float(self.card["thresholds"]["in"])
            self.grey = float(self.card["thresholds"]["grey"])
            self.fingerprint = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()[:16]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                f"the scope scorer in {folder} cannot be read: {error}", "Install ke-tools again or train it."
            ) from error
        self._graph = Graph(minilm, scorer=folder / WEIGHTS, cache=cache)
        self._judged = Remembered[Pair](_CACHED, _AT_ONCE, self._judge, lambda pair: len(pair.asked) + len(pair.told))

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Judge."""
        return np.stack(self._judged.of(pairs)) if pairs else np.zeros((0, 2), np.float32)

    def _judge(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        logits, _ = self._graph.run([(pair.asked, pair.told) for pair in pairs])
        return _softmax(logits)[:, :2]


class CosineScorer:
    """For embedders that no scorer was trained on: the cosine of question and edit; nothing is *open*."""

    def __init__(self, embedder: Embedder, *, within: float = 0.7, grey: float = 0.6) -> None:
        self._embedder = embedder
        self.within = within
        self.grey = grey
        self.fingerprint = f"cosine:{embedder.fingerprint}"

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Compare."""
        if not pairs:
            return np.zeros((0, 2), np.float32)
        asked = self._embedder.encode([pair.asked for pair in pairs])
        edits = self._embedder.encode([pair.edit for pair in pairs])
        return np.stack([(asked * edits).sum(1), np.zeros(len(pairs), np.float32)], axis=1)


def shipped_folder() -> Path:
    """Where the scorer lies that comes with the package."""
    return Path(str(resources.files(__package__))) / "scorer"


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True), dtype=np.float32)
