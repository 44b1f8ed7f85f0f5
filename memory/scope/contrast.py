r"""Tuning of the embedding by contrast.

Of a batch of unit vectors $z_i$, with $P(i)$ the texts that ask for the same relation as $i$ and $N(i)$ those that certainly do not
(:mod:`ke_tools.memory.scope.batches`), the loss is

$$\frac{1}{|I|} \sum_{i \in I} \frac{1}{|P(i)|} \sum_{p \in P(i)}
-\log \frac{e^{z_i \cdot z_p / \tau}}{e^{z_i \cdot z_p / \tau} + \sum_{n \in N(i)} e^{z_i \cdot z_n / \tau}}$$

which is the supervised contrastive loss (Khosla et al. 2020, eq. 2) with the other positives left out of the denominator, so that one
positive does not push another away. Only a LoRA is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools.memory.scope import network
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.batches import NOBODY, Batch, Mixer
from ke_tools.memory.scope.descent import Tell, descend
from ke_tools.memory.scope.graph import locate, tokenizer_of
from ke_tools.models.autocast import autocast

__all__ = ["contrast", "fit"]

_LONGEST: Final = 40  # tokens
_PARTS: Final = 3  # of a batch that are padded alike
_FAR: Final = -1e4


def fit(mixer: Mixer, out: Path, *, steps: int, rank: int, rate: float, temperature: float, seed: int, tell: Tell) -> None:
    """Train a LoRA on batches of the mixer and write it to ``out``; ``tell`` hears of each step and its loss."""
    import torch

    torch.manual_seed(seed)
    encode = _Encoder(locate(), rank)

    def backward() -> float:
        batch = mixer.draw()
        loss = contrast(encode([neutral(text) for text in batch.texts]), batch, mixer.unsure, temperature)
        loss.backward()
        return float(loss.item())

    learnt = [weight for weight in encode.model.parameters() if weight.requires_grad]
    descend(learnt, backward, steps=steps, rate=rate, tell=tell)
    out.mkdir(parents=True, exist_ok=True)
    encode.model.to(torch.float16).save_pretrained(str(out))
    (out / "README.md").unlink(missing_ok=True)  # PEFT's form for a model's card, empty


def contrast(z: Any, batch: Batch, unsure: NDArray[np.bool_], temperature: float) -> Any:
    """The loss of unit vectors ``z``, shape (texts, d); a scalar."""
    import torch

    owners, against = np.array(batch.owners), np.array(batch.against)
    is_owned = owners != NOBODY
    both = is_owned[:, None] & is_owned[None, :]
    same = both & (owners[:, None] == owners[None, :])
    np.fill_diagonal(same, val=False)
    apart = both & (owners[:, None] != owners[None, :]) & ~unsure[owners[:, None], owners[None, :]]
    of_nobody = is_owned[:, None] & ~is_owned[None, :] & ((against[None, :] == NOBODY) | (against[None, :] == owners[:, None]))
    positive, negative = torch.from_numpy(same), torch.from_numpy(apart | of_nobody)
    likeness = z @ z.T / temperature
    rest = torch.logsumexp(likeness.masked_fill(~negative, _FAR), 1, keepdim=True)  # log of the sum over N(i)
    losses = torch.nn.functional.softplus(rest - likeness) * positive
    has = positive.any(1)
    return (losses.sum(1)[has] / positive.sum(1)[has]).mean()


@dataclass(slots=True)
class _Encoder:
    """Texts → unit vectors with gradients: the mean over a text's tokens."""

    folder: Path
    rank: int
    model: Any = field(init=False)
    tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.model = network.trainable(self.folder, self.rank)
        self.tokenizer = tokenizer_of(self.folder, _LONGEST)

    def __call__(self, texts: Sequence[str]) -> Any:
        import torch

        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        parts = [part.tolist() for part in np.array_split(order, _PARTS) if len(part)]
        vectors = torch.cat([self._states([texts[n] for n in part]) for part in parts])
        return vectors[torch.tensor(np.argsort(np.concatenate(parts)))]

    def _states(self, texts: list[str]) -> Any:
        import torch

        encoded = self.tokenizer.encode_batch(texts)
        ids, mask = (torch.tensor([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
        with autocast("cpu"):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1)
