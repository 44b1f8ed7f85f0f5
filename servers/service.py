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
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, KeToolsError, LedgerDamaged, NotFound, ReadOnly, Unavailable, Unsupported
from ke_tools.facts import Edit, Fact, Probe, State
from ke_tools.memory.events import Event, RolledBack
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.router import READER, Routed, Router, Via, reading_of
from ke_tools.memory.scope import Decision, Scope
from ke_tools.models.engine import Engine, Generation, Message, Piece, Request, one_turn
from ke_tools.servers.damage import Damage
from ke_tools.servers.principal import Principal
from ke_tools.servers.promotions import Heard, Promotions, shown
from ke_tools.servers.slot import ModelSlot, Say

if TYPE_CHECKING:
    from ke_tools.verify.run import Ask

log = logging.getLogger(__name__)

View = Literal["edited", "base", "both"]
Mode = Literal["auto", "replace", "add"]
MOST_VERIFIED: Final = 10
_FIELDS: Final = {field.name for field in dataclasses.fields(Fact)}
_BASE_ANSWERS_KEPT: Final = 4096
_AT_ONCE: Final = 32  # probes a batch, as many as the in-process engine answers together; between batches a caller may leave


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
        self.model_id = model_id
        self.url = url
        self.unwritable = unwritable
        self.damage = Damage()
        self._ledger = ledger
        self._scope = None if isinstance(ledger, KeToolsError) else Scope(ledger, alpha=settings.alpha, cache=settings.cache)
        self._promotions = None if isinstance(ledger, KeToolsError) else Promotions(settings, ledger)
        self._router = Router(self._scope, demonstrations=settings.demonstrations, grey=settings.grey) if self._scope else None
        self._base_answers: OrderedDict[tuple[str, str, bool], str] = OrderedDict()
        self._verifying = ThreadPoolExecutor(1, "ke-verify")  # each takes all of the model, so one at a time is as fast

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
    ) -> dict[str, Any]:
        """Record corrections, all or none; they act on the next answer.

        Raises:
            InvalidInput, Conflict, ReadOnly, Forbidden: nothing was recorded.
        """
        self.check_writable(who)
        made, refs = [], []
        for number, given in enumerate(facts, 1):  # as the ledger counts them
            made.append(_fact(given, number))
            refs.append(str(given.get("ref", "")))
        with self.damage.watching("write", who.tenant):
            edits = self.ledger.edit(
                who.tenant,
                made,
                actor=who.name,
                reason=reason,
                mode=mode,
                idempotency_key=idempotency_key,
                refs=refs,
                dry_run=dry_run,
            )
        if not dry_run:
            self.scope.calibrate(edits)
        revision = self.revision
        return {
            "summary": self._edit_summary(edits, dry_run=dry_run),
            "edits": [row(edit) for edit in edits],
            "revision": revision,
            "model": self.model_id,
            "url": self.url,
            "dry_run": dry_run,
        }

    def rollback(
        self,
        who: Principal,
        *,
        edit_ids: Sequence[str] = (),
        to_revision: int | None = None,
        to: Literal["base", "memory"] = "base",
        reason: str = "",
    ) -> dict[str, Any]:
        """Take edits back, or bring back what was live at a revision (0: nothing).

        Where the live release carries one of them, the largest earlier release without them is live at once, or none; what that does
        not carry is answered from the memory. With ``to="memory"`` the edits are taken out of the weights only.

        Raises:
            InvalidInput, NotFound, WrongState, ReadOnly, Forbidden: nothing was changed.
        """
        self.check_writable(who)
        if to == "memory":
            return self._to_memory(who, edit_ids, reason)
        if bool(edit_ids) == (to_revision is not None):
            raise InvalidInput("rollback takes edit_ids or to_revision, and exactly one of them.", "Call list_edits or history for either.")
        with self.damage.watching("write", who.tenant):
            if to_revision is not None:
                done = self.ledger.rollback_to(who.tenant, to_revision, actor=who.name, reason=reason)
            else:
                release = self.promotions.without(who.tenant, edit_ids)
                done = self.ledger.rollback(who.tenant, edit_ids, actor=who.name, reason=reason, release=release)
        return {
            "summary": self._rollback_summary(done, to_revision),
            "retired": [row(edit) for edit in done.retired],
            "restored": [row(edit) for edit in done.restored],
            "revision": done.revision,
            "model": self.model_id,
        }

    def _to_memory(self, who: Principal, edit_ids: Sequence[str], reason: str) -> dict[str, Any]:
        release = self.promotions.without(who.tenant, edit_ids) or ""
        with self.damage.watching("write", who.tenant):
            done = self.ledger.demote(who.tenant, edit_ids, release=release, actor=who.name, reason=reason)
        count, live = _count(done.demoted, "edit"), f"{release} is live" if release else "no release is live"
        return {
            "summary": f"{count} out of the weights; the memory answers from them, {live}. {self._target_of_change()}",
            "retired": [],
            "restored": [row(edit) for edit in done.demoted],
            "revision": done.revision,
            "model": self.model_id,
        }

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

    async def job_status(self, who: Principal, job_id: str, *, wait_seconds: float = 0.0, heard: Heard | None = None) -> dict[str, Any]:
        """Say how a job stands; wait for its end, but not longer than asked for.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        who.require("read")
        return shown(await self.promotions.wait(who, job_id, wait_seconds, heard))

    def job_cancel(self, who: Principal, job_id: str) -> dict[str, Any]:
        """Stop a job; one that has ended or is publishing goes its way.

        Raises:
            NotFound: as :meth:`job_status`. ReadOnly, Forbidden: it may not.
        """
        self.check_writable(who)
        return shown(self.promotions.cancel(who, job_id))

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
            "summary": f"{len(page.items)} of {_count(page.total, 'edit')}"
            + (f" in state {state}" if state != "any" else "")
            + (f" containing {contains!r}" if contains else "")
            + ("; call again with next_cursor for more." if page.next_cursor else "."),
            "edits": [row(edit) for edit in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
            "truncated": bool(page.next_cursor),
        }

    def get_edit(self, who: Principal, edit_id: str) -> dict[str, Any]:
        """Show one edit.

        Raises:
            NotFound: there is none of that id for this tenant.
        """
        who.require("read")
        with self.damage.watching("get", who.tenant, edit_id):
            return row(self.ledger.get(who.tenant, edit_id))

    def history(self, who: Principal, *, edit_id: str = "", limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """Say what changed when and by whom, newest first."""
        who.require("read")
        with self.damage.watching("history", who.tenant, edit_id, limit, cursor):
            page = self.ledger.history(who.tenant, edit_id=edit_id, limit=limit, cursor=cursor)
        about = f" of {edit_id}" if edit_id else ""
        return {
            "summary": f"{len(page.items)} of {_count(page.total, 'event')}{about}, newest first.",
            "events": [_event(event) for event in page.items],
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
        routed = await asyncio.to_thread(self._route, who, request, engine, view, via)
        return routed, engine.stream(routed.request)

    async def complete(
        self, who: Principal, request: Request, *, view: Literal["edited", "base"] = "edited", via: Via = "auto", wait_seconds: float = 120
    ) -> tuple[Routed, Generation]:
        """Route a request and answer it in one piece. Cancelled, it stops generating."""
        routed, pieces = await self.open_stream(who, request, view=view, via=via, wait_seconds=wait_seconds)
        async for piece in pieces:
            if piece.finished is not None:
                return routed, piece.finished
        raise KeToolsError("the engine ended a generation without finishing it.", "This is a defect; please report it.")

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
        who.require("read")
        if not question.strip():
            raise InvalidInput("the question is empty.", "Ask something.")
        engine = await self.models.engine_async(wait_seconds)
        request = one_turn(question, engine, max_tokens)
        views: tuple[Literal["edited", "base"], ...] = ("base", "edited") if view == "both" else (view,)
        answers, decision, truncated = [], None, False
        base: Generation | None = None
        for one in views:
            routed = await asyncio.to_thread(self._route, who, request, engine, one, via)
            if routed.request is not request or base is None:  # greedy: the same request has the same answer
                made = await _finish(engine.stream(routed.request))
            else:
                made = base
            base = made if routed.request is request else base
            truncated |= made.finish_reason == "length"
            decision = routed.decision if one == "edited" else decision
            answers.append(_answer(one, routed, made))
        return {
            "summary": _query_summary(answers),
            "answers": answers,
            "model": self.model_id,
            "revision": self.revision,
            "truncated": truncated,
            "explain": explanation(decision) if explain and decision else {"zone": "", "reason": "", "stages": ""},
        }

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
        routed = [self._route(who, request, engine, view, via) for request in requests]
        return list(zip(routed, engine.generate([one.request for one in routed]), strict=True))

    async def verify(
        self,
        who: Principal,
        edit_ids: Sequence[str],
        *,
        suite: Literal["quick", "full"] = "quick",
        probes: Sequence[Mapping[str, Any]] = (),
        wait_seconds: float = 1.5,
    ) -> dict[str, Any]:
        """Measure through the serving path whether edits hold and what else they moved; one call at a time, others wait their turn.

        Cancelled, it stops after the batch of probes that is under way.

        Raises:
            InvalidInput: none or more than ten edits, or a probe that cannot be read.
            NotFound: an unknown edit. ModelLoading: as in :meth:`query`.
        """
        who.require("read")
        if not 0 < len(edit_ids) <= MOST_VERIFIED:
            raise InvalidInput(
                f"verify answers directly for 1 to {MOST_VERIFIED} edits; {len(edit_ids)} were given.", "Verify them in parts."
            )
        edits = [self.ledger.get(who.tenant, edit_id) for edit_id in edit_ids]
        engine = await self.models.engine_async(wait_seconds)
        has_left = threading.Event()
        work = partial(self._verify, who, engine, edits, suite, probes, has_left)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._verifying, work)
        finally:
            has_left.set()

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
            "ready": self.models.state == "ready" and not ledger_error,
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
        if not isinstance(self._ledger, KeToolsError):
            self._ledger.close()

    # Inside

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
            routed = self._under_release(who, routed, engine, is_needed=via == "weights")
        except (InvalidInput, Unsupported):
            raise
        except Exception:  # fail towards the base model, whatever broke
            log.exception("routing failed; the base model answers")
            return Routed.untouched(request, "error", self.revision)
        self._note(who.tenant, routed.decision)
        return routed

    def _under_release(self, who: Principal, routed: Routed, engine: Engine, *, is_needed: bool) -> Routed:
        """Add the tenant's live release; a request that names an adapter of its own keeps that one alone."""
        name = self.promotions.adapter(who.tenant, engine) if routed.request.adapter in {"", READER} else ""
        if not name and is_needed:
            raise Unsupported("none of your edits is in the weights, or their release cannot be served.", "Use via auto.")
        if not name:
            return routed
        adapter = "+".join(part for part in (routed.request.adapter, name) if part)
        route = "weights" if routed.route == "base" else routed.route
        return dataclasses.replace(routed, request=dataclasses.replace(routed.request, adapter=adapter), route=route)

    def _note(self, tenant: str, decision: Decision) -> None:
        """Remember whether the edits could be read that a question is answered from."""
        stale, error = str(decision.stages.get("stale", "")), str(decision.stages.get("error", ""))
        if stale:
            self.damage.note(("scope", tenant), f"the last known edits act: {stale}")
        elif error.startswith(LedgerDamaged.code):
            self.damage.note(("scope", tenant), f"the edits of a tenant do not act: {error}")
        elif not error:
            self.damage.forget(("scope", tenant))

    def _verify(
        self,
        who: Principal,
        engine: Engine,
        edits: Sequence[Edit],
        suite: Literal["quick", "full"],
        given: Sequence[Mapping[str, Any]],
        has_left: threading.Event,
    ) -> dict[str, Any]:
        from ke_tools.verify import known
        from ke_tools.verify import probes as making
        from ke_tools.verify.asking import request_of
        from ke_tools.verify.run import verify

        live = self.ledger.live(who.tenant)
        near = [fact for edit in edits for fact in making.candidates(edit, live=live, suite=suite)]
        facts = known.knows(engine, near, cache=self.settings.cache, progress=lambda *_: _stop_if(has_left))
        made = [probe for edit in edits for probe in making.probes_for(edit, known=facts, live=live, suite=suite)]
        made += [making.given(probe, edits) for probe in given]

        def ask_edited(asked: Sequence[Probe]) -> list[str]:
            routed = [self._route(who, request_of(p, engine), engine, "edited", "auto") for p in asked]
            return [one.text for one in engine.generate([r.request for r in routed])]

        def ask_base(asked: Sequence[Probe]) -> list[str]:
            return self._base(engine, asked)

        card = verify(edits, made, _in_batches(ask_edited, has_left), _in_batches(ask_base, has_left))
        found = card.as_dict()
        return {
            "summary": f"{'Passed' if found['passed'] else 'Not passed'}: {card.sentence()}",
            "suite": suite,
            **found,
            "revision": self.revision,
            "model": self.model_id,
        }

    def _base(self, engine: Engine, probes: Sequence[Probe]) -> list[str]:
        """The base model's greedy answers; they never change, so they are kept."""
        from ke_tools.verify.asking import request_of

        keys = [(engine.fingerprint, probe.prompt, probe.chat) for probe in probes]
        missing = {key: probe for key, probe in zip(keys, probes, strict=True) if key not in self._base_answers}
        made = engine.generate([request_of(probe, engine) for probe in missing.values()])
        self._base_answers.update({key: one.text for key, one in zip(missing, made, strict=True)})
        answers = [self._base_answers[key] for key in keys]
        while len(self._base_answers) > _BASE_ANSWERS_KEPT:
            self._base_answers.popitem(last=False)
        return answers

    def check_writable(self, who: Principal) -> None:
        """Do nothing where ``who`` may write.

        Raises:
            ReadOnly, Forbidden: it may not.
        """
        who.require("write")
        if self.settings.read_only:
            raise ReadOnly("the server was started with --read-only.", "Start it without, or write on another server.")
        if self.unwritable is not None:
            raise self.unwritable.with_traceback(None)

    def _target_of_change(self) -> str:
        where = f" at {self.url}" if self.url else ""
        return f"Changed: model {self.model_id}{where}; your own model is not changed."

    def _edit_summary(self, edits: Sequence[Edit], *, dry_run: bool) -> str:
        superseded = [earlier for edit in edits for earlier in edit.supersedes]
        told = f", superseding {', '.join(superseded)}" if superseded else ""
        if dry_run:
            return f"Dry run: {_count(edits, 'edit')} would be active{told}. Nothing was changed."
        active = f"{_count(edits, 'edit')} active from the next answer on{told}."
        return f"{active} Check with verify, undo with rollback. {self._target_of_change()}"

    def _rollback_summary(self, done: RolledBack, to_revision: int | None) -> str:
        if not done.retired and not done.restored and not done.release:
            return f"Nothing was changed: what was live at revision {to_revision} is what is live now."
        restored = f" {_count(done.restored, 'earlier edit')} came back." if done.restored else ""
        return f"{_count(done.retired, 'edit')} rolled back.{restored} {self._target_of_change()}"


