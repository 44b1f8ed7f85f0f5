"""Promotion is killed at random moments, and the home is whole each time (issue 6, Bars)."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from ke_tools.config import Settings
from ke_tools.testing import thimble_path
from tests.kill_jobs import MARK, Found, change, look

KILLS: Final = int(os.environ.get("KE_TEST_KILLS", "20"))
_LONGEST: Final = 6.0  # seconds that a process lives
_PREPARED: Final = ["ke_tools.workshop", "ke_tools.servers.engines.hf", "transformers.models.llama.modeling_llama", "peft"]


@pytest.mark.slow
@pytest.mark.timeout(60 + 60 * KILLS)
def test_a_home_is_whole_whenever_promotion_is_killed(tmp_path: Path, graphs: Callable[[Path], None]) -> None:
    """Issue, Bars: 0 lost acknowledged edits, 0 half releases, live answers always those of one whole release."""
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(thimble_path()))
    graphs(settings.cache)
    journal, dice = tmp_path / "journal", random.Random(6)
    processes = multiprocessing.get_context("forkserver")  # what is read from the disk is read once
    processes.set_forkserver_preload(_PREPARED)
    answers: dict[str, tuple[str, ...]] = {}
    found: list[Found] = []
    began = time.monotonic()
    for number in range(-1, KILLS):  # the first fills the cache, and is not counted
        process = processes.Process(target=change, args=(settings, journal, dice.getrandbits(32)))
        process.start()
        _wait(settings, journal, dice, is_first=number < 0)
        assert process.exitcode is None, "it ended by itself"
        process.kill()
        process.join()
        with ProcessPoolExecutor(1, processes) as fresh:
            found.append(fresh.submit(look, settings, journal).result())
        _check(found[-1], answers)
    releases, leftovers = len(answers) - 1, sum(bool(one.leftovers) for one in found)
    print(f"{KILLS} kills in {time.monotonic() - began:.0f} s: {releases} releases seen, {leftovers} builds cut short")  # noqa: T201
    assert releases >= min(3, KILLS)
    assert sum(one.spoken for one in found) > sum(one.promoted for one in found) / 2


def _check(found: Found, answers: dict[str, tuple[str, ...]]) -> None:
    assert found.damage == ()
    assert set(found.answers) == {"", found.live}
    for name, told in found.answers.items():
        assert answers.setdefault(name, told) == told
    assert not found.live or found.answers[found.live] != found.answers[""]


def _wait(settings: Settings, journal: Path, dice: random.Random, *, is_first: bool) -> None:
    """Wait for a random moment: any, or one about when a release is written, when it goes live, or when something else is written."""
    mark, partial, before = settings.home / MARK, settings.releases / ".partial", _size(journal)
    mark.unlink(missing_ok=True)
    aims: dict[str, Callable[[], bool]] = {
        "any": lambda: True,
        "writing": partial.exists,
        "flip": mark.exists,
        "journal": lambda: _size(journal) > before,
        "first": lambda: b"completed" in (journal.read_bytes() if journal.exists() else b""),
    }
    aim = "first" if is_first else dice.choice(["any", "writing", "flip", "flip", "journal"])
    deadline = time.monotonic() + 300
    while not aims[aim]():
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    time.sleep(dice.random() * {"any": _LONGEST, "writing": 0.005}.get(aim, 0.02))


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
