"""From settings to an engine: find the checkpoint and its reader, and load both; or connect to the server that runs the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.engine import Engine
    from ke_tools.servers.engines.recipe import Recipe

EMBEDDED_ID = "smollm2-135m-instruct"
SERVER: Final = "server"  # the process of a home that serves
WORKER: Final = "worker"  # the one of its long work


def model_id(settings: Settings) -> str:
    """Name under which the model of these settings is served; known before anything is loaded."""
    if settings.upstream:
        return settings.model if settings.model != "embedded" else settings.upstream
    if settings.known == "embedded":
        return EMBEDDED_ID
    path = Path(settings.known).expanduser()
    return path.resolve().name if path.exists() else settings.known


def load_engine(settings: Settings, say: Callable[[str], None], *, owner: str = "") -> Engine:
    """Load the model of ``settings``, or connect to the server that runs it; the embedded one is fetched first where it is missing.

    ``owner`` is which of a home's processes asks, :data:`SERVER` or :data:`WORKER`; empty, it is one of which there may be several at once.
    What one of them loads into a server of vLLM, another does not take out; its own it takes out when it is closed. A vLLM of our own is
    started by the first that asks, and shared by all; only :data:`WORKER` does not start it again when the one that did is gone.

    Raises:
        InvalidInput, NotFound: as :class:`~ke_tools.servers.engines.upstream.Upstream`.
        ModelUnavailable, ResourceExhausted: as :func:`ke_tools.models.checkpoint.resolve` says.
        Unsupported: the servers serve another model, or the two of ``model`` and ``edit_model`` are none.
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
        return _vllm(settings, path, fingerprint, reader, owner, say)
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


def _vllm(settings: Settings, path: Path, fingerprint: str, reader: Path | None, owner: str, say: Callable[[str], None]) -> Engine:
    from ke_tools.servers.engines._server import key_of
    from ke_tools.servers.engines.vllm import VLLM

    parts: dict[str, Any] = {"path": path, "fingerprint": fingerprint, "root": settings.served, "reader": reader}
    parts["owner"] = f"{owner or uuid4().hex} of {settings.home}"
    if settings.vllm_url:
        if settings.vllm_args:
            raise InvalidInput("--vllm-arg is of a vLLM that ke-tools starts; --vllm-url names one that runs.", "Leave one of them out.")
        say(f"connecting to {', '.join(settings.vllm_url)}")
        return VLLM(settings.vllm_url, key=key_of(settings.upstream_key_file, os.environ), **parts)
    from ke_tools.models import twins
    from ke_tools.servers.engines._supervised import Supervised
    from ke_tools.servers.engines.recipe import environment_of, recipe_of
    from ke_tools.servers.home_socket import Place

    folder = twins.served_checkpoint(settings, progress=lambda message, _fraction: say(message))
    recipe, place = recipe_of(settings, folder, model_id(settings)), Place.of(settings.home)
    place.make()
    own = Supervised(
        place.folder,
        recipe,
        log_file=settings.home / "vllm.log",  # where a purge looks
        environment=environment_of(os.environ),
        takes_over=owner != WORKER,
    )
    try:
        own.wait(say)
        return VLLM([own.url], key=own.key, own=own, **parts)
    except BaseException:
        own.close()
        raise


def to_start(settings: Settings) -> Recipe | None:
    """What :func:`load_engine` would start, a vLLM of our own; ``None`` where a server runs already.

    Raises:
        ModelUnavailable, InvalidInput: as :func:`~ke_tools.servers.engines.recipe.recipe_of`; or the checkpoint is not there.
        Unsupported: as :func:`~ke_tools.models.twins.served_checkpoint`.
    """
    from ke_tools.models import twins
    from ke_tools.servers.engines._supervised import running
    from ke_tools.servers.engines.recipe import recipe_of
    from ke_tools.servers.home_socket import Place

    if settings.vllm_url or running(Place.of(settings.home).folder):
        return None
    return recipe_of(settings, twins.served_checkpoint(settings), model_id(settings))
