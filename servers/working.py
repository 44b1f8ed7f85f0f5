"""What the home's worker keeps from job to job: an engine of its own, asked as the one that serves is."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.engine import Engine

__all__ = ["engine_of"]


@lru_cache(maxsize=1)
def engine_of(settings: Settings) -> Engine:
    """The engine of these settings, loaded once."""
    from ke_tools.servers.engines.loading import WORKER, load_engine

    return load_engine(settings, lambda _message: None, owner=WORKER)
