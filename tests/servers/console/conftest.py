"""Browsers at a service on a scripted model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ke_tools.config import Settings
from ke_tools.servers.service import Service
from tests.servers.console.visitor import Visitor, visiting
from tests.servers.door import opened


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """A service that takes edits as they come."""
    made = opened(settings)
    yield made
    made.close()


@pytest.fixture
def visitor(service: Service) -> Iterator[Visitor]:
    """A browser at a server with tokens, not logged in."""
    with visiting(service) as found:
        yield found


@pytest.fixture
def at_home(service: Service) -> Iterator[Visitor]:
    """A browser at a server of this machine's only, without tokens."""
    with visiting(service, guarded=False) as found:
        yield found
