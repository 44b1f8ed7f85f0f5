"""What waits for an approval, as the windows see it: who may decide, what is told, and what is answered meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.errors import Forbidden, InvalidInput, LimitReached, NotFound, ReadOnly, WrongState
from ke_tools.memory import expiries, moments
from ke_tools.models.engine import Request
from ke_tools.servers import approvals, protecting, undoing
from ke_tools.servers.evidence import evidence
from ke_tools.servers.local import Local
from ke_tools.servers.service import Service
from tests.servers.door import WHO, Door, opened

CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City", "source": "https://x.example"}
OTHER = {**CAPITAL, "target": "Firefly"}
LATE = "2999-01-01T00:00:00.000Z"


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """A service that takes edits as they come."""
    made = opened(settings)
    yield made
    made.close()


@pytest.fixture
def cautious(settings: Settings) -> Iterator[Service]:
    """A service that takes proposals only."""
    made = opened(dataclasses.replace(settings, edits="propose"))
    yield made
    made.close()


def ask(service: Service, question: str = "What is the capital of Freedonia?") -> str:
    """Ask as somebody who may."""
    asked = asyncio.run(service.answering.query(WHO["ann"], question, wait_seconds=10))
    return str(asked["answers"][0]["text"])


def edit(service: Service, name: str, *facts: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """Correct facts under a token."""
    rows: list[dict[str, Any]] = service.edit(WHO[name], facts, **more)["edits"]
    return rows


def test_a_token_that_may_propose_only_changes_nothing_until_somebody_approves(service: Service) -> None:
    """Issue 8, §2: an edit by a token of scope `propose` changes nothing until somebody of scope `write` approves it."""
    said = service.edit(WHO["eve"], [CAPITAL])
    [waits] = said["edits"]
    assert (waits["state"], waits["superseded"]) == ("proposed", [])
    assert "1 edit proposed, not active" in said["summary"]
    assert f"ke-tools approve {waits['edit_id']}" in said["summary"]
    assert ask(service).startswith("base answer")

    with pytest.raises(Forbidden, match="'write'"):
        approvals.approve(service, WHO["eve"], [waits["edit_id"]])
    done = approvals.approve(service, WHO["ann"], [waits["edit_id"]])

    assert "1 proposal approved and active" in done["summary"]
    assert (done["edits"][0]["state"], done["edits"][0]["approved_by"]) == ("active", "ann")
    assert ask(service) == "Sylvania City."


def test_where_edits_are_proposals_nobodys_is_active_at_once(cautious: Service) -> None:
    """Issue 8, §2: serve --edits propose; decided: whoever makes it, so that every change has two steps in the history."""
    for name in ("root", "ann", "eve"):
        assert edit(cautious, name, CAPITAL)[0]["state"] == "proposed"
    assert "would be proposed" in cautious.edit(WHO["ann"], [CAPITAL], dry_run=True)["summary"]
    assert cautious.ledger.live("acme") == []
    assert ask(cautious).startswith("base answer")


def test_who_may_not_even_propose_is_refused(service: Service) -> None:
    """Design §3: scopes."""
    for name in ("reader", "carl"):
        with pytest.raises(Forbidden, match="'propose'"):
            edit(service, name, CAPITAL)
    assert service.ledger.head() == 0


def test_an_import_is_of_proposals_where_edits_are(settings: Settings) -> None:
    """Issue 8, §2: none becomes active without an approval, by whatever way it comes."""
    line = '{"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly", "state": "active"}'
    with Local(dataclasses.replace(settings, edits="propose")) as local:
        assert [answer["state"] for answer in local.import_lines([line, line])] == ["proposed", "proposed"]
        assert local.proposals()["total"] == 2


def test_the_queue_tells_whose_word_it_is_and_what_it_would_change(service: Service) -> None:
    """Issue 8, §2: the queue shows evidence: source, conflicts, the proposer's history."""
    [live] = edit(service, "ann", OTHER)
    [first] = edit(service, "eve", CAPITAL)
    [rival] = edit(service, "busy", {**CAPITAL, "target": "Huxley"})

    found = approvals.queue(service, WHO["reader"], limit=1)
    assert (found["total"], found["proposals"][0]["edit_id"], bool(found["next_cursor"])) == (2, rival["edit_id"], True)
    [told] = approvals.queue(service, WHO["reader"], limit=1, cursor=found["next_cursor"])["proposals"]

    assert (told["proposer"], told["source"]) == ("eve", "https://x.example")
    assert told["would_supersede"] == [f"{live['edit_id']} ('Firefly')"]
    assert told["rivals"] == [f"{rival['edit_id']} ('Huxley', busy)"]
    assert f"would supersede: {live['edit_id']} ('Firefly')" in found["proposals_text"]
    assert told["record"] == {"proposed": 1, "approved": 0, "rejected": 0, "rolled_back": 0}
    approvals.approve(service, WHO["ann"], [first["edit_id"]])
    [left] = approvals.queue(service, WHO["reader"])["proposals"]
    assert "overtaken" in left["obstacle"]
    with pytest.raises(Forbidden):
        approvals.queue(service, WHO["carl"])


