"""One web application: ``/mcp``, ``/v1``, ``/healthz``, ``/metrics``, and the console at ``/``."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from ke_tools import __version__
from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.servers import console
from ke_tools.servers.auth import LARGEST_BODY, LARGEST_PASSED, Guard, HostRule, drain, not_found, too_large
from ke_tools.servers.chatting import Chatting
from ke_tools.servers.http_errors import error_response
from ke_tools.servers.metrics import CONTENT_TYPE, Counted, Metrics
from ke_tools.servers.openai import LOAD_WAIT_SECONDS, OpenAI
from ke_tools.servers.passing import Passing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from mcp.server import MCPServer
    from mcp.server.transport_security import TransportSecuritySettings
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ke_tools.config import ChatCorrections
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service
    from ke_tools.servers.tokens import Tokens

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


def build_app(
    service: Service,
    *,
    token_file: Tokens | None = None,
    allowed_hosts: Sequence[str] = (),
    mcp: MCPServer[Any] | None = None,
    read_only: bool = False,
    chat_corrections: ChatCorrections = "off",
    load_wait_seconds: float = LOAD_WAIT_SECONDS,
) -> Starlette:
    """Build the application; its start begins to load the model.

    ``allowed_hosts`` are names (``name`` or ``name:port``) under which the server is reached besides this machine's own;
    put the bound address there too. ``chat_corrections`` says whether corrections are taken in chats. ``mcp`` is served at ``/mcp``; one
    server object can be served once.
    """
    metrics = Metrics(service)
    hosts = HostRule.of(allowed_hosts)
    status = Status(service, metrics, tokens=token_file, read_only=read_only, has_mcp=mcp is not None)
    chatting = None if chat_corrections == "off" else Chatting(service, chat_corrections, read_only=read_only)
    is_passing = service.settings.is_remote
    kind: type[OpenAI | Passing] = Passing if is_passing else OpenAI
    endpoint = kind(service, metrics, chatting=chatting, load_wait_seconds=load_wait_seconds)
    sessions = console.Sessions(token_file, service.local)
    pages = console.Pages(service, sessions, read_only=read_only)
    routes: list[BaseRoute] = [*status.routes(), *endpoint.routes(), *console.routes(service, pages, plain=status.page)]
    if mcp is not None:
        inner = mcp.streamable_http_app(streamable_http_path="/mcp", transport_security=_security(hosts, allowed_hosts))
        routes.append(Route("/mcp", _Door(inner)))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.models.start()
        try:
            async with mcp.session_manager.run() if mcp is not None else nullcontext():
                yield
        finally:
            status.close()
            pages.close()
            if isinstance(endpoint, Passing):
                await endpoint.aclose()

    largest = LARGEST_PASSED if is_passing else LARGEST_BODY
    return Starlette(
        routes=routes,
        middleware=[
            Middleware(Counted, metrics=metrics),
            Middleware(Guard, tokens=token_file, local=service.local, hosts=hosts, largest=largest, session=sessions.principal),
        ],
        exception_handlers={HTTPException: _http_error, KeToolsError: _known_error, Exception: _unknown_error},
        lifespan=lifespan,
    )


class Status:
    """What operators look at."""

    def __init__(self, service: Service, metrics: Metrics, *, tokens: Tokens | None, read_only: bool, has_mcp: bool) -> None:
        self._service = service
        self._metrics = metrics
        self._tokens = tokens
        self._read_only = read_only
        self._has_mcp = has_mcp
        self._reading = ThreadPoolExecutor(1, "ke-status")  # its own, so that no work of others can keep a monitor waiting

    def routes(self) -> list[Route]:
        """Give the routes for Starlette."""
        return [
            Route("/healthz", self.healthz, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def healthz(self, _: Request) -> Response:
        """Answer 200 when questions can be answered, else 503 with the reason: no model, or nothing of the ledger can be read.

        The status is ``degraded``, and the reason given, where they are answered but something needs a person: a part of the ledger
        cannot be read and the last known corrections act, or no new one can be made.
        """
        slot = self._service.models
        revision, reason = -1, ""
        try:
            with self._service.damage.watching("head"):
                revision = await self._read(self._service.ledger.head)
        except KeToolsError as error:
            reason = str(error)
        if not reason and slot.state != "ready":
            reason = f"the model is not ready ({slot.state})" + (f": {slot.detail}" if slot.detail else "")
        reason = reason or slot.trouble
        trouble = self._service.trouble or (self._tokens.trouble if self._tokens else "")
        state = "unavailable" if reason else "degraded" if trouble else "ok"
        body = {
            "status": state,
            "reason": reason or trouble,
            "revision": revision,
            "model": self._service.model_id,
            "version": __version__,
        }
        return JSONResponse(body, 503 if reason else 200, {"cache-control": "no-store"})

    async def metrics(self, request: Request) -> Response:
        """Give the numbers in Prometheus' text format."""
        who: Principal = request.scope["ke.principal"]
        who.require("read")
        return Response(await self._read(partial(self._metrics.text, who)), media_type=CONTENT_TYPE)

    def close(self) -> None:
        """Let the thread go."""
        self._reading.shutdown(wait=False)

    async def _read(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, call)

    async def page(self, _: Request) -> Response:
        """Say to a program what this is; browsers get the console."""
        access = "this machine; any API key" if self._tokens is None else "a token is needed: Authorization: Bearer TOKEN"
        lines = [
            f"ke-tools {__version__}: corrects what a language model believes, where it is served.",
            "",
            f"model          {self._service.model_id} (with corrections), {self._service.model_id}:base (without)",
            f"corrections    {'are not taken here (read-only)' if self._read_only else 'are taken over MCP'}",
            f"access         {access}",
            "",
            *(["/mcp           Model Context Protocol: edit, query, verify, promote, rollback, history …"] if self._has_mcp else []),
            "/v1            OpenAI-compatible: models, completions, chat/completions",
            "/              in a browser: the console",
            "/healthz       200 when questions can be answered",
            "/metrics       Prometheus",
            "",
        ]
        return PlainTextResponse("\n".join(lines))


