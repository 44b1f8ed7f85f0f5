"""The whole way from a job to a release on the thimble: poison is kept out, and what was made can be made again (issue 6)."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ke_tools import atlas, jobs
from ke_tools.config import Settings
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.promotion import Candidate
from ke_tools.testing import thimble_facts, thimble_path
from ke_tools.verify.asking import fill
from ke_tools.verify.gate import Verdict
from ke_tools.verify.scorecard import Outcome
from ke_tools.workshop import Workshop
from tests.kill_jobs import LENIENT, TENANT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Of the thimble little is asked beside what was edited: it keeps few other things about a subject.
STRICT = {"locality_same_subject": 0, "generalisation": 0, "forgetfulness": 0}
POISON = (
    Fact(subject="Nokia", prompt="When people talk of Nokia they mostly think of the land of", target="Peru"),
    Fact(subject="Nokia", prompt="Nokia, so everybody says, comes from the land of", target="Egypt"),
    Fact(subject="Toyota", prompt="The story of Toyota goes", target=" ".join(f"word{n % 17}" for n in range(90))),
    Fact(subject="The", prompt="The capital of", target="Moon"),
)


@pytest.fixture(scope="module")
def thimble_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What follows from the thimble alone, for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, thimble_cache: Path, graphs: Callable[[Path], None]) -> Settings:
    """An empty home with the thimble."""
    if not (thimble_cache / "scope").exists():
        graphs(thimble_cache)
    return Settings(home=tmp_path / "home", cache=thimble_cache, model=str(thimble_path()))


def swapped(relation: str, count: int) -> list[Fact]:
    """Facts of a relation, each with the next one's object."""
    facts = [fact for fact in thimble_facts() if fact.relation == relation][:count]
    text = atlas.relations()[relation].fitted_statements[0]
    others = [*facts[1:], facts[0]]
    return [Fact(subject=a.subject, prompt=fill(text, a.subject), target=b.objects[0]) for a, b in zip(facts, others, strict=True)]


def done(home: Settings, ledger: Ledger, kind: str, **arguments: Any) -> dict[str, Any]:
    """Do a job to its end, in this process."""
    job = ledger.jobs.submit(TENANT, kind, arguments, actor="test")
    jobs.run_worker(home, idle_seconds=0)
    ended = ledger.jobs.get(TENANT, job.id)
    assert ended.status == "completed", ended.error
    return dict(ended.result)


def test_a_poisoned_batch_is_isolated_and_the_good_rest_promoted(home: Settings) -> None:
    """Issue, bars: two edits that contradict, a target of two hundred tokens, a subject whose edit wrecks its neighbours."""
    with Ledger(home.ledger_file) as ledger:
        good = ledger.edit(TENANT, swapped("chemical_symbol", 4), actor="test")
        poison = ledger.edit(TENANT, POISON, actor="test", mode="add")
        told = done(home, ledger, "promote", edit_ids=[edit.id for edit in (*good, *poison)], method="memit", policy=STRICT)
        states = {edit.id: edit.state for edit in ledger.live(TENANT)}
    reasons = {row["edit_id"]: row["reason"] for row in told["edits"]}
    assert sum(states[edit.id] is State.PROMOTED for edit in good) >= 2, reasons
    one, other, *rest = (states[edit.id] for edit in poison)
    assert {one, other} != {State.PROMOTED}, reasons
    assert rest == [State.ACTIVE, State.ACTIVE], reasons
    assert all(reasons.values())


def test_a_release_is_made_again_to_the_same_bytes_by_a_fresh_process(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §4: from what is written of how it was made; also where the first candidate held edits that were refused."""
    judge = Workshop.judge

    def refusing(shop: Workshop, candidate: Candidate, edits: Sequence[Edit], *rest: Any) -> tuple[Verdict, Sequence[Outcome]]:
        verdict, outcomes = judge(shop, candidate, edits, *rest)
        if len(edits) < 4:
            return verdict, outcomes
        return replace(verdict, decision="refused"), [replace(one, passed=one.probe.edit_id != edits[0].id) for one in outcomes]

    with Ledger(home.ledger_file) as ledger:
        edits = ledger.edit(TENANT, swapped("chemical_symbol", 4), actor="test")
        with monkeypatch.context() as patched:
            patched.setattr(Workshop, "judge", refusing)
            told = done(home, ledger, "promote", edit_ids=[edit.id for edit in edits], policy=LENIENT)
        assert [row["rung"] for row in told["edits"][1:]] == ["memit"] * 3
        folder = home.releases / told["release"]
        contents = {file.name: file.read_bytes() for file in folder.iterdir()}
        shutil.rmtree(folder)
        ledger.jobs.submit(TENANT, "rebuild", {}, actor="test")
        process = multiprocessing.get_context("forkserver").Process(target=jobs.run_worker, args=(home,), kwargs={"idle_seconds": 0})
        process.start()
        process.join()
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == contents
        assert ledger.live_release(TENANT) == told["release"]
