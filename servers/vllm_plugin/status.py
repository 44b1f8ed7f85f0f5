"""``GET /v1/ke/status``: says that the plugin is there. It lies under ``/v1``, which vLLM's key guards."""

from __future__ import annotations

from typing import Any


class Status:
    """An endpoint plugin; it is loaded where ``VLLM_PLUGINS`` names it."""

    name = "ke_tools_status"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Add the route."""
        import vllm

        async def status() -> dict[str, Any]:
            return {"plugin": "ke-tools", "vllm": vllm.__version__, "codebooks": True}

        app.add_api_route("/v1/ke/status", status, methods=["GET"])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing is kept."""
