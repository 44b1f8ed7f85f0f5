"""A quantised form of a checkpoint, as vLLM reads it: 8-bit weights and activations in the format of compressed-tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

_MOST: Final = 127
_QUANTISED: Final[dict[str, Any]] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
        }
    },
}


def quantised(source: Path, target: Path) -> Path:
    """Write a Llama's projections with 8 bits a weight, each output channel on a scale of its own; the rest stays.

    Args:
        source: folder of the checkpoint, in one file.
        target: folder to make.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": _QUANTISED}), "utf-8")
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True).clamp(min=1e-8) / _MOST
        tensors[name] = (tensor.float() / scale).round().clamp(-_MOST, _MOST).to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target
