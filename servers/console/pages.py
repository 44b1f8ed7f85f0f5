"""What all pages have in common: how they are asked for, what they may do, and how they and their failures look.

A page is a function from :class:`Asked` to :class:`Page` or :class:`Moved`. What changes something is a POST that carries the session's
mark, and ends by moving to a page that says what was done, so that a reload repeats nothing. A failure is a page as well, in the words
of the error; a part of a page (htmx asks for one) fails as a part.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from urllib.parse import parse_qsl, quote

from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse, Response

from ke_tools import __version__
from ke_tools.errors import Conflict, Forbidden, InvalidInput, KeToolsError
from ke_tools.facts import LONGEST
from ke_tools.servers.console import wording
from ke_tools.servers.openai import read_body
from ke_tools.servers.principal import NOBODY, shows_only

if TYPE_CHECKING:
    from jinja2 import Environment
    from starlette.datastructures import URL
    from starlette.requests import Request

    from ke_tools.servers.console.sessions import Sessions
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["HEADERS", "STATIC", "Asked", "Made", "Moved", "Page", "Pages", "Part", "Row", "seen", "slow"]

log = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S")

_HERE: Final = Path(__file__).parent
STATIC: Final = _HERE / "static"
HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with none at all, browsers send forms with the origin "null"
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
MARK: Final = "mark"  # the form field
_MOST_FIELDS: Final = 400
_THREADS: Final = 6
_SLOW_THREADS: Final = 2
_LARGEST_FORM: Final = 256 * 1024
_LOGIN: Final = "/console/login"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a page."""

    who: Principal
    query: Mapping[str, str]
    path: Mapping[str, str]
    form: Mapping[str, tuple[str, ...]]
    cookie: str
    url: URL  # as it was asked for
    is_part: bool  # asked for by a script of ours, which puts the answer into a page
    holder: Callable[[], Principal]  # whose it is now; nobody's, once the token was withdrawn

    def said(self, name: str, default: str = "") -> str:
        """A field of the form, or of the query; the first, if there are several."""
        return self.form.get(name, (self.query.get(name, default),))[0]

    @property
    def later(self) -> str:
        """Where the part that takes long is asked for, so that the page is there at once; "" where it is to be here now."""
        if self.is_part or self.said("now"):
            return ""
        return self.url.path + (f"?{self.url.query}" if self.url.query else "")

    def chosen(self) -> tuple[str, ...]:
        """The edits that were ticked.

        Raises:
            InvalidInput: none was.
        """
        if not (ids := self.form.get("edit", ())):
            raise InvalidInput("nothing was chosen.", "Tick some in the list.")
        return ids


@dataclass(frozen=True, slots=True)
class Page:
    """A template and what is to be in it."""

    template: str
    context: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Moved:
    """Where to look now, with what was done."""

    to: str
    told: str = ""


Made = Page | Moved | Response
Handler = Callable[[Asked], Made | Awaitable[Made]]  # one that is no coroutine function runs in a thread
Row = tuple[str, str, Handler]  # method, path


