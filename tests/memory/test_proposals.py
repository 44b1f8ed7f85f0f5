"""What waits for somebody's word: approving, rejecting, and what happens to a proposal in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import Conflict, Forbidden, InvalidInput, NotFound, ReadOnly, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory import moments, transfer
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.proposals import Record
from ke_tools.memory.supposed import Supposed


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger, whose log tells all that its tables hold when the test is over."""
    with Ledger(tmp_path / "ledger.db") as made:
        yield made
        assert [finding for finding in made.audit() if finding.is_damage] == []


def capital(target: str, subject: str = "Australia", **more: Any) -> Fact:
    """A fact of a relation with one object a subject."""
    return Fact(subject=subject, prompt=f"The capital of {subject} is", target=target, **more)


def child(target: str) -> Fact:
    """A fact of a relation with several objects a subject."""
    return Fact(subject="Mira Holm", prompt="One of the children of Mira Holm is", target=target)


def write(ledger: Ledger, *facts: Fact, **more: Any) -> list[Edit]:
    """Record facts that act at once."""
    return ledger.edit("acme", facts, **{"actor": "ann", **more})


def propose(ledger: Ledger, *facts: Fact, actor: str = "eve", **more: Any) -> list[Edit]:
    """Propose facts as somebody who may not write."""
    return ledger.edit("acme", facts, actor=actor, state=State.PROPOSED, **more)


def targets(ledger: Ledger) -> list[str]:
    """What acts on answers, oldest first."""
    return [edit.fact.target for edit in ledger.live("acme")]


def test_an_approved_proposal_acts_and_supersedes_what_is_live_by_then(ledger: Ledger) -> None:
    """Issue 8, §2: the supersession is computed at approval; the proposer stays the actor, the approver is named beside."""
    [waits] = propose(ledger, capital("Perth"))
    assert targets(ledger) == []
    [old] = ledger.edit("acme", [child("Ida")], actor="ann")

    [made] = ledger.proposals.approve("acme", [waits.id], actor="ann", reason="checked")

    assert (made.state, made.actor, made.approved_by, made.approved_revision) == (State.ACTIVE, "eve", "ann", 3)
    assert made == ledger.get("acme", waits.id)
    assert targets(ledger) == ["Perth", "Ida"]
    assert old.id not in made.supersedes
    event = ledger.history("acme").items[0]
    assert (event.action, event.actor, event.reason, event.edit_ids) == ("approve", "ann", "checked", (waits.id,))


def test_what_was_live_before_the_proposal_gives_way_and_comes_back(ledger: Ledger) -> None:
    """Issue 8, §2: approve supersedes what it must, and a rollback of it brings that back."""
    [old] = write(ledger, capital("Sydney", aliases=("Oz",)))
    [waits] = propose(ledger, capital("Perth"))
    assert waits.supersedes == ()
    assert f"would supersede {old.id} ('Sydney')" in waits.warnings

    [made] = ledger.proposals.approve("acme", [waits.id], actor="ann")

    assert made.supersedes == (old.id,)
    assert f"supersedes {old.id} ('Sydney')" in made.warnings
    assert targets(ledger) == ["Perth"]
    ledger.rollback("acme", [made.id], actor="ann")
    assert targets(ledger) == ["Sydney"]


def test_an_approved_correction_takes_over_the_names_of_what_it_supersedes(ledger: Ledger) -> None:
    """An edit under another name of one subject keeps its names, also where it was proposed first."""
    write(ledger, Fact(subject="Brix Holding Ltd", prompt="The seat of Brix Holding Ltd is", target="Oslo", aliases=("Brix",)))
    [waits] = propose(ledger, Fact(subject="Brix", prompt="The seat of Brix is", target="Bergen"))
    assert waits.fact.aliases == ()

    [made] = ledger.proposals.approve("acme", [waits.id], actor="ann")

    assert made.fact.aliases == ("Brix Holding Ltd",)
    assert ledger.live("acme") == [made]
    [third] = write(ledger, Fact(subject="Brix Holding Ltd", prompt="The seat of Brix Holding Ltd is", target="Moss"))
    assert third.supersedes == (made.id,)


