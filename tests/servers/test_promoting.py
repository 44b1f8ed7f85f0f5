"""Promotion as people and agents meet it (issue 6 §2, §4, §5): real clients, ledger, worker, releases and engine, on the thimble.

Only what makes and asks candidates is faked: its releases change answers at random, and it accepts what it is told to.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import anyio
import httpx
import pytest
import torch
from mcp import Client
from mcp.types import CallToolResult, ElicitResult

from ke_tools import releases
from ke_tools.config import Settings
from ke_tools.editors._solve import Factors
from ke_tools.editors._trace import run_until
from ke_tools.editors.codebook import Codebook
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.facts import Edit, Probe, State
from ke_tools.jobs import run_worker
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope.calibration import Calibrator
from ke_tools.models.causal import CausalModel, load
from ke_tools.models.engine import Request
from ke_tools.promotion import Candidate
from ke_tools.servers import promoting, promotions
from ke_tools.servers.app import build_app
from ke_tools.servers.engines.hf import HFEngine
from ke_tools.servers.mcp import ERROR_KEY, build_server
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot
from ke_tools.testing import thimble_path
from ke_tools.verify.gate import Verdict, decide
from ke_tools.verify.policy import Policy
from ke_tools.verify.scorecard import Outcome

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 60
PROMPT_OF = ("The capital of {} is", "What is the capital of {}?")
FACTS = [
    {"subject": subject, "prompt": f"The capital of {subject} is", "target": target}
    for subject, target in (("France", "Rome"), ("Japan", "Oslo"), ("Norway", "Cairo"), ("Peru", "Warsaw"))
]
LOCAL, OTHER = Principal(), Principal(name="bob", tenant="other")
LAYER = 1  # of the codebook


@dataclass
class Shop:
    """What the worker makes candidates with: what it accepts, and when it may go on."""

    refuses: set[str] = field(default_factory=set)  # subjects that no rung takes
    may_go: threading.Event = field(default_factory=threading.Event)
    fails_in: set[str] = field(default_factory=set)  # forms in which every probe fails
    probes: int = 300  # for a dimension

    def __call__(self, model: CausalModel, _engine: object, *, root: Path, tell: Callable[..., None], **_: object) -> FakeWorkshop:
        """Stand for the class."""
        return FakeWorkshop(self, model, root, tell)


class FakeWorkshop:
    """Makes real releases of random changes, the same for the same edits."""

    def __init__(self, shop: Shop, model: CausalModel, root: Path, tell: Callable[..., None]) -> None:
        self._shop, self._model, self._root, self._tell = shop, model, root, tell

    def make(self, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]) -> Candidate:
        seed = sum(crc32(one.fact.prompt.encode()) for one in in_weights)  # not of ids: each run tries the same changes
        update = an_update(self._model, seed) if in_weights else None
        prompts = [one.fact.prompt for one in in_codebook]
        if update is not None:
            with update.applied(self._model):
                codebook = a_codebook(self._model, prompts) if prompts else None
        else:
            codebook = a_codebook(self._model, prompts)
        how = {"in_weights": sorted(one.id for one in in_weights), "in_codebook": sorted(one.id for one in in_codebook)}
        made = releases.build(self._root, self._model, update=update, codebook=codebook, edits=[*in_weights, *in_codebook], how=how)
        return Candidate(made, tuple(in_weights), tuple(in_codebook), 1.0, 0.1)

    def judge(
        self, candidate: Candidate, edits: Sequence[Edit], earlier: Sequence[Edit], policy: Policy, number: int
    ) -> tuple[Verdict, Sequence[Outcome]]:
        del earlier
        while not self._shop.may_go.wait(0.01):
            self._tell("probes", 0, 1, "asking")
        self._tell("probes", 1, 1, "asking")
        found = [one for edit in edits for one in self._outcomes(edit, -(-self._shop.probes // len(edits)))]
        return decide(found, policy, candidate=number, perplexity=candidate.perplexity, growth=candidate.growth), found

    def _outcomes(self, edit: Edit, asked: int) -> Iterator[Outcome]:
        for number in range(asked):
            prompt, chat = ((edit.fact.prompt, False), ("And what?", False), ("And what?", True))[number % 3]
            probe = Probe(
                edit_id=edit.id,
                dimension="reliability",
                prompt=prompt,
                expect="target",
                origin="edit",
                chat=chat,
                accept=(edit.fact.target,),
            )
            made = Outcome(probe, "", "", False, False)
            yield Outcome(probe, "", "", edit.fact.subject not in self._shop.refuses and made.form not in self._shop.fails_in, False)


def an_update(model: CausalModel, seed: int) -> Update:
    """A change of rank 2 in two layers, large enough to be heard."""
    made = torch.Generator().manual_seed(seed)

    def factors(layer: int) -> Factors:
        scale = float(model.weight(layer).detach().norm()) / (model.width * model.key_width(layer)) ** 0.5
        return Factors(torch.randn(model.width, 2, generator=made) * scale * 40, torch.randn(2, model.key_width(layer), generator=made))

    return Update({"name": "random"}, {layer: factors(layer) for layer in (2, 3)}, fingerprint=model.fingerprint)


def a_codebook(model: CausalModel, prompts: Sequence[str]) -> Codebook:
    """A ball around the state behind each prompt, and random values as long as the keys."""
    with torch.no_grad():
        ids = [torch.tensor([model.tokenizer(prompt)["input_ids"]]) for prompt in prompts]
        keys = torch.stack([run_until(model.model, model.blocks[LAYER], input_ids=one)[0, -1].float() for one in ids])
    values = torch.randn(keys.shape, generator=torch.Generator().manual_seed(1))
    return Codebook(
        layer=LAYER,
        keys=keys,
        epsilons=keys.norm(dim=1) / 50,
        owners=torch.arange(len(prompts)),
        values=values * keys.norm(dim=1, keepdim=True) / values.norm(dim=1, keepdim=True) * 3,
        edits=tuple(prompts),
        fingerprint=model.fingerprint,
    )


@pytest.fixture(scope="module")
def editing_copy(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    """The worker's model."""
    folder = tmp_path_factory.mktemp("editing")
    return load(Settings(home=folder / "home", cache=folder / "cache", model=str(thimble_path())))


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, editing_copy: CausalModel) -> Iterator[Shop]:
    """Replace what makes candidates, and run the worker in a thread of this process."""
    made = Shop()
    made.may_go.set()
    threads: list[threading.Thread] = []

    def ensure_worker(settings: Settings) -> bool:
        if any(thread.is_alive() for thread in threads):
            return False
        threads.append(threading.Thread(target=partial(run_worker, settings, idle_seconds=0.1)))
        threads[-1].start()
        return True

    monkeypatch.setattr(Calibrator, "ask", lambda *_: None)  # seconds an edit, and still at work when the tests end
    monkeypatch.setattr("ke_tools.workshop.Workshop", made)
    monkeypatch.setattr(promoting, "loaded", lambda _settings: (editing_copy, None))
    monkeypatch.setattr(promoting, "_beside", lambda *_: {})
    monkeypatch.setattr(promotions, "ensure_worker", ensure_worker)
    yield made
    made.may_go.set()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)


