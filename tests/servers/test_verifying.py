"""Verification of any edits in any state: at once, as a job of the worker, of an earlier revision, of a release; its scorecard is kept."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ke_tools import jobs
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, KeToolsError, NotFound, ReadOnly
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.past import Past
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers import promotions, verifying
from ke_tools.servers.local import Local
from ke_tools.servers.mcp_shapes import JobOut, VerifyOut
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot
from ke_tools.testing import thimble_path
from ke_tools.verify.card import drawn

LOCAL = Principal()
OTHER = Principal(name="eve", tenant="eve")
READER = Principal(name="ro", scopes=frozenset({"read"}))
CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City", "old_target": "Fredville"}


class Silent:
    """An engine that obeys what it is told, and by a release says that release's answer; it cannot score."""

    model_id = "scripted"
    fingerprint = "sha256:00"
    context_length = 4096
    chat_roles = frozenset({"system", "user", "assistant"})

    def __init__(self) -> None:
        self.adapters = frozenset({"reader"})
        self.asked: list[Request] = []
        self.may_go = threading.Event()
        self.may_go.set()

    def count_tokens(self, request: Request) -> int:
        """Count words."""
        return len(str(request.prompt or request.messages).split())

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer."""
        assert self.may_go.wait(60)
        self.asked += requests
        return [Generation(self._said(request), "stop", 1, 1) for request in requests]

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Answer in one piece."""
        [made] = self.generate([request])
        yield Piece(made.text, finished=made)

    def load_adapter(self, name: str, _path: Path) -> None:
        """Take a release."""
        self.adapters |= {name}

    def unload_adapter(self, name: str) -> None:
        """Forget it."""
        self.adapters -= {name}

    def close(self) -> None:
        """Nothing to free."""

    @staticmethod
    def _said(request: Request) -> str:
        asked = request.prompt or "\n".join(str(turn["content"]) for turn in request.messages or ())
        told = [line for line in asked.splitlines() if line.startswith("New fact: ")]
        if told:
            return told[0].removeprefix("New fact: ").strip('".').split(" is ")[-1] + "."
        if "rel_" in request.adapter and "Freedonia" in asked and "capital" in asked:
            return "Released City."
        return f"base answer to {asked[-40:]}"


class Scripted(Silent):
    """The same; it scores what it would say as likely."""

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[float | None]:
        """Nine in ten for what it would say."""
        return [math.log(0.9 if target in self._said(request) else 0.05) for request, target in zip(requests, targets, strict=True)]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The engine of the server and of the worker."""
    made = Scripted()
    monkeypatch.setattr(verifying, "engine_of", lambda _settings: made)
    monkeypatch.setattr(promotions, "ensure_worker", lambda _settings: False)
    return made


@pytest.fixture
def service(settings: Settings, engine: Scripted) -> Iterator[Service]:
    """A home's service; what it queues waits for :func:`work`."""
    made = Service(settings, Ledger(settings.ledger_file), ModelSlot(lambda _say: engine), model_id="scripted")
    yield made
    made.close()


def work(service: Service) -> None:
    """Be the worker until nothing is queued."""
    jobs.run_worker(service.settings, idle_seconds=0)


def edited(service: Service, *facts: dict[str, Any], who: Principal = LOCAL) -> list[str]:
    """Record facts."""
    return [row["edit_id"] for row in service.edit(who, facts or (CAPITAL,))["edits"]]


def verify(service: Service, edit_ids: Sequence[str] = (), *, who: Principal = LOCAL, **more: Any) -> dict[str, Any]:
    """Ask, and check the shape."""
    found = asyncio.run(service.verifying.verify(who, edit_ids, **{"wait_seconds": 0.0, **more}))
    VerifyOut.model_validate(found)
    return found


