"""What runs on this machine, as the tests of processes that start others must know it."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def below(pid: int) -> list[int]:
    """All living processes that a process started, and those started."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True) if is_alive(child.pid)]
