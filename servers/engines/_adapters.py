"""LoRA adapters on a loaded model, switched on for one batch at a time.

Without an adapter the model computes exactly what it computed before any was loaded: PEFT's layers then hand the input to
the layer that they wrap, and with the last adapter the wrapping goes too. Adapters that would change the base weights
themselves (biases, initialisations that subtract from them, repeated layers) are refused.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from ke_tools.errors import InvalidInput, ModelUnavailable, Unsupported

CARD: Final = "ke_reader.json"  # beside the adapter; says for which base it was made
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MAKE_AGAIN: Final = "Make the adapter again for this model."
_HARMLESS: Final[Mapping[str, tuple[object, ...]]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian"),
    "layer_replication": (None,),
}


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

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._names: set[str] = set()
        self._layers: list[Any] = []
        self._in_use: str | None = ""

    def add(self, name: str, path: Path) -> None:
        """Load an adapter that was checked; a failure leaves the model as it was.

        Raises:
            ModelUnavailable: it does not fit the model.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._inject(name, path)
        except (KeyError, ValueError, RuntimeError, TypeError, OSError) as error:
            self._names.add(name)
            self.remove(name)
            raise ModelUnavailable(f"the adapter in {path} does not fit the model: {error}", _MAKE_AGAIN) from error
        self._names.add(name)
        self._refresh()

    def remove(self, name: str) -> None:
        """Forget an adapter; with the last one the model is as it was loaded."""
        self._names.discard(name)
        self._refresh()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for layer in self._layers:
                layer.delete_adapter(name)
        getattr(self._model, "peft_config", {}).pop(name, None)
        if not self._names:
            self._unwrap()
            self._model.__dict__.pop("peft_config", None)
            self._refresh()

    def use(self, name: str) -> None:
        """Have the model answer with this adapter; ``""``: without any.

        Raises:
            InvalidInput: there is no such adapter any more.
        """
        if name == self._in_use:
            return
        if name and name not in self._names:  # unloaded between the request's check and its turn; PEFT would answer from the base
            raise InvalidInput(f"the adapter {name!r} was unloaded.", "Ask again.")
        for layer in self._layers:
            if name:
                layer.set_adapter([name], inference_mode=True)
            layer._disable_adapters = not name  # noqa: SLF001  enable_adapters() would also make the weights trainable
        self._in_use = name

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
        missing = [key for key in result.missing_keys if f".{name}." in key]
        if missing or result.unexpected_keys:
            raise ValueError(f"weights missing: {missing[:3]}, without a place: {list(result.unexpected_keys)[:3]}")
        self._model.eval().requires_grad_(requires_grad=False)

    def _refresh(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        self._in_use = None
        self.use("")

    def _unwrap(self) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for place, module in list(self._model.named_modules()):
            if isinstance(module, BaseTunerLayer):
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
