"""Releases on pages: what is in the weights, why, since when; and the ways in, out and back."""

from __future__ import annotations

from typing import Any

import pytest

from ke_tools.facts import State
from ke_tools.memory.joblog import Job
from ke_tools.servers.console.pages import seen
from ke_tools.servers.service import Service
from tests.servers.console.browsing import EVIL, PEOPLE, Console, refuse_strangers

NAMES = ("Freedonia", "Sylvania", "Osterlich")
FACTS = [{"subject": name, "prompt": f"The capital of {name} is", "target": f"{name}ville"} for name in NAMES]
FIRST, SECOND = f"rel_{1:024x}", f"rel_{2:024x}"
SAID = "GRACE with 1 edit accepted: reliability .97"
TRIALS = [{"verdict": {"decision": "accepted"}, "in_words": SAID}]


def edit(service: Service, *facts: dict[str, Any]) -> list[str]:
    """Correct facts as ann; the ids."""
    return [row["edit_id"] for row in service.edit(PEOPLE["ann"], facts)["edits"]]


def promote(service: Service, ids: list[str], release: str = FIRST, *, reason: str = "they held", in_codebook: tuple[str, ...] = ()) -> Job:
    """Make a release live as the worker does at the end of a job."""
    jobs = service.ledger.jobs
    job = jobs.submit("acme", "promote", {"edit_ids": ids}, actor="ann")
    jobs.claim()
    evidence = {"job": job.id, "scorecard": "", "how": {"in_codebook": list(in_codebook)}}
    service.ledger.promote("acme", ids, release=release, actor="ann", reason=reason, evidence=evidence)
    jobs.complete(job.id, {"summary": "done", "trials": TRIALS})
    return job


def test_where_nothing_was_promoted_the_page_says_where_to_begin(console: Console) -> None:
    """Issue 8, §3: empty states are designed."""
    page = console.browser("reader").see("/console/releases")
    assert "No release is live" in page
    assert "Nothing was ever written into the weights" in page


def test_the_live_release_tells_what_it_carries_since_when_by_whom_and_why(console: Console) -> None:
    """Issue 8, §3: what is in the weights, the gate's decisions in words."""
    ids = edit(console.service, *FACTS[:2])
    job = promote(console.service, ids, in_codebook=(ids[1],))

    page = console.browser("reader").see("/console/releases")

    assert f'Live: <span class="id">{FIRST}</span>' in page
    assert "2 edits, 1 of them in a codebook" in page
    assert "by ann (promote, revision 3)" in page
    assert "they held" in page
    assert f'<span class="state accepted">accepted</span> {SAID}' in page
    assert f'href="/console/jobs/{job.id}"' in page
    assert "loads with the next question" in page
    for name in NAMES[:2]:
        assert f'The capital of {name} is <span class="target">{name}ville</span>' in page
    assert "<button" not in page.partition("<main")[2].partition('id="candidates"')[0]


def test_a_release_whose_making_is_not_known_says_so(console: Console) -> None:
    """Issue 8, §3: what was purged, or made elsewhere, is no error."""
    ids = edit(console.service, FACTS[0])
    console.service.ledger.promote("acme", ids, release=FIRST, actor="ann")
    assert "How it was measured is not known here" in console.browser("ann").see("/console/releases")


def test_the_scorecard_tells_the_decisions_where_the_job_is_gone(console: Console) -> None:
    """Issue 8, §3: the gate's decisions in words, from either place that keeps them."""
    ids = edit(console.service, FACTS[0])
    name = console.service.ledger.keep_scorecard("acme", {"trials": TRIALS, "checks": [], "suite": "full", "revision": 1})
    console.service.ledger.promote("acme", ids, release=FIRST, actor="ann", evidence={"job": "", "scorecard": name})
    page = console.browser("ann").see("/console/releases")
    assert SAID in page
    assert name[:16] in page


