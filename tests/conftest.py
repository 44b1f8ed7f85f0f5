"""What every test stands on: an empty home, none of the user's settings, no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from ke_tools.config import Settings

# Read by the libraries when they are imported, thus before any fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line has it
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores have workers of their own

hypothesis_settings.register_profile("ke-tools", deadline=None, database=None)
hypothesis_settings.load_profile("ke-tools")

CACHE = Settings.load().cache  # the user's, as fetching the model again for the tests would take minutes


@pytest.fixture(autouse=True)
def _nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KE_")]:
        monkeypatch.delenv(name)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            pytest.fail(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def cache() -> Path:
    """The user's cache, with the models that are ready there."""
    return CACHE


@pytest.fixture(scope="session")
def graphs() -> Callable[[Path], None]:
    """Puts into a cache what the scope computes with: `make model`, which every test command begins with, has made it."""

    def link(cache: Path) -> None:
        (cache / "scope").mkdir(parents=True, exist_ok=True)
        for graph in (CACHE / "scope").glob("*.onnx"):
            (cache / "scope" / graph.name).symlink_to(graph)

    return link


@pytest.fixture
def settings(tmp_path: Path, graphs: Callable[[Path], None]) -> Settings:
    """An empty home, and a cache with nothing but what the scope computes with."""
    if not (tmp_path / "cache").exists():
        graphs(tmp_path / "cache")
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache")


@pytest.fixture
def model_settings(tmp_path: Path) -> Settings:
    """An empty home and the cache with the embedded model; for tests marked ``model``."""
    from ke_tools.models import embedded

    if embedded.locate(CACHE) is None:
        pytest.skip("the embedded model is not in the cache; `ke-tools model fetch` puts it there")
    return Settings(home=tmp_path / "home", cache=CACHE)


@pytest.fixture
def nobody() -> Callable[[], AbstractContextManager[None]]:
    """Give a block in which root's right to read and write everything is gone."""

    @contextmanager
    def without_rights() -> Iterator[None]:
        if os.geteuid() != 0:
            yield
            return
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("no other user to be")
        try:
            yield
        finally:
            os.seteuid(0)

    return without_rights


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run asynchronous tests on asyncio, as the servers do."""
    return "asyncio"
