"""The page about the server itself: it tells each what is theirs, and says of what is not known that it is not."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.errors import LedgerDamaged
from ke_tools.memory.events import Finding
from ke_tools.memory.ledger import Ledger
from ke_tools.models.engine import Engine
from ke_tools.servers.console import health
from ke_tools.servers.fired import Hourly
from ke_tools.servers.latencies import Latencies, Spread
from ke_tools.servers.service import Service
from ke_tools.servers.slot import ModelSlot
from tests.servers.console.browsing import EVIL, PEOPLE, Console, refuse_strangers
from tests.servers.test_service import Scripted

CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly"}


def ask(service: Service, name: str, times: int = 1) -> None:
    """Ask about what is corrected."""
    for _ in range(times):
        asyncio.run(service.answering.query(PEOPLE[name], "What is the capital of Freedonia?", wait_seconds=10))


def test_a_server_that_was_asked_nothing_says_so(console: Console) -> None:
    """Issue 8, §3: empty states are designed."""
    page = console.browser("reader").see("/console/health")
    assert "Questions are answered, with the corrections as they stand" in page
    assert "is read with the first question" in page
    assert "None did since this server began" in page
    assert page.count("Nobody asked anything since") == 2
    assert "sha256:00" in page
    assert "GB free" in page
    assert "<dt>sqlite</dt>" in page


def test_what_was_asked_and_fired_is_counted_and_drawn(console: Console) -> None:
    """Issue 8, §3: p50/p99 of the router, fired edits per hour."""
    console.service.edit(PEOPLE["ann"], [CAPITAL])
    ask(console.service, "ann", 3)
    page = console.browser("reader").see("/console/health")
    hour = f"{datetime.now(UTC):%H}"
    assert f'<desc id="fired-desc">3 in all; most at {hour}: 3.</desc>' in page
    assert f'<td>{hour}</td><td class="number">3</td>' in page
    assert '<span class="label">Questions</span><span class="value">3</span>' in page
    assert 'id="routing-title">How long the router took' in page
    assert 'id="answer-title">How long answers took' in page
    assert "Of acme." in page


def test_answers_of_the_endpoint_are_timed_too(console: Console) -> None:
    """Issue 8, §3: p50/p99 of answers, by whatever way they were asked for."""
    console.browser().complete("The capital")
    assert [len(console.service.answering.latencies.of(kind, "acme")) for kind in ("routing", "answer")] == [1, 1]


def test_the_numbers_are_the_tenants_own_and_all_for_an_admin(console: Console) -> None:
    """Issue 8, §3: never another tenant's numbers, unless admin."""
    console.service.edit(PEOPLE["ann"], [CAPITAL])
    ask(console.service, "ann", 2)
    ask(console.service, "zoe", 1)
    counted = '<span class="label">Questions</span><span class="value">{}</span>'
    zoe, root = console.browser("zoe").see("/console/health"), console.browser("root").see("/console/health")
    assert counted.format(1) in zoe
    assert "None did since this server began" in zoe
    assert '<a href="/console/edits">0</a>' in zoe
    assert counted.format(3) in root
    assert "Of all tenants." in root


def test_the_index_is_said_to_follow_or_to_be_behind(console: Console) -> None:
    """Issue 8, §3: index lag."""
    console.service.edit(PEOPLE["ann"], [CAPITAL])
    ask(console.service, "ann")
    ann = console.browser("ann")
    assert "follows the ledger" in ann.see("/console/health")
    console.service.edit(PEOPLE["zoe"], [CAPITAL])
    assert "follows the ledger" in ann.see("/console/health")  # another tenant's edit is none of its
    console.service.edit(PEOPLE["ann"], [{**CAPITAL, "target": "Huxley"}])
    assert "2 changed edits not read yet" in ann.see("/console/health")


