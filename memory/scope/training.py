"""Training of the scope head: pairs of masked texts that ask, or do not ask, for the same thing.

What only probes may use never enters; :func:`training_texts` lists what does.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.facts import squash
from ke_tools.memory.scope.corpora import ABOUT_WORDS, NO_QUESTIONS, Corpus, corpora, subjects_of, training_texts
from ke_tools.memory.scope.embedding import Embedder, minilm
from ke_tools.memory.scope.features import neutral, pair_features
from ke_tools.memory.scope.head import Head
from ke_tools.memory.scope.rivals import Rivals, wordings

__all__ = ["Pairs", "measure", "train", "training_texts"]

_HELD_OUT: Final = 0.12  # of the groups of each source, for choosing the thresholds
_PREFIXED: Final = 0.04  # of the questions get an unrelated sentence in front
_POSITIVES: Final = 48  # pairs a group
_NEGATIVES: Final = 4  # for each positive
_HARD: Final = 0.5  # of the negatives are among the most similar
_NEAREST: Final = 40
_CONTRASTED: Final = 0.75  # of the positives are followed by what a data file says of the same subject
_HIDDEN: Final = 192
_BATCH: Final = 256
_LEARNING_RATE: Final = 1e-3
_BUDGET: Final = {"in": 0.04, "grey": 0.15}  # of the negatives of kept-back relations may pass
_CHOSEN: Final = "the lowest at which .04 (in) and .15 (grey) of the negatives of relations kept back from the fit pass, by source"
SUBJECTS: Final = "subjects.json"


@dataclass(frozen=True)
class Pairs:
    """What a question asks for, what an edit says, and whether that is the same."""

    asked: list[str] = field(default_factory=list)
    edits: list[str] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)  # of the edits, where the atlas has them

    def add(self, asked: str, edit: str, kind: str, relation: str = "", *, same: bool = False) -> None:
        """Append one pair."""
        self.asked.append(asked)
        self.edits.append(edit)
        self.same.append(same)
        self.kinds.append(kind)
        self.relations.append(relation)


def train(data: Sequence[Path], out: Path | None, *, seed: int = 0, embedder: Embedder | None = None, epochs: int = 16) -> dict[str, Any]:
    """Choose thresholds with a head that has not seen some of the relations, fit another on all, write it to ``out``; return its card.

    Takes minutes on two cores, most of them for the embeddings of some ten thousand texts.

    Raises:
        InvalidInput: a data file is of no known format.
        ModelUnavailable: the embedding model is not there.
    """
    rng = random.Random(seed)  # noqa: S311  no secret
    vectors = _Vectors(embedder or minilm())
    sources = corpora(data)
    fitted, kept = (_pairs(part, vectors, rng) for part in _split(sources, rng))
    rivals = Rivals(vectors.of([text for _, text in wordings()]))
    trial = Head(_fit(vectors, fitted, seed=seed, epochs=epochs), 0.5, 0.5, {}, rivals)
    within, grey = calibrate(_judged(trial, kept, vectors), kept)
    pairs = _pairs(sources, vectors, rng)
    head = Head(_fit(vectors, pairs, seed=seed, epochs=epochs), within, grey, {}, rivals)
    card = {
        "embedder": vectors.embedder.fingerprint,
        "neutral": neutral("{}"),
        "seed": seed,
        "epochs": epochs,
        "pairs": len(pairs.same),
        "data": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in data],
        "relations": sorted(group.name for group in sources[0].groups),
        "thresholds": {"in": within, "grey": grey, "chosen": _CHOSEN},
        "calibration": measure(replace(trial, within=within, grey=grey), kept, vectors),
        "probe": measure(head, probe_pairs(rng), vectors),
    }
    if out is not None:
        replace(head, card=card).save(out)
        (out / SUBJECTS).write_text(json.dumps({"training_subjects": _subjects(data)}) + "\n", "utf-8")
    return card


def calibrate(scores: NDArray[np.float32], held: Pairs) -> tuple[float, float]:
    """Choose the thresholds (in, grey) that so many of the kept-back negatives pass as ``_BUDGET`` says; each source counts equally."""
    wrong = [scores[i] for i in _rows_by_source(held).values() if len(i)]
    grid = np.linspace(0.01, 0.99, 99)
    passing = np.mean([[(found >= threshold).mean() for threshold in grid] for found in wrong], axis=0)
    within, grey = (float(grid[passing <= most].min(initial=grid[-1])) for most in (_BUDGET["in"], _BUDGET["grey"]))
    return round(within, 2), round(grey, 2)


def _rows_by_source(held: Pairs) -> dict[str, NDArray[np.int64]]:
    sources = sorted({kind.partition(":")[0] for kind in held.kinds})
    return {
        source: np.array([n for n, kind in enumerate(held.kinds) if kind.startswith(f"{source}:") and not held.same[n]], dtype=np.int64)
        for source in sources
    }


def _subjects(data: Sequence[Path]) -> list[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for every subject of the data files, so that benches can leave them out."""
    names = {squash(name) for path in data for name in subjects_of(path)}
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:8] for name in names)


