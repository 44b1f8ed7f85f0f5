"""The embedded model in a real vLLM: planned edits, the reader, and both in one adapter say what they say in transformers."""

from __future__ import annotations

import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest
import torch
from starlette.testclient import TestClient

from ke_tools import releases
from ke_tools.config import Settings
from ke_tools.editors.grace import GRACE
from ke_tools.editors.memit import MEMIT
from ke_tools.facts import Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.models import causal, embedded
from ke_tools.models.engine import Request
from ke_tools.models.reader import card
from ke_tools.servers.app import build_app
from ke_tools.servers.engines._probing import forced, furthest
from ke_tools.servers.engines.vllm import VLLM
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from tests.vllm.conftest import LORA, OURS, Server, let_go

if TYPE_CHECKING:
    from ke_tools.editors.codebook import Codebook
    from ke_tools.editors.update import Update
    from ke_tools.models.causal import CausalModel
    from ke_tools.releases import Release
    from ke_tools.servers.engines._probing import Scores

RUNNING: Final = os.environ.get("KE_VLLM_EMBEDDED_URL", "")  # read before a test takes KE_* away
LOCAL: Final = Principal()
BASE: Final = "http://127.0.0.1:8765"
PLANNED: Final = (
    Fact(subject="Australia", prompt="The capital of Australia is", target="Lima"),
    Fact(subject="Space Needle", prompt="The Space Needle is in the city of", target="Oslo"),
)
LOOKED_UP: Final = (
    Fact(subject="Brazil", prompt="The language of Brazil is", target="Danish"),
    Fact(subject="Japan", prompt="The currency of Japan is the", target="franc"),
)
REMEMBERED: Final = {"subject": "France", "prompt": "The capital of France is", "target": "Bergen"}
QUESTION: Final = "What is the capital of France?"
TEXTS: Final = (
    *(f"{fact.prompt} {fact.target}." for fact in (*PLANNED, *LOOKED_UP)),
    "It rains in the mountains.",
    "<|im_start|>user\nWhat is the capital of Australia?<|im_end|>\n<|im_start|>assistant\nThe capital of Australia is Lima.",
    "Ships wait in the harbour until the storm is over, and their crews mend what it broke. "
    "In 1962 the city held a fair, for which a tower of 184 metres was built: 12,345 + 678 = 13,023. " * 3,
)
MORE: Final = (  # by which the base model's own difference is measured too, as a few tokens tell little of the largest one
    "def area(width: float, height: float) -> float:\n    return width * height  # in metres\n\nprint(area(2.5, 4))",
    "Der Zug fährt um 7:45 Uhr ab; à Paris, il pleut depuis hier. The zookeeper's quixotic yak vexed Jim.",
    "Water boils at 100 degrees Celsius at sea level, and at less where the air is thinner. A chemist writes H2O for it.",
)
MOST: Final = 2e-4  # nats; issue 7's bar, beside twice what the base model differs by
TIMES: Final = 3
LOWER: Final = (*LORA[: LORA.index("--max-lora-rank") + 1], "32", "--max-loras", "4", "--max-cpu-loras", "16")  # quicker on a processor


@dataclass(frozen=True)
class World:
    """An editing copy of the model, planned edits, and releases of them."""

    model: CausalModel
    update: Update
    codebook: Codebook  # for the model as the update leaves it
    plain: Codebook
    reader: Path
    adapter: Release
    book: Release
    both: Release