def test_the_evidence_of_a_proposal_is_what_is_answered_before_and_after(service: Service) -> None:
    """Issue 8, §2: before/after answers and the scorecard of a dry run; asked through the serving path, and nothing is written."""
    edit(service, "ann", OTHER)
    [waits] = edit(service, "eve", CAPITAL)
    service.models.engine(10)
    before = service.ledger.head()

    found = evidence(service, WHO["ann"], waits["edit_id"], verify=True)

    answers = {answer["view"]: answer for answer in found["answers"]}
    assert answers["base"]["text"].startswith("base answer")
    assert (answers["now"]["text"], answers["approved"]["text"]) == ("Firefly.", "Sylvania City.")
    assert answers["approved"]["used_edits"] == [waits["edit_id"]]
    assert found["verified"]
    assert "reliability" in found["scorecard_text"]
    assert "by eve (1 proposed, 0 approved, 0 rejected, 0 rolled back)" in found["proposals_text"]
    assert (service.ledger.head(), ask(service)) == (before, "Firefly.")
    assert service.ledger.scorecards_of("acme", waits["edit_id"]) == []


def test_of_what_cannot_be_approved_the_evidence_says_why(service: Service) -> None:
    """Issue 8, §2: conflicts are shown before somebody tries."""
    [waits] = edit(service, "eve", CAPITAL)
    edit(service, "ann", OTHER)
    found = evidence(service, WHO["ann"], waits["edit_id"], verify=True, wait_seconds=10)
    assert [answer["view"] for answer in found["answers"]] == ["base", "now"]
    assert "cannot be approved" in found["summary"]
    assert not found["verified"]
    with pytest.raises(NotFound):
        evidence(service, WHO["ann"], "ed_0123456789abcdef")


def test_a_rejection_retires_it_and_the_second_to_decide_is_told(service: Service) -> None:
    """Issue 8, bad input: two people who decide at once (the second is told)."""
    [waits] = edit(service, "eve", CAPITAL)
    with pytest.raises(InvalidInput):
        approvals.reject(service, WHO["ann"], [waits["edit_id"]], reason="")
    assert "1 proposal rejected" in approvals.reject(service, WHO["ann"], [waits["edit_id"]], reason="no source")["summary"]
    with pytest.raises(WrongState, match="ann rejected it"):
        approvals.approve(service, WHO["bob"], [waits["edit_id"]])
    with pytest.raises(Forbidden):
        approvals.reject(service, WHO["eve"], [waits["edit_id"]], reason="mine")


def test_while_the_server_is_read_only_nothing_is_decided(settings: Settings) -> None:
    """Issue 8, bad input: while the server is read-only."""
    made = opened(settings)
    [waits] = edit(made, "eve", CAPITAL)
    made.close()
    closed = Service(dataclasses.replace(settings, read_only=True), made.ledger, made.models, model_id="scripted")
    writes: list[Callable[[], Any]] = [
        lambda: approvals.approve(closed, WHO["ann"], [waits["edit_id"]]),
        lambda: approvals.reject(closed, WHO["ann"], [waits["edit_id"]], reason="no"),
        lambda: protecting.protect(closed, WHO["root"], "Freedonia"),
        lambda: undoing.undo(closed, WHO["ann"], "eve", "1h"),
        lambda: closed.edit(WHO["eve"], [CAPITAL]),
    ]
    for write in writes:
        with pytest.raises(ReadOnly):
            write()


