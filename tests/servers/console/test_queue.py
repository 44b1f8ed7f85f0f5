"""The queue on pages: what waits is shown with its evidence, decided once, by those who may, and undone token by token."""

from __future__ import annotations

from typing import Any

import pytest

from ke_tools.servers import approvals, protecting
from ke_tools.servers.service import Service
from tests.servers.console.browsing import EVIL, PEOPLE, Console, hidden, refuse_strangers

CAPITAL = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City", "source": "https://x.example"}
OTHER = {**CAPITAL, "target": "Firefly"}
ELSEWHERE = {"subject": "Osterlich", "prompt": "The capital of Osterlich is", "target": "Bloodville"}


def edit(service: Service, name: str, *facts: dict[str, Any], **more: Any) -> list[str]:
    """Correct facts under a token; the ids."""
    return [row["edit_id"] for row in service.edit(PEOPLE[name], facts, **more)["edits"]]


def states(service: Service, *ids: str) -> list[str]:
    """How edits stand."""
    return [service.ledger.get("acme", edit_id).state.value for edit_id in ids]


def test_the_queue_shows_whose_word_it_is_and_what_an_approval_would_change(console: Console) -> None:
    """Issue 8, §3: proposals with evidence: source, proposer and record, what would give way, rivals."""
    edit(console.service, "ann", OTHER)
    [first] = edit(console.service, "eve", CAPITAL)
    [rival] = edit(console.service, "busy", {**CAPITAL, "target": "Huxley"})

    page = console.browser("ann").see("/console/queue")

    assert "2 proposals, newest first" in page
    assert (
        f'<a class="fact" href="/console/queue/{first}">The capital of Freedonia is <span class="target">Sylvania City</span></a>' in page
    )
    assert f'<a href="/console/queue/{rival}">Huxley</a>' in page
    assert "0 of 1 approved" in page
    assert "https://x.example" in page
    assert page.count("supersede</span>") == 2
    assert 'aria-current="page">Queue <span class="count">2' in page


def test_where_nothing_waits_the_page_says_what_would_stand_there(console: Console) -> None:
    """Issue 8, §3: empty states are designed."""
    assert "Nothing waits" in console.browser("reader").see("/console/queue")


def test_who_has_no_session_logs_in_and_who_may_not_read_is_refused(console: Console) -> None:
    """Issue 8, §3: same tokens; pages need the scope read."""
    [waits] = edit(console.service, "eve", CAPITAL)
    refuse_strangers(console, "/console/queue", f"/console/queue/{waits}", f"/console/queue/{waits}/evidence", "/console/actors?actor=eve")


def test_a_form_with_a_wrong_mark_changes_nothing(console: Console) -> None:
    """Issue 8, §3: CSRF-safe."""
    [waits] = edit(console.service, "eve", CAPITAL)
    ann = console.browser("ann")
    for mark in ("", "0" * 64):
        forms: list[tuple[str, dict[str, Any]]] = [
            ("/console/queue", {"edit": waits, "do": "approve"}),
            ("/console/actors/undo", {"actor": "eve", "since": "1h"}),
            (f"/console/queue/{waits}/evidence", {}),
        ]
        for path, fields in forms:
            assert ann.post(path, mark=mark, **fields).status_code == 403
    assert states(console.service, waits) == ["proposed"]


def test_several_are_approved_at_once_and_the_next_page_says_so(console: Console) -> None:
    """Issue 8, §3: approve and reject with a reason, several at once."""
    ids = edit(console.service, "eve", CAPITAL, ELSEWHERE)

    page = console.browser("ann").done("/console/queue", edit=ids, do="approve", reason="seen the gazette")

    assert "2 proposals approved and active" in page
    assert "Nothing waits" in page
    assert states(console.service, *ids) == ["active", "active"]
    assert console.service.ledger.get("acme", ids[0]).approved_by == "ann"
    assert console.service.ledger.history("acme", edit_id=ids[0]).items[0].reason == "seen the gazette"


def test_a_rejection_needs_a_reason_and_something_chosen(console: Console) -> None:
    """Issue 8, §3: reject with a reason; what is asked wrongly decides nothing."""
    [waits] = edit(console.service, "eve", CAPITAL)
    ann = console.browser("ann")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"edit": waits, "do": "reject", "reason": "  "}, "a rejection needs a reason"),
        ({"do": "reject", "reason": "no"}, "nothing was chosen"),
        ({"edit": waits, "do": "burn", "reason": "no"}, "nothing chosen to do"),
    ]
    for fields, told in wrong:
        refused = ann.post("/console/queue", **fields)
        assert refused.status_code == 400
        assert told in refused.text
    assert states(console.service, waits) == ["proposed"]

    assert "1 proposal rejected; no answer changes" in ann.done("/console/queue", edit=waits, do="reject", reason="no source")
    assert states(console.service, waits) == ["retired"]


