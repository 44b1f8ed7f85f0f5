"""What a bench prints: one object with results, bars and the machine it ran on."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ke_tools.verify.rates import Rate

__all__ = ["Bar", "Progress", "Stages", "at_least", "at_most", "machine", "missed", "report"]

Progress = Callable[[str, int, int], None]  # stage, done, total


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that must be reached."""

    name: str
    value: float
    stderr: float
    bar: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        """Render flat."""
        return {"name": self.name, "value": round(self.value, 4), "stderr": round(self.stderr, 4), "bar": self.bar, "ok": self.ok}


def at_least(name: str, found: Rate, bar: float) -> Bar:
    """A rate that must not lie below ``bar``; one that was not measured misses it."""
    return Bar(name, found.value or 0.0, found.stderr, bar, found.value is not None and found.value >= bar)


def at_most(name: str, value: float, bar: float) -> Bar:
    """A number that must not lie above ``bar``."""
    return Bar(name, value, 0.0, bar, value <= bar)


def report(bench: str, model: str, seed: int, results: dict[str, Any], bars: Sequence[Bar] = ()) -> dict[str, Any]:
    """Join everything into the object that is printed."""
    return {
        "bench": bench,
        "model": model,
        "seed": seed,
        "results": results,
        "bars": [bar.as_dict() for bar in bars],
        "machine": machine(),
    }


def missed(printed: dict[str, Any]) -> bool:
    """Whether any bar of a printed report was missed (the command line's exit code 3)."""
    return any(not bar["ok"] for bar in printed["bars"])


def machine() -> dict[str, Any]:
    """What the numbers depend on; no host names, no paths."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cores": cores,
        "cpu": _cpu(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
    }


@dataclass(slots=True)
class Stages:
    """Wall-clock seconds of each stage of a run, and how far a stage has come."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time a block; a stage entered again adds up."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def tell(self, name: str, done: int, total: int) -> None:
        """Report progress to whoever listens."""
        if self.progress is not None:
            self.progress(name, done, total)

    def as_dict(self) -> dict[str, float]:
        """Render with the sum."""
        return {**{name: round(value, 1) for name, value in self.seconds.items()}, "total": round(sum(self.seconds.values()), 1)}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0.0
    return float(round(total / 2**30, 1))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