class Pages:
    """Makes endpoints of page functions."""

    def __init__(self, service: Service, sessions: Sessions, *, read_only: bool) -> None:
        self._service = service
        self.sessions = sessions
        self.read_only = read_only or service.settings.read_only
        self.deciding = threading.Lock()  # between looking whether all is as it was shown, and doing it
        self._pool = ThreadPoolExecutor(_THREADS, "ke-console")  # its own, so that nothing here keeps questions at /v1 waiting
        self._slow_pool = ThreadPoolExecutor(_SLOW_THREADS, "ke-console-slow")

    def endpoint(self, handler: Handler, *, is_open: bool = False) -> Callable[[Request], Awaitable[Response]]:
        """Wrap a page; one that is ``is_open`` is there for whoever is not logged in."""

        @functools.wraps(handler)
        async def answer(request: Request) -> Response:
            cookie = self.sessions.cookie(request.headers)
            who: Principal = request.scope["ke.principal"]
            is_part = "hx-request" in request.headers and "hx-history-restore-request" not in request.headers
            holder = functools.partial(self.sessions.holder, request.headers)
            asked = Asked(who, request.query_params, request.path_params, {}, cookie, request.url, is_part, holder)
            if who == NOBODY and not is_open:
                return self._to_login(request, asked)
            try:
                if request.method == "POST":
                    asked = await self._posted(request, asked, is_marked=not is_open)
                made = await self._made(handler, asked)
                return await self._in_thread(self._shown, asked, made)
            except ClientDisconnect:  # nobody reads what is said
                return Response(None, HTTPStatus.BAD_REQUEST)
            except KeToolsError as error:
                return await self._in_thread(self._failed, asked, error, request.method)
            except Exception:
                log.exception("%s %s failed", request.method, request.url.path)
                broken = KeToolsError("something broke inside.", "See the server's log.")
                return await self._in_thread(self._failed, asked, broken, request.method)

        return answer

    async def _made(self, handler: Handler, asked: Asked) -> Made:
        if inspect.iscoroutinefunction(handler):
            found: Made = await handler(asked)
            return found
        pool = self._slow_pool if getattr(handler, "is_slow", False) else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, cast("Callable[[Asked], Made]", handler), asked)

    async def _in_thread(self, call: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *given)

    def close(self) -> None:
        """Let the threads go."""
        self._pool.shutdown(wait=False)
        self._slow_pool.shutdown(wait=False)

    @staticmethod
    def check_seen(asked: Asked, *shown: object) -> None:
        """Refuse to do what a form asks for where it would not do what its page showed.

        Raises:
            Conflict: something has changed meanwhile.
        """
        if asked.said("seen") != seen(*shown):
            raise Conflict(
                "what this would change is not what the page showed: something was changed meanwhile. Nothing was done.",
                "Look at it once more, and repeat it.",
            )

    async def _posted(self, request: Request, asked: Asked, *, is_marked: bool) -> Asked:
        """Read a form, and refuse what no page of ours sent."""
        if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            raise Forbidden("this form was sent by a page of another site.", "Open the console itself, and do it there.")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
            raise InvalidInput("this is no form of the console.", "Programs use MCP or the command line.")
        body = await read_body(request, _LARGEST_FORM)
        if body is None:
            raise InvalidInput(f"the form is larger than {_LARGEST_FORM} bytes.", "Send less at once.")
        try:
            fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
        except ValueError as error:
            raise InvalidInput(f"the form cannot be read: {error}", f"Send at most {_MOST_FIELDS} fields, in UTF-8.") from error
        form: dict[str, tuple[str, ...]] = {}
        for name, value in fields:
            form[name] = (*form.get(name, ()), value.replace("\r\n", "\n"))
        if is_marked and not self.sessions.fits(form.get(MARK, ("",))[0], asked.cookie, asked.who):
            raise Forbidden("the page that sent this is out of date.", "Nothing was changed. Load it again, and repeat it.")
        return replace(asked, form=form)

    def _to_login(self, request: Request, asked: Asked) -> Response:
        there = request.url.path + (f"?{request.url.query}" if request.url.query else "") if request.method == "GET" else "/"
        to = _LOGIN if there == "/" or asked.is_part else f"{_LOGIN}?next={quote(there, safe='')}"
        return self._redirect(asked, to)

    def _shown(self, asked: Asked, made: Made) -> Response:
        if isinstance(made, Response):
            return made
        if isinstance(made, Moved):
            if made.told:
                self.sessions.tell(asked.cookie, made.told)
            return self._redirect(asked, made.to)
        return HTMLResponse(self.rendered(asked, made.template, made.context), made.status, HEADERS)

    def _redirect(self, asked: Asked, to: str) -> Response:
        if asked.is_part:  # the whole page moves, not the part
            return Response(None, HTTPStatus.NO_CONTENT, {**HEADERS, "hx-redirect": to})
        return RedirectResponse(to, HTTPStatus.SEE_OTHER, HEADERS)

    def _failed(self, asked: Asked, error: KeToolsError, method: str) -> Response:
        template = "_failure.html" if asked.is_part else "failure.html"
        heading = "That was not done" if method == "POST" else "That cannot be shown"
        return HTMLResponse(self.rendered(asked, template, {"error": error, "heading": heading}), error.http_status, HEADERS)

    def rendered(self, asked: Asked, template: str, context: Mapping[str, Any]) -> str:
        """A template with what all pages show."""
        mine: dict[str, Any] = {
            "who": asked.who,
            "mark": self.sessions.mark(asked.cookie, asked.who),
            "later": asked.later,
            "may_write": self.is_open and asked.who.may("write"),
            "may_propose": self.is_open and asked.who.may("propose"),
        }
        if not template.startswith("_"):
            mine |= self._around(asked)
        return _environment().get_template(template).render({**mine, **context})

    def _around(self, asked: Asked) -> dict[str, Any]:
        """What stands around every whole page."""
        service, who = self._service, asked.who
        waiting = 0
        if who.may("read"):
            try:
                waiting = service.ledger.edits(who.tenant, states=(wording.PROPOSED,), limit=1).total
            except KeToolsError as error:
                log.warning("the pages' margin cannot be read: %s", error)
        return {
            "told": self.sessions.told(asked.cookie),
            "trouble": service.trouble or self.sessions.trouble,
            "read_only": self.read_only,
            "model": service.model_id,
            "model_state": service.models.state,
            "waiting": waiting,
            "version": __version__,
            "is_guarded": self.sessions.is_guarded,
        }

    @property
    def is_open(self) -> bool:
        """Whether anybody may write here."""
        return not self.read_only and self._service.unwritable is None

    def check_writable(self) -> None:
        """Refuse what would write, where this door only shows.

        Raises:
            ReadOnly: it was started with ``--read-only``.
        """
        if self.read_only:
            raise shows_only()


class Part:
    """Pages that belong together."""

    is_open = False  # whether they are there for whoever is not logged in

    def __init__(self, pages: Pages, service: Service) -> None:
        self._pages = pages
        self._service = service

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        raise NotImplementedError


def slow(handler: Callable[[S, Asked], Made]) -> Callable[[S, Asked], Made]:
    """Mark a page that waits for the model, so that few of them run at once and others go on meanwhile."""
    handler.is_slow = True  # type: ignore[attr-defined]
    return handler


def seen(*shown: object) -> str:
    """What a form sends back of what its page showed."""
    return hashlib.sha256(json.dumps(shown, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {"ago": wording.ago, "differences": wording.differences, "number": wording.number}
    made.globals |= {"asset": _asset, "longest": LONGEST}
    return made


@functools.cache
def _asset(name: str) -> str:
    """The address of a static file, which changes with what is in it."""
    return f"/console/static/{name}?{hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"
