"""The ledger: which corrections were made, by whom and why, which of them are live, and which release they are in.

It is the only truth of ke-tools. An append-only, hash-chained log of events in an SQLite file; every table, index and adapter
besides follows from it. A tenant never sees another's: the tenant is a required argument of every read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import apsw

from ke_tools.errors import InvalidInput, KeToolsError, LedgerDamaged, Unavailable
from ke_tools.facts import Edit, Fact, State, squash
from ke_tools.memory import audit, firings, idempotency, limits, scorecards
from ke_tools.memory.absent import absent, purged_among
from ke_tools.memory.checks import EDIT_ID, check, known_ids
from ke_tools.memory.corrections import Correction, Mode, record, refuse_contradictions
from ke_tools.memory.events import (
    LIVE,
    Change,
    Event,
    Finding,
    Flip,
    Page,
    Published,
    Purged,
    RolledBack,
    Standing,
    canonical,
    record_of,
)
from ke_tools.memory.expiries import Expiries, refuse_if_expiring, sweep
from ke_tools.memory.joblog import Jobs
from ke_tools.memory.listing import Listing
from ke_tools.memory.log import (
    Author,
    append,
    carried_by,
    changes_of,
    count_edits,
    count_events,
    edits_by_id,
    edits_where,
    events_where,
    flip_at,
    has_flips,
    head,
    release_at,
    standings,
    standings_at,
)
from ke_tools.memory.promotions import (
    changes_of_demotion,
    evidence_of,
    flip_of_promotion,
    flip_to_revision,
    flip_without,
    is_release,
    largest_without,
    lawful,
)
from ke_tools.memory.proposals import Proposals
from ke_tools.memory.protections import Guard, Protections
from ke_tools.memory.purging import purge
from ke_tools.memory.rollbacks import changes_of_rollback, changes_to_revision, outcome
from ke_tools.memory.rolling import refuse_if_protected, roll, standing_of
from ke_tools.memory.slots import SlotRule
from ke_tools.memory.slots import slot_of as default_slot
from ke_tools.memory.storage import Storage
from ke_tools.memory.undoing import Undoing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self


class Ledger:
    """One file of corrections, for many tenants, threads and processes.

    ``":memory:"`` makes one that is gone when closed. The folder is made (0700) and the file too (0600).

    Raises:
        ReadOnly, ResourceExhausted, LedgerDamaged, NotFound, Unsupported: as :class:`~ke_tools.memory.storage.Storage` says;
            the first three by every method too, and nothing is changed then.
        Busy: by every writing method, when another writer held the file for over ``busy_timeout_ms``.
        InvalidInput: by every method, for arguments that no state makes right.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False, busy_timeout_ms: int = 10_000) -> None:
        self._storage = Storage(path, read_only=read_only, busy_timeout_ms=busy_timeout_ms)

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    @property
    def path(self) -> str:
        """Where the file lies."""
        return self._storage.path

    @property
    def read_only(self) -> bool:
        """Whether every write is refused."""
        return self._storage.read_only

    @property
    def proposals(self) -> Proposals:
        """What waits for an approval, kept in the same file."""
        return Proposals(self._storage)

    @property
    def protections(self) -> Protections:
        """What only an admin may change, kept in the same file."""
        return Protections(self._storage)

    @property
    def expiries(self) -> Expiries:
        """When edits expire, kept in the same file."""
        return Expiries(self._storage)

    @property
    def undoing(self) -> Undoing:
        """How all that one actor did is undone."""
        return Undoing(self._storage)

    @property
    def jobs(self) -> Jobs:
        """Long work that was asked for, kept in the same file."""
        return Jobs(self._storage)

    def close(self) -> None:
        """Close the file; every later call raises."""
        self._storage.close()

    # -- writing -----------------------------------------------------------------------------------------------------------------

    def edit(
        self,
        tenant: str,
        facts: Sequence[Fact],
        *,
        actor: str,
        reason: str = "",
        mode: Mode = "auto",
        idempotency_key: str = "",
        refs: Sequence[str] = (),
        dry_run: bool = False,
        state: State = State.ACTIVE,
        slot_of: SlotRule = default_slot,
        over_protection: bool = False,
        per_minute: int = 0,
    ) -> list[Edit]:
        """Record corrections, all or none; each tells in ``supersedes`` and ``warnings`` what gave way (see :mod:`.corrections`).

        Args:
            tenant: whose belief it is.
            facts: what to believe from now on.
            actor: who says so.
            reason: why.
            mode: what happens to live edits of the same subject and relation.
            idempotency_key: a call repeated under its key does nothing and returns the first call's edits as they stand now.
            refs: the caller's own names, one a fact.
            dry_run: change nothing, and return what would be recorded, without id and revision; with both what was, where the key is used.
            state: ``active``, or ``proposed``: without effect, and nothing gives way yet.
            slot_of: how subject and relation of a fact are found.
            over_protection: what is protected may be changed.
            per_minute: how many edits the actor may record within a minute, 0 for any number.

        Raises:
            Conflict: ``old_target`` is not what is live, two of the facts contradict each other, or the key belongs to another call.
            Forbidden: a fact falls under a protection.
            LimitReached: the actor has recorded its edits of this minute; the message says when it may go on.
        """
        author = Author.of(tenant, actor, reason, idempotency_key)
        if not facts or (refs and len(refs) != len(facts)):
            raise InvalidInput(
                f"{len(facts)} edits and {len(refs)} refs were given.", "Give at least one edit, and a ref for each or none."
            )
        made = [
            Correction.of(fact, slot_of, ref=ref, mode=mode, state=state)
            for fact, ref in zip(facts, refs or [""] * len(facts), strict=True)
        ]
        refuse_contradictions(made)
        arguments = ["edit", [_asked(fact) for fact in facts], mode, author.reason, list(refs), state]
        with self._storage.writing(keep=not dry_run) as db:
            span = before = idempotency.seen(db, tenant, idempotency_key, arguments)
            if span is None:
                limits.refuse_if_over(db, author, len(made), 0 if dry_run else per_minute)
                sweep(db, tenant)
                span = _record_together(db, author, made, None if over_protection else Guard.of(db, tenant))
                idempotency.remember(db, tenant, idempotency_key, arguments, span)
            edits = edits_where(db, tenant, "AND e.seq BETWEEN ? AND ? ORDER BY e.seq", span)
        return [replace(edit, id="", revision=0) for edit in edits] if dry_run and before is None else edits

    def edit_each(
        self, tenant: str, corrections: Sequence[Correction], *, actor: str, reason: str = "", over_protection: bool = False
    ) -> list[Edit | KeToolsError]:
        """Record many corrections in one transaction, one after the other; one that is refused does not hold up the rest.

        Returns for each the edit as it stands at the end, or the error. ``over_protection`` as :meth:`edit` says.
        """
        author = Author.of(tenant, actor, reason)
        results: list[int | KeToolsError] = []
        with self._storage.writing() as db:
            sweep(db, tenant)
            guard = None if over_protection else Guard.of(db, tenant)
            for correction in corrections:
                try:
                    results.append(record(db, author, correction, guard=guard))
                except KeToolsError as error:  # raised before anything of this correction was written
                    results.append(error)
            revisions = [result for result in results if isinstance(result, int)]
            span = (revisions[0], revisions[-1]) if revisions else (0, 0)
            made = {edit.revision: edit for edit in edits_where(db, tenant, "AND e.seq BETWEEN ? AND ?", span)}
        return [made[result] if isinstance(result, int) else result for result in results]

    def rollback(
        self,
        tenant: str,
        edit_ids: Sequence[str],
        *,
        actor: str,
        reason: str = "",
        idempotency_key: str = "",
        release: str | None = None,
        carries: Sequence[str] | None = None,
        over_protection: bool = False,
        dry_run: bool = False,
    ) -> RolledBack:
        """Take edits back, all or none; what they superseded comes back (see :mod:`.rollbacks`).

        Args:
            tenant: whose.
            edit_ids: which; live or superseded ones, and proposals.
            actor: who says so.
            reason: why.
            idempotency_key: as :meth:`edit` says.
            release: what is live from then on, "" for none; needed where the live release carries one of them.
            carries: the edits of that release; those that it carried when it was live before, else those that stay promoted.
            over_protection: what is protected may be changed.
            dry_run: change nothing, and return what would be.

        Raises:
            NotFound: an id is unknown to this tenant.
            WrongState: an edit is rolled back already, or the live release would carry one that is.
            Conflict: the key belongs to another call.
            Forbidden: it changes what acts of something protected.
        """
        author = Author.of(tenant, actor, reason, idempotency_key)
        ids = known_ids(edit_ids)
        arguments: list[Any] = ["rollback", ids, author.reason, *([] if release is None else [release, carries and sorted(carries)])]
        with self._storage.writing(keep=not dry_run) as db:
            span = idempotency.seen(db, tenant, idempotency_key, arguments)
            if span is not None:
                return outcome(db, tenant, changes_of(db, tenant, span[0]), standings_at(db, tenant, span[0] - 1), span[0])
            sweep(db, tenant)
            changes = changes_of_rollback(db, tenant, ids)
            flip = flip_without(db, tenant, set(ids), changes, release, carries)
            refuse_if_protected(db, tenant, changes, over_protection=over_protection)
            done = roll(db, author, {"edit_ids": ids}, lawful(db, tenant, changes, flip), flip)
            idempotency.remember(db, tenant, idempotency_key, arguments, (done.revision, done.revision))
            return done

    def rollback_to(
        self, tenant: str, revision: int, *, actor: str, reason: str = "", over_protection: bool = False, dry_run: bool = False
    ) -> RolledBack:
        """Make live what was live after the event ``revision`` of the ledger, and nothing else; 0 takes everything back.

        The release that was live then is live again, and the same edits promoted; if it carries one that was purged since, no release
        is live, and its other edits act from the memory. Where all that is so already nothing is recorded. What has expired stays so.
        With ``dry_run`` nothing is changed, and returned is what would be.

        Raises:
            Forbidden: it changes what acts of something protected, and not ``over_protection``.
        """
        author = Author.of(tenant, actor, reason)
        with self._storage.writing(keep=not dry_run) as db:
            _refuse_unless_past(db, revision)
            sweep(db, tenant)
            flip, now = flip_to_revision(db, tenant, revision), standings(db, tenant)
            wanted = lawful(db, tenant, changes_to_revision(db, tenant, revision), flip)
            changes = [change for change in wanted if change != now[change.edit_id]]
            if not changes and flip is None:
                return RolledBack([], [], head(db), release_at(db, tenant))
            refuse_if_protected(db, tenant, changes, over_protection=over_protection)
            return roll(db, author, {"to_revision": revision}, changes, flip)

    def promote(
        self,
        tenant: str,
        edit_ids: Sequence[str],
        *,
        release: str,
        actor: str,
        reason: str = "",
        evidence: Mapping[str, Any] | None = None,
        old_release: str | None = None,
    ) -> Published:
        """Make a release live, and promoted the edits that it carries; where that is so already nothing is recorded.

        Args:
            tenant: whose.
            edit_ids: *all* edits that the release carries; what was promoted and is not among them acts from the memory again.
            release: its name.
            actor: who says so.
            reason: why.
            evidence: what speaks for it, as JSON; scorecards by their hashes.
            old_release: what must be live for this to be right, "" for none; ``None`` if it does not matter.

        Raises:
            NotFound: an id is unknown to this tenant.
            WrongState: an edit is proposed or retired.
            Conflict: not ``old_release`` is live.
        """
        author, ids = Author.of(tenant, actor, reason), known_ids(edit_ids)
        payload = {"edit_ids": ids, "evidence": json.loads(_json("evidence", evidence or {}))}
        with self._storage.writing() as db:
            refuse_if_expiring(db, tenant, ids)
            flip = flip_of_promotion(db, tenant, ids, release, old_release)
            if flip is None:
                return Published([], [], head(db), release)
            return _publish(db, author, "promote", payload, lawful(db, tenant, [], flip), flip)

    def demote(
        self,
        tenant: str,
        edit_ids: Sequence[str],
        *,
        release: str,
        actor: str,
        reason: str = "",
        carries: Sequence[str] | None = None,
    ) -> Published:
        """Take edits out of the weights, back into the memory; one that the live release carries under a newer edit stays under it.

        ``release`` is live from then on, "" for none, and ``carries`` its edits, as :meth:`rollback` says.

        Raises:
            NotFound: an id is unknown to this tenant.
            WrongState: the live release does not carry an edit.
            InvalidInput: ``release`` carries it too.
        """
        author, ids = Author.of(tenant, actor, reason), known_ids(edit_ids)
        with self._storage.writing() as db:
            changes = changes_of_demotion(db, tenant, ids)
            flip = flip_without(db, tenant, set(ids), changes, release, carries)
            return _publish(db, author, "demote", {"edit_ids": ids}, lawful(db, tenant, changes, flip), flip)

    def purge(
        self,
        tenant: str,
        edit_id: str,
        *,
        actor: str,
        reason: str,
        release: str | None = None,
        carries: Sequence[str] | None = None,
    ) -> Purged:
        """Take an edit back and erase what it says, to the last byte of the file (see :mod:`.purging`); the log stays whole.

        ``release`` and ``carries`` as :meth:`rollback` says. The reason is kept. To repeat a purge finishes one that was cut short.

        Raises:
            NotFound: the id is unknown to this tenant.
            WrongState: the live release would still carry it.
            InvalidInput: the reason holds words of the edit.
            Busy, ResourceExhausted: the edit is purged, but old bytes of it are still in the file; repeat it.
        """
        author, [known] = Author.of(tenant, actor, reason), known_ids([edit_id])
        check(reason=author.reason)
        with self._storage.writing() as db:
            done = purge(db, author, known, release, carries)
        try:
            self._storage.rewrite()
        except Unavailable as error:
            left = f"{edit_id} is purged, but the file could not be rewritten and may still hold bytes of it."
            raise type(error)(left, error.hint) from error
        return done

    def keep_scorecard(self, tenant: str, scorecard: Mapping[str, Any]) -> str:
        """Keep what a check of edits found, as JSON that names them by id; return its sha256, under which it is read again.

        Raises:
            WrongState: one of the edits was purged.
        """
        check(tenant=tenant)
        text = _json("the scorecard", scorecard)
        with self._storage.writing() as db:
            return scorecards.keep(db, tenant, text)

    def count_fired(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Add to how often edits were asked for, by (tenant, edit); beside the log, and no event."""
        with self._storage.writing() as db:
            firings.add(db, counts)

    # -- reading -----------------------------------------------------------------------------------------------------------------

    def get(self, tenant: str, edit_id: str) -> Edit:
        """Return an edit.

        Raises:
            NotFound: it does not exist, or is another tenant's.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            return _one(db, tenant, edit_id)

    def several(self, tenant: str, edit_ids: Iterable[str]) -> dict[str, Edit]:
        """Return a tenant's edits by id, as far as there are any, oldest first."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return {edit.id: edit for edit in edits_by_id(db, tenant, list(edit_ids))}

    def edits(self, tenant: str, *, states: Collection[State] = (), contains: str = "", limit: int = 20, cursor: str = "") -> Page[Edit]:
        """List edits, newest first.

        Args:
            tenant: whose.
            states: only these; empty for all.
            contains: only those with this text in id, ref, subject, aliases, prompt or target; case and diacritics do not matter.
            limit: how many at most, 1 to 1000.
            cursor: the ``next_cursor`` of the page before, asked for with the same arguments.
        """
        check(tenant=tenant)
        wanted = [standing.value for standing in Standing if not states or standing.state in states]
        condition = f"AND e.standing IN ({', '.join('?' * len(wanted))})"
        values: list[Any] = list(wanted)
        if contains:
            condition += " AND instr(e.words, ?)"
            values.append(squash(contains) or "?")  # no stored text has a sign in it
        listing = Listing(["edits", tenant, sorted(wanted), contains], limit, cursor)
        with self._storage.reading() as db:
            total = count_edits(db, tenant, condition, values)
            rows = edits_where(db, tenant, f"{condition} AND e.seq < ? ORDER BY e.seq DESC LIMIT ?", (*values, *listing.bounds))
        return Page(rows[:limit], total, listing.next_cursor([row.revision for row in rows]))

    def live(self, tenant: str, *, with_proposed: bool = False) -> list[Edit]:
        """Return every edit that acts on answers, oldest first; ``with_proposed`` also those that wait for an approval."""
        check(tenant=tenant)
        wanted = [standing.value for standing in (*LIVE, *([Standing.PROPOSED] if with_proposed else []))]
        with self._storage.reading() as db:
            # One standing at a time: asked for several at once, SQLite reads every edit that ever was.
            found = [edit for standing in wanted for edit in edits_where(db, tenant, "AND e.standing = ? ORDER BY e.seq", (standing,))]
        return sorted(found, key=lambda edit: edit.revision)

    def at(self, tenant: str, revision: int) -> list[Edit]:
        """Return every edit that there was after the event ``revision``, as it stood then, oldest first; without what was purged.

        Raises:
            InvalidInput: the ledger has no such revision.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            _refuse_unless_past(db, revision)
            then = standings_at(db, tenant, revision)
            found = edits_by_id(db, tenant, list(then))
        return [_as_then(edit, then[edit.id]) for edit in found]

    def since(self, tenant: str, seq: int) -> list[Edit]:
        """Return the edits that an event after ``seq`` made or changed, as they stand now, oldest first."""
        check(tenant=tenant)
        changed = "AND e.id IN (SELECT edit_id FROM changes WHERE tenant = ? AND seq > ?) ORDER BY +e.seq"
        with self._storage.reading() as db:
            return edits_where(db, tenant, changed, (tenant, seq))

    def changed(self, tenant: str, seq: int) -> set[str]:
        """Return the ids of the edits that :meth:`since` tells of, with those that were purged, of which it cannot."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            rows = db.execute("SELECT DISTINCT edit_id FROM changes WHERE tenant = ? AND seq > ?", (tenant, seq))
            return {edit_id for (edit_id,) in rows}

    def history(
        self, tenant: str, *, edit_id: str = "", by: str = "", flips: bool = False, limit: int = 20, cursor: str = ""
    ) -> Page[Event]:
        """List events, newest first; with ``edit_id`` those that made or changed this edit, also of one that was purged.

        ``by`` is the actor whose events are meant; with ``flips`` only those that made another release live, or none.

        Raises:
            NotFound: ``edit_id`` does not exist, or is another tenant's.
        """
        check(tenant=tenant)
        listing = Listing(["history", tenant, edit_id, *([by, flips] if by or flips else [])], limit, cursor)
        condition, values = "", list[Any]()
        if edit_id:
            condition, values = "AND v.seq IN (SELECT seq FROM changes WHERE tenant = ? AND edit_id = ?)", [tenant, edit_id]
        if by:
            condition, values = f"{condition} AND v.actor = ?", [*values, by]
        with self._storage.reading() as db:
            if edit_id and not purged_among(db, tenant, [edit_id]):
                _one(db, tenant, edit_id)
            if flips and not has_flips(db):
                return Page([], 0, "")
            if flips:
                condition += " AND v.seq IN (SELECT seq FROM flips WHERE tenant = ?)"
                values = [*values, tenant]
            total = count_events(db, tenant, condition, values)
            rows = list(events_where(db, tenant, f"{condition} AND v.seq < ? ORDER BY v.seq DESC LIMIT ?", (*values, *listing.bounds)))
        return Page(rows[:limit], total, listing.next_cursor([row.seq for row in rows]))

    def has_heard(self, tenant: str, idempotency_key: str) -> bool:
        """Whether a call under this key has happened."""
        with self._storage.reading() as db:
            return bool(idempotency_key) and idempotency.is_known(db, tenant, idempotency_key)

    def head(self) -> int:
        """Return the sequence number of the last event of all tenants, 0 before the first; cheap."""
        with self._storage.reading() as db:
            return head(db)

    def head_of(self, tenant: str) -> int:
        """Return the sequence number of the tenant's last event, 0 before the first."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return head(db, tenant)

    def live_release(self, tenant: str) -> str:
        """Return the name of the release that the tenant's answers come from, "" for none; cheap."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return release_at(db, tenant)

    def release_at(self, tenant: str, revision: int) -> str:
        """Return what :meth:`live_release` was after the event ``revision`` of the ledger."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            _refuse_unless_past(db, revision)
            return release_at(db, tenant, revision)

    def carried_by(self, tenant: str, release: str) -> tuple[str, ...]:
        """Return the ids of the edits that a release carries; empty for one that never was live for the tenant."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return (carried_by(db, tenant, release) if is_release(release) else None) or ()

    def release_without(self, tenant: str, edit_ids: Sequence[str]) -> str:
        """Return what to make live when the live release shall lose some edits.

        Of the releases that were live it is the one that carries most of what is left, and nothing else; "" where there is none.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            return largest_without(db, tenant, edit_ids)

    def releases(self) -> set[str]:
        """Return the names of all releases that ever were live, of all tenants."""
        with self._storage.reading() as db:
            return {release for (release,) in db.execute("SELECT DISTINCT release FROM flips WHERE release <> ''")}

    def evidence_of(self, tenant: str, release: str) -> dict[str, Any]:
        """Return what was given as evidence when a release was last promoted; empty where it never was, or that was purged."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return evidence_of(db, tenant, release) if is_release(release) else {}

    def outdated(self, tenant: str) -> list[Edit]:
        """Return the edits that the live release carries though newer ones superseded them, oldest first.

        A new edit leaves none; a flip to a release that was named by the caller, or back to an old revision, may.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            return [edit for edit in edits_by_id(db, tenant, flip_at(db, tenant).edit_ids) if not edit.is_live]

    def scorecard(self, tenant: str, sha256: str) -> dict[str, Any]:
        """Return what was kept under this hash.

        Raises:
            NotFound: nothing was, it is another tenant's, or it was purged with an edit.
        """
        check(tenant=tenant)
        with self._storage.reading() as db:
            return scorecards.read(db, tenant, sha256)

    def scorecards_of(self, tenant: str, edit_id: str, limit: int = 5) -> list[dict[str, Any]]:
        """Name the newest scorecards about an edit, newest first: hash, time, suite, revision, release, and whether the edit passed."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return scorecards.about(db, tenant, edit_id, limit)

    def fired(self, tenant: str) -> dict[str, int]:
        """Return how often each edit was asked for; one that never was is not in it."""
        check(tenant=tenant)
        with self._storage.reading() as db:
            return firings.of(db, tenant)

    def chain(self, seq: int) -> str:
        """Return the hash of the event ``seq``, which stands for the whole history up to it; "" where there is none."""
        with self._storage.reading() as db:
            row = db.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
        return row[0].hex() if row else ""

    def tenants(self) -> list[str]:
        """Return all tenants that ever recorded something, sorted."""
        with self._storage.reading() as db:
            return [tenant for (tenant,) in db.execute("SELECT DISTINCT tenant FROM events ORDER BY tenant")]

    def audit(self) -> list[Finding]:
        """Check file, schema, hash chain and keys, and every table that follows from the log; empty when all is as it should be."""
        found: list[Finding] = []
        try:
            with self._storage.reading() as db:
                found.extend(audit.findings(db))
        except LedgerDamaged as error:
            found.append(Finding("file", error.message))
        return found


def _as_then(edit: Edit, then: Change) -> Edit:
    state = then.standing.state
    approval: dict[str, Any] = {"approved_by": "", "approved_revision": 0, "supersedes": ()} if state is State.PROPOSED else {}
    return replace(edit, state=state, superseded_by=then.superseded_by, **approval)


def _one(db: apsw.Connection, tenant: str, edit_id: str) -> Edit:
    found = edits_by_id(db, tenant, [edit_id]) if EDIT_ID.fullmatch(edit_id) else []
    if not found:
        raise absent(db, tenant, [edit_id])
    return found[0]


def _asked(fact: Fact) -> dict[str, Any]:
    """What a call asks for: a refusal and its hashes, or the moment at which a duration ends, may differ when it is repeated."""
    untold = {"expires", "target", "forgotten"} if fact.forget else {"expires"}
    return {name: value for name, value in record_of(fact).items() if name not in untold}


def _record_together(db: apsw.Connection, author: Author, corrections: Sequence[Correction], guard: Guard | None) -> tuple[int, int]:
    revisions: set[int] = set()
    for correction in corrections:
        revisions.add(record(db, author, correction, siblings=revisions, guard=guard))
    return min(revisions), max(revisions)


def _publish(
    db: apsw.Connection, author: Author, kind: str, payload: dict[str, Any], changes: Sequence[Change], flip: Flip | None
) -> Published:
    then = standing_of(db, author.tenant, changes)
    revision = append(db, author, kind, payload, changes, flip)
    moved = [change for change in changes if change != then[change.edit_id]]
    promoted, demoted = (
        edits_by_id(db, author.tenant, [change.edit_id for change in moved if change.standing is standing])
        for standing in (Standing.PROMOTED, Standing.ACTIVE)
    )
    return Published(promoted, demoted, revision, release_at(db, author.tenant))


def _refuse_unless_past(db: apsw.Connection, revision: int) -> int:
    last = head(db)
    if not 0 <= revision <= last:
        raise InvalidInput(f"the revision is {revision}.", f"Give one from 0 to {last}.")
    return last


def _json(name: str, value: Mapping[str, Any]) -> str:
    """Write what a caller gives as one JSON text."""
    try:
        text = canonical(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is no JSON ({error}).", "Give texts, numbers, lists and objects.") from error
    return text
