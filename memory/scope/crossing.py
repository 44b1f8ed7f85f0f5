r"""Training of the cross-encoder (:mod:`ke_tools.memory.scope.network`) on pairs of a question and an edit.

Of each relation of a batch an edit is worded, with two questions that ask for it and up to four that do not: two of the nearest by the
tuned embedding, one of any kind, and one that was written or made against this relation, where there is one. The loss is the cross-entropy
of *same*.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ke_tools.memory.scope import network
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.batches import NOBODY, Batch, Mixer
from ke_tools.memory.scope.descent import Tell, descend
from ke_tools.memory.scope.embedding import Embedder
from ke_tools.memory.scope.graph import locate, tokenizer_of
from ke_tools.memory.scope.inventory import OPEN
from ke_tools.models.autocast import autocast

__all__ = ["Labelled", "fit", "pairs"]

_POSITIVES: Final = 2
_NEAREST: Final = 8  # of which two are drawn
_LONGEST: Final = 64  # tokens of a pair
_AT_ONCE: Final = 32  # pairs that are computed together; more need gigabytes, which costs more than it gains
_SMOOTHING: Final = 0.02
_WEIGHT: Final = 1.5  # of a positive


class Labelled(NamedTuple):
    """A neutral question, a neutral edit, and whether the one asks for the other."""

    asked: str
    told: str
    same: bool


def fit(mixer: Mixer, embedder: Embedder, out: Path, *, steps: int, rank: int, rate: float, seed: int, goes_on: bool, tell: Tell) -> None:
    """Train on pairs of the mixer's batches and write what changed to ``out``, where the tuned encoder lies.

    It begins where the encoder ended, or ``goes_on`` where the cross-encoder in ``out`` did.
    """
    import torch
    from safetensors.torch import save_file

    rng = random.Random(seed)  # noqa: S311  no secret
    mixer.begin(seed)
    folder = locate()
    torch.manual_seed(seed)
    model = (network.crossing if goes_on else network.untrained)(folder, out).train().requires_grad_()
    model.get_submodule("bert.embeddings").requires_grad_(requires_grad=False)
    tokenizer = tokenizer_of(folder, _LONGEST)

    def backward() -> float:
        found = list(pairs(mixer, embedder, rng))
        return sum(_backward(model, tokenizer, part, len(found)) for part in _parts(found))

    descend([weight for weight in model.parameters() if weight.requires_grad], backward, steps=steps, rate=rate, tell=tell)
    save_file(network.changes(network.encoder(folder, out), model, rank), out / network.CROSSING)


def pairs(mixer: Mixer, embedder: Embedder, rng: random.Random) -> Iterator[Labelled]:
    """Draw a batch's worth."""
    batch = mixer.draw()
    asked = [neutral(text) for text in batch.texts]
    vectors = embedder.encode(asked)
    for number in dict.fromkeys(batch.owners):
        if number == NOBODY or mixer.groups[number].name == OPEN:
            continue
        wording, told = mixer.edit(number)
        own = [n for n, owner in enumerate(batch.owners) if owner == number and batch.texts[n] not in {wording, told}]
        for n in rng.sample(own, min(_POSITIVES, len(own))):
            yield Labelled(asked[n], neutral(told), same=True)
        others = _others(mixer, batch, number)
        near = others[np.argsort(-(vectors[others] @ embedder.encode([neutral(told)])[0]))].tolist()
        chosen = [*rng.sample(near[:_NEAREST], min(2, len(near))), rng.choice(near)]
        chosen += [n for n in near if batch.against[n] == number][:1]
        for n in dict.fromkeys(chosen):
            yield Labelled(asked[n], neutral(told), same=False)


def _others(mixer: Mixer, batch: Batch, number: int) -> NDArray[np.intp]:
    """Texts of a batch that certainly do not ask for a relation."""
    owners, against = np.array(batch.owners), np.array(batch.against)
    apart = (owners != NOBODY) & (owners != number) & ~mixer.unsure[number][owners]
    of_nobody = (owners == NOBODY) & ((against == NOBODY) | (against == number))
    return np.flatnonzero(apart | of_nobody)


def _parts(found: list[Labelled]) -> Iterator[list[Labelled]]:
    """Pairs of like length together."""
    ordered = sorted(found, key=lambda pair: len(pair.asked) + len(pair.told))
    for start in range(0, len(ordered), _AT_ONCE):
        yield ordered[start : start + _AT_ONCE]


def _backward(model: Any, tokenizer: Any, part: list[Labelled], n: int) -> float:
    """Add a part's gradients of the mean over ``n`` pairs; return its share of the loss."""
    import torch

    encoded = tokenizer.encode_batch([(pair.asked, pair.told) for pair in part])
    ids, mask, kinds = (torch.tensor([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask", "type_ids"))
    with autocast("cpu"):
        logits = model(input_ids=ids, attention_mask=mask, token_type_ids=kinds)
    wanted = torch.tensor([float(pair.same) for pair in part]) * (1 - 2 * _SMOOTHING) + _SMOOTHING
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    loss = entropy(logits.float(), wanted, pos_weight=torch.tensor(_WEIGHT), reduction="sum") / n
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.item())
