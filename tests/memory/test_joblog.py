"""What the rows of long work promise to those who ask for it and to the worker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from ke_tools.errors import Busy, Conflict, InvalidInput, NotFound, ReadOnly, ResourceExhausted, WrongState
from ke_tools.facts import Fact
from ke_tools.memory import migrations
from ke_tools.memory.events import canonical
from ke_tools.memory.joblog import LARGEST, Job, bounded, erase
from ke_tools.memory.ledger import Ledger

EDIT = "ed_00000000000000aa"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger in memory."""
    with Ledger(":memory:") as made:
        yield made


def submit(ledger: Ledger, tenant: str = "acme", key: str = "", edit_id: str = EDIT) -> Job:
    """Ask for a usual job."""
    return ledger.jobs.submit(tenant, "promote", {"edit_ids": [edit_id]}, actor="ann", idempotency_key=key)


def claim(ledger: Ledger) -> Job:
    """Take a job that is there."""
    job = ledger.jobs.claim()
    assert job is not None
    return job


def claimed(ledger: Ledger) -> Job:
    """Give a job that is worked on."""
    submit(ledger)
    return claim(ledger)


def believing(ledger: Ledger, job: Job) -> dict[str, Any]:
    """An effect that can be seen."""
    ledger.edit(job.tenant, [Fact(subject=job.id, prompt=f"{job.id} says", target="yes")], actor=job.actor)
    return {"summary": "done"}


# -- asking ----------------------------------------------------------------------------------------------------------------------


