"""What all pages have in common: who may see them, what may send their forms, and how they fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from ke_tools.config import Settings
from ke_tools.errors import LedgerDamaged
from ke_tools.servers.service import Service
from ke_tools.servers.tokens import WatchedTokens
from tests.servers.console.browsing import PEOPLE, Browser, Console, hidden, table_of, text_of
from tests.servers.door import opened

FACT = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}
PAGES = ["/", "/console/edits", "/console/correct"]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_leads_who_is_not_logged_in_to_where_one_logs_in_and_back(visitor: Browser, path: str) -> None:
    """Issue 8, §3: the same tokens; the research's finding that a page must not fail silently with 401."""
    asked = visitor.client.get(f"{path}?words=x", follow_redirects=False)
    assert asked.status_code == 303
    login = visitor.client.get(asked.headers["location"])
    assert "Log in" in text_of(login)
    there = "/console/edits?words=x"
    landed = visitor.client.post("/console/login", data={"token": "ann", "next": there})
    assert str(landed.url).endswith(there)


@pytest.mark.parametrize(
    "there", ["https://evil.example/", "//evil.example", "/\\evil.example", "/v1/models", "javascript:alert(1)", "/console/\r\nx: y"]
)
def test_logging_in_leads_nowhere_else(visitor: Browser, there: str) -> None:
    """Issue 8, bars: header injection; a link to our login page must not lead away from it."""
    landed = visitor.client.post("/console/login", data={"token": "ann", "next": there}, follow_redirects=False)
    assert landed.headers["location"] == "/"
    assert "x" not in landed.headers


def test_a_wrong_token_is_told_and_opens_nothing(visitor: Browser) -> None:
    """Issue 8, bars: wrong token."""
    said = visitor.client.post("/console/login", data={"token": "guess"})
    assert said.status_code == 401
    assert "not one of this server's" in text_of(said)
    assert "set-cookie" not in said.headers


def test_the_cookie_is_kept_from_scripts_and_other_sites(visitor: Browser) -> None:
    """Issue 8, §3: CSRF-safe."""
    said = visitor.client.post("/console/login", data={"token": "ann"}, follow_redirects=False)
    cookie = said.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_the_cookie_opens_pages_alone(visitor: Browser) -> None:
    """A browser sends cookies of its own accord, so no API may listen to one."""
    visitor.enter("ann")
    visitor.see("/console/edits")
    for path in ("/v1/models", "/metrics"):
        assert visitor.client.get(path).status_code == 401


def test_a_token_in_the_header_opens_pages_too_and_a_wrong_one_does_not(visitor: Browser) -> None:
    """Programs that look at pages need no cookie."""
    assert visitor.client.get("/console/edits", headers={"authorization": "Bearer ann"}).status_code == 200
    assert visitor.client.get("/console/edits", headers={"authorization": "Bearer guess"}).status_code == 401


def test_logging_out_ends_it(visitor: Browser) -> None:
    """Issue 8, §3."""
    visitor.enter("ann")
    left = visitor.client.post("/console/logout", data={"any": "thing"})
    assert left.url.path == "/console/login"
    assert visitor.client.get("/console/edits", follow_redirects=False).status_code == 303


def test_every_page_forbids_what_it_does_not_need(visitor: Browser) -> None:
    """Issue 8, §3: CSP; no asset from outside, no inline script or style."""
    visitor.enter("root")
    for path in (*PAGES, "/console/login", "/console/nothing-here"):
        seen = visitor.client.get(path)
        if path != "/console/nothing-here":
            assert seen.status_code == 200, path
            assert "default-src 'none'" in seen.headers["content-security-policy"]
            assert seen.headers["x-content-type-options"] == "nosniff"
            assert seen.headers["cache-control"] == "no-store"
        for never in ("http://", "https://", " style=", "<style", "onclick", "<script>"):
            assert never not in seen.text.replace('placeholder="https://', ""), (path, never)


@pytest.mark.parametrize("mark", ["", "0" * 64, None])
def test_a_form_without_the_sessions_mark_changes_nothing(service: Service, visitor: Browser, mark: str | None) -> None:
    """Issue 8, bars: cross-site request."""
    visitor.enter("ann")
    sent = {**FACT, "relation": ""} | ({} if mark is None else {"mark": mark})
    said = visitor.client.post("/console/edits", data=sent)
    assert said.status_code == 403
    assert "out of date" in text_of(said)
    assert service.list_edits(PEOPLE["ann"])["total"] == 0


