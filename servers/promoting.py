"""What the worker does with a ``promote`` job: walk the ladder with a model of its own, then flip the tenant's live release.

Nothing is changed before the flip, which is one transaction of the ledger; what is written before it is a release that nobody serves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.errors import Conflict, KeToolsError, NotFound, Unsupported, WrongState
from ke_tools.facts import Edit, State
from ke_tools.jobs import at_end
from ke_tools.memory.events import now
from ke_tools.models.engine import Request, Scores
from ke_tools.promotion import Climb, Rung, climb
from ke_tools.servers.contradictions import contradicted
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
    from ke_tools.servers.home import Home
    from ke_tools.workshop import Serving

__all__ = ["acting", "loaded", "made", "promoted", "run_job"]

log = logging.getLogger(__name__)

_TEXT: Final = ("The capital of Australia is", "Canberra, a city in the south east of the country that was planned for this.")
_FURTHEST: Final = 0.5  # nats a token


def run_job(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Promote the job's edits as far as the gate lets them.

    Raises:
        NotFound, WrongState: an edit is unknown, proposed or retired.
        InvalidInput, Conflict: as :func:`promoted` says.
    """
    wanted, tenant = job.arguments, job.tenant
    old = ledger.live_release(tenant)
    edits = [acting(ledger, tenant, edit_id) for edit_id in wanted["edit_ids"]]
    in_weights, in_codebook = _carried(ledger, tenant, old, settings.releases)
    carried = {edit.id for edit in (*in_weights, *in_codebook)}
    climbing = [edit for edit in edits if edit.id not in carried]
    if not climbing:
        return _told(edits, {edit.id: ("", "it is in the weights already") for edit in edits}, release=old, revision=ledger.head())
    return promoted(settings, ledger, job, reporter, climbing, old=old, in_weights=in_weights, in_codebook=in_codebook)


def promoted(
    settings: Settings,
    ledger: Ledger,
    job: Job,
    reporter: Reporter,
    climbing: Sequence[Edit],
    *,
    old: str,
    in_weights: Sequence[Edit] = (),
    in_codebook: Sequence[Edit] = (),
    anew: str = "",
) -> Mapping[str, Any]:
    """Walk the ladder with edits, and end the job with what is found.

    Args:
        settings: of the home.
        ledger: the home's.
        job: whose arguments may name a policy and a method.
        reporter: of the job.
        climbing: what climbs.
        old: the release that was live when it was chosen what climbs, "" for none.
        in_weights: what was promoted before and stays beside them.
        in_codebook: the same, of the codebook.
        anew: why the live release is no use any more, where that is so: if nothing is accepted, no release is live afterwards.

    Raises:
        InvalidInput: the policy or the method is none.
        Conflict: another release went live meanwhile; nothing was changed.
    """
    from ke_tools.servers.home import Home
    from ke_tools.workshop import Workshop

    root = settings.releases
    policy = Policy.from_mapping(job.arguments.get("policy", {}))
    reporter.tell("loading the model", 0, 1)
    model, engine = loaded(settings)
    releases.sweep(root, ledger.releases())
    shop = Workshop(model, engine, root=root, cache=settings.cache, live=ledger.live(job.tenant), tell=reporter.tell)
    home = Home(settings, ledger, ModelSlot(lambda _say: engine), model_id=model_id(settings))
    against = contradicted(home.scope, job.tenant, climbing, (*in_weights, *in_codebook))
    try:
        climbed = climb(
            [edit for edit in climbing if edit.id not in against],
            shop,
            policy=policy,
            method=job.arguments.get("method", "auto"),
            in_weights=in_weights,
            in_codebook=in_codebook,
            tell=reporter.tell,
        )
        climbed = replace(climbed, rungs=climbed.rungs | {edit_id: (Rung.MEMORY, why) for edit_id, why in against.items()})
        document = _document(home, job, reporter, climbing, climbed, policy)
        return reporter.commit(partial(_published, ledger, job, old, climbing, climbed, anew, document))
    finally:
        _erase_purged(ledger, job.tenant, root, (*climbing, *in_weights, *in_codebook))


def _erase_purged(ledger: Ledger, tenant: str, root: Path, edits: Sequence[Edit]) -> None:
    """Candidates are written from edits that were read at the beginning; one that was purged since must be in none of them."""
    for edit in edits:
        try:
            ledger.get(tenant, edit.id)
        except NotFound:
            releases.erase(root, edit.id)


def _document(home: Home, job: Job, reporter: Reporter, climbing: Sequence[Edit], climbed: Climb, policy: Policy) -> dict[str, Any]:
    """The scorecard of the accepted candidates, with how they were come by."""
    ledger, (model, engine) = home.ledger, loaded(home.settings)
    accepted = climbed.candidate
    return summarise(climbing, climbed.outcomes).document(
        made_at=now(),
        model=home.model_id,
        fingerprint=model.fingerprint,
        revision=ledger.head(),
        release=accepted.release.name if accepted else ledger.live_release(job.tenant),
        seeds={"probes": "by edit id", "draw": len(climbed.trials), "decoding": "greedy"},
        job=job.id,
        trials=[trial.as_dict() for trial in climbed.trials],
        beside_memory=_beside(home, job, engine, climbed, reporter),
        policy=asdict(policy),
        answered=answered(accepted.edits if accepted else (), climbed.outcomes, policy),
    )


