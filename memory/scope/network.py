"""MiniLM as a torch network, for training and export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ADAPTER", "encoder", "trainable"]

ADAPTER: Final = "adapter_model.safetensors"
_PROJECTIONS: Final = ["query", "key", "value", "dense"]


def encoder(folder: Path, adapter: Path | None = None) -> nn.Module:
    """MiniLM, giving its last hidden states; with a LoRA merged into the weights where one is given."""
    bert = _bert(folder)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            bert = PeftModel.from_pretrained(bert, str(adapter)).merge_and_unload()
    return _network(bert)


def trainable(folder: Path, rank: int) -> Any:
    """MiniLM with a LoRA (Hu et al. 2021) on all its projections, which alone has gradients; a PEFT model."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
        return get_peft_model(_bert(folder), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_PROJECTIONS)).train()


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


def _network(bert: Any) -> nn.Module:
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state

    return Network().eval()