def test_the_second_to_decide_is_told_who_did(console: Console) -> None:
    """Issue 8, bad input: two people who decide at once (the second is told)."""
    [waits] = edit(console.service, "eve", CAPITAL)
    bob = console.browser("bob")
    bob.see(f"/console/queue/{waits}")
    approvals.approve(console.service, PEOPLE["ann"], [waits])

    for told in (
        bob.post("/console/queue", edit=waits, do="reject", reason="no"),
        bob.get(f"/console/queue/{waits}"),
        bob.get(f"/console/queue/{waits}/evidence", is_part=True),
    ):
        assert told.status_code == 409
        assert "ann approved it at" in told.text
    assert states(console.service, waits) == ["active"]


def test_who_may_not_write_sees_no_buttons_and_decides_nothing(console: Console) -> None:
    """Issue 8, §2: only somebody of scope write approves."""
    [waits] = edit(console.service, "eve", CAPITAL)
    reader = console.browser("reader")
    for path in ("/console/queue", f"/console/queue/{waits}", "/console/actors?actor=eve"):
        page = reader.see(path)
        assert 'value="approve"' not in page
        assert "/console/actors/undo" not in page
    assert reader.post("/console/queue", edit=waits, do="approve").status_code == 403
    assert reader.post("/console/actors/undo", actor="eve", since="1h").status_code == 403
    assert reader.get("/console/actors/undo?actor=eve&since=1h").status_code == 403
    assert states(console.service, waits) == ["proposed"]


def test_what_is_protected_or_overtaken_is_said_before_somebody_tries(console: Console) -> None:
    """Issue 8, §2 and bad input: a protected fact, a proposal that was superseded meanwhile; readable, and refused."""
    [protected, overtaken] = edit(console.service, "eve", CAPITAL, ELSEWHERE)
    protecting.protect(console.service, PEOPLE["root"], "Freedonia", reason="legal")
    edit(console.service, "ann", {**ELSEWHERE, "target": "Weinerville"})
    ann = console.browser("ann")

    for waits, told in ((protected, "is protected"), (overtaken, "was overtaken")):
        page = ann.see(f"/console/queue/{waits}")
        assert "It cannot be approved:" in page
        assert told in page
        assert 'value="approve"' not in page
        assert 'value="reject"' in page
        evidence = ann.see(f"/console/queue/{waits}/evidence", is_part=True)
        assert "If it is approved" not in evidence
        refused = ann.post("/console/queue", edit=waits, do="approve")
        assert refused.status_code in {403, 409}
        assert told in refused.text
    assert ann.see("/console/queue").count("not possible") == 2


def test_a_server_that_only_shows_has_no_buttons_and_takes_no_forms(service: Service) -> None:
    """Issue 8, bad input: while the server is read-only."""
    [waits] = edit(service, "eve", CAPITAL)
    console = Console.of(service, read_only=True)
    ann = console.browser("ann")
    assert 'value="approve"' not in ann.see("/console/queue")
    refused = ann.post("/console/queue", edit=waits, do="approve")
    assert "--read-only" in refused.text
    assert ann.post("/console/actors/undo", actor="eve", since="1h").status_code == refused.status_code
    assert refused.status_code >= 400
    assert states(service, waits) == ["proposed"]


def test_the_evidence_comes_as_a_part_with_what_differs_marked(console: Console) -> None:
    """Issue 8, §2: the answers before and after, side by side, differences marked; without script as a whole page."""
    edit(console.service, "ann", OTHER)
    [waits] = edit(console.service, "eve", CAPITAL)
    head = console.service.ledger.head()
    ann = console.browser("ann")
    assert f'hx-get="/console/queue/{waits}/evidence" hx-trigger="load"' in ann.see(f"/console/queue/{waits}")

    part, page = (ann.see(f"/console/queue/{waits}/evidence", is_part=is_part) for is_part in (True, False))

    for shown in (part, page):
        assert "<del>Firefly.</del>" in shown
        assert "<ins>Sylvania City.</ins>" in shown
        assert "base answer to" in shown
        assert "a correction goes in" in shown
    assert "<html" not in part
    assert "<html" in page
    assert console.service.ledger.head() == head


def test_a_dry_run_is_measured_on_a_button_and_changes_nothing(console: Console) -> None:
    """Issue 8, §2: scorecard of a dry run."""
    [waits] = edit(console.service, "eve", CAPITAL)
    head = console.service.ledger.head()
    made = console.browser("ann").post(f"/console/queue/{waits}/evidence", is_part=True)
    assert made.status_code == 200
    assert "reliability" in made.text
    assert "nothing was changed" in made.text
    assert (console.service.ledger.head(), states(console.service, waits)) == (head, ["proposed"])


