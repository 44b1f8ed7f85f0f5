"""``/v1``: the corrected model, for every client that speaks OpenAI's API.

``ID`` answers with the edits, ``ID:base`` without. What was applied stands in the response's headers: ``ke-route``,
``ke-edits``, ``ke-revision``. A client that goes away stops its generation.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, NotFound
from ke_tools.models.engine import Generation, Piece
from ke_tools.servers import rendered
from ke_tools.servers.auth import LARGEST_BODY, drain, too_large
from ke_tools.servers.http_errors import error_body, error_response
from ke_tools.servers.metrics import Stopwatch
from ke_tools.servers.openai_request import Ask, parse_json, read_chat, read_completion
from ke_tools.servers.openai_shapes import ChatShape, CompletionShape, Shape, event, head_of, usage_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from starlette.requests import Request as HTTPRequest
    from starlette.types import Receive, Scope, Send

    from ke_tools.memory.router import Routed
    from ke_tools.models.engine import Engine, Request
    from ke_tools.servers.chatting import Chatting
    from ke_tools.servers.metrics import Metrics
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

View = Literal["edited", "base"]
LOAD_WAIT_SECONDS: Final = 120.0
GONE: Final = 499  # what proxies log for a client that left; nobody reads it
_BASE: Final = ":base"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Opened:
    """One answer under way: its index among the choices, how it was routed, and its pieces."""

    index: int
    routed: Routed
    pieces: AsyncIterator[Piece]
    watch: Stopwatch
    tenant: str


class OpenAI:
    """The endpoint; one object an app."""

    def __init__(
        self, service: Service, metrics: Metrics, *, chatting: Chatting | None = None, load_wait_seconds: float = LOAD_WAIT_SECONDS
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._load_wait = load_wait_seconds
        self._created = int(time.time())
        self._chatting = chatting

    def routes(self) -> list[Route]:
        """Give the routes for Starlette."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{model:path}", self.model, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]

    async def models(self, request: HTTPRequest) -> Response:
        """List the corrected model, then the one without edits."""
        principal_of(request)
        names = (self._service.model_id, self._service.model_id + _BASE)
        return JSONResponse({"object": "list", "data": [self._card(name) for name in names]})

    async def model(self, request: HTTPRequest) -> Response:
        """Describe one model."""
        principal_of(request)
        view = self._view(request.path_params["model"])
        return JSONResponse(self._card(self._name(view)))

    async def completions(self, request: HTTPRequest) -> Response:
        """Complete prompts as they are."""
        return await self._answer(request, read_completion, CompletionShape())

    async def chat(self, request: HTTPRequest) -> Response:
        """Answer a conversation through the chat template."""
        return await self._answer(request, read_chat, ChatShape())

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "ke-tools"}

    def _name(self, view: View) -> str:
        return self._service.model_id + (_BASE if view == "base" else "")

    def _view(self, model: str) -> View:
        for name in (self._service.model_id, self._service.settings.model):
            if model == name:
                return "edited"
            if model == name + _BASE:
                return "base"
        raise NotFound(
            f"there is no model {model[:200]!r} here.",
            f"Ask for {self._service.model_id!r}, or {self._service.model_id + _BASE!r} without edits.",
            param="model",
            openai_code="model_not_found",
        )

    async def _answer(self, request: HTTPRequest, read: Callable[[Mapping[str, Any]], Ask], shape: Shape) -> Response:
        who = principal_of(request)
        body = await read_body(request)
        if body is None:
            return too_large()
        ask = read(parse_json(body))
        view = self._view(ask.model)
        try:
            return await unless_gone(request.receive, self._serve(request, who, ask, view, shape))
        except ClientDisconnect:
            return Response(status_code=GONE)
        except asyncio.CancelledError:  # by the HTTP server alone, when the time to finish what is under way is over
            return error_response(ending())

    async def _serve(self, request: HTTPRequest, who: Principal, ask: Ask, view: View, shape: Shape) -> Response:
        said = await self._replied(who, ask, view)
        if said is not None:
            request.scope["ke.route"] = "chat"
            made, told = [Generation(said, "stop", 0, 0)], plain_headers("chat", self._service)
            return rendered.response(made, shape, model=self._name(view), stream=ask.stream, usage=ask.include_usage, headers=told)
        engine = await self._service.models.engine_async(self._load_wait)
        requests = [await asyncio.to_thread(_fitted, asked, ask.max_tokens, engine) for asked in ask.requests]
        opened = await self._open(who, requests, ask.n, view)
        routeds = [answer.routed for answer in opened]
        request.scope["ke.route"] = opened[0].routed.route
        headers = headers_of(routeds, self._service)
        head = {
            **head_of(shape, self._name(view), stream=ask.stream),
            "system_fingerprint": "fp_" + engine.fingerprint.rpartition(":")[2][:12],
        }
        if not ask.stream:
            done = await self._collect(opened)
            choices = [shape.choice(index, generation) for index, generation in enumerate(done)]
            return JSONResponse(head | {"choices": choices, "usage": usage_of(done, ask.n)}, headers=headers)
        merged = self._merged(opened)
        try:
            first = await anext(merged)  # what fails before the first token still gets a status of its own
        except BaseException:
            await merged.aclose()
            raise
        return EventStream(_events(first, merged, head, ask, shape), headers)

    async def _replied(self, who: Principal, ask: Ask, view: View) -> str | None:
        """What is said to a correction in a chat, where these are switched on; ``None`` for everything else."""
        [first, *others] = ask.requests
        if self._chatting is None or view == "base" or ask.n > 1 or others or first.messages is None:
            return None
        return await self._chatting.reply(who, first.messages)

    async def _open(self, who: Principal, requests: Sequence[Request], n: int, view: View) -> list[Opened]:
        opened: list[Opened] = []
        try:
            for at, request in enumerate(requests):
                for copy in range(n):
                    watch = Stopwatch()
                    seeded = request if request.seed is None else replace(request, seed=_shifted(request.seed, copy))
                    routed, pieces = await self._service.answering.open_stream(who, seeded, view=view, via="auto", wait_seconds=0)
                    opened.append(Opened(at * n + copy, routed, pieces, watch, who.tenant))
                self._metrics.routed(opened[-1].routed)
        except BaseException:
            for answer in opened:
                await _close(answer.pieces)
            raise
        return opened

    async def _collect(self, opened: Sequence[Opened]) -> list[Generation]:
        done: dict[int, Generation] = {}
        merged = self._merged(opened)
        try:
            async for index, piece in merged:
                if piece.finished is not None:
                    done[index] = piece.finished
        finally:
            await merged.aclose()
        return [done[answer.index] for answer in opened]

    async def _merged(self, opened: Sequence[Opened]) -> AsyncGenerator[tuple[int, Piece], None]:
        """Give the pieces of all answers as they come; closing it closes all.

        Raises:
            KeToolsError: of the first answer that fails.
        """
        queue: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue(maxsize=256)
        pumps = [asyncio.create_task(self._pump(answer, queue)) for answer in opened]
        left = len(pumps)
        try:
            while left:
                index, piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= piece.finished is not None
                yield index, piece
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for answer in opened:  # a pump cancelled before its first step closed nothing
                await _close(answer.pieces)

    async def _pump(self, answer: Opened, queue: asyncio.Queue[tuple[int, Piece | BaseException]]) -> None:
        try:
            async for piece in answer.pieces:
                if piece.finished is not None:
                    if piece.finished.finish_reason == "cancelled":
                        break
                    self._metrics.generated(answer.routed, piece.finished, answer.watch.seconds)
                    self._service.answering.latencies.note(answer.tenant, "answer", answer.watch.seconds)
                await queue.put((answer.index, piece))
                if piece.finished is not None:
                    return
            await queue.put((answer.index, ModelUnavailable("the model stopped in the middle of the answer.", "Ask again.")))
        except Exception as error:  # noqa: BLE001  whatever it is must reach the one who reads the queue
            await queue.put((answer.index, error))
        finally:
            await _close(answer.pieces)