def measure(head: Head, pairs: Pairs, vectors: _Vectors) -> dict[str, dict[str, float]]:
    """Share of the pairs of each kind that pass the thresholds."""
    scores = _judged(head, pairs, vectors)
    kinds = np.array(pairs.kinds)
    return {
        kind: {
            "n": int((kinds == kind).sum()),
            "in": round(float((scores[kinds == kind] >= head.within).mean()), 4),
            "grey": round(float((scores[kinds == kind] >= head.grey).mean()), 4),
        }
        for kind in sorted(set(pairs.kinds))
    }


def _judged(head: Head, pairs: Pairs, vectors: _Vectors) -> NDArray[np.float32]:
    """Score pairs as the scope scores an edit that has one wording and whose relation is not recognised."""
    asked, edits = vectors.of(pairs.asked), vectors.of(pairs.edits)
    scores = head.score(asked, edits)
    if head.rivals is None:
        return scores
    rivals: dict[tuple[str, str], NDArray[np.intp]] = {}
    nearest = np.zeros(len(scores), np.float32)
    for n, key in enumerate(zip(pairs.relations, pairs.edits, strict=True)):
        if key not in rivals:
            rivals[key] = head.rivals.against("", edits[n], besides=key[0])
        nearest[n] = head.rivals.nearest(asked[n : n + 1], rivals[key])[0]
    return head.judge(scores, (asked * edits).sum(1) - nearest)


def probe_pairs(rng: random.Random) -> Pairs:
    """Pairs out of the wordings that training never sees, for measuring only."""
    pairs = Pairs()
    relations = list(atlas.relations().values())
    for relation in relations:
        if relation.probe:
            for edit in relation.statements:
                for asked in rng.sample(relation.wordings, 4):
                    if asked != edit:
                        pairs.add(asked, edit, "unseen relation: same", relation.id, same=True)
        else:
            for asked in relation.probe_statements + relation.probe_questions:
                pairs.add(asked, rng.choice(relation.statements), "seen relation, unseen wording: same", relation.id, same=True)
        name = "unseen relation" if relation.probe else "seen relation, unseen wording"
        others = [other for other in relations if other.subject == relation.subject and other.id not in {relation.id, relation.inverse}]
        for other in rng.sample(others, min(len(others), 6)):
            asked = rng.choice(other.wordings if relation.probe else other.probe_statements + other.probe_questions)
            pairs.add(asked, rng.choice(relation.statements), f"{name}: same subject, other relation", relation.id)
        pairs.add(rng.choice(NO_QUESTIONS), rng.choice(relation.statements), f"{name}: no question", relation.id)
    return pairs


