"""The worker process: one a home, whatever dies, and however it is asked to stop."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ke_tools
from ke_tools import jobs
from ke_tools.config import Settings
from ke_tools.errors import Busy, KeToolsError, ReadOnly, ResourceExhausted
from ke_tools.jobs import Cancelled, Reporter, ensure_worker, run_worker
from ke_tools.memory.joblog import Job, Jobs
from ke_tools.memory.ledger import Ledger

HERE = Path(__file__).parent
ROOT = Path(ke_tools.__file__).parents[1]
HANDLERS = {kind: f"job_handlers:{kind}" for kind in ("steps", "until", "die", "fail", "much")}

# A worker that the test may kill, as it is its parent.
WORKER = """
import json, sys
from ke_tools.config import Settings
from ke_tools.jobs import run_worker

orders = json.loads(sys.argv[1])
run_worker(Settings.from_json(orders["settings"]), handlers=orders["handlers"], idle_seconds=orders["idle_seconds"])
"""


@pytest.fixture(autouse=True)
def _handlers_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(HERE), str(ROOT))))


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Settings]:
    """An empty home, left when no worker of it runs any more."""
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache")
    yield settings
    eventually(lambda: is_free(settings))


@pytest.fixture
def ledger(home: Settings) -> Iterator[Ledger]:
    """The home's ledger, as a server has it open."""
    with Ledger(home.ledger_file) as made:
        yield made


def eventually(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def is_free(settings: Settings) -> bool:
    """Tell whether nobody holds the worker's lock."""
    if (lock := jobs._take(settings.home)) is None:
        return False
    os.close(lock)
    return True


def submit(ledger: Ledger, kind: str, tenant: str = "acme", **arguments: Any) -> Job:
    """Ask for a job."""
    return ledger.jobs.submit(tenant, kind, arguments, actor="ann")


def work(home: Settings) -> None:
    """Do what is queued, in this process."""
    run_worker(home, handlers=HANDLERS, idle_seconds=0)


def start(home: Settings, idle_seconds: float = 60) -> subprocess.Popen[bytes]:
    """Start a worker that can be killed."""
    orders = {"settings": home.to_json(), "handlers": HANDLERS, "idle_seconds": idle_seconds}
    return subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(orders)], stderr=subprocess.PIPE)


def believed(ledger: Ledger, tenant: str = "acme") -> list[str]:
    """Which jobs took effect, each as often as it did."""
    return [edit.fact.subject for edit in ledger.live(tenant)]


# -- doing jobs ------------------------------------------------------------------------------------------------------------------


def test_the_worker_does_what_is_queued_and_ends(home: Settings, ledger: Ledger) -> None:
    """Shared design: claim → handler → complete, over all tenants, and an end by itself."""
    one, two = submit(ledger, "steps"), submit(ledger, "steps", "bolt")
    work(home)
    ended = ledger.jobs.get("acme", one.id)
    assert (ended.status, ended.result["summary"], ended.stage, ended.done) == ("completed", f"done {one.id}", "publish", 1)
    assert (believed(ledger), believed(ledger, "bolt")) == ([one.id], [two.id])
    assert is_free(home)


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("ours", "E_CONFLICT", "the policy cannot be passed."),
        ("memory", "E_RESOURCE", "memory ran out"),
        ("torch", "E_RESOURCE", "memory ran out: DefaultCPUAllocator"),
        ("defect", "E_INTERNAL", "ZeroDivisionError: division by zero"),
        ("no JSON", "E_INTERNAL", "not JSON serializable"),
    ],
)
def test_a_handler_that_fails_fails_its_job_alone(home: Settings, ledger: Ledger, how: str, code: str, told: str) -> None:
    """Issue, Jobs: `failed` is for what broke; the next job is done all the same."""
    broken, sound = submit(ledger, "fail", how=how), submit(ledger, "steps")
    work(home)
    error = ledger.jobs.get("acme", broken.id).error
    assert error["code"] == code
    assert told in error["message"]
    assert error["hint"]
    assert ledger.jobs.get("acme", sound.id).status == "completed"


