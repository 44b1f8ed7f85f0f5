"""What listens on a port."""

from __future__ import annotations

import socket

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.servers import doors


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
