"""Writing tensors so that the same content gives the same bytes, and keeping one in a cache."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

__all__ = ["SampledKey", "keep", "kept", "write"]

_VERSION: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledKey:
    """All that a tensor depends on that follows from a model's own samples."""

    model: str  # fingerprint of the weights
    layer: int
    tokens: int
    seed: int  # of the samples
    dtype: str
    version: int = _VERSION

    @property
    def name(self) -> str:
        """A name for its file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def write(tensors: Mapping[str, torch.Tensor], file: Path, told: Mapping[str, str]) -> None:
    """Write tensors, and what is told of them in the header's metadata.

    The library sorts tensors, but puts the metadata's keys in an order that differs from call to call; here they are sorted too.

    Raises:
        OSError: the file could not be written.
    """
    from safetensors.torch import save

    whole = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(told))
    end = 8 + int.from_bytes(whole[:8], "little")
    header = {**json.loads(whole[8:end]), "__metadata__": dict(sorted(told.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        out.write(memoryview(whole)[end:])


def keep(file: Path, tensor: torch.Tensor, key: SampledKey) -> None:
    """Put a tensor into a cache in one step. A full or read-only disk costs the cache, not the answer."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False, suffix=".tmp") as made:
            place = Path(made.name)
        write({"tensor": tensor.cpu()}, place, {"key": json.dumps(asdict(key), sort_keys=True)})
        place.replace(file)


def kept(file: Path) -> torch.Tensor | None:
    """What :func:`keep` put there; none where the file is missing, damaged, or holds numbers that are none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            found: torch.Tensor = opened.get_tensor("tensor")
    except (OSError, SafetensorError):
        return None
    return found if bool(found.isfinite().all()) else None
