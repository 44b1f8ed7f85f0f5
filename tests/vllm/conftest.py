"""Real servers of vLLM: started here on the thimble, or, by ``KE_VLLM_URL``, one that runs already on whatever hardware."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from ke_tools.servers.doors import free_port
from ke_tools.servers.engines.vllm import VLLM
from ke_tools.testing import thimble_path

COMMAND: Final = os.environ.get("KE_VLLM") or shutil.which("vllm")  # read before a test takes KE_* away
RUNNING: Final = os.environ.get("KE_VLLM_URL", "")
PLACES_URL: Final = os.environ.get("KE_VLLM_PLACES_URL", "")
START_SECONDS: Final = 300
LORA: Final = (
    *("--enable-lora", "--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
    *("--max-lora-rank", "128", "--max-loras", "4", "--max-cpu-loras", "16"),
)
BARE: Final = (
    *("--enable-lora", "--lora-target-modules", "q_proj", "k_proj", "v_proj", "down_proj"),
    *("--max-lora-rank", "8", "--max-loras", "4"),
)
EXACTLY: Final = ("--max-model-len", "1024", "--enforce-eager")
OURS: Final = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_PLUGINS": "ke_tools,ke_tools_status"}
ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or all servers of a machine compute on the same core
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is asked here is asked of a real vLLM."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


class Server:
    """A ``vllm serve`` process, of the thimble or of another checkpoint."""

    def __init__(self, log: Path, port: int, *arguments: str, checkpoint: Path | None = None, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._log, self._arguments, self._environment = port, log, arguments, environment
        self._checkpoint = checkpoint or thimble_path()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it answers when :meth:`wait` returns."""
        if COMMAND is None:
            pytest.fail("there is no vllm; `make test-vllm` installs one")
        with self._log.open("ab") as output:
            place = ("--host", "127.0.0.1", "--port", str(self._port))
            exactly = ("--dtype", "float32", *EXACTLY)
            what = (str(self._checkpoint), "--served-model-name", self._checkpoint.name)
            self._process = subprocess.Popen(
                [COMMAND, "serve", *what, *place, *exactly, *self._arguments],
                env={**os.environ, **ENVIRONMENT, **self._environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        pytest.fail(f"vllm did not start: {self._log.read_text('utf-8', 'replace')[-3000:]}")

    def kill(self) -> None:
        """Kill it and its workers, without a word."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def let_go(engines: Iterable[VLLM]) -> None:
    """Take what engines gave to their servers out again, and close them."""
    for engine in engines:
        for name in sorted(engine.adapters):
            engine.unload_adapter(name)
        engine.close()


@pytest.fixture(scope="session")
def logs() -> Iterator[Path]:
    """Where the servers' logs go; they are small."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def new_server(logs: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers that end with the session; they start side by side where they are started before they are waited for."""
    made: list[Server] = []

    def make(*arguments: str, checkpoint: Path | None = None, **environment: str) -> Server:
        server = Server(logs / f"{len(made)}.log", free_port(), *arguments, checkpoint=checkpoint, **environment)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.kill()


@pytest.fixture(scope="session")
def servers(new_server: Callable[..., Server]) -> dict[str, Server]:
    """All kinds that are asked here; started side by side, as each takes most of a minute."""
    started = {
        "second": new_server(*LORA, **OURS),
        "stock": new_server(),
        "bare": new_server(*BARE, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1", VLLM_PLUGINS=""),
    }
    for server in started.values():
        server.wait()
    return started


@pytest.fixture(scope="session")
def replica(new_server: Callable[..., Server]) -> Server:
    """A server as docs/vllm.md says to start it; or the one that runs at ``KE_VLLM_URL``, started the same way on the thimble."""
    if RUNNING:
        return Server(Path(os.devnull), int(RUNNING.rpartition(":")[2]))
    server = new_server(*LORA, **OURS)
    server.wait()
    return server
