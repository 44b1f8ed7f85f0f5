"""A window on a server elsewhere: standard input and output joined to its streamable HTTP.

The messages pass unread, but for what HTTP wants in its headers.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from ke_tools.errors import InvalidInput, ModelUnavailable
from ke_tools.servers import front

if TYPE_CHECKING:
    import httpx2
    from mcp.shared.message import SessionMessage
    from mcp.types import JSONRPCMessage

TOKEN: Final = "KE_TOKEN"  # noqa: S105  the variable's name
_LAST_WORDS_SECONDS: Final = 2.0  # for what has been answered to reach the host
_VERSION_KEY: Final = "io.modelcontextprotocol/protocolVersion"
_NAMED_BY: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


def run(url: str) -> int:
    """Serve the window until its host closes standard input; the bearer token is taken from ``KE_TOKEN``.

    Raises:
        InvalidInput: ``url`` is not one of HTTP.
        ModelUnavailable: nobody answers there, or no more.
    """
    import anyio
    import httpx2

    from ke_tools.servers.home_server import first_of, log_to_stderr

    log_to_stderr()
    logging.getLogger("mcp.client").setLevel(logging.CRITICAL)  # what breaks there is told below, once
    address = endpoint(url)
    ours, hosts = socket.socketpair()
    carrier = threading.Thread(target=front.carry, args=(hosts,), name="ke-window", daemon=True)
    carrier.start()
    try:
        host_has_left = anyio.run(_join, address, ours)
    except BaseExceptionGroup as group:
        lost = group.subgroup((httpx2.HTTPError, httpx2.InvalidURL))
        if lost is None:
            raise
        raise _lost(address, first_of(lost)) from group
    finally:
        carrier.join(_LAST_WORDS_SECONDS)
    if not host_has_left:
        raise _lost(address, "the connection has ended")
    return 0


def endpoint(url: str) -> str:
    """Complete the address of a server to that of its MCP endpoint.

    Raises:
        InvalidInput: ``url`` is not one of HTTP.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidInput(f"{url[:200]!r} is not the address of a server: {error}.", "Give e.g. http://127.0.0.1:8765/mcp.") from error
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidInput(f"{url[:200]!r} is not the address of a server.", "Give e.g. http://127.0.0.1:8765/mcp.")
    return urlunsplit(parts if parts.path.strip("/") else parts._replace(path="/mcp"))


async def _join(url: str, window: socket.socket) -> bool:
    """Carry messages between ``window`` and the server until either ends; tell whether it was the window."""
    import anyio
    from mcp.client.streamable_http import streamable_http_client
    from mcp.shared._httpx_utils import create_mcp_http_client

    from ke_tools.servers import lines

    token = os.environ.get(TOKEN, "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    client = create_mcp_http_client(headers=headers)
    client.event_hooks = {"response": [_report]}
    has_left = False
    async with (
        lines.opened(window) as (from_host, to_host),
        client,
        streamable_http_client(url, http_client=client, max_sse_event_size=None) as (from_server, to_server),
        anyio.create_task_group() as group,
    ):
        headers_of = Headers()

        async def answer() -> None:
            async for item in from_server:
                if not isinstance(item, Exception):
                    headers_of.learn(item.message)
                    await to_host.send(item)
            group.cancel_scope.cancel()

        group.start_soon(answer)
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # a notification did not arrive: the way is gone
            async for item in from_host:
                if not isinstance(item, Exception):
                    await to_server.send(headers_of.stamp(item))
            has_left = True
        group.cancel_scope.cancel()
    return has_left


def _lost(url: str, why: object) -> ModelUnavailable:
    return ModelUnavailable(
        f"the server at {url} does not answer: {why}.",
        "Check the address, and there that `ke-tools serve --http` runs; then start this window again.",
    )


class Headers:
    """What HTTP repeats of a message: the protocol's version, and since 2026-07-28 the method and the name."""

    def __init__(self) -> None:
        self._version = ""  # negotiated by a handshake

    def learn(self, message: JSONRPCMessage) -> None:
        """Keep the version that the answer to ``initialize`` names."""
        result = getattr(message, "result", None)
        if isinstance(result, Mapping) and "protocolVersion" in result:
            self._version = str(result["protocolVersion"])

    def stamp(self, item: SessionMessage) -> SessionMessage:
        """Give the message with the headers it needs."""
        from mcp.shared.inbound import MCP_METHOD_HEADER, MCP_NAME_HEADER, MCP_PROTOCOL_VERSION_HEADER, encode_header_value
        from mcp.shared.message import ClientMessageMetadata, SessionMessage

        method = getattr(item.message, "method", "")
        params: Mapping[str, Any] = getattr(item.message, "params", None) or {}
        version = (params.get("_meta") or {}).get(_VERSION_KEY, "")
        headers = {}
        if version:
            headers = {MCP_PROTOCOL_VERSION_HEADER: str(version), MCP_METHOD_HEADER: method}
            if name := params.get(_NAMED_BY.get(method, "")):
                headers[MCP_NAME_HEADER] = encode_header_value(str(name))
        elif self._version and method != "initialize":
            headers = {MCP_PROTOCOL_VERSION_HEADER: self._version}
        return SessionMessage(item.message, ClientMessageMetadata(headers=headers) if headers else None)


async def _report(response: httpx2.Response) -> None:
    """Say on stderr what a client would only see as "an error response"."""
    if response.status_code in {401, 403}:
        hint = f"Set {TOKEN} to a token that this server knows." if response.status_code == 401 else "The token lacks the scope."  # noqa: PLR2004
        sys.stderr.write(f"ke-tools: {response.request.url} answers {response.status_code}. {hint}\n")