def test_what_jobs_keep_is_let_go_before_another_process_can_be_the_worker(
    home: Settings, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 7, §2: what a worker's engine gave to vLLM has the worker's names; the next worker's must not go with it."""
    let_go: list[bool] = []

    def broken() -> None:
        raise ZeroDivisionError

    jobs.at_end(lambda: let_go.append(is_free(home)))
    jobs.at_end(broken)
    submit(ledger, "fail", how="defect")
    work(home)
    assert let_go == [False]
    assert "could not be let go" in caplog.text
    work(home)
    assert let_go == [False]


def test_a_kind_that_nobody_does_is_told(home: Settings, ledger: Ledger) -> None:
    """A row of a newer version, or of a mistyped kind, stops nothing."""
    job = submit(ledger, "nonsense")
    work(home)
    assert ledger.jobs.get("acme", job.id).error["code"] == "E_UNSUPPORTED"


def test_a_handler_that_cannot_be_imported_fails_its_job(home: Settings, ledger: Ledger) -> None:
    """A broken installation is told in the job, not by silence."""
    job = submit(ledger, "steps")
    run_worker(home, handlers={"steps": "no.such.module:run"}, idle_seconds=0)
    assert "No module named 'no'" in ledger.jobs.get("acme", job.id).error["message"]


def test_a_large_result_is_bounded_and_so_is_the_log(home: Settings, ledger: Ledger) -> None:
    """Rows stay under 1 MB, and a handler that talks all the time fills no disk."""
    ids = [submit(ledger, "much").id for _ in range(2)]
    ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    eventually(lambda: ledger.jobs.get("acme", ids[-1]).has_ended)
    assert ledger.jobs.get("acme", ids[0]).result == {"summary": "done", "left_out": ["answers"]}
    eventually(lambda: is_free(home))
    log = home.home / "worker.log"
    assert b"x" * 9_999 in log.read_bytes()
    assert log.stat().st_size <= jobs._LARGEST_LOG
    assert log.stat().st_mode & 0o777 == 0o600


def test_the_log_is_bounded_while_a_job_lasts(home: Settings, ledger: Ledger, tmp_path: Path) -> None:
    """A job of hours must not fill the disk before it ends."""
    job = submit(ledger, "until", file=str(tmp_path / "go"))
    ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    eventually(lambda: ledger.jobs.get("acme", job.id).stage == "waiting")
    log = home.home / "worker.log"
    with log.open("ab") as output:
        output.write(b"x" * 2 * jobs._LARGEST_LOG)
    eventually(lambda: log.stat().st_size <= jobs._LARGEST_LOG)
    assert ledger.jobs.cancel("acme", job.id).status == "working"


def test_a_long_log_keeps_its_end(tmp_path: Path) -> None:
    """What was said last is what matters; whoever writes to it goes on behind that."""
    log = tmp_path / "worker.log"
    with log.open("ab", buffering=0) as output:
        output.write(b"old\n" + b"x" * jobs._LARGEST_LOG + b"last\n")
        jobs._shorten(log)
        output.write(b"new\n")
    kept = log.read_bytes()
    assert kept.endswith(b"xlast\nnew\n")
    assert len(kept) == jobs._LOG_KEPT + len(b"new\n")


# -- progress --------------------------------------------------------------------------------------------------------------------


class Counting(Jobs):
    """Rows whose progress fails to be written for some time."""

    def __init__(self, ledger: Ledger, failures: int = 0) -> None:
        super().__init__(ledger._storage)
        self.failures = failures
        self.told: list[tuple[str, int]] = []
        self.beats = 0

    def tell(self, job_id: str, stage: str, done: int, total: int, message: str) -> bool:
        self.beats += 1
        if self.beats <= self.failures:
            raise (Busy, ResourceExhausted)[self.beats % 2]("not now.")
        self.told.append((stage, done))
        return super().tell(job_id, stage, done, total, message)


def claimed(ledger: Ledger) -> Job:
    """Give a job that is worked on."""
    submit(ledger, "steps")
    job = ledger.jobs.claim()
    assert job is not None
    return job


def test_progress_is_written_at_most_once_a_beat(ledger: Ledger) -> None:
    """Shared design: at most one write every half second, whatever is told; the last word is written."""
    job, rows = claimed(ledger), Counting(ledger)
    began = time.monotonic()
    with Reporter(rows, job, beat_seconds=0.05) as reporter:
        for number in range(20_000):
            reporter.tell("layers", number, 20_000)
        eventually(lambda: len(rows.told) > 1 or rows.told == [("layers", 19_999)])
    assert len(rows.told) <= (time.monotonic() - began) / 0.05 + 1
    assert rows.told[-1] == ("layers", 19_999)
    assert ledger.jobs.get("acme", job.id).done == 19_999
    assert jobs.BEAT_SECONDS == 0.5


def test_what_is_told_once_is_written_though_nothing_follows(ledger: Ledger) -> None:
    """A stage that takes long is seen while it lasts, and is written once."""
    job, rows = claimed(ledger), Counting(ledger)
    with Reporter(rows, job, beat_seconds=0.002) as reporter:
        reporter.tell("statistics", 0, 1)
        eventually(lambda: ledger.jobs.get("acme", job.id).stage == "statistics")
    assert rows.told == [("statistics", 0)]


def test_progress_that_cannot_be_written_harms_nothing(ledger: Ledger) -> None:
    """Busy, or a full disk: the work goes on, and the progress is written when it can be."""
    job, rows = claimed(ledger), Counting(ledger, failures=3)
    with Reporter(rows, job, beat_seconds=0.002) as reporter:
        reporter.tell("layers", 1, 8)
        eventually(lambda: rows.beats > 3)
    assert rows.told == [("layers", 1)]


def test_a_disk_that_is_full_for_good_fails_no_job_that_needs_none(ledger: Ledger) -> None:
    """The same, against SQLite itself."""
    job = claimed(ledger)
    db = ledger._storage._main
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').get}")
    for _ in range(200):  # until no page has room
        try:
            submit(ledger, "steps", text="x" * 500)
        except ResourceExhausted:
            break
    with Reporter(ledger.jobs, job, beat_seconds=0.002) as reporter:
        for number in range(50):
            reporter.tell("layers", number, 50, "y" * 2000)
    assert ledger.jobs.get("acme", job.id).message == ""  # it could not be written, and nobody was disturbed


def test_a_reporter_raises_once_the_job_is_cancelled(ledger: Ledger) -> None:
    """Cancellation is noticed at a beat, also where nothing new was told; no handler's `except Exception` takes it."""
    job = claimed(ledger)
    with Reporter(ledger.jobs, job, beat_seconds=0.002) as reporter:
        reporter.tell("layers", 1, 8)
        ledger.jobs.cancel("acme", job.id)
        eventually(lambda: reporter._is_to_stop)
        with pytest.raises(Cancelled):
            reporter.tell("layers", 2, 8)
        with pytest.raises(Cancelled):
            reporter.commit(lambda: pytest.fail("a cancelled job took effect"))
    assert not issubclass(Cancelled, Exception)


def test_nothing_is_cancelled_once_it_took_effect(ledger: Ledger) -> None:
    """Shared design: commit() is the point after which nothing can be cancelled; what is told afterwards disturbs nobody."""
    job = claimed(ledger)
    with Reporter(ledger.jobs, job, beat_seconds=0.002) as reporter:
        assert reporter.commit(lambda: {"summary": "done"}) == {"summary": "done"}
        assert ledger.jobs.cancel("acme", job.id).status == "completed"
        reporter.tell("tidying", 0, 1)
        eventually(lambda: reporter._is_to_stop)
        reporter.tell("tidying", 1, 1)


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.001)