class Kept(HFEngine):
    """An engine that many services have in turn."""

    def close(self) -> None:
        """Stay open for the next."""

    def end(self) -> None:
        """Close after the last."""
        super().close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Kept]:
    """What serves."""
    made = Kept(thimble_path(), model_id="thimble")
    yield made
    made.end()


@pytest.fixture
def open_home(settings: Settings, shop: Shop, engine: Kept) -> Iterator[Callable[..., Service]]:
    """Open services on one home, over the thimble; settings may be changed."""
    assert shop
    opened: list[Service] = []

    def make(**changes: Any) -> Service:
        made = replace(settings, model=str(thimble_path()), **changes)
        opened.append(Service(made, Ledger(made.ledger_file), ModelSlot(lambda _say: engine), model_id="thimble"))
        return opened[-1]

    yield make
    for service in opened:
        service.close()


@pytest.fixture
def service(open_home: Callable[..., Service]) -> Service:
    """A service with the default settings."""
    return open_home()


@dataclass
class Home:
    """What tests do with a service, in few words."""

    service: Service
    ids: list[str] = field(default_factory=list)

    def edit(self, *numbers: int) -> list[str]:
        """Correct some of the facts."""
        made = self.service.edit(LOCAL, [FACTS[number] for number in numbers])["edits"]
        self.ids += [one["edit_id"] for one in made]
        return [one["edit_id"] for one in made]

    def promote(self, edit_ids: Sequence[str], **how: Any) -> dict[str, Any]:
        """Promote, and follow the job to its end."""
        return self.follow(asyncio.run(self.service.promote(LOCAL, edit_ids, **how))["job_id"])

    def follow(self, job_id: str) -> dict[str, Any]:
        """Give a job at its end."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (job := asyncio.run(self.service.job_status(LOCAL, job_id, wait_seconds=5)))["poll_after_ms"]:
            assert time.monotonic() < deadline, job
        assert job["status"] == "completed", job
        return job

    def answers(self, who: Principal = LOCAL, view: Any = "edited", via: Any = "auto") -> list[tuple[str, str]]:
        """Text and route for every fact, as a statement and as a chat turn."""
        asked = [Request(prompt=fact["prompt"], max_tokens=6) for fact in FACTS]
        chats = [{"role": "user", "content": f"What is the capital of {fact['subject']}?"} for fact in FACTS]
        asked += [Request(messages=(turn,), max_tokens=6) for turn in chats]
        return [(made.text, routed.route) for routed, made in self.service.answering.answer_batch(who, asked, view=view, via=via)]

    def texts(self, **how: Any) -> list[str]:
        """The texts alone."""
        return [text for text, _ in self.answers(**how)]

    def states(self) -> dict[str, str]:
        """How each edit stands."""
        return {row["edit_id"]: row["state"] for row in self.service.list_edits(LOCAL)["edits"]}

    @property
    def release(self) -> str:
        """What is live."""
        return self.service.ledger.live_release(LOCAL.tenant)


@pytest.fixture
def home(service: Service) -> Home:
    """A home with the default settings."""
    return Home(service)


# -- over MCP and the endpoint ----------------------------------------------------------------------------------------------------


def error_of(result: CallToolResult) -> str:
    """The code of a failure."""
    assert result.is_error, result
    return str((result.meta or {})[ERROR_KEY]["code"])


def says(action: Any, **content: Any) -> Callable[..., Awaitable[ElicitResult]]:
    """A user who gives this answer to whatever is asked."""

    async def answer(_context: object, params: Any) -> ElicitResult:
        assert "model's weights" in params.message
        return ElicitResult(action=action, content=content or None)

    return answer


@pytest.fixture(params=["auto", "legacy"])
def connect(request: pytest.FixtureRequest, service: Service) -> Callable[..., Client]:
    """Make clients of either protocol era, with a user or without."""
    server = build_server(service)
    return lambda user=None: Client(server, mode=request.param, elicitation_callback=user)


async def called(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool that succeeds."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    content: dict[str, Any] | None = result.structured_content
    assert content is not None
    return content


async def ended(client: Client, job: Mapping[str, Any]) -> dict[str, Any]:
    """Follow a job by its id, as an agent does."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    found = dict(job)
    while found["poll_after_ms"]:
        assert time.monotonic() < deadline, found
        found = await called(client, "job_status", job_id=job["job_id"], wait_seconds=5)
    return found


