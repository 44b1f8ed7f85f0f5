"""Codebooks inside vLLM: behind a block, a token of a request whose adapter has a codebook takes a value where its state is near a key.

A codebook lies as ``grace.safetensors`` in the adapter's folder, so that vLLM's own loading, unloading and prefix cache (which knows
adapters by name and path) hold for it too. vLLM's blocks give out what they add and the residual stream apart; their sum is the state that
keys were made from. Tokens of other requests are not touched, to the bit. The hooks need eager execution, which LoRA on a CPU has anyway.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

_log = logging.getLogger("vllm.ke_tools")

FILE = "grace.safetensors"


class Book:
    """One release's codebook on one device."""

    def __init__(self, path: str, device: Any, dtype: Any) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self.layer = int(file.metadata()["layer"])
            keys, values, epsilons, owners = (file.get_tensor(name) for name in ("keys", "values", "epsilons", "owners"))
        self.keys, self.values = keys.to(device).float(), values.to(device, dtype)
        self.epsilons, self.owners = epsilons.to(device).float(), owners.to(device)
        self.squares = self.keys.pow(2).sum(1)

    def act(self, added: Any, residual: Any, rows: Any) -> tuple[Any, Any]:
        """Replace the states that are near a key, of these rows (a mask)."""
        import torch

        states = (added + residual).float()
        distances = (states.pow(2).sum(-1, keepdim=True) - 2 * states @ self.keys.T + self.squares).clamp_min(0).sqrt()  # ‖h − k_j‖
        nearest, which = distances.min(-1)
        hit = ((nearest <= self.epsilons[which]) & rows)[:, None]
        values = self.values[self.owners[which]].to(added.dtype)
        return torch.where(hit, values, added), torch.where(hit, torch.zeros_like(residual), residual)


def register() -> None:
    """Read a codebook with each adapter that has one."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    load = WorkerLoRAManager._load_adapter
    if getattr(load, "of_ke_tools", False):
        return

    @functools.wraps(load)
    def load_with_book(self: Any, request: Any) -> Any:
        lora = load(self, request)
        path = Path(request.lora_path) / FILE
        if path.exists():
            manager = self._adapter_manager
            lora.ke_book = Book(str(path), manager.device, self.lora_config.lora_dtype)
            _hook(manager, lora.ke_book.layer)
            _log.info(
                "ke-tools: %s has a codebook of %d keys behind block %d", request.lora_name, len(lora.ke_book.keys), lora.ke_book.layer
            )
        return lora

    load_with_book.of_ke_tools = True  # type: ignore[attr-defined]
    WorkerLoRAManager._load_adapter = load_with_book


def _hook(manager: Any, layer: int) -> None:
    hooked = manager.__dict__.setdefault("ke_hooked", set())
    if layer not in hooked:
        hooked.add(layer)
        manager.model.model.layers[layer].register_forward_hook(functools.partial(_behind, manager, layer))


def _behind(manager: Any, layer: int, _module: Any, _inputs: Any, output: Any) -> Any:
    added, residual = output
    slots = None
    for slot, lora_id in enumerate(manager.lora_index_to_id):
        book = getattr(manager._registered_adapters.cache.get(lora_id), "ke_book", None) if lora_id is not None else None
        if book is None or book.layer != layer:
            continue
        if slots is None:
            slots = next(iter(manager.punica_wrapper_mapping.values()))._token_lora_indices[: added.shape[0]]
        rows = slots == slot
        if bool(rows.any()):
            added, residual = book.act(added, residual, rows)
    return added, residual
