"""``/v1`` before a model that another server runs: what no edit is about goes there and back byte for byte.

A request about an edited fact gets the fact into its prompt or last user turn, and keeps every other field, known here or not. What an
edit makes the model forget is answered here. The caller's key stays here, and the server gets its own. Headers as in
:mod:`ke_tools.servers.openai`: ``ke-route``, ``ke-edits``, ``ke-revision``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ke_tools.errors import ModelUnavailable, NotFound
from ke_tools.models.engine import Request
from ke_tools.servers import refusing
from ke_tools.servers.auth import LARGEST_PASSED, too_large
from ke_tools.servers.http_errors import error_body
from ke_tools.servers.metrics import Stopwatch
from ke_tools.servers.openai import GONE, LOAD_WAIT_SECONDS, headers_of, principal_of, read_body, unless_gone
from ke_tools.servers.openai_request import parse_json
from ke_tools.servers.openai_shapes import ChatShape, CompletionShape, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import httpx
    from starlette.requests import Request as HTTPRequest
    from starlette.types import Receive, Scope, Send

    from ke_tools.memory.router import Routed
    from ke_tools.servers.engines.upstream import Upstream
    from ke_tools.servers.metrics import Metrics
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["Passing"]

_BASE: Final = ":base"
_ANSWER_TOKENS: Final = 1024  # room that facts leave, where the caller does not say how long the answer may be
_REFUSED: Final = frozenset({400, 413, 422})  # what a server says to a request that it will not answer as it is
_KEY_REFUSED: Final = frozenset({401, 403})
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_KEPT_HERE: Final = _HOP_BY_HOP | frozenset("host content-length authorization cookie origin referer x-api-key api-key expect".split())
_NOT_PASSED_BACK: Final = _HOP_BY_HOP | frozenset({"set-cookie", "server", "date"})
_CHANGING: Final = frozenset({"PUT", "PATCH", "DELETE"})
_MANAGING: Final = ("load_lora_adapter", "unload_lora_adapter", "ke/")  # paths that change the server for everybody
Kind = Literal["chat", "completion"]
_SHAPES: Final[Mapping[Kind, Shape]] = {"chat": ChatShape(), "completion": CompletionShape()}
_PATHS: Final[Mapping[Kind, str]] = {"chat": "/chat/completions", "completion": "/completions"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it came, and what it asks the model one by one; nothing where that cannot be read."""

    kind: Kind
    raw: Mapping[str, Any]
    body: bytes
    requests: tuple[Request, ...]
    is_ours: bool  # it asks for the model that edits are about
    is_base: bool  # and for its answer without them
    reason: str = ""  # why nothing is read of it

    @property
    def streams(self) -> bool:
        """Whether the answer is wanted in pieces."""
        return self.raw.get("stream") is True