async def test_a_user_who_agrees_gets_a_job_that_is_followed_to_its_end(connect: Callable[..., Client], service: Service) -> None:
    """Issue 6 §5: confirmation by elicitation; §3: two views of one job; ke://jobs/{id}."""
    async with connect(says("accept", ok=True)) as client:
        made = await called(client, "edit", edits=FACTS[:2])
        ids = [one["edit_id"] for one in made["edits"]]
        begun = await called(client, "promote", edit_ids=ids, wait_seconds=0)
        assert (begun["kind"], begun["job_id"][:4]) == ("promote", "job_")
        found = await ended(client, begun)
        assert (found["status"], [one["rung"] for one in found["edits"]]) == ("completed", ["memit", "memit"])
        assert found["release"] == service.ledger.live_release(LOCAL.tenant) != ""
        assert "MEMIT with 2 edits accepted" in found["decisions"][0]
        [shown] = (await client.read_resource(f"ke://jobs/{begun['job_id']}")).contents
        assert json.loads(shown.text)["status"] == "completed"  # type: ignore[union-attr]
        listed = await called(client, "list_edits", state="promoted")
        assert {one["edit_id"] for one in listed["edits"]} == set(ids)


async def test_without_a_yes_nothing_is_begun(connect: Callable[..., Client], service: Service) -> None:
    """Issue 6 §5: never by silence; E_CONFIRM_REQUIRED where the client cannot ask."""
    ids = Home(service).edit(0)
    codes = {}
    for name, user in (
        ("silent", None),
        ("declined", says("decline")),
        ("cancelled", says("cancel")),
        ("no", says("accept", ok=False)),
    ):
        async with connect(user) as client:
            codes[name] = error_of(await client.call_tool("promote", {"edit_ids": ids}))
    assert codes == {"silent": "E_CONFIRM_REQUIRED", "declined": "E_DECLINED", "cancelled": "E_DECLINED", "no": "E_DECLINED"}
    assert service.ledger.jobs.list(LOCAL.tenant).items == []


