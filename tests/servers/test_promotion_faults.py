"""What goes wrong around promotion (issue 6, Bad input): refused, told, mended, and never a silently wrong answer.

The releases are real, the model is a tiny one with random weights, and what is planned for it is random too.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ke_tools import jobs, releases
from ke_tools.config import Settings
from ke_tools.editors import peft_folder
from ke_tools.editors._solve import Factors
from ke_tools.editors.update import Update
from ke_tools.errors import Conflict, InvalidInput, NotFound, Unsupported, WrongState
from ke_tools.facts import Edit
from ke_tools.memory.joblog import Job
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope.calibration import Calibrator
from ke_tools.models.causal import CausalModel
from ke_tools.models.engine import Engine, Generation, Piece, Request
from ke_tools.promotion import Candidate
from ke_tools.releases import Release
from ke_tools.servers import doctor, promoting, promotions
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot
from ke_tools.verify.gate import Verdict, decide
from ke_tools.verify.policy import Policy
from ke_tools.verify.scorecard import Outcome
from tests.editors.conftest import tiny, tokenizer
from tests.test_promotion import outcomes

__all__ = ["tiny", "tokenizer"]

LOCAL, OTHER = Principal(), Principal(name="bob", tenant="bolt")
FACTS = [
    {"subject": name, "prompt": f"The capital of {name} is", "target": f"{name}ville"} for name in ("Freedonia", "Sylvania", "Osterlich")
]


class Shop:
    """Plans random changes, the same for the same edits, and judges as it is told."""

    bad: ClassVar[set[str]] = set()  # edits that the gate refuses

    def __init__(self, model: CausalModel, _engine: Engine | None, *, root: Path, **_: Any) -> None:
        self.model, self.root = model, root

    def make(self, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]) -> Candidate:
        import torch

        edits = sorted((*in_weights, *in_codebook), key=lambda edit: edit.id)
        ids = [edit.id for edit in edits]
        dice = torch.Generator().manual_seed(int(hashlib.sha256(repr(ids).encode()).hexdigest()[:8], 16))
        change = {1: Factors(torch.randn(32, 1, generator=dice), torch.randn(1, 48, generator=dice))}
        how = {"in_weights": ids, "in_codebook": [], "together": [ids]}
        update = Update({}, change, fingerprint=self.model.fingerprint)
        return Candidate(releases.build(self.root, self.model, update=update, edits=edits, how=how), tuple(edits), (), 1.0, 0.1)

    def remake(self, how: Mapping[str, Any], edits: Mapping[str, Edit]) -> Release:
        if lost := set(how["in_weights"]) - set(edits):
            raise NotFound(f"{lost.pop()} is needed.")
        return self.make([edits[edit_id] for edit_id in how["in_weights"]], []).release

    def judge(
        self, candidate: Candidate, edits: Sequence[Edit], earlier: Sequence[Edit], policy: Policy, number: int
    ) -> tuple[Verdict, Sequence[Outcome]]:
        del candidate, earlier
        each = -(-300 // len(edits))
        found = [one for edit in edits for one in outcomes(edit, "reliability", 0 if edit.id in self.bad else each, each)]
        return decide(found, policy, candidate=number, perplexity=1.0, growth=0.1), found


class Serving:
    """An engine that says which adapter it was asked with, and takes releases as the real one does."""

    model_id, context_length, chat_roles = "serving", 4096, frozenset({"system", "user", "assistant"})

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.adapters: frozenset[str] = frozenset()

    def load_adapter(self, name: str, path: Path) -> None:
        if (made_for := releases.read(path).fingerprint) != self.fingerprint:
            raise Unsupported(f"it was made for {made_for}; this is {self.fingerprint}.", "Make it again.")
        self.adapters |= {name}

    def unload_adapter(self, name: str) -> None:
        self.adapters -= {name}

    def count_tokens(self, request: Request) -> int:
        return len(str(request))

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        return [Generation(f"[{request.adapter}] {request.messages}", "stop", 1, 1) for request in requests]

    async def stream(self, request: Request) -> Any:
        yield Piece("", finished=self.generate([request])[0])

    def close(self) -> None:
        """Nothing to free."""


class World:
    """A home, a service on it, and a worker in this process."""

    def __init__(self, settings: Settings, model: CausalModel) -> None:
        self.settings, self.model = settings, model
        self.ledger = Ledger(settings.ledger_file)
        self.engine = Serving(model.fingerprint)
        self.service = self.restarted()

    def restarted(self) -> Service:
        """A service that has nothing loaded."""
        self.engine = Serving(self.model.fingerprint)
        self.service = Service(self.settings, Ledger(self.settings.ledger_file), ModelSlot(lambda _say: self.engine), model_id="serving")
        return self.service

    @property
    def root(self) -> Path:
        """Where releases lie."""
        return self.settings.releases

    def edited(self, count: int = 2) -> list[str]:
        """Correct some facts."""
        return [edit["edit_id"] for edit in self.service.edit(LOCAL, FACTS[:count])["edits"]]

    def work(self) -> None:
        """Do what is queued."""
        jobs.run_worker(self.settings, idle_seconds=0)

    def promoted(self, ids: Sequence[str], **more: Any) -> dict[str, Any]:
        """Promote, and wait for the end."""
        job = self.service.promotions.begin(LOCAL, ids, **more)
        self.work()
        return promotions.shown(self.service.promotions.job(LOCAL, job.id))

    def rebuilt(self) -> dict[str, Any]:
        """Make the live release again."""
        job = self.service.promotions.rebuild(LOCAL)
        self.work()
        return promotions.shown(self.service.promotions.job(LOCAL, job.id))

    def asked(self, number: int = 0) -> tuple[str, str]:
        """Ask about a fact: the route, and what the engine was asked."""
        found = asyncio.run(self.service.answering.query(LOCAL, f"What is the {FACTS[number]['prompt'][4:-3]}?", wait_seconds=30))
        return found["answers"][0]["route"], found["answers"][0]["text"]

    def live(self) -> str:
        """The live release."""
        return self.ledger.live_release(LOCAL.tenant)


@pytest.fixture
def world(tmp_path: Path, tiny: Callable[[str], CausalModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A home whose worker plans with :class:`Shop`."""
    made = World(Settings(home=tmp_path / "home", cache=tmp_path / "cache"), tiny("llama"))
    monkeypatch.setattr(Calibrator, "ask", lambda *_: None)  # seconds an edit, and still at work when the tests end
    monkeypatch.setattr("ke_tools.workshop.Workshop", Shop)
    monkeypatch.setattr(promoting, "_beside", lambda *_: {})
    monkeypatch.setattr(Shop, "bad", set())
    monkeypatch.setattr(promotions, "ensure_worker", lambda _settings: False)
    for module in ("promoting", "rebuilding"):
        monkeypatch.setattr(f"ke_tools.servers.{module}.loaded", lambda _settings: (made.model, made.engine))
    monkeypatch.setattr(doctor, "_fingerprint", lambda _service: made.model.fingerprint)
    yield made
    made.service.close()
    made.ledger.close()


