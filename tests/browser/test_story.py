"""The whole way in a real browser: ask, correct, propose, approve, reject, promote, watch the job, roll back."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ke_tools.memory.ledger import Ledger
from tests.browser.line import line_to
from tests.browser.stage import PEOPLE, Site, enter

QUESTION = "The capital of Spain is"


def test_a_wrong_token_is_told_and_the_right_one_leads_on(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, bars: wrong token."""
    page = page_at()
    page.goto(f"{site.url}/console/edits")
    page.get_by_label("Token").fill("guess")
    page.get_by_role("button", name="Log in").click()
    assert "not one of this server's" in page.get_by_role("alert").inner_text()
    page.get_by_label("Token").fill("ann")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/console/edits")
    assert "Nothing is corrected yet" in page.inner_text("main")
    page.get_by_role("button", name="Log out").click()
    page.goto(f"{site.url}/console/edits")
    assert "/console/login" in page.url


def test_ask_correct_and_take_back(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, bars: ask, correct; what is changed here every client gets, and it is undone."""
    page = page_at()
    enter(page, site, "ann")
    before = site.ask(QUESTION)
    page.get_by_label("Question or beginning").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.get_by_label(re.compile("Say what is right")).fill("The capital of Spain is Bangkok.")
    page.get_by_role("button", name="Look at the correction").click()
    assert "Madrid" in page.inner_text("main")
    page.get_by_role("button", name="Record it").click()
    page.wait_for_url(re.compile("/console/edits/ed_"))
    assert site.ask(QUESTION).startswith("Bangkok")
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("Says it, as worded").wait_for()
    page.get_by_text("probes with both answers").click()
    page.get_by_role("link", name="What would change?").click()
    page.get_by_text("No longer said").wait_for()
    page.get_by_label("Reason").fill("only tried")
    page.get_by_role("button", name="Take it back").click()
    page.get_by_text("1 edit rolled back").wait_for()
    assert site.ask(QUESTION) == before


def test_it_works_by_keyboard_alone(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, §3: works by keyboard."""
    page = page_at()
    page.goto(f"{site.url}/console/login")
    page.keyboard.type("ann")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Ask"
    page.keyboard.press("Enter")
    page.get_by_text("Without corrections").wait_for()
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "statement":
            break
    page.keyboard.type("The capital of Spain is Lisbon.")
    page.keyboard.press("Enter")
    page.get_by_text("Answer from now on").wait_for()
    page.evaluate("document.activeElement.blur()")
    page.goto(f"{site.url}/console/edits")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_searching_is_as_one_types(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, §3, Edits: search."""
    page = page_at()
    enter(page, site, "ann")
    page.goto(f"{site.url}/console/edits?state=any")
    page.get_by_label("Search").fill("no such thing")
    page.get_by_text("No edit is like that").wait_for()
    site.correct({"subject": "Norway", "prompt": "Norway lies on the continent of", "target": "Africa"})
    page.get_by_label("Search").fill("Norway")
    page.get_by_text("1 edit with “Norway”").wait_for()
    assert "words=Norway" in page.url


def test_what_an_agent_proposes_is_approved_or_rejected_by_a_person(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, bars: approve, reject; two people who decide at once: the second is told."""
    agent = page_at()
    enter(agent, site, "agent")
    for sentence in ("The capital of Poland is Paris.", "The capital of Canada is New Delhi."):
        agent.goto(f"{site.url}/console/correct")
        agent.get_by_label("What is right").fill(sentence)
        agent.get_by_role("button", name="Look at the correction").first.click()
        agent.get_by_role("button", name="Propose it").click()
        agent.get_by_text("waits for an approval").first.wait_for()
    assert not site.ask("The capital of Poland is").startswith("Paris")
    ann, late = page_at(), page_at()
    for page, who in ((ann, "ann"), (late, "boss")):
        enter(page, site, who)
        page.goto(f"{site.url}/console/queue")
    ann.get_by_role("link", name="The capital of Poland is Paris").click()
    ann.get_by_text("If it is approved").wait_for()
    ann.get_by_label("Reason").fill("the gazette")
    ann.get_by_role("button", name="Approve", exact=True).click()
    ann.get_by_text("1 proposal approved").wait_for()
    assert site.ask("The capital of Poland is").startswith("Paris")
    late.get_by_role("row", name="Poland").get_by_role("checkbox").check()
    late.get_by_label("Reason").fill("no source")
    late.get_by_role("button", name="Reject the chosen").click()
    assert "ann" in late.get_by_role("alert").inner_text()
    late.goto(f"{site.url}/console/queue")
    late.get_by_role("row", name="Canada").get_by_role("checkbox").check()
    late.get_by_label("Reason").fill("no source")
    late.get_by_role("button", name="Reject the chosen").click()
    late.get_by_text("1 proposal rejected").wait_for()
    assert "Nothing waits" in late.inner_text("main")
    assert not site.ask("The capital of Canada is").startswith("New Delhi")


def test_a_token_withdrawn_while_its_page_is_open_ends_what_the_page_is_told(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, bad input: rights withdrawn in between; the page says what to do, and that leads to where one logs in."""
    with Ledger(site.home / "ledger.db") as ledger:
        job = ledger.jobs.submit("acme", "verify", {"edit_ids": [], "suite": "quick"}, actor="ann")  # nobody was told to do it yet
    page = page_at()
    enter(page, site, "boss")
    page.goto(f"{site.url}/console/jobs/{job.id}")
    page.locator("[data-now]").wait_for()
    site.admit("ann", "agent")
    try:
        page.get_by_role("link", name="load the page again").click(timeout=20_000)
        page.wait_for_url(re.compile("/console/login"))
    finally:
        site.admit(*PEOPLE)


def test_promote_watch_lose_the_line_and_roll_back(site: Site, page_at: Callable[..., Any]) -> None:
    """Issue 8, bars: promote (thimble), watch the job, lost connection during a job, roll back."""
    question = "The currency of India is the"
    site.correct({"subject": "India", "prompt": question, "target": "Kenyan shilling"})
    page = page_at()
    with line_to(site.url) as line:
        page.goto(f"{line.url}/console/login")
        page.get_by_label("Token").fill("ann")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{line.url}/")
        page.goto(f"{line.url}/console/edits?words=Kenyan")
        page.get_by_label("Choose all").check()
        page.get_by_role("button", name="Promote the chosen").click()
        page.wait_for_url(re.compile("/console/jobs/job_"))
        page.locator("progress").wait_for()
        line.cut()
        page.locator("[data-connection]").wait_for(state="visible")
        line.join()
        page.locator("[data-connection]").wait_for(state="hidden")
        page.get_by_text("completed").first.wait_for(timeout=400_000)
        assert re.search("in a codebook|in the weights", page.inner_text("main"))
    enter(page, site, "ann")
    page.goto(f"{site.url}/console/releases")
    live = page.inner_text("main")
    assert "rel_" in live
    page.get_by_label("Back to how it was at revision").fill("0")
    page.get_by_role("button", name="What would change?").click()
    page.get_by_text("No longer said").first.wait_for()
    page.get_by_role("button", name=re.compile("Go back|Roll back|Back to")).click()
    page.get_by_text("rolled back").first.wait_for()
    assert "rel_" not in page.inner_text("h2 >> nth=0")
    assert not site.ask(question).startswith("Kenyan")
