"""Somebody at a browser, as far as a server can tell: follows redirects, keeps cookies, and sends the forms of pages it has seen."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.testclient import TestClient

from ke_tools.servers.app import build_app
from ke_tools.servers.auth import Token, TokenFile
from ke_tools.servers.principal import Principal
from ke_tools.servers.service import Service
from tests.servers.door import WHO

URL: Final = "http://127.0.0.1:8765"
PEOPLE: Final = {**WHO, "otto": Principal("otto", "other", frozenset({"write"}))}
_MARK: Final = re.compile(r'name="mark" value="([0-9a-f]{64})"')


class Visitor:
    """One browser."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.client.headers["accept"] = "text/html"

    def enter(self, name: str) -> Visitor:
        """Log in; each token's secret is its name."""
        landed = self.client.post("/console/login", data={"token": name})
        assert landed.url.path != "/console/login", text_of(landed)
        return self

    def see(self, path: str, *, status: int = 200, **headers: str) -> str:
        """Open a page; return its source."""
        seen = self.client.get(path, headers=headers)
        assert seen.status_code == status, (seen.status_code, text_of(seen))
        return seen.text

    def mark(self) -> str:
        """The mark of this session's forms."""
        found = _MARK.search(self.see("/"))
        assert found is not None
        return found[1]

    def send(self, path: str, **fields: Any) -> Any:
        """Send a form with this session's mark, and go where it leads."""
        return self.client.post(path, data={"mark": self.mark(), **fields})


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


@contextmanager
def visiting(service: Service, *, guarded: bool = True, **options: Any) -> Iterator[Visitor]:
    """A browser at a server with tokens, or at one without."""
    tokens = TokenFile(tuple(Token(hashlib.sha256(name.encode()).hexdigest(), who) for name, who in PEOPLE.items())) if guarded else None
    service.models.engine(20)
    with TestClient(build_app(service, token_file=tokens, **options), URL) as client:
        yield Visitor(client)