def _published(
    ledger: Ledger, job: Job, old: str, climbing: Sequence[Edit], climbed: Climb, anew: str, document: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Flip to what was accepted, if anything was, and keep what was measured."""
    scorecard, accepted = ledger.keep_scorecard(job.tenant, document), climbed.candidate
    revision, release = ledger.head(), old
    if accepted is not None:
        published = ledger.promote(
            job.tenant,
            [edit.id for edit in accepted.edits],
            release=accepted.release.name,
            actor=job.actor,
            reason=str(job.arguments.get("reason", "")),
            evidence={"job": job.id, "scorecard": scorecard, "fingerprint": accepted.release.fingerprint, "how": accepted.release.how},
            old_release=old,
        )
        revision, release = published.revision, published.release
    elif anew:
        if (live := ledger.live_release(job.tenant)) != old:
            raise Conflict(f"{live or 'no release'} is live by now, not {old}.", "Nothing was changed. Rebuild again.")
        demoted = ledger.demote(job.tenant, ledger.carried_by(job.tenant, old), release="", actor=job.actor, reason=anew)
        revision, release = demoted.revision, demoted.release
    told = _told(climbing, climbed.rungs, release=release, revision=revision, climbed=climbed, scorecard=scorecard)
    return told | ({"summary": f"{anew} Promoted anew: {told['summary']}"} if anew else {})


def made(ledger: Ledger, tenant: str, release: str) -> Mapping[str, Any]:
    """What the ledger says of how a release was made: ``fingerprint`` and ``how``; empty where it says nothing, or that was purged."""
    evidence = ledger.evidence_of(tenant, release)
    return {name: evidence[name] for name in ("fingerprint", "how")} if "how" in evidence else {}


def _beside(home: Home, job: Job, engine: Serving, climbed: Climb, reporter: Reporter) -> dict[str, Any]:
    """What the accepted candidate adds to the memory, on probes that the gate asked it."""
    from ke_tools.servers.answering import Answering
    from ke_tools.servers.verifying import beside_memory, served

    if climbed.candidate is None:
        return {}
    release, who = climbed.candidate.release.name, Principal(name=job.actor, tenant=job.tenant)
    with served(home.settings, engine, release):
        return beside_memory(Answering(home), who, engine, climbed.candidate.edits, climbed.outcomes, release, reporter.tell)


@lru_cache(maxsize=1)
def loaded(settings: Settings) -> tuple[CausalModel, Serving]:
    """The editing copy and an engine, of the same weights; the worker keeps them from job to job.

    Raises:
        Unsupported: servers serve other weights than the checkpoint's.
    """
    from ke_tools.models.causal import load

    engine: Any = engine_of(settings)
    model = load(settings, beside=getattr(engine, "weights", None))
    if isinstance(engine, Scores) and settings.is_remote:
        refuse_another(model, engine)
    at_end(loaded.cache_clear)  # the engine is closed then
    return model, engine


def refuse_another(model: CausalModel, engine: Scores) -> None:
    """Refuse servers that say a text much less or much more likely than the checkpoint does; quantised weights pass.

    Raises:
        Unsupported: they serve other weights.
    """
    import torch

    start, rest = _TEXT
    ids = model.tokenizer(start + " " + rest, return_tensors="pt")["input_ids"].to(model.device)
    begin = len(model.tokenizer(start)["input_ids"])
    with torch.no_grad():
        scores = torch.log_softmax(model.model(ids).logits[0, :-1].float(), -1)
    mine = float(scores.gather(1, ids[0, 1:, None])[begin - 1 :].sum())
    [theirs] = engine.score([Request(prompt=start)], [rest])
    count = ids.shape[1] - begin
    if theirs is None or abs(theirs - mine) / count > _FURTHEST:
        said = (
            "cannot say how likely a text is"
            if theirs is None
            else f"say {theirs / count:.2f} nats a token where it says {mine / count:.2f}"
        )
        raise Unsupported(
            f"the servers do not serve the checkpoint that edits are planned with: they {said}.",
            "Give the checkpoint that they serve by --model, or by --edit-model the one that it was quantised from.",
        )


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
    if edit.fact.expires:
        raise WrongState(
            f"{edit_id} expires at {edit.fact.expires}; nothing was promoted.", "It acts from the memory alone: weights do not expire."
        )
    return edit


def _carried(ledger: Ledger, tenant: str, release: str, root: Path) -> tuple[list[Edit], list[Edit]]:
    """What is promoted and still acts: in the weights, and in the codebook."""
    promoted = [edit for edit in (ledger.get(tenant, edit_id) for edit_id in ledger.carried_by(tenant, release)) if edit.is_live]
    how = made(ledger, tenant, release).get("how", {}) if promoted else {}
    try:
        how = how or (releases.opened(root, release).how if promoted else {})
    except KeToolsError as error:  # planned anew from the base weights, so that nothing of it is needed
        log.warning("the live release cannot be read, and is planned anew: %s", error)
    in_codebook = set(how.get("in_codebook", ()))
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
