"""From settings to an engine: find the checkpoint and its reader, and load both; or connect to the server that runs the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.engine import Engine

EMBEDDED_ID = "smollm2-135m-instruct"


def model_id(settings: Settings) -> str:
    """Name under which the model of these settings is served; known before anything is loaded."""
    if settings.upstream:
        return settings.model if settings.model != "embedded" else settings.upstream
    if settings.model == "embedded":
        return EMBEDDED_ID
    path = Path(settings.model).expanduser()
    return path.resolve().name if path.exists() else settings.model


def load_engine(settings: Settings, say: Callable[[str], None], *, owner: str = "server") -> Engine:
    """Load the model of ``settings``, or connect to the server that runs it; the embedded one is fetched first where it is missing.

    ``owner`` is which of a home's processes asks; what one of them loads into a server of vLLM, another does not take out.

    Raises:
        InvalidInput, NotFound: as :class:`~ke_tools.servers.engines.upstream.Upstream`.
        ModelUnavailable, ResourceExhausted: as :func:`ke_tools.models.checkpoint.resolve` says.
        Unsupported: the servers serve another model.
    """
    if settings.upstream:
        if settings.engine != "hf":
            raise InvalidInput(f"--upstream and --engine {settings.engine} exclude each other.", "Leave one of them out.")
        from ke_tools.servers.engines._server import key_of
        from ke_tools.servers.engines.upstream import Upstream

        say(f"connecting to {settings.upstream}")
        model = settings.model if settings.model != "embedded" else ""
        return Upstream(settings.upstream, model=model, key=key_of(settings.upstream_key_file, os.environ))
    from ke_tools.models import checkpoint
    from ke_tools.models.reader import card

    path = checkpoint.resolve(settings, progress=lambda message, _fraction: say(message))
    fingerprint = checkpoint.fingerprint(path, cache=settings.cache)
    reader = card.find(fingerprint, settings.home)
    if settings.engine == "vllm":
        say(f"connecting to {', '.join(settings.vllm_url)}")
        return _vllm(settings, path, fingerprint, reader, f"{owner} of {settings.home}")
    from ke_tools.servers.engines.hf import HFEngine

    say("loading the model")
    return HFEngine(
        path,
        model_id=model_id(settings),
        dtype=settings.dtype,
        device=settings.device,
        adapters={"reader": reader} if reader else {},
        trust_remote_code=settings.trust_remote_code,
        cache=settings.cache,
    )


def _vllm(settings: Settings, path: Path, fingerprint: str, reader: Path | None, owner: str) -> Engine:
    from ke_tools.servers.engines._server import key_of
    from ke_tools.servers.engines.vllm import VLLM

    if not settings.vllm_url:
        raise InvalidInput("the engine vllm needs to know its servers.", "Give --vllm-url http://HOST:PORT.")
    key = key_of(settings.upstream_key_file, os.environ)
    return VLLM(settings.vllm_url, path=path, fingerprint=fingerprint, root=settings.served, key=key, owner=owner, reader=reader)