def test_of_several_all_are_approved_or_none(ledger: Ledger) -> None:
    """Issue 8, §2: several at once, all or none, in the order of the call."""
    first, second = propose(ledger, capital("Perth"), child("Ida"))
    ledger.proposals.reject("acme", [second.id], actor="ann", reason="no such child")
    before = ledger.head()

    with pytest.raises(WrongState, match="ann rejected it at"):
        ledger.proposals.approve("acme", [first.id, second.id], actor="bob")

    assert (targets(ledger), ledger.head()) == ([], before)
    third, fourth = propose(ledger, child("Jon"), child("Kim"))
    approved = ledger.proposals.approve("acme", [fourth.id, first.id, third.id], actor="bob")
    assert [edit.id for edit in approved] == [fourth.id, first.id, third.id]
    assert targets(ledger) == ["Perth", "Jon", "Kim"]


def test_two_that_contradict_each_other_are_not_approved_together(ledger: Ledger) -> None:
    """Issue 8, §2: conflicts are computed at approval."""
    [first] = propose(ledger, capital("Perth"))
    [second] = propose(ledger, capital("Hobart"), actor="mal")
    assert any(first.id in warning and "wait too" in warning for warning in second.warnings)
    with pytest.raises(Conflict, match="contradictory"):
        ledger.proposals.approve("acme", [first.id, second.id], actor="ann")
    assert targets(ledger) == []


def test_who_decides_second_is_told_who_decided_and_when(ledger: Ledger) -> None:
    """Issue 8, bad input: two people who decide at once."""
    [waits] = propose(ledger, capital("Perth"))
    ledger.proposals.approve("acme", [waits.id], actor="ann", reason="the gazette")
    decisions: list[Callable[[], list[Edit]]] = [
        lambda: ledger.proposals.approve("acme", [waits.id], actor="bob"),
        lambda: ledger.proposals.reject("acme", [waits.id], actor="bob", reason="no"),
    ]
    for decide in decisions:
        with pytest.raises(WrongState, match=r"ann approved it at 20.*the gazette.*it is active now") as caught:
            decide()
        assert caught.value.data["decided_by"] == "ann"
        assert caught.value.data["decided_at"] == ledger.history("acme").items[0].at


def test_of_two_that_decide_at_the_same_time_one_is_told_of_the_other(tmp_path: Path) -> None:
    """Issue 8, bad input: two people who decide at once (the second is told); here in two processes' connections."""
    with Ledger(tmp_path / "ledger.db") as ledger, Ledger(tmp_path / "ledger.db") as other, ThreadPoolExecutor(2) as pool:
        for round_ in range(10):
            [waits] = propose(ledger, child(f"Kid {round_}"))

            def decide(mine: Ledger, actor: str, edit_id: str = waits.id) -> str:
                try:
                    mine.proposals.approve("acme", [edit_id], actor=actor)
                except WrongState as error:
                    return str(error.data["decided_by"])
                return actor

            told = list(pool.map(decide, (ledger, other), ("ann", "bob")))
            assert told in (["ann", "ann"], ["bob", "bob"])
            assert len(ledger.history("acme", edit_id=waits.id).items) == 2


def test_who_decides_after_a_withdrawal_or_an_edit_that_never_waited_is_told_so(ledger: Ledger) -> None:
    """Issue 8, §2: a clear error for whatever became of it meanwhile."""
    [waits] = propose(ledger, capital("Perth"))
    [acts] = write(ledger, child("Ida"))
    ledger.rollback("acme", [waits.id], actor="ann")
    with pytest.raises(WrongState, match="ann withdrew it at"):
        ledger.proposals.approve("acme", [waits.id], actor="bob")
    with pytest.raises(WrongState, match="never proposed"):
        ledger.proposals.approve("acme", [acts.id], actor="bob")
    for unknown in ("ed_0123456789abcdef", "nonsense"):
        with pytest.raises(NotFound):
            ledger.proposals.approve("acme", [unknown], actor="bob")
    with pytest.raises(NotFound):
        ledger.proposals.reject("other", [waits.id], actor="bob", reason="not mine")
    with pytest.raises(InvalidInput, match="no edit ids"):
        ledger.proposals.approve("acme", [], actor="bob")


