"""A console for each test, on a scripted model; no worker is started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ke_tools.config import Settings
from ke_tools.memory.scope.calibration import Calibrator
from ke_tools.servers import promotions
from ke_tools.servers.service import Service
from tests.servers.console.browsing import Console
from tests.servers.console.visitor import Visitor, visiting
from tests.servers.door import opened


@pytest.fixture
def service(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service on a scripted model, that takes edits as they come."""
    monkeypatch.setattr(Calibrator, "ask", lambda *_: None)  # seconds an edit, and still at work when the tests end
    monkeypatch.setattr(promotions, "ensure_worker", lambda _settings: False)
    made = opened(settings)
    yield made
    made.close()


@pytest.fixture
def console(service: Service) -> Iterator[Console]:
    """Its console."""
    with Console.of(service) as made:
        yield made


@pytest.fixture
def visitor(service: Service) -> Iterator[Visitor]:
    """A browser at a server with tokens, not logged in."""
    with visiting(service) as found:
        yield found