class Passing:
    """The endpoint; one object an app."""

    def __init__(self, service: Service, metrics: Metrics, *, load_wait_seconds: float = LOAD_WAIT_SECONDS) -> None:
        self._service = service
        self._metrics = metrics
        self._load_wait = load_wait_seconds
        self._client: httpx.AsyncClient | None = None

    def routes(self) -> list[Route]:
        """Give the routes for Starlette."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/{path:path}", self.other, methods=["GET", "POST", *sorted(_CHANGING)]),
        ]

    async def aclose(self) -> None:
        """Let the connections go."""
        if self._client is not None:
            await self._client.aclose()

    async def models(self, request: HTTPRequest) -> Response:
        """List what the server lists, and after the corrected model the one without edits."""
        principal_of(request)
        engine = await self._engine()
        cards = await asyncio.to_thread(engine.cards)
        at = next((number for number, card in enumerate(cards) if card["id"] == engine.model_id), 0)
        bare = {**cards[at], "id": engine.model_id + _BASE} if cards else {}
        return JSONResponse({"object": "list", "data": [*cards[: at + 1], bare, *cards[at + 1 :]]})

    async def completions(self, request: HTTPRequest) -> Response:
        """Complete prompts."""
        return await self._answer(request, "completion")

    async def chat(self, request: HTTPRequest) -> Response:
        """Answer a conversation."""
        return await self._answer(request, "chat")

    async def other(self, request: HTTPRequest) -> Response:
        """Pass anything else on; what changes the server needs the scope ``admin``.

        Raises:
            Forbidden: the token lacks it. NotFound: the path leads elsewhere.
        """
        who = principal_of(request)
        path = str(request.path_params["path"])
        if any(step in {"", ".", ".."} for step in path.split("/")) or "\\" in path:
            raise NotFound(f"there is nothing at {request.scope['path'][:200]!r}.", "See / for what this server offers.")
        if request.method in _CHANGING or path.startswith(_MANAGING):
            who.require("admin")
        body = await read_body(request, LARGEST_PASSED)
        if body is None:
            return too_large(LARGEST_PASSED)
        query = request.scope["query_string"].decode("latin-1")
        target = "/" + quote(path) + (f"?{query}" if query else "")
        told = {"ke-route": "base; reason=path", "ke-edits": "", "ke-revision": str(self._service.revision)}
        return await self._unless_gone(request, self._passed(request, request.method, target, body, told))

    async def _engine(self) -> Upstream:
        engine: Any = await self._service.models.engine_async(self._load_wait)
        return engine  # type: ignore[no-any-return]

    async def _unless_gone(self, request: HTTPRequest, work: Any) -> Response:
        try:
            found: Response = await unless_gone(request.receive, work)
        except ClientDisconnect:
            return Response(status_code=GONE)
        return found

    async def _answer(self, request: HTTPRequest, kind: Kind) -> Response:
        who = principal_of(request)
        body = await read_body(request, LARGEST_PASSED)
        if body is None:
            return too_large(LARGEST_PASSED)
        return await self._unless_gone(request, self._serve(request, who, kind, body))

    async def _serve(self, request: HTTPRequest, who: Principal, kind: Kind, body: bytes) -> Response:
        watch, engine = Stopwatch(), await self._engine()
        asked = _read(kind, body, engine.model_id)
        view: Literal["edited", "base"] = "edited" if asked.is_ours and not asked.is_base else "base"
        routed = [await asyncio.to_thread(self._service.routed, who, one, engine, view) for one in asked.requests]
        for one in routed:
            self._metrics.routed(one)
        request.scope["ke.route"] = routed[0].route if routed else "base"
        if any(one.route == "forget" for one in routed):
            generations = await asyncio.to_thread(self._service.generated, who, routed, engine)
            return refusing.response(asked.raw, [made for _, made in generations], _SHAPES[kind], engine, headers_of(routed, self._service))
        sent = _changed(asked, routed, engine.model_id)
        response = await self._sent(request, asked, routed, sent, watch)
        if any(one.watched for one in routed):
            return await self._looked_at(who, asked, routed, engine, response)
        return response

    async def _sent(self, request: HTTPRequest, asked: _Asked, routed: Sequence[Routed], body: bytes, watch: Stopwatch) -> Passed:
        """Ask; what the server refuses with the facts in it, such as a prompt that became too long, is asked without."""
        path = _PATHS[asked.kind]
        is_watched = any(one.watched for one in routed)
        told = self._told(asked, routed)
        answer = await self._passed(request, "POST", path, body, told, is_plain=is_watched)
        if any(one.hits for one in routed) and answer.status_code in _REFUSED:
            await answer.aclose()
            untold = [
                replace(one, request=given, route="base", hits=(), reason="refused")
                for one, given in zip(routed, asked.requests, strict=True)
            ]
            body, told = _changed(asked, untold, self._service.model_id), self._told(asked, untold)
            answer = await self._passed(request, "POST", path, body, told, is_plain=is_watched)
        answer.on_end = lambda: self._metrics.answered(routed[0].route if routed else "base", watch.seconds)
        return answer

    def _told(self, asked: _Asked, routed: Sequence[Routed]) -> dict[str, str]:
        if routed:
            return headers_of(routed, self._service)
        reason = asked.reason or "model"
        return {"ke-route": f"base; reason={reason}", "ke-edits": "", "ke-revision": str(self._service.revision)}

    async def _passed(
        self, request: HTTPRequest, method: str, path: str, body: bytes, told: Mapping[str, str], *, is_plain: bool = False
    ) -> Passed:
        """Ask the server; ``is_plain``: uncompressed, for us to read.

        Raises:
            ModelUnavailable: it does not answer, refuses its key, or is somewhere else.
        """
        engine = await self._engine()
        headers = {name: value for name, value in request.headers.items() if name not in _KEPT_HERE}
        if is_plain:
            headers["accept-encoding"] = "identity"
        self._client = self._client or engine.new_client()
        answer = await engine.send(self._client, method, path, headers=headers, content=body)
        if answer.status_code in _KEY_REFUSED or answer.has_redirect_location:
            await answer.aclose()
            raise _misled(engine, answer)
        return Passed(answer, told)

    async def _looked_at(self, who: Principal, asked: _Asked, routed: Sequence[Routed], engine: Upstream, response: Passed) -> Response:
        """Read an answer that may not say something before anybody sees a word of it."""
        whole = await response.whole()
        if response.status_code >= 300:  # noqa: PLR2004  it says nothing of the model's
            return Response(whole, response.status_code, headers=dict(response.headers))
        for one in routed:
            for text in refusing.texts_of(whole, is_stream=asked.streams):
                judged, made = await asyncio.to_thread(self._service.judged, who, one, text, engine)
                if judged is not one:
                    return refusing.response(
                        asked.raw, [made] * len(asked.requests), _SHAPES[asked.kind], engine, headers_of([judged], self._service)
                    )
        return Response(whole, response.status_code, headers=dict(response.headers))


class Passed(Response):
    """An answer of the server, handed on as it comes; ends it when the client goes."""

    def __init__(self, answer: httpx.Response, told: Mapping[str, str]) -> None:
        self._answer = answer
        self.status_code = answer.status_code
        self.background = None
        self.body = b""
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower().decode("latin-1") not in _NOT_PASSED_BACK]
        self.raw_headers = [*kept, *((name.encode(), value.encode("latin-1", "replace")) for name, value in told.items())]
        self.on_end: Callable[[], None] = lambda: None

    async def whole(self) -> bytes:
        """Read all of it.

        Raises:
            ModelUnavailable: it broke off.
        """
        import httpx

        try:
            return await self._answer.aread()
        except httpx.HTTPError as error:
            raise _broken(error) from error
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Let it go."""
        await self._answer.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  as ASGI has it
        """Send it."""
        try:
            await unless_gone(receive, self._send_all(send))
        except (ClientDisconnect, OSError):
            pass
        finally:
            await self.aclose()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.on_end()

    async def _parts(self) -> AsyncIterator[bytes]:
        """The bytes as they come; a stream of events that breaks off says so in one, anything else breaks off too."""
        import httpx

        try:
            async for part in self._answer.aiter_raw():
                yield part
        except httpx.HTTPError as error:
            headers = self._answer.headers
            if "content-encoding" in headers or not headers.get("content-type", "").startswith("text/event-stream"):
                raise _broken(error) from error
            yield b"\n\ndata: " + json.dumps(error_body(_broken(error))).encode() + b"\n\n"