def test_a_proposal_that_was_overtaken_is_not_approved_unseen(ledger: Ledger) -> None:
    """Issue 8, bad input: an approval of a proposal that was superseded meanwhile."""
    [first] = propose(ledger, capital("Perth"))
    [second] = propose(ledger, capital("Hobart"), actor="mal")
    ledger.proposals.approve("acme", [second.id], actor="ann")
    with pytest.raises(WrongState, match=rf"overtaken: ann approved {second.id} \('Hobart'\).* at 20") as caught:
        ledger.proposals.approve("acme", [first.id], actor="bob")
    assert caught.value.data["overtaken_by"] == second.id
    ledger.rollback("acme", [second.id], actor="ann")
    ledger.proposals.approve("acme", [first.id], actor="bob")
    assert targets(ledger) == ["Perth"]
    [third] = propose(ledger, capital("Darwin"))
    write(ledger, capital("Cairns"))
    with pytest.raises(WrongState, match="overtaken: ann recorded"):
        ledger.proposals.approve("acme", [third.id], actor="bob")


def test_an_outdated_old_target_is_refused_at_approval(ledger: Ledger) -> None:
    """Issue 8, §2: with conflicts; a proposal is only warned when it is made."""
    write(ledger, capital("Sydney"))
    [waits] = propose(ledger, capital("Perth", old_target="Canberra"))
    with pytest.raises(Conflict, match=r"old_target is 'Canberra'.*propose it anew"):
        ledger.proposals.approve("acme", [waits.id], actor="ann")
    assert targets(ledger) == ["Sydney"]


def test_a_rejection_has_a_reason_and_is_not_undone_by_a_rollback_to_a_revision(ledger: Ledger) -> None:
    """Issue 8, §2: reject retires it with a reason; what has no effect has none that could come back."""
    [waits] = propose(ledger, capital("Perth"))
    with pytest.raises(InvalidInput, match="reason is empty"):
        ledger.proposals.reject("acme", [waits.id], actor="ann", reason="  ")
    [gone] = ledger.proposals.reject("acme", [waits.id], actor="ann", reason="no source")
    assert gone.state is State.RETIRED
    assert ledger.history("acme", edit_id=waits.id).items[0].reason == "no source"
    ledger.rollback_to("acme", waits.revision, actor="ann")
    assert ledger.get("acme", waits.id).state is State.RETIRED


def test_a_rollback_to_before_an_approval_lets_the_proposal_wait_again(ledger: Ledger) -> None:
    """What was live then is live again, and nothing else; the decision can be taken anew."""
    [old] = write(ledger, capital("Sydney"))
    [waits] = propose(ledger, capital("Perth"))
    ledger.proposals.approve("acme", [waits.id], actor="ann")
    ledger.rollback_to("acme", waits.revision, actor="ann")
    assert targets(ledger) == ["Sydney"]
    again = ledger.get("acme", waits.id)
    assert (again.state, again.approved_by, again.supersedes) == (State.PROPOSED, "", ())
    [made] = ledger.proposals.approve("acme", [waits.id], actor="bob")
    assert (made.approved_by, made.supersedes) == ("bob", (old.id,))


def test_the_outlook_tells_what_an_approval_would_do_and_changes_nothing(ledger: Ledger) -> None:
    """Issue 8, §2: the queue shows evidence: what it would supersede, conflicts, the proposer's history."""
    [old] = write(ledger, capital("Sydney"))
    [first] = propose(ledger, capital("Perth"))
    [rival] = propose(ledger, capital("Hobart"), actor="mal")
    before = ledger.head()

    outlook = ledger.proposals.outlook("acme", first.id)

    assert ([other.id for other in outlook.superseding], [other.id for other in outlook.rivals]) == ([old.id], [rival.id])
    assert (outlook.record, outlook.obstacle, outlook.release) == (Record(1, 0, 0, 0), "", None)
    assert ledger.head() == before
    ledger.proposals.approve("acme", [rival.id], actor="ann")
    assert "overtaken" in ledger.proposals.outlook("acme", first.id).obstacle
    with pytest.raises(WrongState, match="approved"):
        ledger.proposals.outlook("acme", rival.id)


