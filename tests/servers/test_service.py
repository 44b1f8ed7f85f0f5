"""What every window calls, over a scripted engine: corrections, answers, fallbacks."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from ke_tools.config import Settings
from ke_tools.errors import Conflict, Forbidden, InvalidInput, LedgerDamaged, ModelLoading, ModelUnavailable, NotFound, ReadOnly
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Engine, Generation, Piece, Request
from ke_tools.servers.app import build_app
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.servers.slot import ModelSlot, Say

LOCAL = Principal()
CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}


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


def ask(service: Service, question: str, **more: Any) -> dict[str, Any]:
    """Ask as the local user."""
    return asyncio.run(service.query(LOCAL, question, wait_seconds=10, **more))


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
    [(routed, _)] = service.answer_batch(LOCAL, [request])

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
    answer = asyncio.run(service.query(other, "What is the capital of Freedonia?", wait_seconds=10))["answers"][0]

    assert answer["route"] == "base"
    assert service.list_edits(other)["total"] == 0
    with pytest.raises(NotFound):
        service.get_edit(other, edit_id)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": ""}, "edit 1: target is empty"),
        ({"taget": "x"}, "unknown fields"),
        ({"paraphrases": "not a list"}, "not a list of texts"),
        ({"target": 7}, "not a text"),
    ],
)
def test_one_bad_fact_of_a_call_records_none(open_home: Callable[..., Service], wrong: dict[str, Any], message: str) -> None:
    """Issue §6: a clear error, and nothing is lost or half done."""
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
            asyncio.run(service.query(LOCAL, "What is the capital of Freedonia?", wait_seconds=0))
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


def test_verify_measures_through_the_serving_path(open_home: Callable[..., Service]) -> None:
    """Issue §4: verify answers rewrites and neighbours through the serving path, rates with errors, worst case in words."""
    service = open_home()
    done = service.edit(LOCAL, [CAPITAL | {"paraphrases": ["Which city is Freedonia's capital?"]}])
    probes = [{"prompt": "The currency of Freedonia is", "expect": "unchanged"}]
    card = asyncio.run(service.verify(LOCAL, [done["edits"][0]["edit_id"]], probes=probes, wait_seconds=10))

    assert card["overall"]["reliability"]["value"] == 1.0
    assert card["overall"]["locality_other_subject"]["n"] >= 1
    assert card["scorecard_text"].startswith(" ")
    with pytest.raises(InvalidInput, match="1 to 10"):
        asyncio.run(service.verify(LOCAL, [], wait_seconds=10))
    with pytest.raises(NotFound):
        asyncio.run(service.verify(LOCAL, ["ed_unknown"], wait_seconds=10))


def test_many_verifies_keep_neither_questions_nor_monitors_waiting(open_home: Callable[..., Service], held: Held) -> None:
    """Issue §4: /healthz says whether questions can be answered; a few slow calls must not freeze the server."""
    service = open_home(lambda _say: held)
    service.models.engine(20)
    edit_id = service.edit(LOCAL, [CAPITAL])["edits"][0]["edit_id"]
    monitor = httpx.AsyncClient(transport=httpx.ASGITransport(build_app(service)), base_url="http://127.0.0.1")

    async def ask_meanwhile() -> tuple[int, int, str]:
        verifies = [asyncio.create_task(service.verify(LOCAL, [edit_id])) for _ in range(40)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10), monitor:
                health, numbers = await monitor.get("/healthz"), await monitor.get("/metrics")
                asked = await service.query(LOCAL, "What is the capital of Freedonia?")
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
        left = [asyncio.create_task(service.verify(LOCAL, ids[:1])) for _ in range(3)]
        await asyncio.to_thread(held.is_asked.wait, 20)
        for verify in left:
            verify.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        held.may_go.set()
        return await service.verify(LOCAL, ids[1:])

    assert asyncio.run(leave())["checks"][0]["edit_id"] == ids[1]
    assert any("Ruritania" in batch for batch in held.batches)
    assert not any("Freedonia" in batch for batch in held.batches)
