"""What the home's worker keeps from job to job: an engine of its own, asked as the one that serves is."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ke_tools.jobs import at_end

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.engine import Engine

__all__ = ["engine_of"]


@lru_cache(maxsize=1)
def engine_of(settings: Settings) -> Engine:
    """The engine of these settings, loaded once, and closed with the worker."""
    from ke_tools.servers.engines.loading import WORKER, load_engine

    engine = load_engine(settings, lambda _message: None, owner=WORKER)

    def let_go() -> None:
        engine_of.cache_clear()
        engine.close()

    at_end(let_go)
    return engine