@pytest.mark.parametrize(
    "header", [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"origin": "https://evil.example"}, {"origin": "null"}]
)
def test_a_form_of_another_site_is_refused_though_it_knew_the_mark(service: Service, visitor: Browser, header: dict[str, str]) -> None:
    """Issue 8, bars: cross-site request."""
    visitor.enter("ann")
    said = visitor.client.post("/console/edits", data={"mark": visitor.mark(), **FACT, "relation": ""}, headers=header)
    assert said.status_code == 403
    assert service.list_edits(PEOPLE["ann"])["total"] == 0


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"mark=\xff", "application/x-www-form-urlencoded"),
        (b"&".join(b"a=b" for _ in range(500)), "application/x-www-form-urlencoded"),
        (b"mark=" + b"x" * 300_000, "application/x-www-form-urlencoded"),
        (b'{"mark": 1}', "application/json"),
        (b"", ""),
    ],
)
def test_what_is_no_form_is_refused_in_words(visitor: Browser, body: bytes, kind: str) -> None:
    """Issue 8, bars: no 500."""
    visitor.enter("ann")
    said = visitor.client.post("/console/edits", content=body, headers={"content-type": kind})
    assert said.status_code == 400
    assert "form" in text_of(said)


def test_who_may_not_read_is_told_what_is_missing(visitor: Browser) -> None:
    """Issue 8, §3: error states are designed."""
    said = visitor.client.post("/console/login", data={"token": "carl"})
    assert said.status_code == 403
    assert "opens no page" in text_of(said)
    assert "set-cookie" not in said.headers


def test_a_failure_is_a_page_in_the_errors_words_and_a_part_fails_as_a_part(visitor: Browser) -> None:
    """Issue 8, §3: error states are designed, not accidental."""
    visitor.enter("ann")
    whole = visitor.see("/console/edits/ed_0000000000000000", status=404)
    assert "<nav" in whole
    assert "ed_0000000000000000" in text_of(whole)
    part = visitor.see("/console/edits/ed_0000000000000000/undo", status=404, is_part=True)
    assert "<nav" not in part
    assert 'role="alert"' in part


def test_what_broke_inside_is_told_without_its_insides(service: Service, visitor: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, bars: nothing leaked."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /etc/x")

    visitor.enter("ann")
    monkeypatch.setattr(service.ledger, "fired", broken)
    seen = visitor.see("/console/edits", status=500)
    assert "something broke inside" in text_of(seen)
    assert "secret" not in seen


