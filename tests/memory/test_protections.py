"""Facts that only an admin may change: what falls under a protection, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import Conflict, Forbidden, InvalidInput, KeToolsError, NotFound
from ke_tools.facts import Edit, Fact
from ke_tools.memory import transfer
from ke_tools.memory.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger, whose log tells all that its tables hold when the test is over."""
    with Ledger(tmp_path / "ledger.db") as made:
        yield made
        assert made.audit() == []


def fact(subject: str, prompt: str, target: str = "Perth", **more: Any) -> Fact:
    """A fact."""
    return Fact(subject=subject, prompt=prompt, target=target, **more)


def write(ledger: Ledger, *facts: Fact, **more: Any) -> list[Edit]:
    """Record facts without the right to change what is protected."""
    return ledger.edit("acme", facts, actor="eve", **more)


def protect(ledger: Ledger, subject: str, **more: Any) -> None:
    """Protect a subject as an admin."""
    ledger.protections.protect("acme", subject, actor="root", reason="legal", **more)


@pytest.mark.parametrize(
    "tried",
    [
        fact("Australia", "The capital of Australia is"),
        fact("AUSTRALIA", "The capital of AUSTRALIA is"),
        fact("the Australia", "The capital of the Australia is"),
        fact("Àustralia", "The capital of Àustralia is"),
        fact("Aus tralia", "The capital of Aus tralia is"),
        fact("Aus-tralia", "The capital of Aus-tralia is"),
        fact("Australia's", "Australia's capital is"),
        fact("Commonwealth of Australia", "The capital of the Commonwealth of Australia is"),
        fact("Down Under", "The capital of Down Under is"),
        fact("Oz", "The capital of Oz is", aliases=("Australia",)),
        fact("Sydney", "Sydney, the capital of Australia, has the mayor"),
        fact("Sydney", "Sydney has the mayor", paraphrases=("Australia is governed from",)),
        fact("Australia", "Where do the people of Australia vote?", "nowhere"),
        fact("Australia", "The capital of Australia is", "I cannot say.", forget=True),
    ],
    ids=lambda tried: f"{tried.subject}: {tried.prompt}",
)
def test_no_spelling_other_name_or_other_subject_gets_around_a_protection(ledger: Ledger, tried: Fact) -> None:
    """Issue 8, §2: a protected subject may not be edited nor forgotten, however it is written; the error says by whom and why."""
    protect(ledger, "Australia", aliases=["Down Under"])
    before = ledger.head()

    with pytest.raises(Forbidden, match=r"'Australia' is protected \(pr_[0-9a-f]{8}, by root at 20.*: legal\)") as caught:
        write(ledger, fact("Austria", "The capital of Austria is", "Graz"), tried)

    assert (caught.value.data["scope"], ledger.head()) == ("admin", before)
    assert write(ledger, tried, over_protection=True)


def test_what_only_sounds_like_it_is_free(ledger: Ledger) -> None:
    """A protection is about its subject, not about its letters."""
    protect(ledger, "Australia")
    write(ledger, fact("Austria", "The capital of Austria is", "Graz"), fact("Canberra", "The mayor of Canberra is", "Ida"))
    assert ledger.edit("other", [fact("Australia", "The capital of Australia is")], actor="eve")


@pytest.mark.parametrize(
    ("prompt", "more", "is_free"),
    [
        ("The capital of Australia is", {}, False),
        ("Australia is governed from its capital city of", {}, False),
        ("The capital of Australia is", {"relation": "continent"}, False),
        ("The seat of those who rule Australia lies in", {}, False),
        ("The seat of those who rule Australia lies in", {"relation": "continent"}, False),
        ("The official language of Australia is", {"relation": "capital"}, False),
        ("The official language of Australia is", {"paraphrases": ("The capital of Australia is",)}, False),
        ("The official language of Australia is", {}, True),
    ],
)
def test_where_one_relation_is_protected_a_recognised_other_one_is_free(
    ledger: Ledger, prompt: str, more: dict[str, Any], *, is_free: bool
) -> None:
    """Issue 8, §2: subject or slot; a wording that is not recognised may mean the protected one, whatever relation it is given."""
    protect(ledger, "Australia", prompt="The capital of Australia is")
    if is_free:
        write(ledger, fact("Australia", prompt, **more))
    else:
        with pytest.raises(Forbidden, match="'capital' of 'Australia'"):
            write(ledger, fact("Australia", prompt, **more))


