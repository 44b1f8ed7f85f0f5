"""Proposals: corrections that wait for somebody's word, and the two words, *approve* and *reject*.

What an approval supersedes is found when it is given, not when the correction was proposed. A proposal that was decided meanwhile is
refused, and so is one that was overtaken: another correction of its subject and relation became live since, which whoever approves may not
have seen. A proposal that is rejected is retired with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ke_tools.errors import Conflict, KeToolsError, NotFound, Unsupported, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.checks import check, known_ids
from ke_tools.memory.corrections import Correction, Plan, planned, refuse_contradictions, waiting
from ke_tools.memory.events import Change, Event, Standing
from ke_tools.memory.expiries import sweep
from ke_tools.memory.log import Author, append, edits_by_id, events_where
from ke_tools.memory.moments import has_passed
from ke_tools.memory.promotions import lawful
from ke_tools.memory.protections import Guard
from ke_tools.memory.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import apsw

    from ke_tools.memory.storage import Storage

__all__ = ["Outlook", "Proposals", "Record"]

_ANEW: Final = "Reject it; whoever proposed it may propose it anew."
_RECORD: Final = (
    "SELECT count(*), coalesce(sum(approved), 0), coalesce(sum(rejected), 0), coalesce(sum(gone AND NOT rejected), 0) FROM ("
    "SELECT e.standing = 'rolled back' AS gone,"
    " EXISTS (SELECT 1 FROM approvals AS a WHERE a.tenant = e.tenant AND a.edit_id = e.id) AS approved,"
    " EXISTS (SELECT 1 FROM changes AS c JOIN events AS w USING (seq) WHERE c.tenant = e.tenant AND c.edit_id = e.id"
    " AND w.kind = 'reject') AS rejected"
    " FROM events AS v JOIN edits AS e USING (seq) WHERE v.tenant = ? AND v.actor = ? AND v.kind = 'propose')"
)


@dataclass(frozen=True, slots=True)
class Record:
    """What became of all that one actor proposed."""

    proposed: int
    approved: int
    rejected: int
    rolled_back: int


@dataclass(frozen=True, slots=True)
class Outlook:
    """What an approval would do now."""

    edit: Edit  # the proposal
    fact: Fact  # with the names that it would take over
    superseding: tuple[Edit, ...]  # what would give way
    rivals: tuple[Edit, ...]  # other proposals of the same subject and relation that wait
    warnings: tuple[str, ...]
    record: Record  # of who proposed it
    release: str | None  # what would be live then, where that changes
    obstacle: str = ""  # why it would be refused, where it would


class Proposals:
    """The proposals of all tenants; a tenant never sees another's."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def approve(self, tenant: str, edit_ids: Sequence[str], *, actor: str, reason: str = "", over_protection: bool = False) -> list[Edit]:
        """Let proposals act from now on, all or none; what they supersede is found now.

        Args:
            tenant: whose.
            edit_ids: which.
            actor: who says so.
            reason: why.
            over_protection: what is protected may be changed.

        Raises:
            NotFound: an id is unknown to this tenant.
            WrongState: one does not wait any more, was overtaken, or its time has passed; the message says who decided, and when.
            Conflict: ``old_target`` is not what is live, or two of them contradict each other.
            Forbidden: one is about what is protected.
        """
        author, ids = Author.of(tenant, actor, reason), known_ids(edit_ids)
        with self._storage.writing() as db:
            sweep(db, tenant)
            edits = _open(db, tenant, ids)
            corrections = [_correction(db, edit) for edit in edits]
            refuse_contradictions(corrections)
            guard = None if over_protection else Guard.of(db, tenant)
            siblings: set[int] = set()
            for edit, correction in zip(edits, corrections, strict=True):
                plan = _planned(db, edit, correction, siblings, guard)
                siblings.add(edit.revision)
                changes = lawful(db, tenant, plan.changes(edit.id), plan.flip)
                append(db, author, "approve", _payload(edit, plan), changes, plan.flip)
            return _in_order(db, tenant, ids)

    def reject(self, tenant: str, edit_ids: Sequence[str], *, actor: str, reason: str) -> list[Edit]:
        """Retire proposals, all or none.

        Raises:
            NotFound: an id is unknown to this tenant.
            WrongState: one does not wait any more; the message says who decided, and when.
            InvalidInput: there is no reason.
        """
        author, ids = Author.of(tenant, actor, reason), known_ids(edit_ids)
        check(reason=author.reason)
        with self._storage.writing() as db:
            edits = _open(db, tenant, ids)
            append(db, author, "reject", {"edit_ids": ids}, [Change(edit.id, Standing.ROLLED_BACK) for edit in edits])
            return _in_order(db, tenant, ids)

    def outlook(self, tenant: str, edit_id: str, *, over_protection: bool = False) -> Outlook:
        """Say what an approval would do now; nothing is changed.

        Raises:
            NotFound, WrongState: as :meth:`approve`.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            [edit] = _open(db, tenant, known_ids([edit_id]))
            return _outlook(db, edit, _record(db, tenant, edit.actor), None if over_protection else Guard.of(db, tenant))

    def outlooks(self, tenant: str, edit_ids: Sequence[str], *, over_protection: bool = False) -> list[Outlook]:
        """Say the same of several, in their order; what does not wait any more is left out."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            found = {edit.id: edit for edit in edits_by_id(db, tenant, edit_ids) if edit.state is State.PROPOSED}
            edits = [found[edit_id] for edit_id in edit_ids if edit_id in found]
            records = {actor: _record(db, tenant, actor) for actor in {edit.actor for edit in edits}}
            guard = None if over_protection else Guard.of(db, tenant)
            return [_outlook(db, edit, records[edit.actor], guard) for edit in edits]

    def record(self, tenant: str, actor: str) -> Record:
        """Count what became of what an actor proposed; what was purged is not counted."""
        check(tenant=tenant, actor=actor)
        with self._storage.reading() as db:
            return _record(db, tenant, actor)