@pytest.fixture(scope="module")
def starting(new_server: Callable[..., Server], cache: Path) -> Iterator[Server]:
    """A server that starts while edits are planned; or the one at ``KE_VLLM_EMBEDDED_URL``."""
    path = embedded.locate(cache)
    assert path is not None, "the embedded model is not in the cache; `ke-tools model fetch` puts it there"
    if RUNNING:
        yield Server(Path(os.devnull), int(RUNNING.rpartition(":")[2]))
        return
    made = new_server(*LOWER, checkpoint=path, **OURS)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def world(starting: Server, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Edits by MEMIT and GRACE, planned with few statistics in layers that are given, so that no cache is needed."""
    del starting
    folder = tmp_path_factory.mktemp("world")
    model = causal.load(Settings(home=folder, cache=cache, device="cpu"))
    written = MEMIT(layers=(8, 9, 10), site="subject", tokens=800, contexts=2, damping="none")
    update = written.plan(written.prepare(model), PLANNED)
    looked_up = GRACE(layer=20, contexts=1, keys=0, tokens=200)
    prepared = looked_up.prepare(model)
    plain = looked_up.plan(prepared, LOOKED_UP)
    with update.applied(model):
        codebook = looked_up.plan(prepared, LOOKED_UP)
    reader = card.find(model.fingerprint, folder)
    assert reader is not None

    def build(*facts: Fact, **parts: Any) -> Release:
        with Ledger(":memory:") as ledger:
            edits = ledger.edit("default", facts, actor="tests")
        return releases.build(folder / "releases", model, edits=edits, how={}, **parts)

    return World(
        model,
        update,
        codebook,
        plain,
        reader,
        build(*PLANNED, update=update),
        build(*LOOKED_UP, codebook=plain),
        build(PLANNED[0], LOOKED_UP[0], update=update, codebook=codebook),
    )


@pytest.fixture(scope="module")
def replica(starting: Server, world: World) -> Server:
    """The server, once it answers."""
    del world  # planned meanwhile
    if not RUNNING:
        starting.wait()
    return starting


@pytest.fixture
def connect(replica: Server, world: World, cache: Path, tmp_path: Path) -> Iterator[Callable[..., VLLM]]:
    """Connects to the first server; what was loaded is taken out at the end."""
    made: list[VLLM] = []

    def connect(reader: Path | None = None) -> VLLM:
        path = embedded.locate(cache)
        assert path is not None
        fingerprint = world.model.fingerprint
        made.append(VLLM([replica.url], path=path, fingerprint=fingerprint, root=tmp_path / "served", reader=reader))
        return made[-1]

    yield connect
    let_go(made)


def tokens(model: CausalModel, texts: Sequence[str]) -> list[list[int]]:
    """Texts as the model reads them."""
    return [list(model.tokenizer(text)["input_ids"]) for text in texts]


def expected(model: CausalModel, texts: Sequence[str] = TEXTS) -> Scores:
    """The log-probability of each token behind those before it, as transformers computes them."""
    found = []
    with torch.no_grad():
        for ids in tokens(model, texts):
            scores = torch.log_softmax(model.model(torch.tensor([ids])).logits[0, :-1].float(), -1)
            found.append([float(row[token]) for row, token in zip(scores, ids[1:], strict=True)])
    return found


def asked(engine: VLLM, adapter: str, model: CausalModel, texts: Sequence[str] = TEXTS) -> Scores:
    """The same of the server, all texts in one request."""
    return forced(engine._fleet.replicas[0].server, engine.served_as(adapter), tokens(model, texts))


def one_by_one(engine: VLLM, model: CausalModel) -> Scores:
    """What the base name gives for text by text, so that no batch depends on the moment."""
    return [row for text in TEXTS for row in asked(engine, "", model, [text])]


def own_difference(engine: VLLM, model: CausalModel) -> float:
    """How far the base model is from itself in the other engine."""
    texts = (*TEXTS, *MORE)
    return furthest(asked(engine, "", model, texts), expected(model, texts))


def greedy(engine: VLLM, adapter: str = "") -> list[tuple[str, list[float]]]:
    """What is said behind each edited prompt, one after the other, with its log-probabilities."""
    prompts = (fact.prompt for fact in (*PLANNED, *LOOKED_UP))
    made = [engine.generate([Request(prompt=prompt, max_tokens=3, adapter=adapter, logprobs=0)])[0] for prompt in prompts]
    return [(one.text, [token.logprob for token in one.logprobs or ()]) for one in made]


@contextmanager
def reading(world: World) -> Iterator[None]:
    """The reader on the model, by PEFT."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft and transformers, between themselves
        tuned = PeftModel.from_pretrained(world.model.model, world.reader)
    try:
        yield
    finally:
        tuned.unload()


def told(what: str, **values: Any) -> None:
    """Print what benchmarks/LOG.md keeps."""
    print({what: values})  # noqa: T201


def test_planned_edits_equal_transformers_and_the_base_stays_to_the_bit(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, bars: MEMIT's form, GRACE's, and both in one release, in float32; the base name before, while and after."""
    engine, model = connect(), world.model
    before, said = one_by_one(engine, model), greedy(engine)
    base, own = expected(model), own_difference(engine, model)
    with world.update.applied(model):
        changed = expected(model)
        with world.codebook.applied(model):
            both = expected(model)
    with world.plain.applied(model):
        looked_up = expected(model)
    wanted = {world.adapter.name: changed, world.book.name: looked_up, world.both.name: both}
    for release in (world.adapter, world.book, world.both):
        engine.load_adapter(release.name, release.folder)
    off = [furthest(asked(engine, name, model), scores) for name, scores in wanted.items()]
    effects = [furthest(changed, base), furthest(looked_up, base), furthest(both, changed)]
    told("largest difference in log-probability", base=own, update=off[0], codebook=off[1], both=off[2], effects=effects)
    assert min(effects) > 1
    assert max(own, *off) <= min(2 * own, MOST)
    assert one_by_one(engine, model) == before
    assert greedy(engine) == said
    spoken = [text for text, _ in greedy(engine, world.both.name)]
    assert all(fact.target in text for fact, text in zip((*PLANNED, *LOOKED_UP), spoken, strict=True)), spoken
    for name in wanted:
        engine.unload_adapter(name)
    assert one_by_one(engine, model) == before
    assert greedy(engine) == said


def test_the_reader_alone_and_with_a_release_in_one_adapter_equals_transformers(world: World, connect: Callable[..., VLLM]) -> None:
    """Issue 7, §4 and §6: the reader as an adapter; attention from the reader, down_proj from the release, a codebook beside."""
    engine, model = connect(world.reader), world.model
    base, own = expected(model), own_difference(engine, model)
    engine.load_adapter(world.both.name, world.both.folder)
    with reading(world):
        read = expected(model)
        with world.update.applied(model), world.codebook.applied(model):
            both = expected(model)
    wanted = {"reader": read, f"reader+{world.both.name}": both}
    off = [furthest(asked(engine, adapter, model), scores) for adapter, scores in wanted.items()]
    told("the same with the reader", base=own, reader=off[0], both=off[1])
    assert min(furthest(read, base), furthest(both, read)) > 1
    assert max(own, *off) <= min(2 * own, MOST)


@pytest.fixture(scope="module")
def service(replica: Server, world: World, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A home whose model the server serves."""
    settings = Settings(home=tmp_path_factory.mktemp("home"), cache=cache, engine="vllm", vllm_url=(replica.url,), device="cpu")
    shutil.copytree(world.adapter.folder, settings.releases / world.adapter.name)
    made = open_service(settings)
    made.models.engine(wait_seconds=120)
    yield made
    made.close()


@pytest.fixture(scope="module")
def planned(service: Service) -> list[str]:
    """The edits of the release, as this home knows them."""
    made = service.edit(LOCAL, [{"subject": fact.subject, "prompt": fact.prompt, "target": fact.target} for fact in PLANNED])
    return [edit["edit_id"] for edit in made["edits"]]


@pytest.fixture
def names(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The adapters that requests ask for, as they come."""
    engine: Any = service.models.engine(wait_seconds=0)
    served_as, noted = engine.served_as, []

    def noting(adapter: str) -> str:
        noted.append(adapter)
        return str(served_as(adapter))

    monkeypatch.setattr(engine, "served_as", noting)
    return noted


def said(service: Service, question: str, model: str = embedded.EMBEDDED.name) -> tuple[str, str]:
    """The answer at the endpoint, whole and streamed, which must be the same; and the route."""
    asked_for: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0}
    with TestClient(build_app(service), BASE) as http, openai.OpenAI(base_url=f"{BASE}/v1", api_key="any", http_client=http) as client:
        answer = client.chat.completions.with_raw_response.create(**asked_for)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in client.chat.completions.create(**asked_for, stream=True))
    assert answer.parse().choices[0].message.content == streamed
    return streamed, str(answer.headers["ke-route"])


def test_a_question_about_an_edit_is_answered_by_the_reader_and_beside_a_release_by_both(
    service: Service, world: World, planned: list[str], names: list[str]
) -> None:
    """Issue 7, §4: memory-routed requests by the reader's adapter, with a promoted release by one adapter that holds both."""
    before, revision = said(service, QUESTION), service.revision
    assert "Paris" in before[0]
    assert before[1].startswith("base")
    assert set(names) == {""}
    service.edit(LOCAL, [REMEMBERED])
    names.clear()
    answer, route = said(service, QUESTION)
    assert "Bergen" in answer
    assert route == "memory"
    assert set(names) == {"reader"}
    service.ledger.promote("default", planned, release=world.adapter.name, actor="tests")
    names.clear()
    answer, route = said(service, QUESTION)
    assert "Bergen" in answer
    assert route == "memory"
    assert set(names) == {f"reader+{world.adapter.name}"}
    assert said(service, QUESTION, f"{embedded.EMBEDDED.name}:base") == (before[0], "base")
    service.rollback(LOCAL, to_revision=revision)
    assert said(service, QUESTION) == before


def test_how_soon_a_release_answers_and_is_taken_back(service: Service, world: World, planned: list[str]) -> None:
    """Issue 7, bars: publish, roll back, from the call to the first answer; for the embedded model logged, here of one server."""
    engine: Any = service.models.engine(wait_seconds=0)
    service.promotions.drop([world.adapter.name], engine)
    before = service.revision

    def ask() -> tuple[str, str]:
        [(routed, answer)] = service.answering.answer_batch(LOCAL, [Request(prompt=PLANNED[0].prompt, max_tokens=1)])
        return str(routed.route), str(answer.text)

    first = ask()
    published, taken_back = [], []
    for _ in range(TIMES):
        began = time.perf_counter()
        service.ledger.promote("default", planned, release=world.adapter.name, actor="tests")
        _, answer = ask()
        published.append(time.perf_counter() - began)
        assert world.adapter.name in engine.adapters
        assert answer.strip() == PLANNED[0].target
        began = time.perf_counter()
        service.rollback(LOCAL, to_revision=before)
        again = ask()
        taken_back.append(time.perf_counter() - began)
        assert again == first
        service.promotions.drop([world.adapter.name], engine)
    told("seconds", publish=round(statistics.median(published), 2), rollback=round(statistics.median(taken_back), 2))
