"""What every window calls, over a scripted engine: corrections, answers, fallbacks."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from ke_tools.config import Settings
from ke_tools.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    LedgerDamaged,
    ModelLoading,
    ModelUnavailable,
    NotFound,
    ReadOnly,
    ResourceExhausted,
    Unsupported,
)
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Engine, Generation, Piece, Request
from ke_tools.servers.app import build_app
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.servers.slot import ModelSlot, Say
from tests.faults import largest_file

LOCAL = Principal()
CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}


# A process of its own that corrects a fact and takes everything back, telling of each and waiting to be told to go on.
WRITER = """
import sys
from pathlib import Path
from ke_tools.config import Settings
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import open_service

service, who = open_service(Settings(home=Path(sys.argv[1]), cache=Path(sys.argv[2]))), Principal()
fact = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly"}
for write in (lambda: service.edit(who, [fact]), lambda: service.rollback(who, to_revision=0)):
    print(write()["revision"], flush=True)
    sys.stdin.readline()
service.close()
"""


class Scripted:
    """An engine that says what it was asked and, through the reader, what it was told."""

    model_id = "scripted"
    fingerprint = "sha256:00"
    context_length = 4096
    adapters = frozenset({"reader"})
    chat_roles = frozenset({"system", "user", "assistant"})
    closed = False

    def count_tokens(self, request: Request) -> int:
        return len(str(request.prompt or request.messages).split())

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [self._answer(request) for request in requests]

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        made = self._answer(request)
        yield Piece(made.text, finished=made)

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _answer(request: Request) -> Generation:
        asked = request.prompt or "\n".join(str(turn["content"]) for turn in request.messages or ())
        told = [line for line in asked.splitlines() if line.startswith("New fact: ")]
        text = (
            told[0].removeprefix("New fact: ").strip('".').split(" is ")[-1] + "." if request.adapter else f"base answer to {asked[-40:]}"
        )
        return Generation(text, "stop", 1, 1)


class Held(Scripted):
    """An engine whose batches take until it is let go; a single question is answered at once."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.is_asked = threading.Event()
        self.batches: list[str] = []

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        self.batches.append(str(requests))
        self.is_asked.set()
        assert self.may_go.wait(30)
        return super().generate(requests)


