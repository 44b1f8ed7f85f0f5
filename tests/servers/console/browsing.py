"""A server with tokens as a browser meets it: people log in, look at pages, and send their forms."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from starlette.testclient import TestClient

from ke_tools.servers.app import build_app
from ke_tools.servers.auth import Token, TokenFile
from ke_tools.servers.principal import Principal
from tests.servers.door import WHO

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ke_tools.servers.service import Service

PEOPLE: Final = {**WHO, "zoe": Principal("zoe", "bolt", frozenset({"write"}))}  # she is another tenant's
EVIL: Final = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Browser:
    """What one person does; nobody's, if there is no name."""

    def __init__(self, app: Starlette, name: str = "") -> None:
        self._client = TestClient(app, "http://127.0.0.1:8765", follow_redirects=False)
        if name:
            entered = self._client.post("/console/login", data={"token": name})
            assert entered.status_code == 303, entered.text

    def complete(self, prompt: str) -> None:
        """Ask the endpoint, as ann."""
        asked = {"model": "scripted", "prompt": prompt, "max_tokens": 4}
        answered = self._client.post("/v1/completions", headers={"authorization": "Bearer ann"}, json=asked)
        assert answered.status_code == 200, answered.text

    def get(self, path: str, *, is_part: bool = False) -> Any:
        """Ask for a page, or as our script does for a part of one."""
        return self._client.get(path, headers={"hx-request": "true"} if is_part else {})

    def see(self, path: str, *, is_part: bool = False) -> str:
        """Look at a page that is there; as people read it, but with its tags."""
        found = self.get(path, is_part=is_part)
        assert found.status_code == 200, found.text
        return html.unescape(found.text)

    def post(self, path: str, *, mark: str | None = None, is_part: bool = False, **fields: Any) -> Any:
        """Send a form with the mark that a page of this session has, or with another one."""
        found = re.search(r'name="mark" value="([0-9a-f]{64})"', self._client.get("/", headers={"accept": "text/html"}).text)
        given = {"mark": (found[1] if found else "") if mark is None else mark, **fields}
        return self._client.post(path, data=given, headers={"hx-request": "true"} if is_part else {})

    def seen(self, path: str) -> str:
        """What the form of a preview sends back of what it showed."""
        found = re.search(r'name="seen" value="([0-9a-f]{32})"', self.see(path))
        return found[1] if found else ""

    def done(self, path: str, **fields: Any) -> str:
        """Send a form, and look at the page to which it leads."""
        sent = self.post(path, **fields)
        assert sent.status_code == 303, sent.text
        return self.see(sent.headers["location"])


class Console:
    """The console of a service."""

    def __init__(self, service: Service, app: Starlette) -> None:
        self.service, self._app = service, app

    @classmethod
    @contextmanager
    def of(cls, service: Service, *, read_only: bool = False) -> Iterator[Console]:
        """Open it; each token's secret is its name."""
        tokens = TokenFile(tuple(Token(hashlib.sha256(name.encode()).hexdigest(), who) for name, who in PEOPLE.items()))
        service.models.engine(20)
        yield cls(service, build_app(service, token_file=tokens, read_only=read_only))

    def browser(self, name: str = "") -> Browser:
        """A browser in which somebody is logged in."""
        return Browser(self._app, name)

    @property
    def app(self) -> Starlette:
        """What answers."""
        return self._app


def refuse_strangers(console: Console, *paths: str) -> None:
    """Each page leads who has no session to the log-in, and refuses who may only propose."""
    for path in paths:
        sent = console.browser().get(path)
        assert (sent.status_code, sent.headers["location"].partition("?")[0]) == (303, "/console/login"), path
        refused = console.browser("eve").get(path)
        assert refused.status_code == 403, path
        assert "lacks the scope" in refused.text
