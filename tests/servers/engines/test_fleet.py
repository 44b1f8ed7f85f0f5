"""Several servers of one model, each given the same (issue 7, §2): by servers in memory whose answers are numbers that a test sets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools.errors import KeToolsError, ModelUnavailable, Unsupported
from ke_tools.memory.router import READER
from ke_tools.models.engine import Generation, Request
from ke_tools.servers.engines import _leaving
from ke_tools.servers.engines._fleet import Fleet
from ke_tools.servers.engines._served import Served
from ke_tools.servers.engines._server import Server

BASE = "base"
TEXTS = [[1, 2]]
RELEASE, READERS, Q, DOWN = ("ke-" + letter * 24 for letter in "abcd")


class Memory(Server):
    """Says of each text one log-probability: that of the model asked for, in their turn where there are several."""

    def __init__(self, name: str, says: Mapping[str, list[float]]) -> None:
        super().__init__(f"http://{name}:1")
        self.loaded = {BASE}
        self.ignored: set[str] = set()  # adapters that it loads, and answers as without
        self.is_away = self.refuses = False
        self.hangs_at = ""  # a path
        self.asked = 0  # times, for its models
        self.was_asked = threading.Event()
        self.plugin: Mapping[str, Any] | None = None
        self._says = {model: chain(values, repeat(values[-1])) for model, values in says.items()}

    def cards(self) -> list[Mapping[str, Any]]:
        self.asked += 1
        self.was_asked.set()
        self._answer()
        return [{"id": name} for name in sorted(self.loaded)]

    def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:  # noqa: ARG002  as Server has it
        self._answer()
        if path == self.hangs_at:
            raise self.circuit.failed("it took too long")
        if path == "/load_lora_adapter":
            self.loaded.add(body["lora_name"])
        elif path == "/unload_lora_adapter":
            if body["lora_name"] not in self.loaded:
                raise ModelUnavailable("404", "")
            self.loaded.discard(body["lora_name"])
        else:
            model = BASE if body["model"] in self.ignored else body["model"]
            rows = [None, *({str(token): {"logprob": next(self._says[model])}} for token in TEXTS[0][1:])]
            return {"choices": [{"prompt_logprobs": rows}]}
        return None

    def ask(self, request: Request, model: str, prompt_tokens: int) -> Generation:
        assert model in self.loaded
        return Generation("x", "stop", prompt_tokens, request.max_tokens)

    def told(self, path: str) -> Mapping[str, Any] | None:
        return self.plugin if path == "/ke/status" else None

    def _answer(self) -> None:
        if self.is_away:
            raise self.circuit.failed("it is away")
        if self.refuses:
            raise ModelUnavailable("429", "")


@pytest.fixture
def fleet_of() -> Iterator[Callable[..., Fleet]]:
    """Makes fleets that have met their servers."""
    made: list[Fleet] = []

    def make(*servers: Server, mend: Callable[[str, Any], None] = lambda *_: None) -> Fleet:
        made.append(Fleet(servers, check=lambda _: None, mend=mend))
        made[-1].meet()
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def served(root: Path, name: str) -> Served:
    """A folder to be loaded."""
    (root / name).mkdir()
    return Served(name, root / name, 1, 0.0, has_codebook=False)


def test_what_is_given_is_loaded_everywhere_and_wanted(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §2: push to every replica, probe, flip."""
    servers = [Memory(name, {BASE: [-1.0], RELEASE: [-0.5]}) for name in "ab"]
    fleet = fleet_of(*servers)
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert all(RELEASE in server.loaded for server in servers)
    assert set(fleet.wanted) == {"rel"}
    fleet.withdraw(["rel"])
    assert all(server.loaded == {BASE} for server in servers)
    assert not (tmp_path / RELEASE).exists()


