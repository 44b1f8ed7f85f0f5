"""The served model as what chooses between the readings of a statement."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ke_tools.errors import Unsupported
from ke_tools.models.engine import Scores
from ke_tools.servers.stating import scored_by

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.memory.statement.aided import Scored


@contextmanager
def scored(settings: Settings, *, on: bool) -> Iterator[Scored | None]:
    """Load the model, and free it at the end; ``None`` where it is not wanted.

    Raises:
        Unsupported: the engine cannot score.
    """
    if not on:
        yield None
        return
    from ke_tools.servers.engines.loading import load_engine

    engine = load_engine(settings, lambda _: None)
    scores: object = engine
    try:
        if not isinstance(scores, Scores):
            raise Unsupported("this engine cannot say how likely a text is.", "Leave --aided out.")
        yield scored_by(scores)
    finally:
        engine.close()
