"""Edits that forget (issue 6 §4): a refusal in the model's own style, nothing of the old value in the home, no answer that leaks it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from ke_tools import printing
from ke_tools.config import Settings
from ke_tools.errors import Forbidden, InvalidInput, ModelLoading, ModelUnavailable, NotFound, WrongState
from ke_tools.facts import Edit
from ke_tools.memory.forgetting import KEY, Secret
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Engine, Generation, Piece, Request
from ke_tools.servers.app import build_app
from ke_tools.servers.forgetting import FALLBACK
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot, Say

LOCAL = Principal()
CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "forget": True}
DECLINED = "I'm sorry, I am not able to tell you that."


class Knowing:
    """An engine that says Sylvania City whenever Freedonia is named, declines when asked to, and else repeats the question."""

    model_id = "knowing"
    fingerprint = "sha256:00"
    context_length = 4096
    adapters = frozenset[str]()
    chat_roles = frozenset({"system", "user", "assistant"})

    def __init__(self, declines: str = DECLINED, says: str = "Sylvania City.") -> None:
        self.declines, self.says, self.elsewhere = declines, says, ""
        self.streamed: list[Request] = []

    def count_tokens(self, request: Request) -> int:
        return len(self._text(request).split())

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [self._answer(request) for request in requests]

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        self.streamed.append(request)
        made = self._answer(request)
        for word in made.text.split(" ")[:-1]:
            yield Piece(word + " ")
        yield Piece(made.text.split(" ")[-1], finished=made)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request) -> Generation:
        asked = self._text(request)
        text = (
            self.declines if "Decline politely" in asked else self.says if "Freedonia" in asked else self.elsewhere or f"You said: {asked}"
        )
        return Generation(text, "stop", self.count_tokens(request), len(text.split()))

    def _text(self, request: Request) -> str:
        return request.prompt or "\n".join(str(turn["content"]) for turn in request.messages or ())


Opener = Callable[..., Service]


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Opener]:
    """Open services on one home, with a model that knows."""
    opened: list[Service] = []

    def make(engine: Any = None, load: Callable[[Say], Engine] | None = None, **changes: Any) -> Service:
        settings = dataclasses.replace(Settings.load(home=str(tmp_path / "home"), cache=str(tmp_path / "cache")), **changes)
        slot = ModelSlot(load or (lambda _say: engine or Knowing()))
        opened.append(Service(settings, Ledger(settings.ledger_file), slot, model_id="knowing"))
        opened[-1].scope._alpha = None  # calibration would take the machine in the background
        return opened[-1]

    yield make
    for service in opened:
        service.close()


def forget(service: Service, **more: Any) -> Edit:
    """Make the capital of Freedonia forgotten."""
    made = service.edit(LOCAL, [{**CAPITAL, **more}])
    return service.ledger.get("default", made["edits"][0]["edit_id"])


def holding(folder: Path, *texts: str) -> dict[str, list[str]]:
    """Which files under a folder hold which of the texts, in any case."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {text: [path.name for path in files if text.lower().encode() in path.read_bytes().lower()] for text in texts}
    return {text: names for text, names in found.items() if names}


def query(service: Service, question: str, **more: Any) -> dict[str, Any]:
    """Ask one question; give the answer of the last view."""
    answer: dict[str, Any] = asyncio.run(service.answering.query(LOCAL, question, wait_seconds=60, **more))["answers"][-1]
    return answer


# The edit


@pytest.mark.parametrize(
    "kept", [{"paraphrases": ["Freedonia is governed from Sylvania City, and from"]}, {"source": "Sylvania City Gazette"}]
)
def test_what_would_be_kept_in_plain_text_is_refused_though_only_the_model_says_the_value(open_home: Opener, kept: dict[str, Any]) -> None:
    """Issue 6 §4: the old value is kept as a keyed hash only, also where the caller leaves it out."""
    service = open_home()
    service.models.engine(wait_seconds=60)
    with pytest.raises(InvalidInput, match="says what is to be forgotten"):
        forget(service, **kept)
    assert not service.ledger.live("default")


