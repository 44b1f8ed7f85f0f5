"""``/v1`` before a model that another server runs: what no edit is about goes there and back byte for byte.

A request about an edited fact gets the fact into its prompt or last user turn, and keeps every other field, known here or not. What an
edit makes the model forget is answered here. The caller's key stays here, and the server gets its own. Headers as in
:mod:`ke_tools.servers.openai`: ``ke-route``, ``ke-edits``, ``ke-revision``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ke_tools.errors import InvalidInput, ModelUnavailable, NotFound, Unsupported
from ke_tools.memory.router import READER
from ke_tools.models.engine import Generation, Request
from ke_tools.servers import rendered
from ke_tools.servers.auth import LARGEST_PASSED, too_large
from ke_tools.servers.http_errors import error_body, error_response
from ke_tools.servers.metrics import Stopwatch
from ke_tools.servers.openai import GONE, LOAD_WAIT_SECONDS, ending, headers_of, plain_headers, principal_of, read_body, unless_gone
from ke_tools.servers.openai_request import MOST_CHOICES, parse_json
from ke_tools.servers.openai_shapes import ChatShape, CompletionShape, Shape

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import httpx
    from starlette.datastructures import Headers
    from starlette.requests import Request as HTTPRequest
    from starlette.types import Receive, Scope, Send

    from ke_tools.memory.router import Routed
    from ke_tools.servers.chatting import Chatting
    from ke_tools.servers.engines.remote import Remote
    from ke_tools.servers.metrics import Metrics
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["Passing"]

_BASE: Final = ":base"
_ANSWER_TOKENS: Final = 1024  # room that facts leave, where the caller does not say how long the answer may be
_REFUSED: Final = frozenset({400, 413, 422})  # what a server says to a request that it will not answer as it is
_KEY_REFUSED: Final = frozenset({401})
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_KEPT_HERE: Final = _HOP_BY_HOP | frozenset(
    "host content-length authorization cookie origin referer x-api-key api-key expect openai-organization openai-project".split()
)
_NOT_PASSED_BACK: Final = _HOP_BY_HOP | frozenset({"set-cookie", "server", "date"})
_SHORT: Final = 16_384  # bytes of a body that are read at once, as changing threads takes about as long
_ASKING: Final = 8  # threads that may ask the server for its models
_T = TypeVar("_T")
_CHANGING: Final = frozenset({"PUT", "PATCH", "DELETE"})
_OURS_IN_TEXT: Final = re.compile(r"ke-[0-9a-f]{24}")
_OURS: Final = re.compile(_OURS_IN_TEXT.pattern.encode())
_SILENT: Final = frozenset("audio classify detokenize embeddings models moderations pooling rerank score tokenize".split())  # say no belief
_MANAGING: Final = ("load_lora_adapter", "unload_lora_adapter", "ke/")  # paths that change the server for everybody
Kind = Literal["chat", "completion"]
_SHAPES: Final[Mapping[Kind, Shape]] = {"chat": ChatShape(), "completion": CompletionShape()}
_PATHS: Final[Mapping[Kind, str]] = {"chat": "/chat/completions", "completion": "/completions"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request as it came, and what it asks the model one by one; nothing where edits are not about it, or it cannot be read."""

    kind: Kind
    raw: Mapping[str, Any]
    body: bytes
    requests: tuple[Request, ...] = ()
    is_base: bool = False  # it asks for the answer without edits
    is_adapter: bool = False  # it names an adapter of the user's own: the memory acts, and what is in the weights does not
    is_alias: bool = False  # it names the model as its server does, too, but we do not
    reason: str = ""  # why nothing is read of it

    @property
    def streams(self) -> bool:
        """Whether the answer is wanted in pieces."""
        return bool(self.raw.get("stream"))


