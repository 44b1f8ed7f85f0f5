"""Ten thousand requests that no page of ours would send."""

from __future__ import annotations

import random
import string
from typing import Any, Final

import pytest
from starlette.routing import Route

from ke_tools.servers.service import Service
from tests.servers.console.browsing import PEOPLE, URL, Browser

REQUESTS: Final = 10_000
_SEED: Final = 8
_ODD: Final = (
    "",
    " ",
    "0",
    "-1",
    "9" * 40,
    "null",
    "../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    "\x00",
    "é ü 漢字 🜁",
    "\u202eabc",
    "<script>alert('x')</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "' OR 1=1 --",
    "a\r\nset-cookie: x=y",
    "https://evil.example/",
    "//evil.example",
    "The capital of Freedonia is Sylvania City.",
    "The capital of ... is Paris.",
    "Freedonia",
    "2999-01-01",
    "1h",
    "any",
    "live",
    "undo",
    "approve",
    "x" * 5000,
)
_FIELDS: Final = (
    *("mark", "words", "state", "cursor", "edit", "do", "reason", "statement", "subject", "prompt", "target", "relation", "source"),
    *("aliases", "alias", "expires", "key", "question", "next", "token", "actor", "since", "revision", "from", "older_than_days", "fired"),
)


class Monkey:
    """Sends what comes to it."""

    def __init__(self, visitor: Browser, paths: list[str], ids: list[str]) -> None:
        self._chance = random.Random(_SEED)
        self._visitor, self._paths, self._ids = visitor, paths, ids
        self._mark = visitor.mark()

    def send(self) -> Any:
        """Send one."""
        draw = self._chance
        method = draw.choice(("GET", "GET", "POST", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"))
        query = {draw.choice(_FIELDS): self._value() for _ in range(draw.randrange(3))}
        headers = {}
        if draw.random() < 0.2:
            headers["hx-request"] = "true"
        if draw.random() < 0.05:
            headers["cookie"] = "ke_session_8765=" + "".join(draw.choices(string.printable[:94], k=20))
        fields = {draw.choice(_FIELDS): self._value() for _ in range(draw.randrange(8))}
        if draw.random() < 0.8:
            fields["mark"] = self._mark
        sent = {"data": fields} if draw.random() < 0.95 else {"content": draw.randbytes(200)}
        body = sent if method in {"POST", "PUT"} else {}
        return self._visitor.client.request(method, self._path(), params=query, headers=headers, follow_redirects=False, **body)

    def _path(self) -> str:
        draw = self._chance
        path = draw.choice(self._paths)
        while "{" in path:
            start, end = path.index("{"), path.index("}")
            path = (
                path[:start]
                + draw.choice((*self._ids, "ed_0000000000000000", "job_1", "%2e%2e", "x" * 300, "%00", "%ff"))
                + path[end + 1 :]
            )
        if draw.random() < 0.1:
            place = draw.randrange(1, len(path) + 1)
            path = path[:place] + draw.choice(("/", "//", "/..", "%2f", "%00", ".", "é", "console")) + path[place:]
        return path

    def _value(self) -> str:
        return self._chance.choice((*_ODD, *self._ids, self._mark))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["ann", "reader", "root"])
def test_odd_requests_break_nothing_and_leak_nothing(service: Service, visitor: Browser, name: str) -> None:
    """Issue 8, bars: 10,000 fuzzed requests: nothing executed, nothing leaked, no 500; the ledger holds afterwards."""
    job = service.ledger.jobs.submit("acme", "verify", {"edit_ids": [], "suite": "quick"}, actor="ann")
    others = service.edit(PEOPLE["zoe"], [{"subject": "Secretia", "prompt": "The code of Secretia is", "target": "hush-hush"}])["edits"]
    mine = service.edit(PEOPLE["ann"], [{"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly"}])["edits"]
    app: Any = visitor.client.app
    paths = [route.path for route in app.routes if isinstance(route, Route) and (route.path == "/" or route.path.startswith("/console"))]
    paths = [path for path in paths if not path.endswith(("/logout", "/events"))] + ["/console/static/console.css"]
    visitor.enter(name)
    monkey = Monkey(visitor, paths, [job.id, *(edit["edit_id"] for edit in (*mine, *others))])
    for number in range(REQUESTS // 3 + 1):
        said = monkey.send()
        seen = (number, said.request.method, str(said.request.url)[:200], said.status_code)
        assert said.status_code < 500, (seen, said.text[-2000:])
        assert "hush-hush" not in said.text, seen
        assert "<script>alert" not in said.text, seen
        assert "<img src=x" not in said.text, seen
        assert "Traceback" not in said.text, seen
        assert not any(value.startswith("x=y") for value in said.headers.values()), seen
        assert not said.headers.get("location", "/").removeprefix(URL).startswith(("//", "http")), seen
    assert service.ledger.audit() == []
