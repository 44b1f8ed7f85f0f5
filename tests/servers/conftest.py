"""A server's tests decide with the shipped scope."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _graphs_are_ready(tmp_path: Path, graphs: Callable[[Path], None]) -> None:
    graphs(tmp_path / "cache")