def test_a_job_whose_edit_was_purged_is_not_told_as_being_at_work(world: World) -> None:
    """What a job found is erased with an edit; that it has ended is not."""
    [one, _] = world.edited()
    done = world.promoted([one])
    assert done["status"] == "completed"
    world.service.purge(LOCAL, one, reason="asked for")
    told = promotions.shown(world.service.promotions.job(LOCAL, done["job_id"]))
    assert told["summary"] == f"{done['job_id']} has ended; what it found was erased with an edit that was purged."


# What is refused at once ----------------------------------------------------------------------------------------------


def test_what_cannot_be_promoted_is_refused_before_a_job_is_begun(world: World) -> None:
    """Issue, Bad input: retired or unknown edits, another tenant's, a policy that nothing can pass; nothing is queued."""
    [one, gone] = world.edited()
    world.service.rollback(LOCAL, edit_ids=[gone])
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (WrongState, "retired", {"edit_ids": [one, gone]}),
        (NotFound, "there is no edit", {"edit_ids": [one, "ed_" + "0" * 16]}),
        (NotFound, "there is no edit", {"edit_ids": ["nonsense"]}),
        (InvalidInput, "no edit ids", {"edit_ids": []}),
        (InvalidInput, "nothing could pass reliability", {"edit_ids": [one], "policy": {"reliability": 0.999}}),
        (InvalidInput, "without, 1", {"edit_ids": [one], "policy": {"reliability": 1}}),
        (InvalidInput, "nothing could pass", {"edit_ids": [one], "policy": {"perplexity": 0}}),
        (InvalidInput, "no 'beauty'", {"edit_ids": [one], "policy": {"beauty": 0.5}}),
        (InvalidInput, "no method", {"edit_ids": [one], "method": "prayer"}),
    ]
    for error, told, arguments in refused:
        with pytest.raises(error, match=told):
            world.service.promotions.begin(LOCAL, **arguments)
    with pytest.raises(NotFound):
        world.service.promotions.begin(OTHER, [one])
    assert world.ledger.jobs.list(LOCAL.tenant).total == 0


