"""Jobs on pages: what they are at, live, what came of them, and what to do where nothing did."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_tools.memory.joblog import Job, Jobs
from ke_tools.servers.console import jobs as jobs_page
from ke_tools.servers.console.pages import HEADERS
from ke_tools.servers.service import Service
from ke_tools.servers.tokens import WatchedTokens
from tests.servers.console.browsing import EVIL, PEOPLE, Console, refuse_strangers, table_of

TRIALS = [
    {"verdict": {"decision": "refused"}, "in_words": "MEMIT with 2 edits refused: reliability .71"},
    {"verdict": {"decision": "accepted"}, "in_words": "GRACE with 1 edit accepted: reliability .97"},
]


def begun(service: Service, kind: str = "promote", *, works: bool = True, **arguments: Any) -> Job:
    """A job of ann's tenant, taken by a worker unless told otherwise."""
    job = service.ledger.jobs.submit("acme", kind, arguments or {"edit_ids": ["ed_0123456789abcdef"]}, actor="ann")
    if works:
        taken = service.ledger.jobs.claim()
        assert taken is not None
        assert taken.id == job.id
    return job


def events(text: str) -> list[tuple[str, str]]:
    """What a browser makes of a stream: each event's name and data; comments have none."""
    found = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines()]
        data = "\n".join(value for name, _, value in lines if name == "data")
        found += [(value, data) for name, _, value in lines if name == "event"]
    return found


@pytest.fixture
def steps(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[Jobs], object]]]:
    """What the worker does between two looks of whoever follows a job; nobody waits for a clock."""
    wanted: list[Callable[[Jobs], object]] = []
    look = service.promotions.job

    def job(who: Any, job_id: str) -> Job:
        found = look(who, job_id)
        if wanted:
            wanted.pop(0)(service.ledger.jobs)
        return found

    monkeypatch.setattr(service.promotions, "job", job)
    monkeypatch.setattr(jobs_page, "_LOOK_SECONDS", 0.0)
    yield wanted
    assert wanted == []


def test_the_list_has_the_newest_first_and_turns_page_by_page(console: Console) -> None:
    """Issue 8, §3: long lists page on the server; empty states are designed."""
    ann = console.browser("ann")
    assert "There was no long work yet" in ann.see("/console/jobs")
    made = [begun(console.service, works=False).id for _ in range(26)]
    first = ann.see("/console/jobs")
    older = first.partition("/console/jobs?cursor=")[2].partition('"')[0]
    assert "26 jobs, newest first" in first
    assert made[-1] in first
    assert made[0] not in first
    assert made[0] in ann.see(f"/console/jobs?cursor={older}")


def test_a_job_at_work_shows_its_stage_and_how_far_it_is(console: Console) -> None:
    """Issue 8, §3: live progress; the page without script has a link to load it again."""
    job = begun(console.service)
    ann = console.browser("ann")
    assert '<progress max="100" aria-label="It works; how far it is, is not known">' in ann.see(f"/console/jobs/{job.id}")
    console.service.ledger.jobs.tell(job.id, "judging", 30, 120, "asking probes")

    page = ann.see(f"/console/jobs/{job.id}")

    assert f'data-stream="/console/jobs/{job.id}/events"' in page
    assert '<progress max="100" value="25"' in page
    assert "judging: 30 of 120" in page
    assert "asking probes" in page
    assert f'<a href="/console/jobs/{job.id}">Load the page again</a>' in page
    assert "data-connection" in page
    assert f'action="/console/jobs/{job.id}/cancel"' in page


