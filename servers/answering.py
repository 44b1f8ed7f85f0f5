"""What is asked: routed, answered by the model, counted; whatever fails on the way falls back to the base model and says so."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ke_tools.errors import InvalidInput, KeToolsError, LedgerDamaged, NotFound, Unsupported
from ke_tools.memory.router import READER, Routed, Router, Via, reading_of
from ke_tools.models.engine import Engine, Generation, Piece, Request, one_turn
from ke_tools.servers import rows
from ke_tools.servers.fired import Hourly
from ke_tools.servers.latencies import Latencies

if TYPE_CHECKING:
    from ke_tools.memory.scope import Decision, Hit
    from ke_tools.servers.home import Home
    from ke_tools.servers.principal import Principal

__all__ = ["Answering", "View"]

log = logging.getLogger(__name__)

View = Literal["edited", "base", "both"]


class Answering:
    """Answers from what a home holds. Thread safe."""

    def __init__(self, home: Home) -> None:
        """Take the home, which whoever opened it closes."""
        self.home = home
        self._router = _router(home) if home.has_ledger else None
        self.hourly, self.latencies = Hourly(), Latencies()
        self._unreleased: dict[str, int] = {}  # by tenant, a revision of the ledger at which no release was live

    async def open_stream(
        self, who: Principal, request: Request, *, view: Literal["edited", "base"] = "edited", via: Via = "auto", wait_seconds: float = 120
    ) -> tuple[Routed, AsyncIterator[Piece]]:
        """Route a request and begin to answer it; closing the iterator cancels the generation.

        Raises:
            ModelLoading, ModelUnavailable, InvalidInput: there will be no answer.
        """
        who.require("chat")
        engine = await self.home.models.engine_async(wait_seconds)
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
            if not self.home.has_ledger or self.home.settings.via == "weights":
                return None
            revision = self.home.scope.out_at_once(who.tenant, reading_of(request))
            if revision is None or not self._has_no_release(who.tenant, revision):
                return None
        except KeToolsError:
            return None
        self.latencies.note(who.tenant, "routing", time.perf_counter() - began)
        self.hourly.note(who.tenant, 0)
        self.home.damage.forget(("scope", who.tenant))
        return Routed.untouched(request, "", revision)

    def _has_no_release(self, tenant: str, revision: int) -> bool:
        """Whether no release was live when the ledger ended with ``revision``; asks the ledger once for each."""
        if self._unreleased.get(tenant) != revision:
            if self.home.ledger.live_release(tenant):
                return False
            self._unreleased[tenant] = revision  # if it has grown since, the next scope sees another revision
        return True

    def forgets(self, who: Principal) -> bool:
        """Whether something is forgotten for ``who``, so that also what cannot be read as a question has to be looked at."""
        if not self.home.has_ledger:
            return False
        try:
            self.home.scope.named(who.tenant, "")  # follows the ledger
        except KeToolsError as error:
            log.warning("what is forgotten is as it was known last: %s", error)
        return bool(self.home.scope.forgetting(who.tenant))

    def watched(self, who: Principal, text: str) -> Routed:
        """Say what an answer may not say to a request that cannot be read, by all that it says anywhere."""
        who.require("chat")
        routed = Routed.untouched(Request(prompt=text), "unread", self.home.revision)
        return self.home.forgetting.watched(who.tenant, routed, routed.request, is_unread=True)

    def judged(self, who: Principal, routed: Routed, text: str, engine: Engine) -> tuple[Routed, Generation]:
        """Give an answer back that was made elsewhere, or the refusal where it says what is forgotten."""
        made = Generation(text, "stop", 0, 0)
        return (routed, made) if not self.home.has_ledger else self.home.forgetting.judged(who.tenant, routed, made, engine)

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
        engine = await self.home.models.engine_async(wait_seconds)
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
            "model": self.home.model_id,
            "revision": self.home.revision,
            "truncated": truncated,
        }
        return told, decision

    def route(self, who: Principal, request: Request) -> dict[str, Any]:
        """Explain what would go in, without a model and without an answer."""
        who.require("read")
        decision = self.home.scope.decide(who.tenant, reading_of(request))
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
        engine = self.home.models.engine(wait_seconds=3600)
        return self.generated(who, [self._asked(who, request, engine, view, via) for request in requests], engine)

    def path(self, who: Principal, engine: Engine) -> Callable[[Request], Routed]:
        """How is routed what ``who`` asks, as every client's requests are."""
        return lambda request: self._route(who, request, engine, "edited", "auto")

    def memory_path(self, who: Principal, engine: Engine) -> Callable[[Request], Routed]:
        """The same by the memory alone, whatever is in the weights.

        Raises:
            KeToolsError: as :attr:`.Home.ledger`.
        """
        router, via = _router(self.home), self.home.settings.via
        return lambda request: router.route(who.tenant, request, engine=engine, via="auto" if via == "weights" else via)

    # Inside

    def _asked(self, who: Principal, request: Request, engine: Engine, view: Literal["edited", "base"], via: Via) -> Routed:
        """Route what somebody asks, which counts; probes do not."""
        began = time.perf_counter()
        routed = self._route(who, request, engine, view, via)
        if view == "edited":
            self.latencies.note(who.tenant, "routing", time.perf_counter() - began)
        self.home.fired.note(who.tenant, routed.hits)
        self.hourly.note(who.tenant, len(routed.hits))
        return routed

    def _route(self, who: Principal, request: Request, engine: Engine, view: Literal["edited", "base"], via: Via) -> Routed:
        if view == "base":
            return Routed.untouched(request, "", self.home.revision)
        if self._router is None:
            return Routed.untouched(request, "ledger", 0)
        via = self.home.settings.via if via == "auto" else via
        try:
            if via == "weights":
                routed = Routed.untouched(request, "", self.home.revision)
            else:
                routed = self._router.route(who.tenant, request, engine=engine, via=via)
                routed = self.home.forgetting.watched(who.tenant, routed, request)
        except (InvalidInput, Unsupported):
            raise
        except Exception:  # fail towards the base model, whatever broke
            log.exception("routing failed; the base model answers")
            return self._watched_at_least(who, Routed.untouched(request, "error", self.home.revision))
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
        if not self.home.has_ledger:
            return routed, engine.stream(routed.request)
        return await self.home.forgetting.opened(who.tenant, routed, engine)

    def generated(self, who: Principal, routed: Sequence[Routed], engine: Engine) -> list[tuple[Routed, Generation]]:
        """Answer routed requests; what is forgotten is in none of the answers."""
        if not self.home.has_ledger:
            return list(zip(routed, engine.generate([one.request for one in routed]), strict=True))
        return self.home.forgetting.generated(who.tenant, routed, engine)

    def _watched_at_least(self, who: Principal, routed: Routed) -> Routed:
        """Keep what is forgotten out of an answer also where nothing else could be decided."""
        try:
            return self.home.forgetting.watched(who.tenant, routed, routed.request)
        except Exception:
            log.exception("what is forgotten is not looked for in an answer")
            return routed

    def _under_release(self, who: Principal, request: Request, routed: Routed, engine: Engine, via: Via) -> Routed:
        """Add the tenant's live release; a request that names an adapter of its own keeps that one alone.

        Where that release by itself answers such a question of every edit it is about, the memory is left out.
        """
        name = self.home.promotions.adapter(who.tenant, engine) if routed.request.adapter in {"", READER} else ""
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
        return bool(hits) and all(self.home.promotions.answers(tenant, release, hit.edit, request) for hit in hits)

    async def answered(self, who: Principal, routed: Routed, engine: Engine) -> Generation:
        """Answer a routed request; cancelled, it stops generating."""
        _, pieces = await self._opened(who, routed, engine)
        return await _finish(pieces)

    def _note(self, tenant: str, decision: Decision) -> None:
        """Remember whether the edits could be read that a question is answered from."""
        stale, error = str(decision.stages.get("stale", "")), str(decision.stages.get("error", ""))
        if stale:
            self.home.damage.note(("scope", tenant), f"the last known edits act: {stale}")
        elif error.startswith(LedgerDamaged.code):
            self.home.damage.note(("scope", tenant), f"the edits of a tenant do not act: {error}")
        elif not error:
            self.home.damage.forget(("scope", tenant))


def _router(home: Home) -> Router:
    return Router(home.scope, demonstrations=home.settings.demonstrations, grey=home.settings.grey)


async def _finish(pieces: AsyncIterator[Piece]) -> Generation:
    async for piece in pieces:
        if piece.finished is not None:
            return piece.finished
    raise NotFound("the engine ended a generation without finishing it.")