def test_the_outlooks_of_several_are_as_of_each_and_without_what_was_decided(ledger: Ledger) -> None:
    """Issue 8, §3: a queue of thousands is read at once, and one that is decided meanwhile takes the others not along."""
    write(ledger, capital("Sydney"))
    ids = [edit.id for edit in propose(ledger, capital("Perth"), child("Ida"))]
    [other] = propose(ledger, capital("Hobart"), actor="mal")
    ledger.proposals.reject("acme", [ids[1]], actor="ann", reason="no")

    found = ledger.proposals.outlooks("acme", [other.id, *ids, "ed_0123456789abcdef"])

    assert found == [ledger.proposals.outlook("acme", edit_id) for edit_id in (other.id, ids[0])]
    assert ledger.proposals.outlooks("other", [other.id]) == []
    ledger.protections.protect("acme", "Australia", actor="root")
    assert all("protected" in outlook.obstacle for outlook in ledger.proposals.outlooks("acme", ids[:1]))
    assert not any(outlook.obstacle for outlook in ledger.proposals.outlooks("acme", ids[:1], over_protection=True))


def test_the_record_counts_what_became_of_an_actors_proposals(ledger: Ledger) -> None:
    """Issue 8, §2: the proposer's history: proposed, approved, rejected, rolled back."""
    made = [propose(ledger, child(name))[0].id for name in ("Ida", "Jon", "Kim", "Lou", "Max")]
    propose(ledger, child("Ned"), actor="mal")
    ledger.proposals.approve("acme", made[:2], actor="ann")
    ledger.proposals.reject("acme", made[2:3], actor="ann", reason="no")
    ledger.rollback("acme", [made[0], made[3]], actor="ann")
    assert ledger.proposals.record("acme", "eve") == Record(proposed=5, approved=2, rejected=1, rolled_back=2)
    assert ledger.proposals.record("acme", "nobody") == Record(0, 0, 0, 0)
    assert ledger.proposals.record("other", "eve") == Record(0, 0, 0, 0)


def test_the_same_proposal_under_one_key_is_the_same_edit_also_after_its_approval(ledger: Ledger) -> None:
    """Issue 8, §2: idempotency as it is for edits; without a key a second one is made, and says that the first waits."""
    [first] = propose(ledger, capital("Perth"), idempotency_key="k")
    assert propose(ledger, capital("Perth"), idempotency_key="k") == [first]
    [twin] = propose(ledger, capital("Perth"))
    assert f"{first.id}, by eve, says the same and waits too" in twin.warnings
    [made] = ledger.proposals.approve("acme", [first.id], actor="ann")
    assert propose(ledger, capital("Perth"), idempotency_key="k") == [made]
    with pytest.raises(WrongState, match="overtaken"):
        ledger.proposals.approve("acme", [twin.id], actor="ann")


def test_a_forged_approval_is_found_by_the_audit(tmp_path: Path) -> None:
    """Issue 8, §2: hash-chained events, audited like the others."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        [waits] = propose(ledger, capital("Perth"))
        ledger._storage._main.execute("UPDATE edits SET standing = 'active'")
        ledger._storage._main.execute("INSERT INTO approvals VALUES ('acme', ?, 1)", (waits.id,))
        assert {finding.kind for finding in ledger.audit()} == {"projection"}


def test_a_purge_erases_what_an_approval_said(ledger: Ledger) -> None:
    """Issue 3, §3: no byte of the text stays, also of one that was proposed; what another approval quotes is named."""
    [old] = write(ledger, capital("Gundagai"))
    [waits] = propose(ledger, capital("Wollongong"))
    ledger.proposals.approve("acme", [waits.id], actor="ann")
    done = ledger.purge("acme", old.id, actor="ann", reason="asked for")
    assert done.quoted_by == (waits.id,)
    assert ledger.get("acme", waits.id).approved_by == "ann"
    ledger.purge("acme", waits.id, actor="ann", reason="asked for")
    content = b"".join(path.read_bytes() for path in Path(ledger.path).parent.iterdir())
    assert b"Wollongong" not in content
    assert b"Gundagai" not in content
    assert {finding.kind for finding in ledger.audit()} == {"purged"}


def test_a_read_only_ledger_decides_nothing_and_shows_the_outlook(tmp_path: Path) -> None:
    """Issue 8, bad input: while the server is read-only."""
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        [waits] = propose(ledger, capital("Perth"))
    with Ledger(path, read_only=True) as ledger:
        with pytest.raises(ReadOnly):
            ledger.proposals.approve("acme", [waits.id], actor="ann")
        assert ledger.proposals.outlook("acme", waits.id).edit == waits


def test_a_proposal_is_exported_and_waits_where_it_is_imported(ledger: Ledger) -> None:
    """Design §3: export writes what import reads; an approved one is exported as an edit that acts."""
    waits, other = propose(ledger, capital("Perth"), child("Ida"))
    ledger.proposals.approve("acme", [other.id], actor="ann")
    lines = list(transfer.export_lines(ledger, "acme"))
    assert [json.loads(line).get("state", "") for line in lines] == ["proposed", ""]
    answers = list(transfer.import_lines(ledger, "other", lines, actor="ann"))
    assert [answer["state"] for answer in answers] == ["proposed", "active"]
    assert ledger.get("acme", waits.id).state is State.PROPOSED


def test_what_expired_while_it_waited_is_not_approved(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §2: expiry; its time has passed before somebody said yes."""
    [waits] = propose(ledger, capital("Perth", expires=moments.ahead("1h")))
    monkeypatch.setattr(moments, "now", lambda: "2999-01-01T00:00:00.000Z")
    with pytest.raises(WrongState, match="which has passed"):
        ledger.proposals.approve("acme", [waits.id], actor="ann")


