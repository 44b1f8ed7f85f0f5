"""What the worker of tests/test_jobs.py is told to do; named to it by dotted path, imported by no test."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ke_tools.config import Settings
from ke_tools.errors import Conflict
from ke_tools.facts import Fact
from ke_tools.jobs import Reporter
from ke_tools.memory.joblog import Job
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot


def steps(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Take some steps, then correct a fact that names the job."""
    for step in range(job.arguments.get("steps", 3)):
        reporter.tell("steps", step, 3, f"step {step}")
        time.sleep(job.arguments.get("pause", 0))
    told = {"summary": f"done {job.id}", "pid": os.getpid(), "session": os.getsid(0), "torch": "torch" in sys.modules}
    reporter.tell("publish", 1, 1)
    return reporter.commit(lambda: effect(ledger, job) | told)


def effect(ledger: Ledger, job: Job) -> dict[str, Any]:
    """What can be seen of a job that took effect."""
    fact = Fact(subject=job.id, prompt=f"{job.id} says", target="yes")
    ledger.edit(job.tenant, [fact], actor=job.actor, slot_of=lambda fact: Slot(fact.subject, "", functional=False))
    return {}


def until(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Work until it is cancelled or a file appears, then take effect, and tidy up until a second file appears."""
    wait_for(Path(job.arguments["file"]), reporter, "waiting")
    result = reporter.commit(lambda: effect(ledger, job) | {"summary": "done"})
    wait_for(Path(job.arguments["file"] + ".end"), reporter, "tidying")
    return result


def wait_for(file: Path, reporter: Reporter, stage: str) -> None:
    """Wait for a file, though not for ever: a test that fails must leave no worker behind."""
    deadline = time.monotonic() + 50
    while not file.exists() and time.monotonic() < deadline:
        reporter.tell(stage, 0, 1)
        time.sleep(0.002)


def die(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """End as the system ends a process that takes too much memory."""
    reporter.tell("layers", 3, 8)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fail(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Fail in the way that was asked for."""
    kinds: dict[str, BaseException] = {
        "ours": Conflict("the policy cannot be passed.", "Lower it."),
        "memory": MemoryError(),
        "torch": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        "defect": ZeroDivisionError("division by zero"),
        "no JSON": KeyError("never raised"),
    }
    if job.arguments["how"] == "no JSON":
        return {"model": object()}
    raise kinds[job.arguments["how"]]


def much(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Write a lot to standard error, and give back a lot."""
    for _ in range(300):
        sys.stderr.write("x" * 9_999 + "\n")
    return {"summary": "done", "answers": ["y" * 1000] * 2000}
