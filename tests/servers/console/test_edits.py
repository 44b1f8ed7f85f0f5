"""The ledger on pages: found, shown with its evidence, taken back after a look at what that changes."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from ke_tools.servers.service import Service
from tests.servers.console.browsing import PEOPLE, Browser, hidden, text_of

FACT = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City", "source": "the gazette"}
OTHER = {**FACT, "target": "Firefly", "source": "a later gazette"}


@pytest.fixture
def ann(visitor: Browser) -> Browser:
    """A browser of somebody who may write."""
    return visitor.enter("ann")


def made(service: Service, *facts: dict[str, str], name: str = "ann") -> list[str]:
    """Correct facts; give their ids."""
    return [edit["edit_id"] for edit in service.edit(PEOPLE[name], facts)["edits"]]


def test_an_empty_ledger_says_what_to_do(ann: Browser) -> None:
    """Issue 8, §3: empty states are designed."""
    seen = text_of(ann.see("/console/edits"))
    assert "Nothing is corrected yet" in seen
    assert "Ask the model something" in seen


def test_the_list_shows_state_slot_source_age_and_times_fired(service: Service, ann: Browser) -> None:
    """Issue 8, §3, Edits."""
    made(service, FACT)
    ann.send("/console/ask", question="What is the capital of Freedonia?")
    service.fired.flush()
    seen = text_of(ann.see("/console/edits"))
    for part in ("The capital of Freedonia is Sylvania City", "active", "capital", "the gazette", "by ann", "1 edit, newest first"):
        assert part in seen
    assert re.search(r"by ann 1 (just now|\d+ minute)", seen)


def test_it_is_searched_by_words_and_state(service: Service, ann: Browser) -> None:
    """Issue 8, §3, Edits: ledger with search."""
    made(service, FACT)
    made(service, OTHER)
    made(service, {"subject": "Ruritania", "prompt": "The capital of Ruritania is", "target": "Strelsau"})
    assert "2 edits" in text_of(ann.see("/console/edits"))
    assert "1 edit with “Strelsau”" in text_of(ann.see("/console/edits?words=Strelsau"))
    assert "Sylvania City" in text_of(ann.see("/console/edits?state=retired"))
    assert "3 edits" in text_of(ann.see("/console/edits?state=any"))
    assert "No edit is like that" in text_of(ann.see("/console/edits?words=nowhere"))
    assert "there is no state 'x'" in text_of(ann.see("/console/edits?state=x", status=400))
    assert ann.see("/console/edits?cursor=nonsense", status=400)


def test_long_lists_page_on_the_server(service: Service, ann: Browser) -> None:
    """Issue 8, §3."""
    made(service, *({"subject": f"Place {n}", "prompt": f"The capital of Place {n} is", "target": f"Town {n}"} for n in range(60)))
    seen, pages, path = set[str](), 0, "/console/edits"
    while path:
        source = ann.see(path)
        seen |= set(re.findall(r'name="edit" value="(ed_[0-9a-f]+)"', source))
        older = re.search(r'href="([^"]*cursor=[^"]*)"', source)
        path, pages = (older[1].replace("&amp;", "&") if older else ""), pages + 1
    assert (len(seen), pages) == (60, 3)


def test_an_edit_shows_its_history_and_its_scorecard_with_both_answers(service: Service, ann: Browser) -> None:
    """Issue 8, §3: history as a time line, scorecard as a card, probes with both answers."""
    [first] = made(service, FACT)
    [second] = made(service, OTHER)
    assert "Not verified yet" in text_of(ann.see(f"/console/edits/{second}"))
    landed = ann.send(f"/console/edits/{second}/verify")
    told = text_of(landed)
    assert "edit verified with" in told
    assert "Says it, as worded" in told
    assert "base answer to" in told
    assert "Firefly." in told
    assert f'href="/console/edits/{first}"' in landed.text
    old = ann.see(f"/console/edits/{first}")
    assert f'gave way to <a href="/console/edits/{second}"' in old
    assert "revision 2" in text_of(old)


def test_taking_it_back_is_shown_before_it_is_done(service: Service, ann: Browser) -> None:
    """Issue 8, §3: undo with preview of what changes."""
    [first] = made(service, FACT)
    [second] = made(service, OTHER)
    preview = ann.see(f"/console/edits/{second}/undo")
    told = text_of(preview)
    assert "No longer said: 1 The capital of Freedonia is Firefly" in told
    assert "Said again: 1 The capital of Freedonia is Sylvania City" in told
    assert service.get_edit(PEOPLE["ann"], second)["state"] == "active"
    landed = ann.client.post(f"/console/edits/{second}/undo", data={**hidden(preview), "reason": "a mistake"})
    assert "1 edit rolled back. 1 earlier edit came back." in text_of(landed)
    assert service.get_edit(PEOPLE["ann"], first)["state"] == "active"
    assert service.get_edit(PEOPLE["ann"], second)["history"][0]["note"] == "a mistake"
    assert "rolled back already" in text_of(ann.send(f"/console/edits/{second}/undo"))


def test_several_are_taken_back_together_or_none(service: Service, ann: Browser) -> None:
    """Issue 8, §3: several at once."""
    ids = made(service, FACT, {"subject": "Ruritania", "prompt": "The capital of Ruritania is", "target": "Strelsau"})
    assert "nothing was chosen" in text_of(ann.send("/console/edits/chosen", do="undo"))
    assert "nothing chosen to do" in text_of(ann.send("/console/edits/chosen", edit=ids))
    assert ann.send("/console/edits/chosen", do="undo", edit=[*ids, "ed_0000000000000000"]).status_code == 404
    assert "2 edits" in text_of(ann.see("/console/edits"))
    assert "2 edits rolled back" in text_of(ann.send("/console/edits/chosen", do="undo", edit=ids))


def test_nobody_sees_or_changes_what_is_another_tenants(service: Service, visitor: Browser) -> None:
    """House rule: never another tenant's."""
    [mine] = made(service, FACT)
    visitor.enter("zoe")
    assert "Nothing is corrected yet" in text_of(visitor.see("/console/edits"))
    for path in (f"/console/edits/{mine}", f"/console/edits/{mine}/undo"):
        assert "Sylvania" not in visitor.see(path, status=404)
    for path in (f"/console/edits/{mine}/undo", f"/console/edits/{mine}/verify"):
        assert visitor.send(path).status_code == 404
    assert visitor.send("/console/edits/chosen", do="undo", edit=mine).status_code == 404
    assert service.get_edit(PEOPLE["ann"], mine)["state"] == "active"


