"""A console for each test, on a scripted model; no worker is started."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ke_tools.config import Settings
from ke_tools.memory.scope.calibration import Calibrator
from ke_tools.servers import promotions
from ke_tools.servers.service import Service
from tests.servers.console.browsing import Browser, Console
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
def console(service: Service) -> Console:
    """Its console."""
    return Console.of(service)


@pytest.fixture
def visitor(console: Console) -> Browser:
    """A browser in which nobody is logged in."""
    return console.browser()
