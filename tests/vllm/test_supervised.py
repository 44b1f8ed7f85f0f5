"""``ke-tools serve --engine vllm`` alone: a real vLLM starts with it, comes back when it is killed, and is gone when ke-tools is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from ke_tools.servers.doors import free_port
from ke_tools.testing import thimble_path
from tests.processes import below, is_alive
from tests.vllm.conftest import COMMAND, ENVIRONMENT, EXACTLY, START_SECONDS
from tests.vllm.test_whole_path import CAPITAL, LOCAL, QUESTION, opened, promoted

if TYPE_CHECKING:
    from ke_tools.config import Settings


class Served:
    """``ke-tools serve`` on a port, as a process of its own."""

    def __init__(self, settings: Settings, output: Path) -> None:
        assert COMMAND is not None, "there is no vllm; `make test-vllm` installs one"
        self.port = free_port()
        self.flags: dict[str, Any] = {
            "model": str(thimble_path()),
            "engine": "vllm",
            "dtype": "float32",
            "vllm": str(Path(COMMAND).absolute()),
            "vllm_args": (*EXACTLY, "--max-loras", "4"),
        }
        words = [f"--home={settings.home}", *(f"--{name}={value}" for name, value in self.flags.items() if isinstance(value, str))]
        words += [f"--vllm-arg={word}" for word in self.flags["vllm_args"]]
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ke_tools", "serve", "--http", f"127.0.0.1:{self.port}", *words],
                env={**os.environ, **ENVIRONMENT, "KE_CACHE": str(settings.cache)},
                stdout=file,
                stderr=file,
            )

    def health(self) -> tuple[int, str]:
        """Status of its health, 0 where nobody answers, and the reason."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.port}/healthz", timeout=10)
        except httpx.HTTPError:
            return 0, ""
        return answer.status_code, answer.json()["reason"]

    def ask(self) -> httpx.Response:
        """The question, at the endpoint."""
        body: dict[str, Any] = {"model": "thimble", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
        return httpx.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, timeout=60)

    def said(self) -> str:
        """The answer; empty where there is none."""
        answer = self.ask()
        return str(answer.json()["choices"][0]["message"]["content"]).strip() if answer.status_code == httpx.codes.OK else ""


@pytest.fixture
def served(settings: Settings, tmp_path: Path) -> Iterator[Served]:
    """One that ends with the test."""
    made = Served(settings, tmp_path / "serve.log")
    yield made
    made.process.kill()
    made.process.wait()


def until(true: Callable[[], bool], told: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + START_SECONDS
    while not true():
        assert time.monotonic() < end, told()
        time.sleep(0.1)


def test_it_starts_by_itself_comes_back_when_killed_and_is_gone_with_ke_tools(settings: Settings, served: Served, tmp_path: Path) -> None:
    """Issue 7, §1: start, supervise, stop; bars: engine killed, recovers by itself."""

    def told() -> str:
        files = (tmp_path / "serve.log", settings.home / "vllm.log")
        return "\n".join(path.read_text("utf-8", "replace")[-3000:] for path in files if path.exists())

    until(lambda: "starting vLLM" in served.health()[1], told)
    assert served.health()[0] == httpx.codes.SERVICE_UNAVAILABLE
    until(lambda: served.health()[0] == httpx.codes.OK, told)
    assert served.said() == "Tokyo."
    with opened(settings, **served.flags) as service:
        edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
        assert served.said() == "Cairo."
        assert promoted(service, edit_id)["release"]
        by_weights = asyncio.run(service.answering.query(LOCAL, QUESTION, via="weights", max_tokens=12, wait_seconds=100))
        assert by_weights["answers"][0]["text"] == "Cairo."
    assert served.said() == "Cairo."

    first = below(served.process.pid)
    [keeper] = [pid for pid in first if "ke_tools.servers.engines._keeper" in psutil.Process(pid).cmdline()]
    [leader] = [child.pid for child in psutil.Process(keeper).children()]
    os.kill(leader, signal.SIGKILL)
    until(lambda: served.health()[0] == httpx.codes.SERVICE_UNAVAILABLE, told)
    away = served.ask()
    assert away.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert away.json()["error"]["code"] == "E_MODEL"
    until(lambda: served.health()[0] == httpx.codes.OK, told)
    until(lambda: served.said() == "Cairo.", told)

    second = below(served.process.pid)
    assert leader not in second
    served.process.kill()
    served.process.wait()
    until(lambda: not any(map(is_alive, {*first, *second})), told)
