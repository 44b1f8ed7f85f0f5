"""Codebooks inside vLLM: behind a block, a token of a request whose adapter has a codebook takes a value where its state is near a key.

A codebook lies as ``grace.safetensors`` in the adapter's folder, so that vLLM's own loading, unloading and prefix cache (which knows
adapters by name and path) hold for it too. vLLM's blocks give out what they add and the residual stream apart; their sum is the state that
keys were made from. Tokens of other requests are not touched, to the bit.

There are two forms. Where vLLM runs eagerly, a hook is put behind the block that a codebook names when it comes. Where it compiles, the
blocks and the room behind them are said at the start (``places``), and a codebook without a place is refused.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

_log = logging.getLogger("vllm.ke_tools")
_places = import_module(".places", __package__)

FILE = "grace.safetensors"


class Book:
    """One release's codebook."""

    def __init__(self, path: str, dtype: Any) -> None:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            self.layer = int(file.metadata()["layer"])
            keys, values, epsilons, owners = (file.get_tensor(name) for name in ("keys", "values", "epsilons", "owners"))
        self.keys, self.values, self.epsilons, self.owners = keys.float(), values.to(dtype), epsilons.float(), owners
        self.squares = self.keys.pow(2).sum(1)

    def to(self, device: Any) -> Book:
        """The same on a device."""
        moved = copy.copy(self)
        for name in ("keys", "values", "epsilons", "owners", "squares"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def act(self, added: Any, residual: Any, rows: Any) -> tuple[Any, Any]:
        """Replace the states that are near a key, of these rows (a mask)."""
        hit, which = _places.near((added + residual).float(), self.keys, self.squares, self.epsilons, rows[:, None])
        found: tuple[Any, Any] = _places.replaced(hit, self.values[self.owners[which]], added, residual)
        return found


def register() -> None:
    """Read a codebook with each adapter that has one, and have it act while the adapter is in a slot."""
    from vllm.lora.model_manager import LoRAModelManager
    from vllm.lora.worker_manager import WorkerLoRAManager
    from vllm.v1.worker.worker_base import WorkerBase

    if hasattr(WorkerBase, "ke_codebooks"):
        return
    WorkerBase.ke_codebooks = lambda self: told(getattr(self.get_model(), "lora_manager", None))
    _then(LoRAModelManager, "__init__", prepare)
    _then(LoRAModelManager, "activate_adapter", fill)
    _then(WorkerLoRAManager, "_load_adapter", read)


def _then(owner: Any, name: str, more: Callable[..., Any]) -> None:
    """Have a method go on: ``more`` gets its object, its result and its arguments, and gives the result."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def longer(self: Any, *args: Any, **named: Any) -> Any:
        return more(self, method(self, *args, **named), *args, **named)

    setattr(owner, name, longer)


def prepare(manager: Any, _nothing: None, *_args: Any, vllm_config: Any, **_named: Any) -> None:
    """Put the places in that the start asked for; of a model in several parts behind the blocks that are here.

    Raises:
        ValueError: the setting is none.
    """
    compilation = vllm_config.compilation_config
    manager.ke_is_eager = compilation.mode.name == "NONE" and compilation.cudagraph_mode.name == "NONE"
    manager.ke_places = {}
    blocks = getattr(getattr(manager.model, "model", None), "layers", ())
    manager.ke_room = _places.room_of(vllm_config.additional_config, len(blocks))
    for layer, room in manager.ke_room.items():
        if type(blocks[layer]).__name__ != "PPMissingLayer":
            width, dtype = vllm_config.model_config.get_hidden_size(), manager.lora_config.lora_dtype
            manager.ke_places[layer] = _places.Places(manager.lora_slots, room, width, _slots_of_tokens(manager), dtype)
    _places.put_in(manager.ke_places, blocks, vllm_config.additional_config)


def read(workers: Any, lora: Any, request: Any) -> Any:
    """Read an adapter's codebook, if it has one.

    Raises:
        ValueError: it could not act.
    """
    path = Path(request.lora_path) / FILE
    if not path.exists():
        return lora
    manager = workers._adapter_manager
    book = Book(str(path), manager.lora_config.lora_dtype)
    room = manager.ke_room.get(book.layer)
    if room is None and manager.ke_is_eager:
        book = book.to(manager.device)
        _hook(manager, book.layer)
    elif room is None or room < len(book.keys):
        has, else_ = ("no", " or --enforce-eager") if room is None else (room, "")
        raise ValueError(
            f"a codebook of {len(book.keys)} keys, and {has} places for it behind block {book.layer}. "
            f"Start vLLM with {_places.advice(book.layer, len(book.keys))}{else_}."
        )
    lora.ke_book = book
    _log.info("ke-tools: %s has a codebook of %d keys behind block %d", request.lora_name, len(book.keys), book.layer)
    return lora


def fill(manager: Any, is_new: bool, lora_id: int) -> bool:
    """Write what an adapter has into the places of the slot that it came to; what another left there is gone."""
    if is_new:
        slot, book = manager.lora_index_to_id.index(lora_id), _book(manager, lora_id)
        for layer, places in manager.ke_places.items():
            places.fill(slot, book if book is not None and book.layer == layer else None)
    return is_new


def told(manager: Any | None) -> dict[str, Any]:
    """How codebooks act in this worker: by ``hooks``, in ``places`` (keys of an adapter at most, by block), or ``none`` do."""
    if manager is None:
        return {"form": "none", "room": {}}
    form = "places" if manager.ke_room else "hooks" if manager.ke_is_eager else "none"
    return {"form": form, "room": {str(layer): room for layer, room in manager.ke_room.items()}}


def _book(manager: Any, lora_id: int | None) -> Any | None:
    return getattr(manager._registered_adapters.cache.get(lora_id), "ke_book", None)


def _slots_of_tokens(manager: Any) -> Any:
    """The slot of each token of a batch, and -1 of those without adapter; vLLM writes it before each batch."""
    return next(iter(manager.punica_wrapper_mapping.values()))._token_lora_indices


def _hook(manager: Any, layer: int) -> None:
    hooked = manager.__dict__.setdefault("ke_hooked", {})
    if layer not in hooked:
        hooked[layer] = manager.model.model.layers[layer].register_forward_hook(functools.partial(_behind, manager, layer))


def _unhook(manager: Any, layer: int) -> None:
    """Take a hook away that no adapter here has a codebook for any more: vLLM tells nobody that it dropped one."""
    kept = manager._registered_adapters.cache
    if not any(book is not None and book.layer == layer for book in (_book(manager, lora_id) for lora_id in kept)):
        manager.ke_hooked.pop(layer).remove()


def _behind(manager: Any, layer: int, _module: Any, _inputs: Any, output: Any) -> Any:
    added, residual = output
    slots = _slots_of_tokens(manager)[: added.shape[0]]
    found = ((slot, _book(manager, lora_id)) for slot, lora_id in enumerate(manager.lora_index_to_id))
    books = [(slot, book) for slot, book in found if book is not None and book.layer == layer]
    if not books:
        _unhook(manager, layer)
    for slot, book in books:
        rows = slots == slot
        if bool(rows.any()):
            added, residual = book.act(added, residual, rows)
    return added, residual
