"""How a reader was made, where readers lie, and how one is installed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ke_tools.models.reader.training import Recipe

CARD: Final = "ke_reader.json"
WEIGHTS: Final = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that a reader was trained on."""

    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> DataFile:
        """Name and hash a file."""
        return cls(path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What one must know to trust a reader, and to make it again."""

    base_fingerprint: str
    base_model: str
    recipe: Recipe
    data: tuple[DataFile, ...]
    samples: int
    final_loss: float
    started_from: str = ""  # sha256 of the adapter that the training went on from
    training_subjects: tuple[str, ...] = field(repr=False)  # 8 hex digits of sha256(squashed subject): enough to leave them out of a bench


def hashes(subjects: Iterable[str]) -> tuple[str, ...]:
    """Short hashes of squashed subjects, sorted."""
    return tuple(sorted({hashlib.sha256(subject.encode()).hexdigest()[:8] for subject in subjects}))


def install(tuned: Any, card: Card, partial: Path, out: Path) -> None:
    """Write adapter and card beside ``out`` and put them there by a rename; the weights are stored in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    made = partial / "adapter"
    shutil.rmtree(made, ignore_errors=True)
    tuned.save_pretrained(made)
    weights = made / WEIGHTS
    save_file({name: w.to(torch.bfloat16).contiguous() for name, w in load_file(weights).items()}, weights, {"format": "pt"})
    config = json.loads((made / "adapter_config.json").read_text())
    config["target_modules"] = sorted(config["target_modules"])  # a set, in any order
    config["base_model_name_or_path"] = card.base_model  # a name, not this machine's path
    (made / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (made / "README.md").unlink(missing_ok=True)
    (made / CARD).write_text(json.dumps(asdict(card), indent=1) + "\n")
    out.parent.mkdir(parents=True, exist_ok=True)
    put(made, out)


def put(made: Path, out: Path) -> None:
    """Rename a folder to ``out``, on the same disk; what was there is deleted afterwards."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    made.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    _sync(out.parent)


def find(fingerprint: str, home: Path) -> Path | None:
    """Find the reader for a base model: one trained by the user (in ``home``) before a shipped one."""
    shipped = Path(str(resources.files("ke_tools.models"))) / "readers"
    for folder in (home / "readers", shipped):
        for found in sorted(folder.glob(f"*/{CARD}")) if folder.is_dir() else ():
            if json.loads(found.read_text("utf-8"))["base_fingerprint"] == fingerprint:
                return found.parent
    return None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
