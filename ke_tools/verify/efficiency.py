"""What a verification took, and what the memory's way to an answer costs: tokens that are read and milliseconds to find the edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Efficiency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Of one verification."""

    seconds: float
    peak_mib: int  # of the process, since it began or a job of it did
    routed: int  # probes that the memory answered
    tokens: float  # that it put before such a probe, on average
    milliseconds: float  # in which a probe was routed, on average

    def as_dict(self) -> dict[str, Any]:
        """Render flat."""
        return {
            "seconds": round(self.seconds, 2),
            "peak_mib": self.peak_mib,
            "routed": self.routed,
            "tokens": round(self.tokens, 1),
            "milliseconds": round(self.milliseconds, 2),
        }

    @property
    def in_words(self) -> str:
        """E.g. ``12.3 s, 610 MiB at most; the memory answered 9 probes with 41 tokens more each, routed in 2.1 ms``."""
        told = f"{self.seconds:.1f} s, {self.peak_mib} MiB at most"
        if not self.routed:
            return f"{told}; the memory answered no probe"
        added = f"{self.tokens:.0f} tokens more each, routed in {self.milliseconds:.1f} ms"
        return f"{told}; the memory answered {self.routed} probes with {added}"