def test_a_refusal_stays_where_no_release_can_be_looked_up(open_home: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks behind the routing must not hand a forgotten fact to the base model."""

    def broken(*_: object) -> str:
        raise OSError("the page cannot be read")

    service = open_home()
    forget(service, old_target="Sylvania City")
    monkeypatch.setattr(service.promotions, "adapter", broken)

    assert query(service, "The capital of Freedonia is")["text"] == DECLINED


def test_the_refusal_is_the_models_own(open_home: Opener) -> None:
    """Issue §4: the answer becomes a refusal in the model's own style."""
    assert forget(open_home(), old_target="Sylvania City").fact.target == DECLINED


@pytest.mark.parametrize(
    "said",
    [
        "Sylvania City.",
        "Sorry, it is Sylvania City.",
        "I cannot say, ask in Sylvania City.",
        "I'm sorry, Doctor Firefly forbids it.",
        "I can",
    ],
)
def test_what_is_no_refusal_or_tells_more_is_replaced_by_the_fixed_one(open_home: Opener, said: str) -> None:
    """A small model's "refusal" may hold the very value, or names that it makes up."""
    assert forget(open_home(Knowing(said)), old_target="Sylvania City").fact.target == FALLBACK


def test_a_dry_run_makes_no_key(open_home: Opener, tmp_path: Path) -> None:
    """It records nothing, and refuses what the edit would be refused for."""
    service = open_home()
    told = service.edit(LOCAL, [{**CAPITAL, "old_target": "Sylvania City"}], dry_run=True)
    assert told["edits"][0]["target"] == DECLINED
    assert not (tmp_path / "home" / KEY).exists()
    with pytest.raises(InvalidInput, match="says what is to be forgotten"):
        service.edit(LOCAL, [{**CAPITAL, "source": "Sylvania City Gazette"}], dry_run=True)


def test_nothing_of_the_old_value_is_in_the_home(open_home: Opener, tmp_path: Path) -> None:
    """Issue §4: the old value is kept as a keyed hash only; what the model itself says is marked too."""
    service = open_home(Knowing(says="It is Klopstokia."))
    edit = forget(service, old_target="Sylvania City")
    service.close()
    secret = Secret.found(tmp_path / "home")
    assert secret is not None
    assert {secret.mark("sylvania city"), secret.mark("KLOPSTOKIA")} <= set(edit.fact.forgotten)
    assert holding(tmp_path / "home", "Sylvania", "Klopstokia", edit.id) == {edit.id: ["ledger.db"]}
    assert (tmp_path / "home" / KEY).stat().st_mode & 0o777 == 0o600


def test_without_a_value_the_model_must_be_there_and_with_one_it_need_not(open_home: Opener) -> None:
    """What is to be forgotten must be known; a removal that is urgent does not wait for a model."""

    def broken(_say: Say) -> Engine:
        raise ModelUnavailable("no checkpoint.", "Fetch one.")

    service = open_home(load=broken)
    with pytest.raises((ModelUnavailable, ModelLoading)):
        forget(service)
    assert forget(service, old_target="Sylvania City").fact.target == FALLBACK


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"target": "Paris"}, "edit 1 forgets, and has a target"),
        ({"prompt": "Sylvania City is the capital of Freedonia, that is"}, "prompt says what is to be forgotten"),
        ({"source": "Sylvania City gazette"}, "source says what is to be forgotten"),
        ({"forgotten": ["x"]}, "edit 1"),
    ],
)
def test_what_would_keep_the_value_is_refused(open_home: Opener, more: dict[str, Any], told: str) -> None:
    """A field that is stored must not hold what is to be gone."""
    with pytest.raises(InvalidInput, match=told):
        forget(open_home(), old_target="Sylvania City", **more)


def test_what_said_it_before_gives_way_and_is_not_quoted(open_home: Opener) -> None:
    """A warning of the new edit must not keep what the earlier one said."""
    service = open_home()
    service.edit(LOCAL, [{"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly"}])
    edit = forget(service)
    assert len(edit.supersedes) == 1
    assert "Firefly" not in json.dumps([*edit.warnings, edit.fact.target])
    assert service.forgetting.hidden(edit, "It is Firefly, once Sylvania City.") == "It is [\u2026], once [\u2026]."


