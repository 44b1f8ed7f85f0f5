"""Errors as OpenAI's clients read them: ``{"error": {"message", "type", "param", "code"}}``.

``message`` always begins with our code (``E_INVALID: …``); ``code`` is ours too, except where OpenAI has a name of its own
that clients look for (``model_not_found``, ``context_length_exceeded``, ``invalid_api_key``).
"""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.responses import JSONResponse

from ke_tools.errors import KeToolsError, ModelUnavailable

_TYPES: Final = {403: "permission_error", 500: "server_error"}
_RETRY_AFTER_SECONDS: Final = 10  # for failures that do not say when to ask again


def error_body(error: KeToolsError, status: int = 0) -> dict[str, Any]:
    """Render ``error``; its ``data`` may name the ``param`` and an ``openai_code``."""
    status = status or error.http_status
    kind = _TYPES.get(min(500, status), "invalid_request_error")
    code = error.data.get("openai_code", error.code)
    return {"error": {"message": str(error), "type": kind, "param": error.data.get("param"), "code": code}}


def error_response(error: KeToolsError, status: int = 0, headers: dict[str, str] | None = None) -> JSONResponse:
    """Give the response for ``error``; what may work later carries ``retry-after`` (seconds)."""
    status = status or error.http_status
    extra = dict(headers or {})
    if error.retryable or isinstance(error, ModelUnavailable):
        wait = math.ceil(error.data.get("poll_after_ms", 1000 * _RETRY_AFTER_SECONDS) / 1000)
        extra["retry-after"] = str(wait)
    return JSONResponse(error_body(error, status), status, extra)