def test_a_job_is_read_back_as_it_was_asked_for(tmp_path: Path) -> None:
    """Issue, Jobs: durable rows in the ledger's database."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        job = submit(ledger)
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.jobs.get("acme", job.id) == job
        assert ledger.head() == 0  # nothing is believed differently
        assert ledger.audit() == []
    assert (job.status, job.kind, job.actor, job.arguments, job.has_ended) == ("queued", "promote", "ann", {"edit_ids": [EDIT]}, False)
    assert len(job.id) == 20
    assert job.created_at == job.updated_at != ""


def test_another_tenants_job_is_not_found(ledger: Ledger) -> None:
    """mcp.md §4.2: owner check; the same answer as for an id that never was."""
    job = submit(ledger)
    unknown = "job_0000000000000000"
    for jobs_verb in (ledger.jobs.get, ledger.jobs.cancel):
        told = []
        for tenant, job_id in (("bolt", job.id), ("acme", unknown), ("acme", "' OR 1=1")):
            with pytest.raises(NotFound) as caught:
                jobs_verb(tenant, job_id)
            told.append(str(caught.value).replace(repr(job_id), "ID"))
        assert len(set(told)) == 1
    assert ledger.jobs.list("bolt").items == []
    assert ledger.jobs.get("acme", job.id) == job


def test_jobs_are_listed_newest_first_and_in_pages(ledger: Ledger) -> None:
    """mcp.md §4.2: history shows every job."""
    ids = [submit(ledger).id for _ in range(5)]
    submit(ledger, "bolt")
    one = ledger.jobs.list("acme", limit=3)
    two = ledger.jobs.list("acme", 3, one.next_cursor)
    assert [job.id for job in (*one.items, *two.items)] == ids[::-1]
    assert (one.total, two.next_cursor) == (5, "")
    with pytest.raises(InvalidInput, match="cursor"):
        ledger.jobs.list("bolt", 3, one.next_cursor)


def test_the_same_call_under_its_key_gives_the_same_job(ledger: Ledger) -> None:
    """mcp.md §4.2: a client that lost the answer asks again safely, also when the job has gone on."""
    job = submit(ledger, key="k")
    assert submit(ledger, key="k") == job
    ledger.jobs.claim()
    assert (submit(ledger, key="k").id, submit(ledger, key="k").status) == (job.id, "working")
    assert submit(ledger, "bolt", key="k").id != job.id
    assert len({submit(ledger).id, submit(ledger).id}) == 2


def test_a_key_of_another_job_is_refused(ledger: Ledger) -> None:
    """Other arguments or another kind: Conflict, and nothing is queued."""
    submit(ledger, key="k")
    with pytest.raises(Conflict, match="'k'"):
        submit(ledger, key="k", edit_id="ed_00000000000000bb")
    with pytest.raises(Conflict, match="'k'"):
        ledger.jobs.submit("acme", "verify", {"edit_ids": [EDIT]}, actor="ann", idempotency_key="k")
    assert ledger.jobs.list("acme").total == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"text": "x" * LARGEST}, "bytes; at most"), ({"model": object()}, "JSON"), ({"text": "\ud800"}, "JSON")],
    ids=["large", "an object", "half a character"],
)
def test_arguments_that_cannot_be_kept_are_refused(ledger: Ledger, arguments: dict[str, object], told: str) -> None:
    """Bad input is told before anything is queued."""
    with pytest.raises(InvalidInput, match=told):
        ledger.jobs.submit("acme", "promote", arguments, actor="ann")
    assert not ledger.jobs.is_waiting()


# -- cancelling ------------------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_cancelled_at_once(ledger: Ledger) -> None:
    """Issue, Jobs: cancellation at any point before the flip."""
    job = submit(ledger)
    assert ledger.jobs.cancel("acme", job.id).status == "cancelled"
    assert ledger.jobs.claim() is None


def test_a_job_that_is_worked_on_hears_that_it_is_cancelled(ledger: Ledger) -> None:
    """Issue, Jobs: cooperative; it is cancelled when the worker says so."""
    submit(ledger)
    job = claim(ledger)
    assert not ledger.jobs.tell(job.id, "keys", 1, 8, "")
    told = ledger.jobs.cancel("acme", job.id)
    assert (told.status, told.is_cancelling) == ("working", True)
    assert ledger.jobs.tell(job.id, "keys", 2, 8, "")
    assert ledger.jobs.commit(job.id, lambda: pytest.fail("it took effect")) is None
    ledger.jobs.stop(job.id)
    ended = ledger.jobs.get("acme", job.id)
    assert (ended.status, ended.is_cancelling, ended.done, ended.has_ended) == ("cancelled", False, 2, True)


def test_a_job_takes_effect_and_ends_at_once(ledger: Ledger) -> None:
    """Issue, Jobs: no moment at which a crash leaves a job failed though its release is live; cancelling comes too late after it."""
    job = claimed(ledger)
    assert ledger.jobs.commit(job.id, lambda: believing(ledger, job)) == {"summary": "done"}
    told = ledger.jobs.cancel("acme", job.id)
    assert (told.status, told.is_cancelling, told.result) == ("completed", False, {"summary": "done"})
    assert [edit.fact.subject for edit in ledger.live("acme")] == [job.id]
    assert ledger.jobs.interrupt() == []
    assert ledger.jobs.commit(job.id, lambda: pytest.fail("it took effect twice")) is None


@pytest.mark.parametrize("broken", [Busy("not now."), ResourceExhausted("no room."), KeyError("a defect")])
def test_a_job_that_cannot_end_takes_no_effect(ledger: Ledger, broken: Exception) -> None:
    """The other half: what the effect wrote before it failed is undone, and the job is worked on as before."""
    job = claimed(ledger)

    def half() -> dict[str, Any]:
        believing(ledger, job)
        raise broken

    with pytest.raises(type(broken)):
        ledger.jobs.commit(job.id, half)
    with pytest.raises(TypeError, match="JSON"):
        ledger.jobs.commit(job.id, lambda: believing(ledger, job) | {"model": object()})
    assert (ledger.live("acme"), ledger.head(), ledger.jobs.get("acme", job.id).status) == ([], 0, "working")
    assert ledger.audit() == []


def test_a_part_of_a_transaction_may_be_undone_by_itself(ledger: Ledger) -> None:
    """A dry run inside a larger change keeps nothing, and the rest is kept."""
    job = claimed(ledger)

    def effect() -> dict[str, Any]:
        ledger.edit("acme", [Fact(subject="Chile", prompt="The capital of Chile is", target="Lima")], actor="ann", dry_run=True)
        with suppress(InvalidInput):
            ledger.promote("acme", ["ed_" + "0" * 16], release="", actor="ann")
        return believing(ledger, job)

    ledger.jobs.commit(job.id, effect)
    assert [edit.fact.subject for edit in ledger.live("acme")] == [job.id]
    assert ledger.audit() == []


def test_a_job_that_has_ended_stays_as_it_is(ledger: Ledger) -> None:
    """A late cancellation is no error."""
    submit(ledger)
    job = claim(ledger)
    ledger.jobs.complete(job.id, {"summary": "done"})
    ended = ledger.jobs.get("acme", job.id)
    assert ledger.jobs.cancel("acme", job.id) == ended
    with pytest.raises(WrongState, match=job.id):
        ledger.jobs.fail(job.id, {})
    with pytest.raises(WrongState, match=job.id):
        ledger.jobs.stop(job.id)
    with pytest.raises(WrongState, match=job.id):
        ledger.jobs.complete(job.id, {})
    assert ledger.jobs.tell(job.id, "keys", 1, 8, "")  # whoever still works on it is to stop
    assert ledger.jobs.get("acme", job.id) == ended


# -- working ---------------------------------------------------------------------------------------------------------------------


def test_jobs_are_taken_in_the_order_they_came_over_all_tenants(ledger: Ledger) -> None:
    """Shared design: claim() gives the oldest queued one."""
    first, second = submit(ledger), submit(ledger, "bolt")
    assert ledger.jobs.is_waiting()
    assert [claim(ledger).id, claim(ledger).id] == [first.id, second.id]
    assert ledger.jobs.claim() is None
    assert not ledger.jobs.is_waiting()


def test_a_job_is_taken_once_however_many_want_it(tmp_path: Path) -> None:
    """One job, one worker: also if the lock did not hold."""
    with Ledger(tmp_path / "ledger.db") as one, Ledger(tmp_path / "ledger.db") as two, ThreadPoolExecutor(8) as pool:
        ids = {submit(one).id for _ in range(20)}
        taken = list(pool.map(lambda number: (one, two)[number % 2].jobs.claim(), range(40)))
    assert sorted(job.id for job in taken if job) == sorted(ids)


def test_progress_and_result_are_kept(ledger: Ledger) -> None:
    """Issue, Jobs: progress with stage and counts; at the end all of it is done."""
    submit(ledger)
    job = claim(ledger)
    ledger.jobs.tell(job.id, "layers", 3, 8, "layer 3 of 8")
    told = ledger.jobs.get("acme", job.id)
    assert (told.stage, told.done, told.total, told.message) == ("layers", 3, 8, "layer 3 of 8")
    ledger.jobs.complete(job.id, {"summary": "zwölf"})
    ended = ledger.jobs.get("acme", job.id)
    assert (ended.status, ended.done, ended.result, ended.error) == ("completed", 8, {"summary": "zwölf"}, {})


def test_an_error_is_kept_in_bounds(ledger: Ledger) -> None:
    """An error holds code, message and hint, and no more."""
    submit(ledger)
    job = claim(ledger)
    ledger.jobs.fail(job.id, {"code": "E_MODEL", "message": "x" * 10_000, "hint": "y", "retryable": True})
    ended = ledger.jobs.get("acme", job.id)
    assert (ended.status, ended.error) == ("failed", {"code": "E_MODEL", "message": "x" * 2000, "hint": "y"})


def test_a_result_that_is_too_large_is_refused(ledger: Ledger) -> None:
    """A row stays under 1 MB; the job can still end."""
    submit(ledger)
    job = claim(ledger)
    large = {"summary": "done", "answers": "x" * LARGEST, "edits": ["é" * 100]}
    with pytest.raises(InvalidInput, match="1048576"):
        ledger.jobs.complete(job.id, large)
    ledger.jobs.complete(job.id, bounded(large))
    assert ledger.jobs.get("acme", job.id).result == {"summary": "done", "edits": ["é" * 100], "left_out": ["answers"]}


@pytest.mark.parametrize("size", [LARGEST - 2000, LARGEST - 200, LARGEST - 100, LARGEST - 20, LARGEST, 3 * LARGEST])
def test_what_is_bounded_always_fits(size: int) -> None:
    """Whatever the parts' sizes, and without loss where there is room."""
    for result in ({"a": "x" * size}, {"a": "é" * (size // 2), "b": 1}, {f"part {n}": "y" * (size // 50) for n in range(50)}):
        kept = bounded(result)
        assert len(canonical(kept).encode()) <= LARGEST
        assert kept == result or kept["left_out"]
        assert kept == result or size > LARGEST - 2000
    assert bounded({}) == {}


def test_what_a_dead_worker_left_is_failed_with_advice(ledger: Ledger) -> None:
    """Issue, Jobs and Bad input: restart finds "failed: interrupted"; a worker killed for memory fails the job with advice."""
    before, other, waiting = submit(ledger), submit(ledger, "bolt"), submit(ledger)
    for _ in range(2):
        ledger.jobs.claim()
    ledger.jobs.tell(before.id, "layers", 3, 8, "")
    ledger.jobs.cancel("acme", before.id)
    assert [job.id for job in ledger.jobs.interrupt()] == [before.id, other.id]
    one, two = ledger.jobs.get("acme", before.id), ledger.jobs.get("bolt", other.id)
    assert (one.status, one.is_cancelling, one.error["code"], two.error["code"]) == ("failed", False, "E_INTERRUPTED", "E_INTERRUPTED")
    assert "at the stage 'layers'; nothing was changed" in one.error["message"]
    assert "want of memory" in one.error["hint"]
    assert ledger.jobs.get("acme", waiting.id).status == "queued"
    assert ledger.jobs.interrupt() == []


# -- files -----------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_changes_no_job(tmp_path: Path) -> None:
    """Issue, Bad input: full disk."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        submit(ledger)
        job = claim(ledger)
        db = ledger._storage._main
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').get}")
        with pytest.raises(ResourceExhausted):
            ledger.jobs.submit("acme", "promote", {"text": "x" * 100_000}, actor="ann")
        with pytest.raises(ResourceExhausted):
            ledger.jobs.complete(job.id, {"text": "x" * 100_000})
        assert ledger.jobs.list("acme").items == [job]


def test_a_second_writer_is_told_that_the_ledger_is_busy(tmp_path: Path) -> None:
    """As every method of the ledger."""
    with Ledger(tmp_path / "ledger.db") as one, Ledger(tmp_path / "ledger.db", busy_timeout_ms=30) as two:
        with one._storage.writing(keep=False), pytest.raises(Busy):
            submit(two)
        assert submit(two).status == "queued"


def test_a_ledger_of_an_older_form_that_may_not_be_written_has_no_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only window over a home that nobody has written since: no job is no damage."""
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "MIGRATIONS", migrations.MIGRATIONS[:3])
        Ledger(tmp_path / "ledger.db").close()
    with Ledger(tmp_path / "ledger.db", read_only=True) as ledger:
        assert ledger.jobs.list("acme").items == []
        with pytest.raises(NotFound):
            ledger.jobs.get("acme", "job_0000000000000000")
        with pytest.raises(ReadOnly):
            submit(ledger)


def test_a_status_that_nobody_knows_cannot_be_written(ledger: Ledger) -> None:
    """The table itself holds to the five states."""
    submit(ledger)
    with pytest.raises(apsw.ConstraintError):
        ledger._storage._main.execute("UPDATE jobs SET status = 'lost'")


def test_a_purge_leaves_nothing_of_an_edit_in_the_jobs(ledger: Ledger) -> None:
    """Issue §4: a payload is erased everywhere; a key that was used stays used."""
    job, other = submit(ledger, key="k"), submit(ledger, edit_id="ed_00000000000000bb")
    with pytest.raises(WrongState, match=job.id), ledger._storage.writing() as db:
        erase(db, "acme", EDIT)
    ledger.jobs.claim()
    ledger.jobs.complete(job.id, {"edits": [{"edit_id": EDIT, "worst": "Sydney"}]})
    with ledger._storage.writing() as db:
        erase(db, "acme", EDIT)
    erased = ledger.jobs.get("acme", job.id)
    assert (erased.status, erased.arguments, erased.result) == ("completed", {}, {})
    assert ledger.jobs.get("acme", other.id) == other
    with pytest.raises(Conflict):
        submit(ledger, key="k")