class _Vectors:
    """Embeddings by masked text, each computed once."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._place: dict[str, int] = {}
        self._rows: NDArray[np.float32] = np.zeros((0, embedder.dimension), np.float32)

    def of(self, masked: Sequence[str]) -> NDArray[np.float32]:
        texts = [neutral(text) for text in masked]
        new = [text for text in dict.fromkeys(texts) if text not in self._place]
        if new:
            known = len(self._place)
            self._rows = np.concatenate([self._rows, self.embedder.encode(new)])
            self._place.update((text, known + number) for number, text in enumerate(new))
        return self._rows[[self._place[text] for text in texts]]


def _split(sources: Sequence[Corpus], rng: random.Random) -> tuple[list[Corpus], list[Corpus]]:
    """Keep some groups of each source back."""
    fitted, kept = [], []
    for corpus in sources:
        back = set(rng.sample(range(len(corpus.groups)), round(_HELD_OUT * len(corpus.groups))))
        fitted.append(replace(corpus, groups=tuple(group for n, group in enumerate(corpus.groups) if n not in back)))
        kept.append(replace(corpus, groups=tuple(group for n, group in enumerate(corpus.groups) if n in back)))
    return fitted, kept


def _pairs(sources: Sequence[Corpus], vectors: _Vectors, rng: random.Random) -> Pairs:
    pairs = Pairs()
    fronts = [front for corpus in sources for front in corpus.in_front]
    for corpus in sources:
        rivals = _Rivals(corpus, vectors)
        for number, group in enumerate(corpus.groups):
            for edit, asked in rng.sample(group.positives, min(_POSITIVES, len(group.positives))):
                relation = group.name if group.kind else ""
                pairs.add(_with_front(asked, fronts, rng), edit, f"{corpus.name}: same", relation, same=True)
                for text, kind in rivals.of(number, edit, asked, rng):
                    pairs.add(_with_front(text, fronts, rng), edit, f"{corpus.name}: {kind}", relation)
    return pairs


def _with_front(text: str, fronts: Sequence[str], rng: random.Random) -> str:
    """Put a sentence in front of some texts, unless end and beginning together make a wording that only probes may use."""
    if not fronts or rng.random() >= _PREFIXED:
        return text
    joined = f"{rng.choice(fronts)} {text}"
    return text if atlas.holds_probe_wording(joined) else joined


class _Rivals:
    """Texts of one source that do not ask for what an edit says."""

    def __init__(self, corpus: Corpus, vectors: _Vectors) -> None:
        self._corpus = corpus
        self._vectors = vectors
        self._texts = [text for group in corpus.groups for text in group.texts]
        self._owner = np.array([number for number, group in enumerate(corpus.groups) for _ in group.texts])
        self._rows = vectors.of(self._texts)
        self._allowed = [self._allowed_for(number) for number in range(len(corpus.groups))]

    def of(self, number: int, edit: str, asked: str, rng: random.Random) -> Iterator[tuple[str, str]]:
        """Draw negatives for one positive pair, each with its kind."""
        group, allowed = self._corpus.groups[number], self._allowed[number]
        if rng.random() < 1 / 3:
            yield rng.choice(NO_QUESTIONS), "no question"
        if rng.random() < 1 / 6:
            yield rng.choice(ABOUT_WORDS) + asked, "no question"
        if group.contrasts and rng.random() < _CONTRASTED:
            yield rng.choice(group.contrasts), "same subject, other relation"
        if not allowed.size:
            return
        likeness = self._rows[allowed] @ self._vectors.of([edit])[0]
        nearest = allowed[np.argsort(-likeness)[:_NEAREST]]
        for _ in range(_NEGATIVES):
            hard = rng.random() < _HARD
            yield self._texts[rng.choice(nearest if hard else allowed)], "other relation, near" if hard else "other relation"

    def _allowed_for(self, number: int) -> NDArray[np.int64]:
        """Indexes of texts of other groups; those of the same type of subject where there are enough."""
        group = self._corpus.groups[number]
        own = set(group.texts)
        rows = self._vectors.of(group.texts)
        far = [
            other is not group
            and other.name not in group.alike
            and (self._corpus.apart > 1 or float((rows @ self._vectors.of(other.texts).T).max()) < self._corpus.apart)
            for other in self._corpus.groups
        ]
        allowed = np.array([n for n, text in enumerate(self._texts) if far[self._owner[n]] and text not in own], dtype=np.int64)
        typed = np.array([n for n in allowed if group.kind and self._corpus.groups[self._owner[n]].kind == group.kind], dtype=np.int64)
        return np.concatenate([allowed, *[typed] * (len(allowed) // (len(typed) + 1) // 2)]) if len(typed) else allowed


def _fit(vectors: _Vectors, pairs: Pairs, *, seed: int, epochs: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    asked, edits, same = vectors.of(pairs.asked), vectors.of(pairs.edits), np.array(pairs.same, np.float32)
    width = 2 * asked.shape[1] + 1
    network = nn.Sequential(nn.Linear(width, _HIDDEN), nn.ReLU(), nn.Dropout(0.3), nn.Linear(_HIDDEN, 1))
    steps = epochs * (len(same) // _BATCH + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    loss_of = nn.BCEWithLogitsLoss()
    for _ in range(epochs):
        shuffled = torch.randperm(len(same), generator=order).numpy()
        for start in range(0, len(same), _BATCH):
            index = shuffled[start : start + _BATCH]
            logits = network(torch.from_numpy(pair_features(asked[index], edits[index])))[:, 0]
            loss = loss_of(logits, torch.from_numpy(same[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]