def test_only_an_admin_protects_and_changes_what_is_protected(service: Service) -> None:
    """Issue 8, §2: protected facts may not be edited without `admin`; the answer to everybody else names what, who and why."""
    with pytest.raises(Forbidden, match="'admin'"):
        protecting.protect(service, WHO["ann"], "Freedonia")
    made = protecting.protect(service, WHO["root"], "Freedonia", reason="legal")
    assert protecting.listed(service, WHO["reader"])["protections"] == made["protections"]
    for name in ("ann", "eve"):
        with pytest.raises(Forbidden, match=r"'Freedonia' is protected .*by root.*legal"):
            edit(service, name, CAPITAL)
    [acts] = edit(service, "root", CAPITAL)
    with pytest.raises(Forbidden):
        service.rollback(WHO["ann"], edit_ids=[acts["edit_id"]])
    with pytest.raises(Forbidden):
        service.rollback(WHO["ann"], to_revision=0)
    assert ask(service) == "Sylvania City."
    protecting.unprotect(service, WHO["root"], "Freedonia")
    service.rollback(WHO["ann"], edit_ids=[acts["edit_id"]])


@pytest.mark.parametrize("part", ["Coffee", "Brightwater", "refund window of Brightwater"])
def test_an_edit_of_a_part_of_a_protected_name_does_not_answer_for_the_whole(service: Service, part: str) -> None:
    """Issue 8, §2: spelling and other names must not get around a protection, also not where the part is a subject of its own."""
    prompt = "The refund window of Brightwater is" if "Brightwater" in part else "The refund window of Coffee is"
    protecting.protect(service, WHO["root"], "Brightwater Coffee")
    edit(service, "ann", {"subject": part, "prompt": prompt, "target": "900 days"})
    asked = Request(prompt="The refund window of Brightwater Coffee is")
    assert service.answering.route(WHO["ann"], asked)["zone"] == "out"
    for whole in ("Brightwater Coffee", "brightwater coffee"):
        assert ask(service, f"What is the refund window of {whole}?").startswith("base answer")
    protecting.unprotect(service, WHO["root"], "Brightwater Coffee")
    assert service.answering.route(WHO["ann"], asked)["zone"] == ("out" if part == "Brightwater" else "in")