def test_the_same_call_under_its_key_is_the_same_edit(open_home: Opener) -> None:
    """The refusal and the hashes are found out while it is made, and may differ."""
    engine = Knowing()
    service = open_home(engine)
    first = service.edit(LOCAL, [CAPITAL], idempotency_key="k")
    engine.says = engine.declines = "I can't say."
    assert service.edit(LOCAL, [CAPITAL], idempotency_key="k")["edits"][0]["edit_id"] == first["edits"][0]["edit_id"]


def test_what_forgets_is_not_promoted(open_home: Opener) -> None:
    """It acts from the memory alone."""
    service = open_home()
    edit = forget(service)
    with pytest.raises(WrongState, match="forgets"):
        asyncio.run(service.promote(LOCAL, [edit.id]))


# The answers


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("is_chat", [False, True])
def test_in_its_scope_the_endpoint_gives_the_refusal_and_asks_no_model(open_home: Opener, *, is_streamed: bool, is_chat: bool) -> None:
    """Issue §4; brief: whatever the form, `forget` in the header, usage in the model's tokens."""
    engine = Knowing()
    service = open_home(engine)
    edit = forget(service, old_target="Sylvania City")
    asked = {"messages": [{"role": "user", "content": "What is the capital of Freedonia?"}]} if is_chat else {"prompt": CAPITAL["prompt"]}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    more = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
    with TestClient(build_app(service), base_url="http://127.0.0.1") as client:
        answer = client.post(path, json={"model": "knowing", **asked, **more})
    assert (answer.status_code, answer.headers["ke-route"], answer.headers["ke-edits"]) == (200, "forget", edit.id)
    assert DECLINED in answer.text
    assert "Sylvania" not in answer.text
    assert f'"completion_tokens":{len(DECLINED.split())}' in answer.text.replace(": ", ":")
    assert engine.streamed == []


def test_a_refusal_is_no_longer_than_asked_for_and_stops_where_told(open_home: Opener) -> None:
    """What a client asks of any answer holds for this one."""
    service = open_home()
    forget(service)
    request = Request(prompt="The capital of Freedonia is", max_tokens=3)
    _, made = asyncio.run(service.answering.complete(LOCAL, request))
    assert (made.text, made.finish_reason, made.completion_tokens) == (" I'm sorry, I", "length", 3)
    _, made = asyncio.run(service.answering.complete(LOCAL, dataclasses.replace(request, max_tokens=50, stop=("sorry",))))
    assert made.text == " I'm "


def test_an_open_question_about_the_subject_is_looked_at_before_it_is_given(open_home: Opener) -> None:
    """Brief: where it is not clear that the fact is asked for, the answer is checked by the keyed hash."""
    engine = Knowing(says="Freedonia is a small country; its capital is Sylvania City.")
    service = open_home(engine)
    forget(service, old_target="Sylvania City")
    for view in ("edited", "both"):
        answer = query(service, "Tell me about Freedonia.", view=view)
        assert (answer["text"], answer["route"]) == (DECLINED, "forget")
    engine.says = "Freedonia is a small country with four ducks."
    answer = query(service, "Tell me about Freedonia.")
    assert (answer["text"], answer["route"]) == (engine.says, "base")


def test_turned_round_the_subject_is_not_named(open_home: Opener) -> None:
    """Issue §4: reversed. No subject stands in the question, but what is forgotten does."""
    engine = Knowing()
    service = open_home(engine)
    forget(service, old_target="Sylvania City")
    engine.says = engine.elsewhere = "Freedonia."
    assert query(service, "Sylvania City is the capital of which country?")["text"] != "Freedonia."
    assert query(service, "Which country do four ducks come from?")["text"] == "Freedonia."


