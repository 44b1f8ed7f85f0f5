"""What listens on a port."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import uvicorn

from ke_tools.errors import InvalidInput
from ke_tools.servers import doors

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_small_writes_leave_at_once(host: str) -> None:
    """A stream's head and its first event are two writes: held back until the first is acknowledged, each answer would take 40 ms more."""
    try:
        listener = doors.listen(host, 0)
    except InvalidInput:
        pytest.skip(f"this machine has no {host}")
    assert listener is not None
    with listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.anyio
async def test_who_never_ends_a_header_is_shut_out_before_much_of_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked for a token before the headers have ended, so that their size alone keeps a stranger from filling the memory.

    By h11, also where httptools, which sets no bound, is installed and uvicorn would prefer it.
    """
    configs: list[uvicorn.Config] = []

    class Config(uvicorn.Config):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            configs.append(self)

    monkeypatch.setattr(uvicorn, "Config", Config)

    async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("no request was complete")

    listener = doors.listen("127.0.0.1", 0)
    assert listener is not None
    door, sent, most = doors.Door(listener), 0, 16_000_000
    with listener:
        async with doors.opened(door, nobody), await anyio.connect_tcp(*door.address) as client:
            with suppress(anyio.BrokenResourceError):
                await client.send(b"GET / HTTP/1.1\r\nhost: x\r\nx: ")
                while sent < most:
                    await client.send(b"a" * 65_536)
                    sent += 65_536
    assert sent < most
    assert [config.http for config in configs] == ["h11"]
