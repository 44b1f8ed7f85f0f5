"""``GET /v1/ke/status``: says that the plugin is there, and how codebooks act. It lies under ``/v1``, which vLLM's key guards."""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger("vllm.ke_tools")


class Status:
    """An endpoint plugin; it is loaded where ``VLLM_PLUGINS`` names it."""

    name = "ke_tools_status"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None

    def attach_router(self, app: Any) -> None:
        """Add the route."""
        import vllm

        async def status() -> dict[str, Any]:
            form, room = await self._asked()
            return {"plugin": "ke-tools", "vllm": vllm.__version__, "codebooks": form != "none", "form": form, "room": room}

        app.add_api_route("/v1/ke/status", status, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep whom to ask."""
        self._engine = engine_client

    async def _asked(self) -> tuple[str, dict[str, int]]:
        """What the workers say; where they do not know the question, the plugin is not in them."""
        try:
            workers = await self._engine.collective_rpc("ke_codebooks")
        except Exception as error:  # noqa: BLE001  what comes from a worker has no type of its own
            _log.warning("ke-tools: the workers do not say how codebooks act: %r", error)
            return "none", {}
        forms = {worker["form"] for worker in workers}
        return forms.pop() if len(forms) == 1 else "none", {layer: room for worker in workers for layer, room in worker["room"].items()}