def test_the_history_is_audited_on_a_button(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §3: audit of the hash chain; what is found of other tenants is for admins."""
    ann, root = console.browser("ann"), console.browser("root")
    assert "hash chain and keys are whole" in ann.post("/console/health/audit", is_part=True).text
    assert "<html" in ann.post("/console/health/audit").text
    assert ann.post("/console/health/audit", mark="0" * 64).status_code == 403

    found = [Finding("chain", f"event 7 of bolt does not follow {EVIL}", 7), Finding("purged", "a purge")]
    monkeypatch.setattr(Ledger, "audit", lambda _self: found)
    for browser, is_told in ((ann, False), (root, True)):
        page = browser.post("/console/health/audit").text
        assert "1 thing found that need" in page
        assert ("of bolt" in page) is is_told
        assert "<script>alert" not in page
    assert "1 that an admin is told" in ann.post("/console/health/audit", is_part=True).text


def test_only_an_admin_sees_what_names_other_tenants(console: Console) -> None:
    """Issue 8, §3: never another tenant's numbers, unless admin."""
    ann, root = console.browser("ann"), console.browser("root")
    assert "/console/health/checks" not in ann.see("/console/health")
    assert ann.get("/console/health/checks", is_part=True).status_code == 403
    assert "/console/health/checks" in root.see("/console/health")


def test_an_admin_has_all_quick_checks_on_a_button(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §3: what doctor has cheaply."""
    checks = [{"name": "disk", "ok": True, "detail": "1 GB"}, {"name": "model", "ok": False, "detail": EVIL}]
    monkeypatch.setattr(health, "examine", lambda _service, *, deep: {"summary": f"deep {deep}", "checks": checks})
    root = console.browser("root")
    for is_part in (True, False):
        page = root.get("/console/health/checks", is_part=is_part).text
        assert "deep False" in page
        assert '<span class="state bad">bad</span> model' in page
        assert "<script>alert" not in page


class Several(Scripted):
    """An engine of two servers, one of them away, with a release of each of two tenants."""

    adapters = frozenset({"reader", f"rel_{1:024x}", f"rel_{2:024x}"})

    def told(self) -> list[tuple[bool, str]]:
        """How they are."""
        return [(True, "10.0.0.1:8000 answers"), (False, "10.0.0.2:8000 gets no requests: it was away")]


def _with(settings: Settings, engine: Engine) -> Service:
    return Service(settings, Ledger(settings.ledger_file), ModelSlot(lambda _say: engine), model_id="several")


def test_the_servers_of_the_model_are_asked_after_the_page_is_there(settings: Settings) -> None:
    """Issue 8, §3: replicas, where there are several; their addresses are for admins."""
    service = _with(settings, Several())
    console = Console.of(service)
    ann, root = console.browser("ann"), console.browser("root")
    assert 'hx-get="/console/health/replicas"' in ann.see("/console/health")
    for is_part in (True, False):
        hers, his = (browser.see("/console/health/replicas", is_part=is_part) for browser in (ann, root))
        assert "1 of 2 are well" in hers
        assert "10.0.0.1" not in hers
        assert "10.0.0.2:8000 gets no requests: it was away" in his
    service.close()


def test_releases_of_other_tenants_are_not_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3: a tenant never sees another's."""
    service = _with(settings, Several())
    monkeypatch.setattr(Ledger, "live_release", lambda _self, tenant: f"rel_{1:024x}" if tenant == "acme" else "")
    console = Console.of(service)
    pages = {name: console.browser(name).see("/console/health") for name in ("ann", "zoe", "root")}
    service.close()
    shown = {name: [number for number in (1, 2) if f"rel_{number:024x}" in page] for name, page in pages.items()}
    assert shown == {"ann": [1], "zoe": [], "root": [1, 2]}


def test_a_ledger_that_cannot_be_read_is_told_on_the_page(settings: Settings) -> None:
    """Issue 8, §3: error states are designed; the page that tells of damage must not fall with it."""
    broken = Service(settings, LedgerDamaged("page 9 is malformed.", "Restore a copy."), ModelSlot(lambda _say: Scripted()), model_id="x")
    console = Console.of(broken)
    page = console.browser("ann").see("/console/health")
    assert "Not every question can be answered now" in page
    assert "page 9 is malformed." in page
    for path in ("/console/queue", "/console/releases", "/console/jobs", "/console/actors?actor=eve"):
        found = console.browser("ann").get(path)
        assert found.status_code >= 400
        assert "page 9 is malformed." in found.text
    broken.close()


def test_a_server_that_only_shows_says_so(settings: Settings) -> None:
    """Issue 8, bad input: while the server is read-only."""
    Ledger(settings.ledger_file).close()
    closed = dataclasses.replace(settings, read_only=True)
    service = Service(closed, Ledger(settings.ledger_file, read_only=True), ModelSlot(lambda _say: Scripted()), model_id="x")
    console = Console.of(service)
    for path in ("/console/health", "/console/queue", "/console/releases", "/console/jobs"):
        page = console.browser("root").see(path)
        assert "This server only shows" in page
    assert "not taken here" in console.browser("root").see("/console/health")
    assert "file, hash chain" in console.browser("root").see("/console/health")
    service.close()


def test_who_has_no_session_logs_in_and_who_may_not_read_is_refused(console: Console) -> None:
    """Issue 8, §3: same tokens."""
    refuse_strangers(console, "/console/health", "/console/health/replicas", "/console/health/checks")
    assert console.browser().post("/console/health/audit").headers["location"] == "/console/login"


# What is measured ---------------------------------------------------------------------------------------------------------


def test_percentiles_are_by_nearest_rank_of_the_latest() -> None:
    """Issue 8, §3: p50 and p99; a ring, so that a server of years keeps as much as one of minutes."""
    assert Spread.of([]) is None
    assert Spread.of([0.2]) == Spread(1, 0.2, 0.2)
    assert Spread.of([number / 100 for number in range(100, 0, -1)]) == Spread(100, 0.5, 0.99)
    kept = Latencies(most=2)
    for seconds in (9.0, 1.0, 2.0):
        kept.note("acme", "routing", seconds)
    kept.note("bolt", "routing", 3.0)
    kept.note("acme", "answer", 4.0)
    assert kept.of("routing", "acme") == [1.0, 2.0]
    assert sorted(kept.of("routing", None)) == [1.0, 2.0, 3.0]


def test_hours_are_counted_for_a_day_and_no_longer() -> None:
    """Issue 8, §3: fired edits per hour of the last 24 hours."""
    now = [datetime(2030, 1, 1, 12, 59, tzinfo=UTC)]
    hourly = Hourly(clock=lambda: now[0])
    hourly.note("acme", 2)
    hourly.note("bolt", 5)
    hourly.note("acme", 0)
    now[0] += timedelta(minutes=1)
    hourly.note("acme", 1)
    counted = hourly.of("acme")
    assert len(counted) == 24
    assert counted[-2:] == [(datetime(2030, 1, 1, 12, tzinfo=UTC), 2), (datetime(2030, 1, 1, 13, tzinfo=UTC), 1)]
    assert [count for _, count in hourly.of(None)][-2:] == [7, 1]
    now[0] += timedelta(hours=23)
    assert sum(count for _, count in hourly.of(None)) == 1
    hourly.note("acme", 1)
    assert _kept(hourly) == 2


def _kept(hourly: Hourly) -> Any:
    return len(hourly._counts)
