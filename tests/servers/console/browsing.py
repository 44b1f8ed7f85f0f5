"""A server with tokens as a browser meets it: people log in, look at pages, and send their forms."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any, Final

from starlette.testclient import TestClient

from ke_tools.servers.app import build_app
from ke_tools.servers.principal import Principal
from ke_tools.servers.tokens import sha256_of
from tests.servers.door import WHO, tokens_of

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from ke_tools.servers.service import Service
    from ke_tools.servers.tokens import Tokens

URL: Final = "http://127.0.0.1:8765"
PEOPLE: Final = {**WHO, "zoe": Principal("zoe", "bolt", frozenset({"write"}))}  # she is another tenant's
TOKENS: Final = tokens_of(PEOPLE)
EVIL: Final = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


class Browser:
    """What one person does; nobody's, if there is no name."""

    def __init__(self, app: Starlette, name: str = "") -> None:
        self.client = TestClient(app, URL)  # goes where it is led
        self.client.headers["accept"] = "text/html"
        if name:
            self.enter(name)

    def enter(self, name: str) -> Browser:
        """Log in."""
        entered = self.client.post("/console/login", data={"token": name}, follow_redirects=False)
        assert entered.status_code == 303, entered.text
        return self

    def complete(self, prompt: str) -> None:
        """Ask the endpoint, as ann."""
        asked = {"model": "scripted", "prompt": prompt, "max_tokens": 4}
        answered = self.client.post("/v1/completions", headers={"authorization": "Bearer ann"}, json=asked)
        assert answered.status_code == 200, answered.text

    def get(self, path: str, *, is_part: bool = False) -> Any:
        """Ask for a page, or as our script does for a part of one; go nowhere else."""
        return self.client.get(path, headers={"hx-request": "true"} if is_part else {}, follow_redirects=False)

    def see(self, path: str, *, status: int = 200, is_part: bool = False) -> str:
        """Look at a page that is there; as people read it, but with its tags."""
        found = self.get(path, is_part=is_part)
        assert found.status_code == status, text_of(found)
        return html.unescape(found.text)

    def mark(self) -> str:
        """What this session's forms carry; "" where it has none."""
        return hidden(self.client.get("/")).get("mark", [""])[0]

    def post(self, path: str, *, mark: str | None = None, is_part: bool = False, **fields: Any) -> Any:
        """Send a form with the mark that a page of this session has, or with another one; go nowhere else."""
        given = {"mark": self.mark() if mark is None else mark, **fields}
        return self.client.post(path, data=given, headers={"hx-request": "true"} if is_part else {}, follow_redirects=False)

    def send(self, path: str, **fields: Any) -> Any:
        """Send a form with this session's mark, and go where it leads."""
        return self.client.post(path, data={"mark": self.mark(), **fields})

    def seen(self, path: str) -> str:
        """What the form of a preview sends back of what it showed."""
        return hidden(self.see(path)).get("seen", [""])[0]

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
    def of(cls, service: Service, *, tokens: Tokens | None = TOKENS, read_only: bool = False) -> Console:
        """Open it; each token's secret is its name, and without tokens everybody is the local user."""
        service.models.engine(20)
        return cls(service, build_app(service, token_file=tokens, read_only=read_only))

    def browser(self, name: str = "") -> Browser:
        """A browser in which somebody is logged in."""
        return Browser(self._app, name)

    @property
    def app(self) -> Starlette:
        """What answers."""
        return self._app


def text_of(page: Any) -> str:
    """What can be read on a page."""
    source = page if isinstance(page, str) else page.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


def hidden(page: Any) -> dict[str, list[str]]:
    """The hidden fields of a page, unescaped."""
    source = page if isinstance(page, str) else page.text
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', source):
        found.setdefault(name, []).append(html.unescape(value))
    return found


def refuse_strangers(console: Console, *paths: str) -> None:
    """Each page leads who has no session to the log-in, and refuses who may only propose."""
    for path in paths:
        sent = console.browser().get(path)
        assert (sent.status_code, sent.headers["location"].partition("?")[0]) == (303, "/console/login"), path
        refused = console.browser("eve").get(path)
        assert refused.status_code == 403, path
        assert "lacks the scope" in refused.text


def table_of(name: str, who: Principal) -> str:
    """The table of a token file for a token whose secret is its name."""
    scopes = ", ".join(f'"{scope}"' for scope in sorted(who.scopes))
    return f'[[token]]\nname = "{name}"\nsha256 = "{sha256_of(name)}"\ntenant = "{who.tenant}"\nscopes = [{scopes}]\n'