def open_service(settings: Settings, *, url: str = "") -> Service:
    """Open the home of ``settings``; the model is not loaded until somebody asks it or calls ``models.start()``."""
    from ke_tools.servers.engines.loading import load_engine, model_id

    ledger, unwritable = _open_ledger(settings)

    def load(say: Say) -> Engine:
        engine = load_engine(settings, say)
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


def frozen_messages(messages: Any) -> tuple[Message, ...]:
    """Check the shape of a conversation given by a caller.

    Raises:
        InvalidInput: not a list of ``{"role", "content"}``.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages is not a list of turns.", 'Write [{"role": "user", "content": "…"}].')
    for turn in messages:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise InvalidInput(f"a message is not of the form {{role, content}}: {str(turn)[:80]}", "Give both for every turn.")
    return tuple(messages)


def row(edit: Edit) -> dict[str, Any]:
    """An edit as the tools show it."""
    return {
        "edit_id": edit.id,
        "ref": edit.ref,
        "subject": edit.fact.subject,
        "prompt": edit.fact.prompt,
        "target": edit.fact.target,
        "relation": edit.relation,
        "state": edit.state.value,
        "created_at": edit.created_at,
        "revision": edit.revision,
        "superseded": list(edit.supersedes),
        "superseded_by": edit.superseded_by,
        "alias_risky": edit.alias_risky,
        "warnings": list(edit.warnings),
    }


def explanation(decision: Decision) -> dict[str, str]:
    """A decision as text."""
    import json

    return {"zone": decision.zone, "reason": decision.reason, "stages": json.dumps(dict(decision.stages), ensure_ascii=False, default=str)}


def _fact(given: Mapping[str, Any], number: int) -> Fact:
    unknown = given.keys() - _FIELDS - {"ref"}
    if unknown:
        raise InvalidInput(f"edit {number} has the unknown fields {sorted(unknown)}.", f"Known are {sorted(_FIELDS | {'ref'})}.")
    if missing := [name for name in ("subject", "prompt", "target") if name not in given]:
        raise InvalidInput(f"edit {number} lacks {', '.join(missing)}.", "Give subject, prompt and target.")
    fields: dict[str, Any] = {}
    for name in _FIELDS & given.keys():
        many = name in {"paraphrases", "aliases"}
        value = given[name]
        if many and isinstance(value, Collection) and not isinstance(value, str | bytes) and all(isinstance(v, str) for v in value):
            fields[name] = tuple(value)
        elif not many and isinstance(value, str):
            fields[name] = value
        else:
            raise InvalidInput(f"edit {number}: {name} is not {'a list of texts' if many else 'a text'}.", "See the schema of edit.")
    try:
        return Fact(**fields)
    except InvalidInput as error:
        raise InvalidInput(f"edit {number}: {error.message}", error.hint) from error


def _answer(view: str, routed: Routed, made: Generation) -> dict[str, Any]:
    return {
        "view": view,
        "text": made.text.strip(),
        "route": routed.route,
        "used_edits": [{"edit_id": hit.edit.id, "score": round(hit.score, 4)} for hit in routed.hits],
        "finish_reason": made.finish_reason,
        "reason": routed.reason,
    }


def _query_summary(answers: Sequence[Mapping[str, Any]]) -> str:
    texts = {str(answer["view"]): str(answer["text"]) for answer in answers}
    used = [edit["edit_id"] for answer in answers for edit in answer["used_edits"]]
    if len(texts) == 2:  # noqa: PLR2004
        if texts["base"] != texts["edited"]:
            return f"Before: {texts['base']} After: {texts['edited']}"
        if used:
            return f"Given to the model, but its answer did not change: {', '.join(used)}. It says: {texts['base']}"
        return f"Unchanged by edits: {texts['base']}"
    return str(answers[0]["text"]) + (f" (from {', '.join(used)})" if used else "")


def _event(event: Event) -> dict[str, Any]:
    return {
        "at": event.at,
        "revision": event.seq,
        "actor": event.actor,
        "action": event.action,
        "edit_ids": list(event.edit_ids),
        "note": event.note,
    }


def _in_batches(ask: Ask, has_left: threading.Event) -> Ask:
    def ask_all(probes: Sequence[Probe]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(probes), _AT_ONCE):
            _stop_if(has_left)
            answers += ask(list(probes[start : start + _AT_ONCE]))
        return answers

    return ask_all


def _stop_if(has_left: threading.Event) -> None:
    if has_left.is_set():
        raise KeToolsError("whoever asked for this has left; nobody hears of it.")


async def _finish(pieces: AsyncIterator[Piece]) -> Generation:
    async for piece in pieces:
        if piece.finished is not None:
            return piece.finished
    raise NotFound("the engine ended a generation without finishing it.")


def _count(things: Sequence[Any] | int, noun: str) -> str:
    number = things if isinstance(things, int) else len(things)
    return f"{number} {noun}" + ("" if number == 1 else "s")
