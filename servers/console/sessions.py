"""Who is logged in at a browser: a cookie that means nothing outside this process, and a mark that only our own pages can send back.

A browser sends no token of its own accord, and a token has no place in a cookie. So a token opens a session, which ends with the server,
after a time without use, or by logging out. The cookie is sent to pages of the same site only; and since a page at another port of this
machine counts as the same site, whatever changes something must also carry the session's mark (against cross-site request forgery).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.requests import cookie_parser

from ke_tools.errors import Forbidden
from ke_tools.servers.auth import authenticate, split_host
from ke_tools.servers.principal import NOBODY
from ke_tools.servers.tokens import WrongToken, sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.datastructures import Headers

    from ke_tools.servers.principal import Principal
    from ke_tools.servers.tokens import Tokens

__all__ = ["IDLE_SECONDS", "Sessions"]

IDLE_SECONDS: Final = 8 * 3600.0
_MOST: Final = 20  # sessions of a token at once; the one that was used least recently goes first
_MOST_TOLD: Final = 5  # messages that wait for a session's next page


@dataclass(slots=True)
class _Session:
    token: str  # its SHA-256
    used: float
    told: list[str] = field(default_factory=list)


class Sessions:
    """The sessions of one door. Thread safe.

    Without a token file nobody logs in: whoever reaches the door is ``local``, the user of this machine, whose cookie is the empty one.
    """

    def __init__(self, tokens: Tokens | None, local: Principal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._local = local
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Session] = OrderedDict()
        if tokens is None:
            self._open[""] = _Session("", clock())

    @property
    def is_guarded(self) -> bool:
        """Whether one must log in."""
        return self._tokens is not None

    def log_in(self, token: str) -> str:
        """Open a session; return the value of its cookie.

        Raises:
            WrongToken: the token is nobody's. Forbidden: it opens no page.
        """
        principal = authenticate(f"Bearer {token}", self._tokens, self._local)
        if not (principal.may("read") or principal.may("propose")):
            raise Forbidden(f"the token {principal.name!r} opens no page.", "Use one with the scope read, propose or write.")
        cookie, sha256 = secrets.token_urlsafe(32), sha256_of(token)
        with self._lock:
            mine = [name for name, session in self._open.items() if session.token == sha256]
            for name in mine[: max(0, len(mine) + 1 - _MOST)]:
                del self._open[name]
            self._open[_name(cookie)] = _Session(sha256, self._clock())
        return cookie

    def log_out(self, cookie: str) -> None:
        """End a session, if it is one."""
        with self._lock:
            if cookie:
                self._open.pop(_name(cookie), None)

    @property
    def trouble(self) -> str:
        """What is wrong with the tokens; "" where nothing is."""
        return self._tokens.trouble if self._tokens else ""

    def holder(self, headers: Headers) -> Principal:
        """Whose a request is by what its token may now, be it in the header or behind a session; nobody's, if it was withdrawn."""
        if "authorization" not in headers:
            return self.principal(headers)
        try:
            return authenticate(headers["authorization"], self._tokens, self._local)
        except WrongToken:
            return NOBODY

    def principal(self, headers: Headers) -> Principal:
        """Whose session a request belongs to, by what its token may now; nobody's, if to none, or if the token was withdrawn."""
        with self._lock:
            session = self._of(self.cookie(headers))
            if session is None:
                return NOBODY
            if self._tokens is None:
                return self._local
            return self._tokens.holder(session.token) or NOBODY

    def cookie(self, headers: Headers) -> str:
        """The value of our cookie in a request; "" where there is none."""
        if self._tokens is None:
            return ""
        return cookie_parser(headers.get("cookie", "")).get(self.cookie_name(headers.get("host", "")), "")

    @staticmethod
    def cookie_name(host: str) -> str:
        """The cookie's name at a host, which the port is part of, as browsers share cookies among the ports of a host."""
        return f"ke_session_{split_host(host)[1] or 'default'}"

    def mark(self, cookie: str, who: Principal) -> str:
        """What forms of a session's pages carry: that they are this session's, and of whose name and tenant the page spoke."""
        meant = json.dumps([cookie, who.tenant, who.name])
        return hmac.new(self._key, meant.encode(), hashlib.sha256).hexdigest()

    def fits(self, mark: str, cookie: str, who: Principal) -> bool:
        """Whether a form came from a page of the session."""
        return hmac.compare_digest(mark.encode(), self.mark(cookie, who).encode())

    def tell(self, cookie: str, message: str) -> None:
        """Leave a message for the session's next page."""
        with self._lock:
            if (session := self._of(cookie)) is not None:
                session.told = [*session.told, message][-_MOST_TOLD:]

    def told(self, cookie: str) -> list[str]:
        """Take the messages that wait."""
        with self._lock:
            session = self._of(cookie)
            if session is None:
                return []
            told, session.told = session.told, []
            return told

    def _of(self, cookie: str) -> _Session | None:
        name, now = _name(cookie), self._clock()
        session = self._open.get(name)
        if session is None:
            return None
        if name and now - session.used > IDLE_SECONDS:
            del self._open[name]
            return None
        session.used = now
        self._open.move_to_end(name)
        return session


def _name(cookie: str) -> str:
    """What a session is kept under: who reads this process's memory learns no cookie."""
    return hashlib.sha256(cookie.encode()).hexdigest() if cookie else ""