@pytest.mark.usefixtures("_no_pauses")
def test_the_worker_waits_until_the_ledger_can_be_written(home: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy, or a full disk for a while: a job is taken and its result written when that is possible again."""
    failures: dict[str, list[KeToolsError]] = {
        "claim": [Busy("not now."), ResourceExhausted("not now.")],
        "commit": [ResourceExhausted("not now.")] * 3,
    }

    def failing(name: str) -> Callable[..., Any]:
        verb = getattr(Jobs, name)

        def first_fail(*arguments: Any) -> Any:
            if failures[name]:
                raise failures[name].pop()
            return verb(*arguments)

        return first_fail

    for name in failures:
        monkeypatch.setattr(Jobs, name, failing(name))
    job = submit(ledger, "steps")
    run_worker(home, handlers=HANDLERS, idle_seconds=0.2)
    assert failures == {"claim": [], "commit": []}
    assert ledger.jobs.get("acme", job.id).status == "completed"


@pytest.mark.usefixtures("_no_pauses")
def test_a_worker_that_cannot_write_what_came_of_a_job_gives_up(home: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with the error, and the next worker fails the job, which took no effect."""
    monkeypatch.setattr(jobs, "_PATIENCE_SECONDS", 0.01)
    job = submit(ledger, "steps")

    def full(*_: Any) -> None:
        raise ResourceExhausted("the disk is full.")

    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "commit", full)
        patched.setattr(Jobs, "fail", full)
        with pytest.raises(ResourceExhausted, match="full"):
            work(home)
    work(home)
    assert "nothing was changed" in ledger.jobs.get("acme", job.id).error["message"]
    assert believed(ledger) == []


