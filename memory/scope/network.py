r"""The scorer as a torch network, for training and export: MiniLM that reads a question and an edit together, with a classifier on top.

$$p = \mathrm{softmax}\bigl(W_2\,\mathrm{GELU}(W_1 h_{\mathrm{[CLS]}} + b_1) + b_2\bigr)$$

with $h$ the last hidden state over "[CLS] question [SEP] edit [SEP]". All projections, biases and norms of MiniLM are trained, its
embeddings are not. What is kept of a trained projection is the best approximation of its change by a low rank (Eckart and Young 1936),
as a LoRA's factors: $W + \Delta W \approx W + U_r \Sigma_r V_r^\top$. A LoRA trained from the start learnt slower by half on the same
pairs, or not at all at a higher rate (benchmarks/LOG.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["CLASSES", "WEIGHTS", "changes", "encoder", "scorer", "untrained"]

CLASSES: Final = ("same", "open", "other")  # what the question asks: what the edit says; something that needs it too; another thing
WEIGHTS: Final = "scorer.safetensors"
_WIDTH: Final = 128


def encoder(folder: Path) -> nn.Module:
    """MiniLM, giving its last hidden states."""
    return _network(_bert(folder), None)


def untrained(folder: Path) -> nn.Module:
    """A scorer to train; the embeddings have no gradients."""
    bert = _bert(folder)
    bert.embeddings.requires_grad_(requires_grad=False)
    return _network(bert, _classifier(bert.config.hidden_size))


def scorer(folder: Path, weights: Path) -> nn.Module:
    """A trained scorer: MiniLM with the changes of a weights file, and the classifier."""
    from safetensors.torch import load_file

    network = _network(_bert(folder), _classifier(_bert(folder).config.hidden_size))
    kept = load_file(weights)
    state = network.state_dict()
    for name, weight in state.items():
        if f"{name}.left" in kept:
            weight.add_(kept[f"{name}.left"].float() @ kept[f"{name}.right"].float())
        elif name in kept:
            weight.copy_(kept[name].float() + (weight if name.startswith("bert.") else 0))
    network.load_state_dict(state)
    return network


def changes(network: nn.Module, folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """What a trained scorer differs by from MiniLM, in float16: two factors for a projection, else the difference; the classifier whole."""
    import torch

    before = _network(_bert(folder), None).state_dict()
    kept: dict[str, torch.Tensor] = {}
    for name, weight in network.state_dict().items():
        if name.startswith("classifier."):
            kept[name] = weight
        elif ".embeddings." in name:
            continue
        elif weight.dim() > 1:
            u, s, v = torch.linalg.svd(weight - before[name], full_matrices=False)
            root = s[:rank].sqrt()
            kept |= {f"{name}.left": u[:, :rank] * root, f"{name}.right": root[:, None] * v[:rank]}
        else:
            kept[name] = weight - before[name]
    return {name: part.detach().to(torch.float16).contiguous() for name, part in kept.items()}


def _bert(folder: Path) -> Any:
    from transformers import BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # the pooler that is left out is no news
    try:
        return BertModel.from_pretrained(str(folder), add_pooling_layer=False, local_files_only=True)
    finally:
        logging.set_verbosity(before)


def _classifier(width: int) -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(width, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, len(CLASSES)))


def _network(bert: Any, classifier: nn.Module | None) -> nn.Module:
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert
            self.classifier = classifier

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            h = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
            return h if self.classifier is None else self.classifier(h[:, 0].float())

    return Network().eval()
