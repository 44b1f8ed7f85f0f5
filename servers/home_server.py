"""The one process of a home that holds the model: it serves windows on the home's socket, and HTTP.

Started by the first window (then it ends a minute after the last one has gone) or by ``serve --http`` (then it stays).
A later ``serve --http`` hands its listening socket over on the home's socket, so that the model is loaded once; it stops
being listened to when that connection closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.config import DEFAULT_ADDRESS, Settings
from ke_tools.errors import Conflict, InvalidInput, KeToolsError
from ke_tools.servers import home_socket
from ke_tools.servers.home_socket import SHARED, Held

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from mcp.server import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ke_tools.servers.service import Service

log = logging.getLogger(__name__)

LONGEST_LINE: Final = 64 * 1024 * 1024  # bytes of one message; arguments have limits of their own
END_SECONDS: Final = 8.0  # from SIGTERM to the end, whatever hangs
_DRAIN_SECONDS: Final = 3  # for HTTP requests under way
_GREETING_SECONDS: Final = 10.0
_QUIET_SECONDS: Final = 3.0  # the model waits so long for the first window's first answer: loading it takes the machine

Opener = Callable[[Settings], "Service"]


@dataclass(frozen=True, slots=True)
class Door:
    """A listening TCP socket and who may come in by it."""

    listener: socket.socket
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    read_only: bool = False

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  the address of "all" is none to call
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HomeServer:
    """Windows on the home's socket and doors on TCP, over one service."""

    def __init__(self, held: Held, settings: Settings, open_service: Opener, *, idle_seconds: float | None = None) -> None:
        """``idle_seconds``: end so long after the last use; ``None``: never."""
        self._held = held
        self._settings = settings
        self._open = open_service
        self._idle_seconds = idle_seconds
        self._use = _Use()
        self._urls: list[str] = []
        self._own: _Http | None = None  # the door that a window's server opens by itself

    async def run(self, door: Door | None = None) -> None:
        """Serve until SIGTERM, SIGINT or idleness; ``door`` is the one of ``serve --http``."""
        import anyio

        self._stop = asyncio.Event()
        self._answered = asyncio.Event()
        with _signals(self._stop):
            self._service = await asyncio.to_thread(self._open, self._settings)
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._accept, group)
                    group.start_soon(self._serve_http, door)
                    group.start_soon(self._watch_idleness)
                    await self._stop.wait()
                    _end_for_certain()
                    self._held.withdraw()
                    for server in list(self._servers):
                        await server.stop()
                    group.cancel_scope.cancel()
            finally:
                await asyncio.to_thread(self._service.close)