@pytest.fixture
def held() -> Iterator[Held]:
    """An engine that is let go at the end of the test at the latest."""
    made = Held()
    yield made
    made.may_go.set()


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Open services on one home, with a scripted engine unless another is given."""
    opened: list[Service] = []

    def make(load: Callable[[Say], Engine] = lambda _say: Scripted(), **changes: Any) -> Service:
        settings = dataclasses.replace(Settings.load(home=str(tmp_path / "home"), cache=str(tmp_path / "cache")), **changes)
        ledger = Ledger(settings.home / "ledger.db", read_only=settings.read_only)
        opened.append(Service(settings, ledger, ModelSlot(load), model_id="scripted", url="http://127.0.0.1:1"))
        return opened[-1]

    yield make
    for service in opened:
        service.close()


def damaged(*_: object, **__: object) -> None:
    """Stand for whatever reads a broken page."""
    raise LedgerDamaged("page 9 is malformed.", "Restore a copy.")


def ask(service: Service, question: str, **more: Any) -> dict[str, Any]:
    """Ask as the local user."""
    return asyncio.run(service.answering.query(LOCAL, question, wait_seconds=10, **more))


def test_a_correction_acts_on_the_next_answer_and_says_what_was_changed(open_home: Callable[..., Service]) -> None:
    """Issue §4: an acknowledged edit is effective; edit.summary ends with what was changed."""
    service = open_home()
    before = ask(service, "What is the capital of Freedonia?")["answers"][0]
    done = service.edit(LOCAL, [CAPITAL])
    after = ask(service, "What is the capital of Freedonia?", view="both", explain=True)

    assert done["summary"].endswith("Changed: model scripted at http://127.0.0.1:1; your own model is not changed.")
    assert after["answers"][0]["text"] == before["text"]
    assert after["answers"][1]["text"] == "Sylvania City."
    assert after["answers"][1]["used_edits"][0]["edit_id"] == done["edits"][0]["edit_id"]
    assert after["explain"]["zone"] == "in"


def test_a_question_about_somebody_else_reaches_the_engine_as_it_came(open_home: Callable[..., Service]) -> None:
    """Design §1: no → the request goes on, byte for byte."""
    service = open_home()
    service.edit(LOCAL, [CAPITAL])
    request = Request(prompt="The capital of Ruritania is")
    [(routed, _)] = service.answering.answer_batch(LOCAL, [request])

    assert routed.request is request
    assert routed.route == "base"


def test_what_is_rolled_back_is_answered_as_before(open_home: Callable[..., Service]) -> None:
    """Users §3a no. 6: undo is exact."""
    service = open_home()
    before = ask(service, "What is the capital of Freedonia?")["answers"]
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    undone = service.rollback(LOCAL, edit_ids=[edit_id])

    assert [row["edit_id"] for row in undone["retired"]] == [edit_id]
    assert ask(service, "What is the capital of Freedonia?")["answers"] == before


def test_a_rollback_to_what_is_live_already_says_that_nothing_changed(open_home: Callable[..., Service]) -> None:
    """Issue §4: a summary ends with what was changed; where nothing was, it must not say so."""
    service = open_home()
    revision = service.edit(LOCAL, [CAPITAL])["revision"]

    done = service.rollback(LOCAL, to_revision=revision)

    assert (done["retired"], done["restored"], done["revision"]) == ([], [], revision)
    assert done["summary"] == f"Nothing was changed: what was live at revision {revision} is what is live now."


def test_an_edit_that_the_model_was_told_and_did_not_heed_is_not_called_out_of_scope(open_home: Callable[..., Service]) -> None:
    """Issue §4: `view: both` shows what an edit does; out of scope and not obeyed have different remedies."""

    class Stubborn(Scripted):
        @staticmethod
        def _answer(_request: Request) -> Generation:
            return Generation("No idea.", "stop", 1, 1)

    service = open_home(lambda _say: Stubborn())
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    told = ask(service, "What is the capital of Freedonia?", view="both")
    untold = ask(service, "What is the capital of Ruritania?", view="both")

    assert [answer["route"] for answer in told["answers"]] == ["base", "memory"]
    assert told["summary"] == f"Given to the model, but its answer did not change: {edit_id}. It says: No idea."
    assert untold["summary"] == "Unchanged by edits: No idea."


def test_the_history_tells_which_release_went_live(open_home: Callable[..., Service]) -> None:
    """Issue "verify and promote" §4: who reads the history sees when answers began to come from the weights, and when they ceased to."""
    service = open_home(lambda _say: Scripted())
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    service.ledger.promote(LOCAL.tenant, [edit_id], release="rel_" + "a" * 24, actor="ann", reason="it lasts")
    assert [edit["edit_id"] for edit in service.list_edits(LOCAL, state="promoted")["edits"]] == [edit_id]
    service.ledger.demote(LOCAL.tenant, [edit_id], release="", actor="ann")

    events = service.history(LOCAL)["events"]

    assert [(event["action"], event["note"]) for event in events[:2]] == [
        ("demote", "no release is live"),
        ("promote", f"it lasts; rel_{'a' * 24} is live with 1 edit"),
    ]


def test_a_later_edit_of_a_slot_names_the_one_that_it_retires(open_home: Callable[..., Service]) -> None:
    """Issue §3: the answer of edit names what was superseded; nothing retires silently."""
    service = open_home()
    first = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    second = service.edit(LOCAL, [CAPITAL | {"target": "Firefly"}])

    assert second["edits"][0]["superseded"] == [first]
    assert first in second["summary"]


def test_another_tenants_edits_are_neither_used_nor_listed(open_home: Callable[..., Service]) -> None:
    """Design §3: ledger and scope are per tenant, taken from the token alone."""
    service, other = open_home(), Principal("bob", "b")
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    answer = asyncio.run(service.answering.query(other, "What is the capital of Freedonia?", wait_seconds=10))["answers"][0]

    assert answer["route"] == "base"
    assert service.list_edits(other)["total"] == 0
    with pytest.raises(NotFound):
        service.get_edit(other, edit_id)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": ""}, "edit 2: target is empty"),
        ({"taget": "x"}, "edit 2 has the unknown fields"),
        ({"paraphrases": "not a list"}, "edit 2: paraphrases is not a list of texts"),
        ({"target": 7}, "edit 2: target is not a text"),
    ],
)
def test_one_bad_fact_of_a_call_records_none_and_is_named_counted_from_1(
    open_home: Callable[..., Service], wrong: dict[str, Any], message: str
) -> None:
    """Issue §6: a clear error, and nothing is lost or half done; E_CONFLICT counts from 1, so what is wrong does too."""
    service = open_home()

    with pytest.raises(InvalidInput, match=message):
        service.edit(LOCAL, [CAPITAL, CAPITAL | wrong])
    assert service.list_edits(LOCAL)["total"] == 0


def test_contradicting_edits_of_one_call_are_refused(open_home: Callable[..., Service]) -> None:
    """Issue §4: E_CONFLICT where two edits of one call contradict."""
    service = open_home()

    with pytest.raises(Conflict):
        service.edit(LOCAL, [CAPITAL, CAPITAL | {"target": "Firefly"}])


def test_a_reader_token_cannot_write_and_a_chat_token_cannot_read(open_home: Callable[..., Service]) -> None:
    """Design §3: scopes."""
    service = open_home()

    with pytest.raises(Forbidden):
        service.edit(Principal("eve", "default", frozenset({"read"})), [CAPITAL])
    with pytest.raises(Forbidden):
        service.list_edits(Principal("eve", "default", frozenset({"chat"})))


def test_read_only_refuses_writes_and_answers_questions(open_home: Callable[..., Service]) -> None:
    """Issue §4: --read-only refuses writes."""
    open_home().edit(LOCAL, [CAPITAL])
    service = open_home(read_only=True)

    with pytest.raises(ReadOnly):
        service.edit(LOCAL, [CAPITAL | {"target": "Firefly"}])
    assert ask(service, "What is the capital of Freedonia?")["answers"][0]["text"] == "Sylvania City."


def test_a_question_during_the_load_says_when_to_ask_again(open_home: Callable[..., Service]) -> None:
    """Issue §4: E_MODEL_LOADING and poll_after_ms; edit needs no model."""
    gate = threading.Event()

    def slow(_say: Say) -> Engine:
        gate.wait(10)
        return Scripted()

    service = open_home(slow)
    try:
        with pytest.raises(ModelLoading) as raised:
            asyncio.run(service.answering.query(LOCAL, "What is the capital of Freedonia?", wait_seconds=0))
        assert raised.value.data["poll_after_ms"] > 0
        assert service.edit(LOCAL, [CAPITAL])["edits"][0]["state"] == "active"
    finally:
        gate.set()


def test_a_failed_load_is_told_and_tried_again(open_home: Callable[..., Service]) -> None:
    """House rule 1: what fails says what was found, and loses nothing."""
    tries: list[int] = []

    def flaky(_say: Say) -> Engine:
        tries.append(1)
        if len(tries) == 1:
            raise ModelUnavailable("no such checkpoint.")
        return Scripted()

    service = open_home(flaky)
    with pytest.raises(ModelUnavailable, match="no such checkpoint"):
        ask(service, "anything?")
    assert ask(service, "anything?")["answers"][0]["route"] == "base"


def test_a_broken_router_falls_back_to_the_base_model_and_says_so(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """House rule 7: fail towards the base model, never a silently wrong edit."""
    service = open_home()
    service.edit(LOCAL, [CAPITAL])

    def broken(*_: object) -> None:
        raise RuntimeError("index gone")

    monkeypatch.setattr(service.scope, "decide", broken)
    answer = ask(service, "What is the capital of Freedonia?")["answers"][0]

    assert (answer["route"], answer["reason"]) == ("base", "error")


def test_without_tokens_every_way_in_is_of_the_configured_tenant(open_home: Callable[..., Service]) -> None:
    """Design §3: a correction on the command line acts at /v1, and nobody else's does."""
    service = open_home(tenant="acme")
    service.edit(Principal(tenant="default"), [{**CAPITAL, "target": "Firefly"}])
    service.edit(service.local, [CAPITAL])
    service.models.engine(20)
    with TestClient(build_app(service), base_url="http://127.0.0.1") as client:
        asked = {"model": "scripted", "messages": [{"role": "user", "content": "What is the capital of Freedonia?"}]}
        answer = client.post("/v1/chat/completions", json=asked).json()
    assert answer["choices"][0]["message"]["content"] == "Sylvania City."