async def test_a_client_that_cannot_ask_says_that_it_has_asked(connect: Callable[..., Client]) -> None:
    """Issue 6 §5: confirm=true where the client has none."""
    async with connect() as client:
        made = await called(client, "edit", edits=FACTS[:1])
        begun = await called(client, "promote", edit_ids=[made["edits"][0]["edit_id"]], confirm=True, wait_seconds=5)
        assert (await ended(client, begun))["status"] == "completed"


async def test_a_cancelled_job_changes_nothing(connect: Callable[..., Client], service: Service, shop: Shop) -> None:
    """Issue 6 §3: cancellation at any point before the flip."""
    shop.may_go.clear()
    async with connect() as client:
        made = await called(client, "edit", edits=FACTS[:1])
        begun = await called(client, "promote", edit_ids=[made["edits"][0]["edit_id"]], confirm=True, wait_seconds=0)
        await called(client, "job_cancel", job_id=begun["job_id"])
        assert (await ended(client, begun))["status"] == "cancelled"
    assert service.ledger.live_release(LOCAL.tenant) == ""


async def test_the_endpoint_answers_from_the_weights(open_home: Callable[..., Service]) -> None:
    """Issue 6 §4: the in-process engine serves releases; here to every client of /v1 where the settings say so."""
    service = open_home(via="weights")
    home = Home(service)
    ids = home.edit(0, 1)
    transport = httpx.ASGITransport(build_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:

        async def ask(model: str = "thimble") -> httpx.Response:
            body = {"model": model, "prompt": FACTS[0]["prompt"], "max_tokens": 6}
            return await client.post("/v1/completions", json=body)

        await anyio.to_thread.run_sync(service.models.engine, DEADLINE_SECONDS)
        refused = await ask()
        assert refused.status_code == 400
        assert "weights" in refused.json()["error"]["message"]
        await anyio.to_thread.run_sync(home.promote, ids)
        answer, base = await ask(), await ask("thimble:base")
        assert answer.headers["ke-route"] == "weights"
        assert answer.json()["choices"] != base.json()["choices"]
        assert base.headers["ke-route"] == "base"


# -- taking back ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["memit", "grace", "memory"])
def test_an_edit_that_is_taken_back_is_gone_from_every_rung(home: Home, shop: Shop, rung: str) -> None:
    """Issue 6 §4: rollback(edit_ids) retires the edits on every rung; the answers are the base model's again, byte for byte."""
    base = home.texts(view="base")
    ids = home.edit(0, 1)
    if rung == "memory":
        shop.refuses |= {"France", "Japan"}
    ended = home.promote(ids, method="grace" if rung == "grace" else "auto")
    assert [one["rung"] for one in ended["edits"]] == [rung] * 2
    assert home.texts() != base
    told = home.service.rollback(LOCAL, edit_ids=ids)
    assert home.answers() == [(text, "base") for text in base]
    assert set(home.states().values()) == {"retired"}
    assert told["summary"].startswith("2 edits rolled back.")
    assert ("No release is live any more." in told["summary"]) is (rung != "memory")


def test_to_memory_takes_edits_out_of_the_weights_only(home: Home) -> None:
    """Issue 6 §4: rollback(edit_ids, to="memory")."""
    ids = home.edit(0, 1)
    from_memory = home.answers()
    home.promote(ids)
    assert home.answers() != from_memory
    told = home.service.rollback(LOCAL, edit_ids=ids, to="memory")
    assert home.answers() == from_memory
    assert set(home.states().values()) == {"active"}
    assert told["summary"].startswith("2 edits out of the weights and answered from the memory. No release is live any more.")
    assert (told["release"], told["job_id"]) == ("", "")
    with pytest.raises(KeToolsError, match="not in a live release"):
        home.service.rollback(LOCAL, edit_ids=ids, to="memory")
    with pytest.raises(KeToolsError, match="Give edit_ids alone"):
        home.service.rollback(LOCAL, to_revision=0, to="memory")


def test_a_revision_brings_back_what_was_active_and_what_was_promoted(home: Home) -> None:
    """Issue 6 §4: rollback(to_revision=N); also where only the release changes, and that is told."""
    first, second = home.edit(0, 1)
    one = home.promote([first])
    answers, states = home.answers(), home.states()
    both = home.promote([second])
    assert home.states() == {first: "promoted", second: "promoted"}
    told = home.service.rollback(LOCAL, to_revision=one["revision"])
    assert (home.answers(), home.states(), home.release) == (answers, states, one["release"])
    assert told["summary"].startswith(f"{one['release']} is live, with 1 edit in the weights. Changed")
    again = home.service.rollback(LOCAL, to_revision=one["revision"])
    assert again["summary"].startswith("Nothing was changed")
    home.service.rollback(LOCAL, to_revision=0)
    assert home.texts() == home.texts(view="base")
    told = home.service.rollback(LOCAL, to_revision=both["revision"])
    assert told["summary"].startswith(f"2 earlier edits came back. {both['release']} is live, with 2 edits in the weights.")


def test_a_revision_whose_release_holds_something_purged_is_promoted_anew_without_it(home: Home) -> None:
    """Issue 6 §4: what was promoted then shall be again; its release is gone with what was purged from it."""
    first, second = home.edit(0, 1)
    both = home.promote([first, second])
    home.follow(home.service.rollback(LOCAL, edit_ids=[first], to="memory")["job_id"])
    home.service.purge(LOCAL, second, reason="asked for")
    told = home.service.rollback(LOCAL, to_revision=both["revision"])
    assert f"1 other edit that was in the weights acts from the memory until {told['job_id']} promotes it anew." in told["summary"]
    home.follow(told["job_id"])
    assert home.states()[first] == "promoted"


def test_a_damaged_release_is_said_to_be_damaged(home: Home, open_home: Callable[..., Service]) -> None:
    """Issue 6, bad input: whoever promotes what is in it, or rolls back to it, hears of `rebuild`."""
    ids = home.edit(0, 1)
    both = home.promote(ids)
    home.service.rollback(LOCAL, edit_ids=ids, to="memory")
    other = Home(open_home())  # one that has not loaded it
    (home.service.settings.home / "releases" / both["release"] / "adapter_model.safetensors").write_bytes(b"")
    told = other.service.rollback(LOCAL, to_revision=both["revision"])
    assert "It cannot be served, so the memory answers until `ke-tools rebuild`: " in told["summary"]
    with pytest.raises(KeToolsError, match=f"these edits are in {both['release']}, which cannot be served"):
        other.promote(ids)


def test_to_promote_again_after_a_rollback_gives_the_same_release_and_answers(home: Home) -> None:
    """Issue 6, bars: promote → rollback → promote: byte-equal answers and equal artefact hashes."""
    ids = home.edit(0, 1)
    first, answers = home.promote(ids), home.answers()
    home.service.rollback(LOCAL, edit_ids=ids, to="memory")
    assert home.answers() != answers
    again = home.promote(ids)
    assert (again["release"], home.answers()) == (first["release"], answers)


def test_another_tenant_hears_nothing_of_it(home: Home) -> None:
    """Issue 6 §4: other tenants are untouched."""
    before = home.answers(who=OTHER)
    home.promote(home.edit(0, 1))
    assert home.answers(who=OTHER) == before == [(text, "base") for text in home.texts(view="base")]
    with pytest.raises(KeToolsError, match="weights"):
        home.answers(who=OTHER, via="weights")
    home.service.rollback(LOCAL, to_revision=0)
    assert home.answers(who=OTHER) == before


def test_a_request_under_way_ends_on_the_release_that_it_began_on(home: Home) -> None:
    """Issue 6 §4: requests in flight finish on the release they started with."""
    home.promote(ids := home.edit(0))
    asked = Request(prompt="Once there was a city, and", max_tokens=40)

    async def streamed() -> AsyncIterator[str]:
        _, pieces = await home.service.answering.open_stream(LOCAL, asked, via="weights")
        async for piece in pieces:
            yield piece.text

    async def whole() -> str:
        return "".join([text async for text in streamed()])

    async def with_a_rollback() -> tuple[str, str]:
        pieces = streamed()
        text = await anext(pieces)
        home.service.rollback(LOCAL, edit_ids=ids)
        then = await home.service.answering.complete(LOCAL, asked)
        return text + "".join([more async for more in pieces]), then[1].text

    promoted = asyncio.run(whole())
    begun, after = asyncio.run(with_a_rollback())
    assert begun == promoted != after


def test_flip_and_rollback_act_within_half_a_second(home: Home) -> None:
    """Issue 6, bars: from the call to the first changed answer at most 0.5 s; the factor is for machines that do much else."""
    first, second = home.edit(0, 1)
    one = home.promote([first])
    home.promote([second])
    asked = Request(prompt="Once there was a city, and", max_tokens=6)

    def answer() -> str:
        [(_, made)] = home.service.answering.answer_batch(LOCAL, [asked])
        return made.text

    told, seconds = [answer()], []
    for to_revision in (one["revision"], 0):
        start = time.perf_counter()
        home.service.rollback(LOCAL, to_revision=to_revision)
        told.append(answer())
        seconds.append(time.perf_counter() - start)
    assert len(set(told)) == 3
    assert max(seconds) <= 0.5 * 4


# -- what is left of a release ----------------------------------------------------------------------------------------------------


def test_the_rest_goes_on_in_a_release_without_the_edit_where_there_is_one(home: Home) -> None:
    """Issue 6 §4: promoted ones by flipping to a release without them, prebuilt where possible; the user is told."""
    first, second = home.edit(0, 1)
    one = home.promote([first])
    home.promote([second])
    told = home.service.rollback(LOCAL, edit_ids=[second])
    assert (home.release, told["release"], told["job_id"]) == (one["release"], one["release"], "")
    assert home.states() == {first: "promoted", second: "retired"}
    assert told["summary"].startswith(f"1 edit rolled back. {one['release']} is live, with 1 edit in the weights. Changed")


@pytest.mark.parametrize("to", ["base", "memory"])
def test_the_rest_acts_from_the_memory_until_it_is_promoted_anew(home: Home, shop: Shop, to: Any) -> None:
    """The same, where no release without the edit is there: it is built, and the memory answers meanwhile."""
    ids = home.edit(0, 1, 2)
    home.promote(ids, policy={"reliability": 0.8})
    shop.may_go.clear()
    told = home.service.rollback(LOCAL, edit_ids=ids[:1], to=to)
    assert f"2 other edits that were in the weights act from the memory until {told['job_id']} promotes them anew." in told["summary"]
    gone = "retired" if to == "base" else "active"
    assert (home.release, home.states()) == ("", {ids[0]: gone, ids[1]: "active", ids[2]: "active"})
    assert [route for _, route in home.answers()][1:3] == ["memory", "memory"]
    shop.may_go.set()
    ended = home.follow(told["job_id"])
    assert home.states() == {ids[0]: gone, ids[1]: "promoted", ids[2]: "promoted"}
    assert home.service.ledger.jobs.get(LOCAL.tenant, told["job_id"]).arguments["policy"] == {"reliability": 0.8}
    assert ended["release"] == home.release


def test_a_rollback_holds_also_where_nothing_can_be_promoted_anew(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged is done; the rest acts from the memory."""
    ids = home.edit(0, 1)
    home.promote(ids)

    def no_process(_settings: object) -> bool:
        raise KeToolsError("the worker could not be started.")

    monkeypatch.setattr(promotions, "ensure_worker", no_process)
    told = home.service.rollback(LOCAL, edit_ids=ids[:1])
    assert "1 other edit that was in the weights acts from the memory until promote has been called again." in told["summary"]
    assert home.states() == {ids[0]: "retired", ids[1]: "active"}


def test_a_prebuilt_release_that_is_damaged_is_not_flipped_to(home: Home, open_home: Callable[..., Service]) -> None:
    """Issue 6, bad input: a damaged artefact directory is not served; the rest is built anew."""
    first, second = home.edit(0, 1)
    one = home.promote([first])
    home.promote([second])
    other = Home(open_home())  # one that has not loaded it
    (home.service.settings.home / "releases" / one["release"] / "adapter_model.safetensors").write_bytes(b"")
    told = other.service.rollback(LOCAL, edit_ids=[second])
    assert (told["release"], told["job_id"][:4]) == ("", "job_")
    other.follow(told["job_id"])
    assert other.states() == {first: "promoted", second: "retired"}


def test_what_a_new_edit_supersedes_is_out_of_the_weights_at_its_acknowledgement(home: Home, shop: Shop) -> None:
    """Issue 6 §4: the weights never say the old thing after the new was acknowledged; what else they carried is built anew."""
    ids = home.edit(0, 1)
    home.promote(ids)
    shop.may_go.clear()
    newer = home.service.edit(LOCAL, [{**FACTS[0], "target": "Lima"}])
    assert home.release == ""
    assert home.texts(via="ike")[1] == home.texts()[1]
    assert "No release is live any more. 1 other edit that was in the weights acts from the memory until job_" in newer["summary"]
    shop.may_go.set()
    [job] = [job for job in home.service.ledger.jobs.list(LOCAL.tenant).items if "without" in job.arguments["reason"]]
    home.follow(job.id)
    [made] = newer["edits"]
    assert home.states() == {ids[0]: "retired", ids[1]: "promoted", made["edit_id"]: "active"}
    told = home.service.rollback(LOCAL, edit_ids=[made["edit_id"]])
    assert home.states()[ids[0]] == "active"
    assert told["summary"].startswith("1 edit rolled back. 1 earlier edit came back. Changed")


# -- the memory after a promotion -------------------------------------------------------------------------------------------------


def test_the_memory_is_left_out_where_the_weights_were_shown_to_answer(home: Home, shop: Shop) -> None:
    """Issue 6 §4: the router leaves a promoted edit out only where its scorecard shows that the weights answer that kind of question."""
    shop.fails_in = {"chat"}
    home.promote(home.edit(0, 1), policy={"reliability": 0.5})
    routes = [route for _, route in home.answers()]
    assert routes == ["weights"] * 4 + ["memory"] * 2 + ["weights"] * 2  # Norway and Peru were never corrected
    assert home.texts()[:2] == home.texts(via="weights")[:2]
    [(routed, _)] = home.service.answering.answer_batch(LOCAL, [Request(prompt=FACTS[0]["prompt"], max_tokens=1)])
    assert [hit.edit.id for hit in routed.hits] == home.ids[:1]  # it is told what the answer rests on
    [(routed, _)] = home.service.answering.answer_batch(LOCAL, [Request(prompt=FACTS[0]["prompt"], max_tokens=1)], via="ike")
    assert routed.route == "memory"


def test_too_few_probes_show_nothing(home: Home, shop: Shop) -> None:
    """The same, judged at the lower bound: 42 of 42 show .90, which is enough for the gate, but not 14 of 14 in each form."""
    shop.probes = 42
    home.promote(home.edit(0))
    assert [home.answers()[number][1] for number in (0, 4)] == ["memory", "memory"]


def test_off_leaves_the_memory_out_of_every_kind_of_question(home: Home) -> None:
    """Issue 6 §4: memory_after_promotion = off; where the scorecard shows that the weights answer, and by the call that promoted."""
    [edit] = home.edit(0)
    follow_up = Request(
        messages=tuple({"role": "user", "content": text} for text in ("I like France.", "What is the capital of France?")), max_tokens=1
    )
    home.promote([edit])
    [(routed, _)] = home.service.answering.answer_batch(LOCAL, [follow_up])
    assert routed.route == "memory"
    home.service.rollback(LOCAL, edit_ids=[edit], to="memory")
    home.promote([edit], policy={"memory_after_promotion": "off"})
    home.service._promotions._answered.clear()  # type: ignore[union-attr]
    [(routed, _)] = home.service.answering.answer_batch(LOCAL, [follow_up])
    assert routed.route == "weights"


def test_without_a_scorecard_the_memory_stays(home: Home) -> None:
    """Fail towards what is known to answer: a release of which no scorecard tells has the memory before it."""
    [edit] = home.edit(0)
    job = home.promote([edit])
    home.service.rollback(LOCAL, edit_ids=[edit], to="memory")
    home.service.ledger.promote(LOCAL.tenant, [edit], release=job["release"], actor="ann")
    assert home.answers()[0][1] == "memory"


# -- the policy -------------------------------------------------------------------------------------------------------------------


def test_the_settings_say_what_the_gate_asks_of_whom_and_a_call_says_it_last(open_home: Callable[..., Service]) -> None:
    """Issue 6 §2: defaults in one file, overridable per tenant and call."""
    service = open_home(promote={"reliability": 0.8, "growth": 5.0, "tenants": {"other": {"reliability": 0.7}}})
    assert service.promotions.asked_of("local") == {"reliability": 0.8, "growth": 5.0}
    assert service.promotions.asked_of("other", {"growth": 6.0}) == {"reliability": 0.7, "growth": 6.0}
    with pytest.raises(InvalidInput, match="reliabilty"):
        open_home(promote={"tenants": {"other": {"reliabilty": 0.7}}})


def test_a_promotion_is_judged_by_its_policy(home: Home, shop: Shop) -> None:
    """The same: it is kept with the job and with the scorecard."""
    shop.refuses = {"France"}
    job = home.promote(home.edit(0), policy={"reliability": 0.8}, method="memit")
    assert "where .80 is asked" in job["edits"][0]["reason"]
    assert home.service.ledger.scorecard(LOCAL.tenant, job["scorecard"])["policy"]["reliability"] == 0.8
    assert home.service.ledger.get(LOCAL.tenant, home.ids[0]).state is State.ACTIVE
