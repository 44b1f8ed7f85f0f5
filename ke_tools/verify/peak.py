"""The most memory that this process held, in MiB: since it was last reset where the system can do that, else since it began.

Of a process that computes on CUDA, the GPU's memory.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

__all__ = ["peak", "reset"]

_PROCESS: Final = Path("/proc/self")
_RESET: Final = "5"  # proc(5): of the peak resident set size


def reset() -> None:
    """Begin anew."""
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()
    with suppress(OSError):
        (_PROCESS / "clear_refs").write_text(_RESET, "ascii")


def peak() -> int:
    """Read the mark."""
    if cuda := _cuda():
        return round(int(cuda.max_memory_allocated()) / 2**20)
    with suppress(OSError, StopIteration, ValueError):
        lines = (_PROCESS / "status").read_text("ascii", "replace").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


def _cuda() -> Any:
    """CUDA, if this process has used it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