def test_an_edit_that_is_being_promoted_is_not_promoted_twice(world: World) -> None:
    """Issue, Bad input: it is refused with the job's name; the same call under its key is that job; afterwards it may be asked for."""
    one, two, three = world.edited(3)
    begin = world.service.promotions.begin
    job = begin(LOCAL, [one, two], idempotency_key="k")
    with pytest.raises(Conflict, match=f"{two} is being promoted by {job.id}") as caught:
        begin(LOCAL, [two, three])
    assert caught.value.data["job_id"] == job.id
    assert begin(LOCAL, [one, two], idempotency_key="k").id == job.id
    begin(LOCAL, [three])
    world.work()
    assert world.promoted([one, two])["summary"].startswith("Nothing to do")


def test_a_call_repeated_under_its_key_is_its_job_also_where_its_edits_are_gone(world: World) -> None:
    """Issue, §3: idempotency keys. Who did not hear the answer asks again, and meanwhile somebody took an edit back."""
    one, two = world.edited()
    begin = world.service.promotions.begin
    job = begin(LOCAL, [one, two], idempotency_key="k")
    world.work()
    world.service.rollback(LOCAL, edit_ids=[two])
    assert begin(LOCAL, [one, two], idempotency_key="k").id == job.id
    with pytest.raises(WrongState, match="retired"):
        begin(LOCAL, [one, two], idempotency_key="another")
    with pytest.raises(Conflict, match="was used for another job"):
        begin(LOCAL, [one], idempotency_key="k")


def test_an_edit_that_is_taken_back_while_its_job_waits_is_not_promoted(world: World) -> None:
    """Issue, Bad input: the job fails and says which edit; nothing was changed."""
    one, two = world.edited()
    job = world.service.promotions.begin(LOCAL, [one, two])
    world.service.rollback(LOCAL, edit_ids=[two])
    world.work()
    ended = world.ledger.jobs.get(LOCAL.tenant, job.id)
    assert (ended.status, ended.error["code"], world.live()) == ("failed", "E_STATE", "")
    assert two in ended.error["message"]