def test_what_came_of_a_job_is_told_with_the_gates_decisions(console: Console) -> None:
    """Issue 8, §3: the gate's decisions in words."""
    [edit] = console.service.ledger.edit("acme", [_fact()], actor="ann")
    job = begun(console.service, edit_ids=[edit.id, "ed_0123456789abcdef"])
    rows = [
        {"edit_id": edit.id, "rung": "grace", "reason": TRIALS[1]["in_words"]},
        {"edit_id": "ed_0123456789abcdef", "rung": "memory", "reason": "it would contradict another"},
    ]
    told = {"summary": "1 in a codebook.", "trials": TRIALS, "edits": rows, "release": "rel_" + "0" * 24, "revision": 7}
    console.service.ledger.jobs.complete(job.id, told)

    page = console.browser("reader").see(f"/console/jobs/{job.id}")

    assert "1 in a codebook." in page
    assert '<span class="state refused">refused</span> MEMIT with 2 edits refused: reliability .71' in page
    assert '<span class="state accepted">accepted</span> GRACE with 1 edit accepted: reliability .97' in page
    assert "Live at revision 7:" in page
    assert "in the codebook" in page
    assert "<td>GRACE with 1 edit accepted</td>" in page
    assert '<span class="id">ed_0123456789abcdef</span> <span class="small">(purged)</span>' in page
    assert "data-stream" not in page
    assert "Load the page again" not in page


def test_a_job_that_came_to_nothing_says_why_and_what_to_do(console: Console) -> None:
    """Issue 8, §3: error states are designed."""
    job = begun(console.service)
    console.service.ledger.jobs.fail(job.id, {"code": "E_RESOURCES", "message": "memory ran out.", "hint": "Free some."})
    page = console.browser("ann").see(f"/console/jobs/{job.id}")
    assert "<strong>memory ran out.</strong> Free some. <code>E_RESOURCES</code>" in page


def test_the_stream_tells_what_changed_and_when_it_has_ended(console: Console, steps: list[Callable[[Jobs], object]]) -> None:
    """Issue 8, §3: live progress by server-sent events."""
    job = begun(console.service)
    steps += [
        lambda jobs: jobs.tell(job.id, "judging", 1, 4, "first"),
        lambda _: None,  # nothing changed: nothing is sent
        lambda jobs: jobs.tell(job.id, "judging", 2, 4, "second"),
        lambda jobs: jobs.complete(job.id, {"summary": "done, all of it"}),
    ]

    sent = console.browser("reader").get(f"/console/jobs/{job.id}/events")

    assert sent.status_code == 200
    assert sent.headers["content-type"].startswith("text/event-stream")
    assert {name: sent.headers[name] for name in HEADERS} == HEADERS
    found = events(sent.text)
    assert [name for name, _ in found] == ["now", "now", "now", "end"]
    assert "first" in found[0][1]
    assert "second" in found[1][1]
    assert "done, all of it" in found[2][1]
    assert found[2][1].count("\n") == 1  # a line each, put together again
    assert found[3] == ("end", "completed")