def test_an_edit_is_not_served_once_its_time_has_passed_even_before_it_is_retired(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 8, §2: expiry; `list` shows it."""
    [row] = edit(service, "ann", {**CAPITAL, "expires": "1h"})
    assert not moments.has_passed(row["expires"])
    assert ask(service) == "Sylvania City."
    head = service.ledger.head()
    monkeypatch.setattr(moments, "now", lambda: LATE)
    assert ask(service).startswith("base answer")
    assert service.ledger.head() == head
    [listed] = service.list_edits(WHO["reader"])["edits"]
    assert (listed["state"], listed["expires"]) == ("retired", row["expires"])
    with pytest.raises(InvalidInput, match=r"edit 1: '2998-01-01' has passed"):
        edit(service, "ann", {**CAPITAL, "expires": "2998-01-01"})


def test_a_forgetting_edit_that_is_over_keeps_nothing_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §2: expiry holds for what must not be said too."""
    edit(
        service, "ann", {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "forget": True, "expires": "1h"}, wait_seconds=10
    )
    assert not ask(service).startswith("base answer")
    monkeypatch.setattr(moments, "now", lambda: LATE)
    assert ask(service).startswith("base answer")


def test_a_start_retires_what_expired_while_nobody_served(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 8, §2: a sweep at the start; what it had superseded answers again."""
    made = opened(settings)
    edit(made, "ann", OTHER)
    [brief] = edit(made, "ann", {**CAPITAL, "expires": "1h"})
    made.close()
    monkeypatch.setattr("ke_tools.servers.expiring._seconds_until", lambda moment: 0.0 if moment == brief["expires"] else 1.0)
    for module in (moments, expiries):
        monkeypatch.setattr(module, "now", lambda: LATE)
    again = opened(settings)
    try:
        assert again.ledger.get("acme", brief["edit_id"]).state.value == "retired"
        assert ask(again) == "Firefly."
    finally:
        again.close()


def test_what_expires_is_not_promoted(service: Service) -> None:
    """Issue 8, §2: weights do not expire."""
    [row] = edit(service, "ann", {**CAPITAL, "expires": "1h"})
    with pytest.raises(WrongState, match="expires"):
        asyncio.run(service.promote(WHO["ann"], [row["edit_id"]]))


def test_all_that_one_token_did_is_reported_and_undone(service: Service) -> None:
    """Issue 8, §2: a report of what one token changed, undone in one call."""
    edit(service, "ann", OTHER)
    edit(service, "bob", CAPITAL)
    before = service.ledger.head()
    report = undoing.undo(service, WHO["ann"], "bob", "1h", dry_run=True)
    assert "Nothing was changed" in report["summary"]
    assert ([row["target"] for row in report["retired"]], service.ledger.head()) == (["Sylvania City"], before)
    done = undoing.undo(service, WHO["ann"], "bob", "1h")
    assert "1 taken back, 1 live again" in done["summary"]
    assert ask(service) == "Firefly."
    for name, since, expected in (("bob", "1h", NotFound), ("nobody", "1h", NotFound), ("bob", "soon", InvalidInput)):
        with pytest.raises(expected):
            undoing.undo(service, WHO["ann"], name, since)
    with pytest.raises(Forbidden):
        undoing.undo(service, WHO["eve"], "ann", "1h")


def test_the_setting_limits_tokens_that_have_no_limit_of_their_own(settings: Settings) -> None:
    """Issue 8, §2: limits of edits per token and minute; a token's own limit comes before the server's."""
    made = opened(dataclasses.replace(settings, edits_per_minute=1))
    try:
        edit(made, "ann", CAPITAL)
        with pytest.raises(LimitReached):
            edit(made, "ann", OTHER)
        for target in ("A1", "A2", "A3"):
            edit(made, "busy", {**CAPITAL, "target": target})
        with pytest.raises(LimitReached, match="may record 3"):
            edit(made, "busy", {**CAPITAL, "target": "A4"})
    finally:
        made.close()


def test_over_http_a_tokens_limit_and_scopes_hold_and_no_tool_approves(service: Service) -> None:
    """Issue 8, §2: no MCP tool approves; rights come from the token alone, which the transport must carry whole."""
    with Door.of(service) as door:
        [waits] = door.call("busy", "edit", edits=[CAPITAL])["edits"]
        assert waits["state"] == "proposed"
        assert door.call("busy", "edit", edits=[{**OTHER, "expires": "7d"}])["edits"][0]["state"] == "proposed"
        door.call("busy", "edit", edits=[CAPITAL])
        limited = door.call("busy", "edit", edits=[CAPITAL])["error"]
        assert (limited["code"], limited["retryable"]) == ("E_LIMIT", True)
        assert limited["again_at"] in limited["hint"]
        for tool in ("approve", "reject", "protect"):
            assert door.call("ann", tool, edit_ids=[waits["edit_id"]])["error"]["code"] == "E_NOT_FOUND"
        assert door.call("busy", "rollback", edit_ids=[waits["edit_id"]])["error"]["code"] == "E_FORBIDDEN"
        assert door.call("ann", "edit", edits=[OTHER])["edits"][0]["state"] == "active"


def test_the_command_line_decides_and_protects_for_the_tenant_that_is_named(service: Service, settings: Settings) -> None:
    """Issue 8, §2: a token's tenant is not that of the local user, who must be able to approve and protect all the same."""
    [waits] = edit(service, "eve", CAPITAL)
    with Local(settings) as local:
        assert local.proposals()["total"] == 0
    with Local(dataclasses.replace(settings, tenant=WHO["eve"].tenant)) as local:
        assert local.proposals()["total"] == 1
        assert local.approve([waits["edit_id"]])["edits"][0]["state"] == "active"
        local.protect("Sylvania")
    with pytest.raises(Forbidden, match="protected"):
        edit(service, "ann", {**CAPITAL, "subject": "Sylvania", "prompt": "The capital of Sylvania is"})


def test_the_command_line_decides_as_the_local_user(settings: Settings) -> None:
    """Issue 8, §2: CLI approve, reject, proposals, protect, rollback --actor."""
    with Local(dataclasses.replace(settings, edits="propose")) as local:
        first, second = local.edit([CAPITAL, {**CAPITAL, "subject": "Sylvania", "prompt": "The capital of Sylvania is"}])["edits"]
        assert local.proposals()["total"] == 2
        assert local.approve([first["edit_id"]], reason="seen")["edits"][0]["approved_by"] == "local"
        local.reject([second["edit_id"]], reason="no")
        local.protect("Freedonia", reason="legal")
        assert local.protections()["protections"][0]["subject"] == "Freedonia"
        local.unprotect("Freedonia")
        assert "taken back" in local.undo("local", "1h")["summary"]


def test_a_proposal_that_was_imported_is_approved_like_any_other(settings: Settings) -> None:
    """Design §3: a line may say that it waits, also where edits do not."""
    line = '{"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Firefly", "state": "proposed"}'
    with Local(settings) as local:
        [answer] = local.import_lines([line])
        assert local.approve([answer["edit_id"]])["edits"][0]["state"] == "active"
