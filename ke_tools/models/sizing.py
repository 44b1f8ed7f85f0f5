"""How much memory a model takes to serve and to edit, from its configuration and its weights' headers alone; nothing is loaded.

What vLLM holds follows from shapes: weights, adapter slots, the cache of keys and values. What editing takes is the editors' own: a copy
in float32, the second moments of a sixth of the layers in float64, and one batch with gradients, as if through all layers; where memory
runs out the editors halve that batch. For the embedded model it comes to 2.9 GB; a whole process that edits measured 3.3 GB
(benchmarks/LOG.md, 3,141 MiB).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ke_tools.errors import Unsupported
from ke_tools.models import checkpoint

__all__ = ["GIB", "SEQUENCES", "Sizes", "layout", "shown", "sizes"]

GIB: Final = 1 << 30
SEQUENCES: Final = 32  # whose cache is told
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
_LORA_BYTES: Final = 2  # vLLM keeps adapters in the model's type, which is 16 bits wide or taken for it
_EDITED: Final = 6  # one of so many layers is edited, at least two
_BATCH: Final = 1024  # tokens with gradients and all logits
_LOGITS: Final = 4  # tensors of the vocabulary's width that such a batch holds
_WIDE, _INNER = 10, 4  # and of a layer's two widths
_RESERVED: Final = 2 * GIB  # vLLM's activations and graphs
_USABLE: Final = 0.92  # vLLM's own default
_SPLITS: Final = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes, but for ``parameters`` and ``context``."""

    parameters: int
    context: int
    weights: int  # as vLLM holds them
    cache_token: int  # keys and values
    adapter_slot: int  # of vLLM; 0: it takes none of ours for such a model
    slots: int
    editing: int  # where a promotion is planned
    is_editable: bool

    @property
    def cache(self) -> int:
        """Keys and values of :data:`SEQUENCES` sequences of the whole context."""
        return SEQUENCES * self.context * self.cache_token

    @property
    def serving(self) -> int:
        """The least that vLLM needs: with the cache of one sequence."""
        return self.weights + self.slots * self.adapter_slot + self.context * self.cache_token + _RESERVED

    @property
    def in_process(self) -> int:
        """The least that an engine in a process of ours needs: weights, and the cache of one sequence."""
        return self.weights + self.context * self.cache_token

    @property
    def editors_copy(self) -> int:
        """The editors' own copy: what planning takes however small its batches are."""
        return self.parameters * _BYTES["float32"]

    def rows(self) -> list[dict[str, Any]]:
        """One row a number, for people and programs."""
        told = {
            "weights in vLLM": self.weights,
            "keys and values of a token": self.cache_token,
            f"keys and values of {SEQUENCES} sequences of {self.context:,} tokens, at most": self.cache,
            "an adapter slot of vLLM": self.adapter_slot,
            f"{self.slots} slots": self.slots * self.adapter_slot,
            "planning a promotion, at most about": self.editing,
        }
        return [{"what": what, "bytes": size, "size": shown(size)} for what, size in told.items()]


@dataclass(frozen=True, slots=True)
class _Shape:
    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    context: int
    is_tied: bool

    @property
    def adapted(self) -> int:
        """Inputs and outputs of what a block's adapters change: q, k, v, o and down."""
        attention, keys = self.heads * self.head, self.key_heads * self.head
        return 2 * (self.width + attention) + 2 * (self.width + keys) + self.inner + self.width

    @property
    def parameters(self) -> int:
        """Of a model of Llama's kind of this shape, without norms and biases."""
        attention = 2 * self.width * self.head * (self.heads + self.key_heads)
        embeddings = self.vocabulary * self.width * (1 if self.is_tied else 2)
        return self.layers * (attention + 3 * self.width * self.inner) + embeddings


def sizes(path: Path, *, dtype: str = "auto", rank: int, slots: int) -> Sizes:
    """Work out what a checkpoint takes.

    Args:
        path: its folder.
        dtype: that vLLM is told; ``auto`` halves float32, as vLLM does.
        rank: the most of an adapter.
        slots: adapters that are in the GPU at once.

    Raises:
        ModelUnavailable: not a checkpoint, or a damaged one.
        Unsupported: a mixture of experts, or a shape that the configuration does not tell.
    """
    config = json.loads((path / "config.json").read_text("utf-8"))
    shape = _shape(config)
    stored = checkpoint.stored(path)
    parameters, of_weights = sum(count for count, _ in stored.values()), sum(size for _, size in stored.values())
    if config.get("quantization_config"):  # packed, so that counting elements says nothing; the editing copy is the unquantised twin's
        parameters = shape.parameters
    else:
        width = _BYTES.get(dtype, 2)
        of_weights = sum(count * width for count, _ in stored.values())
    return Sizes(
        parameters=parameters,
        context=shape.context,
        weights=of_weights,
        cache_token=2 * shape.layers * shape.key_heads * shape.head * (4 if dtype == "float32" else 2),
        adapter_slot=shape.adapted * rank * _LORA_BYTES * shape.layers if _is_llamas(shape.kind) else 0,
        slots=slots,
        editing=_editing(shape, parameters),
        is_editable=_is_known(shape.kind),
    )


