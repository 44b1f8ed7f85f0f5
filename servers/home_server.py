"""The one process of a home that holds the model: it serves windows on the home's socket, and HTTP.

Started by the first window (then it ends a minute after the last one has gone, and opens a door on loopback by itself) or
by ``serve --http`` (then it stays). A later ``serve --http`` hands its door over on the home's socket, so that the model is
loaded once; the door closes with that connection.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import __version__
from ke_tools.config import DEFAULT_ADDRESS, Settings
from ke_tools.errors import Conflict, InvalidInput, KeToolsError, ReadOnly
from ke_tools.servers import doors, home_socket
from ke_tools.servers.doors import Door, Rules
from ke_tools.servers.home_socket import SHARED, Held

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from mcp.server import MCPServer
    from starlette.types import ASGIApp, Receive, Scope, Send

    from ke_tools.servers.service import Service

log = logging.getLogger("ke_tools.servers.home_server")  # it is run as __main__ too

END_SECONDS: Final = 8.0  # from the signal to the end, whatever hangs
_GREETING_SECONDS: Final = 10.0
_QUIET_SECONDS: Final = 3.0  # so long the model waits for the first window's first answer: loading it takes the whole machine
_MOST_DESCRIPTORS: Final = 4
_USES: Final = ("/mcp", "/v1")  # paths whose requests keep a server alive; a monitor's do not

Opener = Callable[[Settings], "Service"]


class HomeServer:
    """Windows on the home's socket and doors on TCP, over one service."""

    def __init__(self, held: Held, service: Service, *, idle_seconds: float | None = None) -> None:
        """``idle_seconds``: end so long after the last use; ``None``: never."""
        self._held = held
        self._service = service
        self._idle_seconds = idle_seconds
        self._use = _Use()
        self._urls: list[str] = []
        self._windows: dict[tuple[str, bool], MCPServer[Any]] = {}
        self._own: _OwnDoor | None = None
        self._stop = asyncio.Event()
        self._answered = asyncio.Event()

    async def run(self, door: Door, *, is_own: bool, on_stop: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM, SIGINT or idleness, then call ``on_stop`` and end.

        ``is_own``: nobody asked for the door; a window comes first, and it is lent to a ``serve --http`` that wants it.
        """
        import anyio

        with _signals(self._stop):
            async with anyio.create_task_group() as group:
                group.start_soon(self._serve_door, door, is_own)
                group.start_soon(self._accept, group)
                group.start_soon(self._end_when_idle)
                await self._stop.wait()
                on_stop()
                self._held.withdraw()
                group.cancel_scope.cancel()

    # Windows

    async def _accept(self, group: TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        self._held.listener.setblocking(False)
        while True:
            connection, _ = await loop.sock_accept(self._held.listener)
            group.start_soon(self._meet, connection)

    async def _meet(self, connection: socket.socket) -> None:
        """Hear what a caller wants, and do it."""
        with connection, self._use.one():
            descriptors: list[int] = []
            try:
                async with asyncio.timeout(_GREETING_SECONDS):
                    words, descriptors = await _hear(connection)
                self._check(words)
                if words["want"] == "listen":
                    await self._listen(connection, words, descriptors)
                else:
                    await self._window(connection, words)
            except KeToolsError as error:
                log.warning("refused a caller: %s", error)
                await _say(connection, {"error": error.as_dict()})
            except OSError as error:
                log.info("a caller left: %r", error)
            except Exception:  # one window's failure must not end the others
                log.exception("a window failed")
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _check(self, words: Mapping[str, Any]) -> None:
        """Refuse a caller who expects something else than there is.

        Raises:
            Conflict: another protocol, model or setting. ReadOnly: it wants to write.
        """
        settings, here = self._service.settings, f"The server that already runs for {self._held.place.home} (process {os.getpid()})"
        end_it = f"End it (kill {os.getpid()}), or use another --home."
        if words.get("ke-tools") != home_socket.PROTOCOL:
            raise Conflict(f"{here} is another version, {__version__}.", end_it)
        for name in SHARED:
            wanted, found = words["given"].get(name), getattr(settings, name)
            found = list(found) if isinstance(found, tuple) else found  # as JSON has it
            if wanted is not None and wanted != found:
                raise Conflict(f"{here} has {name} {found!r}; {wanted!r} was asked for.", f"Leave {name} out of what is set. Or: {end_it}")
        if settings.read_only and not words["read_only"]:
            raise ReadOnly(f"{here} is read-only.", f"Add --read-only. Or: {end_it}")

    async def _window(self, connection: socket.socket, words: Mapping[str, Any]) -> None:
        """Speak MCP, in the era that the client opens with, until it leaves."""
        from ke_tools.servers import lines

        key = str(words.get("tool_prefix", "")), bool(words["read_only"])
        if key not in self._windows:
            from ke_tools.servers.mcp import build_server

            self._windows[key] = build_server(self._service, tool_prefix=key[0], read_only=key[1])
        await _say(connection, {"pid": os.getpid()})
        server = self._windows[key]._lowlevel_server  # noqa: SLF001  the SDK has no public way to give MCPServer streams of one's own
        async with lines.opened(connection, on_sent=self._answered.set) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    # Doors

    async def _listen(self, connection: socket.socket, words: Mapping[str, Any], descriptors: list[int]) -> None:
        """Open the door that a ``serve --http`` hands over, or lend it ours, until it leaves."""
        self._answered.set()
        token_file = words["token_file"]
        rules = Rules(
            token_file=Path(token_file) if token_file else None,
            allowed_hosts=tuple(words["allowed_hosts"]),
            read_only=words["read_only"],
            tool_prefix=words["tool_prefix"],
        )
        async with AsyncExitStack() as stack:
            if descriptors:
                listener = stack.enter_context(socket.socket(fileno=descriptors.pop()))
                listener.setblocking(False)
                opening = self._opened(door := Door(listener, rules))
            elif self._own is not None and self._own.door.address == tuple(words["address"]):
                opening = self._lent(door := Door(self._own.door.listener, rules))
            else:
                raise doors.taken(*words["address"])
            await stack.enter_async_context(opening)
            await _say(connection, {"pid": os.getpid(), "url": door.url})
            await asyncio.get_running_loop().sock_recv(connection, 1)

    async def _serve_door(self, door: Door, is_own: bool) -> None:
        """Keep the first door open."""
        if not is_own:
            async with self._opened(door):
                log.info("%s is served at %s", self._service.model_id, door.url)
                await asyncio.Event().wait()
        self._own = _OwnDoor(door)
        with self._named(door.url):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._answered.wait(), _QUIET_SECONDS)
            gc.freeze()  # what has been read so far stays; see main()
            gc.enable()
            try:
                await self._keep_open(self._own)
            except KeToolsError as error:  # the windows are served all the same
                log.error("there is no HTTP: %s", error)  # noqa: TRY400  no defect, so no traceback
            except Exception:
                log.exception("there is no HTTP")
            self._own.ready.set()
        self._service.models.start()

    async def _keep_open(self, own: _OwnDoor) -> None:
        async with self._app(own.door) as app:
            own.switch = _Switch(app, self._use)
            async with doors.opened(own.door, own.switch):
                log.info("listening on %s", own.door.url)
                own.ready.set()
                await asyncio.Event().wait()

    @asynccontextmanager
    async def _opened(self, door: Door) -> AsyncIterator[None]:
        async with self._app(door) as app, doors.opened(door, _Switch(app, self._use)):
            with self._named(door.url):
                yield

    @asynccontextmanager
    async def _lent(self, door: Door) -> AsyncIterator[None]:
        own = self._own
        assert own is not None
        await own.ready.wait()
        if (switch := own.switch) is None or own.is_lent:
            raise doors.taken(*door.address)
        own.is_lent = True
        try:
            async with self._app(door) as app:
                before, switch.app = switch.app, app
                try:
                    yield
                finally:
                    switch.app = before
        finally:
            own.is_lent = False

    @asynccontextmanager
    async def _app(self, door: Door) -> AsyncIterator[ASGIApp]:
        """Build the web application for a door and keep it running inside the block."""
        from ke_tools.servers.app import build_app
        from ke_tools.servers.auth import check_bind
        from ke_tools.servers.mcp import build_server
        from ke_tools.servers.tokens import WatchedTokens

        host, rules = door.address[0], door.rules
        check_bind(host, rules.token_file)
        app = build_app(
            self._service,
            token_file=WatchedTokens(rules.token_file) if rules.token_file else None,
            allowed_hosts=(host, *rules.allowed_hosts),
            mcp=build_server(self._service, read_only=rules.read_only, tool_prefix=rules.tool_prefix, admits_local=False),
            read_only=rules.read_only,
            chat_corrections=self._service.settings.chat_corrections,
        )
        async with app.router.lifespan_context(app):
            yield app

    @contextmanager
    def _named(self, url: str) -> Iterator[None]:
        """Tell the world of ``url`` while it lasts."""
        self._urls.append(url)
        self._service.url = url
        try:
            yield
        finally:
            self._urls.remove(url)
            self._service.url = self._urls[-1] if self._urls else ""

    # The end

    async def _end_when_idle(self) -> None:
        if self._idle_seconds is None:
            return
        while (left := self._idle_seconds - self._use.idle_seconds) > 0:  # noqa: ASYNC110  it is time that is waited for
            await asyncio.sleep(min(left + 0.01, self._idle_seconds / 2))
        log.info("nobody has used this server for %g s; ending", self._idle_seconds)
        self._stop.set()


class _OwnDoor:
    """The door that a window's server opens by itself, and may lend."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.ready = asyncio.Event()  # it is open, or never will be
        self.switch: _Switch | None = None
        self.is_lent = False


class _Switch:
    """An ASGI application that stands for another, and counts requests as use."""

    def __init__(self, app: ASGIApp, use: _Use) -> None:
        self.app = app
        self._use = use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not str(scope.get("path", "")).startswith(_USES):
            await self.app(scope, receive, send)
            return
        with self._use.one():
            await self.app(scope, receive, send)


class _Use:
    """How many are being served, and since when nobody is."""

    def __init__(self) -> None:
        self._count = 0
        self._since = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self._count else time.monotonic() - self._since

    @contextmanager
    def one(self) -> Iterator[None]:
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            self._since = time.monotonic()


def serve(held: Held, settings: Settings, door: Door, open_service: Opener, *, idle_seconds: float | None = None, is_own: bool) -> None:
    """Be the server of a home until told to end; the lock and the sockets are let go at the end.

    Raises:
        KeToolsError: the service cannot be opened.
    """
    import uvloop

    service = open_service(settings)

    certain = threading.Timer(END_SECONDS, os._exit, (1,))
    certain.daemon = True

    async def run() -> None:
        await HomeServer(held, service, idle_seconds=idle_seconds).run(door, is_own=is_own, on_stop=certain.start)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except BaseExceptionGroup as group:
        known = group.subgroup(KeToolsError)
        if known is None:
            raise
        raise first_of(known) from group
    finally:
        service.close()
        certain.cancel()
        door.listener.close()
        held.withdraw()
        held.let_go()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the first error in a group, however deep it lies."""
    inner = group.exceptions[0]
    return first_of(inner) if isinstance(inner, BaseExceptionGroup) else inner


def leave(code: int) -> None:
    """End the process now if threads are left that would keep it, such as one that is loading a model."""
    logging.shutdown()
    if threading.active_count() > 1:
        os._exit(code)


def open_default(settings: Settings) -> Service:
    """Open the service that users get."""
    from ke_tools.servers.engines.loading import SERVER
    from ke_tools.servers.service import open_service

    return open_service(settings, owner=SERVER)


def main(arguments: Sequence[str] = sys.argv, open_service: Opener = open_default) -> None:
    """Be the server that a window started; its one argument is the orders that :mod:`ke_tools.servers.front` writes."""
    gc.disable()  # tens of thousands of objects are made while libraries are read, and none is garbage
    log_to_stderr()
    orders = json.loads(arguments[1])
    settings = Settings.from_json(orders["settings"])
    held = Held.inherited(settings.home, orders["lock"], orders["listener"])
    code = 0
    try:
        serve(held, settings, _own_door(settings, orders), open_service, idle_seconds=orders["idle_seconds"], is_own=True)
    except KeToolsError as error:
        log.error("%s", error)  # noqa: TRY400  no defect, so no traceback
        code = 1
    leave(code)
    sys.exit(code)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send the log to standard error, before any library can set it up otherwise."""
    logging.basicConfig(stream=sys.stderr, level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    for chatty in ("httpx", "httpx2", "mcp", "sentence_transformers", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _own_door(settings: Settings, orders: Mapping[str, Any]) -> Door:
    host, port = doors.parse(DEFAULT_ADDRESS)
    listener = doors.listen(host, port) or doors.listen(host, 0)
    assert listener is not None
    return Door(listener, Rules(token_file=settings.token_file, read_only=orders["read_only"], tool_prefix=orders["tool_prefix"]))


@contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _hear(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Read a greeting and the descriptors that came with it."""
    import anyio

    connection.setblocking(False)
    read, descriptors = b"", []
    while not read.endswith(b"\n"):
        await anyio.wait_readable(connection)
        chunk, came, _, _ = socket.recv_fds(connection, home_socket.LONGEST_GREETING, _MOST_DESCRIPTORS)
        descriptors += came
        read += chunk
        if not chunk or len(read) > home_socket.LONGEST_GREETING:
            raise ConnectionAbortedError("no greeting")
    try:
        words = json.loads(read)
    except ValueError as error:
        raise InvalidInput("the greeting is not JSON.", "Connect with `ke-tools serve`.") from error
    return words, descriptors


async def _say(connection: socket.socket, words: Mapping[str, Any]) -> None:
    await asyncio.get_running_loop().sock_sendall(connection, home_socket.encode(words))


if __name__ == "__main__":
    main()
