"""What a machine has to hold a model in, as the system and torch tell it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ke_tools.models import machine
from ke_tools.models.machine import this_machine
from ke_tools.models.sizing import GIB


def test_a_container_has_what_it_may_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells the whole machine's memory, of which a container gets a part, or no limit."""
    whole = this_machine().memory
    assert whole > 0
    (tmp_path / "limit").write_text("max\n", "ascii")
    monkeypatch.setattr(machine, "_LIMITS", (str(tmp_path / "limit"), str(tmp_path / "none")))
    assert this_machine().memory >= whole
    (tmp_path / "limit").write_text("1048576\n", "ascii")
    found = this_machine()
    assert (found.memory, found.available) == (1 << 20, 1 << 20)


def test_gpus_are_those_that_torch_sees_and_a_broken_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: a driver that does not fit torch; doctor lives through it."""
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda n: SimpleNamespace(total_memory=(n + 1) * GIB))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = this_machine()
    assert (found.gpus, found.looked) == ((GIB, 2 * GIB), "torch sees 2 GPUs")

    def broken() -> int:
        raise RuntimeError("the driver is too old")

    cuda.device_count = broken
    found = this_machine()
    assert (found.gpus, found.looked) == ((), "torch sees no GPU (RuntimeError: the driver is too old)")