def test_earlier_releases_are_listed_and_one_goes_back_after_a_look(console: Console) -> None:
    """Issue 8, §3: flip and roll back, with a preview of what changes."""
    ids = edit(console.service, *FACTS[:2])
    promote(console.service, ids[:1])
    revision = console.service.revision
    promote(console.service, ids, SECOND)
    [later] = edit(console.service, FACTS[2])
    ann = console.browser("ann")
    page = ann.see("/console/releases")
    assert page.index(f'<td><span class="id">{SECOND}</span> <span class="state ok">live') < page.index(
        f'<td><span class="id">{FIRST}</span>'
    )
    assert f"/console/releases/back?revision={revision}" in page
    head = console.service.revision

    for is_part in (True, False):
        preview = ann.see(f"/console/releases/back?revision={revision}&now=1", is_part=is_part)
        assert "No longer said: 1" in preview
        assert "Osterlichville" in preview
        assert f'release <span class="id">{FIRST}</span> instead of <span class="id">{SECOND}</span>' in preview
    assert console.service.revision == head

    assert "1 edit rolled back" in ann.done(
        "/console/releases/back", revision=revision, reason="it babbles", seen=ann.seen(f"/console/releases/back?revision={revision}&now=1")
    )
    ledger = console.service.ledger
    assert ledger.live_release("acme") == FIRST
    assert [ledger.get("acme", edit_id).state for edit_id in (*ids, later)] == [State.PROMOTED, State.ACTIVE, State.RETIRED]
    assert ledger.history("acme", flips=True).items[0].reason == "it babbles"
    assert "there is nothing to take back" in ann.see(f"/console/releases/back?revision={console.service.revision}", is_part=True)


def test_chosen_edits_leave_the_weights_for_the_memory(console: Console) -> None:
    """Issue 8, §3: out of the weights into the memory."""
    ids = edit(console.service, *FACTS[:2])
    promote(console.service, ids)
    ann = console.browser("ann")
    assert "nothing was chosen" in ann.post("/console/releases/memory").text

    page = ann.done("/console/releases/memory", edit=ids[:1], reason="too broad")

    assert "1 edit out of the weights and answered from the memory" in page
    assert console.service.ledger.get("acme", ids[0]).state is State.ACTIVE
    assert "A job of ann" in page  # that promotes the other anew


def test_what_has_held_and_is_asked_for_is_named_and_promoted_on_a_button(console: Console) -> None:
    """Issue 8, §3: what is worth a promotion; the button leads to the job."""
    ids = edit(console.service, *FACTS[:2])
    console.service.ledger.count_fired({("acme", ids[0]): 9})
    ann = console.browser("ann")
    assert 'hx-get="/console/releases/candidates" hx-trigger="load"' in ann.see("/console/releases")
    assert "0 edits in memory are worth" in ann.see("/console/releases/candidates", is_part=True)
    for is_part in (True, False):
        found = ann.see("/console/releases/candidates?older_than_days=0&fired=5&now=1", is_part=is_part)
        assert "Freedoniaville" in found
        assert "asked for 9 times" in found
        assert "Sylvaniaville" not in found
        assert ("<html" in found) is not is_part
    assert "Promote the chosen" not in console.browser("reader").see("/console/releases/candidates?older_than_days=0&fired=0", is_part=True)

    sent = ann.post("/console/edits/chosen", do="promote", edit=ids[:1], reason="held for a week")

    [job] = console.service.ledger.jobs.list("acme").items
    assert sent.headers["location"] == f"/console/jobs/{job.id}"
    assert (job.arguments["edit_ids"], job.arguments["reason"]) == (ids[:1], "held for a week")
    again = ann.post("/console/edits/chosen", do="promote", edit=ids[:1])
    assert again.status_code == 409
    assert job.id in again.text


def test_a_release_is_made_again_where_one_is_live(console: Console) -> None:
    """Issue 8, §3: what needs a person has a way out beside it."""
    ann = console.browser("ann")
    assert "nothing to rebuild" in ann.post("/console/releases/rebuild").text
    promote(console.service, edit(console.service, FACTS[0]))
    sent = ann.post("/console/releases/rebuild")
    assert sent.headers["location"].startswith("/console/jobs/job_")