def _outlook(db: apsw.Connection, edit: Edit, record: Record, guard: Guard | None) -> Outlook:
    rivals = tuple(other for other in waiting(db, edit.tenant, edit.slot) if other.id != edit.id)
    try:
        plan = _planned(db, edit, _correction(db, edit), (), guard)
    except KeToolsError as error:
        return Outlook(edit, edit.fact, (), rivals, edit.warnings, record, None, error.message)
    release = None if plan.flip is None else plan.flip.release
    return Outlook(edit, plan.fact, plan.yielding, rivals, plan.warnings, record, release)


def _open(db: apsw.Connection, tenant: str, ids: Sequence[str]) -> list[Edit]:
    found = {edit.id: edit for edit in edits_by_id(db, tenant, ids)}
    if unknown := [edit_id for edit_id in ids if edit_id not in found]:
        raise NotFound(f"there is no edit {unknown[0]!r}; nothing was decided.", "`ke-tools proposals` shows what waits.")
    for edit_id in ids:
        if found[edit_id].state is not State.PROPOSED:
            raise _decided(db, found[edit_id])
    return [found[edit_id] for edit_id in ids]


def _decided(db: apsw.Connection, edit: Edit) -> WrongState:
    """The error that tells what became of an edit that does not wait."""
    about = "AND v.seq IN (SELECT seq FROM changes WHERE tenant = ? AND edit_id = ?) ORDER BY v.seq DESC"
    for event in events_where(db, edit.tenant, about, (edit.tenant, edit.id)):
        if decision := _decision(event, edit):
            why = f" ({event.reason})" if event.reason else ""
            return WrongState(
                f"{edit.id} does not wait any more: {event.actor} {decision} it at {event.at}{why}; it is {edit.state.value} now."
                " Nothing was decided.",
                "`ke-tools history` shows what happened to it.",
                edit_id=edit.id,
                decision=decision,
                decided_by=event.actor,
                decided_at=event.at,
            )
    return WrongState(f"{edit.id} is {edit.state.value}, and was never proposed; nothing was decided.", "rollback takes it back.")


def _decision(event: Event, edit: Edit) -> str:
    """What an event said of a proposal; "" where it only moved it."""
    if event.payload.get("approves") == edit.id:
        return "approved"
    is_gone = Change(edit.id, Standing.ROLLED_BACK) in event.changes
    return {"reject": "rejected", "rollback": "withdrew"}.get(event.action, "") if is_gone else ""


def _correction(db: apsw.Connection, edit: Edit) -> Correction:
    """The proposal as a correction that acts."""
    [made] = events_where(db, edit.tenant, "AND v.seq = ?", (edit.revision,))
    slot = Slot(edit.slot, edit.relation, edit.functional)
    return Correction(edit.fact, slot, edit.ref, made.payload["mode"], State.ACTIVE)


def _planned(db: apsw.Connection, edit: Edit, correction: Correction, siblings: Collection[int], guard: Guard | None) -> Plan:
    if has_passed(edit.fact.expires):
        raise WrongState(f"{edit.id} was to act until {edit.fact.expires}, which has passed; nothing was decided.", _ANEW)
    try:
        plan = planned(db, edit.tenant, correction, siblings=siblings)
    except Conflict as error:
        raise Conflict(f"{edit.id}: {error.message}", _ANEW, **error.data) from error
    if guard is not None:
        guard.refuse(plan.fact, *(other.fact for other in plan.yielding))
    _refuse_if_overtaken(db, edit, plan, siblings)
    return plan


def _refuse_if_overtaken(db: apsw.Connection, edit: Edit, plan: Plan, siblings: Collection[int]) -> None:
    for other in plan.yielding:
        since = other.approved_revision or other.revision
        if since < edit.revision or other.revision in siblings:
            continue
        [event] = events_where(db, edit.tenant, "AND v.seq = ?", (since,))
        said = "" if edit.fact.forget else f" ({other.fact.target!r})"
        word = "approved" if other.approved_revision else "recorded"
        raise WrongState(
            f"{edit.id} was overtaken: {event.actor} {word} {other.id}{said} of the same subject and relation at {event.at}, after it was"
            " proposed. Nothing was decided.",
            f"Reject it, or take {other.id} back first.",
            edit_id=edit.id,
            overtaken_by=other.id,
            decided_by=event.actor,
            decided_at=event.at,
        )


def _payload(edit: Edit, plan: Plan) -> dict[str, object]:
    taken_over = {} if plan.fact.aliases == edit.fact.aliases else {"aliases": list(plan.fact.aliases)}
    return {
        "approves": edit.id,
        "slot": edit.slot,
        "supersedes": [other.id for other in plan.yielding],
        "warnings": list(plan.warnings),
        "alias_risky": plan.is_risky,
        **taken_over,
    }


def _in_order(db: apsw.Connection, tenant: str, ids: Sequence[str]) -> list[Edit]:
    found = {edit.id: edit for edit in edits_by_id(db, tenant, ids)}
    return [found[edit_id] for edit_id in ids]


def _record(db: apsw.Connection, tenant: str, actor: str) -> Record:
    if not db.table_exists("main", "approvals"):
        raise Unsupported("an earlier version of ke-tools wrote the ledger.", "Open it once without --read-only.")
    [(proposed, approved, rejected, rolled_back)] = db.execute(_RECORD, (tenant, actor))
    return Record(proposed, approved, rejected, rolled_back)
