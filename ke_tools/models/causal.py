"""What an editor needs of a causal language model: where its parts lie, one declarative entry an architecture family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput, Unsupported
from ke_tools.models import checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ke_tools.config import Settings

__all__ = ["ARCHITECTURES", "Architecture", "CausalModel", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Names of the parts of a family, as ``get_submodule`` takes them; those of a block are relative to it."""

    blocks: str
    mlp_in: str  # the MLP's first projection
    mlp_out: str  # the MLP's output projection, which editors change
    attention_out: str
    norm: str  # after the last block


_LLAMA: Final = Architecture(
    blocks="model.layers", mlp_in="mlp.up_proj", mlp_out="mlp.down_proj", attention_out="self_attn.o_proj", norm="model.norm"
)
ARCHITECTURES: Final = {  # by the configuration's model_type
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma"), _LLAMA),
    "gpt2": Architecture(
        blocks="transformer.h", mlp_in="mlp.c_fc", mlp_out="mlp.c_proj", attention_out="attn.c_proj", norm="transformer.ln_f"
    ),
    "gptj": Architecture(
        blocks="transformer.h", mlp_in="mlp.fc_in", mlp_out="mlp.fc_out", attention_out="attn.out_proj", norm="transformer.ln_f"
    ),
    "gpt_neox": Architecture(
        blocks="gpt_neox.layers",
        mlp_in="mlp.dense_h_to_4h",
        mlp_out="mlp.dense_4h_to_h",
        attention_out="attention.dense",
        norm="gpt_neox.final_layer_norm",
    ),
    "opt": Architecture(
        blocks="model.decoder.layers",
        mlp_in="fc1",
        mlp_out="fc2",
        attention_out="self_attn.out_proj",
        norm="model.decoder.final_layer_norm",
    ),
    "phi": Architecture(
        blocks="model.layers", mlp_in="mlp.fc1", mlp_out="mlp.fc2", attention_out="self_attn.dense", norm="model.final_layernorm"
    ),
}


class CausalModel:
    """A causal model of transformers with its tokenizer, addressed by parts; nothing of it is changed here.

    ``edits`` are the updates that are applied to it, the latest last; while there are any, what is measured of it is not the model's own.
    """

    def __init__(self, model: Any, tokenizer: Any, *, architecture: Architecture | None = None, fingerprint: str = "") -> None:
        """Find the parts.

        Args:
            model: a ``…ForCausalLM``.
            tokenizer: its fast tokenizer.
            architecture: where its parts lie; looked up by its configuration's ``model_type`` unless given.
            fingerprint: hash over its weights (``sha256:…``), for what is cached about it; "": nothing is.

        Raises:
            Unsupported: the family is unknown, or has no MLP output projection where one was said to be.
            InvalidInput: the tokenizer cannot tell where its tokens lie in a text.
        """
        kind = str(getattr(model.config, "model_type", ""))
        found = architecture or ARCHITECTURES.get(kind)
        if found is None:
            checkpoint.refuse_experts(model.config.to_dict())
            names = ", ".join(field.name for field in fields(Architecture))
            raise Unsupported(
                f"where the parts of a {kind or type(model).__name__} lie is not known.",
                f"Give architecture=Architecture({names}); known are {', '.join(sorted(ARCHITECTURES))}.",
            )
        if not getattr(tokenizer, "is_fast", False):
            raise InvalidInput(
                f"{type(tokenizer).__name__} does not tell where tokens lie in a text.", "Load the fast tokenizer (use_fast=True)."
            )
        self.model, self.tokenizer, self.architecture, self.fingerprint = model.eval(), tokenizer, found, fingerprint
        self.edits: list[object] = []
        try:
            self.blocks: Sequence[nn.Module] = list(model.get_submodule(found.blocks))
            for part in (found.mlp_in, found.mlp_out, found.attention_out):
                self.blocks[0].get_submodule(part)
            self.norm: nn.Module = model.get_submodule(found.norm)
        except (AttributeError, IndexError) as error:
            raise Unsupported(
                f"this {kind or type(model).__name__} has no part where one should be: {error}", "Give architecture=."
            ) from error

    @property
    def pad(self) -> int:
        """The token to fill up rows with."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.weight(0).dtype
        return dtype

    def projection(self, layer: int) -> nn.Module:
        """The MLP's output projection of a layer."""
        return self.blocks[layer].get_submodule(self.architecture.mlp_out)

    def attention_out(self, layer: int) -> nn.Module:
        """The attention's output projection of a layer."""
        return self.blocks[layer].get_submodule(self.architecture.attention_out)

    def projection_name(self, layer: int) -> str:
        """Its full name in the model."""
        return f"{self.architecture.blocks}.{layer}.{self.architecture.mlp_out}"

    def weight(self, layer: int) -> torch.Tensor:
        """The projection's weight as it is stored: [d_out, d_in], or [d_in, d_out] where :meth:`is_transposed`."""
        weight: torch.Tensor = self.projection(layer).weight  # type: ignore[assignment]
        return weight

    def is_transposed(self, layer: int) -> bool:
        """Whether the weight is stored as [d_in, d_out] (GPT-2's Conv1D)."""
        projection = self.projection(layer)
        return type(getattr(projection, "base_layer", projection)).__name__ == "Conv1D"  # PEFT may have wrapped it

    @property
    def width(self) -> int:
        """Length of a residual vector."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def key_width(self, layer: int) -> int:
        """Length of a key: the input of the layer's MLP output projection."""
        return int(self.weight(layer).shape[0 if self.is_transposed(layer) else 1])


def load(settings: Settings, *, beside: Mapping[str, torch.Tensor] | None = None) -> CausalModel:
    """The model that edits are planned with, in float32, on the device for that; ``auto`` is CUDA where it is, else the CPU.

    Args:
        settings: which.
        beside: the weights of an engine in this process, by name. Those that are the same in type and place are shared: an update is put
            in their place, never written into them (so this model must not be trained). What autograd keeps is this model's own.

    Raises:
        ModelUnavailable: it is not there or damaged.
        Unsupported: where its parts lie is not known, or its weights are quantised.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint.resolve(settings)
    checkpoint.refuse_quantised(path)
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(path))
    device = settings.planned_on if settings.planned_on != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    for name, own in model.named_parameters():
        other = (beside or {}).get(name)
        if other is not None and (other.shape, other.dtype, other.device) == (own.shape, own.dtype, own.device):
            own.data = other.detach()
    return CausalModel(model, tokenizer, fingerprint=checkpoint.fingerprint(path, cache=settings.cache))
