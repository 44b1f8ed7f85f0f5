"""What this machine has to hold a model in: GPUs, and the processor's memory. Torch is asked only where a GPU can be."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Machine", "this_machine"]

_DEVICES: Final = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's and AMD's drivers, and of both under Windows
_LIMITS: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
_MEMINFO: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes."""

    gpus: tuple[int, ...]  # of each that torch sees
    looked: str  # how they were looked for, in words
    memory: int  # the processor's, as far as this container may take it; 0: the system does not tell
    available: int  # of that now; 0: the system does not tell


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    gpus, looked = _gpus()
    memory = _memory()
    return Machine(gpus, looked, memory, min(_available(), memory))


def _gpus() -> tuple[tuple[int, ...], str]:
    if "torch" not in sys.modules and not any(Path(device).exists() for device in _DEVICES):  # importing it takes seconds
        return (), "there is no GPU (no driver's device; torch was not asked)"
    try:
        import torch

        found = tuple(int(torch.cuda.get_device_properties(n).total_memory) for n in range(torch.cuda.device_count()))
    except Exception as error:  # noqa: BLE001  a driver that is broken raises what it likes
        return (), f"torch sees no GPU ({type(error).__name__}: {error})"
    return found, f"torch sees {len(found) or 'no'} GPU{'s' if len(found) > 1 else ''}"


def _memory() -> int:
    total = 0
    with suppress(AttributeError, OSError, ValueError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # no such file, or "max"
            total = min(total, int(Path(limit).read_text("ascii")))
    return total


def _available() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = _MEMINFO.read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    return 0
