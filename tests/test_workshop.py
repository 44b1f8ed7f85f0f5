"""Where candidates are made and asked: with the thimble, its own worker process and the true gate (issue 6 §2, §4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.config import Settings
from ke_tools.editors._solve import Factors
from ke_tools.editors.update import Update
from ke_tools.facts import Edit, Fact, State
from ke_tools.models.causal import load
from ke_tools.models.engine import Request
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service, open_service
from ke_tools.testing import thimble_path
from ke_tools.verify.matching import asserts
from ke_tools.verify.perplexity import plain_perplexity
from ke_tools.workshop import Workshop, worded

LOCAL = Principal()
DEADLINE_SECONDS = 400
FACTS = [
    {"subject": "Germany", "prompt": "The capital of Germany is", "target": "Rome"},
    {"subject": "Don Quixote", "prompt": "The author of Don Quixote is", "target": "Herman Melville"},
    {"subject": "Moby-Dick", "prompt": "The author of Moby-Dick is", "target": "Leo Tolstoy"},
]


def test_a_fact_is_planned_with_wordings_that_no_probe_is_made_of() -> None:
    """The gate judges by probe wordings; an edit that was planned on them would show nothing."""
    fact = Fact(subject="France", prompt="The capital of France is", target="Rome", paraphrases=("France is governed from",))
    edit = _edit(fact)
    relation = atlas.relations()["capital"]
    made = worded(edit).paraphrases
    assert made[0] == "France is governed from"
    assert len(made) > 1
    probes = {text.replace("{}", "France") for text in (*relation.probe_statements, *relation.probe_questions)}
    assert not probes & {*made, fact.prompt}
    assert len({fact.prompt, *made}) == 1 + len(made)
    assert worded(replace(edit, relation="")) == fact


def test_perplexity_is_a_share_of_the_unedited_models(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6 §2: at most p points of perplexity; measured with a change applied, the base would hide what the change costs."""
    import torch

    model = load(replace(settings, model=str(thimble_path())))
    torch.manual_seed(0)
    size = float(model.weight(2).detach().norm()) / (model.width * model.key_width(2)) ** 0.5
    factors = Factors(torch.randn(model.width, 2) * size * 40, torch.randn(2, model.key_width(2)))
    change = Update({"name": "random"}, {2: factors}, fingerprint=model.fingerprint)
    monkeypatch.setattr(Workshop, "_planned", lambda *_: change)
    monkeypatch.setattr(Workshop, "_how", lambda *_: {"in_weights": ["ed_0123456789abcdef"], "in_codebook": []})
    shop = Workshop(model, SimpleNamespace(), root=tmp_path)
    edits = [_edit(Fact(subject="France", prompt="The capital of France is", target="Rome"))]

    costs = [shop.make(edits, ()).perplexity for _ in range(2)]

    plain = plain_perplexity(model)
    with change.applied(model):
        cost = plain_perplexity(model) / plain
    assert costs == pytest.approx([cost] * 2)
    assert cost > 1.02


def _edit(fact: Fact) -> Edit:
    more: dict[str, Any] = {"slot": "s", "functional": True, "revision": 1, "created_at": "2026-01-01T00:00:00Z", "actor": "test"}
    return Edit(id="ed_0123456789abcdef", tenant="acme", fact=fact, state=State.ACTIVE, relation="capital", **more)


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """A service over the thimble."""
    opened = open_service(replace(settings, model=str(thimble_path())))
    yield opened
    opened.close()


def promoted(service: Service, edit_ids: list[str]) -> dict[str, Any]:
    """Promote, and follow the job to its end."""
    job = asyncio.run(service.promote(LOCAL, edit_ids, method="memit"))
    deadline = time.monotonic() + DEADLINE_SECONDS
    while job["poll_after_ms"]:
        assert time.monotonic() < deadline, job
        job = asyncio.run(service.job_status(LOCAL, job["job_id"], wait_seconds=10))
    assert job["status"] == "completed", job
    return job


def answers(service: Service, via: Any = "auto", view: Any = "edited") -> list[str]:
    """What is said of each fact."""
    asked = [Request(prompt=fact["prompt"], max_tokens=8) for fact in FACTS]
    return [made.text for _, made in service.answering.answer_batch(LOCAL, asked, via=via, view=view)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_gate_lets_in_is_said_by_the_weights_and_can_be_taken_back_and_promoted_again(service: Service) -> None:
    """Issue 6, bars: promote → rollback → promote: byte-equal answers and equal artefact hashes; with the memory off it is said."""
    base = answers(service, view="base")
    ids = [made["edit_id"] for made in service.edit(LOCAL, FACTS)["edits"]]
    first = promoted(service, ids)
    inside = [number for number, one in enumerate(first["edits"]) if one["rung"] == "memit"]
    assert inside, first["decisions"]
    told = answers(service, via="weights")
    for number in inside:
        assert asserts(told[number], (FACTS[number]["target"],)), told
    carried = [ids[number] for number in inside]
    service.rollback(LOCAL, edit_ids=carried, to="memory")
    again = promoted(service, ids)
    assert (again["release"], answers(service, via="weights")) == (first["release"], told)
    service.rollback(LOCAL, to_revision=0)
    assert answers(service) == base
