"""TCP sockets that people and programs come in by, and the HTTP server behind them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.errors import Conflict, InvalidInput

if TYPE_CHECKING:
    from starlette.types import ASGIApp

DRAIN_SECONDS: Final = 3  # for requests under way when a door closes
_LAST_WORDS_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Who may come in by a door, and what is offered there."""

    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    read_only: bool = False
    tool_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Door:
    """A listening TCP socket and its rules."""

    listener: socket.socket
    rules: Rules = Rules()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  "all" is an address to listen on, not to call
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def parse(address: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; brackets around an IPv6 host are taken off.

    Raises:
        InvalidInput: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004
        raise InvalidInput(f"{address[:80]!r} is no address to listen on.", "Give HOST:PORT, e.g. 127.0.0.1:8765.")
    return host.strip("[]"), int(port)


def resolve(host: str) -> str:
    """Give a host's address as numbers.

    Raises:
        InvalidInput: nobody knows it.
    """
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][4][0])
    except OSError as error:
        raise InvalidInput(f"the host {host[:80]!r} is not known: {error.strerror}.", "Give an address, e.g. 127.0.0.1:8765.") from error


def listen(host: str, port: int) -> socket.socket | None:
    """Bind to an address in numbers and listen; ``None`` if it is taken.

    Raises:
        InvalidInput: this machine has no such address, or not for us.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=256)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # of all it accepts; asyncio sets it on sockets of its own alone
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise InvalidInput(f"cannot listen on {host}:{port}: {error.strerror}.", "Give another --http HOST:PORT.") from error
    listener.setblocking(False)
    return listener


def free_port() -> int:
    """A port of this machine that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def taken(host: str, port: int) -> Conflict:
    """Give the error for an address that another program has."""
    return Conflict(f"the address {host}:{port} is taken by another program.", "Give another --http HOST:PORT.")


@asynccontextmanager
async def opened(door: Door, app: ASGIApp) -> AsyncIterator[None]:
    """Serve ``app`` at ``door`` inside the block; its lifespan is the caller's. The listening socket stays open after it."""
    import anyio
    import uvicorn

    class Quiet(uvicorn.Server):
        """Leaves the signals to the process that it is a part of."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        http="h11",  # httptools keeps a head however long it is, and loses the body of a request that offers HTTP/2, as Java's client does
        lifespan="off",
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = Quiet(config)
    serving = asyncio.create_task(server.serve(sockets=[door.listener.dup()]))
    try:
        while not server.started and not serving.done():  # noqa: ASYNC110  uvicorn has no event for it
            await asyncio.sleep(_POLL_SECONDS)
        yield
    finally:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await serving
            if server.server_state.tasks:  # cancelled after the drain time; they tell their clients so
                await asyncio.wait(server.server_state.tasks, timeout=_LAST_WORDS_SECONDS)