def test_what_is_protected_is_neither_proposed_nor_approved_without_the_right(ledger: Ledger) -> None:
    """Issue 8, §2: nor approved; a protection that came after the proposal holds too."""
    [waits] = propose(ledger, capital("Perth"))
    ledger.protections.protect("acme", "Australia", actor="root", reason="legal")
    with pytest.raises(Forbidden, match=r"'Australia' is protected .*by root.*legal"):
        ledger.proposals.approve("acme", [waits.id], actor="ann")
    with pytest.raises(Forbidden):
        propose(ledger, capital("Hobart"))
    assert "protected" in ledger.proposals.outlook("acme", waits.id).obstacle
    ledger.proposals.approve("acme", [waits.id], actor="root", over_protection=True)
    assert targets(ledger) == ["Perth"]


def test_a_supposed_ledger_is_the_one_that_an_approval_would_make(ledger: Ledger) -> None:
    """Issue 8, §2: a dry run; what it shows is what comes, for this tenant alone, and the file is as it was."""
    write(ledger, capital("Sydney"), child("Ida"))
    ledger.edit("other", [capital("Sydney")], actor="ann")
    [waits] = propose(ledger, capital("Perth"))
    before = ledger.head()
    supposed = Supposed(ledger, ledger.proposals.outlook("acme", waits.id))
    shown = supposed.live("acme")
    [gone] = [edit for edit in ledger.live("acme") if edit.fact.target == "Sydney"]
    assert supposed.live("other") == ledger.live("other")
    assert (supposed.get("acme", gone.id).state, supposed.get("acme", gone.id).superseded_by) == (State.RETIRED, waits.id)
    assert (supposed.since("acme", 0), supposed.changed("acme", 0), supposed.head(), ledger.head()) == ([], set(), before, before)
    assert supposed.read_only

    ledger.proposals.approve("acme", [waits.id], actor="ann")

    assert {(edit.id, edit.fact, edit.state, edit.supersedes) for edit in shown} == {
        (edit.id, edit.fact, edit.state, edit.supersedes) for edit in ledger.live("acme")
    }


def test_of_a_revision_before_its_approval_a_proposal_is_told_as_it_waited(ledger: Ledger) -> None:
    """Issue 3, §3: what stood after an event, as it stood then."""
    write(ledger, capital("Sydney"))
    [waits] = propose(ledger, capital("Perth"))
    ledger.proposals.approve("acme", [waits.id], actor="ann")
    [_, then] = ledger.at("acme", waits.revision)
    assert (then.state, then.approved_by, then.approved_revision, then.supersedes) == (State.PROPOSED, "", 0, ())
    [_, now] = ledger.at("acme", ledger.head())
    assert (now.state, now.approved_by) == (State.ACTIVE, "ann")
