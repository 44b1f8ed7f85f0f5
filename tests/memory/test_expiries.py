"""Edits that act until a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import InvalidInput, LimitReached, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory import moments, transfer
from ke_tools.memory.ledger import Ledger
from tests.memory.conftest import Clock


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger, whose log tells all that its tables hold when the test is over."""
    with Ledger(tmp_path / "ledger.db") as made:
        yield made
        assert [finding for finding in made.audit() if finding.is_damage] == []


def capital(target: str, subject: str = "Australia", **more: Any) -> Fact:
    """A fact of a relation with one object a subject."""
    return Fact(subject=subject, prompt=f"The capital of {subject} is", target=target, **more)


def write(ledger: Ledger, *facts: Fact, **more: Any) -> list[Edit]:
    """Record facts as a test's usual actor."""
    return ledger.edit("acme", facts, actor="ann", **more)


def targets(ledger: Ledger) -> list[str]:
    """What is live, oldest first."""
    return [edit.fact.target for edit in ledger.live("acme")]


def test_the_next_writer_retires_what_is_over_and_what_it_had_superseded_comes_back(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: an event `expire` written by the next writer; nobody's token can be its actor."""
    write(ledger, capital("Sydney"))
    [brief] = write(ledger, capital("Perth", expires=moments.ahead("1h")))
    write(ledger, capital("Graz", "Austria"))
    assert targets(ledger) == ["Perth", "Graz"]
    clock.forward(hours=1)
    write(ledger, capital("Oslo", "Norway"))
    assert targets(ledger) == ["Sydney", "Graz", "Oslo"]
    assert ledger.get("acme", brief.id).state is State.RETIRED
    event = ledger.history("acme", edit_id=brief.id).items[0]
    assert (event.action, event.actor) == ("expire", "(expiry)")


def test_a_sweep_retires_what_is_over_of_every_tenant_once(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: or a sweep at the start."""
    made = [ledger.edit(tenant, [capital("Perth", expires=moments.ahead("1h"))], actor="ann")[0] for tenant in ("acme", "other")]
    assert ledger.expiries.next() == "2030-01-01T13:00:00.000Z"
    assert ledger.expiries.sweep() == []
    clock.forward(minutes=59, seconds=59)
    assert ledger.expiries.sweep() == []
    clock.forward(seconds=1)
    assert sorted(ledger.expiries.sweep()) == sorted(edit.id for edit in made)
    assert (ledger.expiries.sweep(), ledger.expiries.next(), ledger.head()) == ([], "", 4)


def test_what_expired_under_a_newer_edit_does_not_come_back(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: not served once the time has passed, by whatever way."""
    write(ledger, capital("Sydney"))
    write(ledger, capital("Perth", expires=moments.ahead("1h")))
    [last] = write(ledger, capital("Hobart"))
    clock.forward(hours=2)
    done = ledger.rollback("acme", [last.id], actor="ann")
    assert ([edit.fact.target for edit in done.restored], targets(ledger)) == (["Sydney"], ["Sydney"])


def test_what_expired_stays_so_when_a_revision_is_brought_back(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: what it had superseded is live instead."""
    write(ledger, capital("Sydney"))
    [brief] = write(ledger, capital("Perth", expires=moments.ahead("1h")))
    then = ledger.head()
    clock.forward(hours=2)
    ledger.rollback_to("acme", 0, actor="ann")
    done = ledger.rollback_to("acme", then, actor="ann")
    assert ([edit.fact.target for edit in done.restored], targets(ledger)) == ([], ["Sydney"])
    with pytest.raises(WrongState, match="expired already"):
        ledger.rollback("acme", [brief.id], actor="ann")


def test_what_expires_is_not_promoted(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: weights do not expire by themselves."""
    assert clock()
    [brief] = write(ledger, capital("Perth", expires=moments.ahead("1h")))
    with pytest.raises(WrongState, match="expires at 2030"):
        ledger.promote("acme", [brief.id], release="rel_" + "0" * 24, actor="ann")


def test_an_expiry_is_exported_and_imported_while_it_is_to_come(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2 and design §3: JSON lines; a line that export wrote and import read gives the same line again."""
    line = '{"subject": "Australia", "prompt": "The capital of Australia is", "target": "Perth", "expires": "1h"}'
    [answer] = transfer.import_lines(ledger, "acme", [line], actor="ann")
    [exported] = transfer.export_lines(ledger, "acme")
    assert json.loads(exported)["expires"] == "2030-01-01T13:00:00.000Z"
    list(transfer.import_lines(ledger, "other", [exported], actor="ann"))
    assert list(transfer.export_lines(ledger, "other")) == [exported]
    clock.forward(hours=1)
    assert list(transfer.export_lines(ledger, "acme")) == []
    [refused] = transfer.import_lines(ledger, "third", [exported], actor="ann")
    assert "has passed" in refused["error"]["message"]
    assert ledger.get("acme", answer["edit_id"]).fact.expires == "2030-01-01T13:00:00.000Z"


def test_a_call_repeated_under_its_key_keeps_the_first_expiry(ledger: Ledger, clock: Clock) -> None:
    """A duration ends at another moment when the same call is repeated, which is no other call."""
    [first] = write(ledger, capital("Perth", expires=moments.ahead("1h")), idempotency_key="k")
    clock.forward(minutes=5)
    assert write(ledger, capital("Perth", expires=moments.ahead("1h")), idempotency_key="k") == [first]


def test_a_fact_takes_no_expiry_in_another_form() -> None:
    """Texts are compared as times, so that only one form may reach the ledger."""
    with pytest.raises(InvalidInput, match="expires is '2030-01-01'"):
        capital("Perth", expires="2030-01-01")


# -- limits ----------------------------------------------------------------------------------------------------------------------


def test_an_actor_records_so_many_edits_a_minute_and_is_told_when_it_may_go_on(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: limits of edits per token and minute, proposals too; each actor and tenant has its own."""
    write(ledger, capital("Perth"), per_minute=3)
    clock.forward(seconds=20)
    write(ledger, capital("Graz", "Austria"), capital("Bergen", "Norway"), per_minute=3, state=State.PROPOSED)
    clock.forward(seconds=20)
    with pytest.raises(LimitReached, match=r"'ann' recorded 3 edits.*Go on at 2030-01-01T12:01:00.000Z") as caught:
        write(ledger, capital("Turku", "Finland"), per_minute=3)
    assert (caught.value.code, caught.value.retryable, caught.value.data["again_at"]) == ("E_LIMIT", True, "2030-01-01T12:01:00.000Z")
    with pytest.raises(LimitReached, match=r"Go on at 2030-01-01T12:01:20.000Z"):
        write(ledger, capital("Turku", "Finland"), capital("Aarhus", "Denmark"), per_minute=3)
    write(ledger, capital("Turku", "Finland"), per_minute=3, dry_run=True)
    ledger.edit("acme", [capital("Turku", "Finland")], actor="bob", per_minute=3)
    ledger.edit("other", [capital("Turku", "Finland")], actor="ann", per_minute=3)
    clock.forward(seconds=20)
    write(ledger, capital("Turku", "Finland"), per_minute=3)


def test_a_repeated_call_counts_once_and_more_than_a_minutes_worth_is_refused_for_good(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: whoever lost an answer may ask again."""
    assert clock()
    first = write(ledger, capital("Perth"), per_minute=1, idempotency_key="k")
    assert write(ledger, capital("Perth"), per_minute=1, idempotency_key="k") == first
    with pytest.raises(InvalidInput, match="at most 1 at a time"):
        write(ledger, capital("Graz", "Austria"), capital("Bergen", "Norway"), per_minute=1)