def test_a_silent_stream_is_kept_alive(console: Console, steps: list[Callable[[Jobs], object]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §3: what lies between takes no silent line for a dead one."""
    monkeypatch.setattr(jobs_page, "_HEARTBEAT_SECONDS", 0.0)
    job = begun(console.service)
    steps += [lambda _: None, lambda _: None, lambda jobs: jobs.fail(job.id, {"message": "no"})]
    sent = console.browser("ann").get(f"/console/jobs/{job.id}/events").text
    assert ": still at work\n\n" in sent
    assert [name for name, _ in events(sent)] == ["now", "now", "end"]


def test_a_stream_ends_when_whoever_listens_leaves(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §3: nobody is followed for; else each closed tab would ask the ledger for ever."""
    monkeypatch.setattr(jobs_page, "_LOOK_SECONDS", 0.0)
    job = begun(console.service)
    token = (b"authorization", b"Bearer ann")
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"/console/jobs/{job.id}/events",
        "raw_path": b"",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8765"), token],
        "scheme": "http",
        "server": ("127.0.0.1", 8765),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "root_path": "",
    }
    sent: list[bytes] = []

    async def listen() -> None:
        heard = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await heard.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if b"event: now" in sent[-1]:
                heard.set()

        await asyncio.wait_for(console.app(scope, receive, send), 20)

    asyncio.run(listen())
    assert b"event: end" not in b"".join(sent)
    assert console.service.ledger.jobs.get("acme", job.id).status == "working"


@pytest.mark.parametrize("given", [{}, {"authorization": "Bearer ann"}])
def test_a_stream_ends_when_its_token_is_withdrawn(
    service: Service, tmp_path: Path, steps: list[Callable[[Jobs], object]], given: dict[str, str]
) -> None:
    """Issue 8, bad input: rights withdrawn in between; asked for by a session or with the token itself."""
    file = tmp_path / "tokens.toml"
    file.write_text(table_of("ann", PEOPLE["ann"]), "utf-8")
    ann = Console.of(service, tokens=WatchedTokens(file)).browser("" if given else "ann")
    job = begun(service)
    steps += [lambda _: None, lambda _: file.write_text("", "utf-8")]
    sent = ann.client.get(f"/console/jobs/{job.id}/events", headers=given).text
    assert "event: end" not in sent
    assert service.ledger.jobs.get("acme", job.id).status == "working"


def test_a_stream_is_cut_where_the_ledger_cannot_be_read(console: Console, steps: list[Callable[[Jobs], object]]) -> None:
    """Issue 8, §3: the browser comes again by itself, and is told what is wrong."""
    from ke_tools.errors import LedgerDamaged

    def broken(_: Jobs) -> None:
        raise LedgerDamaged("page 9 is malformed.", "Restore a copy.")

    job = begun(console.service)
    steps += [lambda _: None, broken]
    sent = console.browser("ann").get(f"/console/jobs/{job.id}/events")
    assert (sent.status_code, events(sent.text)) == (200, [])


def test_a_job_is_cancelled_by_those_who_may(console: Console) -> None:
    """Issue 8, §3: a cancel button while it works; a measurement is stopped by whoever may ask for one."""
    reader, ann = console.browser("reader"), console.browser("ann")
    job = begun(console.service)
    assert "/cancel" not in reader.see(f"/console/jobs/{job.id}")
    assert reader.post(f"/console/jobs/{job.id}/cancel").status_code == 403
    assert ann.post(f"/console/jobs/{job.id}/cancel", mark="0" * 64).status_code == 403
    assert not console.service.ledger.jobs.get("acme", job.id).is_cancelling

    page = ann.done(f"/console/jobs/{job.id}/cancel")
    assert "stops before its next step" in page
    assert "It was asked to stop" in page
    assert "/cancel" not in page
    measured = begun(console.service, "verify", works=False)
    assert "/cancel" in reader.see(f"/console/jobs/{measured.id}")
    assert "It was cancelled; nothing was changed." in reader.done(f"/console/jobs/{measured.id}/cancel")


def test_another_tenant_has_no_such_job(console: Console) -> None:
    """Design §3: a tenant never sees another's."""
    job = begun(console.service)
    zoe = console.browser("zoe")
    assert job.id not in zoe.see("/console/jobs")
    for path in (f"/console/jobs/{job.id}", f"/console/jobs/{job.id}/events"):
        assert zoe.get(path).status_code == 404
    assert zoe.post(f"/console/jobs/{job.id}/cancel").status_code == 404
    assert not console.service.ledger.jobs.get("acme", job.id).is_cancelling


def test_who_has_no_session_logs_in_and_who_may_not_read_is_refused(console: Console) -> None:
    """Issue 8, §3: same tokens."""
    job = begun(console.service)
    refuse_strangers(console, "/console/jobs", f"/console/jobs/{job.id}", f"/console/jobs/{job.id}/events")


def test_whatever_a_job_says_is_text_on_the_page_and_in_the_stream(console: Console, steps: list[Callable[[Jobs], object]]) -> None:
    """Issue 8, bars: nothing executed; and no line break lets a message out of its event."""
    job = begun(console.service)
    console.service.ledger.jobs.tell(job.id, EVIL, 1, 2, f"{EVIL}\n\nevent: end\ndata: forged")
    ann = console.browser("ann")
    page = ann.get(f"/console/jobs/{job.id}").text
    steps += [lambda _: None, lambda jobs: jobs.fail(job.id, {"message": EVIL, "hint": EVIL})]
    stream = ann.get(f"/console/jobs/{job.id}/events").text
    console.service.ledger.jobs.submit("acme", "<script>alert(1)</script>", {}, actor="ann")
    for text in (page, stream, ann.get(f"/console/jobs/{job.id}").text, ann.get("/console/jobs").text):
        assert "<script>alert" not in text
        assert "<img" not in text
        assert "&lt;script&gt;alert" in text
    assert [(name, data) for name, data in events(stream) if name == "end"] == [("end", "failed")]


def _fact() -> Any:
    from ke_tools.facts import Fact

    return Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Firefly")