class Passing:
    """The endpoint; one object an app."""

    def __init__(
        self, service: Service, metrics: Metrics, *, chatting: Chatting | None = None, load_wait_seconds: float = LOAD_WAIT_SECONDS
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._chatting = chatting
        self._load_wait = load_wait_seconds
        self._client: httpx.AsyncClient | None = None
        self._asking = ThreadPoolExecutor(_ASKING, "ke-passing")  # of its own, so that a server that hangs keeps nobody else waiting

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
        self._asking.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            await self._client.aclose()

    async def models(self, request: HTTPRequest) -> Response:
        """List what the server lists, and after the corrected model the one without edits."""
        principal_of(request)
        engine = await self._engine()
        cards = [card for card in await self._in_a_thread(engine.cards) if not engine.is_ours(str(card["id"]))]
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
            Unsupported: the model may speak there, and something is forgotten.
        """
        who = principal_of(request)
        path = str(request.path_params["path"])
        if any(step in {"", ".", ".."} for step in path.split("/")) or "\\" in path:
            raise NotFound(f"there is nothing at {request.scope['path'][:200]!r}.", "See / for what this server offers.")
        if request.method in _CHANGING or path.startswith(_MANAGING):
            who.require("admin")
        if request.method == "GET" and path == f"models/{(engine := await self._engine()).model_id}{_BASE}":
            [card] = [one for one in await self._in_a_thread(engine.cards) if one["id"] == engine.model_id][:1] or [{}]
            return JSONResponse({**card, "id": engine.model_id + _BASE})
        if path.split("/", maxsplit=1)[0] not in _SILENT and await asyncio.to_thread(self._service.answering.forgets, who):
            raise Unsupported(
                f"something is forgotten here, and answers of /v1/{path[:80]} are not looked at for it.", "Ask by /v1/chat/completions."
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise InvalidInput("the body is compressed, so nobody here can say which model it names.", "Send it as it is.")
        body = await read_body(request, LARGEST_PASSED)
        if body is None:
            return too_large(LARGEST_PASSED)
        query = request.scope["query_string"].decode("latin-1")
        engine = await self._engine()
        for name in (path.removeprefix("models/").strip(), *_named_in(body)):
            _refuse_ours(engine, name)
        target = "/" + quote(path) + (f"?{query}" if query else "")
        told = plain_headers("base; reason=path", self._service)
        return await self._unless_gone(request, self._passed(request, request.method, target, body, told))

    async def _in_a_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._asking, call)

    async def _engine(self) -> Remote:
        engine: Any = await self._service.models.engine_async(self._load_wait)
        return engine  # type: ignore[no-any-return]

    async def _unless_gone(self, request: HTTPRequest, work: Any) -> Response:
        try:
            found: Response = await unless_gone(request.receive, work)
        except ClientDisconnect:
            return Response(status_code=GONE)
        except asyncio.CancelledError:  # as in OpenAI
            return error_response(ending())
        return found

    async def _answer(self, request: HTTPRequest, kind: Kind) -> Response:
        who = principal_of(request)
        body = await read_body(request, LARGEST_PASSED)
        if body is None:
            return too_large(LARGEST_PASSED)
        return await self._unless_gone(request, self._serve(request, who, kind, body))

    async def _serve(self, request: HTTPRequest, who: Principal, kind: Kind, body: bytes) -> Response:
        watch, engine = Stopwatch(), await self._engine()
        asked = await self._asked_in(kind, body, engine)
        if (said := await self._replied(who, asked)) is not None:
            request.scope["ke.route"] = "chat"
            return _rendered(asked, [Generation(said, "stop", 0, 0)], engine, plain_headers("chat", self._service))
        if not asked.requests:
            return await self._unread(request, who, asked, engine)
        view: Literal["edited", "base"] = "base" if asked.is_base else "edited"
        routed = [await self._routed(who, one, engine, view, is_short=len(body) <= _SHORT) for one in asked.requests]
        if asked.is_adapter:
            routed = [replace(one, reason=one.reason or "adapter") for one in routed]
        for one in routed:
            self._metrics.routed(one)
        request.scope["ke.route"] = routed[0].route if routed else "base"
        if any(one.route == "forget" for one in routed):
            generations = await asyncio.to_thread(self._service.answering.generated, who, routed, engine)
            return _rendered(asked, [made for _, made in generations], engine, headers_of(routed, self._service))
        response = await self._sent(request, who, asked, routed, engine, watch)
        if any(one.watched for one in routed):
            return await self._looked_at(who, asked, routed, engine, response)
        return response

    async def _routed(self, who: Principal, request: Request, engine: Remote, view: Literal["edited", "base"], *, is_short: bool) -> Routed:
        """Route in a thread, which takes longer than to see that a short request names nobody."""
        if is_short and view == "edited" and (routed := self._service.answering.routed_at_once(who, request)) is not None:
            return routed
        return await asyncio.to_thread(self._service.answering.routed, who, request, engine, view)

    async def _asked_in(self, kind: Kind, body: bytes, engine: Remote) -> _Asked:
        """Read a request; in a thread where that takes its time, or a server is asked whether it has what is named."""
        if len(body) > _SHORT:
            return await self._in_a_thread(lambda: _read(kind, body, parse_json(body), engine))
        raw = parse_json(body)
        if raw.get("model") in (None, "", engine.model_id, engine.model_id + _BASE):
            return _read(kind, body, raw, engine)
        return await self._in_a_thread(partial(_read, kind, body, raw, engine))

    async def _unread(self, request: HTTPRequest, who: Principal, asked: _Asked, engine: Remote) -> Response:
        """Pass on what no edit can go into; what is forgotten is kept out of it all the same, by all that it says anywhere."""
        path, told = _PATHS[asked.kind], plain_headers(f"base; reason={asked.reason}", self._service)
        body = _changed(asked, (), engine.model_id, engine.model_id)
        if not await asyncio.to_thread(self._service.answering.forgets, who):
            return await self._passed(request, "POST", path, body, told)
        routed = await asyncio.to_thread(self._service.answering.watched, who, "\n".join(rendered.strings_in(asked.raw)))
        if routed.route == "forget":
            [(_, made)] = await asyncio.to_thread(self._service.answering.generated, who, [routed], engine)
            return _rendered(asked, [made], engine, headers_of([routed], self._service))
        response = await self._passed(request, "POST", path, body, told, is_plain=bool(routed.watched))
        return await self._looked_at(who, asked, [routed], engine, response) if routed.watched else response

    async def _replied(self, who: Principal, asked: _Asked) -> str | None:
        """What is said to a correction in a chat, where these are switched on; ``None`` for everything else."""
        if self._chatting is None or asked.is_base or asked.kind != "chat" or not asked.requests or asked.raw.get("n", 1) not in (None, 1):
            return None
        return await self._chatting.reply(who, asked.requests[0].messages or ())

    async def _sent(
        self, request: HTTPRequest, who: Principal, asked: _Asked, routed: Sequence[Routed], engine: Remote, watch: Stopwatch
    ) -> Passed:
        """Ask; what the server refuses with the facts in it, such as a prompt that became too long, is asked without."""
        is_plain = any(one.watched for one in routed)

        async def ask(routed: Sequence[Routed]) -> Passed:
            adapter, told = _adapter_of(routed), headers_of(routed, self._service)
            try:
                model = engine.served_as(adapter)
            except Unsupported:  # taken out since it was routed
                adapter, model = "", engine.model_id
                told = headers_of([_spared(one) for one in routed], self._service)
            hidden = model if engine.is_ours(model) else ""
            answer = await self._passed(
                request,
                "POST",
                _PATHS[asked.kind],
                _changed(asked, routed, model, engine.model_id),
                told,
                adapter=adapter,
                is_plain=is_plain or bool(hidden),
            )
            answer.hide(hidden, asked.raw.get("model") or engine.model_id)
            return answer

        answer = await ask(routed)
        if any(one.hits for one in routed) and answer.status_code in _REFUSED:
            await answer.aclose()
            answer = await ask([_untold(one, given) for one, given in zip(routed, asked.requests, strict=True)])

        def ended() -> None:
            self._metrics.answered(routed[0].route if routed else "base", watch.seconds)
            self._service.answering.latencies.note(who.tenant, "answer", watch.seconds)

        answer.on_end = ended
        return answer

    async def _passed(
        self,
        request: HTTPRequest,
        method: str,
        path: str,
        body: bytes,
        told: Mapping[str, str],
        *,
        adapter: str = "",
        is_plain: bool = False,
    ) -> Passed:
        """Ask the server, with an adapter of ours; ``is_plain``: uncompressed, for us to read.

        Raises:
            ModelUnavailable: it does not answer, refuses its key, or is somewhere else.
        """
        engine = await self._engine()
        headers = _passed_on(request.headers, is_plain=is_plain)
        self._client = self._client or engine.new_client()
        answer = await engine.send(self._client, method, path, adapter=adapter, headers=headers, content=body)
        if answer.status_code in _KEY_REFUSED or answer.has_redirect_location:
            await answer.aclose()
            raise _misled(engine, answer)
        return Passed(await _unquoted(answer) if answer.is_error else answer, told)

    async def _looked_at(self, who: Principal, asked: _Asked, routed: Sequence[Routed], engine: Remote, response: Passed) -> Response:
        """Read an answer that may not say something before anybody sees a word of it."""
        whole = await response.whole()
        if response.status_code >= 300:  # noqa: PLR2004  it says nothing of the model's
            return response.again(whole)
        texts = rendered.texts_of(whole, is_stream=response.is_stream)
        if texts is None:
            raise ModelUnavailable("the server's answer cannot be read, and may say what is forgotten.", "Ask in another form.")
        for one in routed:
            for text in texts:
                judged, made = await asyncio.to_thread(self._service.answering.judged, who, one, text, engine)
                if judged is not one:
                    return _rendered(asked, [made] * max(1, len(asked.requests)), engine, headers_of([judged], self._service))
        return response.again(whole)


class Passed(Response):
    """An answer of the server, handed on as it comes; ends it when the client goes. Cancelled, a stream says that ke-tools ends."""

    def __init__(self, answer: httpx.Response, told: Mapping[str, str]) -> None:
        self._answer = answer
        self.status_code = answer.status_code
        self.background = None
        self.body = b""
        left_out = _NOT_PASSED_BACK | told.keys()
        kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower().decode("latin-1") not in left_out]
        self.raw_headers = [*kept, *((name.encode(), value.encode("latin-1", "replace")) for name, value in told.items())]
        self.on_end: Callable[[], None] = lambda: None
        self._hidden: tuple[bytes, bytes] | None = None
        self._has_begun = False

    @property
    def is_stream(self) -> bool:
        """Whether it comes as events."""
        return str(self._answer.headers.get("content-type", "")).startswith("text/event-stream")

    def hide(self, name: str, by: str) -> None:
        """Say ``by`` where the answer would name what only we may ask for."""
        if name:
            self._hidden = json.dumps(name).encode(), json.dumps(by).encode()
            self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def whole(self) -> bytes:
        """Read all of it.

        Raises:
            ModelUnavailable: it broke off.
        """
        import httpx

        try:
            whole = await self._answer.aread()
            return whole.replace(*self._hidden) if self._hidden else whole
        except httpx.HTTPError as error:
            raise _broken(error) from error
        finally:
            await self.aclose()

    def again(self, whole: bytes) -> Response:
        """The same answer from what was read of it."""
        kept = {name: value for name, value in self.headers.items() if name not in {"content-length", "content-encoding"}}
        return Response(whole, self.status_code, headers=kept)

    async def aclose(self) -> None:
        """Let it go."""
        await self._answer.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  as ASGI has it
        """Send it."""
        try:
            await unless_gone(receive, self._send_all(send))
        except (ClientDisconnect, OSError):
            pass
        except asyncio.CancelledError:
            if not self._has_begun or not self._takes_a_word:
                raise
            with suppress(OSError):
                await send({"type": "http.response.body", "body": _last_word(ending()), "more_body": False})
        finally:
            await self.aclose()

    async def _send_all(self, send: Send) -> None:
        self._has_begun = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        self.on_end()

    async def _renamed(self, name: bytes, by: bytes) -> AsyncIterator[bytes]:
        """The same line by line, as a name may come in two parts."""
        rest = b""
        async for part in self._answer.aiter_raw():
            lines, newline, rest = (rest + part).rpartition(b"\n")
            if newline:
                yield (lines + newline).replace(name, by)
        if rest:
            yield rest.replace(name, by)

    async def _parts(self) -> AsyncIterator[bytes]:
        """The bytes as they come; a stream of events that breaks off says so in one, anything else breaks off too."""
        import httpx

        try:
            async for part in self._answer.aiter_raw() if self._hidden is None else self._renamed(*self._hidden):
                yield part
        except httpx.HTTPError as error:
            if not self._takes_a_word:
                raise _broken(error) from error
            yield _last_word(_broken(error))

    @property
    def _takes_a_word(self) -> bool:
        return self.is_stream and "content-encoding" not in self._answer.headers


def _read(kind: Kind, body: bytes, raw: Mapping[str, Any], engine: Remote) -> _Asked:
    """Read what must be known of a request; whatever else it says is the server's to judge.

    Raises:
        NotFound: it names what only we may ask for.
    """
    known = engine.model_id
    model = raw.get("model") or known
    if not isinstance(model, str):
        return _Asked(kind, raw, body, reason="unread")
    _refuse_ours(engine, model)
    is_base = model == known + _BASE
    is_adapter = not is_base and model != known and engine.is_adapter(model)
    is_alias = not is_base and model != known and not is_adapter
    if is_alias and not engine.is_same(model):
        return _Asked(kind, raw, body, reason="model")
    most = raw.get("max_completion_tokens", raw.get("max_tokens"))
    most = most if isinstance(most, int) and most > 0 else _ANSWER_TOKENS
    requests = _conversation(raw, most) if kind == "chat" else _texts(raw, most)
    if is_adapter:
        requests = tuple(replace(one, adapter=model) for one in requests)
    return _Asked(kind, raw, body, requests, is_base, is_adapter, is_alias, "" if requests else "unread")


async def _unquoted(answer: httpx.Response) -> httpx.Response:
    """A refusal without the server's key, which it may quote.

    Raises:
        ModelUnavailable: it broke off.
    """
    import httpx

    from ke_tools.servers.engines._server import without_key

    try:
        said = without_key(await answer.aread(), answer.request)
    except httpx.HTTPError as error:
        raise _broken(error) from error
    finally:
        await answer.aclose()
    kept = [(name, value) for name, value in answer.headers.raw if name.lower() not in {b"content-length", b"content-encoding"}]
    return httpx.Response(answer.status_code, headers=kept, stream=httpx.ByteStream(said), request=answer.request)


def _passed_on(headers: Headers, *, is_plain: bool) -> list[tuple[bytes, bytes]]:
    """The caller's headers as they came, without those that are about this connection or the caller's rights."""
    named = {name.strip().lower() for value in headers.getlist("connection") for name in value.split(",")}
    left_out = _KEPT_HERE | named | ({"accept-encoding"} if is_plain else set())
    kept = [(name, value) for name, value in headers.raw if name.decode("latin-1").lower() not in left_out]
    if is_plain or "accept-encoding" not in headers:  # or what asks for us would ask for a compressed one
        kept.append((b"accept-encoding", b"identity"))
    return kept


def _named_in(body: bytes) -> set[str]:
    """Every text in a body that could be a name that we gave, however it is written."""
    named = {found.decode() for found in _OURS.findall(body.replace(b"\0", b""))}  # as UTF-16 and UTF-32 have it, too
    try:
        texts = rendered.strings_in(json.loads(body))
    except (ValueError, RecursionError):
        return named
    return named | {found for text in texts for found in _OURS_IN_TEXT.findall(text)}


def _refuse_ours(engine: Remote, model: str) -> None:
    if engine.is_ours(model.strip()):
        raise NotFound(
            f"there is no model {model[:200]!r} here.", f"Ask for {engine.model_id!r}.", param="model", openai_code="model_not_found"
        )


def _conversation(raw: Mapping[str, Any], most: int) -> tuple[Request, ...]:
    turns = raw.get("messages")
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        return ()
    return (Request(messages=tuple(turns), max_tokens=most),)


def _is_turn(turn: object) -> bool:
    """Whether a turn is of the shape that is read: its content a text, parts that say what they are, or none."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
        return False
    content = turn.get("content")
    if isinstance(content, list):
        return all(isinstance(part, Mapping) and isinstance(part.get("type"), str) for part in content)
    return content is None or isinstance(content, str)


def _texts(raw: Mapping[str, Any], most: int) -> tuple[Request, ...]:
    """The prompts that are texts; token ids are not read."""
    prompt = raw.get("prompt")
    prompts = prompt if isinstance(prompt, list) else [prompt]
    return (
        tuple(Request(prompt=one, max_tokens=most) for one in prompts)
        if prompts and all(isinstance(one, str) and one for one in prompts)
        else ()
    )


def _rendered(asked: _Asked, made: Sequence[Generation], engine: Remote, headers: Mapping[str, str]) -> Response:
    """Answer with words of our own, as often and in the form that was asked for."""
    n, options = asked.raw.get("n"), asked.raw.get("stream_options")
    return rendered.response(
        made,
        _SHAPES[asked.kind],
        model=str(asked.raw.get("model") or engine.model_id),
        n=n if isinstance(n, int) and 1 < n <= MOST_CHOICES else 1,
        stream=asked.streams,
        usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        headers=headers,
    )


def _untold(routed: Routed, given: Request) -> Routed:
    """The same without the facts, and without what makes a model heed them."""
    adapter = "+".join(part for part in routed.request.adapter.split("+") if part != READER)
    route: Literal["weights", "base"] = "weights" if adapter and adapter != given.adapter else "base"
    return replace(routed, request=replace(given, adapter=adapter), route=route, hits=(), reason="refused")


def _spared(routed: Routed) -> Routed:
    """The same without what is in the weights."""
    return replace(routed, route="base" if routed.route == "weights" else routed.route, reason="release")


def _adapter_of(routed: Sequence[Routed]) -> str:
    """The adapter of a request: where several prompts in it want several, what all of them want."""
    parts = [one.request.adapter.split("+") for one in routed] or [[""]]
    return "+".join(part for part in parts[0] if all(part in others for others in parts))


def _changed(asked: _Asked, routed: Sequence[Routed], model: str, known: str) -> bytes:
    """The body to send: the very bytes that came, unless something goes in or another name is meant than ``known``, or the one given."""
    told = [one.request for one in routed]
    is_told = any((new.messages, new.prompt) != (old.messages, old.prompt) for new, old in zip(told, asked.requests, strict=False))
    named = known if asked.is_alias else asked.raw.get("model") or known
    is_renamed = named != model and (bool(told) or asked.is_base)
    if not is_told and not is_renamed:
        return asked.body
    raw = dict(asked.raw)
    if is_renamed:
        raw["model"] = model
    if is_told and asked.kind == "chat":
        raw["messages"] = list(told[0].messages or ())
    elif is_told:
        prompts = [one.prompt for one in told]
        raw["prompt"] = prompts if isinstance(raw["prompt"], list) else prompts[0]
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _misled(engine: Remote, answer: httpx.Response) -> ModelUnavailable:
    if answer.has_redirect_location:
        elsewhere = answer.headers["location"][:200]
        return ModelUnavailable(f"the server at {engine.address} sends to {elsewhere!r}.", "Give that address by --upstream.")
    return ModelUnavailable(
        f"the server at {engine.address} refuses the key it was given ({answer.status_code}).",
        "Give its own by --upstream-key-file or KE_UPSTREAM_KEY, where ke-tools is started.",
    )


def _last_word(error: ModelUnavailable) -> bytes:
    """An error as an event behind what may be half of one."""
    return b"\n\ndata: " + json.dumps(error_body(error)).encode() + b"\n\n"


def _broken(error: Exception) -> ModelUnavailable:
    return ModelUnavailable(f"the server broke off its answer: {type(error).__name__}.", "Ask again.")
