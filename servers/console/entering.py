"""Logging in and out."""

from __future__ import annotations

from http import HTTPStatus

from starlette.responses import RedirectResponse

from ke_tools.errors import Forbidden
from ke_tools.servers.console.pages import HEADERS, Asked, Made, Moved, Page, Part, Row

__all__ = ["Entering"]


class Entering(Part):
    """The page that asks for a token, and the way out; for whoever comes."""

    is_open = True

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/login", self.page),
            ("POST", "/console/login", self.enter),
            ("POST", "/console/logout", self.leave),
        ]

    def page(self, asked: Asked) -> Page | Moved:
        """Ask for a token, where one is needed."""
        if not self._pages.sessions.is_guarded:
            return Moved("/")
        return Page("login.html", {"next": asked.said("next"), "error": ""})

    def enter(self, asked: Asked) -> Made:
        """Open a session, and lead on to the page that was asked for."""
        sessions = self._pages.sessions
        if not sessions.is_guarded:
            return Moved("/")
        there = asked.said("next")
        try:
            cookie = sessions.log_in(asked.said("token").strip())
        except Forbidden as error:
            return Page("login.html", {"next": there, "error": str(error.message)}, error.http_status)
        response = RedirectResponse(there if _is_ours(there) else "/", HTTPStatus.SEE_OTHER, HEADERS)
        name = sessions.cookie_name(asked.url.netloc)
        response.set_cookie(name, cookie, httponly=True, samesite="strict", secure=asked.url.scheme == "https")
        return response

    def leave(self, asked: Asked) -> Moved:
        """End the session."""
        self._pages.sessions.log_out(asked.cookie)
        return Moved("/console/login")


def _is_ours(path: str) -> bool:
    """Whether a path leads to a page of the console; what a browser could take for another host's address does not."""
    return path == "/" or (path.startswith("/console/") and path.isprintable() and "\\" not in path and "//" not in path)