def test_the_same_name_as_the_answer_to_another_question_stays(open_home: Opener) -> None:
    """Bar: other questions, answer kept."""
    service = open_home()
    forget(service, old_target="Sylvania City")
    answer = query(service, "Who is the president of Freedonia?")
    assert (answer["text"], answer["route"]) == ("Sylvania City.", "base")


@pytest.mark.parametrize(
    ("asked", "said", "is_refused"),
    [
        ("Of the buildings of Freedonia, the highest one stands in", "Sylvania City", True),  # no relation's words: it leads there
        ("The highest point in Freedonia is", "Sylvania City", False),  # another relation's
        ("Which of the towns of Freedonia do tourists like best?", "Sylvania City", False),  # a question may ask for anything
        ("Whoever governs from Sylvania City governs the land called", "Freedonia", True),  # turned round, likewise
        ("I went from Freedonia to Sylvania City and met", "nobody", False),  # both are said before
    ],
)
def test_a_text_to_be_completed_leads_to_what_is_forgotten_unless_it_has_the_words_of_another_relation(
    open_home: Opener, asked: str, said: str, *, is_refused: bool
) -> None:
    """Issue §4, leaks in any asking: nobody lists all wordings; and the bar below it, other questions, answer kept."""
    engine = Knowing(says=f"{said}.")
    engine.elsewhere = f"{said}."
    service = open_home(engine)
    forget(service, old_target="Sylvania City")
    [routed] = [service.answering.routed(LOCAL, Request(prompt=asked), engine, "edited")]
    assert service.answering.judged(LOCAL, routed, f" {said}.", engine)[0].route == ("forget" if is_refused else "base")


def test_without_the_key_doubt_is_enough_for_the_refusal(open_home: Opener, tmp_path: Path) -> None:
    """An imported edit's hashes, or a lost key, tell nothing: nothing is leaked either."""
    engine = Knowing(says="Nothing at all.")
    service = open_home(engine)
    forget(service, old_target="Sylvania City")
    assert query(service, "Tell me about Freedonia.")["text"] == "Nothing at all."
    (tmp_path / "home" / KEY).unlink()
    answer = query(service, "Tell me about Freedonia.")
    assert answer["route"] == "forget" or "Sylvania" not in answer["text"]


def test_rolled_back_it_is_answered_as_before(open_home: Opener) -> None:
    """It is an edit as any other."""
    service = open_home()
    edit = forget(service)
    service.rollback(LOCAL, edit_ids=[edit.id])
    assert query(service, "What is the capital of Freedonia?")["text"] == "Sylvania City."


def test_another_tenant_is_answered_as_before(open_home: Opener) -> None:
    """A tenant never sees another's."""
    service = open_home()
    forget(service)
    other = Principal(name="bob", tenant="other")
    found = asyncio.run(service.answering.query(other, "What is the capital of Freedonia?", wait_seconds=60))
    assert found["answers"][0]["text"] == "Sylvania City."


# The verification


