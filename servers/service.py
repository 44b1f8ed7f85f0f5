"""What every window calls: the MCP server, the OpenAI endpoint and the command line are thin skins over this.

No transport, no protocol. A :class:`Service` is a home that is written to and listed; what is asked goes to its ``answering``, what
is measured to its ``verifying``. Whatever fails on the way to an answer falls back to the base model and says so; whatever fails in
a write raises before anything is acknowledged. Results are plain dictionaries without nulls, ``summary`` first.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from ke_tools.config import Settings
from ke_tools.errors import (
    InvalidInput,
    KeToolsError,
    ModelLoading,
    ModelUnavailable,
    NotFound,
    ReadOnly,
    ResourceExhausted,
    Unavailable,
)
from ke_tools.facts import Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Engine
from ke_tools.servers import rows
from ke_tools.servers.answering import Answering
from ke_tools.servers.candidates import Wanted, candidates
from ke_tools.servers.erasing import erase
from ke_tools.servers.forgetting import FALLBACK
from ke_tools.servers.home import Home
from ke_tools.servers.principal import Principal
from ke_tools.servers.promotions import Heard, shown
from ke_tools.servers.slot import ModelSlot, Say
from ke_tools.servers.verifying import Verifying

log = logging.getLogger(__name__)

Mode = Literal["auto", "replace", "add"]


class Service(Home):
    """One home, one model. Thread safe."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger | KeToolsError,
        models: ModelSlot,
        *,
        model_id: str,
        url: str = "",
        unwritable: ReadOnly | ResourceExhausted | None = None,
    ) -> None:
        """Join the parts as :class:`~ke_tools.servers.home.Home` does; ``url`` is where this service is reached."""
        super().__init__(settings, ledger, models, model_id=model_id, unwritable=unwritable)
        self.url = url
        self.answering = Answering(self)
        self.verifying = Verifying(self.answering)

    # Writing

    def edit(
        self,
        who: Principal,
        facts: Sequence[Mapping[str, Any]],
        *,
        mode: Mode = "auto",
        reason: str = "",
        idempotency_key: str = "",
        dry_run: bool = False,
        proposes: bool = False,
        wait_seconds: float = 20.0,
    ) -> dict[str, Any]:
        """Record corrections, all or none; they act on the next answer, or wait for an approval.

        They wait where ``proposes`` says so or the server takes proposals only (``settings.edits``), and where ``who`` may propose and not
        write.

        One with ``statement`` is a sentence in place of subject, prompt and target, which the result shows (:mod:`.stating`).
        One with ``forget`` and without target makes what was said so far a refusal; up to ``wait_seconds`` are waited for the model that
        is asked what it says and how it declines.

        Raises:
            InvalidInput, Conflict, ReadOnly, Forbidden, LimitReached: nothing was recorded.
            ModelLoading, ModelUnavailable: the same, where only the model could tell what is to be forgotten.
        """
        self.check_writable(who, "propose")
        may_act = not proposes and self.settings.edits == "active" and who.may("write")
        limit = self.settings.edits_per_minute if who.edits_per_minute is None else who.edits_per_minute
        made, refs = [], []
        if any(given.get("statement") for given in facts):
            facts = self.statements.expanded(who.tenant, facts, self.models.peek())
        for number, given in enumerate(facts, 1):  # as the ledger counts them
            made.append(self._fact(who, given, number, reason, wait_seconds, is_tried=dry_run))
            refs.append(str(given.get("ref", "")))
        with self.damage.watching("write", who.tenant):
            old = self.ledger.live_release(who.tenant)
            edits = self.ledger.edit(
                who.tenant,
                made,
                actor=who.name,
                reason=reason,
                mode=mode,
                idempotency_key=idempotency_key,
                refs=refs,
                dry_run=dry_run,
                state=State.ACTIVE if may_act else State.PROPOSED,
                over_protection=who.may("admin"),
                per_minute=limit,
            )
        if not dry_run:
            self.scope.calibrate([edit for edit in edits if edit.is_live])
            self.expiring.arm()
        revision = self.revision
        flip = "" if dry_run else self.flip_told(who, old, [superseded for edit in edits for superseded in edit.supersedes])[0]
        return {
            "summary": rows.edit_summary(edits, flip, self.target_of_change(), dry_run=dry_run),
            "edits": [rows.row(edit) for edit in edits],
            "revision": revision,
            "model": self.model_id,
            "url": self.url,
            "dry_run": dry_run,
        }

    def _fact(self, who: Principal, given: Mapping[str, Any], number: int, reason: str, wait_seconds: float, *, is_tried: bool) -> Fact:
        if not given.get("forget"):
            return rows.fact_of(given, number)
        if given.get("target"):
            raise InvalidInput(f"edit {number} forgets, and has a target.", "Leave the target out, or leave forget out.")
        asked = rows.fact_of({**given, "target": FALLBACK, "forget": False}, number)
        try:
            engine = self.models.engine(wait_seconds)
        except (ModelLoading, ModelUnavailable):
            if not asked.old_target:
                raise
            engine = None
        try:
            return self.forgetting.made(who.tenant, asked, engine, reason=reason, is_tried=is_tried)
        except InvalidInput as error:
            raise InvalidInput(f"edit {number}: {error.message}", error.hint) from error

    def purge(self, who: Principal, edit_id: str, *, reason: str) -> dict[str, Any]:
        """Take an edit back and erase what it says, wherever this home keeps it; the history says that it was, and why.

        Where the live release carries it, another release without it is live first, or none. To repeat a purge finishes one that was cut
        short.

        Raises:
            Forbidden: ``who`` is no admin.
            NotFound, InvalidInput, WrongState, ReadOnly: nothing was erased.
            Busy, ResourceExhausted: not all was erased; repeat it.
        """
        who.require("admin")
        self.check_writable(who)
        with self.damage.watching("write", who.tenant):
            release = self.promotions.without(who.tenant, [edit_id])
            erased = erase(self.settings, self.ledger, self.scope, who, edit_id, reason=reason, release=release)
        self.verifying.forget()
        self.promotions.drop(erased["releases"], self.models.peek())
        return {**erased, "model": self.model_id}

    def rollback(
        self,
        who: Principal,
        *,
        edit_ids: Sequence[str] = (),
        to_revision: int | None = None,
        to: Literal["base", "memory"] = "base",
        reason: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Take edits back, or bring back what was live at a revision (0: nothing).

        Where the live release carries one of them, the largest earlier release without them is live at once, or none; what that does
        not carry is answered from the memory. With ``to="memory"`` the edits are taken out of the weights only. A ``dry_run`` tells what
        it would come to.

        Raises:
            InvalidInput, NotFound, WrongState, ReadOnly, Forbidden: nothing was changed.
        """
        self.check_writable(who)
        if to == "memory" and to_revision is not None:
            raise InvalidInput("to=memory takes edits out of the weights, and a revision says what is in them.", "Give edit_ids alone.")
        if to == "memory" and dry_run:
            raise InvalidInput("there is no dry run of to=memory.", "Leave one of them out.")
        if to == "memory":
            return self._to_memory(who, edit_ids, reason)
        if bool(edit_ids) == (to_revision is not None):
            raise InvalidInput("rollback takes edit_ids or to_revision, and exactly one of them.", "Call list_edits or history for either.")
        is_admin = who.may("admin")
        with self.damage.watching("write", who.tenant):
            old = self.ledger.live_release(who.tenant)
            if to_revision is not None:
                done = self.ledger.rollback_to(
                    who.tenant, to_revision, actor=who.name, reason=reason, over_protection=is_admin, dry_run=dry_run
                )
            else:
                release = self.promotions.without(who.tenant, edit_ids)
                done = self.ledger.rollback(
                    who.tenant, edit_ids, actor=who.name, reason=reason, release=release, over_protection=is_admin, dry_run=dry_run
                )
        then = old if to_revision is None else self.ledger.release_at(who.tenant, to_revision)
        flip, job_id = ("", "") if dry_run else self.flip_told(who, old, edit_ids, of=then)
        return {
            "summary": rows.rollback_summary(done, flip, self.target_of_change(), to_revision, dry_run=dry_run),
            "retired": [rows.row(edit) for edit in done.retired],
            "restored": [rows.row(edit) for edit in done.restored],
            "revision": self.revision if dry_run else done.revision,
            "model": self.model_id,
            "release": done.release,
            "job_id": job_id,
        }

    def _to_memory(self, who: Principal, edit_ids: Sequence[str], reason: str) -> dict[str, Any]:
        with self.damage.watching("write", who.tenant):
            old = self.ledger.live_release(who.tenant)
            release = self.promotions.without(who.tenant, edit_ids) or ""
            done = self.ledger.demote(who.tenant, edit_ids, release=release, actor=who.name, reason=reason)
        flip, job_id = self.flip_told(who, old, edit_ids)
        count = rows.counted(len(set(edit_ids)), "edit")
        return {
            "summary": f"{count} out of the weights and answered from the memory.{flip} {self.target_of_change()}",
            "retired": [],
            "restored": [rows.row(edit) for edit in done.demoted],
            "revision": done.revision,
            "model": self.model_id,
            "release": done.release,
            "job_id": job_id,
        }

    def promote_rest(self, who: Principal, old: str) -> None:
        """Promote anew what fell out of the release that was live, where later edits superseded some of it."""
        carried = [self.ledger.get(who.tenant, edit_id) for edit_id in self.ledger.carried_by(who.tenant, old)] if old else []
        if told := self.flip_told(who, old, [edit.id for edit in carried if not edit.is_live])[0]:
            log.warning("%s", told.strip())  # those who import see it on stderr

    def flip_told(self, who: Principal, old: str, leaving: Collection[str], *, of: str | None = None) -> tuple[str, str]:
        """Say which release is live now, if not ``old``; what of ``of`` it lacks beside ``leaving`` is promoted anew, by the job named.

        ``of`` is ``old`` unless given: the release that was asked for and cannot be live, as it carries something that was purged.
        """
        self.expiring.arm()  # what came back may expire
        new, of = self.ledger.live_release(who.tenant), old if of is None else of
        rest = self.promotions.promote_rest(who, of, leaving)
        if new == old:
            return rest.in_words, rest.job_id
        count = rows.counted(self.ledger.carried_by(who.tenant, new), "edit")
        told = f" {new} is live, with {count} in the weights." if new else " No release is live any more."
        if damage := self.promotions.damage(new):
            told += f" It cannot be served, so the memory answers until `ke-tools rebuild`: {damage}"
        return told + rest.in_words, rest.job_id

    # Lasting

    async def promote(
        self,
        who: Principal,
        edit_ids: Sequence[str],
        *,
        method: str = "auto",
        policy: Mapping[str, Any] | None = None,
        reason: str = "",
        idempotency_key: str = "",
        wait_seconds: float = 0.0,
        heard: Heard | None = None,
    ) -> dict[str, Any]:
        """Begin to write edits into the weights, as far as the gate lets them; wait for the end, but not longer than asked for.

        Raises:
            InvalidInput, NotFound, WrongState, Conflict, ReadOnly, Forbidden: no job was begun.
        """
        self.check_writable(who)
        with self.damage.watching("write", who.tenant):
            job = await asyncio.to_thread(
                self.promotions.begin,
                who,
                edit_ids,
                method=method,
                policy=policy,
                reason=reason,
                idempotency_key=idempotency_key,
            )
        return shown(await self.promotions.wait(who, job.id, wait_seconds, heard))

    async def rebuild(self, who: Principal, *, idempotency_key: str = "", wait_seconds: float = 0.0) -> dict[str, Any]:
        """Begin to make the live release again, to the same bytes, or where that cannot be by promoting its edits anew.

        Raises:
            WrongState, Conflict, ReadOnly, Forbidden: no job was begun.
        """
        self.check_writable(who)
        job = await asyncio.to_thread(self.promotions.rebuild, who, idempotency_key=idempotency_key)
        return shown(await self.promotions.wait(who, job.id, wait_seconds))

    def candidates(self, who: Principal, given: Mapping[str, Any]) -> dict[str, Any]:
        """Name edits that are worth a promotion by the settings, what is ``given`` and not ``None`` before these; promote nothing.

        Raises:
            InvalidInput: as :meth:`~ke_tools.servers.candidates.Wanted.from_mapping`.
        """
        who.require("read")
        said = {name: value for name, value in given.items() if value is not None}
        wanted = Wanted.from_mapping({**self.settings.promote.get("auto", {}), **said})
        self.fired.flush()
        found = candidates(self.ledger, who.tenant, wanted)
        asked = f"at least {wanted.older_than_days:g} days old and asked for {wanted.fired} times"
        asked += f", by {' or '.join(wanted.actors)}" if wanted.actors else ""
        return {
            "summary": f"{rows.counted(found, 'edit')} in memory {'is' if len(found) == 1 else 'are'} worth a promotion ({asked}).",
            "candidates": [rows.row(one.edit) | {"reason": one.reason} for one in found],
        }

    async def job_status(self, who: Principal, job_id: str, *, wait_seconds: float = 0.0, heard: Heard | None = None) -> dict[str, Any]:
        """Say how a job stands; wait for its end, but not longer than asked for.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        who.require("read")
        return shown(await self.promotions.wait(who, job_id, wait_seconds, heard))

    def jobs(self, who: Principal, *, limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """List jobs, newest first, a page at a time."""
        who.require("read")
        page = self.ledger.jobs.list(who.tenant, limit, cursor)
        return {
            "summary": f"{len(page.items)} of {rows.counted(page.total, 'job')}, newest first.",
            "jobs": [shown(job) for job in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
        }

    def job_cancel(self, who: Principal, job_id: str) -> dict[str, Any]:
        """Stop a job; one that has ended or is publishing goes its way.

        Raises:
            NotFound: as :meth:`job_status`. ReadOnly, Forbidden: it may not.
        """
        if self.promotions.job(who, job_id).kind == "verify":  # changes nothing, so who may ask for it may stop it
            who.require("read")
        else:
            self.check_writable(who)
        found = shown(self.promotions.cancel(who, job_id))
        if found["status"] == "working":
            found["summary"] = f"{job_id} stops before its next step; nothing of it takes effect."
        return found

    # Reading

    def list_edits(self, who: Principal, *, state: str = "any", contains: str = "", limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """List edits, newest first, a page at a time."""
        who.require("read")
        if state not in {"any", "live", *State}:
            raise InvalidInput(f"there is no state {state!r}.", f"Use any, live, {', '.join(State)}.")
        states = {"any": (), "live": (State.ACTIVE, State.PROMOTED)}.get(state) if state in {"any", "live"} else (State(state),)
        with self.damage.watching("list", who.tenant, state, contains, limit, cursor):
            page = self.ledger.edits(who.tenant, states=states or (), contains=contains, limit=limit, cursor=cursor)
        return {
            "summary": f"{len(page.items)} of {rows.counted(page.total, 'edit')}"
            + (f" in state {state}" if state != "any" else "")
            + (f" containing {contains!r}" if contains else "")
            + ("; call again with next_cursor for more." if page.next_cursor else "."),
            "edits": [rows.row(edit) for edit in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
            "truncated": bool(page.next_cursor),
        }

    def get_edit(self, who: Principal, edit_id: str) -> dict[str, Any]:
        """Show one edit, with the newest events and scorecards about it.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        who.require("read")
        with self.damage.watching("get", who.tenant, edit_id):
            found = rows.row(self.ledger.get(who.tenant, edit_id))
            events = self.ledger.history(who.tenant, edit_id=edit_id).items
            return {
                **found,
                "history": [rows.event_row(event) for event in events],
                "scorecards": self.ledger.scorecards_of(who.tenant, edit_id),
            }

    def get_scorecard(self, who: Principal, name: str) -> dict[str, Any]:
        """Show a scorecard by its hash, or the newest one about an edit; ``scorecard`` is the hash.

        Raises:
            NotFound: there is none for this tenant, or it was purged with an edit.
        """
        who.require("read")
        with self.damage.watching("scorecard", who.tenant, name):
            if name.startswith("ed_"):
                self.ledger.get(who.tenant, name)
                newest = self.ledger.scorecards_of(who.tenant, name, 1)
                if not newest:
                    raise NotFound(f"{name} has no scorecard.", "Call verify.")
                name = newest[0]["scorecard"]
            return {"scorecard": name, **self.ledger.scorecard(who.tenant, name)}

    def history(self, who: Principal, *, edit_id: str = "", limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """Say what changed when and by whom, newest first."""
        who.require("read")
        with self.damage.watching("history", who.tenant, edit_id, limit, cursor):
            page = self.ledger.history(who.tenant, edit_id=edit_id, limit=limit, cursor=cursor)
        about = f" of {edit_id}" if edit_id else ""
        return {
            "summary": f"{len(page.items)} of {rows.counted(page.total, 'event')}{about}, newest first.",
            "events": [rows.event_row(event) for event in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
        }

    # State

    def state(self) -> dict[str, Any]:
        """Say how things stand, for ``/healthz``, ``ke://state`` and ``doctor``."""
        engine = self.models.peek()
        ledger_error = str(self._ledger) if isinstance(self._ledger, KeToolsError) else ""
        return {
            "model": self.model_id,
            "model_state": self.models.state,
            "model_detail": self.models.detail,
            "adapters": sorted(engine.adapters) if engine else [],
            "fingerprint": engine.fingerprint if engine else "",
            "revision": self.revision,
            "ledger": ledger_error or self.trouble or "ok",
            "read_only": self.settings.read_only or self.unwritable is not None,
            "url": self.url,
            "ready": self.models.state == "ready" and not self.models.trouble and not ledger_error,
        }

    def close(self) -> None:
        """Free the model and the ledger."""
        self.verifying.close()
        super().close()

    # Inside

    def check_writable(self, who: Principal, scope: str = "write") -> None:
        """Do nothing where ``who`` has the scope, and there can be written.

        Raises:
            ReadOnly, Forbidden: it may not.
        """
        who.require(scope)
        self.check_open()

    def check_open(self) -> None:
        """Do nothing where anybody may write.

        Raises:
            ReadOnly: nobody may.
        """
        if self.settings.read_only:
            raise ReadOnly("the server was started with --read-only.", "Start it without, or write on another server.")
        if self.unwritable is not None:
            raise self.unwritable.with_traceback(None)

    def target_of_change(self) -> str:
        """Say which model a change is one of."""
        where = f" at {self.url}" if self.url else ""
        return f"Changed: model {self.model_id}{where}; your own model is not changed."


def open_service(settings: Settings, *, url: str = "", owner: str = "") -> Service:
    """Open the home of ``settings``; the model is not loaded until somebody asks it or calls ``models.start()``.

    ``owner`` as :func:`~ke_tools.servers.engines.loading.load_engine` has it.
    """
    from ke_tools.servers.engines.loading import load_engine, model_id

    ledger, unwritable = _open_ledger(settings)

    def load(say: Say) -> Engine:
        engine = load_engine(settings, say, owner=owner)
        service.warm()
        return engine

    service = Service(settings, ledger, ModelSlot(load), model_id=model_id(settings), url=url, unwritable=unwritable)
    return service


def _open_ledger(settings: Settings) -> tuple[Ledger | KeToolsError, ReadOnly | ResourceExhausted | None]:
    """Open the ledger, for reading where it takes no writes; one that stays shut is given as the error.

    Raises:
        Unavailable: it cannot be opened just now.
    """
    path = settings.ledger_file
    try:
        return Ledger(path, read_only=settings.read_only), None
    except KeToolsError as error:
        found = error
    if isinstance(found, (ReadOnly, ResourceExhausted)) and not settings.read_only:
        with suppress(KeToolsError):
            ledger = Ledger(path, read_only=True)
            cure = "Free disk space" if isinstance(found, ResourceExhausted) else "Make it writable"
            unwritable = type(found)(found.message, f"{cure} and start again, or use --read-only; the corrections made so far act.")
            log.warning("no fact can be corrected: %s", unwritable)
            return ledger, unwritable
    if isinstance(found, Unavailable):  # busy or full: it passes, and a server without edits would stay so
        raise found
    log.warning("the base model answers, without edits: %s", found)
    return found, None