def test_who_may_only_read_sees_no_buttons_and_changes_nothing(service: Service, visitor: Browser) -> None:
    """Issue 8, §3: same tokens."""
    [mine] = made(service, FACT)
    visitor.enter("reader")
    assert "Take the chosen back" not in visitor.see("/console/edits")
    assert "Take it back" not in visitor.see(f"/console/edits/{mine}")
    for path, sent in ((f"/console/edits/{mine}/undo", {}), ("/console/edits/chosen", {"do": "undo", "edit": mine})):
        assert visitor.send(path, **sent).status_code == 403
    assert service.get_edit(PEOPLE["ann"], mine)["state"] == "active"


def test_what_has_changed_since_the_preview_is_not_taken_back(service: Service, ann: Browser) -> None:
    """House rule: a page does what it showed, or nothing."""
    [first] = made(service, FACT)
    [second] = made(service, OTHER)
    shown = hidden(ann.see(f"/console/edits/{second}/undo"))
    service.rollback(PEOPLE["bob"], edit_ids=[first])
    said = ann.client.post(f"/console/edits/{second}/undo", data=shown)
    assert said.status_code == 409
    assert service.get_edit(PEOPLE["ann"], second)["state"] == "active"


def test_the_gates_own_scorecard_is_shown_too(service: Service, ann: Browser) -> None:
    """A promotion keeps one, which is of no suite."""
    [mine] = made(service, FACT)
    card = verifying_of(service, mine)
    del card["suite"]
    service.ledger.keep_scorecard("acme", card)
    assert "of a promotion's gate" in text_of(ann.see(f"/console/edits/{mine}"))


def verifying_of(service: Service, edit_id: str) -> dict[str, Any]:
    """A scorecard about an edit, as it is kept."""
    found = asyncio.run(service.verifying.verify(PEOPLE["ann"], [edit_id], wait_seconds=20))
    kept = service.get_scorecard(PEOPLE["ann"], found["scorecard"])
    del kept["scorecard"]
    return kept