def test_a_damaged_ledger_is_a_page_that_says_so(service: Service, visitor: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design: what fails says what was found."""

    def damaged(*_: object, **__: object) -> None:
        raise LedgerDamaged("page 3 cannot be read.", "Restore a copy.")

    visitor.enter("ann")
    monkeypatch.setattr(service.ledger, "edits", damaged)
    seen = text_of(visitor.see("/console/edits", status=LedgerDamaged.http_status))
    assert "page 3 cannot be read. Restore a copy." in seen


def test_an_address_where_nothing_is_is_a_page_too(visitor: Browser) -> None:
    """Issue 8, §3: error states are designed."""
    assert visitor.client.get("/console").url.path == "/console/login"
    visitor.enter("ann")
    assert visitor.client.get("/console").url.path == "/"
    seen = visitor.see("/console/nowhere", status=404)
    assert "<nav" in seen
    assert "there is nothing at '/console/nowhere'" in text_of(seen)
    assert visitor.client.get("/console/static/nowhere").status_code == 404


def test_programs_get_the_plain_first_page(visitor: Browser) -> None:
    """Issue 3 §4: where things are, for whoever asks with curl; needs no token."""
    said = visitor.client.get("/", headers={"accept": "*/*"})
    assert said.headers["content-type"].startswith("text/plain")
    assert said.headers["vary"] == visitor.get("/").headers["vary"] == "accept"
    assert "/v1" in said.text


def test_a_server_that_only_shows_says_so_and_changes_nothing(service: Service) -> None:
    """Issue 8, bad input: while the server is read-only."""
    visitor = Console.of(service, read_only=True).browser()
    visitor.enter("ann")
    service.edit(PEOPLE["ann"], [{**FACT, "subject": "Ruritania", "prompt": "The capital of Ruritania is"}])
    listed = visitor.see("/console/edits")
    assert "--read-only" in listed
    assert "the chosen" not in listed
    assert 'type="checkbox"' not in listed
    assert "Is that wrong?" not in visitor.send("/console/ask", question="What is the capital of Ruritania?").text
    visitor.see("/console/correct", status=403)
    said = visitor.send("/console/correct", **FACT)
    assert said.status_code >= 400
    assert "--read-only" in text_of(said)
    said = visitor.send("/console/edits", **FACT, relation="")
    assert "--read-only" in text_of(said)
    assert service.list_edits(PEOPLE["ann"])["total"] == 1


def test_a_home_that_only_shows_does_too(settings: Settings) -> None:
    """The setting, not only the door."""
    opened(settings).close()
    service = opened(dataclasses.replace(settings, read_only=True))
    visitor = Console.of(service, tokens=None).browser()
    assert "--read-only" in visitor.see("/console/edits")
    assert "--read-only" in text_of(visitor.send("/console/edits", **FACT, relation=""))
    service.close()


@pytest.mark.parametrize(
    "path",
    [
        "/console/static/../pages.py",
        "/console/static/%2e%2e/pages.py",
        "/console/static/..%2fpages.py",
        "/console/static//etc/passwd",
        "/console/static/",
    ],
)
def test_no_file_but_those_meant_for_pages_is_served(visitor: Browser, path: str) -> None:
    """Issue 8, bars: path traversal."""
    said = visitor.client.get(path, follow_redirects=False)
    assert said.status_code in {303, 404}
    assert "import" not in said.text


def test_assets_need_no_token_and_may_be_kept(visitor: Browser) -> None:
    """Issue 8, bars: first paint; the login page has a look too."""
    source = visitor.see("/console/login")
    for name in ("console.css", "htmx.min.js", "console.js"):
        [address] = [part for part in source.split('"') if part.startswith(f"/console/static/{name}?")]
        said = visitor.client.get(address)
        assert said.status_code == 200
        assert "immutable" in said.headers["cache-control"]


@pytest.mark.parametrize(
    "path", ["/console/releases/candidates", "/console/releases/back?revision=0", "/console/actors/undo?actor=ann&since=2026-01-01"]
)
def test_a_page_whose_part_takes_long_is_there_before_the_part(service: Service, visitor: Browser, path: str) -> None:
    """Issue 8, bars: first paint of each page. A script asks for the part; where none runs, a link does."""
    service.edit(PEOPLE["ann"], [FACT])
    visitor.enter("ann")
    whole = visitor.see(path)
    assert f'<div hx-get="{path}" hx-trigger="load">' in whole
    assert "Sylvania City" not in whole
    [link] = [part for part in whole.split('"') if part.endswith("now=1")]
    assert "<noscript>" in whole
    part, linked = visitor.see(path, is_part=True), visitor.see(link)
    assert text_of(part) in text_of(linked)
    assert "hx-trigger" not in part


FORMS: Final[dict[str, Callable[[str, str], dict[str, Any]]]] = {
    "/console/edits": lambda *_: {**FACT, "relation": ""},
    "/console/edits/chosen": lambda acts, _: {"do": "undo", "edit": acts},
    "/console/edits/ID/undo": lambda *_: {},
    "/console/queue": lambda _, waits: {"do": "approve", "edit": waits},
    "/console/releases/back": lambda *_: {"revision": "0"},
    "/console/actors/undo": lambda *_: {"actor": "ann", "since": "1h"},
}


@pytest.mark.parametrize("left", [(), ("read",)])
@pytest.mark.parametrize("path", FORMS)
def test_rights_withdrawn_after_a_page_was_shown_stop_what_its_form_asks(
    service: Service, tmp_path: Path, path: str, left: tuple[str, ...]
) -> None:
    """Issue 8, bad input: a token whose rights were withdrawn in between; the server goes on running."""
    file = tmp_path / "tokens.toml"
    people = {name: PEOPLE[name] for name in ("ann", "root")}

    def write() -> None:
        file.write_text("\n".join(table_of(name, who) for name, who in people.items()), "utf-8")

    write()
    [acts] = service.edit(PEOPLE["ann"], [{**FACT, "subject": "Ruritania", "prompt": "The capital of Ruritania is"}])["edits"]
    [waits] = service.edit(PEOPLE["eve"], [{**FACT, "target": "Firefly"}])["edits"]
    ann = Console.of(service, tokens=WatchedTokens(file)).browser("ann")
    mark, before = ann.mark(), service.revision
    there = path.replace("ID", acts["edit_id"])
    fields = FORMS[path](acts["edit_id"], waits["edit_id"])

    if left:
        people["ann"] = dataclasses.replace(people["ann"], scopes=frozenset(left))
    else:
        del people["ann"]
    write()
    said = ann.post(there, mark=mark, **fields)

    assert service.revision == before
    if left:
        assert said.status_code == 403
        assert "lacks the scope" in text_of(said)
        ann.see("/console/edits")
    else:
        assert (said.status_code, said.headers["location"].partition("?")[0]) == (303, "/console/login")
        assert ann.client.post("/console/login", data={"token": "ann"}).status_code == 401


def test_a_form_made_for_one_tenant_records_nothing_in_another(service: Service, tmp_path: Path) -> None:
    """Design §3: a tenant is the token's; the page said whom it concerns."""
    file = tmp_path / "tokens.toml"
    file.write_text(table_of("ann", PEOPLE["ann"]), "utf-8")
    ann = Console.of(service, tokens=WatchedTokens(file)).browser("ann")
    shown = hidden(ann.send("/console/correct", **FACT))
    file.write_text(table_of("ann", dataclasses.replace(PEOPLE["ann"], tenant="bolt")), "utf-8")
    assert ann.client.post("/console/edits", data=shown).status_code == 403
    assert service.ledger.edits("bolt").total == service.ledger.edits("acme").total == 0