def test_an_edit_that_is_taken_back_while_it_is_planned_is_not_published(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flip is refused as a whole, and the job is not said to be completed."""
    one, two = world.edited()
    make = Shop.make

    def meanwhile(shop: Shop, *groups: Sequence[Edit]) -> Candidate:
        if world.ledger.get(LOCAL.tenant, two).is_live:
            world.ledger.rollback(LOCAL.tenant, [two], actor="ann")
        return make(shop, *groups)

    monkeypatch.setattr(Shop, "make", meanwhile)
    told = world.promoted([one, two])
    assert (told["status"], told["error_code"], world.live()) == ("failed", "E_STATE", "")
    assert world.asked()[0] == "memory"


def test_where_the_gate_accepts_nothing_everything_stays_in_memory(world: World) -> None:
    """Issue, Bad input: a policy that no candidate passes ends a job as completed, with the reason of each edit, and nothing is live."""
    ids = world.edited()
    Shop.bad = set(ids)
    told = world.promoted(ids)
    assert (told["status"], world.live(), {row["rung"] for row in told["edits"]}) == ("completed", "", {"memory"})
    assert all("refused: reliability" in row["reason"] for row in told["edits"])
    assert world.asked()[0] == "memory"
    assert world.ledger.scorecard(LOCAL.tenant, told["scorecard"])


# The disk -------------------------------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    """Stand for a disk without room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["ke_tools.editors.peft_folder.write", "ke_tools.releases._sync"])
def test_a_full_disk_publishes_nothing_and_the_job_says_why(world: World, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Issue, Bad input. What was promoted before stays live; with room again the same call does it."""
    one, two = world.edited()
    before = world.promoted([one])["release"]
    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        told = world.promoted([two])
    assert (told["status"], told["error_code"], world.live()) == ("failed", "E_RESOURCE", before)
    assert "Nothing was published" in told["error_message"]
    assert told["summary"] == told["error_message"]
    assert "Free" in told["error_message"]  # what to do
    assert [folder.name for folder in world.root.iterdir()] == [before]
    assert world.promoted([two])["status"] == "completed"


def test_a_small_disk_that_is_full_publishes_nothing(world: World) -> None:
    """The same on a real one, where this machine lets a test have it."""
    ids = world.edited()
    world.root.mkdir(parents=True)
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=8k none {world.root} 2>/dev/null"):  # noqa: S605
        pytest.skip("nothing may be mounted here")
    try:
        told = world.promoted(ids)
        assert (told["status"], told["error_code"], world.live()) == ("failed", "E_RESOURCE", "")
        assert list(world.root.iterdir()) == []
    finally:
        os.system(f"umount {world.root}")  # noqa: S605
    assert world.asked()[0] == "memory"


def test_what_was_refused_or_cut_short_does_not_pile_up(world: World) -> None:
    """Only releases that were live are kept: they can be so again."""
    one, two, three = world.edited(3)
    first = world.promoted([one])["release"]
    Shop.bad = {two}
    second = world.promoted([two, three])["release"]
    (world.root / ".partial").mkdir()
    assert len(list(world.root.iterdir())) > 3
    world.promoted([two])
    names = {folder.name for folder in world.root.iterdir()}
    assert {first, second} <= names
    assert ".partial" not in names
    releases.sweep(world.root, world.ledger.releases())
    assert {folder.name for folder in world.root.iterdir()} == {first, second}


# A release that cannot be served --------------------------------------------------------------------------------------


def flip_a_bit(world: World) -> None:
    """Damage the weights of the live release."""
    file = world.root / world.live() / peft_folder.WEIGHTS
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)


def lose(world: World) -> None:
    """Delete the live release."""
    shutil.rmtree(world.root / world.live())


def lose_the_manifest(world: World) -> None:
    """Delete what says what it holds."""
    (world.root / world.live() / releases.MANIFEST).unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, lose, lose_the_manifest])
def test_a_damaged_release_is_not_served_told_and_built_again_to_the_same_bytes(world: World, damage: Callable[[World], None]) -> None:
    """Issue, Bad input and §4: the memory answers at once; rebuilding gives the same bytes under the same name, and it is served."""
    ids = world.edited()
    world.promoted(ids)
    live, route = world.live(), world.asked()
    assert live in route[1]
    contents = {file.name: file.read_bytes() for file in (world.root / live).iterdir()}
    damage(world)
    world.restarted()
    assert world.asked()[0] == "memory"
    assert live not in world.asked()[1]
    assert "`ke-tools rebuild`" in world.service.trouble
    assert world.service.state()["ledger"] == world.service.trouble
    report = doctor.examine(world.service, deep=False)
    assert [check["name"] for check in report["checks"] if not check["ok"]] == ["releases"]
    told = world.rebuilt()
    assert (told["status"], told["release"], world.live()) == ("completed", live, live)
    assert {file.name: file.read_bytes() for file in (world.root / live).iterdir()} == contents
    assert world.asked() == route
    assert world.service.trouble == ""
    assert doctor.examine(world.service, deep=False)["ok"]


def test_one_tenants_damage_is_told_though_anothers_release_is_served(world: World) -> None:
    """Trouble is a tenant's; it goes when nothing of his is live any more."""
    ids = world.edited()
    world.promoted(ids)
    world.service.edit(OTHER, FACTS[:1])
    [theirs] = [edit.id for edit in world.ledger.live("bolt")]
    world.service.promotions.begin(OTHER, [theirs])
    world.work()
    flip_a_bit(world)
    world.restarted()
    world.asked()
    assert world.service.promotions.adapter("bolt", world.engine) == world.ledger.live_release("bolt")
    assert world.service.trouble
    world.service.rollback(LOCAL, edit_ids=ids)
    world.asked()
    assert world.service.trouble == ""


def held_up(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make loading take until it is let go; gives what says that it began, and what lets it go."""
    load, began, goes_on = world.engine.load_adapter, threading.Event(), threading.Event()

    def slow(name: str, path: Path) -> None:
        began.set()
        assert goes_on.wait(10)
        load(name, path)

    monkeypatch.setattr(world.engine, "load_adapter", slow)
    return began, goes_on


def test_while_one_release_is_loaded_what_is_loaded_answers_and_for_the_rest_the_memory_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 7, bad input, dead or slow: a server that hangs at one tenant's release holds nobody else up."""
    world.promoted(world.edited())
    world.service.edit(OTHER, FACTS[:1])
    world.service.promotions.begin(OTHER, [edit.id for edit in world.ledger.live("bolt")])
    world.work()
    world.restarted()
    at, theirs = world.service.promotions, world.ledger.live_release("bolt")
    assert at.adapter("bolt", world.engine) == theirs
    began, goes_on = held_up(world, monkeypatch)
    monkeypatch.setattr(promotions, "_PATIENCE_SECONDS", 0.0)
    with ThreadPoolExecutor(2) as others:
        first = others.submit(at.adapter, LOCAL.tenant, world.engine)
        assert began.wait(10)
        try:
            assert others.submit(at.adapter, "bolt", world.engine).result(5) == theirs
            assert at.adapter(LOCAL.tenant, world.engine) == ""
        finally:
            goes_on.set()
        assert first.result(10) == world.live()
    assert at.adapter(LOCAL.tenant, world.engine) == world.live()


def test_a_release_that_is_erased_while_it_is_loaded_comes_out_of_the_engine(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6, purge: what it says is nowhere afterwards, also where a slow server was just being given it."""
    world.promoted(world.edited())
    world.restarted()
    at, (began, goes_on) = world.service.promotions, held_up(world, monkeypatch)
    with ThreadPoolExecutor(2) as others:
        first = others.submit(at.adapter, LOCAL.tenant, world.engine)
        assert began.wait(10)
        dropped = others.submit(at.drop, [world.live()], world.engine)
        with pytest.raises(TimeoutError):
            dropped.result(0.05)
        goes_on.set()
        dropped.result(10)
        assert first.result(10) == world.live()
    assert world.live() not in world.engine.adapters


def test_only_those_wait_for_a_load_who_ask_at_its_beginning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input, dead or slow: who waits keeps a thread, of which there are few; each request of a minute must not."""
    world.promoted(world.edited())
    world.restarted()
    at, (began, goes_on) = world.service.promotions, held_up(world, monkeypatch)
    monkeypatch.setattr(promotions, "_PATIENCE_SECONDS", 0.1)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(at.adapter, LOCAL.tenant, world.engine)
        assert began.wait(10)
        try:
            asked = time.monotonic()
            assert {at.adapter(LOCAL.tenant, world.engine) for _ in range(40)} == {""}
            assert time.monotonic() - asked < 2.0  # 4 s, did each wait
        finally:
            goes_on.set()
        assert first.result(10) == world.live()


def test_a_loader_that_breaks_leaves_the_memory_to_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail towards the base, but not past the memory: whatever breaks while a release is loaded."""
    world.promoted(world.edited())
    world.restarted()
    monkeypatch.setattr(Serving, "load_adapter", full)
    assert world.asked()[0] == "memory"
    assert "No space left" in world.service.trouble


# Another model --------------------------------------------------------------------------------------------------------


def change_the_model(world: World) -> None:
    """As if the checkpoint had been replaced."""
    world.model.fingerprint = "sha256:other"
    world.restarted()


def test_a_release_of_another_model_is_refused_and_promoted_anew(world: World) -> None:
    """Issue, Bad input: a model whose fingerprint changed under a release; the promoted edits act from memory at once."""
    ids = world.edited()
    old = world.promoted(ids)["release"]
    change_the_model(world)
    assert world.asked()[0] == "memory"
    assert "was made for" in world.service.trouble
    assert not doctor.examine(world.service, deep=False)["ok"]
    told = world.rebuilt()
    assert told["status"] == "completed"
    assert world.live() == told["release"] != old
    assert "this is sha256:other. Promoted anew: 2 of 2 edits in the weights" in told["summary"]
    assert world.live() in world.asked()[1]
    assert doctor.examine(world.service, deep=False)["ok"]


def test_what_another_model_refuses_acts_from_the_memory(world: World) -> None:
    """The gate decides anew; where it accepts nothing no release is live, and the ledger says so."""
    ids = world.edited()
    world.promoted(ids)
    change_the_model(world)
    Shop.bad = set(ids)
    told = world.rebuilt()
    assert (told["status"], told["release"], world.live()) == ("completed", "", "")
    assert {edit.state.value for edit in world.ledger.live(LOCAL.tenant)} == {"active"}
    assert (world.asked()[0], world.service.trouble) == ("memory", "")


def test_a_release_whose_making_is_not_known_is_promoted_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purged payload, or a version that plans in another way: never the old name for other bytes."""
    ids = world.edited()
    world.promoted(ids)
    lose(world)
    with monkeypatch.context() as patched:
        patched.setattr("ke_tools.servers.rebuilding.made", lambda *_: {})
        assert "not known any more. Promoted anew" in world.rebuilt()["summary"]
    live = world.live()
    lose(world)
    remake = Shop.remake

    def otherwise(shop: Shop, how: Mapping[str, Any], edits: Mapping[str, Edit]) -> Release:
        return remake(shop, {**how, "in_weights": how["in_weights"][:1]}, edits)

    monkeypatch.setattr(Shop, "remake", otherwise)
    assert "it has other bytes. Promoted anew" in world.rebuilt()["summary"]
    assert world.live() == live  # the ladder gave the same bytes again
    assert world.ledger.audit() == []


def test_nothing_to_rebuild_is_told(world: World) -> None:
    """And a second rebuild beside the first is refused."""
    ids = world.edited()
    with pytest.raises(WrongState, match="no release is live"):
        world.service.promotions.rebuild(LOCAL)
    world.promoted(ids)
    world.service.promotions.rebuild(LOCAL)
    with pytest.raises(Conflict):
        world.service.promotions.rebuild(LOCAL)
    with pytest.raises(Conflict):
        world.service.promotions.begin(LOCAL, ids)


def test_what_the_ledger_says_of_a_release_is_json_that_names_no_words(world: World) -> None:
    """So that no purge has to look for them there."""
    ids = world.edited()
    told = promoting.made(world.ledger, LOCAL.tenant, world.promoted(ids)["release"])
    assert set(told) == {"fingerprint", "how"}
    assert "ville" not in json.dumps(told)


# Silence --------------------------------------------------------------------------------------------------------------


def test_who_waits_hears_though_the_worker_is_silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, bars: progress at least every two seconds, also while a large model computes one thing."""
    assert promotions._SILENT_SECONDS + promotions._LOOK_SECONDS < 2
    monkeypatch.setattr(promotions, "_SILENT_SECONDS", 0.01)
    monkeypatch.setattr(promotions, "_LOOK_SECONDS", 0.001)
    job = world.service.promotions.begin(LOCAL, world.edited())
    heard: list[str] = []

    async def hear(told: Job) -> None:
        heard.append(told.status)
        if len(heard) == 4:
            world.ledger.jobs.cancel(LOCAL.tenant, job.id)

    ended = asyncio.run(world.service.promotions.wait(LOCAL, job.id, 25, hear))
    assert (ended.status, heard[:4]) == ("cancelled", ["queued"] * 4)
