"""What the worker keeps from job to job, and lets go when it ends (issue 6 §4)."""

from __future__ import annotations

from dataclasses import replace

from ke_tools.config import Settings
from ke_tools.jobs import run_worker
from ke_tools.models.engine import Request
from ke_tools.servers.promoting import loaded
from ke_tools.testing import thimble_path


def test_a_worker_that_goes_on_after_it_let_go_has_an_engine_that_answers(settings: Settings) -> None:
    """Fault: a job that is queued while the worker ends is done by it all the same; it failed, as its engine was closed."""
    settings = replace(settings, model=str(thimble_path()))
    before = loaded(settings)
    assert loaded(settings) is before
    run_worker(settings, handlers={}, idle_seconds=0)
    _, engine = loaded(settings)
    assert next(iter(engine.generate([Request(prompt="The capital of France is", max_tokens=2)]))).text
    run_worker(settings, handlers={}, idle_seconds=0)