def test_another_tenant_sees_nothing_of_a_proposal(console: Console) -> None:
    """Design §3: a tenant never sees another's."""
    [waits] = edit(console.service, "eve", CAPITAL)
    zoe = console.browser("zoe")
    assert "Nothing waits" in zoe.see("/console/queue")
    for path in (f"/console/queue/{waits}", f"/console/queue/{waits}/evidence"):
        assert zoe.get(path).status_code == 404
    assert zoe.post("/console/queue", edit=waits, do="approve").status_code == 404
    assert "Nobody of that name" in zoe.see("/console/actors?actor=eve")
    assert zoe.post("/console/actors/undo", actor="eve", since="1h").status_code == 404
    assert states(console.service, waits) == ["proposed"]


def test_whatever_a_proposal_says_is_text_on_the_page(console: Console) -> None:
    """Issue 8, bars: script in a target or source; nothing executed."""
    strange = {**CAPITAL, "target": "\"O'Neill\" & sons' city", "source": EVIL}
    [waits] = edit(console.service, "eve", strange, reason=EVIL)
    ann = console.browser("ann")
    paths = ("/console/queue", f"/console/queue/{waits}", f"/console/queue/{waits}/evidence", "/console/actors?actor=eve")
    pages = [ann.get(path).text for path in paths]
    pages.append(ann.get("/console/actors/undo?actor=eve&since=1h&now=1").text)
    pages += [ann.get("/console/actors", is_part=False).text, ann.get(f"/console/actors?actor={EVIL}").text]
    for page in pages:
        assert "alert('x')</script>" not in page
        assert "<img" not in page
        assert '"O\'Neill"' not in page
        assert " style=" not in page
    assert "&#34;O&#39;Neill&#34;" in pages[0]
    assert all("&lt;script&gt;alert(&#39;x&#39;)" in page for page in (*pages[:2], pages[3], pages[-1]))


def test_long_queues_are_turned_page_by_page(console: Console) -> None:
    """Issue 8, §3: long lists page on the server."""
    names = [f"Town {number}" for number in range(21)]
    edit(console.service, "eve", *({"subject": name, "prompt": f"The mayor of {name} is", "target": "Rufus"} for name in names))
    ann = console.browser("ann")
    first = ann.see("/console/queue")
    assert "21 proposals" in first
    older = first.partition("/console/queue?cursor=")[2].partition('"')[0]
    second = ann.see(f"/console/queue?cursor={older}")
    assert (first.count('class="fact"'), second.count('class="fact"')) == (20, 1)
    assert ann.get("/console/queue?cursor=nonsense").status_code == 400


def test_what_a_token_changed_is_shown_previewed_and_taken_back(console: Console) -> None:
    """Issue 8, §2: a report of what one token changed, undone in one call."""
    [waits] = edit(console.service, "eve", CAPITAL)
    [acts] = edit(console.service, "bob", ELSEWHERE)
    ann = console.browser("ann")
    assert "Sylvania City" in ann.see("/console/actors?actor=eve")
    assert "Bloodville" not in ann.see("/console/actors?actor=eve")

    for is_part in (True, False):
        preview = ann.see("/console/actors/undo?actor=bob&since=1h&now=1", is_part=is_part)
        assert "Taken back: 1" in preview
        assert "Bloodville" in preview
    assert states(console.service, waits, acts) == ["proposed", "active"]

    shown: dict[str, Any] = dict(hidden(preview))
    later = edit(console.service, "bob", {**ELSEWHERE, "subject": "Moravia", "prompt": "The capital of Moravia is"})
    assert ann.post("/console/actors/undo", mark=shown.pop("mark")[0], **shown).status_code == 409
    console.service.rollback(PEOPLE["ann"], edit_ids=later)
    shown = hidden(ann.see("/console/actors/undo?actor=bob&since=1h&now=1"))
    page = ann.done("/console/actors/undo", actor="bob", since=shown["since"], seen=shown["seen"], reason="lost token")
    assert "1 taken back" in page
    assert states(console.service, waits, acts) == ["proposed", "retired"]
    assert console.service.ledger.history("acme", edit_id=acts).items[0].reason == "lost token"


@pytest.mark.parametrize(
    ("path", "status", "told"),
    [
        ("/console/actors?actor=", 400, "no token was named"),
        ("/console/actors/undo?actor=eve&since=yesterday", 400, "is no moment"),
        ("/console/actors/undo?actor=nobody&since=1h&now=1", 404, "changed nothing since"),
        ("/console/queue/ed_0123456789abcdef", 404, "there is no edit"),
        ("/console/queue/..%2f..%2fetc", 404, "nothing at"),
    ],
)
def test_what_is_asked_wrongly_is_a_readable_page(console: Console, path: str, status: int, told: str) -> None:
    """Issue 8, §3: error states are designed."""
    found = console.browser("ann").get(path)
    assert found.status_code == status
    assert told in found.text