def test_a_name_that_leads_to_a_protected_correction_is_protected(ledger: Ledger) -> None:
    """Issue 8, §2: aliases of an edit that acts; what would supersede it falls under the protection."""
    write(ledger, fact("Brix Holding Ltd", "The seat of Brix Holding Ltd is", "Oslo", aliases=("the Bricklayers",)))
    protect(ledger, "Brix Holding Ltd")
    with pytest.raises(Forbidden, match="Brix Holding Ltd"):
        write(ledger, fact("the Bricklayers", "The seat of the Bricklayers is", "Moss"))


def test_what_acts_of_something_protected_is_not_taken_back_either(ledger: Ledger) -> None:
    """Issue 8, §2: may not be edited; a rollback changes what is answered as an edit does."""
    [free] = write(ledger, fact("Austria", "The capital of Austria is", "Graz"))
    [made] = write(ledger, fact("Australia", "The capital of Australia is"))
    protect(ledger, "Australia")
    ways: list[Callable[[], object]] = [
        lambda: ledger.rollback("acme", [made.id], actor="eve"),
        lambda: ledger.rollback_to("acme", 0, actor="eve"),
        lambda: ledger.undoing.undo("acme", "eve", "2000-01-01T00:00:00.000Z", actor="eve"),
    ]
    for take_back in ways:
        with pytest.raises(Forbidden):
            take_back()
    ledger.rollback("acme", [free.id], actor="eve")
    ledger.rollback("acme", [made.id], actor="root", over_protection=True)
    assert ledger.live("acme") == []


def test_an_import_reports_the_protected_line_and_records_the_rest(ledger: Ledger) -> None:
    """Design §3: one output line for each input line, errors too."""
    protect(ledger, "Australia")
    lines = [
        '{"subject": "Australia", "prompt": "The capital of Australia is", "target": "Perth"}',
        '{"subject": "Austria", "prompt": "The capital of Austria is", "target": "Graz"}',
    ]
    first, second = transfer.import_lines(ledger, "acme", lines, actor="eve")
    assert (first["error"]["code"], second["state"]) == ("E_FORBIDDEN", "active")


def test_protections_are_listed_and_lifted_and_stay_in_the_history(ledger: Ledger) -> None:
    """Issue 8, §2: recorded as ledger events, chained, per tenant."""
    protect(ledger, "Australia")
    protect(ledger, "Australia", relation="capital")
    protect(ledger, "Brix Ltd")
    with pytest.raises(Conflict, match=r"protected already: pr_"):
        protect(ledger, "the Australia")
    assert [one.in_words for one in ledger.protections.all("acme")] == ["'Australia'", "'capital' of 'Australia'", "'Brix Ltd'"]
    assert ledger.protections.all("other") == []
    [_, narrow, brix] = ledger.protections.all("acme")
    assert ledger.protections.unprotect("acme", narrow.id, actor="root") == [narrow]
    assert len(ledger.protections.unprotect("acme", "australia", actor="root", reason="over")) == 1
    assert ledger.protections.all("acme") == [brix]
    write(ledger, fact("Australia", "The capital of Australia is"))
    assert [event.action for event in ledger.history("acme").items] == ["edit", "unprotect", "unprotect", *["protect"] * 3]


def test_what_cannot_be_protected_is_refused(ledger: Ledger) -> None:
    """Issue 8, bad input."""
    refused: list[tuple[type[KeToolsError], str, dict[str, Any]]] = [
        (InvalidInput, "", {}),
        (InvalidInput, "the", {}),
        (InvalidInput, "Australia", {"prompt": "The capital of Austria is"}),
    ]
    for kind, subject, more in refused:
        with pytest.raises(kind):
            protect(ledger, subject, **more)
    for name, expected in (("Australia", NotFound), ("  ", InvalidInput)):
        with pytest.raises(expected):
            ledger.protections.unprotect("acme", name, actor="root")
    assert ledger.head() == 0


def test_a_protection_that_was_slipped_out_of_the_table_is_found(tmp_path: Path) -> None:
    """Issue 8, §2: audited like the others."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        protect(ledger, "Australia")
        ledger._storage._main.execute("DELETE FROM protections")
        assert [finding.kind for finding in ledger.audit()] == ["projection"]
