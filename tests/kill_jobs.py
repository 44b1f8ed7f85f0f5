"""What the processes of tests/test_kills.py do: change a home until they are killed, and look at what is left of it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ke_tools import atlas, releases
from ke_tools.config import Settings
from ke_tools.facts import Edit, Fact, State
from ke_tools.jobs import Reporter, run_worker
from ke_tools.memory.joblog import Job
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Request
from ke_tools.servers import promoting
from ke_tools.servers.promotions import Promotions
from ke_tools.testing import thimble_facts
from ke_tools.verify.asking import fill

TENANT: Final = "acme"
LENIENT: Final = {
    **dict.fromkeys(("generalisation", "locality_same_subject", "locality_other_subject", "forgetfulness", "earlier"), 0),
    "reliability": 0.01,
    "perplexity": 99.0,
    "growth": 99.0,
    "probes": 4,
    "most": 8,
}
_SUBJECTS: Final = 12
_MOST_LIVE: Final = 3  # as planning takes longer with each
MARK: Final = "mark"


@dataclass(frozen=True)
class Found:
    """A home as a fresh process finds it."""

    damage: tuple[str, ...]  # what is wrong, in words
    live: str
    answers: Mapping[str, tuple[str, ...]]  # of the unedited model (""), and of what is served
    spoken: int  # of the promoted edits' targets
    promoted: int
    leftovers: tuple[str, ...]  # of builds that were cut short


def wrong_facts() -> list[Fact]:
    """Facts that the thimble does not believe, about subjects that it knows."""
    return list(islice(_wrong_facts(), _SUBJECTS))


def _wrong_facts() -> Iterator[Fact]:
    facts = [fact for fact in thimble_facts() if atlas.relations()[fact.relation].fitted_statements]
    for fact in facts:
        others = [other.objects[0] for other in facts if other.relation == fact.relation and other.objects[0] != fact.objects[0]]
        if others:
            prompt = fill(atlas.relations()[fact.relation].fitted_statements[0], fact.subject)
            yield Fact(subject=fact.subject, prompt=prompt[:1].upper() + prompt[1:], target=others[0])


def change(settings: Settings, journal: Path, seed: int) -> None:
    """Correct, promote and roll back for ever; what is acknowledged is noted behind it, what is taken back before it too."""
    dice, note = random.Random(seed), Journal(journal)
    with Ledger(settings.ledger_file) as ledger:
        while True:
            live = ledger.live(TENANT)
            if len(live) >= _MOST_LIVE or (ledger.live_release(TENANT) and dice.random() < 0.4):
                take_back(settings, ledger, dice.choice(live), note)
                continue
            fact = dice.choice([fact for fact in wrong_facts() if fact.subject not in {edit.fact.subject for edit in live}])
            [edit] = ledger.edit(TENANT, [fact], actor="test")
            note(made=edit.id, target=fact.target)
            promote(settings, ledger, dice.choice(["memit", "grace"]), note)


def take_back(settings: Settings, ledger: Ledger, edit: Edit, note: Journal) -> None:
    """Roll an edit back, or take it out of the weights and then roll it back."""
    note(leaving=edit.id)
    release = Promotions(settings, ledger).without(TENANT, [edit.id])
    if release is not None and edit.revision % 2:
        ledger.demote(TENANT, [edit.id], release=release, actor="test")
        release = None
    ledger.rollback(TENANT, [edit.id], actor="test", release=release)
    note(gone=edit.id)


def promote(settings: Settings, ledger: Ledger, method: str, note: Journal) -> None:
    """Promote what is active, as the worker does."""
    waiting = [edit.id for edit in ledger.live(TENANT) if edit.state is State.ACTIVE]
    job = ledger.jobs.submit(TENANT, "promote", {"edit_ids": waiting, "method": method, "policy": LENIENT}, actor="test")
    run_worker(settings, handlers={"promote": "tests.kill_jobs:run_job"}, idle_seconds=0)
    ended = ledger.jobs.get(TENANT, job.id)
    if ended.status != "completed":
        note(broken=f"{ended.status}: {ended.error}")
    else:
        note(completed=job.id, release=ended.result["release"], revision=ended.result["revision"])


def run_job(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Promote, and leave a mark in the home when that is about to take effect."""
    commit = reporter.commit

    def marked(effect: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        (settings.home / MARK).touch()
        return commit(effect)

    reporter.commit = marked  # type: ignore[method-assign]
    return promoting.run_job(settings, ledger, job, reporter)


class Journal:
    """Lines that are there whatever happens to the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, **what: Any) -> None:
        """Write a line."""
        os.write(self._descriptor, (json.dumps(what) + "\n").encode())


def look(settings: Settings, journal: Path) -> Found:
    """Examine a home after a kill."""
    from ke_tools.servers.engines.loading import load_engine

    root = settings.releases
    engine: Any = load_engine(settings, lambda _said: None)
    with Ledger(settings.ledger_file) as ledger:
        damage = [*_untrue(ledger, journal), *(f"{finding.kind}: {finding.message}" for finding in ledger.audit())]
        folders = sorted(path.name for path in root.iterdir()) if root.exists() else []
        whole = [name for name in folders if name.startswith("rel_")]
        damage += [str(error) for name in whole if (error := _unreadable(root, name))]
        live, prompts = ledger.live_release(TENANT), [fact.prompt for fact in wrong_facts()]
        promotions = Promotions(settings, ledger)
        adapter = promotions.adapter(TENANT, engine)
        if adapter != live:
            damage.append(f"{live} is live and {adapter or 'nothing'} is served: {promotions.trouble}")
        told = {name: _answers(engine, prompts, name) for name in {"", adapter}}
        targets = {edit.fact.prompt: edit.fact.target for edit in ledger.edits(TENANT, states=[State.PROMOTED], limit=1000).items}
        spoken = [told[adapter][prompts.index(prompt)].strip().startswith(target) for prompt, target in targets.items()]
        return Found(tuple(damage), live, told, sum(spoken), len(spoken), tuple(sorted({*folders} - {*whole})))


def _answers(engine: Any, prompts: Sequence[str], adapter: str) -> tuple[str, ...]:
    return tuple(made.text for made in engine.generate([Request(prompt=prompt, max_tokens=6, adapter=adapter) for prompt in prompts]))


def _unreadable(root: Path, name: str) -> Exception | None:
    try:
        releases.opened(root, name)
    except Exception as error:  # noqa: BLE001  whatever it is, it is what the test is about
        return error
    return None


def _untrue(ledger: Ledger, journal: Path) -> Iterator[str]:
    """What was acknowledged, and is not so."""
    told = [json.loads(line) for line in journal.read_text("utf-8").splitlines()] if journal.exists() else []
    leaving = {line["leaving"] for line in told if "leaving" in line}
    gone = {line["gone"] for line in told if "gone" in line}
    for line in told:
        if "broken" in line:
            yield line["broken"]
        if "completed" in line:
            job = ledger.jobs.get(TENANT, line["completed"])
            if job.status != "completed" or ledger.release_at(TENANT, line["revision"]) != line["release"]:
                yield f"{job.id} was completed, and is {job.status}"
        if "made" in line:
            edit = ledger.get(TENANT, line["made"])
            if edit.fact.target != line["target"] or (not edit.is_live and edit.id not in leaving):
                yield f"{edit.id} was acknowledged, and is {edit.state.value}: {edit.fact.target}"
            if edit.id in gone and edit.is_live:
                yield f"{edit.id} was taken back, and acts"
    for event in ledger.history(TENANT, limit=1000).items:
        if event.action == "promote" and (job := ledger.jobs.get(TENANT, event.payload["evidence"]["job"])).status != "completed":
            yield f"{job.id} took effect, and is {job.status}"
