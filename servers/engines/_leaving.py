"""What an owner that ends takes out of its servers: soon, whether they answer or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from ke_tools.errors import KeToolsError
from ke_tools.servers.engines._server import Server

__all__ = ["take_out"]

SECONDS: Final = 1.5  # for all servers together: somebody waits for the end


def take_out(given: Iterable[tuple[Server, Collection[str]]]) -> None:
    """Take each server's adapters out of it, of all at once. One that does not answer in time keeps them, and nobody hears of it."""
    end = time.monotonic() + SECONDS
    at_once = [
        threading.Thread(target=_take_out, args=(server, sorted(names), end), name="ke-vllm-leave", daemon=True)
        for server, names in given
        if names
    ]
    for one in at_once:
        one.start()
    for one in at_once:
        one.join(max(0.0, end - time.monotonic()))


def _take_out(server: Server, names: Sequence[str], end: float) -> None:
    for name in names:
        left = end - time.monotonic()
        if left <= 0:
            return
        try:
            server.post("/unload_lora_adapter", {"lora_name": name}, is_json=False, seconds=left)
        except KeToolsError:
            if server.circuit.told:  # nobody answers; else it has not this one
                return
