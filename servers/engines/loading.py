"""From settings to an engine: find the checkpoint and its reader, and load both; or connect to the server that runs the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ke_tools.errors import Unsupported

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.engine import Engine

EMBEDDED_ID = "smollm2-135m-instruct"


def model_id(settings: Settings) -> str:
    """Name under which the model of these settings is served; known before anything is loaded."""
    if settings.upstream:
        return settings.model if settings.model != "embedded" else "upstream"
    if settings.model == "embedded":
        return EMBEDDED_ID
    path = Path(settings.model).expanduser()
    return path.resolve().name if path.exists() else settings.model


def load_engine(settings: Settings, say: Callable[[str], None]) -> Engine:
    """Load the model of ``settings``, or connect to the server that runs it; the embedded one is fetched first where it is missing.

    Raises:
        InvalidInput, NotFound: as :class:`~ke_tools.servers.engines.upstream.Upstream`.
        ModelUnavailable, ResourceExhausted: as :func:`ke_tools.models.checkpoint.resolve` says.
        Unsupported: an engine that this version does not have.
    """
    if settings.upstream:
        from ke_tools.servers.engines.upstream import Upstream, key_of

        say(f"connecting to {settings.upstream}")
        model = settings.model if settings.model != "embedded" else ""
        return Upstream(settings.upstream, model=model, key=key_of(settings.upstream_key_file, os.environ))
    if settings.engine != "hf":
        raise Unsupported(f"there is no engine {settings.engine!r}.", "Use --engine hf.")
    from ke_tools.models import checkpoint
    from ke_tools.models.reader import card
    from ke_tools.servers.engines.hf import HFEngine

    path = checkpoint.resolve(settings, progress=lambda message, _fraction: say(message))
    say("loading the model")
    reader = card.find(checkpoint.fingerprint(path, cache=settings.cache), settings.home)
    return HFEngine(
        path,
        model_id=model_id(settings),
        dtype=settings.dtype,
        device=settings.device,
        adapters={"reader": reader} if reader else {},
        trust_remote_code=settings.trust_remote_code,
        cache=settings.cache,
    )