@pytest.mark.usefixtures("_no_pauses")
def test_a_disk_that_stays_full_fails_the_job_that_would_take_effect(
    home: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue, Bad input: with a full disk nothing is published, and the job says why."""
    monkeypatch.setattr(jobs, "_PATIENCE_SECONDS", 0.01)

    def full(*_: Any, **__: Any) -> None:
        raise ResourceExhausted("the ledger could not grow.", "Free disk space, then repeat.")

    monkeypatch.setattr(Ledger, "edit", full)
    job = submit(ledger, "steps")
    work(home)
    error = ledger.jobs.get("acme", job.id).error
    assert (error["code"], error["hint"], believed(ledger)) == ("E_RESOURCE", "Free disk space, then repeat.", [])


# -- one worker a home -----------------------------------------------------------------------------------------------------------


def test_a_second_worker_is_refused_and_none_is_started_beside_the_first(home: Settings, ledger: Ledger, tmp_path: Path) -> None:
    """Issue, Jobs: one worker process; one writer at a time across processes."""
    job = submit(ledger, "until", file=str(tmp_path / "go"))
    assert ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    assert not ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    with pytest.raises(Busy, match="another process"):
        work(home)
    second = start(home, idle_seconds=0)
    _, said = second.communicate()
    assert b"E_BUSY" in said
    eventually(lambda: ledger.jobs.get("acme", job.id).stage == "waiting")  # it is still the first's
    ledger.jobs.cancel("acme", job.id)
    eventually(lambda: ledger.jobs.get("acme", job.id).status == "cancelled")
    assert believed(ledger) == []


def test_many_servers_start_one_worker(home: Settings, ledger: Ledger) -> None:
    """Windows open at once, and each has a job."""
    ids = [submit(ledger, "steps").id for _ in range(8)]
    threads = [threading.Thread(target=ensure_worker, args=(home,), kwargs={"handlers": HANDLERS, "idle_seconds": 0.3}) for _ in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: all(ledger.jobs.get("acme", job_id).has_ended for job_id in ids))
    assert len({ledger.jobs.get("acme", job_id).result["pid"] for job_id in ids}) == 1
    assert believed(ledger) == ids
    result = ledger.jobs.get("acme", ids[0]).result
    assert result["session"] == result["pid"] != os.getpid()  # what ends the server's session does not end it


def test_a_job_that_comes_while_the_worker_ends_is_done(home: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found the lock held, so that nobody was started for it; the worker looks once more after it let go."""
    late: list[Job] = []
    doing = jobs._work

    def then_one_comes(*arguments: Any) -> None:
        doing(*arguments)
        if not late:
            late.append(submit(ledger, "steps"))
            assert not ensure_worker(home, handlers=HANDLERS)

    monkeypatch.setattr(jobs, "_work", then_one_comes)
    work(home)
    assert ledger.jobs.get("acme", late[0].id).status == "completed"


def test_a_home_that_takes_no_files_is_told(tmp_path: Path) -> None:
    """The server says why no job can be done."""
    (tmp_path / "home").write_text("a file in the way", "utf-8")
    with pytest.raises(ReadOnly, match="worker"):
        ensure_worker(Settings(home=tmp_path / "home", cache=tmp_path))


def test_a_worker_that_cannot_be_started_is_told_and_leaves_the_lock_free(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for another process: the call fails, the server lives, the next call may work."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(ResourceExhausted, match="Cannot allocate memory"):
        ensure_worker(home)
    assert is_free(home)


# -- cancelling ------------------------------------------------------------------------------------------------------------------


def test_a_queued_job_that_was_cancelled_is_never_begun(home: Settings, ledger: Ledger) -> None:
    """Issue, Jobs: cancellation at any point before the flip."""
    job = submit(ledger, "steps")
    ledger.jobs.cancel("acme", job.id)
    work(home)
    assert (ledger.jobs.get("acme", job.id).status, believed(ledger)) == ("cancelled", [])


def test_cancelling_comes_too_late_for_a_job_that_took_effect(home: Settings, ledger: Ledger, tmp_path: Path) -> None:
    """The row then says completed, as is true."""
    (tmp_path / "go").touch()
    job = submit(ledger, "until", file=str(tmp_path / "go"))
    ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    eventually(lambda: believed(ledger) == [job.id])
    assert not ledger.jobs.cancel("acme", job.id).is_cancelling
    (tmp_path / "go.end").touch()
    eventually(lambda: ledger.jobs.get("acme", job.id).has_ended)
    assert ledger.jobs.get("acme", job.id).status == "completed"


# -- sudden ends -----------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_leaves_its_job_failed_with_advice(home: Settings, ledger: Ledger) -> None:
    """Issue, Bad input: a worker killed by the system for memory: the job fails with advice, the server lives."""
    killed, waiting = submit(ledger, "die"), submit(ledger, "steps")
    ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    eventually(lambda: is_free(home))
    assert ledger.jobs.get("acme", killed.id).status == "working"  # nobody was there to say otherwise
    assert ensure_worker(home, handlers=HANDLERS, idle_seconds=0)  # as whoever asks about the job calls it
    eventually(lambda: ledger.jobs.get("acme", waiting.id).has_ended)
    error = ledger.jobs.get("acme", killed.id).error
    assert (error["code"], ledger.jobs.get("acme", waiting.id).status) == ("E_INTERRUPTED", "completed")
    assert "fewer edits" in error["hint"]
    eventually(lambda: "ended by SIGKILL" in (home.home / "worker.log").read_text("utf-8"))


def kill_at_random_moments(home: Settings, ledger: Ledger, times: int, seed: int) -> set[tuple[str, bool]]:
    """Kill workers while jobs come and some are cancelled; every job must end, and take effect once or not at all.

    Returns how jobs ended: the status, and whether they took effect.
    """
    moments = random.Random(seed)
    ids: list[str] = []
    for _ in range(times):
        process = start(home)
        for _ in range(moments.randint(3, 12)):
            ids.append(submit(ledger, "steps", pause=moments.random() / 50).id)
            if moments.random() < 0.2:
                ledger.jobs.cancel("acme", moments.choice(ids))
        before = {job_id for job_id in ids if ledger.jobs.get("acme", job_id).has_ended}
        eventually(lambda: any(ledger.jobs.get("acme", job_id).has_ended for job_id in ids if job_id not in before), 60)  # noqa: B023
        time.sleep(moments.random() / 20)  # the moment is the test's subject
        process.send_signal(signal.SIGKILL)
        process.communicate()
    work(home)
    ended = {job_id: ledger.jobs.get("acme", job_id) for job_id in ids}
    effects = believed(ledger)
    assert len(effects) == len(set(effects))
    told = [(job.status, job_id in effects) for job_id, job in ended.items()]
    assert set(told) <= {("completed", True), ("cancelled", False), ("failed", False)}
    assert {job.error["code"] for job in ended.values() if job.status == "failed"} <= {"E_INTERRUPTED"}
    assert sum(status == "failed" for status, _ in told) <= times
    assert ledger.audit() == []
    return set(told)


def test_no_job_is_lost_or_done_twice_when_the_worker_is_killed(home: Settings, ledger: Ledger) -> None:
    """Issue, Bars: `kill -9` at random moments."""
    kill_at_random_moments(home, ledger, times=2, seed=1)


@pytest.mark.slow
def test_no_job_is_lost_or_done_twice_in_many_kills(home: Settings, ledger: Ledger) -> None:
    """The same, forty times."""
    ends = kill_at_random_moments(home, ledger, times=40, seed=2)
    assert ends == {("completed", True), ("cancelled", False), ("failed", False)}


# -- the server stays light ------------------------------------------------------------------------------------------------------


def test_a_server_that_starts_the_worker_reads_no_torch(home: Settings, ledger: Ledger) -> None:
    """Handlers, and what they need, are imported in the worker only."""
    code = (
        "import json, sys; from ke_tools.config import Settings; from ke_tools.jobs import ensure_worker;"
        "orders = json.loads(sys.argv[1]); assert ensure_worker(Settings.from_json(orders['settings']), handlers=orders['handlers'],"
        " idle_seconds=0); assert not {'torch', 'transformers', 'job_handlers'} & set(sys.modules)"
    )
    job = submit(ledger, "steps")
    orders = json.dumps({"settings": home.to_json(), "handlers": HANDLERS})
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, orders], check=True)
    eventually(lambda: ledger.jobs.get("acme", job.id).has_ended)  # the worker outlives who started it
    assert ledger.jobs.get("acme", job.id).result["torch"] is False


def test_the_worker_says_why_it_cannot_work(home: Settings) -> None:
    """A damaged ledger: the reason stands in the worker's log."""
    home.home.mkdir()
    home.ledger_file.write_bytes(b"no database" * 1000)
    ensure_worker(home, handlers=HANDLERS, idle_seconds=0)
    eventually(lambda: "E_LEDGER" in (home.home / "worker.log").read_text("utf-8"))
    with pytest.raises(KeToolsError):
        work(home)
