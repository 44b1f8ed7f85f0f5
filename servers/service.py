"""What every window calls: the MCP server, the OpenAI endpoint and the command line are thin skins over this.

No transport, no protocol. A :class:`Service` joins the ledger (truth), the scope and router (what goes in) and the model
(what answers). Whatever fails on the way to an answer falls back to the base model and says so; whatever fails in a write
raises before anything is acknowledged. Results are plain dictionaries without nulls, ``summary`` first.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from ke_tools.config import Settings
from ke_tools.errors import (
    InvalidInput,
    KeToolsError,
    LedgerDamaged,
    ModelLoading,
    ModelUnavailable,
    NotFound,
    ReadOnly,
    Unavailable,
    Unsupported,
)
from ke_tools.facts import Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.router import READER, Routed, Router, Via, reading_of
from ke_tools.memory.scope import Decision, Hit, Scope
from ke_tools.models.engine import Engine, Generation, Piece, Request, one_turn
from ke_tools.servers import rows, verifying
from ke_tools.servers.candidates import Wanted, candidates
from ke_tools.servers.damage import Damage
from ke_tools.servers.erasing import erase
from ke_tools.servers.expiring import Expiring
from ke_tools.servers.fired import Fired, Hourly
from ke_tools.servers.forgetting import FALLBACK, Forgetting
from ke_tools.servers.latencies import Latencies
from ke_tools.servers.measuring import BaseAnswers
from ke_tools.servers.principal import Principal
from ke_tools.servers.promotions import MOST_WAIT_SECONDS, Heard, Promotions, shown
from ke_tools.servers.slot import ModelSlot, Say
from ke_tools.servers.stating import Statements

log = logging.getLogger(__name__)

View = Literal["edited", "base", "both"]
Mode = Literal["auto", "replace", "add"]


class Service:
    """One home, one model. Thread safe."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger | KeToolsError,
        models: ModelSlot,
        *,
        model_id: str,
        url: str = "",
        unwritable: ReadOnly | None = None,
    ) -> None:
        """Join the parts.

        A ``ledger`` that could not be opened is the error itself, and the base model answers; ``unwritable`` is why one that was to
        be written is open for reading only.
        """
        self.settings = settings
        self.models = models
        self._model_id = model_id
        self.url = url
        self.unwritable = unwritable
        self.damage = Damage()
        self._ledger = ledger
        self._scope = None if isinstance(ledger, KeToolsError) else Scope(ledger, alpha=settings.alpha, cache=settings.cache)
        self._promotions = None if isinstance(ledger, KeToolsError) else Promotions(settings, ledger)
        self._forgetting = Forgetting(settings.home, self._scope) if self._scope else None
        self._router = Router(self._scope, demonstrations=settings.demonstrations, grey=settings.grey) if self._scope else None
        self._statements = Statements(self._scope, cache=settings.cache) if self._scope else None
        self._fired = Fired(None if isinstance(ledger, KeToolsError) else ledger)
        self.hourly, self.latencies = Hourly(), Latencies()
        self._unreleased: dict[str, int] = {}  # by tenant, a revision of the ledger at which no release was live
        self.expiring = Expiring(None if isinstance(ledger, KeToolsError) else ledger)
        self.expiring.arm()
        self._base_answers = BaseAnswers()
        self._verifying = ThreadPoolExecutor(1, "ke-verify")  # each takes all of the model, so one at a time is as fast

    @property
    def model_id(self) -> str:
        """The name under which the model is served; one that another server runs has its own as soon as that has told it."""
        engine = self.models.peek()
        return engine.model_id if engine else self._model_id

    @property
    def ledger(self) -> Ledger:
        """The ledger.

        Raises:
            KeToolsError: it could not be opened; the message says why.
        """
        if isinstance(self._ledger, KeToolsError):
            raise self._ledger.with_traceback(None)  # or it would grow with every raise
        return self._ledger

    @property
    def scope(self) -> Scope:
        """What decides which edits a question is about.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        if self._scope is None:
            raise self._ledger.with_traceback(None) if isinstance(self._ledger, KeToolsError) else LedgerDamaged("there is no ledger.")
        return self._scope

    @property
    def forgetting(self) -> Forgetting:
        """What keeps back what is forgotten.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        if self._forgetting is None:
            raise self._ledger.with_traceback(None) if isinstance(self._ledger, KeToolsError) else LedgerDamaged("there is no ledger.")
        return self._forgetting

    @property
    def statements(self) -> Statements:
        """What splits sentences into edits.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        if self._statements is None:
            raise self._ledger.with_traceback(None) if isinstance(self._ledger, KeToolsError) else LedgerDamaged("there is no ledger.")
        return self._statements

    @property
    def trouble(self) -> str:
        """What needs a person although questions are answered from the corrections; empty where nothing does."""
        unserved = self._promotions.trouble if self._promotions else ""
        return self.damage.told or unserved or str(self.unwritable or "")

    @property
    def revision(self) -> int:
        """The ledger's sequence number; 0 where there is none."""
        try:
            return self.ledger.head()
        except KeToolsError:
            return 0

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
        self._base_answers = BaseAnswers()
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

    @property
    def promotions(self) -> Promotions:
        """The jobs and releases.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        if self._promotions is None:
            raise self._ledger.with_traceback(None) if isinstance(self._ledger, KeToolsError) else LedgerDamaged("there is no ledger.")
        return self._promotions

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
        self._fired.flush()
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

    # Answering

    async def open_stream(
        self, who: Principal, request: Request, *, view: Literal["edited", "base"] = "edited", via: Via = "auto", wait_seconds: float = 120
    ) -> tuple[Routed, AsyncIterator[Piece]]:
        """Route a request and begin to answer it; closing the iterator cancels the generation.

        Raises:
            ModelLoading, ModelUnavailable, InvalidInput: there will be no answer.
        """
        who.require("chat")
        engine = await self.models.engine_async(wait_seconds)
        routed = await asyncio.to_thread(self._asked, who, request, engine, view, via)
        return await self._opened(who, routed, engine)

    async def complete(
        self, who: Principal, request: Request, *, view: Literal["edited", "base"] = "edited", via: Via = "auto", wait_seconds: float = 120
    ) -> tuple[Routed, Generation]:
        """Route a request and answer it in one piece. Cancelled, it stops generating."""
        routed, pieces = await self.open_stream(who, request, view=view, via=via, wait_seconds=wait_seconds)
        async for piece in pieces:
            if piece.finished is not None:
                return routed, piece.finished
        raise KeToolsError("the engine ended a generation without finishing it.", "This is a defect; please report it.")

    def routed(self, who: Principal, request: Request, engine: Engine, view: Literal["edited", "base"]) -> Routed:
        """Say what goes to a model that is asked elsewhere; blocks for as long as the scope decides."""
        who.require("chat")
        return self._asked(who, request, engine, view, "auto")

    def routed_at_once(self, who: Principal, request: Request) -> Routed | None:
        """The same for an event loop, where no subject is named and no release is live; ``None`` where deciding might take its time."""
        who.require("chat")
        began = time.perf_counter()
        try:
            if self._scope is None or self.settings.via == "weights":
                return None
            revision = self._scope.out_at_once(who.tenant, reading_of(request))
            if revision is None or not self._has_no_release(who.tenant, revision):
                return None
        except KeToolsError:
            return None
        self.latencies.note(who.tenant, "routing", time.perf_counter() - began)
        self.hourly.note(who.tenant, 0)
        self.damage.forget(("scope", who.tenant))
        return Routed.untouched(request, "", revision)

    def _has_no_release(self, tenant: str, revision: int) -> bool:
        """Whether no release was live when the ledger ended with ``revision``; asks the ledger once for each."""
        if self._unreleased.get(tenant) != revision:
            if self.ledger.live_release(tenant):
                return False
            self._unreleased[tenant] = revision  # if it has grown since, the next scope sees another revision
        return True

    def forgets(self, who: Principal) -> bool:
        """Whether something is forgotten for ``who``, so that also what cannot be read as a question has to be looked at."""
        if self._scope is None:
            return False
        try:
            self._scope.named(who.tenant, "")  # follows the ledger
        except KeToolsError as error:
            log.warning("what is forgotten is as it was known last: %s", error)
        return bool(self._scope.forgetting(who.tenant))

    def watched(self, who: Principal, text: str) -> Routed:
        """Say what an answer may not say to a request that cannot be read, by all that it says anywhere."""
        who.require("chat")
        routed = Routed.untouched(Request(prompt=text), "unread", self.revision)
        return self.forgetting.watched(who.tenant, routed, routed.request, is_unread=True)

    def judged(self, who: Principal, routed: Routed, text: str, engine: Engine) -> tuple[Routed, Generation]:
        """Give an answer back that was made elsewhere, or the refusal where it says what is forgotten."""
        made = Generation(text, "stop", 0, 0)
        return (routed, made) if self._forgetting is None else self._forgetting.judged(who.tenant, routed, made, engine)

    async def query(
        self,
        who: Principal,
        question: str,
        *,
        view: View = "edited",
        max_tokens: int = 128,
        explain: bool = False,
        via: Via = "auto",
        wait_seconds: float = 1.5,
    ) -> dict[str, Any]:
        """Ask as one chat turn, greedily.

        Raises:
            ModelLoading: the model is not there yet; ``data["poll_after_ms"]`` says when to ask again.
        """
        told, decision = await self.queried(who, question, view=view, max_tokens=max_tokens, via=via, wait_seconds=wait_seconds)
        return {**told, "explain": rows.explanation(decision) if explain and decision else {"zone": "", "reason": "", "stages": ""}}

    async def queried(
        self, who: Principal, question: str, *, view: View, max_tokens: int, via: Via = "auto", wait_seconds: float
    ) -> tuple[dict[str, Any], Decision | None]:
        """As :meth:`query`, with what the scope decided where it was asked."""
        who.require("read")
        if not question.strip():
            raise InvalidInput("the question is empty.", "Ask something.")
        engine = await self.models.engine_async(wait_seconds)
        request = one_turn(question, engine, max_tokens)
        views: tuple[Literal["edited", "base"], ...] = ("base", "edited") if view == "both" else (view,)
        answers, decision, truncated = [], None, False
        base: Generation | None = None
        for one in views:
            began = time.perf_counter()
            routed = await asyncio.to_thread(self._asked, who, request, engine, one, via)
            if routed.route == "forget" or routed.watched or routed.request is not request or base is None:
                routed, pieces = await self._opened(who, routed, engine)
                made = await _finish(pieces)
                self.latencies.note(who.tenant, "answer", time.perf_counter() - began)
            else:
                made = base  # greedy: the same request has the same answer
            base = made if one == "base" else base
            truncated |= made.finish_reason == "length"
            decision = routed.decision if one == "edited" else decision
            answers.append(rows.answer_row(one, routed, made))
        told = {
            "summary": rows.query_summary(answers),
            "answers": answers,
            "model": self.model_id,
            "revision": self.revision,
            "truncated": truncated,
        }
        return told, decision

    def route(self, who: Principal, request: Request) -> dict[str, Any]:
        """Explain what would go in, without a model and without an answer."""
        who.require("read")
        decision = self.scope.decide(who.tenant, reading_of(request))
        self._note(who.tenant, decision)
        return {
            "zone": decision.zone,
            "edits": [
                {"edit_id": hit.edit.id, "ref": hit.edit.ref, "subject": hit.edit.fact.subject, "score": round(hit.score, 4)}
                for hit in decision.hits
            ],
            "stages": dict(decision.stages),
            "reason": decision.reason,
            "revision": decision.revision,
        }

    def answer_batch(
        self, who: Principal, requests: Sequence[Request], *, view: Literal["edited", "base"] = "edited", via: Via = "auto"
    ) -> list[tuple[Routed, Generation]]:
        """Answer many at once; blocks, and waits for the model."""
        who.require("read")
        engine = self.models.engine(wait_seconds=3600)
        return self.generated(who, [self._asked(who, request, engine, view, via) for request in requests], engine)

    async def verify(
        self,
        who: Principal,
        edit_ids: Sequence[str] = (),
        *,
        revision: int | None = None,
        release: str = "",
        suite: Literal["quick", "full"] = "quick",
        probes: Sequence[Mapping[str, Any]] = (),
        wait_seconds: float = 1.5,
        heard: Heard | None = None,
        is_patient: bool = False,
    ) -> dict[str, Any]:
        """Measure through the serving path whether edits hold and what else they moved.

        The quick suite of a few edits is measured here, one call at a time; whatever takes longer is a job of the worker, which goes on
        when the call has answered. Cancelled, the first stops after the batch of probes that is under way.

        Args:
            who: asks.
            edit_ids: which; without these all that are live.
            revision: instead: what was live then, as it was answered then.
            release: instead: what this release carries, by its weights alone.
            suite: how much is asked.
            probes: the caller's own.
            wait_seconds: for a model that is still loading, and for the end of a job.
            heard: hears how far a job is.
            is_patient: the call may take longer than others may, so that what was begun here is not handed to the worker.

        Raises:
            InvalidInput: no edits, or a probe that cannot be read. NotFound: an unknown edit or release.
            ModelLoading: as in :meth:`query`. ReadOnly: it would take a job, and this server writes nothing.
        """
        who.require("read")
        find = partial(verifying.wanted, self.settings, self.ledger, who.tenant)
        what = await asyncio.to_thread(find, edit_ids=edit_ids, revision=revision, release=release, suite=suite, probes=probes)
        can_queue = not self.settings.read_only and self.unwritable is None
        if what.is_small or not can_queue:
            found = await self._measured_here(who, what, wait_seconds, is_patient=is_patient or not can_queue)
            if found is not None:
                return found
        job = await asyncio.to_thread(self.promotions.queue, who, "verify", what.arguments())
        job = await self.promotions.wait(who, job.id, wait_seconds, heard)
        return await asyncio.to_thread(self.verified, who, job.id)

    async def _measured_here(
        self, who: Principal, what: verifying.Wanted, wait_seconds: float, *, is_patient: bool
    ) -> dict[str, Any] | None:
        """Measure in this process; ``None`` where it takes longer than a call may."""
        if not what.is_few:
            raise ReadOnly(
                f"{len(what.edit_ids)} edits are measured by a job, and this server writes none.",
                f"Verify up to {verifying.MOST_DIRECTLY} at a time.",
            )
        began = time.monotonic()
        engine = await self.models.engine_async(wait_seconds)
        has_left = threading.Event()

        def stop_if_left(*_: object) -> None:
            if has_left.is_set():
                raise KeToolsError("whoever asked for this has left; nobody hears of it.")

        work = partial(verifying.measure, self, who, engine, what, base=self._base_answers, tell=stop_if_left)
        measured = asyncio.get_running_loop().run_in_executor(self._verifying, work)
        left = None if is_patient else max(1.0, MOST_WAIT_SECONDS - (time.monotonic() - began))
        try:
            done, _ = await asyncio.wait({measured}, timeout=left)
            return measured.result() if done else None
        finally:
            has_left.set()
            measured.add_done_callback(_heard_of)
            measured.cancel()

    def verified(self, who: Principal, job_id: str) -> dict[str, Any]:
        """Say what a job of :meth:`verify` found; of one that has not ended, that it has not.

        Raises:
            NotFound: there is no such job, or its scorecard was purged with an edit.
        """
        who.require("read")
        job = self.promotions.job(who, job_id)
        name = str(job.result.get("scorecard", ""))
        if not name:
            return verifying.not_yet(job, self.model_id)
        return verifying.shown_document(self.ledger.scorecard(who.tenant, name), name, job)

    def path(self, who: Principal, engine: Engine) -> Callable[[Request], Routed]:
        """How this service routes what ``who`` asks, as every client's requests are."""
        return lambda request: self._route(who, request, engine, "edited", "auto")

    def memory_path(self, who: Principal, engine: Engine) -> Callable[[Request], Routed]:
        """The same by the memory alone, whatever is in the weights.

        Raises:
            KeToolsError: as :attr:`ledger`.
        """
        router, via = Router(self.scope, demonstrations=self.settings.demonstrations, grey=self.settings.grey), self.settings.via
        return lambda request: router.route(who.tenant, request, engine=engine, via="auto" if via == "weights" else via)

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

    def warm(self) -> None:
        """Load what the scope needs before the first question; one that cannot be loaded is told by the first that needs it."""
        if self._scope is not None:
            try:
                self._scope.warm()
            except Exception as error:
                log.warning("no question can be found to be about an edit: %s", error, exc_info=not isinstance(error, KeToolsError))

    def close(self) -> None:
        """Free the model and the ledger."""
        self._verifying.shutdown(wait=False, cancel_futures=True)
        self.models.close()
        self.expiring.close()
        if not isinstance(self._ledger, KeToolsError):
            self._fired.flush()
            self._ledger.close()

    # Inside

    def _asked(self, who: Principal, request: Request, engine: Engine, view: Literal["edited", "base"], via: Via) -> Routed:
        """Route what somebody asks, which counts; probes do not."""
        began = time.perf_counter()
        routed = self._route(who, request, engine, view, via)
        if view == "edited":
            self.latencies.note(who.tenant, "routing", time.perf_counter() - began)
        self._fired.note(who.tenant, routed.hits)
        self.hourly.note(who.tenant, len(routed.hits))
        return routed

    def _route(self, who: Principal, request: Request, engine: Engine, view: Literal["edited", "base"], via: Via) -> Routed:
        if view == "base":
            return Routed.untouched(request, "", self.revision)
        if self._router is None:
            return Routed.untouched(request, "ledger", 0)
        via = self.settings.via if via == "auto" else via
        try:
            if via == "weights":
                routed = Routed.untouched(request, "", self.revision)
            else:
                routed = self._router.route(who.tenant, request, engine=engine, via=via)
                routed = self.forgetting.watched(who.tenant, routed, request)
        except (InvalidInput, Unsupported):
            raise
        except Exception:  # fail towards the base model, whatever broke
            log.exception("routing failed; the base model answers")
            return self._watched_at_least(who, Routed.untouched(request, "error", self.revision))
        self._note(who.tenant, routed.decision)
        try:
            return self._under_release(who, request, routed, engine, via)
        except (InvalidInput, Unsupported):
            raise
        except Exception as error:  # what was routed, a refusal above all, stays
            log.exception("the live release cannot be looked up; the memory answers")
            if via == "weights":
                raise Unsupported("which release is live cannot be looked up.", "Use via auto, and see ke-tools doctor.") from error
            return routed

    async def _opened(self, who: Principal, routed: Routed, engine: Engine) -> tuple[Routed, AsyncIterator[Piece]]:
        if self._forgetting is None:
            return routed, engine.stream(routed.request)
        return await self._forgetting.opened(who.tenant, routed, engine)

    def generated(self, who: Principal, routed: Sequence[Routed], engine: Engine) -> list[tuple[Routed, Generation]]:
        """Answer routed requests; what is forgotten is in none of the answers."""
        if self._forgetting is None:
            return list(zip(routed, engine.generate([one.request for one in routed]), strict=True))
        return self._forgetting.generated(who.tenant, routed, engine)

    def _watched_at_least(self, who: Principal, routed: Routed) -> Routed:
        """Keep what is forgotten out of an answer also where nothing else could be decided."""
        try:
            return self.forgetting.watched(who.tenant, routed, routed.request)
        except Exception:
            log.exception("what is forgotten is not looked for in an answer")
            return routed

    def _under_release(self, who: Principal, request: Request, routed: Routed, engine: Engine, via: Via) -> Routed:
        """Add the tenant's live release; a request that names an adapter of its own keeps that one alone.

        Where that release by itself answers such a question of every edit it is about, the memory is left out.
        """
        name = self.promotions.adapter(who.tenant, engine) if routed.request.adapter in {"", READER} else ""
        if not name and via == "weights":
            raise Unsupported("none of your edits is in the weights, or their release cannot be served.", "Use via auto.")
        if not name:
            return routed
        if via == "auto" and routed.route == "memory" and self._answers(who.tenant, name, routed.hits, request):
            return dataclasses.replace(routed, request=dataclasses.replace(request, adapter=name), route="weights")
        adapter = "+".join(part for part in (routed.request.adapter, name) if part)
        route = "weights" if routed.route == "base" else routed.route
        return dataclasses.replace(routed, request=dataclasses.replace(routed.request, adapter=adapter), route=route)

    def _answers(self, tenant: str, release: str, hits: Sequence[Hit], request: Request) -> bool:
        return bool(hits) and all(self.promotions.answers(tenant, release, hit.edit, request) for hit in hits)

    async def answered(self, who: Principal, routed: Routed, engine: Engine) -> Generation:
        """Answer a routed request; cancelled, it stops generating."""
        _, pieces = await self._opened(who, routed, engine)
        return await _finish(pieces)

    def _note(self, tenant: str, decision: Decision) -> None:
        """Remember whether the edits could be read that a question is answered from."""
        stale, error = str(decision.stages.get("stale", "")), str(decision.stages.get("error", ""))
        if stale:
            self.damage.note(("scope", tenant), f"the last known edits act: {stale}")
        elif error.startswith(LedgerDamaged.code):
            self.damage.note(("scope", tenant), f"the edits of a tenant do not act: {error}")
        elif not error:
            self.damage.forget(("scope", tenant))

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


