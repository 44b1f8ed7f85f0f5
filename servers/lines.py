"""MCP's stdio wire on a connected socket: one JSON-RPC message a line."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCMessage, RequestId, jsonrpc_message_adapter

log = logging.getLogger(__name__)

LONGEST_LINE: Final = 64 * 1024 * 1024  # bytes; what a tool takes is limited by its schema

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


@asynccontextmanager
async def opened(connection: socket.socket, *, on_sent: Callable[[], None] = lambda: None) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Give the streams that an MCP server reads and writes, and close ``connection`` at the end.

    ``on_sent`` is called after each message that has gone out.
    """
    owned = socket.socket(fileno=connection.detach())
    reader, writer = await asyncio.open_connection(sock=owned, limit=LONGEST_LINE)
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, from_server = anyio.create_memory_object_stream[SessionMessage](0)

    async def say(message: JSONRPCMessage) -> None:
        if writer.is_closing():
            raise ConnectionResetError("the window has gone")  # where uvloop has a RuntimeError
        writer.write(message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
        await writer.drain()
        on_sent()

    async def read() -> None:
        async with to_server:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):  # the session has ended, or the window gone
                while line := await _line(reader):
                    try:
                        message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                    except ValueError:
                        if line.strip():
                            await say(refusal(line))
                    else:
                        await to_server.send(SessionMessage(message))

    async def write() -> None:
        async with from_server:
            with suppress(OSError):  # the window has gone
                async for message in from_server:
                    await say(message.message)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(write)
            yield incoming, outgoing
            group.cancel_scope.cancel()
    finally:
        writer.close()


def refusal(line: bytes) -> JSONRPCError:
    """Give the answer to a line that is no message of JSON-RPC, so that nobody waits for another; its id, if one can be read."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return _error(None, PARSE_ERROR, f"the line is not JSON: {error}. Send one JSON-RPC message a line.")
    if isinstance(found, list):
        return _error(None, INVALID_REQUEST, "the line is a batch, and MCP has none. Send its messages one a line.")
    if not _is_text(json.dumps(found, ensure_ascii=False)):
        return _error(_id(found), INVALID_REQUEST, "the message holds half a character (a lone surrogate). Send whole ones.")
    return _error(_id(found), INVALID_REQUEST, "the line is no message of JSON-RPC 2.0. Send a request, a notification or a response.")


def _error(about: RequestId | None, code: int, message: str) -> JSONRPCError:
    return JSONRPCError(jsonrpc="2.0", id=about, error=ErrorData(code=code, message=message))


def _id(found: Any) -> RequestId | None:
    about = found.get("id") if isinstance(found, dict) else None
    if isinstance(about, str):
        return about if _is_text(about) else None
    return about if isinstance(about, int) and not isinstance(about, bool) else None


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except (ValueError, OSError) as error:  # a line over the limit, or a broken connection
        log.warning("a window was disconnected: %s", error)
        return b""