def _read(kind: Kind, body: bytes, model_id: str) -> _Asked:
    """Read what must be known of a request; whatever else it says is the server's to judge.

    Raises:
        InvalidInput: it is no JSON object.
    """
    raw = parse_json(body)
    model = raw.get("model") or model_id
    is_base = model == model_id + _BASE
    asked = _Asked(kind, raw, body, (), is_ours=is_base or model == model_id, is_base=is_base)
    if not asked.is_ours:
        return asked
    most = raw.get("max_completion_tokens", raw.get("max_tokens"))
    most = most if isinstance(most, int) and most > 0 else _ANSWER_TOKENS
    requests = _conversation(raw, most) if kind == "chat" else _texts(raw, most)
    return replace(asked, requests=requests, reason="" if requests else "unread")


def _conversation(raw: Mapping[str, Any], most: int) -> tuple[Request, ...]:
    turns = raw.get("messages")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns):
        return ()
    return (Request(messages=tuple(turns), max_tokens=most),)


def _texts(raw: Mapping[str, Any], most: int) -> tuple[Request, ...]:
    """The prompts that are texts; token ids are not read."""
    prompt = raw.get("prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    return (
        tuple(Request(prompt=one, max_tokens=most) for one in prompts)
        if prompts and all(isinstance(one, str) and one for one in prompts)
        else ()
    )


def _changed(asked: _Asked, routed: Sequence[Routed], model_id: str) -> bytes:
    """The body to send: the very bytes that came, unless something goes in or another name is meant."""
    told = [one.request for one in routed]
    is_told = any(new is not old for new, old in zip(told, asked.requests, strict=True)) if told else False
    if not is_told and not asked.is_base:
        return asked.body
    raw = dict(asked.raw)
    if asked.is_base:
        raw["model"] = model_id
    if is_told and asked.kind == "chat":
        raw["messages"] = list(told[0].messages or ())
    elif is_told:
        prompts = [one.prompt for one in told]
        raw["prompt"] = prompts if isinstance(raw["prompt"], list) else prompts[0]
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _misled(engine: Upstream, answer: httpx.Response) -> ModelUnavailable:
    if answer.has_redirect_location:
        elsewhere = answer.headers["location"][:200]
        return ModelUnavailable(f"the server at {engine.address} sends to {elsewhere!r}.", "Give that address by --upstream.")
    return ModelUnavailable(
        f"the server at {engine.address} refuses the key it was given ({answer.status_code}).",
        "Give its own by --upstream-key-file or KE_UPSTREAM_KEY, where ke-tools is started.",
    )


def _broken(error: Exception) -> ModelUnavailable:
    return ModelUnavailable(f"the server broke off its answer: {type(error).__name__}.", "Ask again.")
