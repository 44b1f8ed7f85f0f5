"""Approvals as the windows see them: the queue of what waits, and the two words that end the waiting. No MCP tool gives either."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ke_tools.facts import State
from ke_tools.servers.rows import row

if TYPE_CHECKING:
    from ke_tools.memory.proposals import Outlook
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["approve", "in_words", "queue", "reject", "told"]


def approve(service: Service, who: Principal, edit_ids: Sequence[str], *, reason: str = "") -> dict[str, Any]:
    """Let proposals act on the next answer, all or none; each row names what gave way.

    Raises:
        Forbidden: ``who`` may not write, or one is about what only an admin may change.
        NotFound, WrongState, Conflict, InvalidInput, ReadOnly: nothing was decided; as
            :meth:`~ke_tools.memory.proposals.Proposals.approve` says.
    """
    service.check_writable(who)
    with service.damage.watching("write", who.tenant):
        old = service.ledger.live_release(who.tenant)
        edits = service.ledger.proposals.approve(who.tenant, edit_ids, actor=who.name, reason=reason, over_protection=who.may("admin"))
    service.scope.calibrate(edits)
    service.expiring.arm()
    superseded = [earlier for edit in edits for earlier in edit.supersedes]
    flip = service.flip_told(who, old, superseded)[0]
    given = f", superseding {', '.join(superseded)}" if superseded else ""
    return {
        "summary": f"{_count(len(edits), 'proposal')} approved and active from the next answer on{given}.{flip}"
        f" Undo with rollback. {service.target_of_change()}",
        "edits": [row(edit) for edit in edits],
        "revision": service.revision,
        "model": service.model_id,
    }


def reject(service: Service, who: Principal, edit_ids: Sequence[str], *, reason: str) -> dict[str, Any]:
    """Retire proposals, all or none.

    Raises:
        Forbidden: ``who`` may not write.
        NotFound, WrongState, InvalidInput, ReadOnly: nothing was decided; as :meth:`~ke_tools.memory.proposals.Proposals.reject` says.
    """
    service.check_writable(who)
    with service.damage.watching("write", who.tenant):
        edits = service.ledger.proposals.reject(who.tenant, edit_ids, actor=who.name, reason=reason)
    return {
        "summary": f"{_count(len(edits), 'proposal')} rejected; no answer changes.",
        "edits": [row(edit) for edit in edits],
        "revision": service.revision,
        "model": service.model_id,
    }


def queue(service: Service, who: Principal, *, limit: int = 20, cursor: str = "") -> dict[str, Any]:
    """List what waits, newest first, a page at a time: what it says and whose word it is, what an approval would change, and why not."""
    who.require("read")
    page = service.ledger.edits(who.tenant, states=(State.PROPOSED,), limit=limit, cursor=cursor)
    ids = [edit.id for edit in page.items]
    outlooks = service.ledger.proposals.outlooks(who.tenant, ids, over_protection=who.may("admin"))
    shown = [told(outlook) for outlook in outlooks]
    more = "; call again with next_cursor for more" if page.next_cursor else ""
    return {
        "summary": f"{len(page.items)} of {_count(page.total, 'proposal')} that {'waits' if page.total == 1 else 'wait'}{more}.",
        "proposals": shown,
        "proposals_text": "\n\n".join(in_words(one) for one in shown),
        "total": page.total,
        "next_cursor": page.next_cursor,
    }


def told(outlook: Outlook) -> dict[str, Any]:
    """A proposal as the queue shows it."""
    edit = outlook.edit
    return {
        "edit_id": edit.id,
        "subject": edit.fact.subject,
        "prompt": edit.fact.prompt,
        "target": edit.fact.target,
        "proposer": edit.actor,
        "source": edit.fact.source,
        "created_at": edit.created_at,
        "expires": edit.fact.expires,
        "would_supersede": [f"{other.id} ({other.fact.target!r})" for other in outlook.superseding],
        "rivals": [f"{other.id} ({other.fact.target!r}, {other.actor})" for other in outlook.rivals],
        "warnings": list(outlook.warnings),
        "obstacle": outlook.obstacle,
        "release": "" if outlook.release is None else outlook.release or "none",
        "record": dataclasses.asdict(outlook.record),
    }


def in_words(shown: Mapping[str, Any]) -> str:
    """The same for people, on lines."""
    record = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in shown["record"].items())
    lines = [
        f"{shown['edit_id']}  {shown['prompt']} {shown['target']}",
        f"  by {shown['proposer']} ({record}), {shown['created_at']}, {'source ' + shown['source'] if shown['source'] else 'no source'}",
    ]
    labels = {"would_supersede": "would supersede", "rivals": "beside it wait", "warnings": "warnings"}
    lines += [f"  {label}: {'; '.join(shown[name])}" for name, label in labels.items() if shown[name]]
    labels = {"expires": "until", "release": "release then", "obstacle": "cannot be approved"}
    lines += [f"  {label}: {shown[name]}" for name, label in labels.items() if shown[name]]
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
