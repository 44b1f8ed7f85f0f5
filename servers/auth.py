"""Who may come in: Host and Origin, then the bearer token.

A web page in somebody's browser can reach a server on loopback. It cannot choose the Host it is sent with, nor hide its
Origin, so both are checked for every path (DNS rebinding, cross-site posts). (Tokens: :mod:`~ke_tools.servers.tokens`.)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from ke_tools.errors import Forbidden, InvalidInput, KeToolsError, NotFound
from ke_tools.servers.http_errors import error_response
from ke_tools.servers.principal import NOBODY, Principal
from ke_tools.servers.tokens import Tokens, WrongToken

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

LARGEST_BODY: Final = 4 * 1024 * 1024
LARGEST_PASSED: Final = 64 * 1024 * 1024  # before a model that another server runs: pictures and sounds go there
OPEN_PATHS: Final = frozenset({"/", "/healthz"})  # what needs no token
CONSOLE: Final = "/console"  # under it, and at "/", are pages: a session's cookie opens them, and nothing else
_DRAINED: Final = 64 * 1024 * 1024  # bytes of an oversized body that are read before it is refused


def authenticate(header: str | None, tokens: Tokens | None, local: Principal) -> Principal:
    """Give the principal; without a token file every key, and none, is ``local``'s, the user of this machine."""
    return local if tokens is None else tokens.authenticate(header)


def check_bind(host: str, token_file: Path | str | None) -> None:
    """Refuse to listen beyond this machine without tokens.

    Raises:
        InvalidInput: ``host`` is not loopback and there is no token file.
    """
    if token_file is None and not is_loopback(host):
        raise InvalidInput(
            f"{host!r} can be reached from other machines, and there is no token file.",
            "Give --token-file FILE, or bind to 127.0.0.1.",
        )


def is_loopback(name: str) -> bool:
    """Tell whether a host name or address literal (with or without brackets) means this machine only."""
    bare = name.strip("[]").lower()
    if bare == "localhost":
        return True
    address = _address(bare)
    return address is not None and address.is_loopback


@dataclass(frozen=True, slots=True)
class HostRule:
    """Which Host and Origin headers are ours: this machine's names, and those allowed.

    An allowed entry is a name (any port) or ``name:port``. ``0.0.0.0`` or ``::`` allows every address literal: rebinding
    needs a name, so a literal is always what the user typed.
    """

    allowed: frozenset[tuple[str, str]]  # (name, port), port "" for any

    @classmethod
    def of(cls, allowed_hosts: Iterable[str]) -> HostRule:
        """Read the entries."""
        return cls(frozenset(split_host(entry) for entry in allowed_hosts if entry))

    @property
    def is_any_address(self) -> bool:
        """Whether address literals are all allowed."""
        return any(name in {"0.0.0.0", "::"} for name, _ in self.allowed)  # noqa: S104  compared, not bound

    def allows(self, host: str) -> bool:
        """Tell whether the Host header's value is ours."""
        name, port = split_host(host)
        if is_loopback(name) or {(name, ""), (name, port)} & self.allowed:
            return True
        return self.is_any_address and _address(name) is not None

    def allows_origin(self, origin: str) -> bool:
        """Tell whether the Origin header's value is a page of ours; ``null`` is nobody's."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and bool(parts.netloc) and not parts.path and self.allows(parts.netloc)


def split_host(value: str) -> tuple[str, str]:
    """Split ``name``, ``name:port``, ``[v6]:port`` or a bare v6 address into ``(name, port)``, lower case, no brackets.

    What is neither comes back whole as the name, and so matches nothing.
    """
    text = value.strip().lower()
    if _address(text) is not None:
        return text, ""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:/@\s]+)(?::(\d{1,5}))?", text)
    if found is None:
        return text, ""
    return found.group(1).strip("[]").removesuffix("."), found.group(2) or ""


class Guard:
    """ASGI middleware for the whole app: Host, Origin, declared body size, token, in this order.

    The principal is left in ``scope["ke.principal"]``. Pages of the console, and these alone, may be asked for by ``session``, which gives
    nobody where a request has none; they lead to where one logs in.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens | None = None,
        local: Principal,
        hosts: HostRule,
        largest: int = LARGEST_BODY,
        session: Callable[[Headers], Principal] = lambda _: NOBODY,
    ) -> None:
        self._app = app
        self._largest = largest
        self._session = session
        self._tokens = tokens
        self._local = local
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is None and _declared_size(headers) > self._largest:
            await drain(receive)
            refusal = too_large(self._largest)
        if refusal is None:
            try:
                principal = self._principal(scope["path"], headers)
            except WrongToken as error:
                refusal = _unauthorised(scope["path"], error, given="authorization" in headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        scope["ke.principal"] = principal
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.allows(hosts[0]):
            shown = ", ".join(hosts)[:80] or "no host"
            error = Forbidden(f"the Host header names {shown!r}, which is not this server.", "Start it with that name allowed.")
            return error_response(error, 421)
        for origin in headers.getlist("origin"):
            if not self._hosts.allows_origin(origin):
                error = Forbidden(f"the web page {origin[:80]!r} may not use this server.", "Start it with that host allowed.")
                return error_response(error, 403)
        return None

    def _principal(self, path: str, headers: Headers) -> Principal:
        if self._tokens is not None and "authorization" not in headers and (path in {"/", CONSOLE} or path.startswith(f"{CONSOLE}/")):
            return self._session(headers)
        if self._tokens is not None and path in OPEN_PATHS:
            return NOBODY
        return authenticate(headers.get("authorization"), self._tokens, self._local)


def too_large(largest: int = LARGEST_BODY) -> Response:
    """Answer a body that is over the most that is taken."""
    return error_response(InvalidInput(f"the body is larger than {largest} bytes.", "Send less at once."), 413)


async def drain(receive: Receive) -> None:
    """Read what a client still sends, so that it gets to read the answer instead of a broken pipe."""
    read = 0
    while read < _DRAINED:
        message = await receive()
        read += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def not_found(path: str) -> KeToolsError:
    """Give the error for a path where nothing is."""
    return NotFound(f"there is nothing at {path[:200]!r}.", "See / for what this server offers.")


def _unauthorised(path: str, error: WrongToken, *, given: bool) -> Response:
    challenge = 'Bearer error="invalid_token"' if given else "Bearer"
    headers = {"www-authenticate": challenge}
    if path == "/mcp":
        return JSONResponse({"error": "invalid_token", "error_description": str(error)}, 401, headers)
    return error_response(error, 401, headers)


def _declared_size(headers: Headers) -> int:
    value = headers.get("content-length", "0")
    return int(value) if value.isascii() and value.isdigit() else 0


@lru_cache(maxsize=1024)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