def test_where_one_server_fails_none_has_it_and_nothing_is_left_on_the_disk(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §2: partial failure rolls back and says which replica."""
    well, idle = (Memory(name, {BASE: [-1.0], RELEASE: [-0.5]}) for name in ("well", "idle"))
    idle.ignored.add(RELEASE)
    fleet = fleet_of(well, idle)
    with pytest.raises(Unsupported, match="http://idle:1"):
        fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert (well.loaded, idle.loaded, dict(fleet.wanted)) == ({BASE}, {BASE}, {})
    assert not (tmp_path / RELEASE).exists()


@pytest.mark.parametrize("base", [[-1.0, -1.0, -1.02, -1.01], [-1.0, -1.0, -1.02, -1.0]])
def test_a_base_model_that_wobbles_is_no_other_model(fleet_of: Callable[..., Fleet], tmp_path: Path, base: list[float]) -> None:
    """On a GPU under traffic the same question has not always the same answer; the first two may agree by chance."""
    fleet = fleet_of(Memory("a", {BASE: base, RELEASE: [-0.1]}))
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert set(fleet.wanted) == {"rel"}


def test_a_base_model_that_moved_is_refused(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §2: base unchanged."""
    fleet = fleet_of(server := Memory("a", {BASE: [-1.0, -1.001, -1.5, -1.501, -1.5], RELEASE: [-0.1]}))
    with pytest.raises(ModelUnavailable, match="differently as the base model"):
        fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert server.loaded == {BASE}


def test_what_does_no_more_than_the_wobble_is_refused(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """A server that ignores an adapter answers a little differently too, where it wobbles."""
    fleet = fleet_of(Memory("a", {BASE: [-1.0, -1.0, -1.02, -1.01], RELEASE: [-1.03]}))
    with pytest.raises(Unsupported, match="answers as without"):
        fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)


def test_a_server_that_came_back_and_ignores_a_part_of_the_reader_gets_no_requests(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §4: modules that the server does not target are ignored silently, so check; also after a restart with other flags."""
    says = {BASE: [-1.0], READERS: [-0.2], Q: [-0.5], DOWN: [-0.6]}
    servers = [Memory(name, says) for name in "ab"]
    fleet = fleet_of(*servers)
    fleet.publish({READER: served(tmp_path, READERS)}, TEXTS, {"q_proj": served(tmp_path, Q), "down_proj": served(tmp_path, DOWN)})
    fleet.lost(fleet.replicas[1])
    servers[1].loaded, servers[1].ignored = {BASE}, {DOWN}
    assert [is_well for is_well, _ in fleet.told()] == [True, False]
    assert servers[1].loaded == {BASE}


def test_a_reader_of_one_kind_of_module_is_no_piece_of_itself(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """What is the same by its content has one name: who takes the piece out after its test takes out the reader."""
    fleet = fleet_of(server := Memory("a", {BASE: [-1.0], READERS: [-0.2]}))
    reader = served(tmp_path, READERS)
    fleet.publish({READER: reader}, TEXTS, {"q_proj": reader})
    assert server.loaded == {BASE, READERS}


def test_a_codebook_for_a_test_shows_whether_the_plugin_acts_and_is_gone_afterwards(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §3: servers without the plugin ignore codebooks silently, so doctor tries one with a known effect."""
    acts, idle, bare, full = (Memory(name, {BASE: [-1.0], RELEASE: [-9.0]}) for name in ("acts", "idle", "bare", "full"))
    acts.plugin, idle.plugin = {"plugin": "ke-tools", "form": "places", "room": {"5": 8}}, {"plugin": "ke-tools", "form": "hooks"}
    idle.ignored.add(RELEASE)
    full.plugin = {"plugin": "ke-tools", "form": "none"}
    fleet, blocks = fleet_of(acts, idle, bare, full), list[str | None]()

    def book(block: str | None) -> Served:
        blocks.append(block)
        (tmp_path / RELEASE).mkdir()
        return Served(RELEASE, tmp_path / RELEASE, 1, 0.0, has_codebook=True)

    tried = {said.partition("http://")[2].partition(":")[0]: is_well for is_well, said in fleet.tried(TEXTS[0], book)}
    assert tried == {"acts": True, "idle": False}
    assert sorted(blocks, key=str) == ["5", None]
    assert all(server.loaded == {BASE} for server in (acts, idle, bare, full))
    assert not (tmp_path / RELEASE).exists()


def test_a_codebook_for_a_test_that_cannot_be_made_is_told_beside_all_else(fleet_of: Callable[..., Fleet]) -> None:
    """Bad input: a model whose configuration is nested, a disk that takes no files; how the servers stand is told all the same."""
    server = Memory("one", {BASE: [-1.0]})
    server.plugin = {"plugin": "ke-tools", "form": "hooks"}

    def book(_block: str | None) -> Served:
        raise Unsupported("the model's configuration does not tell its widths.", "")

    [(is_well, said)] = fleet_of(server).tried(TEXTS[0], book)
    assert not is_well
    assert "does not tell its widths" in said


def test_servers_of_other_weights_under_one_name_are_given_nothing(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, bad input: another base model; each alone is well, so only their answers beside each other tell."""
    one, other = Memory("one", {BASE: [-1.0], RELEASE: [-0.5]}), Memory("other", {BASE: [-2.0], RELEASE: [-0.5]})
    fleet = fleet_of(one, other)
    with pytest.raises(Unsupported, match=r"serves other weights under the same name than http://(one|other):1"):
        fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert (one.loaded, other.loaded, dict(fleet.wanted)) == ({BASE}, {BASE}, {})


@pytest.mark.parametrize(("says", "is_well"), [(-1.3, True), (-1.6, False), (float("nan"), False)])
def test_a_server_that_came_back_with_other_weights_gets_no_requests(
    fleet_of: Callable[..., Fleet], tmp_path: Path, says: float, is_well: bool
) -> None:
    """Issue 7, §5: what was promoted for one base model never acts in another; the same weights quantised are no other."""
    servers = [Memory("a", {BASE: [-1.0], RELEASE: [-0.5]}), Memory("b", {BASE: [-1.0] * 3 + [says], RELEASE: [-0.5]})]
    fleet = fleet_of(*servers)
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    fleet.lost(fleet.replicas[1])
    servers[1].loaded = {BASE}
    told = fleet.told()
    assert [well for well, _ in told] == [True, is_well]
    assert ("serves other weights under the same name" in told[1][1]) is not is_well
    assert (RELEASE in servers[1].loaded) is is_well


def test_a_server_that_is_away_is_brought_up_to_date_when_it_comes(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Issue 7, §2: a replica that restarts is brought up to date before it gets traffic."""
    servers = [Memory(name, {BASE: [-1.0], RELEASE: [-0.5]}) for name in "ab"]
    fleet = fleet_of(*servers)
    fleet.lost(fleet.replicas[1])
    servers[1].is_away = True
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    assert servers[1].loaded == {BASE}
    servers[1].is_away, fleet.replicas[1].again = False, 0.0
    assert [is_well for is_well, _ in fleet.told()] == [True, True]
    assert RELEASE in servers[1].loaded


@pytest.mark.parametrize("path", ["/completions", "/load_lora_adapter"])
def test_a_server_that_hangs_while_it_is_given_something_is_left_out_of_the_next_try(
    fleet_of: Callable[..., Fleet], tmp_path: Path, path: str
) -> None:
    """Issue 7, bad input, dead or slow: it holds nobody up twice, and is brought up to date when it answers again."""
    good, slow = Memory("good", {BASE: [0.0], RELEASE: [1.0]}), Memory("slow", {BASE: [0.0], RELEASE: [1.0]})
    fleet = fleet_of(good, slow)
    one, slow.hangs_at = served(tmp_path, RELEASE), path
    with pytest.raises(ModelUnavailable, match="slow"):
        fleet.publish({"release": one}, TEXTS)
    fleet.replicas[1].again = float("inf")  # not looked at meanwhile
    assert good.loaded == {BASE}
    fleet.publish({"release": one}, TEXTS)
    assert RELEASE in good.loaded
    fleet.replicas[1].again, slow.hangs_at = 0.0, ""
    assert [is_asked for is_asked, _ in fleet.told()] == [True, True]
    assert RELEASE in slow.loaded


def test_a_server_that_is_alone_and_too_busy_to_be_given_something_still_gets_requests(
    fleet_of: Callable[..., Fleet], tmp_path: Path
) -> None:
    """A promotion that fails must cost nobody else an answer: there is no other server that they could be sent to."""
    busy = Memory("busy", {BASE: [0.0], RELEASE: [1.0]})
    fleet = fleet_of(busy)
    busy.hangs_at = "/completions"
    with pytest.raises(ModelUnavailable, match="busy"):
        fleet.publish({"release": served(tmp_path, RELEASE)}, TEXTS)
    assert fleet.replicas[0].is_current
    assert busy.loaded == {BASE}


def test_a_folder_that_was_damaged_is_written_again_for_a_server_that_was_started_again(
    fleet_of: Callable[..., Fleet], tmp_path: Path
) -> None:
    """Issue 7, bars: adapter directory damaged; it recovers by itself."""
    server = Memory("one", {BASE: [0.0], RELEASE: [1.0]})
    mended: list[tuple[str, bool]] = []
    fleet = fleet_of(server, mend=lambda key, _: mended.append((key, RELEASE in server.loaded)))
    fleet.publish({"release": served(tmp_path, RELEASE)}, TEXTS)
    assert not mended
    server.loaded = {BASE}
    fleet.lost(fleet.replicas[0])
    assert [is_asked for is_asked, _ in fleet.told()] == [True]
    assert mended == [("release", False)]
    assert RELEASE in server.loaded


def test_what_cannot_be_written_again_keeps_no_server_from_all_else(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Design §4.8, fail towards the base model: one tenant's damage is no other's outage."""
    server = Memory("one", {BASE: [0.0], RELEASE: [1.0], Q: [1.0]})

    def mend(key: str, _known: Any) -> None:
        if key == "bad":
            raise ModelUnavailable("it is damaged.", "")

    fleet = fleet_of(server, mend=mend)
    fleet.publish({"bad": served(tmp_path, RELEASE)}, TEXTS)
    fleet.publish({"good": served(tmp_path, Q)}, TEXTS)
    server.loaded = {BASE}
    fleet.lost(fleet.replicas[0])
    assert [is_asked for is_asked, _ in fleet.told()] == [True]
    assert set(fleet.wanted) == {"good"}
    assert server.loaded == {BASE, Q}


def test_every_question_about_what_a_server_was_given_has_an_end(tmp_path: Path) -> None:
    """An answer to a user may take minutes; these may not, since a flip waits for them."""
    waited: list[float | None] = []

    class Noting(Memory):
        def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:
            waited.append(seconds)
            return super().post(path, body, is_json=is_json)

    fleet = Fleet([Noting("one", {BASE: [0.0], RELEASE: [1.0]})], check=lambda _: None, mend=lambda *_: None)
    fleet.meet()
    fleet.publish({"release": served(tmp_path, RELEASE)}, TEXTS)
    fleet.withdraw(["release"])
    fleet.close()
    assert all(seconds is not None and seconds <= 60 for seconds in waited)
    assert len(waited) >= 5


def test_what_another_adapter_has_too_stays_when_one_goes(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """What is the same by its content has one name; two releases may hold the same."""
    fleet = fleet_of(server := Memory("a", {BASE: [-1.0], RELEASE: [-0.5]}))
    one = served(tmp_path, RELEASE)
    fleet.publish({"rel_1": one}, TEXTS)
    fleet.publish({"rel_2": one}, TEXTS)
    fleet.withdraw(["rel_1"])
    assert RELEASE in server.loaded
    assert (tmp_path / RELEASE).exists()


def test_a_failed_second_release_of_the_same_content_leaves_the_first(fleet_of: Callable[..., Fleet], tmp_path: Path) -> None:
    """Nothing that is served goes with what failed."""
    fleet = fleet_of(server := Memory("a", {BASE: [-1.0], RELEASE: [-0.5]}))
    one = served(tmp_path, RELEASE)
    fleet.publish({"rel_1": one}, TEXTS)
    server.ignored.add(RELEASE)
    with pytest.raises(KeToolsError):
        fleet.publish({"rel_2": one}, TEXTS)
    assert RELEASE in server.loaded
    assert set(fleet.wanted) == {"rel_1"}


# -- the end -------------------------------------------------------------------------------------------------------------------------


def test_what_was_given_is_taken_out_at_the_end_and_what_others_gave_stays(tmp_path: Path) -> None:
    """Issue 7, §2: an owner's names are its own, so that a process that ends takes them out, and no other's."""
    servers = [Memory(name, {BASE: [-1.0], RELEASE: [-0.5], Q: [-0.5]}) for name in "ab"]
    mine, theirs = (Fleet(servers, check=lambda _: None, mend=lambda *_: None) for _ in range(2))
    for fleet in (mine, theirs):
        fleet.meet()
    for fleet, name in ((mine, RELEASE), (theirs, Q)):
        fleet.publish({"rel": served(tmp_path, name)}, TEXTS)
    mine.close()
    assert all(server.loaded == {BASE, Q} for server in servers)


def test_what_a_server_did_not_let_go_is_tried_again_at_the_end(tmp_path: Path) -> None:
    """A server that was away when a release went may be back when the process ends."""
    server = Memory("a", {BASE: [-1.0], RELEASE: [-0.5]})
    fleet = Fleet([server], check=lambda _: None, mend=lambda *_: None)
    fleet.meet()
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    server.refuses = True
    fleet.withdraw(["rel"])
    server.refuses = False
    assert server.loaded == {BASE, RELEASE}
    fleet.close()
    assert server.loaded == {BASE}


def test_what_is_being_given_at_the_end_is_taken_out_too(tmp_path: Path) -> None:
    """A process that is told to end does not wait for a promotion under way."""
    asked, goes_on = threading.Event(), threading.Event()

    class Slow(Memory):
        def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:
            if body.get("model") == RELEASE:
                asked.set()
                assert goes_on.wait(10)
                raise ModelUnavailable("it is asked no more.", "")
            return super().post(path, body, is_json=is_json, seconds=seconds)

    slow = Slow("a", {BASE: [-1.0], RELEASE: [-0.5]})
    fleet = Fleet([slow], check=lambda _: None, mend=lambda *_: None)
    fleet.meet()
    with ThreadPoolExecutor(1) as pool:
        given = pool.submit(fleet.publish, {"rel": served(tmp_path, RELEASE)}, TEXTS)
        assert asked.wait(10)
        assert RELEASE in slow.loaded
        fleet.close()
        assert slow.loaded == {BASE}
        goes_on.set()
        assert isinstance(given.exception(10), ModelUnavailable)


def test_a_server_that_hangs_holds_up_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody waits for a process that was told to end; the servers that answer are told all the same."""
    monkeypatch.setattr(_leaving, "SECONDS", 0.2)
    goes_on = threading.Event()
    patience: list[float | None] = []

    class Hanging(Memory):
        def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:
            if path == "/unload_lora_adapter":
                patience.append(seconds)
                goes_on.wait(10)
                raise ModelUnavailable("it is asked no more.", "")
            return super().post(path, body, is_json=is_json, seconds=seconds)

    hanging, well = (kind(name, {BASE: [-1.0], RELEASE: [-0.5]}) for kind, name in ((Hanging, "hanging"), (Memory, "well")))
    fleet = Fleet([hanging, well], check=lambda _: None, mend=lambda *_: None)
    fleet.meet()
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    began = time.monotonic()
    fleet.close()
    took = time.monotonic() - began
    goes_on.set()
    assert took < 5
    assert all(seconds is not None and seconds <= 0.2 for seconds in patience)
    assert len(patience) == 1
    assert well.loaded == {BASE}


@pytest.mark.parametrize("why", ["is_away", "refuses"])
def test_the_end_is_quiet_where_no_server_answers(tmp_path: Path, why: str) -> None:
    """A server of vLLM ends before ke-tools, as often as not."""
    server = Memory("a", {BASE: [-1.0], RELEASE: [-0.5]})
    fleet = Fleet([server], check=lambda _: None, mend=lambda *_: None)
    fleet.meet()
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    setattr(server, why, True)
    fleet.close()


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_server_that_ends_with_us_is_not_asked_first(tmp_path: Path, *, is_ours: bool) -> None:
    """It forgets all by that; one that another process of the home runs goes on."""
    own = SimpleNamespace(is_ours=is_ours, error=lambda: None, close=lambda: None)
    server = Memory("a", {BASE: [-1.0], RELEASE: [-0.5]})
    fleet = Fleet([server], check=lambda _: None, mend=lambda *_: None, own=own)
    fleet.meet()
    fleet.publish({"rel": served(tmp_path, RELEASE)}, TEXTS)
    fleet.close()
    assert (RELEASE in server.loaded) is is_ours
