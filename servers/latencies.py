"""How long it took lately to route what was asked and to answer it, by tenant, for those who look after a server.

Kept in memory and bounded: a process that ends takes it along.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Kind", "Latencies", "Spread"]

Kind = Literal["routing", "answer"]

_MOST: Final = 4096  # of a tenant and kind, the latest; p99 of these rests on some 40


@dataclass(frozen=True, slots=True)
class Spread:
    """How long things took, in seconds."""

    count: int
    p50: float
    p99: float

    @classmethod
    def of(cls, taken: Sequence[float]) -> Spread | None:
        """Of what took so long each, by nearest rank; ``None`` of nothing."""
        if not taken:
            return None
        rising = sorted(taken)
        p50, p99 = (rising[math.ceil(share * len(rising)) - 1] for share in (0.50, 0.99))
        return cls(len(rising), p50, p99)


class Latencies:
    """The latest durations of one process. Thread safe."""

    def __init__(self, most: int = _MOST) -> None:
        """Keep at most so many of each tenant and kind."""
        self._most = most
        self._taken: dict[tuple[str, Kind], deque[float]] = {}
        self._lock = threading.Lock()

    def note(self, tenant: str, kind: Kind, seconds: float) -> None:
        """Remember how long one took."""
        with self._lock:
            self._taken.setdefault((tenant, kind), deque(maxlen=self._most)).append(seconds)

    def of(self, kind: Kind, tenant: str | None) -> list[float]:
        """Return what a tenant's took, or with ``None`` everybody's."""
        with self._lock:
            return [
                seconds for (whose, what), taken in self._taken.items() if what == kind and tenant in {None, whose} for seconds in taken
            ]
