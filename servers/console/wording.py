"""How values look on a page: ages, numbers, and where two answers differ."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import SequenceMatcher
from typing import Final

from ke_tools.facts import State

__all__ = ["PROPOSED", "STATES", "ago", "differences", "number"]

PROPOSED: Final = State.PROPOSED
STATES: Final = {
    State.PROPOSED: "waits for an approval",
    State.ACTIVE: "in the memory",
    State.PROMOTED: "in the weights",
    State.RETIRED: "does not act any more",
}
_UNITS: Final = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def ago(moment: str) -> str:
    """How long ago a moment of the ledger was, in its largest unit: "3 hours ago"; of one to come "in 3 hours"."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    for size, unit in _UNITS:
        if abs(seconds) >= size:
            count = int(abs(seconds) // size)
            told = f"{count} {unit}" + ("" if count == 1 else "s")
            return f"{told} ago" if seconds > 0 else f"in {told}"
    return "just now"


def number(value: float | None) -> str:
    """A rate or a score with two places; a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def differences(before: str, after: str) -> list[tuple[str, str, str]]:
    """Both answers in pieces: what happens to a piece ("same" or "other"), and how it is before and after."""
    old, new = (_words(text) for text in (before, after))
    pieces = []
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        pieces.append(("same" if tag == "equal" else "other", "".join(old[a:b]), "".join(new[c:d])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\S+", text)