class _Door:
    """Leads a request into the MCP application, in whose terms the principal is an authenticated user."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
        from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
        from mcp.server.auth.provider import AccessToken

        who: Principal = scope["ke.principal"]
        claims = {"edits_per_minute": who.edits_per_minute}
        token = AccessToken(token="", client_id=who.name, subject=who.tenant, scopes=sorted(who.scopes), claims=claims)
        scope["user"] = AuthenticatedUser(token)  # binds a session to the principal that opened it
        body = _Body(receive)
        await AuthContextMiddleware(self._app)(scope, body.receive, _telling_too_large(scope, body, send))


class _Body:
    """A request's body, of which it is known whether more of it will come."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_more = True

    async def receive(self) -> Message:
        """Give the next part."""
        message = await self._receive()
        self._has_more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Read what still comes."""
        if self._has_more:
            await drain(self._receive)


def _telling_too_large(scope: Scope, body: _Body, send: Send) -> Send:
    """Pass an answer on, but give the refusal of too large a body, which the SDK words by itself, the shape of all others."""
    is_replaced = False

    async def tell(message: Message) -> None:
        nonlocal is_replaced
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            is_replaced = True
            await body.drain()
            await too_large()(scope, body.receive, send)
        if not is_replaced:
            await send(message)

    return tell


def _security(hosts: HostRule, allowed_hosts: Sequence[str]) -> TransportSecuritySettings:
    """Tell the MCP transport what :class:`Guard` enforces; "any address" it cannot express, so it is left to the guard."""
    from mcp.server.transport_security import TransportSecuritySettings

    if hosts.is_any_address:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    names = [*_LOOPBACK, *allowed_hosts]
    patterns = [pattern for name in names for pattern in (name, f"{name}:*")]
    origins = [f"{scheme}://{pattern}" for scheme in ("http", "https") for pattern in patterns]
    return TransportSecuritySettings(allowed_hosts=patterns, allowed_origins=origins)


async def _known_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, KeToolsError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(not_found(request.scope["path"]))
    path = request.scope["path"][:200]
    known = InvalidInput(f"{request.method} {path!r}: {error.detail}.", "See / for what this server offers.")
    return error_response(known, error.status_code, dict(error.headers or {}))


async def _unknown_error(request: Request, error: Exception) -> Response:
    _LOG.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return error_response(KeToolsError("something broke inside.", "See the server's log."))