class EventStream(Response):
    """Server-sent events; stops, and closes its source, when the client goes. Cancelled, it says that the server ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  as ASGI has it
        """Send the events."""
        try:
            with suppress(ClientDisconnect, OSError):
                await unless_gone(receive, self._send_all(send))
        except asyncio.CancelledError:
            if not self._has_begun:
                raise
            with suppress(OSError):
                await self._send_last(send, event(error_body(ending())))
        finally:
            await self._events.aclose()

    async def _send_all(self, send: Send) -> None:
        self._has_begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._events:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await self._send_last(send, b"")

    async def _send_last(self, send: Send, part: bytes) -> None:
        await send({"type": "http.response.body", "body": part, "more_body": False})


async def _events(
    first: tuple[int, Piece], rest: AsyncGenerator[tuple[int, Piece], None], head: dict[str, Any], ask: Ask, shape: Shape
) -> AsyncGenerator[bytes, None]:
    usage = {"usage": None} if ask.include_usage else {}
    choices = [shape.start(index) for index in range(len(ask.requests) * ask.n)]
    done: dict[int, Generation] = {}
    try:
        for choice in choices:
            if choice.opening is not None:
                yield event(head | {"choices": [choice.opening]} | usage)
        index, piece = first
        while True:
            for rendered in choices[index].render(piece):
                yield event(head | {"choices": [rendered]} | usage)
            if piece.finished is not None:
                done[index] = piece.finished
            try:
                index, piece = await anext(rest)
            except StopAsyncIteration:
                break
        if ask.include_usage:
            whole = [done[at] for at in range(len(choices))]
            yield event(head | {"choices": [], "usage": usage_of(whole, ask.n)})
        yield b"data: [DONE]\n\n"
    except KeToolsError as error:  # the status is sent already; clients read the error from the stream
        yield event(error_body(error))
    except Exception:
        yield event(error_body(KeToolsError("the answer broke off.", "See the server's log.")))
        raise
    finally:
        await rest.aclose()


def ending() -> ModelUnavailable:
    """Give the error for what is under way when the server ends, and the time to finish it is over."""
    return ModelUnavailable("the server ends, and breaks off what it has not finished.", "Ask again when it is back.")


def principal_of(request: HTTPRequest) -> Principal:
    """Give who asks.

    Raises:
        Forbidden: it may not chat.
    """
    who: Principal = request.scope["ke.principal"]
    who.require("chat")
    return who


async def read_body(request: HTTPRequest, largest: int = LARGEST_BODY) -> bytes | None:
    """Read the body; ``None`` if it is too large (a declared size was looked at before)."""
    read = bytearray()
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        read += message.get("body", b"")
        if len(read) > largest:
            if message.get("more_body", False):
                await drain(request.receive)
            return None
        if not message.get("more_body", False):
            return bytes(read)


async def unless_gone(receive: Receive, work: Awaitable[_T]) -> _T:
    """Do ``work``, and cancel it when the client disconnects.

    Raises:
        ClientDisconnect: it did.
    """
    loop, has_ended = asyncio.get_running_loop(), False

    def left(gone: asyncio.Task[None]) -> None:
        if not gone.cancelled():
            gone.exception()  # a connection that cannot be listened to is a client that left, too
            if not has_ended:
                patience.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as patience:
            gone = loop.create_task(_disconnect(receive))
            gone.add_done_callback(left)
            try:
                return await work
            finally:
                has_ended = True  # removing the callback would not take back one that is due already
                gone.cancel()
    except TimeoutError as error:
        if patience.expired():
            raise ClientDisconnect from error
        raise


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close(pieces: AsyncIterator[Piece]) -> None:
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()


def _fitted(request: Request, max_tokens: int | None, engine: Engine) -> Request:
    """Bring the answer's length within the context; what was asked for expressly is refused rather than cut.

    Raises:
        InvalidInput: prompt, or prompt and ``max_tokens``, exceed the context.
    """
    prompt, most = engine.count_tokens(request), engine.context_length
    if prompt + (max_tokens or 1) <= most:
        return replace(request, max_tokens=min(request.max_tokens, most - prompt))
    asked = f" and {max_tokens} for the answer" if max_tokens else ""
    raise InvalidInput(
        f"the prompt has {prompt} tokens{asked}; the model's context holds {most}.",
        "Shorten the prompt or ask for fewer tokens.",
        param="max_tokens" if max_tokens and prompt < most else "messages" if request.messages is not None else "prompt",
        openai_code="context_length_exceeded",
    )


def _shifted(seed: int, by: int) -> int:
    return (seed + by + 2**63) % 2**64 - 2**63


def plain_headers(route: str, service: Service) -> dict[str, str]:
    """Say that nothing was applied, and how it was routed."""
    return {"ke-route": route, "ke-edits": "", "ke-revision": str(service.revision)}


def headers_of(routeds: Sequence[Routed], service: Service) -> dict[str, str]:
    """Say what was applied; several prompts' values stand in their order, each once."""
    shown = (routed.route + (f"; reason={routed.reason}" if routed.reason else "") for routed in routeds)
    edits = dict.fromkeys(hit.edit.id for routed in routeds for hit in routed.hits)
    revision = max(routed.decision.revision for routed in routeds) or service.revision
    return {"ke-route": ", ".join(dict.fromkeys(shown)), "ke-edits": ",".join(edits), "ke-revision": str(revision)}