def _open_ledger(settings: Settings) -> tuple[Ledger | KeToolsError, ReadOnly | None]:
    """Open the ledger, for reading where it takes no writes; one that stays shut is given as the error.

    Raises:
        Unavailable: it cannot be opened just now.
    """
    path = settings.ledger_file
    try:
        return Ledger(path, read_only=settings.read_only), None
    except Unavailable:  # busy or full: it passes, and a server without edits would stay so
        raise
    except KeToolsError as error:
        found = error
    if isinstance(found, ReadOnly) and not settings.read_only:
        with suppress(KeToolsError):
            ledger = Ledger(path, read_only=True)
            unwritable = ReadOnly(found.message, "Make it writable and start again, or use --read-only; the corrections made so far act.")
            log.warning("no fact can be corrected: %s", unwritable)
            return ledger, unwritable
    log.warning("the base model answers, without edits: %s", found)
    return found, None


def _heard_of(measured: asyncio.Future[Any]) -> None:
    """Take note of how a measurement ended that nobody waited for."""
    if not measured.cancelled():
        measured.exception()


async def _finish(pieces: AsyncIterator[Piece]) -> Generation:
    async for piece in pieces:
        if piece.finished is not None:
            return piece.finished
    raise NotFound("the engine ended a generation without finishing it.")