def test_on_a_full_disk_the_corrections_made_so_far_act(open_home: Callable[..., Service]) -> None:
    """Issue 1 §6: full disk. SQLite needs a small file beside the ledger to open it, which a full disk does not take either."""
    first = open_home()
    first.edit(LOCAL, [CAPITAL])
    first.close()
    with largest_file(0):
        service = open_service(first.settings)
        try:
            assert service.list_edits(LOCAL)["total"] == 1
            with pytest.raises(ResourceExhausted, match="could not grow"):
                service.edit(LOCAL, [{**CAPITAL, "target": "Firefly"}])
            assert "could not grow" in service.trouble
        finally:
            service.close()


def test_a_damaged_ledger_leaves_the_base_model_answering(tmp_path: Path) -> None:
    """Design §4 no. 8: a broken database never produces a wrong edit; writes and lists say what is wrong."""
    (tmp_path / "ledger.db").write_bytes(b"this is no database, " * 1000)
    service = open_service(Settings.load(home=str(tmp_path), cache=str(tmp_path / "cache")))
    try:
        with pytest.raises(LedgerDamaged):
            service.edit(LOCAL, [CAPITAL])
        with pytest.raises(LedgerDamaged):
            service.list_edits(LOCAL)
        assert service.state()["ready"] is False
        assert "E_LEDGER" in service.state()["ledger"]
    finally:
        service.close()