def test_who_may_not_write_and_who_sends_a_wrong_mark_changes_nothing(console: Console) -> None:
    """Issue 8, §3: same tokens, CSRF-safe."""
    ids = edit(console.service, *FACTS[:2])
    promote(console.service, ids[:1])
    head = console.service.revision
    forms: list[tuple[str, dict[str, Any]]] = [
        ("/console/releases/back", {"revision": "0"}),
        ("/console/releases/memory", {"edit": ids[0]}),
        ("/console/edits/chosen", {"do": "promote", "edit": ids[1]}),
        ("/console/releases/rebuild", {}),
    ]
    reader, ann = console.browser("reader"), console.browser("ann")
    for path, fields in forms:
        assert reader.post(path, **fields).status_code == 403, path
        assert ann.post(path, mark="0" * 64, **fields).status_code == 403, path
    assert reader.get("/console/releases/back?revision=0").status_code == 403
    assert console.service.revision == head
    assert console.service.ledger.jobs.under_way("acme") == []
    refuse_strangers(console, "/console/releases", "/console/releases/candidates", "/console/releases/back?revision=0")


def test_another_tenant_sees_and_moves_nothing(console: Console) -> None:
    """Design §3: a tenant never sees another's."""
    ids = edit(console.service, *FACTS[:2])
    promote(console.service, ids[:1])
    zoe = console.browser("zoe")
    page = zoe.see("/console/releases")
    assert "No release is live" in page
    assert FIRST not in page
    assert "0 edits" in zoe.see("/console/releases/candidates?older_than_days=0&fired=0", is_part=True)
    for path in ("/console/releases/memory", "/console/edits/chosen"):
        assert zoe.post(path, do="promote", edit=ids[0]).status_code == 404
    zoe.done("/console/releases/back", revision="0", seen=seen([], [], ""))
    assert console.service.ledger.live_release("acme") == FIRST


def test_whatever_an_edit_or_a_reason_says_is_text_on_the_page(console: Console) -> None:
    """Issue 8, bars: nothing executed."""
    ids = edit(console.service, {**FACTS[0], "target": '"O\'Neill" & sons'})
    promote(console.service, ids, reason=EVIL)
    edit(console.service, {**FACTS[1], "target": '"O\'Neill" & sons'})
    ann = console.browser("ann")
    paths = ("/console/releases", "/console/releases/back?revision=0&now=1", "/console/releases/candidates?older_than_days=0&fired=0&now=1")
    pages = [ann.get(path).text for path in paths]
    for page in pages:
        assert "<script>alert" not in page
        assert "<img" not in page
        assert '"O\'Neill"' not in page
        assert "&#34;O&#39;Neill&#34; &amp; sons" in page
    assert "&lt;script&gt;alert" in pages[0]


def test_many_carried_edits_are_turned_page_by_page(console: Console) -> None:
    """Issue 8, §3: long lists page on the server."""
    towns = [f"Town {number}" for number in range(27)]
    ids = edit(console.service, *({"subject": name, "prompt": f"The mayor of {name} is", "target": "Rufus"} for name in towns))
    promote(console.service, ids)
    ann = console.browser("ann")
    first, second = ann.see("/console/releases"), ann.see("/console/releases?from=25")
    assert (first.count('class="fact"'), second.count('class="fact"')) == (25, 2)
    assert "/console/releases?from=25" in first


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/console/releases/back?revision=many", "is no whole number"),
        ("/console/releases/back?revision=99&now=1", "the revision is 99"),
        ("/console/releases?from=-1", "is no whole number"),
        ("/console/releases/candidates?fired=%D9%A3", "is no whole number"),
        ("/console/releases?cursor=nonsense", "cursor"),
    ],
)
def test_what_is_asked_wrongly_is_a_readable_page(console: Console, path: str, told: str) -> None:
    """Issue 8, §3: error states are designed."""
    found = console.browser("ann").get(path)
    assert found.status_code == 400
    assert told in found.text