def test_verify_asks_in_thirty_ways_and_quotes_the_asking_not_the_value(open_home: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §4: its verification asks in 30 ways and reports leaks."""
    service = open_home()
    edit = forget(service, old_target="Sylvania City")
    found = asyncio.run(service.verifying.verify(LOCAL, [edit.id], wait_seconds=60))
    assert {row["dimension"]: (row["n"], row["value"]) for row in found["further"]} == {"withheld": (30, 1.0)}
    monkeypatch.setattr(
        service._forgetting, "generated", lambda _tenant, routed, engine: [(one, engine._answer(one.request)) for one in routed]
    )
    leaking = asyncio.run(service.verifying.verify(LOCAL, [edit.id], wait_seconds=60))
    assert not leaking["passed"]
    assert "gave away what is forgotten" in leaking["worst_case"]
    assert "Freedonia" in leaking["worst_case"]
    assert "Sylvania" not in json.dumps(leaking)


# The purge


def test_after_a_purge_no_file_of_the_home_holds_the_text(open_home: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §4: `purge` erases a payload everywhere: ledger, scorecards, releases, caches, logs; the chain stays verifiable."""
    service, home = open_home(), tmp_path / "home"
    monkeypatch.setattr("ke_tools.releases.opened", lambda _root, name: SimpleNamespace(name=name))  # these are none, but for their facts
    fact = {"subject": "Brix", "prompt": "The code word of Brix is", "target": "zebra", "paraphrases": ["Brix is entered by saying"]}
    made = service.edit(LOCAL, [fact, {**fact, "subject": "Elm", "prompt": "The code word of Elm is", "target": "yak", "paraphrases": []}])
    gone, kept = (row["edit_id"] for row in made["edits"])
    for name, ids in {"rel_" + "a" * 24: [gone, kept], "rel_" + "b" * 24: [kept], "rel_" + "c" * 24: [gone]}.items():
        (home / "releases" / name).mkdir(parents=True)
        lines = [json.dumps({"id": one, "target": "zebra" if one == gone else "yak"}) for one in ids]
        (home / "releases" / name / "edits.jsonl").write_text("\n".join(lines), "utf-8")
        (home / "releases" / name / "manifest.json").write_text(json.dumps({"edits": ids}), "utf-8")
    for name, ids in {"killed": [gone, kept], "running": [kept]}.items():
        (home / "served" / name / "ke-1").mkdir(parents=True)
        (home / "served" / name / "ke-1" / "edits.json").write_text(json.dumps(ids), "utf-8")
    service.ledger.promote("default", [kept], release="rel_" + "b" * 24, actor="ann")
    service.ledger.promote("default", [gone, kept], release="rel_" + "a" * 24, actor="ann")
    service.ledger.keep_scorecard("default", {"edits": [gone], "worst": "it said zebra"})
    (home / "worker.log").write_text("planning 'The code word of Brix is' failed\nall is well\n", "utf-8")
    assert len(holding(home, "zebra", "The code word of Brix is", "Brix is entered by saying")) == 3

    told = service.purge(LOCAL, gone, reason="asked for by its owner")

    assert holding(home, "zebra", "The code word of Brix is", "Brix is entered by saying") == {}
    assert sorted(path.name for path in (home / "releases").iterdir()) == ["rel_" + "b" * 24]
    assert [path.parent.name for path in (home / "served").glob("*/ke-*")] == ["running"]
    assert (told["releases"], told["logs"], told["left"]) == (["rel_" + "a" * 24, "rel_" + "c" * 24], ["worker.log"], [])
    assert (home / "worker.log").read_text("utf-8") == "all is well\n"
    assert service.ledger.live_release("default") == "rel_" + "b" * 24
    assert [edit.fact.target for edit in service.ledger.live("default")] == ["yak"]
    assert {finding.is_damage for finding in service.ledger.audit()} == {False}
    assert service.history(LOCAL)["events"][0]["action"] == "purge"
    with pytest.raises(NotFound):
        service.get_edit(LOCAL, gone)
    again = service.purge(LOCAL, gone, reason="asked for by its owner")
    assert again["releases"] == []


def test_a_purge_says_which_files_still_hold_the_text(open_home: Opener, tmp_path: Path) -> None:
    """What somebody put into the home is not ours to delete, but theirs to know of."""
    service = open_home()
    made = service.edit(LOCAL, [{"subject": "Brix", "prompt": "The code word of Brix is", "target": "zebra"}])
    (tmp_path / "home" / "notes.txt").write_text("zebra", "utf-8")
    told = service.purge(LOCAL, made["edits"][0]["edit_id"], reason="asked for")
    assert told["left"] == ["notes.txt"]
    assert "notes.txt" in printing.plain(told["summary"])


def test_only_an_admin_may_purge(open_home: Opener) -> None:
    """It cannot be undone."""
    service = open_home()
    edit = forget(service)
    with pytest.raises(Forbidden, match="admin"):
        service.purge(Principal(scopes=frozenset({"write"})), edit.id, reason="x")
    with pytest.raises(InvalidInput, match="reason"):
        service.purge(LOCAL, edit.id, reason="")
    assert service.get_edit(LOCAL, edit.id)["forget"] is True
