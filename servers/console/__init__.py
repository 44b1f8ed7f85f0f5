"""The console: pages on which people see, correct, approve and undo what the served model believes.

Rendered here, with the same service, tokens and rules as MCP and the endpoint have; no asset comes from outside.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ke_tools.servers.auth import not_found
from ke_tools.servers.console.actors import Actors
from ke_tools.servers.console.asking import Asking
from ke_tools.servers.console.edits import Edits
from ke_tools.servers.console.entering import Entering
from ke_tools.servers.console.health import Health
from ke_tools.servers.console.jobs import Jobs
from ke_tools.servers.console.pages import HEADERS, STATIC, Asked, Made, Moved, Pages
from ke_tools.servers.console.queue import Queue
from ke_tools.servers.console.releases import Releases
from ke_tools.servers.console.sessions import Sessions

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ke_tools.servers.service import Service

    Endpoint = Callable[[Request], Awaitable[Response]]

__all__ = ["Pages", "Sessions", "routes"]


def routes(service: Service, pages: Pages, *, plain: Endpoint) -> list[BaseRoute]:
    """Give the console's routes; all but the first page, which is ``plain`` for programs, lie under ``/console``."""
    asking = Asking(pages, service)
    about = (Edits, Queue, Actors, Releases, Jobs, Health)
    parts = (Entering(pages, service), asking, *(part(pages, service) for part in about))
    found: list[BaseRoute] = [Route("/", _by_accepted(pages.endpoint(asking.page), plain), methods=["GET"])]
    found += [
        Route(path, pages.endpoint(handler, is_open=part.is_open), methods=[method])
        for part in parts
        for method, path, handler in part.routes()
    ]
    found.append(Route("/console", pages.endpoint(lambda _: Moved("/"), is_open=True), methods=["GET"]))
    found.append(Mount("/console/static", _Static(directory=STATIC)))
    return [*found, Route("/console/{rest:path}", pages.endpoint(_missing), methods=["GET"])]


def _missing(asked: Asked) -> Made:
    raise not_found(asked.url.path)


def _by_accepted(page: Endpoint, plain: Endpoint) -> Endpoint:
    """Give browsers the page, and programs the plain text."""

    async def answer(request: Request) -> Response:
        response = await (page if "text/html" in request.headers.get("accept", "") else plain)(request)
        response.headers["vary"] = "accept"
        return response

    return answer


class _Static(StaticFiles):
    """Files whose address changes with what is in them (see ``asset``), so that browsers may keep them."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        """Add our headers."""
        response = super().file_response(*args, **kwargs)
        response.headers.update({**HEADERS, "cache-control": "public, max-age=31536000, immutable"})
        return response
