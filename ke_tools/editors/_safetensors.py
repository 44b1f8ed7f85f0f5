"""Writing tensors so that the same content gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["write"]


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