def verified_by_job(service: Service, edit_ids: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """Ask for what takes a job, and have it done."""
    begun = verify(service, edit_ids, **more)
    assert (begun["status"], begun["poll_after_ms"], begun["checks"]) == ("working", 1000, [])
    work(service)
    job = asyncio.run(service.job_status(more.get("who", LOCAL), begun["job_id"]))
    JobOut.model_validate(job)
    assert job["status"] == "completed", job
    return service.verifying.verified(more.get("who", LOCAL), begun["job_id"])


# What is answered at once ---------------------------------------------------------------------------------------------


def test_a_few_edits_are_measured_at_once_and_their_scorecard_is_kept(service: Service, engine: Scripted) -> None:
    """Issue 6 §1: the scorecard is stored by content hash and linked to its edits, with the column, costs, seeds and revision."""
    service.models.engine(20)
    [edit_id] = edited(service)
    found = verify(service, [edit_id])
    card = service.get_scorecard(LOCAL, found["scorecard"])

    assert (found["status"], found["job_id"], found["overall"]["reliability"]["value"]) == ("completed", "", 1.0)
    assert (card["revision"], card["model"], card["fingerprint"], card["suite"]) == (1, "scripted", "sha256:00", "quick")
    assert card["seeds"] == {"probes": "by edit id", "draw": 0, "decoding": "greedy"}
    assert card["states"] == {edit_id: "active"}
    forced = {row["dimension"]: row["value"] for row in card["forced"]}
    assert forced["reliability"] == pytest.approx(0.9)
    assert {row["dimension"]: row["value"] for row in card["forced_over_old"]}["reliability"] == 1.0
    assert card["costs"]["routed"] >= 2
    assert card["costs"]["tokens"] > 0
    assert card["costs"]["peak_mib"] > 0
    assert "teacher-forced" in drawn(card, "Freedonia")
    assert service.get_scorecard(LOCAL, edit_id)["scorecard"] == found["scorecard"]
    shown = service.get_edit(LOCAL, edit_id)
    assert shown["scorecards"][0]["scorecard"] == found["scorecard"]
    assert [event["action"] for event in shown["history"]] == ["edit"]
    assert shown["scorecards"][0]["passed"] == found["passed"]
    assert engine.adapters == {"reader"}


def test_an_engine_that_cannot_score_leaves_the_column_unmeasured(service: Service) -> None:
    """A number that was not measured is not made up."""
    service.models = ModelSlot(lambda _say: Silent())
    service.models.engine(20)
    found = verify(service, edited(service))

    assert "probability of the target: not measured" in found["scorecard_text"]
    assert service.get_scorecard(LOCAL, found["scorecard"])["forced"] == []


def test_what_takes_too_long_here_becomes_a_job(service: Service, engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6 §3: every call answers within thirty seconds."""
    monkeypatch.setattr("ke_tools.servers.verifying.MOST_WAIT_SECONDS", 0.0)
    service.models.engine(20)
    engine.may_go.clear()
    begun = verify(service, edited(service))
    engine.may_go.set()

    assert begun["status"] == "working"
    work(service)
    assert service.verifying.verified(LOCAL, begun["job_id"])["overall"]["reliability"]["value"] == 1.0


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_many_edits_or_the_full_suite_are_a_job(service: Service) -> None:
    """Issue 6 §5: any number of edits as a job; the full suite has the further dimensions, quick none."""
    ids = edited(service, *({**CAPITAL, "subject": f"Zembla {n}", "prompt": f"The capital of Zembla {n} is"} for n in range(12)))
    quick = verified_by_job(service, ids)
    full = verified_by_job(service, ids[:1], suite="full")

    assert [check["edit_id"] for check in quick["checks"]] == ids
    assert quick["further"] == []
    assert {"distracting_prefix", "other_tasks", "fluency"} <= {row["dimension"] for row in full["further"]}
    assert quick["scorecard"] != full["scorecard"]


def test_a_job_tells_how_far_it_is_and_the_failed_edits(service: Service, engine: Scripted) -> None:
    """Issue 6 §3: two views of one job; the second is the job's id with its status, by which an agent finds the scorecard."""
    [edit_id] = edited(service)
    service.rollback(LOCAL, edit_ids=[edit_id])
    heard: list[str] = []

    async def hear(job: Any) -> None:
        heard.append(job.stage)
        engine.may_go.set()

    async def ask() -> dict[str, Any]:
        doing = asyncio.create_task(asyncio.to_thread(work_when_queued, service))
        found = await service.verifying.verify(LOCAL, [edit_id], suite="full", wait_seconds=20, heard=hear)
        await doing
        return found

    found = asyncio.run(ask())
    job = asyncio.run(service.job_status(LOCAL, found["job_id"]))

    assert heard
    assert found["status"] == "completed"
    assert not found["passed"]
    assert [row["edit_id"] for row in job["edits"]] == [edit_id]
    assert job["scorecard"] == found["scorecard"]
    assert job["scorecard_text"] == found["scorecard_text"]
    assert service.get_scorecard(LOCAL, found["scorecard"])["states"] == {edit_id: "retired"}


def work_when_queued(service: Service) -> None:
    """Be the worker as soon as there is something to do."""
    deadline = time.monotonic() + 30
    while not service.ledger.jobs.is_waiting():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    work(service)


def test_a_reader_may_stop_a_verification_but_nothing_else(service: Service) -> None:
    """Issue 6 §3: cancellation; what changes nothing needs no right to write, and another tenant's is not there."""
    edited(service)
    begun = verify(service, suite="full", who=READER)

    with pytest.raises(NotFound):
        service.job_cancel(OTHER, begun["job_id"])
    assert service.job_cancel(READER, begun["job_id"])["status"] == "cancelled"
    work(service)
    assert service.verifying.verified(READER, begun["job_id"])["summary"] == "Cancelled; nothing was changed."
    assert service.ledger.scorecards_of("default", service.ledger.live("default")[0].id) == []


def test_the_command_line_waits_for_the_end(service: Service, engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6 §5: the same verbs with progress bars."""
    edit_ids = edited(service)
    told: list[str] = []
    monkeypatch.setattr("ke_tools.servers.local.open_service", lambda _settings: service)
    local = Local(service.settings)
    doing = threading.Thread(target=work_when_queued, args=(service,))
    doing.start()
    found = local.verify(edit_ids, suite="full", heard=lambda job: told.append(job["status"]))
    doing.join()

    assert found["overall"]["reliability"]["value"] == 1.0
    assert told
    assert local.scorecard(found["scorecard"])["suite"] == "full"

    monkeypatch.setattr(engine, "generate", broken)
    doing = threading.Thread(target=work_when_queued, args=(service,))
    doing.start()
    with pytest.raises(KeToolsError, match="the model broke"):
        local.verify(edit_ids, suite="full")
    doing.join()


def broken(_requests: Sequence[Request]) -> list[Generation]:
    """Fail as an engine does."""
    raise KeToolsError("the model broke.", "Mend it.")


def test_a_server_that_writes_nothing_measures_a_few_and_says_so_of_many(settings: Settings, service: Service, engine: Scripted) -> None:
    """Design §3, --read-only: no job and no scorecard is written, and the answer is given all the same."""
    ids = edited(service, *({**CAPITAL, "subject": f"Zembla {n}", "prompt": f"The capital of Zembla {n} is"} for n in range(12)))
    frozen = Settings(home=settings.home, cache=settings.cache, read_only=True)
    reading = Service(frozen, Ledger(frozen.ledger_file, read_only=True), ModelSlot(lambda _say: engine), model_id="scripted")
    try:
        reading.models.engine(20)
        found = verify(reading, ids[:1], suite="full")
        assert (found["status"], found["scorecard"], found["overall"]["reliability"]["value"]) == ("completed", "", 1.0)
        with pytest.raises(ReadOnly, match="12 edits"):
            verify(reading)
    finally:
        reading.close()


@pytest.mark.slow
def test_a_promotions_scorecard_says_what_the_weights_add(tmp_path: Path) -> None:
    """Issue 6 §4: a candidate is scored beside the memory on the same probes; and a release is verified by its weights alone."""
    policy = {"reliability": 0.5, "generalisation": 0.0, "locality_same_subject": 0.0, "locality_other_subject": 0.0, "perplexity": 2.0}
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(thimble_path()))
    with Local(settings) as local:
        [row] = local.edit([{"subject": "France", "prompt": "The capital of France is", "target": "Oslo"}])["edits"]
        job = local.promote([row["edit_id"]], policy=policy)
        card = local.scorecard(job["scorecard"])
        assert job["release"], job
        assert card["release"] == job["release"]
        assert card["beside_memory"]["measured"]
        assert {one["kind"] for one in card["beside_memory"]["rows"]} >= {"subject named"}
        assert card["beside_memory"]["tokens_saved"] > 0
        found = local.verify(release=job["release"])
        assert found["release"] == job["release"]
        assert found["overall"]["reliability"]["value"] == 1.0
        assert local.service.get_edit(LOCAL, row["edit_id"])["scorecards"][0]["scorecard"] == found["scorecard"]


# Which edits ----------------------------------------------------------------------------------------------------------


def test_all_live_edits_are_meant_where_none_is_named(service: Service) -> None:
    """Issue 6 §1: of a whole release, all live edits: forgetting shows here."""
    with pytest.raises(InvalidInput, match="no edit is live"):
        verify(service)
    first, second = edited(service, CAPITAL, {**CAPITAL, "subject": "Ruritania", "prompt": "The capital of Ruritania is"})
    service.rollback(LOCAL, edit_ids=[first])
    service.models.engine(20)

    assert [check["edit_id"] for check in verify(service)["checks"]] == [second]
    with pytest.raises(InvalidInput, match="at most one"):
        verify(service, [first], revision=1)


def test_a_revision_is_answered_as_it_was_then(service: Service) -> None:
    """Issue 6 §5: `revision`: which edits were live then, and what their answers were; what came later does not leak in."""
    [old] = edited(service)
    then = service.revision
    [new] = edited(service, {**CAPITAL, "target": "Newtown", "old_target": "Sylvania City"})
    found = verified_by_job(service, revision=then)

    assert found["revision"] == then
    assert [check["edit_id"] for check in found["checks"]] == [old]
    assert found["overall"]["reliability"]["value"] == 1.0
    assert service.get_scorecard(LOCAL, found["scorecard"])["states"] == {old: "active"}
    service.models.engine(20)
    assert [check["edit_id"] for check in verify(service, revision=service.revision)["checks"]] == [new]
    with pytest.raises(InvalidInput, match="no edit is live at revision 0"):
        verify(service, revision=0)
    with pytest.raises(InvalidInput, match="revision"):
        verify(service, revision=99)


def test_a_release_is_asked_by_its_weights_alone(service: Service, engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6 §1: verify of a candidate; the memory must not answer for it, and nobody else's release is told of."""
    [edit_id] = edited(service, {**CAPITAL, "target": "Released City"})
    name = "rel_" + "a" * 24

    class Opened:
        folder = Path("/nowhere")
        edit_ids = (edit_id,)

    monkeypatch.setattr("ke_tools.servers.verifying.releases.opened", lambda _root, _name: Opened)
    found = verified_by_job(service, release=name)

    assert (found["release"], found["overall"]["reliability"]["value"]) == (name, 1.0)
    by_weights = [request for request in engine.asked if request.adapter == name]
    assert by_weights
    assert not any("New fact" in str(request) for request in by_weights)
    card = service.get_scorecard(LOCAL, found["scorecard"])
    assert card["weights_alone"]
    assert [row["kind"] for row in card["beside_memory"]["rows"]] == ["subject named"]
    assert card["beside_memory"]["tokens_saved"] > 0
    assert card["beside_memory"]["in_words"] in found["summary"]
    assert engine.adapters == {"reader"}, "a promotion puts in its own"
    with pytest.raises(NotFound, match="of yours"):
        verify(service, release=name, who=OTHER)


def test_an_unknown_or_foreign_edit_and_a_bad_probe_are_refused_before_a_job_is_begun(service: Service) -> None:
    """No tenant learns of another's edit, and a job that cannot be right is not queued."""
    [edit_id] = edited(service)
    for wrong, error in (([edit_id, "ed_unknown"], NotFound), ([edit_id], NotFound)):
        with pytest.raises(error):
            verify(service, wrong, who=OTHER if wrong == [edit_id] else LOCAL, suite="full")
    with pytest.raises(InvalidInput, match="expects"):
        verify(service, [edit_id], suite="full", probes=[{"prompt": "p", "expect": "changed"}])
    assert not service.ledger.jobs.is_waiting()


# The store ------------------------------------------------------------------------------------------------------------


def test_a_purged_edits_scorecards_are_gone_and_foreign_ones_never_were_there(service: Service) -> None:
    """A scorecard quotes what an edit says, so that it goes with it; none is another tenant's."""
    service.models.engine(20)
    [edit_id] = edited(service)
    name = verify(service, [edit_id])["scorecard"]
    with pytest.raises(NotFound):
        service.get_scorecard(OTHER, name)
    with pytest.raises(NotFound, match="no scorecard"):
        service.get_scorecard(LOCAL, edited(service, {**CAPITAL, "subject": "Ruritania", "prompt": "The capital of Ruritania is"})[0])
    service.ledger.purge("default", edit_id, actor="ann", reason="asked to")
    with pytest.raises(NotFound):
        service.get_scorecard(LOCAL, name)


def test_the_newest_scorecards_come_first(service: Service) -> None:
    """ke://edits/{id} shows how an edit fares now."""
    service.models.engine(20)
    [edit_id] = edited(service)
    names = [
        verify(service, [edit_id], probes=[{"prompt": f"What of Freedonia {n}?", "expect": "unchanged"}])["scorecard"] for n in range(3)
    ]

    assert [row["scorecard"] for row in service.ledger.scorecards_of("default", edit_id, 2)] == names[:0:-1]
    assert service.ledger.scorecards_of("eve", edit_id) == []


def test_the_past_of_a_ledger_ends_where_it_is_told_to(service: Service) -> None:
    """What follows it sees no later edit, no later state and no later release."""
    [old] = edited(service)
    then = service.revision
    edited(service, {**CAPITAL, "target": "Newtown", "old_target": "Sylvania City"})
    service.rollback(LOCAL, to_revision=0)
    past: Callable[[int], Past] = lambda revision: Past(service.ledger, revision)  # noqa: E731

    assert [edit.id for edit in past(then).live("default")] == [old]
    assert (past(then).head(), past(then).live_release("default"), past(0).live("default")) == (then, "", [])
    assert past(then).live("eve") == []
    assert service.ledger.live("default") == []
