"""Repairs LoRA on a CPU: vLLM 0.32 lets a request without adapter use the last slot when it shares a batch with one that has an adapter.

The number of no adapter is -1, which as an index means the last; the kernels of accelerators skip it, the CPU's do not (upstream:
vllm-project/vllm#48421, #49656). Rows without adapter are skipped here, and each adapter's rows are one product.

Where oneDNN computes with 8-bit weights, as on processors without AMX, it keeps them in a form of its own, and the layer has none; vLLM
asks the weight for the device that an adapter goes to, and does not start. Here that is the processor, whatever the layer has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def register() -> bool:
    """Put the repaired operations in, where vLLM computes on a CPU; says whether that is so."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return False
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for module in (lora_ops, punica_cpu):
        for name in ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice", "sgmv_shrink", "sgmv_expand", "sgmv_expand_slice"):
            setattr(module, name, globals()[name])
    from vllm.lora.layers import base_linear

    base_linear._get_lora_device = _on_processor
    return True


def _on_processor(_base_layer: Any) -> Any:
    import torch

    return torch.device("cpu")


def _groups(indices: Any) -> Iterator[tuple[int, Any]]:
    """The rows of each adapter; those without one are none."""
    import torch

    for slot in torch.unique(indices).tolist():
        if slot >= 0:
            yield slot, (indices == slot).nonzero(as_tuple=True)[0]


def _weight(stacked: Any, slot: int, like: Any) -> Any:
    """One adapter's factor [rows, columns] out of those of all."""
    weight = stacked[slot]
    return (weight[0] if weight.dim() == 3 else weight).to(like.dtype)  # noqa: PLR2004


def bgmv_shrink(inputs: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:
    """``output`` ← scaling · A x of each row's adapter."""
    for slot, rows in _groups(indices):
        a = _weight(weights, slot, output)
        output[rows, : a.shape[0]] = scaling * (inputs[rows].to(output.dtype) @ a.T)


def bgmv_expand_slice(inputs: Any, weights: Any, output: Any, indices: Any, offset: int, size: int, add_inputs: bool = True) -> None:
    """``output``, some columns of it, ← (itself +) B y of each row's adapter."""
    for slot, rows in _groups(indices):
        b = _weight(weights, slot, output)
        width = min(size, b.shape[0], output.shape[1] - offset)
        made = (inputs[rows].to(output.dtype) @ b.T)[:, :width]
        if add_inputs:
            output[rows, offset : offset + width] += made
        else:
            output[rows, offset : offset + width] = made


def bgmv_expand(inputs: Any, weights: Any, output: Any, indices: Any, add_inputs: bool = True) -> None:
    """The same of all columns."""
    bgmv_expand_slice(inputs, weights, output, indices, 0, output.shape[1], add_inputs)


def _spread(indices: Any, lengths: Any) -> Any:
    import torch

    return torch.repeat_interleave(indices, lengths)


def sgmv_shrink(
    inputs: Any,
    weights: Any,
    output: Any,
    _starts: Any,
    lengths: Any,
    indices: Any,
    _batches: int,
    _longest: int,
    _tokens: int,
    scaling: float,
) -> None:
    """As :func:`bgmv_shrink`, the adapter told of each sequence."""
    bgmv_shrink(inputs, weights, output, _spread(indices, lengths), scaling)


def sgmv_expand(
    inputs: Any,
    weights: Any,
    output: Any,
    _starts: Any,
    lengths: Any,
    indices: Any,
    _batches: int,
    _longest: int,
    _tokens: int,
    add_inputs: bool = False,
) -> None:
    """As :func:`bgmv_expand`."""
    bgmv_expand(inputs, weights, output, _spread(indices, lengths), add_inputs)


def sgmv_expand_slice(
    inputs: Any,
    weights: Any,
    output: Any,
    _starts: Any,
    lengths: Any,
    indices: Any,
    _batches: int,
    _longest: int,
    _tokens: int,
    offset: int,
    size: int,
    add_inputs: bool = False,
) -> None:
    """As :func:`bgmv_expand_slice`."""
    bgmv_expand_slice(inputs, weights, output, _spread(indices, lengths), offset, size, add_inputs)
