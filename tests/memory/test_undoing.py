"""Undoing all that one actor did since a moment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.undoing import Undone
from tests.memory.conftest import Clock

RELEASES = ["rel_" + digit * 24 for digit in "01"]


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """An empty ledger, whose log tells all that its tables hold when the test is over."""
    assert clock()
    with Ledger(tmp_path / "ledger.db") as made:
        yield made
        assert made.audit() == []


def capital(target: str, subject: str = "Australia") -> Fact:
    """A fact of a relation with one object a subject."""
    return Fact(subject=subject, prompt=f"The capital of {subject} is", target=target)


def write(ledger: Ledger, actor: str, *facts: Fact, **more: Any) -> list[Edit]:
    """Record facts."""
    return ledger.edit("acme", facts, actor=actor, **more)


def undo(ledger: Ledger, by: str = "mal", since: str = "2030-01-01T12:00:00.000Z", **more: Any) -> Undone:
    """Undo what somebody did."""
    return ledger.undoing.undo("acme", by, since, actor="ann", **more)


def targets(ledger: Ledger) -> list[str]:
    """What is live, oldest first."""
    return [edit.fact.target for edit in ledger.live("acme")]


def test_what_one_actor_recorded_leaves_and_what_it_superseded_comes_back(ledger: Ledger, clock: Clock) -> None:
    """Issue 8, §2: undone in one call; what came before the moment, and others' edits, stay."""
    write(ledger, "ann", capital("Sydney"))
    [early] = write(ledger, "mal", capital("Oslo", "Norway"))
    clock.forward(hours=1)
    since = clock()
    made = write(ledger, "mal", capital("Perth"), capital("Graz", "Austria"))
    write(ledger, "bob", capital("Turku", "Finland"))
    before = ledger.head()

    report = undo(ledger, since=since, dry_run=True)
    assert (ledger.head(), {edit.id for edit in report.rolled.retired}) == (before, {edit.id for edit in made})

    done = undo(ledger, since=since)

    assert [edit.id for edit in done.rolled.retired] == [edit.id for edit in made]
    assert [edit.fact.target for edit in done.rolled.restored] == ["Sydney"]
    assert (targets(ledger), ledger.head()) == (["Sydney", "Oslo", "Turku"], before + 1)
    assert ledger.history("acme").items[0].payload["undone"] == "mal"
    assert ledger.get("acme", early.id).is_live


def test_under_what_others_recorded_since_nothing_comes_up(ledger: Ledger) -> None:
    """Issue 8, §2: somebody has corrected it in the meantime."""
    write(ledger, "ann", capital("Sydney"))
    write(ledger, "mal", capital("Perth"))
    [last] = write(ledger, "bob", capital("Hobart"))
    done = undo(ledger)
    assert (done.rolled.restored, targets(ledger)) == ([], ["Hobart"])
    ledger.rollback("acme", [last.id], actor="ann")
    assert targets(ledger) == ["Sydney"]


def test_its_proposals_leave_too_and_what_it_approved_waits_again(ledger: Ledger) -> None:
    """Issue 8, §2: all that one token changed; whose word it was is not whose decision it was."""
    write(ledger, "ann", capital("Linz", "Austria"))
    [own, approved] = write(ledger, "mal", capital("Perth"), capital("Oslo", "Norway"), state=State.PROPOSED)
    [theirs] = write(ledger, "eve", capital("Graz", "Austria"), state=State.PROPOSED)
    ledger.proposals.approve("acme", [theirs.id, approved.id], actor="mal")
    assert targets(ledger) == ["Oslo", "Graz"]
    done = undo(ledger)
    assert ([edit.id for edit in done.rolled.retired], [edit.id for edit in done.waiting]) == ([own.id, approved.id], [theirs.id])
    assert [edit.fact.target for edit in done.rolled.restored] == ["Linz"]
    assert targets(ledger) == ["Linz"]
    assert ledger.get("acme", theirs.id).state is State.PROPOSED


def test_what_it_took_back_or_rejected_stands_again(ledger: Ledger) -> None:
    """Issue 8, §2: a token that may write may take everything back, which is undone likewise."""
    write(ledger, "ann", capital("Sydney"))
    [good] = write(ledger, "ann", capital("Canberra"))
    [waits] = write(ledger, "eve", capital("Graz", "Austria"), state=State.PROPOSED)
    ledger.rollback("acme", [good.id], actor="mal")
    ledger.proposals.reject("acme", [waits.id], actor="mal", reason="no")
    write(ledger, "mal", capital("Perth"))
    assert targets(ledger) == ["Perth"]
    done = undo(ledger)
    assert targets(ledger) == ["Canberra"]
    assert ([edit.id for edit in done.rolled.restored], [edit.id for edit in done.waiting], done.left) == ([good.id], [waits.id], [])


def test_what_cannot_stand_again_is_named_and_left(ledger: Ledger) -> None:
    """Issue 8, §2: a report of what one token changed; two of one functional slot cannot be live."""
    [good] = write(ledger, "ann", capital("Canberra"))
    ledger.rollback("acme", [good.id], actor="mal")
    write(ledger, "bob", capital("Hobart"))
    ledger.protections.protect("acme", "Norway", actor="mal")
    done = undo(ledger)
    assert [event.action for event in done.left] == ["rollback", "protect"]
    assert targets(ledger) == ["Hobart"]


def test_where_an_actor_did_nothing_nothing_is_recorded(ledger: Ledger) -> None:
    """And to repeat an undoing undoes nothing more."""
    write(ledger, "mal", capital("Perth"))
    undo(ledger)
    before = ledger.head()
    done = undo(ledger)
    assert (done.rolled.retired, done.rolled.restored, done.left, ledger.head()) == ([], [], [], before)
    assert undo(ledger, by="nobody").left == []


def test_a_promoted_one_leaves_the_weights_as_by_a_rollback(ledger: Ledger) -> None:
    """Issue 8, §2: promoted ones are handled like rollback does: a release without it is live, or none."""
    [good] = write(ledger, "ann", capital("Oslo", "Norway"))
    [bad] = write(ledger, "mal", capital("Perth"))
    ledger.promote("acme", [good.id], release=RELEASES[0], actor="ann")
    ledger.promote("acme", [good.id, bad.id], release=RELEASES[1], actor="ann")
    done = undo(ledger, release=ledger.release_without("acme", [bad.id]))
    assert (done.rolled.release, ledger.live_release("acme")) == (RELEASES[0], RELEASES[0])
    assert ledger.get("acme", good.id).state is State.PROMOTED
