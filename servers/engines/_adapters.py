"""Adapters on a loaded model, switched on for one batch at a time: a LoRA, or a release with a LoRA, a codebook, or both.

A request may name several, joined by ``+``: what their LoRAs add is summed, and their codebooks look up one behind the other, in the
order of the names. Without an adapter the model computes exactly what it computed before any was loaded: PEFT's layers then hand the
input to the layer that they wrap, and go themselves with the last adapter that needs them. Adapters that would change the base weights
themselves (biases, initialisations that subtract from them, repeated layers) are refused, and releases of which a byte has changed.

A release is hooks, which are there only while a batch uses it. PEFT would read its adapter too, but walks through the whole model for
each, which stops everybody's answers for a fifth of a second, and rounds the factors to the model's type.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from ke_tools import releases
from ke_tools.editors import peft_folder
from ke_tools.editors.codebook import load_codebook
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, Unsupported
from ke_tools.models.causal import CausalModel
from ke_tools.releases import Release

CARD: Final = "ke_reader.json"  # beside the adapter; says for which base it was made
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MAKE_AGAIN: Final = "Make the adapter again for this model."
_HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian"),
    "layer_replication": (None,),
}


def names_in(adapter: str) -> tuple[str, ...]:
    """The adapters that a request names."""
    return tuple(adapter.split("+")) if adapter else ()


def check_adapter(name: str, path: Path) -> str:
    """Refuse an adapter that cannot be served.

    Returns:
        The fingerprint of the base that it was made for; ``""`` if its card does not say or there is none.

    Raises:
        InvalidInput: a name that cannot be one.
        ModelUnavailable: files are missing or damaged.
        Unsupported: of a kind that would touch the base.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot be an adapter's name.", "Use letters, digits, _ and -.")
    if not releases.looks_like_one(path):
        return _check_lora(path)
    release = releases.read(path)
    if release.has_adapter:
        _check_lora(path)
    return release.fingerprint


def _check_lora(path: Path) -> str:
    config = _json(path / "adapter_config.json")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelUnavailable(f"{path} has no adapter_model.safetensors.", "Only safetensors are read; save the adapter in that format.")
    if config.get("peft_type") != "LORA":
        raise Unsupported(f"the adapter in {path} is of the kind {config.get('peft_type')!r}; only LORA is served.", _MAKE_AGAIN)
    touches = [f"{key}={config[key]!r}" for key, harmless in _HARMLESS.items() if config.get(key) not in harmless]
    if touches:
        raise Unsupported(f"the adapter in {path} would change the base weights ({', '.join(touches)}).", "Make it without.")
    card = path / CARD
    return str(_json(card).get("base_fingerprint") or "") if card.is_file() else ""


class Adapters:
    """The adapters of one model. Used by the engine's thread alone."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._names: set[str] = set()
        self._layers: list[Any] = []
        self._releases: dict[str, list[tuple[str, Callable[..., Any]]]] = {}  # names of modules, and what to hook behind them
        self._hooks: list[Any] = []  # those of the batch that is under way
        self._in_use: str | None = ""
        self._loras_in_use: list[str] | None = []

    def add(self, name: str, path: Path) -> None:
        """Load an adapter that was checked; a failure leaves the model as it was.

        Raises:
            ModelUnavailable: it does not fit the model.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if releases.looks_like_one(path):
                    self._releases[name] = self._read(releases.read(path))
                else:
                    self._inject(name, path)
        except (KeyError, ValueError, RuntimeError, TypeError, OSError, KeToolsError) as error:
            self._names.add(name)
            self.remove(name)
            raise ModelUnavailable(f"the adapter in {path} does not fit the model: {error}", _MAKE_AGAIN) from error
        self._names.add(name)
        self._refresh()

    def remove(self, name: str) -> None:
        """Forget an adapter; with the last one the model is as it was loaded."""
        self._names.discard(name)
        self._releases.pop(name, None)
        self._refresh()
        for layer in self._layers:
            layer.delete_adapter(name)
        configs = getattr(self._model, "peft_config", {})
        configs.pop(name, None)
        self._unwrap()
        if not configs:
            self._model.__dict__.pop("peft_config", None)
        self._refresh()

    def use(self, adapter: str) -> None:
        """Have the model answer with these adapters (``a`` or ``a+b``); ``""``: without any.

        Raises:
            InvalidInput: one of them is there no more.
        """
        if adapter == self._in_use:
            return
        names = names_in(adapter)
        for name in names:
            if name not in self._names:  # unloaded between the request's check and its turn; PEFT would answer from the base
                raise InvalidInput(f"the adapter {name!r} was unloaded.", "Ask again.")
        self._use_loras([name for name in names if name not in self._releases])
        while self._hooks:
            self._hooks.pop().remove()
        for name in names:
            for place, hook in self._releases.get(name, ()):
                self._hooks.append(self._model.get_submodule(place).register_forward_hook(hook))
        self._in_use = adapter

    def _use_loras(self, names: list[str]) -> None:
        if names == self._loras_in_use:
            return
        for layer in self._layers:  # not set_adapter and enable_adapters: they visit every weight, for what is trained
            layer._active_adapter = names  # noqa: SLF001
            layer._disable_adapters = not names  # noqa: SLF001
        self._loras_in_use = names

    def _read(self, release: Release) -> list[tuple[str, Callable[..., Any]]]:
        model = CausalModel(self._model, self._tokenizer)
        hooks: list[tuple[str, Callable[..., Any]]] = []
        if release.has_adapter:
            found = peft_folder.read(release.folder, model).hooks(model)
            hooks += [(model.projection_name(layer), hook) for layer, hook in found.items()]
        if release.has_codebook:
            codebook = load_codebook(release.folder)
            hooks.append((f"{model.architecture.blocks}.{codebook.layer}", codebook.hook(model)))
        return hooks

    def _inject(self, name: str, path: Path) -> None:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.utils.save_and_load import set_peft_model_state_dict
        from safetensors.torch import load_file

        config = LoraConfig.from_pretrained(str(path))
        config.inference_mode = True
        inject_adapter_in_model(config, self._model, adapter_name=name)
        weights = load_file(str(path / "adapter_model.safetensors"))
        weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
        result = set_peft_model_state_dict(self._model, weights, adapter_name=name)
        own = re.compile(rf"\.lora_\w+\.{name}(\.|$)")  # an adapter may be called like a module
        missing = [key for key in result.missing_keys if own.search(key)]
        if missing or result.unexpected_keys:
            raise ValueError(f"weights missing: {missing[:3]}, without a place: {list(result.unexpected_keys)[:3]}")
        self._model.eval().requires_grad_(requires_grad=False)

    def _refresh(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        self._in_use = self._loras_in_use = None
        self.use("")

    def _unwrap(self) -> None:
        """Put the model's own layers back where no adapter needs the wrapping."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for place, module in list(self._model.named_modules()):
            if isinstance(module, BaseTunerLayer) and not module._all_available_adapter_names():  # noqa: SLF001
                parent, _, leaf = place.rpartition(".")
                setattr(self._model.get_submodule(parent), leaf, module.get_base_layer())


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{file} cannot be read: {error}", "Give a PEFT adapter's folder.") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{file} holds no JSON object.", "Give a PEFT adapter's folder.")
    return found
