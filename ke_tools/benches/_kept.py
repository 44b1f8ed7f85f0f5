"""What a bench has finished, kept in the cache by all that it depends on, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ke_tools.editors._spread import described

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["keep", "load", "resolved"]


def load(folder: Path, key: DataclassInstance) -> Any | None:
    """What was kept under a key; nothing where nothing was, or where the file is damaged.

    Args:
        folder: where it lies.
        key: a frozen dataclass with all that the result depends on, as far as JSON can hold it.
    """
    try:
        kept = json.loads(_file(folder, key).read_text("utf-8"))
        return kept["found"] if kept["key"] == _told(key) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(folder: Path, key: DataclassInstance, found: Any) -> None:
    """Write a result, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False, suffix=".tmp") as file:
        json.dump({"key": _told(key), "found": found}, file, ensure_ascii=False, indent=1)
    Path(file.name).replace(_file(folder, key))


def resolved(editor: Any) -> dict[str, Any]:
    """An editor's fields for a key: defaults too, which a later version may change, and of a text what it says, not where it lies."""
    text = getattr(editor, "text", None)
    return {**described(editor), "text": hashlib.sha256(text.read_bytes()).hexdigest() if text else None}


def _file(folder: Path, key: DataclassInstance) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(_told(key), sort_keys=True).encode()).hexdigest()[:32]}.json"


def _told(key: DataclassInstance) -> Any:
    """A key as it reads once it has been in a file."""
    return json.loads(json.dumps({"kind": type(key).__qualname__, **asdict(key)}))