def test_an_edit_acts_in_another_process_of_its_home_within_half_a_second(open_home: Callable[..., Service], tmp_path: Path) -> None:
    """Issue §4: an acknowledged edit is effective in every process on the same home within 0.5 s; so is its rollback."""
    service, question = open_home(), Request(prompt="The capital of Freedonia is")
    service.edit(LOCAL, [CAPITAL])
    service.answering.route(LOCAL, question)  # what a first question loads is no part of it
    settings = str(tmp_path / "home"), str(tmp_path / "cache")
    with subprocess.Popen([sys.executable, "-c", WRITER, *settings], stdin=PIPE, stdout=PIPE, text=True) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for expected in (["Firefly"], []):
            acknowledged = writer.stdout.readline().strip()
            started = time.monotonic()
            found = service.answering.route(LOCAL, question)["edits"]
            took = time.monotonic() - started

            assert [service.get_edit(LOCAL, edit["edit_id"])["target"] for edit in found] == expected
            assert took < 0.5, f"{took:.2f} s after {acknowledged}"
            print("go on", file=writer.stdin, flush=True)


def test_damage_met_while_serving_is_named_until_the_same_can_be_read_again(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue §6: a corrupt page is not only the affair of who happens to read it; operators see it in the log and /healthz."""
    service = open_home(lambda _say: Scripted())
    service.models.start()
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    with monkeypatch.context() as patched:
        patched.setattr(service.ledger, "history", damaged)
        for _ in range(2):
            with pytest.raises(LedgerDamaged):
                service.history(LOCAL)
    service.history(LOCAL, edit_id=edit_id)  # another part of it is whole
    told, state = service.trouble, service.state()
    service.history(LOCAL)

    assert "page 9" in told
    assert state["ledger"] == told
    assert caplog.text.count("page 9") == 1
    assert (service.trouble, service.state()["ledger"]) == ("", "ok")


def test_damage_met_by_one_writer_is_gone_when_its_tenant_can_write_again(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue §6: what passes, such as a disk that was away, must not look like damage for ever."""
    service = open_home()
    with monkeypatch.context() as patched:
        patched.setattr(service.ledger, "edit", damaged)
        with pytest.raises(LedgerDamaged):
            service.edit(LOCAL, [CAPITAL])
    service.edit(Principal("bob", "b"), [CAPITAL])
    told = service.trouble
    service.edit(LOCAL, [CAPITAL])

    assert "page 9" in told
    assert service.trouble == ""


def test_where_the_ledger_cannot_be_read_on_the_last_known_edits_act_and_that_is_said(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §4 no. 8: the endpoint serves the last known edits and says so in /healthz and in `doctor`."""
    service = open_home()
    service.edit(LOCAL, [CAPITAL])
    ask(service, "What is the capital of Freedonia?")
    with monkeypatch.context() as patched:
        patched.setattr(service.ledger, "since", damaged)
        service.edit(LOCAL, [CAPITAL | {"target": "Firefly"}])
        stale = ask(service, "What is the capital of Freedonia?")["answers"][0]
        told = service.trouble
    fresh = ask(service, "What is the capital of Freedonia?")["answers"][0]

    assert (stale["text"], fresh["text"]) == ("Sylvania City.", "Firefly.")
    assert told.startswith("the last known edits act: E_LEDGER: page 9")
    assert service.trouble == ""


def test_where_no_edit_could_ever_be_read_the_base_model_answers_and_that_is_said(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §4 no. 8: as above, for a ledger that was damaged before the first question."""
    service = open_home()
    service.edit(LOCAL, [CAPITAL])
    monkeypatch.setattr(service.ledger, "live", damaged)

    assert ask(service, "What is the capital of Freedonia?")["answers"][0]["route"] == "base"
    assert service.trouble.startswith("the edits of a tenant do not act: ")
    assert "page 9" in service.trouble


def test_a_home_of_a_newer_version_leaves_the_base_model_answering(tmp_path: Path) -> None:
    """Design §4 no. 8: whatever keeps a ledger shut, the base model answers and says why; nothing is guessed of its form."""
    (home := tmp_path / "home").mkdir()
    with Ledger(home / "ledger.db") as ledger:
        ledger._storage._main.execute("PRAGMA user_version = 99")
    service = open_service(Settings(home=home, cache=tmp_path / "cache"))
    service.models = ModelSlot(lambda _say: Scripted())
    try:
        answer = ask(service, "What is the capital of Freedonia?")["answers"][0]
        assert (answer["route"], answer["reason"]) == ("base", "ledger")
        assert "E_UNSUPPORTED" in service.state()["ledger"]
        with pytest.raises(Unsupported, match="99"):
            service.edit(LOCAL, [CAPITAL])
    finally:
        service.close()


def test_a_home_that_takes_no_writes_keeps_its_corrections_acting(
    nobody: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> None:
    """Design §4 no. 8: the last known edits are served; only writes are refused, with the reason."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may not be entered by others
        settings = Settings(home=Path(folder), cache=tmp_path / "cache")
        first = open_service(settings)
        first.edit(LOCAL, [CAPITAL])
        first.close()
        (settings.home / "ledger.db").chmod(0o444)
        settings.home.chmod(0o555)
        with nobody():
            service = open_service(settings)
        service.models = ModelSlot(lambda _say: Scripted())

        assert ask(service, "What is the capital of Freedonia?")["answers"][0]["text"] == "Sylvania City."
        assert service.list_edits(LOCAL)["total"] == 1
        with pytest.raises(ReadOnly, match="Make it writable"):
            service.edit(LOCAL, [CAPITAL | {"target": "Firefly"}])
        with pytest.raises(ReadOnly, match="Make it writable"):
            service.rollback(LOCAL, to_revision=0)
        state = service.state()
        assert (state["ready"], state["read_only"]) == (True, True)
        assert state["ledger"].startswith("E_READ_ONLY: ")
        assert service.trouble == state["ledger"]
        service.close()


def test_verify_measures_through_the_serving_path(open_home: Callable[..., Service]) -> None:
    """Issue §4: verify answers rewrites and neighbours through the serving path, rates with errors, worst case in words."""
    service = open_home()
    done = service.edit(LOCAL, [CAPITAL | {"paraphrases": ["Which city is Freedonia's capital?"]}])
    probes = [{"prompt": "The currency of Freedonia is", "expect": "unchanged"}]
    card = asyncio.run(service.verifying.verify(LOCAL, [done["edits"][0]["edit_id"]], probes=probes, wait_seconds=10))

    assert card["overall"]["reliability"]["value"] == 1.0
    assert card["overall"]["locality_other_subject"]["n"] >= 1
    assert card["scorecard_text"].startswith(" ")
    with pytest.raises(NotFound):
        asyncio.run(service.verifying.verify(LOCAL, ["ed_unknown"], wait_seconds=10))


def test_many_verifies_keep_neither_questions_nor_monitors_waiting(open_home: Callable[..., Service], held: Held) -> None:
    """Issue §4: /healthz says whether questions can be answered; a few slow calls must not freeze the server."""
    service = open_home(lambda _say: held)
    service.models.engine(20)
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    monitor = httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service)), base_url="http://127.0.0.1")

    async def ask_meanwhile() -> tuple[int, int, str]:
        verifies = [asyncio.create_task(service.verifying.verify(LOCAL, [edit_id])) for _ in range(40)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10), monitor:
                health, numbers = await monitor.get("/healthz"), await monitor.get("/metrics")
                asked = await service.answering.query(LOCAL, "What is the capital of Freedonia?")
            return health.status_code, numbers.status_code, asked["answers"][0]["text"]
        finally:
            for verify in verifies:
                verify.cancel()
            held.may_go.set()

    assert asyncio.run(ask_meanwhile()) == (200, 200, "Sylvania City.")


def test_a_verify_whose_caller_has_left_asks_no_further_batch(open_home: Callable[..., Service], held: Held) -> None:
    """What nobody waits for must not take the model from those who do; what waits for its turn is not even begun."""
    service = open_home(lambda _say: held)
    service.models.engine(20)
    other = {"subject": "Ruritania", "prompt": "The currency of Ruritania is", "target": "the strelsau"}
    ids = [row["edit_id"] for row in service.edit(LOCAL, [CAPITAL, other])["edits"]]

    async def leave() -> dict[str, Any]:
        left = [asyncio.create_task(service.verifying.verify(LOCAL, ids[:1])) for _ in range(3)]
        await asyncio.to_thread(held.is_asked.wait, 20)
        for verify in left:
            verify.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        held.may_go.set()
        return await service.verifying.verify(LOCAL, ids[1:])

    assert asyncio.run(leave())["checks"][0]["edit_id"] == ids[1]
    assert any("Ruritania" in batch for batch in held.batches)
    assert not any("Freedonia" in batch for batch in held.batches)
