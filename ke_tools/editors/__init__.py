"""Editors: one method a file, a frozen dataclass that is its own configuration."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, fields, replace
from importlib import import_module
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from ke_tools.errors import InvalidInput

__all__ = ["METHODS", "make", "numbers"]

METHODS: Final = {
    "memit": "memit:MEMIT",
    "rome": "rome:ROME",
    "emmet": "emmet:EMMET",
    "alphaedit": "alphaedit:AlphaEdit",
    "pmet": "pmet:PMET",
    "ft-m": "finetune:FT",
    "ft-l": "finetune:FT",
    "lora": "finetune:LoRA",
    "grace": "grace:GRACE",
}
_PRESET: Final = {"ft-l": {"objective": "last"}}


def make(name: str, **settings: str) -> Any:
    """Make a method by name, its fields from text; a field of its objective goes by its own name.

    Raises:
        InvalidInput: no such method or field, or a value that the field cannot have.
    """
    if name not in METHODS:
        raise InvalidInput(f"there is no method {name!r}.", f"Known are {', '.join(METHODS)}.")
    module, _, kind = METHODS[name].partition(":")
    method = getattr(import_module(f"{__name__}.{module}"), kind)
    known = {field.name: field for field in fields(method)}
    hints = get_type_hints(method)
    values: dict[str, Any] = dict(_PRESET.get(name, {}))
    inner: dict[str, Any] = {}
    objective = known["objective"].default_factory() if "objective" in known and known["objective"].default_factory is not MISSING else None
    own = get_type_hints(type(objective)) if objective is not None else {}
    for key, text in settings.items():
        if key in known and key != "objective":
            values[key] = _value(hints[key], text, key)
        elif key in own:
            inner[key] = _value(own[key], text, key)
        else:
            raise InvalidInput(f"{name} has no field {key!r}.", f"It has {', '.join([*known, *own])}.")
    if inner:
        values["objective"] = replace(objective, **inner)  # type: ignore[type-var]
    return method(**values)


def numbers(text: str) -> tuple[int, ...]:
    """Numbers of layers as one writes them: ``4,5,6`` or ``4-6``.

    Raises:
        ValueError: it is neither.
    """
    first, dash, last = text.partition("-")
    return tuple(range(int(first), int(last) + 1)) if dash else tuple(int(part) for part in text.split(","))


def _value(kind: Any, text: str, name: str) -> Any:
    for one in sorted(_choices(kind), key=_is_words, reverse=True):  # a word that is meant before any text
        with suppress(ValueError, TypeError):
            return _read(one, text)
    raise InvalidInput(f"{name} cannot be {text!r}.", f"It is {getattr(kind, '__name__', kind)}.")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The types that a field may have, but None, which no text means."""
    return tuple(one for one in get_args(kind) if one is not type(None)) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_words(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _read(kind: Any, text: str) -> Any:
    if _is_words(kind):
        return get_args(kind)[get_args(kind).index(text)]
    return numbers(text) if kind == tuple[int, ...] else kind(text)
