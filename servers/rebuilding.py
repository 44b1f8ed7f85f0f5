"""What the worker does with a ``rebuild`` job: make the live release again, where its folder is damaged or the model is another one.

As long as the model is the same it is made from what the ledger says of how it was made, to the same bytes and so under the same name.
Where that cannot be, its edits walk the ladder anew, and what the gate does not accept acts from the memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ke_tools import releases
from ke_tools.errors import InvalidInput, NotFound, WrongState
from ke_tools.servers.promoting import loaded, made, promoted

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.jobs import Reporter
    from ke_tools.memory.joblog import Job
    from ke_tools.memory.ledger import Ledger

__all__ = ["run_job"]


def run_job(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter) -> Mapping[str, Any]:
    """Make the tenant's live release again.

    Raises:
        WrongState: none is live.
        Conflict: another release went live meanwhile; nothing was changed.
        ResourceExhausted, ReadOnly: it cannot be written; nothing was changed.
    """
    live = ledger.live_release(job.tenant)
    if not live:
        raise WrongState("no release is live, so there is nothing to rebuild.", "promote makes one.")
    reporter.tell("loading the model", 0, 1)
    why = _obstacle(settings, ledger, job, reporter, live)
    if not why:
        return {"summary": f"{live} is whole, byte for byte as it was.", "release": live, "revision": ledger.head()}
    edits = [edit for edit in (ledger.get(job.tenant, edit_id) for edit_id in ledger.carried_by(job.tenant, live)) if edit.is_live]
    return promoted(settings, ledger, job, reporter, edits, old=live, anew=why)


def _obstacle(settings: Settings, ledger: Ledger, job: Job, reporter: Reporter, live: str) -> str:
    """Make the release again; say why that cannot be, or "" where it is there again."""
    from ke_tools.workshop import Workshop, needed

    model, engine = loaded(settings)
    root, told = settings.releases, made(ledger, job.tenant, live)
    if not told:
        return f"How {live} was made is not known any more."
    if told["fingerprint"] != model.fingerprint:
        return f"{live} was made for the model {told['fingerprint']}; this is {model.fingerprint}."
    edits = {}
    for edit_id in needed(told["how"]):
        with suppress(NotFound):  # purged
            edits[edit_id] = ledger.get(job.tenant, edit_id)
    shop = Workshop(model, engine, root=root, cache=settings.cache, tell=reporter.tell)
    try:
        again = shop.remake(told["how"], edits).name
    except (NotFound, InvalidInput) as error:
        return f"{live} cannot be made again: {error.message}"
    if again == live:
        return ""
    releases.sweep(root, ledger.releases())
    return f"{live} was made in another way, or on another machine: now it has other bytes."
