"""Asking on the first page, and the way from a wrong answer to a correction that somebody has looked at."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ke_tools.config import Settings
from ke_tools.servers import approvals
from ke_tools.servers.service import Service
from tests.servers.console.browsing import PEOPLE, Browser, Console, hidden, text_of
from tests.servers.door import opened

FACT = {"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}
QUESTION = "What is the capital of Freedonia?"
EVIL = "<script>alert('x')</script>\"'"


@pytest.fixture
def ann(visitor: Browser) -> Browser:
    """A browser of somebody who may write."""
    return visitor.enter("ann")


def edits(service: Service, name: str = "ann") -> list[dict[str, str]]:
    """All edits of a tenant."""
    found: list[dict[str, str]] = service.list_edits(PEOPLE[name])["edits"]
    return found


def test_a_question_is_answered_before_and_after_with_what_fired_and_why(service: Service, ann: Browser) -> None:
    """Issue 8, §3, Ask: side by side, differences marked, which edit fired and why, in words."""
    [made] = service.edit(PEOPLE["ann"], [FACT])["edits"]
    said = ann.send("/console/ask", question=QUESTION)
    assert "<del>" in said.text
    assert "<ins>Sylvania" in said.text
    assert "City.</ins>" in said.text
    assert f'href="/console/edits/{made["edit_id"]}"' in said.text
    told = text_of(said)
    assert "A correction was used" in told
    assert re.search(r"almost certainly what is asked \(\d\.\d\d, of \d\.\d\d needed\); your question names its subject", told)


def test_where_no_correction_is_about_it_that_is_said_and_nothing_is_marked(service: Service, ann: Browser) -> None:
    """Issue 8, §3, Ask."""
    service.edit(PEOPLE["ann"], [FACT])
    said = ann.send("/console/ask", question="What is the capital of Ruritania?")
    assert "No correction was used; both answers are the same" in text_of(said)
    assert "<del>" not in said.text


def test_a_part_of_the_page_is_given_to_the_script_that_asks_for_one(ann: Browser) -> None:
    """Issue 8, §3: htmx."""
    said = ann.client.post("/console/ask", data={"mark": ann.mark(), "question": QUESTION}, headers={"hx-request": "true"})
    assert "<nav" not in said.text
    assert "Without corrections" in text_of(said)


@pytest.mark.parametrize("question", ["", "   "])
def test_an_empty_question_is_told(ann: Browser, question: str) -> None:
    """House rule: bad input of every kind."""
    said = ann.send("/console/ask", question=question)
    assert said.status_code == 400
    assert "the question is empty" in text_of(said)


def test_a_sentence_is_shown_before_it_is_recorded_and_recorded_once(service: Service, ann: Browser) -> None:
    """Issue 8, §1: the split, the present answer, what would be superseded; acts only after a yes. A double click is one edit."""
    [old] = service.edit(PEOPLE["bob"], [{**FACT, "target": "Firefly"}])["edits"]
    preview = ann.send("/console/correct", statement="The capital of Freedonia is Sylvania City.", source="the gazette")
    told = text_of(preview)
    for part in ("About Freedonia", "Answer from now on Sylvania City", "The model says now Firefly", "by bob", "“acme”"):
        assert part in told
    assert f'href="/console/edits/{old["edit_id"]}"' in preview.text
    assert len(edits(service)) == 1
    sent = {name: values[0] for name, values in hidden(preview).items()} | {"reason": "seen there"}
    landed = ann.client.post("/console/edits", data=sent)
    assert "1 edit active from the next answer on" in text_of(landed)
    assert "the gazette" in text_of(landed)
    assert "seen there" in text_of(landed)
    assert ann.client.post("/console/edits", data=sent).url == landed.url
    assert [edit["state"] for edit in edits(service)] == ["active", "retired"]


def test_what_is_so_already_is_said_and_has_nothing_to_press(service: Service, ann: Browser) -> None:
    """Issue 8, bad input: of a fact that is already so (said, nothing written)."""
    service.edit(PEOPLE["ann"], [FACT])
    preview = ann.send("/console/correct", **FACT)
    assert "It is corrected so already" in text_of(preview)
    assert "Record it" not in text_of(preview)


def test_two_facts_in_a_sentence_are_two_corrections(service: Service, ann: Browser) -> None:
    """Issue 8, bad input: with two facts in a sentence."""
    preview = ann.send("/console/correct", statement="The capital of Freedonia is Sylvania City and the capital of Ruritania is Strelsau.")
    found = hidden(preview)
    assert found["subject"] == ["Freedonia", "Ruritania"]
    ann.client.post("/console/edits", data=found)
    assert {edit["target"] for edit in edits(service)} == {"Sylvania City", "Strelsau"}


def test_of_two_facts_the_one_that_is_so_already_is_not_recorded_again(service: Service, ann: Browser) -> None:
    """Issue 8, bad input: of a fact that is already so (said, nothing written)."""
    [so] = service.edit(PEOPLE["ann"], [{"subject": "Freedonia", "prompt": "The capital of Freedonia is", "target": "Sylvania City"}])[
        "edits"
    ]
    preview = ann.send("/console/correct", statement="The capital of Freedonia is Sylvania City and the capital of Ruritania is Strelsau.")
    assert "corrected so already" in text_of(preview)
    assert hidden(preview)["subject"] == ["Ruritania"]
    ann.client.post("/console/edits", data=hidden(preview))
    assert service.ledger.get("acme", so["edit_id"]).is_live
    assert sorted(edit["target"] for edit in edits(service)) == ["Strelsau", "Sylvania City"]


def test_what_was_typed_stays_in_a_form_that_is_refused(service: Service, ann: Browser) -> None:
    """Issue 8, §3: error states are designed."""
    said = ann.send("/console/correct", subject="Freedonia", prompt="The capital of Ruritania is", target="Strelsau", source="the gazette")
    assert said.status_code == 400
    assert "does not stand in the prompt" in text_of(said)
    for typed in ("Freedonia", "The capital of Ruritania is", "Strelsau", "the gazette"):
        assert f'value="{typed}"' in said.text


def test_the_source_of_a_sentence_is_that_of_both_its_facts_and_names_of_a_subject_are_not(service: Service, ann: Browser) -> None:
    """Issue 8, bad input: two facts in a sentence."""
    both = "The capital of Freedonia is Sylvania City and the capital of Ruritania is Strelsau."
    preview = ann.send("/console/correct", statement=both, source="the gazette")
    ann.client.post("/console/edits", data=hidden(preview))
    assert [edit.fact.source for edit in service.ledger.edits("acme").items] == ["the gazette", "the gazette"]
    assert "has aliases" in text_of(ann.send("/console/correct", statement=both, aliases="the old land"))


@pytest.mark.parametrize("statement", ["It is Sylvania City.", "x" * 10_000, "Die Hauptstadt von Freedonia ist schön", "?"])
def test_what_cannot_be_split_for_certain_asks_back_and_records_nothing(service: Service, ann: Browser, statement: str) -> None:
    """Issue 8, §1: one question back, never a guess; bad input."""
    said = ann.send("/console/correct", statement=statement)
    assert said.status_code in {200, 400}
    assert "Record it" not in text_of(said)
    assert edits(service) == []


def test_a_home_that_takes_proposals_says_that_it_will_wait(settings: Settings) -> None:
    """Issue 8, §2: with `propose` nothing acts before an approval, whoever corrects."""
    service = opened(dataclasses.replace(settings, edits="propose"))
    visitor = Console.of(service).browser()
    visitor.enter("ann")
    preview = visitor.send("/console/correct", **FACT)
    assert "Propose it" in text_of(preview)
    assert "wait for somebody's approval" in text_of(preview)
    landed = visitor.client.post("/console/edits", data=hidden(preview))
    assert "1 edit proposed, not active" in text_of(landed)
    assert f"/console/queue/{edits(service)[0]['edit_id']}" in landed.text
    service.close()


def test_who_may_only_read_cannot_correct(service: Service, visitor: Browser) -> None:
    """Issue 8, bad input: rights."""
    visitor.enter("reader")
    assert "Is that wrong?" not in text_of(visitor.send("/console/ask", question=QUESTION))
    for path, sent in (("/console/correct", FACT), ("/console/edits", {**FACT, "relation": ""})):
        said = visitor.send(path, **sent)
        assert said.status_code == 403
        assert "lacks the scope 'propose'" in text_of(said)
    assert edits(service) == []


@pytest.mark.parametrize("lacks", ["subject", "target", "relation"])
def test_a_form_that_is_cut_records_nothing(service: Service, ann: Browser, lacks: str) -> None:
    """House rule: all or none."""
    sent = {**FACT, "relation": ""}
    del sent[lacks]
    assert ann.send("/console/edits", **sent).status_code == 400
    assert edits(service) == []


@pytest.mark.parametrize("field", ["subject", "prompt", "target", "source", "aliases", "reason", "statement"])
def test_a_script_in_any_field_is_shown_and_not_run(service: Service, ann: Browser, field: str) -> None:
    """Issue 8, bars: script in a target or source. What enters a prompt is refused (it reads like markup), the rest is escaped."""
    before = FACT[field] + " " if field in {"subject", "target"} else ""
    sent = {**FACT, field: f"{before}{EVIL}"} | (
        {"prompt": f"The capital of Freedonia {EVIL} is"} if field in {"subject", "prompt"} else {}
    )
    pages = [ann.send("/console/correct", **sent)]
    pages.append(ann.client.post("/console/edits", data={"mark": ann.mark(), "relation": "", **hidden(pages[0]), **sent}))
    pages.append(ann.client.get("/console/edits"))
    pages += [ann.client.get(f"/console/edits/{edit['edit_id']}") for edit in edits(service)]
    assert not any("<script>alert" in page.text for page in pages)
    assert any("&lt;script&gt;" in page.text for page in pages)
    assert all(page.status_code in {200, 400, 409} for page in pages)


def test_names_and_answers_are_shown_as_they_are(service: Service, ann: Browser) -> None:
    """Nothing of a fact is lost on the way through forms."""
    odd = {"subject": "O'Neill & Sons", "prompt": 'The "seat" of O\'Neill & Sons is', "target": "“Á & B” 100 %", "source": EVIL}
    landed = ann.client.post("/console/edits", data=hidden(ann.send("/console/correct", **odd)))
    assert landed.status_code == 200
    [made] = edits(service)
    assert {name: made[name] for name in ("subject", "prompt", "target")} == {name: odd[name] for name in ("subject", "prompt", "target")}
    assert service.ledger.get("acme", made["edit_id"]).fact.source == EVIL


def test_what_has_changed_since_it_was_shown_is_not_recorded(service: Service, ann: Browser) -> None:
    """House rule: never a silently wrong edit. A preview said that nothing gives way, and meanwhile something is live."""
    shown = hidden(ann.send("/console/correct", **FACT))
    service.edit(PEOPLE["bob"], [{**FACT, "target": "Firefly"}])
    said = ann.client.post("/console/edits", data=shown)
    assert said.status_code == 409
    assert "not what the page showed" in text_of(said)
    assert [edit["target"] for edit in edits(service)] == ["Firefly"]


def test_other_names_and_the_end_are_shown_before_they_are_recorded(ann: Browser) -> None:
    """A preview hides nothing of what it records."""
    told = text_of(ann.send("/console/correct", **FACT, aliases="Fredonia, Land of the Brave", expires="2999-01-01"))
    assert "Also by the names Fredonia, Land of the Brave" in told
    assert "Until 2999-01-01" in told


def test_who_may_only_propose_is_led_to_the_form_and_told_what_was_done_and_reads_nothing(service: Service, visitor: Browser) -> None:
    """Issue 8, §2: a token of scope propose; what it may not read no preview shows it."""
    service.edit(PEOPLE["ann"], [{**FACT, "target": "Firefly"}])
    visitor.enter("eve")
    assert "Correct a fact" in text_of(visitor.client.get("/"))
    preview = visitor.send("/console/correct", **FACT)
    assert "Firefly" not in preview.text
    landed = visitor.client.post("/console/edits", data=hidden(preview))
    assert landed.status_code == 200
    assert "1 edit proposed, not active" in text_of(landed)


def test_a_preview_of_a_proposal_names_what_would_give_way(settings: Settings) -> None:
    """Issue 8, §2: what an approval would supersede."""
    service = opened(dataclasses.replace(settings, edits="propose"))
    [old] = service.edit(PEOPLE["ann"], [{**FACT, "target": "Firefly"}])["edits"]
    approvals.approve(service, PEOPLE["ann"], [old["edit_id"]])
    visitor = Console.of(service).browser()
    visitor.enter("ann")
    told = text_of(visitor.send("/console/correct", **FACT))
    assert "Supersedes The capital of Freedonia is Firefly" in told
    assert "would supersede" not in told
    service.close()


def test_what_is_to_be_forgotten_is_not_shown_beside_the_refusal(service: Service, ann: Browser) -> None:
    """docs/forgetting.md: what is kept back is displayed nowhere unasked."""
    service.edit(PEOPLE["ann"], [{**FACT, "target": "", "old_target": "Firefly", "forget": True}])
    said = text_of(ann.send("/console/ask", question="The capital of Freedonia is"))
    assert "Kept back: it is to be forgotten" in said
    assert "base answer" not in said
