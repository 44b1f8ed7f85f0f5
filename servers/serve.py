"""``ke-tools serve``: a window on standard input and output, or a server on a port."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.servers import front, home_socket
from ke_tools.servers.home_socket import Held, Place

log = logging.getLogger(__name__)

_IDLE: Final = "KE_IDLE_SECONDS"  # how long a server that a window started outlives the last one
_RETRY_SECONDS: Final = 0.05


def run(
    settings: Settings,
    *,
    http: str | None = None,
    connect: str | None = None,
    print_config: str | None = None,
    tool_prefix: str = "",
    allow_hosts: Sequence[str] = (),
) -> int:
    """Serve, and return the exit code.

    Without ``http`` and ``connect``, MCP on standard input and output: nothing but the protocol goes to standard output, and
    why there is no server goes to standard error.

    Raises:
        KeToolsError: only where standard output is not the protocol's.
    """
    if print_config is not None:
        from ke_tools.servers import clients

        sys.stdout.write(clients.entry(print_config, clients.launch(settings, connect=connect, tool_prefix=tool_prefix)))
        return 0
    if http is not None and connect is not None:
        raise InvalidInput("--http and --connect exclude each other.", "A front of a remote server has no port of its own.")
    if http is not None:
        return _on_port(settings, http, allow_hosts, tool_prefix)
    try:
        if connect is not None:
            from ke_tools.servers import remote

            return remote.run(connect)
        return front.run(settings, tool_prefix=tool_prefix, idle_seconds=_idle_seconds())
    except KeToolsError as error:
        return front.fail(error)
    except KeyboardInterrupt:
        return 0


def _idle_seconds() -> float:
    given = os.environ.get(_IDLE) or str(front.IDLE_SECONDS)
    try:
        return float(given)
    except ValueError as error:
        raise InvalidInput(f"{_IDLE} is {given[:80]!r}.", "Give a number of seconds.") from error


def _on_port(settings: Settings, address: str, allow_hosts: Sequence[str], tool_prefix: str) -> int:
    """Listen on ``address``: as the server of the home, or by handing the door to the one that runs."""
    from ke_tools.servers import doors, home_server
    from ke_tools.servers.auth import check_bind
    from ke_tools.servers.tokens import TokenFile

    home_server.log_to_stderr()
    name, port = doors.parse(address)
    host = doors.resolve(name)
    check_bind(host, settings.token_file)
    if settings.token_file:
        TokenFile.load(settings.token_file)  # an error in it is told here, not by the server
    rules = doors.Rules(
        token_file=settings.token_file, allowed_hosts=(name, *allow_hosts), read_only=settings.read_only, tool_prefix=tool_prefix
    )
    listener = doors.listen(host, port)
    bound = listener.getsockname()[:2] if listener else (host, port)
    words = home_socket.greeting(
        settings,
        "listen",
        address=list(bound),
        token_file=os.fspath(rules.token_file) if rules.token_file else "",
        allowed_hosts=list(rules.allowed_hosts),
        tool_prefix=tool_prefix,
    )
    try:
        held = _hand_over(Place.of(settings.home), words, listener)
    except _ToldToEnd:
        return 0
    listener = listener or doors.listen(host, port)
    if listener is None:
        held.withdraw()
        held.let_go()
        raise doors.taken(host, port)
    home_server.serve(held, settings, doors.Door(listener, rules), home_server.open_default, is_own=False)
    home_server.leave(0)
    return 0


def _hand_over(place: Place, words: Mapping[str, Any], listener: socket.socket | None) -> Held:
    """Let the home's server listen, as long as there is one; returns when this process must be it."""
    with _raising_when_told():
        while True:
            if (found := home_socket.dial(place, words, [listener.fileno()] if listener else [])) is not None:
                connection, said = found
                log.info("the server that already runs for %s (process %s) listens at %s", place.home, said["pid"], said["url"])
                with connection:
                    while connection.recv(1):  # until it ends
                        pass
            elif (held := Held.take(place)) is not None:
                return held
            else:  # it starts or ends just now
                time.sleep(_RETRY_SECONDS)


class _ToldToEnd(BaseException):
    """SIGTERM or SIGINT has come; not an error, so nothing on the way catches it."""


@contextmanager
def _raising_when_told() -> Iterator[None]:
    def told(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _ToldToEnd

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, told) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
