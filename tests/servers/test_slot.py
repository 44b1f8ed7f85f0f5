"""The place of the model while it loads: many may wait, and none of them costs a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools.errors import ModelLoading, ModelUnavailable
from ke_tools.models.engine import Engine
from ke_tools.servers.slot import ModelSlot, Say


class Loader:
    """A load that lasts until it is told to end, well or with a failure."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.failure: Exception | None = None
        self.engine: Any = SimpleNamespace(close=lambda: None)
        self.loads = 0

    def __call__(self, _say: Say) -> Engine:
        """Load."""
        self.loads += 1
        assert self.may_end.wait(30)
        if self.failure is not None:
            raise self.failure
        loaded: Engine = self.engine
        return loaded


@pytest.fixture
def loader() -> Iterator[Loader]:
    """A load that ends with the test at the latest."""
    made = Loader()
    yield made
    made.may_end.set()


async def asking(slot: ModelSlot, many: int, wait_seconds: float) -> asyncio.Future[list[Any]]:
    """Have the engine asked for many times at once; all wait already when this returns."""
    asked = asyncio.gather(*(slot.engine_async(wait_seconds) for _ in range(many)), return_exceptions=True)
    await asyncio.sleep(0)
    return asked


def test_fifty_who_ask_during_the_load_are_all_told_in_time_and_hold_no_thread(loader: Loader) -> None:
    """Issue 3 §4: E_MODEL_LOADING within 2 s, however many ask at once; waiting threads would starve all else."""
    slot = ModelSlot(loader)
    slot.start()
    before = threading.active_count()

    async def ask() -> tuple[list[Any], int]:
        asked = await asking(slot, 50, 1.5)
        return await asked, threading.active_count()

    began = time.monotonic()
    outcomes, threads = asyncio.run(ask())
    assert all(isinstance(outcome, ModelLoading) for outcome in outcomes)
    assert 1.4 < time.monotonic() - began < 3
    assert threads <= before  # one of an earlier test may end meanwhile


def test_all_who_wait_get_the_engine_when_it_is_there(loader: Loader) -> None:
    """Several event loops, and threads, may wait for one load."""
    slot = ModelSlot(loader)

    async def ask() -> list[Any]:
        asked = await asking(slot, 5, 20)
        loader.may_end.set()
        return await asked

    assert asyncio.run(ask()) == [loader.engine] * 5
    assert asyncio.run(slot.engine_async()) is loader.engine
    assert slot.engine() is loader.engine
    assert loader.loads == 1


def test_all_who_wait_learn_of_a_failure_and_the_next_question_loads_again(loader: Loader) -> None:
    """Whoever waited for a load is told why it failed, not that it is still under way."""
    slot = ModelSlot(loader)
    loader.failure = ModelUnavailable("the file is damaged.")

    async def ask() -> list[Any]:
        asked = await asking(slot, 5, 20)
        loader.may_end.set()
        return await asked

    assert asyncio.run(ask()) == [loader.failure] * 5
    loader.failure = None
    assert slot.engine(20) is loader.engine
    assert loader.loads == 2


def test_a_failure_that_nobody_waited_for_is_told_to_the_first_who_asks(loader: Loader) -> None:
    """A server starts the load before anybody asks; the reason of its failure must not be lost."""
    slot = ModelSlot(loader)
    loader.failure = RuntimeError("no such file")
    loader.may_end.set()
    slot.start()
    with pytest.raises(ModelUnavailable, match="RuntimeError: no such file"):
        slot.engine(20)


def test_a_loop_that_has_ended_meanwhile_disturbs_nobody(loader: Loader) -> None:
    """A window's loop may be closed before the load ends."""
    slot = ModelSlot(loader)
    with pytest.raises(ModelLoading):
        asyncio.run(slot.engine_async(0.01))
    loader.may_end.set()
    assert slot.engine(20) is loader.engine


def test_a_closed_slot_loads_nothing(loader: Loader) -> None:
    """What is asked for while a server ends is told so."""
    slot = ModelSlot(loader)
    slot.close()
    with pytest.raises(ModelUnavailable, match="the server ends"):
        slot.engine()
    assert loader.loads == 0


def test_the_place_tells_why_an_engine_that_was_ready_is_away(loader: Loader) -> None:
    """Issue 7, §1: a server of our own may die; most engines never are away."""
    loader.may_end.set()
    slot = ModelSlot(loader)
    slot.engine(30)
    assert slot.trouble == ""
    loader.engine.trouble = "it died"
    assert slot.trouble == "it died"
