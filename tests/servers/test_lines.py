"""MCP's stdio wire on a connected socket."""

from __future__ import annotations

import socket
from contextlib import suppress

import anyio
import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCNotification

from ke_tools.servers import lines

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Tests run on asyncio's loop by default, a home's server on uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.mark.parametrize("sent", [b"", b"nonsense\n" * 3], ids=["silent", "talking"])
async def test_who_goes_with_something_unread_ends_the_window_in_peace(sent: bytes) -> None:
    """Fault: a client that is killed; the server's log named a failure of its own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    message = SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="notifications/progress"))
    async with lines.opened(ours) as (incoming, outgoing), incoming, outgoing:
        await outgoing.send(message)
        theirs.sendall(sent)
        await anyio.wait_readable(theirs)
        theirs.close()
        with suppress(anyio.BrokenResourceError):  # soon nobody takes what there is to say
            for _ in range(4):
                await outgoing.send(message)
                await anyio.wait_all_tasks_blocked()
