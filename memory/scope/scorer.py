r"""What a question asks of a subject, against what an edit says of it: the trained scorer, and the plain cosine where there is none.

The trained scorer embeds the masked question $q$ and the masked edit $e$ (with its target, and without) by a MiniLM that was tuned so that
wordings of one relation are near each other and those of another are not. With $\cos_r(x)$ the cosine of $x$ and the nearest wording of the
relation $r$ of the inventory, a logistic regression weighs

1. $\cos(q, e)$ with and without the target,
2. $\max_r \min(\cos_r(q), \cos_r(e))$: a relation that both are near to,
3. $\max \{\cos_r(q) : \cos_r(e) < .6\}$: another relation that the question is near to,
4. $\max_r \cos_r(q)$, $\max_r \cos_r(e)$, $\max_r (\cos_r(q) - \cos_r(e))$: whether the inventory knows them at all,
5. where the edit is surely of a relation $o = \arg\max_r \cos_r(e)$, that is $\cos_o(e) \ge .8$, the lead of this one over what else may be
   asked, $\cos_o(q) - \max \{\cos_r(q) : \cos_r(e) < \cos_o(e) - .05\}$, and that it is; else 0 and 0.

Where this leaves it possible that the same is asked, a cross-encoder reads both at once (:mod:`ke_tools.memory.scope.network`), which tells
a minimum from a maximum; a second regression weighs its logit and the log odds of the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.embedding import Embedder, tuned
from ke_tools.memory.scope.graph import Graph
from ke_tools.memory.scope.inventory import NEAR, OPEN, VECTORS, Inventory, of_atlas
from ke_tools.memory.scope.network import ADAPTER, CROSSING
from ke_tools.memory.scope.remembering import Remembered

__all__ = [
    "CARD",
    "CROSSED_FROM",
    "FEATURES",
    "CosineScorer",
    "CrossEncoder",
    "Pair",
    "Scorer",
    "TrainedScorer",
    "features",
    "shipped_folder",
]

CARD: Final = "card.json"
FEATURES: Final = 9
CROSSED_FROM: Final = -4.0  # log odds from which the cross-encoder is asked; with less the question is about something else
LONGEST_TARGET: Final = 50  # characters of it that are read
_CACHED: Final = 4_000  # texts, of which each takes 13 KB with its likeness to 2,900 relations
_JUDGED: Final = 20_000  # pairs
_AT_ONCE: Final = 32
_OWN: Final = 0.8  # cosine from which an edit is surely of a relation
_AS_NEAR: Final = 0.05  # relations that the edit is nearly as near to are no others
_DOUBTFUL: Final = (0.05, 0.88)  # log odds of -3 and 2
_SURE: Final = 30.0  # log odds of a question in the edit's very words
_STEEP: Final = 20.0  # of *open*: a lead of .1 over everything else makes it sure
_REMEDY: Final = "Install ke-tools again, or train one: ke-tools scope train."


class Pair(NamedTuple):
    """A question and an edit's wording, both with the subject masked and then made neutral, and the edit's target."""

    asked: str
    edit: str
    target: str = ""

    @property
    def told(self) -> str:
        """The edit with its target."""
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
    def doubtful(self) -> tuple[float, float]:
        """Between these probabilities of *same* more wordings of the edit's relation are looked at; nowhere, if the first is the larger."""

    @property
    def fingerprint(self) -> str:
        """What scores depend on."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Return for each pair the probabilities that the same is asked, and that nothing single is (*open*); shape (n, 2)."""

    def warm(self) -> None:
        """Load what is needed, not with the first pair."""

    def rivals(self, edits: Sequence[str], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Give wordings of the inventory that ask for something else than an edit, the ``most`` nearest of them, and how many there are."""


class TrainedScorer:
    """Thread safe; keeps what it read of the texts last seen."""

    doubtful = _DOUBTFUL

    def __init__(self, folder: Path, *, cache: Path | None = None) -> None:
        """Read the card of a trained scorer; the model is loaded with the first pair.

        Raises:
            ModelUnavailable: the folder holds none, or a damaged one.
        """
        try:
            self.card: Mapping[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
            self.within = float(self.card["thresholds"]["in"])
            self.grey = float(self.card["thresholds"]["grey"])
            self._weights = np.array(self.card["weights"], np.float32)
            self._crossing = np.array(self.card["crossing"], np.float32)
            made_of = ((folder / name).read_bytes() for name in (ADAPTER, CROSSING, VECTORS, CARD))
            self.fingerprint = hashlib.sha256(b"".join(made_of)).hexdigest()[:16]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(f"the scope scorer in {folder} cannot be read: {error}", _REMEDY) from error
        if (self._weights.shape, self._crossing.shape) != ((FEATURES + 1,), (3,)):
            raise ModelUnavailable(f"the scope scorer in {folder} has not the weights that it should have.", _REMEDY)
        self._folder = folder
        self._embedder = tuned(folder, cache=cache)
        self._cross = CrossEncoder(folder, cache=cache)
        self._read = Remembered[str](_CACHED, _AT_ONCE, self._located, len)

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """Judge."""
        if not pairs:
            return np.zeros((0, 2), np.float32)
        rows = self._read.of([text for pair in pairs for text in (pair.asked, pair.told, pair.edit)])
        asked, told, edits = (np.stack(rows[part::3]) for part in range(3))
        found = features(asked, told, edits, self._embedder.dimension)
        same = found @ self._weights[:-1] + self._weights[-1]
        own = np.array([pair.asked == pair.edit for pair in pairs])
        near = np.flatnonzero((same >= CROSSED_FROM) & ~own).tolist()
        crossed = self._cross.logits([pairs[n] for n in near])
        same[near] = np.stack([same[near], crossed], axis=1) @ self._crossing[:-1] + self._crossing[-1]
        same[own] = _SURE
        likeness = asked[:, self._embedder.dimension :]
        place = self._inventory.relations.index(OPEN)
        others = np.maximum(np.delete(likeness, place, axis=1).max(1), found[:, :2].max(1))
        return np.stack([_sigmoid(same), _sigmoid(_STEEP * (likeness[:, place] - others))], axis=1)

    def warm(self) -> None:
        """Load both models."""
        self.score([Pair("X", "X")])
        self._cross.logits([Pair("Who is X?", "X is")])

    def rivals(self, edits: Sequence[str], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Find them by the tuned vectors."""
        return self._inventory.nearest(self._embedder.encode(edits), most, besides=besides)

    def _located(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, and behind them their likeness to each relation."""
        vectors = self._embedder.encode(texts)
        return np.concatenate([vectors, self._inventory.likeness(vectors)], axis=1)

    @cached_property
    def _inventory(self) -> Inventory:
        return Inventory.load(self._folder)


class CrossEncoder:
    """A scorer's cross-encoder; thread safe, keeps its judgement of the pairs last seen."""

    def __init__(self, folder: Path, *, cache: Path | None = None) -> None:
        graph = Graph(scorer=folder, crossing=True, cache=cache)
        self._read = Remembered[tuple[str, str]](
            _JUDGED, _AT_ONCE, lambda pairs: graph.run(pairs)[0][:, None], lambda pair: sum(map(len, pair))
        )

    def logits(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """The log odds that the same is asked; shape (pairs,)."""
        return np.concatenate(self._read.of([(pair.asked, pair.told) for pair in pairs])) if pairs else np.zeros(0, np.float32)


class CosineScorer:
    """For embedders that no scorer was trained on: the cosine of question and edit; nothing is *open*."""

    doubtful = (1.0, 0.0)  # a cosine is no probability, whose log odds have a mean

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

    def warm(self) -> None:
        """Load the model."""
        self.score([Pair("X", "X")])

    def rivals(self, edits: Sequence[str], most: int, *, besides: Container[str] = ()) -> tuple[list[str], int]:
        """Find them by the cosine."""
        return self._inventory.nearest(self._embedder.encode(edits), most, besides=besides)

    @cached_property
    def _inventory(self) -> Inventory:
        return Inventory.of(self._embedder, list(of_atlas()))


def features(asked: NDArray[np.float32], told: NDArray[np.float32], edits: NDArray[np.float32], d: int) -> NDArray[np.float32]:
    """Compare rows of (vector of ``d``, likeness to each relation) of questions, edits with and without target → (n, FEATURES)."""
    of_asked, of_edit = asked[:, d:], np.maximum(told[:, d:], edits[:, d:])
    columns = (
        (asked[:, :d] * told[:, :d]).sum(1),
        (asked[:, :d] * edits[:, :d]).sum(1),
        np.minimum(of_asked, of_edit).max(1),
        np.where(of_edit >= NEAR, -1, of_asked).max(1),
        of_asked.max(1),
        of_edit.max(1),
        (of_asked - of_edit).max(1),
        *_lead(of_asked, of_edit),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def _lead(of_asked: NDArray[np.float32], of_edit: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """By how much a question is nearer to the edit's own relation than to any other, and whether it has one; (n,) each."""
    own = of_edit.argmax(1)
    nearest = of_edit.max(1)
    others = np.where(of_edit < (nearest - _AS_NEAR)[:, None], of_asked, -1).max(1)
    has = nearest >= _OWN
    return np.where(has, of_asked[np.arange(len(own)), own] - others, 0), has


def shipped_folder() -> Path:
    """Where the scorer lies that comes with the package."""
    return Path(str(resources.files(__package__))) / "scorer"


def _sigmoid(odds: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -30, 30))), dtype=np.float32)
