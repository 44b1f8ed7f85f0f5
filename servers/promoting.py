"""What the worker does with a ``promote`` job: walk the ladder with a model of its own, then flip the tenant's live release.

Nothing is changed before the flip, which is one transaction of the ledger; what is written before it is a release that nobody serves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.errors import KeToolsError, WrongState
from ke_tools.facts import Edit, State
from ke_tools.memory.events import now
from ke_tools.promotion import Climb, Rung, climb
from ke_tools.servers.engines.loading import model_id
from ke_tools.servers.principal import Principal
from ke_tools.servers.slot import ModelSlot
from ke_tools.servers.working import engine_of
from ke_tools.verify.answered import answered
from ke_tools.verify.policy import Policy
from ke_tools.verify.run import summarise

if TYPE_CHECKING:
    from pathlib import Path

    from ke_tools.config import Settings
    from ke_tools.jobs import Reporter
    from ke_tools.memory.joblog import Job
    from ke_tools.memory.ledger import Ledger
    from ke_tools.models.causal import CausalModel
    from ke_tools.workshop import Serving

__all__ = ["FOLDER", "acting", "run_job"]

FOLDER: Final = "releases"  # of the home

log = logging.getLogger(__name__)


def run_job(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Promote the job's edits as far as the gate lets them.

    Raises:
        NotFound, WrongState: an edit is unknown, proposed or retired.
        InvalidInput: the policy or the method is none.
        Conflict: another release went live meanwhile; nothing was changed.
    """
    from ke_tools.workshop import Workshop

    wanted, tenant = job.arguments, job.tenant
    policy = Policy.from_mapping(wanted.get("policy", {}))
    old = ledger.live_release(tenant)
    edits = [acting(ledger, tenant, edit_id) for edit_id in wanted["edit_ids"]]
    in_weights, in_codebook = _carried(ledger, tenant, old, settings.home / FOLDER)
    carried = {edit.id for edit in (*in_weights, *in_codebook)}
    climbing = [edit for edit in edits if edit.id not in carried]
    if not climbing:
        return _told(edits, {edit.id: ("", "it is in the weights already") for edit in edits}, release=old, revision=ledger.head())
    reporter.tell("loading the model", 0, 1)
    model, engine = _loaded(settings)
    shop = Workshop(model, engine, root=settings.home / FOLDER, cache=settings.cache, live=ledger.live(tenant), tell=reporter.tell)
    climbed = climb(
        climbing,
        shop,
        policy=policy,
        method=wanted.get("method", "auto"),
        in_weights=in_weights,
        in_codebook=in_codebook,
        tell=reporter.tell,
    )
    card = summarise(climbing, climbed.outcomes)
    promoted = climbed.candidate.edits if climbed.candidate else ()
    context = {
        "made_at": now(),
        "model": model_id(settings),
        "fingerprint": model.fingerprint,
        "revision": ledger.head(),
        "release": climbed.candidate.release.name if climbed.candidate else old,
        "seeds": {"probes": "by edit id", "draw": len(climbed.trials), "decoding": "greedy"},
        "job": job.id,
        "trials": [trial.as_dict() for trial in climbed.trials],
        "beside_memory": _beside(settings, ledger, job, engine, climbed, reporter),
        "policy": asdict(policy),
        "answered": answered(promoted, climbed.outcomes, policy),
    }
    scorecard = ledger.keep_scorecard(tenant, card.document(**context))
    if climbed.candidate is None:
        return _told(climbing, climbed.rungs, release=old, revision=ledger.head(), climbed=climbed, scorecard=scorecard)
    with reporter.commit():
        published = ledger.promote(
            tenant,
            [edit.id for edit in climbed.candidate.edits],
            release=climbed.candidate.release.name,
            actor=job.actor,
            reason=str(wanted.get("reason", "")),
            evidence={"job": job.id, "scorecard": scorecard},
            old_release=old,
        )
    return _told(climbing, climbed.rungs, release=published.release, revision=published.revision, climbed=climbed, scorecard=scorecard)


def _beside(settings: Settings, ledger: Ledger, job: Job, engine: Serving, climbed: Climb, reporter: Reporter) -> dict[str, Any]:
    """What the accepted candidate adds to the memory, on probes that the gate asked it."""
    from ke_tools.servers.service import Service
    from ke_tools.servers.verifying import beside_memory, served

    if climbed.candidate is None:
        return {}
    service = Service(settings, ledger, ModelSlot(lambda _say: engine), model_id=model_id(settings))
    release, who = climbed.candidate.release.name, Principal(name=job.actor, tenant=job.tenant)
    with served(settings, engine, release):
        return beside_memory(service, who, engine, climbed.candidate.edits, climbed.outcomes, release, reporter.tell)


@lru_cache(maxsize=1)
def _loaded(settings: Settings) -> tuple[CausalModel, Serving]:
    """The editing copy and an engine; the worker keeps them from job to job."""
    from ke_tools.models.causal import load

    engine: Any = engine_of(settings)
    return load(settings), engine


def acting(ledger: Ledger, tenant: str, edit_id: str) -> Edit:
    """An edit that acts on answers.

    Raises:
        NotFound, WrongState: it is unknown, proposed or retired.
    """
    edit = ledger.get(tenant, edit_id)
    if edit.state not in {State.ACTIVE, State.PROMOTED}:
        raise WrongState(f"{edit_id} is {edit.state.value}; nothing was promoted.", "Only edits that act on answers can be promoted.")
    if edit.fact.forget:
        raise WrongState(
            f"{edit_id} forgets; nothing was promoted.",
            "It acts from the memory alone: weights that refuse one fact would still give it away when asked otherwise.",
        )
    return edit


def _carried(ledger: Ledger, tenant: str, release: str, root: Path) -> tuple[list[Edit], list[Edit]]:
    """What is promoted and still acts: in the weights, and in the codebook."""
    promoted = [edit for edit in (ledger.get(tenant, edit_id) for edit_id in ledger.carried_by(tenant, release)) if edit.is_live]
    try:
        in_codebook = set(releases.opened(root, release).how.get("in_codebook", ())) if promoted else set[str]()
    except KeToolsError as error:  # planned anew from the base weights, so that nothing of it is needed
        log.warning("the live release cannot be read, and is planned anew: %s", error)
        in_codebook = set()
    return [edit for edit in promoted if edit.id not in in_codebook], [edit for edit in promoted if edit.id in in_codebook]


def _told(
    edits: Sequence[Edit],
    rungs: Mapping[str, tuple[str, str]],
    *,
    release: str,
    revision: int,
    climbed: Climb | None = None,
    scorecard: str = "",
) -> dict[str, Any]:
    rows = [{"edit_id": edit.id, "rung": rungs[edit.id][0], "reason": rungs[edit.id][1]} for edit in edits]
    trials = [trial.as_dict() for trial in climbed.trials] if climbed else []
    count = {rung: sum(row["rung"] == rung for row in rows) for rung in (Rung.MEMIT, Rung.GRACE, Rung.MEMORY)}
    summary = (
        f"{count[Rung.MEMIT]} of {len(rows)} edits in the weights, {count[Rung.GRACE]} in a codebook, {count[Rung.MEMORY]} stay in memory."
        if climbed
        else "Nothing to do: these edits are in the weights already."
    )
    return {"summary": summary, "edits": rows, "release": release, "revision": revision, "trials": trials, "scorecard": scorecard}
