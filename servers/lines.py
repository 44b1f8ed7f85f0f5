"""MCP's stdio wire on a connected socket: one JSON-RPC message a line."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter

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

    async def read() -> None:
        async with to_server:
            while line := await _line(reader):
                try:
                    await to_server.send(SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False)))
                except ValueError as error:  # no message of JSON-RPC
                    await to_server.send(error)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # the server has ended this session

    async def write() -> None:
        async with from_server:
            async for message in from_server:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                try:
                    writer.write(text.encode() + b"\n")
                    await writer.drain()
                except OSError:
                    return  # the window has gone
                on_sent()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(write)
            yield incoming, outgoing
            group.cancel_scope.cancel()
    finally:
        writer.close()


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except (ValueError, OSError) as error:  # a line over the limit, or a broken connection
        log.warning("a window was disconnected: %s", error)
        return b""