def layout(found: Sizes, gpu_gib: float) -> str:
    """Say how to serve and edit with GPUs of so much memory.

    Args:
        found: by :func:`sizes`.
        gpu_gib: of one GPU.
    """
    gpu = gpu_gib * GIB
    share = math.floor(100 * (_USABLE - found.editing / gpu)) / 100  # of it for vLLM, where planning gets its own
    apart = f"planning takes {shown(found.editing)} elsewhere: in the processor's memory (--edit-device cpu) or in a GPU of its own"
    if not found.is_editable or not found.adapter_slot:
        apart = "corrections act from the memory alone, as no editor or no adapter is known for such a model"
    elif found.serving <= share * gpu:
        return (
            f"one GPU for both: --vllm-arg=--gpu-memory-utilization={share:g} leaves planning its {shown(found.editing)}; "
            f"{_sequences(found, share * gpu)}"
        )
    if found.serving <= _USABLE * gpu:
        return f"one GPU for vLLM, {_sequences(found, _USABLE * gpu)}; {apart}"
    for parts in _SPLITS:
        each = (found.serving - _RESERVED) / parts + _RESERVED
        if each <= _USABLE * gpu:
            return f"{parts} GPUs for vLLM (--vllm-arg=--tensor-parallel-size={parts}), {shown(each)} of each at least; {apart}"
    return f"it fits no {_SPLITS[-1]} such GPUs: a shorter --max-model-len, fewer --max-loras or quantised weights take less"


def _sequences(found: Sizes, room: float) -> str:
    """How many whole sequences there is room for."""
    left = room - (found.serving - found.context * found.cache_token)
    count = int(left // (found.context * found.cache_token))
    return f"with room for {count:,} sequence{'s' if count != 1 else ''} of {found.context:,} tokens"


def _editing(shape: _Shape, parameters: int) -> int:
    """The editors' copy, their statistics, and a batch with gradients and all logits."""
    statistics = max(2, round(shape.layers / _EDITED)) * shape.inner**2 * 8
    batch = _BATCH * 4 * (_LOGITS * shape.vocabulary + shape.layers * (_WIDE * shape.width + _INNER * shape.inner))
    return parameters * _BYTES["float32"] + statistics + batch


def _shape(config: Mapping[str, Any]) -> _Shape:
    text: Mapping[str, Any] = config.get("text_config") or config
    kind = str(text.get("model_type") or config.get("model_type") or "")
    checkpoint.refuse_experts(text)
    width, heads = _number(text, "hidden_size", "n_embd", "d_model"), _number(text, "num_attention_heads", "n_head")
    shape = _Shape(
        kind,
        layers=_number(text, "num_hidden_layers", "n_layer", "num_layers"),
        width=width,
        inner=_number(text, "intermediate_size", "n_inner", "ffn_dim") or 4 * width,
        heads=heads,
        key_heads=_number(text, "num_key_value_heads") or heads,
        head=_number(text, "head_dim") or (width // heads if heads else 0),
        vocabulary=_number(text, "vocab_size"),
        context=_number(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
    )
    if not all((shape.layers, width, heads, shape.vocabulary, shape.context)):
        raise Unsupported("the configuration does not tell layers, widths, heads, vocabulary and context.", "See config.json.")
    return shape


def _number(config: Mapping[str, Any], *names: str) -> int:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)


def _is_known(kind: str) -> bool:
    from ke_tools.models.causal import ARCHITECTURES

    return kind in ARCHITECTURES


def _is_llamas(kind: str) -> bool:
    from ke_tools.models.causal import ARCHITECTURES

    return kind in ARCHITECTURES and ARCHITECTURES[kind].mlp_out.endswith("down_proj")


def shown(size: float) -> str:
    """In the unit that people count such things in."""
    for unit, bytes_ in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_:
            return f"{size / bytes_:.3g} {unit}" if size < 1000 * bytes_ else f"{size / bytes_:,.0f} {unit}"
    return f"{size:.0f} B"
