r"""MiniLM as torch networks, for training and export: the encoder, tuned by a LoRA, and the cross-encoder that begins where that ended.

The cross-encoder reads "[CLS] question [SEP] edit [SEP]" at once, so that every word of the one sees the other. Of the last hidden states
$h_i$ it takes the means $u$ over the question's part (with [CLS] and the first [SEP]) and $v$ over the edit's, each of length 1, and judges

$$s = W_2\,\mathrm{GELU}\bigl(20\,W_1 [u \odot v,\ |u - v|] + b_1\bigr) + b_2,$$

a logit, which begins with what the embedding knew. All weights of the encoder but the embeddings are trained; what is kept of a matrix's
change is its best approximation by a low rank (Eckart and Young 1936): $W + \Delta W \approx W + U_r \Sigma_r V_r^\top$.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import ModelUnavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ADAPTER", "ADAPTER_CONFIG", "CROSSING", "changes", "crossing", "encoder", "trainable", "untrained"]

ADAPTER: Final = "adapter_model.safetensors"
ADAPTER_CONFIG: Final = "adapter_config.json"
CROSSING: Final = "crossing.safetensors"
_PROJECTIONS: Final = ["query", "key", "value", "dense"]
_WIDTH: Final = 128
_SCALE: Final = 20.0  # of the products of two unit vectors, which are small


def encoder(folder: Path, scorer: Path | None = None) -> nn.Module:
    """MiniLM, giving its last hidden states; with a scorer's LoRA merged into the weights where one is given."""
    return _encoder(_tuned(folder, scorer))


def trainable(folder: Path, rank: int) -> Any:
    """MiniLM with a LoRA (Hu et al. 2021) on all its projections, which alone has gradients; a PEFT model."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
        return get_peft_model(_bert(folder), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_PROJECTIONS)).train()


def untrained(folder: Path, scorer: Path) -> nn.Module:
    """A cross-encoder that begins where a scorer's embedding ended."""
    return _crossing(_tuned(folder, scorer))


def crossing(folder: Path, scorer: Path) -> nn.Module:
    """The cross-encoder of a scorer.

    Raises:
        ModelUnavailable: what is kept of it is missing, damaged, or not all that it should be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = untrained(folder, scorer)
    state = network.state_dict()
    try:
        kept = load_file(scorer / CROSSING)
        for name in filter(_is_kept, state):
            weight = state[name]  # shares its memory with the network's
            if f"{name}.left" in kept:
                weight.add_(kept[f"{name}.left"].float() @ kept[f"{name}.right"].float())
            else:
                weight.copy_(kept[name].float() + (weight if name.startswith("bert.") else 0))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise ModelUnavailable(
            f"{scorer / CROSSING} cannot be read: {error}", "Install ke-tools again, or train a scorer: ke-tools scope train."
        ) from error
    return network


def changes(before: nn.Module, after: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """What training made of a cross-encoder, in float16: of a matrix two factors, else the difference; what is not of MiniLM as a whole."""
    import torch

    old = before.state_dict()
    kept: dict[str, torch.Tensor] = {}
    for name, weight in after.state_dict().items():
        if not _is_kept(name):
            continue
        if not name.startswith("bert."):
            kept[name] = weight
        elif weight.dim() > 1:
            u, s, v = torch.linalg.svd(weight - old[name], full_matrices=False)
            root = s[:rank].sqrt()
            kept |= {f"{name}.left": u[:, :rank] * root, f"{name}.right": root[:, None] * v[:rank]}
        else:
            kept[name] = weight - old[name]
    return {name: part.detach().to(torch.float16).contiguous() for name, part in kept.items()}


def _is_kept(name: str) -> bool:
    return ".embeddings." not in name


def _tuned(folder: Path, scorer: Path | None) -> Any:
    bert = _bert(folder)
    if scorer is None:
        return bert
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(bert, str(scorer)).merge_and_unload()


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


def _encoder(bert: Any) -> nn.Module:
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    return Encoder().eval()


def _crossing(bert: Any) -> nn.Module:
    import torch
    from torch import nn
    from torch.nn.functional import normalize

    class CrossEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert
            self.judge = nn.Sequential(nn.Linear(2 * bert.config.hidden_size, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, 1))

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            h = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state.float()
            of_question, of_edit = ((attention_mask * part)[..., None].to(h.dtype) for part in (1 - token_type_ids, token_type_ids))
            u, v = (normalize((h * part).sum(1) / part.sum(1), dim=-1) for part in (of_question, of_edit))
            return self.judge(_SCALE * torch.cat([u * v, (u - v).abs()], dim=-1))[:, 0]

    return CrossEncoder().eval()
