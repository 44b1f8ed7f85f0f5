"""A clock that tests set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ke_tools.memory import expiries, limits, log, moments


class Clock:
    """What the ledger takes for the time; it stands still."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> str:
        """The time as the ledger writes it."""
        return moments.written(self.time)

    def forward(self, **by: float) -> None:
        """Let time pass."""
        self.time += timedelta(**by)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Noon of a day to come."""
    made = Clock()
    for module in (expiries, limits, log, moments):
        monkeypatch.setattr(module, "now", made)
    return made
