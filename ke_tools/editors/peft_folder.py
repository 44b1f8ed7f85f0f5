"""An update as a LoRA adapter in PEFT's form, which transformers, PEFT and vLLM read; and back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from ke_tools.editors import _safetensors
from ke_tools.editors._solve import Factors
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, ModelUnavailable
from ke_tools.models.causal import CausalModel

__all__ = ["CONFIG", "WEIGHTS", "read", "scale", "write"]

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_FINGERPRINT: Final = "base_fingerprint"  # in the weights' metadata


def write(update: Update, model: CausalModel, folder: Path, *, base: str = "") -> None:
    """Write an adapter whose every scaling is 1: B A = Δ. The same update gives the same bytes.

    Args:
        update: low-rank; see :meth:`Update.truncated` for a server with a highest rank.
        model: whose projections it changes.
        folder: made if need be.
        base: name or path of the base model, for the configuration.

    Raises:
        InvalidInput: the update does not fit the model.
    """
    update.check(model)
    names = {layer: model.projection_name(layer) for layer in update.changes}
    ranks = {names[layer]: change.right.shape[0] for layer, change in update.changes.items()}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": update.rank,
        "lora_alpha": update.rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(names.values()),
        "fan_in_fan_out": any(model.is_transposed(layer) for layer in update.changes),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for layer, (left, right) in update.changes.items():
        tensors[f"{_PREFIX}{names[layer]}.lora_A.weight"] = right.float()
        tensors[f"{_PREFIX}{names[layer]}.lora_B.weight"] = left.float()
    told = {_FINGERPRINT: update.fingerprint, "method": json.dumps(dict(update.method), sort_keys=True)}
    _safetensors.write(tensors, folder / WEIGHTS, told)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def read(folder: Path, model: CausalModel) -> Update:
    """Read an adapter that changes nothing but MLP output projections.

    Raises:
        ModelUnavailable: missing or damaged.
        InvalidInput: it changes something else, has a shape that does not fit, or was made for another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        layers = {model.projection_name(n): n for n in range(len(model.blocks))}
        found: dict[int, dict[str, Any]] = {}
        for name, tensor in tensors.items():
            match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])\.weight", name)
            if match is None or match[1] not in layers:
                raise InvalidInput(f"the adapter in {folder} changes {name}, which is no MLP output projection.", "Load it through PEFT.")
            found.setdefault(layers[match[1]], {})[match[2]] = tensor
        scales = {n: scale(config, model.projection_name(n), parts["A"].shape[0]) for n, parts in found.items()}
        changes = {n: Factors(parts["B"] * scales[n], parts["A"]) for n, parts in sorted(found.items())}
        method = json.loads(told.get("method", "{}"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the adapter in {folder} cannot be read: {error}", "Export it again.") from error
    update = Update(method, changes, fingerprint=told.get(_FINGERPRINT, ""))
    update.check(model)
    return update


def scale(config: dict[str, Any], name: str, rank: int) -> float:
    """What a LoRA of PEFT's is multiplied by: alpha over the rank, or over its root."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), config["lora_alpha"])
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
