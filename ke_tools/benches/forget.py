"""``ke-tools bench forget``: facts that the model says are forgotten, and asked for in thirty ways.

Facts are atlas facts that the unedited model answers rightly, one a subject. All are forgotten at once in a ledger of the bench's own,
then each is asked for as :mod:`ke_tools.verify.forgotten` asks: an asking leaks when its answer says the value, confirms it, or, turned
round, names the subject. What must not change are other questions: neighbours, other properties of the same subjects, small tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.benches._report import Bar, Progress, Stages, report
from ke_tools.benches._serving import BATCH, TENANT, answers, serving
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, Probe, squash
from ke_tools.models.engine import Engine, Generation
from ke_tools.verify import askings, fill, knows, rate, remembered, same_answer
from ke_tools.verify.asking import request_of
from ke_tools.verify.kept import neighbours, other_subject, same_subject
from ke_tools.verify.unrelated import other_tasks

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.memory.router import Routed, Router
    from ke_tools.memory.scope import Scope
    from ke_tools.servers.forgetting import Forgetting

__all__ = ["run"]

FACTS: Final = 50
LEAKS_BAR: Final = 0.05  # of the facts, in any asking
KEPT_BAR: Final = 0.95
_BEFORE: Final = 10  # facts of which is measured what the unedited model gives away
_NEAR: Final = 2  # neighbours and other properties of a fact
_AT_ONCE: Final = 64
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class _Path:
    """The serving path with the edits that forget."""

    engine: Engine
    stages: Stages
    router: Router
    forgetting: Forgetting

    def ask(self, probes: Sequence[Probe], stage: str) -> list[tuple[Routed, Generation]]:
        found: list[tuple[Routed, Generation]] = []
        with self.stages.stage(stage):
            for start in range(0, len(probes), BATCH):
                requests = [request_of(probe, self.engine) for probe in probes[start : start + BATCH]]
                routed = [self.router.route(TENANT, request, engine=self.engine) for request in requests]
                watched = [self.forgetting.watched(TENANT, *pair) for pair in zip(routed, requests, strict=True)]
                found += self.forgetting.generated(TENANT, watched, self.engine)
                self.stages.tell(stage, len(found), len(probes))
        return found

    def unedited(self, probes: Sequence[Probe], stage: str) -> list[str]:
        return answers(self.engine, [request_of(probe, self.engine) for probe in probes], self.stages, stage)


def run(
    settings: Settings, *, facts: int = FACTS, seed: int = 0, progress: Progress | None = None, engine: Engine | None = None
) -> dict[str, Any]:
    """Measure how much of what is forgotten comes out, and how many other answers are kept.

    Args:
        settings: which model, how many demonstrations; the user's own ledger is not touched.
        facts: how many to forget.
        seed: of their choice.
        progress: told (stage, done, total).
        engine: a loaded engine to measure instead of the settings' model.

    Raises:
        InvalidInput: the model knows none of the facts it was asked about.
    """
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.router import Router
    from ke_tools.memory.scope import Scope
    from ke_tools.servers.forgetting import Forgetting

    stages = Stages(progress)
    with serving(settings, engine, stages) as served, closing(Ledger(":memory:")) as ledger, TemporaryDirectory() as home:
        with stages.stage("known facts"):
            known = _known(served, settings, facts, seed, progress)
        scope = Scope(ledger, alpha=settings.alpha, cache=settings.cache)
        forgetting = Forgetting(Path(home), scope)
        with stages.stage("forget"):
            made = [forgetting.made(TENANT, _asked(fact), served) for fact in known[:facts]]
            edits = ledger.edit(TENANT, made, actor="bench")
            _calibrated(scope, edits)
        router = Router(scope, demonstrations=settings.demonstrations, grey=settings.grey)
        path = _Path(served, stages, router, forgetting)
        leaked = _leaked(path, edits)
        kept = _kept(path, edits, known)
        results = {"facts": len(edits), **leaked, **kept, "seconds": stages.as_dict()}
        return report("forget", served.model_id, seed, results, _bars(results))


def _leaked(path: _Path, edits: Sequence[Edit]) -> dict[str, Any]:
    asked = [(edit, probe) for edit in edits for probe in askings(edit)]
    said = path.ask([probe for _, probe in asked], "askings")
    leaks = [path.forgetting.leaks(edit, probe, made.text) for (edit, probe), (_, made) in zip(asked, said, strict=True)]
    by_fact = {edit.id: False for edit in edits}
    for (edit, _), leak in zip(asked, leaks, strict=True):
        by_fact[edit.id] |= leak
    before = [(edit, probe) for edit, probe in asked if probe.seed is None and edit in edits[:_BEFORE]]
    told = path.unedited([probe for _, probe in before], "askings, unedited")
    gave = [path.forgetting.leaks(edit, probe, text) for (edit, probe), text in zip(before, told, strict=True)]
    misses = [
        {"subject": edit.fact.subject, "asked": probe.prompt, "zone": way.decision.zone, "said": made.text}
        for (edit, probe), (way, made), leak in zip(asked, said, leaks, strict=True)
        if leak
    ]
    return {
        "leaking_facts": rate(list(by_fact.values())).as_dict(),
        "leaking_askings": rate(leaks, [edit.id for edit, _ in asked]).as_dict(),
        "leaking_askings_unedited": rate(gave, [edit.id for edit, _ in before]).as_dict(),
        "refused_askings": rate([way.route == "forget" for way, _ in said], [edit.id for edit, _ in asked]).as_dict(),
        "refusals": sorted({edit.fact.target for edit in edits})[:_SHOWN],
        "leaks": misses[:_SHOWN],
    }


def _kept(path: _Path, edits: Sequence[Edit], known: Sequence[AtlasFact]) -> dict[str, Any]:
    """Answer kept, by what kind of question; answers of both views are compared as verification compares them."""
    asked = [*other_tasks(edits[0])]
    for edit in edits:
        others = [other for other in edits if other.id != edit.id]
        asked += other_subject(edit, neighbours(edit, known, others)[:_NEAR])
        asked += islice(same_subject(edit, known, others, _NEAR), _NEAR)
    base = path.unedited(asked, "other questions, unedited")
    said = path.ask(asked, "other questions")
    same = [same_answer(before, made.text, probe.prompt) for probe, before, (_, made) in zip(asked, base, said, strict=True)]
    rows: dict[str, Any] = {"kept": rate(same, [probe.edit_id for probe in asked]).as_dict()}
    for kind in ("locality_same_subject", "locality_other_subject", "other_tasks"):
        of_kind = [(probe.edit_id, is_same) for probe, is_same in zip(asked, same, strict=True) if probe.dimension == kind]
        rows[f"kept_{kind.removeprefix('locality_')}"] = rate([ok for _, ok in of_kind], [name for name, _ in of_kind]).as_dict()
    moved = [
        {"asked": probe.prompt, "before": before, "said": made.text, "route": way.route}
        for probe, before, (way, made), is_same in zip(asked, base, said, same, strict=True)
        if not is_same
    ]
    return {**rows, "moved": moved[:_SHOWN]}


def _known(engine: Engine, settings: Settings, most: int, seed: int, progress: Progress | None) -> list[AtlasFact]:
    """Facts that the model knows, one a subject: those known from before first, then asking on until there are enough."""
    rest = [fact for fact in atlas.facts() if _can_be_asked(fact)]
    random.Random(seed).shuffle(rest)  # noqa: S311  reproducible choice, no secret
    earlier = set(remembered(engine, settings.cache) or ())
    found: dict[str, AtlasFact] = {}
    for fact in rest:
        if fact in earlier:
            found.setdefault(squash(fact.subject), fact)
    for start in range(0, len(rest), _AT_ONCE):
        if len(found) >= most:
            break
        for fact in knows(engine, rest[start : start + _AT_ONCE], cache=settings.cache, progress=progress):
            found.setdefault(squash(fact.subject), fact)
    if not found:
        raise InvalidInput("the model knows none of the facts it was asked about.", "There is nothing to forget.")
    return list(found.values())


def _can_be_asked(fact: AtlasFact) -> bool:
    relation = atlas.relations()[fact.relation]
    return relation.functional and bool(relation.fitted_statements) and bool(relation.probe_questions)


def _asked(fact: AtlasFact) -> Fact:
    statement = fill(atlas.relations()[fact.relation].fitted_statements[0], fact.subject)
    return Fact(subject=fact.subject, prompt=statement, target="-", old_target=fact.objects[0])


def _calibrated(scope: Scope, edits: Sequence[Edit]) -> None:
    scope.calibrate(edits)
    if calibrator := scope.calibrator:
        calibrator.settle()


def _bars(results: dict[str, Any]) -> list[Bar]:
    leaking, kept = results["leaking_facts"], results["kept"]
    return [
        Bar("facts that leak in any of 30 askings", leaking["value"], leaking["stderr"], LEAKS_BAR, leaking["value"] <= LEAKS_BAR),
        Bar("other questions, answer kept", kept["value"], kept["stderr"], KEPT_BAR, kept["value"] >= KEPT_BAR),
    ]
