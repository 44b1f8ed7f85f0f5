"""The object that every bench prints; design section 3."""

from __future__ import annotations

import json
import socket

from ke_tools.benches._report import Stages, at_least, at_most, machine, missed, report
from ke_tools.verify import NOT_MEASURED, rate


def test_a_bar_is_missed_by_less_and_by_nothing_measured() -> None:
    """Exit code 3 follows from this."""
    good, bad, none = at_least("a", rate([True] * 4), 0.97), at_least("b", rate([True, False]), 0.97), at_least("c", NOT_MEASURED, 0.0)
    assert (good.ok, bad.ok, none.ok) == (True, False, False)
    assert (at_most("s", 3.0, 3.0).ok, at_most("s", 3.1, 3.0).ok) == (True, False)
    assert missed(report("x", "m", 0, {}, [good, bad]))
    assert not missed(report("x", "m", 0, {}, [good]))
    assert not missed(report("x", "m", 0, {}))


def test_the_machine_is_told_without_names_or_paths() -> None:
    """Reports are published."""
    found = machine()
    assert set(found) == {"cores", "cpu", "memory_gib", "system", "python", "torch"}
    assert socket.gethostname() not in json.dumps(found).split('"')
    assert found["cores"] >= 1


def test_a_stage_that_is_entered_again_adds_up() -> None:
    """Seconds of a stage are all its seconds."""
    stages = Stages()
    for _ in range(2):
        with stages.stage("a"):
            pass
    stages.seconds["a"] += 1
    assert stages.as_dict()["total"] == stages.as_dict()["a"] >= 1
