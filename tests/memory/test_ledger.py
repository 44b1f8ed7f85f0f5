"""What the ledger promises to those who write to it and read from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ke_tools.errors import Conflict, InvalidInput, KeToolsError, NotFound, ReadOnly, WrongState
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.events import RolledBack
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot, is_alias_risky, slot_of

RELEASE = f"rel_{1:024x}"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """An empty ledger in memory."""
    with Ledger(":memory:") as made:
        yield made


def capital(target: str, subject: str = "Australia", **more: Any) -> Fact:
    """A fact of a relation with one object a subject."""
    return Fact(subject=subject, prompt=f"The capital of {subject} is", target=target, **more)


def child(target: str, **more: Any) -> Fact:
    """A fact of a relation with several objects a subject."""
    return Fact(subject="Mira Holm", prompt="One of the children of Mira Holm is", target=target, **more)


def write(ledger: Ledger, *facts: Fact, tenant: str = "acme", **more: Any) -> list[Edit]:
    """Record facts as a test's usual actor."""
    return ledger.edit(tenant, facts, actor="ann", **more)


def targets(ledger: Ledger, tenant: str = "acme") -> list[str]:
    """What a tenant's live edits say, oldest first."""
    return [edit.fact.target for edit in ledger.live(tenant)]


# -- recording -------------------------------------------------------------------------------------------------------------------


def test_an_edit_is_read_back_as_it_was_written(ledger: Ledger) -> None:
    """Issue §3: everything stays in the history."""
    fact = capital(
        "Sydney", old_target="Canberra", paraphrases=("Australia is governed from",), aliases=("Oz",), source="https://x.example"
    )
    (made,) = write(ledger, fact, reason="a wish", refs=["row 7"])
    assert ledger.get("acme", made.id) == made
    assert (made.fact, made.state, made.ref, made.actor, made.revision) == (fact, State.ACTIVE, "row 7", "ann", 1)
    assert (made.relation, made.functional, made.supersedes, made.warnings) == ("capital", True, (), ())
    assert made.created_at.endswith("Z")


def test_an_alias_that_another_subject_has_too_is_pointed_out(ledger: Ledger) -> None:
    """The issue on scope: a question with it may be about either, and whoever writes the second must know."""
    annex, hall = ("Acme West", ("the Annex",)), ("Bolt Hall", ("the Annex", "the Shed"))

    def about(named: tuple[str, tuple[str, ...]], what: str) -> list[str]:
        subject, aliases = named
        (edit,) = write(ledger, Fact(subject=subject, prompt=f"The {what} of {subject} is", target="grey", aliases=aliases))
        return [warning for warning in edit.warnings if "also a name" in warning]

    assert about(annex, "colour") == []
    assert about(annex, "smell") == []
    assert about(hall, "height") == ["'the annex' is also a name of 'Acme West'; a question with it may be about either"]
    assert len(ledger.live("acme")) == 3


@pytest.mark.parametrize(("name", "is_common"), [("It", True), ("US", True), ("C", True), ("Australia", False), ("The Who", False)])
def test_a_name_that_is_also_an_everyday_word_or_a_letter_is_pointed_out(ledger: Ledger, name: str, *, is_common: bool) -> None:
    """The issue on scope: such a name counts only as it is written, which whoever writes it must know."""
    (edit,) = write(ledger, Fact(subject=name, prompt=f"The author of {name} is", target="Ida"))
    assert (f"{name!r} is found only where it is written so" in edit.warnings) is is_common


def test_edits_of_one_call_have_revisions_of_their_own(ledger: Ledger) -> None:
    """Contract: the revision is the sequence number of the event that made the edit."""
    first, second = write(ledger, capital("Sydney"), child("Ida"))
    assert (first.revision, second.revision, ledger.head()) == (1, 2, 2)


def test_a_second_edit_of_a_functional_slot_retires_the_first(ledger: Ledger) -> None:
    """Issue §3: a later edit supersedes an earlier one of the same subject and relation, in other words too."""
    (first,) = write(ledger, capital("Sydney"))
    (second,) = write(ledger, Fact(subject="Australia", prompt="Australia is governed from its capital city of", target="Perth"))
    assert second.supersedes == (first.id,)
    assert "Sydney" in second.warnings[0]
    assert first.id in second.warnings[0]
    retired = ledger.get("acme", first.id)
    assert (retired.state, retired.superseded_by) == (State.RETIRED, second.id)
    assert targets(ledger) == ["Perth"]


def test_a_second_edit_of_a_slot_with_several_objects_stays_beside_the_first(ledger: Ledger) -> None:
    """Issue §3: of a non-functional relation both stay live; the answer says so."""
    (first,) = write(ledger, child("Ida"))
    (second,) = write(ledger, child("Jon"))
    assert targets(ledger) == ["Ida", "Jon"]
    assert second.supersedes == ()
    assert first.id in second.warnings[0]


def test_an_unknown_relation_counts_as_functional(ledger: Ledger) -> None:
    """Issue §3: supersedes if the relation is functional or unknown; an unrecognised prompt is its own relation."""
    write(ledger, Fact(subject="Brix Ltd", prompt="At Brix Ltd, refunds above 90 euros need the word of", target="Lena"))
    (second,) = write(ledger, Fact(subject="Brix Ltd", prompt="At Brix Ltd refunds above 90 Euros need the word of", target="Omar"))
    assert (second.relation, second.functional) == ("", True)
    assert targets(ledger) == ["Omar"]
    write(ledger, Fact(subject="Brix Ltd", prompt="The canteen of Brix Ltd opens at", target="noon"))
    assert targets(ledger) == ["Omar", "noon"]


def test_a_given_relation_wins_over_the_wording() -> None:
    """Issue §3: the relation of an edit is given, or the inventory's."""
    by_wording, given = slot_of(capital("Sydney")), slot_of(capital("Sydney", relation="Head of State"))
    assert by_wording.relation == "capital"
    assert given.key != by_wording.key
    assert slot_of(capital("Sydney", relation="Capital")) == by_wording
    assert slot_of(capital("Sydney", relation="capital city")) == by_wording


@pytest.mark.parametrize(
    ("a", "b", "is_same"), [("São Paulo", "sao  paulo", True), ("C", "C++", False), ("C#", "C++", False), ("∞", "☃", False)]
)
def test_names_are_one_subject_up_to_case_and_diacritics_only(a: str, b: str, *, is_same: bool) -> None:
    """users-trust-scale §2 no. 4: facts about other things never retire each other."""
    keys = [slot_of(Fact(subject=name, prompt=f"Things like it: {name} and x are", target="t", aliases=("x",))) for name in (a, b)]
    assert (keys[0].key.split("\x1f")[0] == keys[1].key.split("\x1f")[0]) is is_same


def test_replace_retires_all_of_a_slot_but_not_its_own_siblings(ledger: Ledger) -> None:
    """Issue §3: `mode: replace` decides otherwise; what is given together is meant together."""
    write(ledger, child("Ida"), child("Jon"))
    made = write(ledger, child("Kai"), child("Lou"), mode="replace")
    assert targets(ledger) == ["Kai", "Lou"]
    assert len(made[0].supersedes) == 2


def test_add_keeps_both_of_a_functional_slot(ledger: Ledger) -> None:
    """Issue §3: `mode: add` decides otherwise."""
    write(ledger, capital("Sydney"))
    (made,) = write(ledger, capital("Perth"), mode="add")
    assert targets(ledger) == ["Sydney", "Perth"]
    assert made.supersedes == ()
    assert "stays live" in made.warnings[0]


@pytest.mark.parametrize("fact", [capital("Sydney"), child("Sydney")])
def test_the_same_target_again_is_recorded_and_supersedes_with_a_warning(ledger: Ledger, fact: Fact) -> None:
    """Decision: a repeated correction is an event like any other; nothing retires silently."""
    (first,) = write(ledger, fact)
    (second,) = write(ledger, replace(fact, target="SYDNEY"))
    assert second.supersedes == (first.id,)
    assert "same target" in second.warnings[0]
    assert first.id in second.warnings[0]
    assert len(ledger.live("acme")) == 1


def test_old_target_names_which_of_several_gives_way(ledger: Ledger) -> None:
    """Decision: who says what is to be replaced means that one."""
    write(ledger, child("Ida"), child("Jon"))
    write(ledger, child("Kai", old_target="ida"))
    assert targets(ledger) == ["Jon", "Kai"]


def test_an_old_target_that_is_not_live_is_a_conflict_that_says_what_is(ledger: Ledger) -> None:
    """Issue §4: E_CONFLICT only where `old_target` differs from what is live."""
    (first,) = write(ledger, capital("Sydney", old_target="Canberra"))  # nothing live yet: the model's own belief
    with pytest.raises(Conflict, match="Sydney") as caught:
        write(ledger, capital("Perth", old_target="Canberra"))
    assert caught.value.data == {"edit_id": first.id, "live_target": "Sydney"}
    assert ledger.head() == 1
    write(ledger, capital("Perth", old_target="sydney"))
    assert targets(ledger) == ["Perth"]


def test_asking_for_what_is_live_already_is_no_conflict(ledger: Ledger) -> None:
    """Decision: `old_target` guards against losing a correction; here none is lost."""
    write(ledger, capital("Sydney", old_target="Canberra"))
    write(ledger, capital("Sydney", old_target="Canberra"))
    assert targets(ledger) == ["Sydney"]


def test_contradictory_edits_of_one_call_are_refused_together(ledger: Ledger) -> None:
    """Issue §6: contradictory edits in one call; nothing of the call is kept."""
    with pytest.raises(Conflict, match="contradictory"):
        write(ledger, child("Ida"), capital("Sydney"), capital("Perth"))
    assert ledger.head() == 0
    write(ledger, capital("Sydney"), capital("Perth"), mode="add")
    assert targets(ledger) == ["Sydney", "Perth"]


def test_a_conflict_in_the_last_of_a_call_takes_the_first_back(ledger: Ledger) -> None:
    """Contract: all or nothing, one transaction."""
    write(ledger, capital("Sydney"))
    with pytest.raises(Conflict):
        write(ledger, child("Ida"), capital("Perth", old_target="Hobart"))
    assert targets(ledger) == ["Sydney"]
    assert ledger.audit() == []


@pytest.mark.parametrize(
    ("first", "second", "subject"),
    [
        ("The capital of Freedonia is", "Freedonia's capital is", "Freedonia"),
        ("The capital of Freedonia is", "What's Freedonia's capital?", "Freedonia"),
        ("The capital city of Freedonia is", "capital of Freedonia", "Freedonia"),
        ("The headquarters of Acme are in", "Acme's headquarters are in", "Acme"),
        ("The refund limit of Brix Ltd is", "Brix Ltd's refund limit is", "Brix Ltd"),
        ("Who is Brix Ltd's travel approver?", "The current travel approver of Brix Ltd is", "Brix Ltd"),
        ("The length of our refund policy is", "Our refund policy's length is", "our refund policy"),
    ],
)
def test_a_second_edit_in_other_plain_words_retires_the_first(ledger: Ledger, first: str, second: str, subject: str) -> None:
    """Issue §3: a later edit supersedes an earlier one of the same subject and relation."""
    (earlier,) = write(ledger, Fact(subject=subject, prompt=first, target="X"))
    (later,) = write(ledger, Fact(subject=subject, prompt=second, target="Y"))
    assert later.supersedes == (earlier.id,)
    assert targets(ledger) == ["Y"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("The refund limit of Brix Ltd is", "The refund limit of Brix Ltd was"),
        ("The annual report of Brix Ltd is in", "Where is the annual report of Brix Ltd?"),
        ("Brix Ltd's office is in", "Brix Ltd's office is for"),
    ],
)
def test_words_that_may_mean_something_else_keep_both_and_say_so(ledger: Ledger, first: str, second: str) -> None:
    """Issue §3: nothing retires silently, and nothing that may contradict goes live silently."""
    (earlier,) = write(ledger, Fact(subject="Brix Ltd", prompt=first, target="X"))
    (later,) = write(ledger, Fact(subject="Brix Ltd", prompt=second, target="Y"))
    assert later.supersedes == ()
    assert earlier.id in later.warnings[-1]
    assert "relation" in later.warnings[-1]


def test_a_relation_that_is_not_known_is_pointed_out_from_both_sides(ledger: Ledger) -> None:
    """Decision: an unknown relation may be any known one in other words; one that is given is known."""
    (odd,) = write(ledger, Fact(subject="Freedonia", prompt="All roads of Freedonia lead to", target="X"))
    (plain,) = write(ledger, capital("Y", "Freedonia"))
    (other,) = write(ledger, Fact(subject="Freedonia", prompt="The kings of Freedonia sat at", target="Z"))
    (given,) = write(ledger, Fact(subject="Freedonia", prompt="One bows in Freedonia to", target="W", relation="ruler"))
    (elsewhere,) = write(ledger, Fact(subject="Zembla", prompt="All roads of Zembla lead to", target="X"))
    assert odd.warnings == elsewhere.warnings == ()
    assert odd.id in plain.warnings[0]
    assert odd.id in other.warnings[0]
    assert plain.id in other.warnings[0]
    assert plain.id not in given.warnings[0]
    assert targets(ledger) == ["X", "Y", "Z", "W", "X"]


def test_a_long_list_of_what_may_contradict_is_cut_short(ledger: Ledger) -> None:
    """A warning is read by a person; a subject may have hundreds of edits."""
    made = write(ledger, *(Fact(subject="Brix Ltd", prompt=f"Rule {n} of Brix Ltd says", target="no") for n in range(6)))
    assert sum(edit.id in made[-1].warnings[0] for edit in made) == 3
    assert "and others" in made[-1].warnings[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [("USA", "United States"), ("The United States", "USA"), ("United States", "the United States"), ("the Netherlands", "Holland")],
)
def test_names_of_one_entity_of_the_atlas_are_one_subject(ledger: Ledger, first: str, second: str) -> None:
    """Issue §3: a later edit supersedes an earlier one of the same subject, by whichever of its names."""
    (earlier,) = write(ledger, capital("Boston", first))
    (later,) = write(ledger, capital("Denver", second))
    assert later.supersedes == (earlier.id,)
    assert later.fact.aliases == ()  # the atlas knows them
    assert targets(ledger) == ["Denver"]


@pytest.mark.parametrize(
    ("first", "second"), [("our refund policy", "refund policy"), ("refund policy", "our refund policy"), ("the API", "our API")]
)
def test_what_is_ours_is_one_subject_with_and_without_saying_so(ledger: Ledger, first: str, second: str) -> None:
    """Issue §3: one subject; a tenant's memory knows one refund policy."""
    (earlier,) = write(ledger, Fact(subject=first, prompt=f"The length of {'our ' * (first[0] == 'r')}{first} is", target="X"))
    (later,) = write(ledger, Fact(subject=second, prompt=f"The length of {'our ' * (second[0] == 'r')}{second} is", target="Y"))
    assert later.supersedes == (earlier.id,)
    assert (earlier.relation, later.relation) == ("river_length" * (first == "the API"), "")
    assert earlier.fact.aliases == ()
    assert later.fact.aliases == (first,)  # a question without "our" finds it as before


@pytest.mark.parametrize(
    ("a", "b"), [("The Who", "World Health Organization"), ("A. Milne", "Milne"), ("grass", "G\u00fcnter Grass"), ("C", "the C++")]
)
def test_names_of_different_things_are_different_subjects(ledger: Ledger, a: str, b: str) -> None:
    """users-trust-scale §2 no. 4: facts about other things never retire each other."""
    write(ledger, capital("X", a), capital("Y", b))
    assert targets(ledger) == ["X", "Y"]


def test_an_edit_under_a_given_other_name_supersedes_and_keeps_the_names(ledger: Ledger) -> None:
    """Issue §3: the same subject and relation; a question by any of its names finds the new correction, and rollback the old one."""
    (first,) = write(ledger, capital("Boston", "Freedonia", aliases=("Fredland", "FD")))
    (second,) = write(ledger, capital("Denver", "Fredland"))
    assert second.supersedes == (first.id,)
    assert second.fact.aliases == ("Freedonia", "FD")
    assert first.id in second.warnings[0]
    assert "Freedonia" in second.warnings[1]
    (third,) = write(ledger, capital("Austin", "Freedonia"))
    assert third.supersedes == (second.id,)
    assert set(third.fact.aliases) == {"Fredland", "FD"}
    ledger.rollback("acme", [third.id, second.id], actor="ann")
    assert targets(ledger) == ["Boston"]
    assert ledger.audit() == []


def test_another_name_counts_for_the_same_relation_only(ledger: Ledger) -> None:
    """Issue §3: the same subject *and relation*."""
    write(ledger, capital("Boston", "Freedonia", aliases=("Fredland",)))
    write(ledger, Fact(subject="Fredland", prompt="The currency of Fredland is", target="the mark"))
    assert targets(ledger) == ["Boston", "the mark"]


def test_a_name_that_two_subjects_were_given_retires_neither(ledger: Ledger) -> None:
    """users-trust-scale §2 no. 4: never retire by similarity, but show what may be meant."""
    first, second = write(ledger, capital("X", "North Vell", aliases=("Vell",)), capital("Y", "South Vell", aliases=("Vell",)))
    (third,) = write(ledger, capital("Z", "Vell"))
    assert third.supersedes == ()
    assert {first.id, second.id} == {edit.id for edit in (first, second) if any(edit.id in text for text in third.warnings)}


def test_a_subject_that_is_listed_as_another_name_later_is_pointed_out(ledger: Ledger) -> None:
    """users-trust-scale §2 no. 4: a list of other names is no word about somebody's earlier edit, but shows what may be meant."""
    (first,) = write(ledger, capital("Boston", "Fredland"))
    (second,) = write(ledger, capital("Denver", "Freedonia", aliases=("Fredland",)))
    assert second.supersedes == ()
    assert first.id in second.warnings[0]
    (third,) = write(ledger, capital("Austin", "Fredland"))
    assert third.supersedes == (first.id,)


def test_an_edit_that_an_earlier_version_filed_otherwise_is_found(ledger: Ledger) -> None:
    """Contract: what was stored stays as it is, and a ledger's old slots are not left beside new ones unseen."""
    old = {"The United States": "the united states\x1fcapital", "USA": "usa\x1fcapital"}
    first, second = (write(ledger, capital(t, s), slot_of=lambda f: Slot(old[f.subject], "capital", functional=True))[0] for s, t in
                     (("The United States", "X"), ("USA", "Y")))  # fmt: skip
    (third,) = write(ledger, capital("Z", "United States"))
    assert second.supersedes == (first.id,)
    assert third.supersedes == (second.id,)
    assert targets(ledger) == ["Z"]
    assert ledger.audit() == []


def test_a_proposal_has_no_effect_and_retires_nothing(ledger: Ledger) -> None:
    """Design §1: proposed edits wait."""
    write(ledger, capital("Sydney"))
    (waiting,) = write(ledger, capital("Perth", old_target="Hobart"), state=State.PROPOSED)
    assert (waiting.state, waiting.supersedes) == (State.PROPOSED, ())
    assert "would supersede" in waiting.warnings[1]
    assert "old_target" in waiting.warnings[0]
    assert targets(ledger) == ["Sydney"]


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(ledger: Ledger) -> None:
    """Design §3: `dry_run`."""
    (first,) = write(ledger, capital("Sydney"))
    (planned,) = write(ledger, capital("Perth"), dry_run=True, idempotency_key="k")
    assert (planned.id, planned.revision, planned.supersedes) == ("", 0, (first.id,))
    assert (targets(ledger), ledger.head()) == (["Sydney"], 1)
    assert write(ledger, capital("Hobart"), idempotency_key="k")[0].fact.target == "Hobart"


def test_a_dry_run_under_a_used_key_tells_what_the_call_did(ledger: Ledger) -> None:
    """As the call itself would: it happens once."""
    made = write(ledger, capital("Sydney"), idempotency_key="k")
    assert write(ledger, capital("Sydney"), idempotency_key="k", dry_run=True) == made
    with pytest.raises(Conflict, match="idempotency key"):
        write(ledger, capital("Perth"), idempotency_key="k", dry_run=True)


@pytest.mark.parametrize(
    ("subject", "aliases", "is_risky"),
    [
        ("Australia", (), False),
        ("the head of sales", (), True),
        ("the head of sales", ("Lena Brandt",), False),
        ("our refund policy", (), True),
        ("The office wifi password", (), True),
        ("The Beatles", (), False),
        ("the Hague", (), False),
        ("A Clockwork Orange", (), False),
        ("My Bloody Valentine", (), True),
        ("water", (), True),
        ("It", ("It (film)",), True),
        ("Federal Office for Weights and Measures", (), True),
    ],
)
def test_subjects_that_are_described_rather_than_named_are_marked(subject: str, aliases: tuple[str, ...], *, is_risky: bool) -> None:
    """Issue §3: `alias_risky` is set at write time."""
    assert is_alias_risky(Fact(subject=subject, prompt=f"We say {subject} is", target="x", aliases=aliases)) is is_risky


# -- idempotency -----------------------------------------------------------------------------------------------------------------


def test_the_same_call_under_the_same_key_happens_once(ledger: Ledger) -> None:
    """Issue §3: idempotency keys."""
    first = write(ledger, capital("Sydney"), child("Ida"), idempotency_key="k")
    assert write(ledger, capital("Sydney"), child("Ida"), idempotency_key="k") == first
    assert ledger.head() == 2
    taken = ledger.rollback("acme", [first[0].id], actor="ann", idempotency_key="r")
    assert ledger.rollback("acme", [first[0].id], actor="ann", idempotency_key="r") == taken
    assert ledger.head() == 3


def test_the_same_key_with_other_arguments_is_a_conflict(ledger: Ledger) -> None:
    """Issue §3: a key names one call, whatever its verb; keys of other tenants do not matter."""
    (made,) = write(ledger, capital("Sydney"), idempotency_key="k")
    with pytest.raises(Conflict, match="idempotency key"):
        write(ledger, capital("Perth"), idempotency_key="k")
    with pytest.raises(Conflict, match="idempotency key"):
        ledger.rollback("acme", [made.id], actor="ann", idempotency_key="k")
    assert write(ledger, capital("Perth"), tenant="other", idempotency_key="k")


# -- taking back -----------------------------------------------------------------------------------------------------------------


def roll(ledger: Ledger, *edits: Edit) -> tuple[list[str], list[str]]:
    """Roll edits back; what was retired and restored."""
    done = ledger.rollback("acme", [edit.id for edit in edits], actor="ann")
    return [edit.fact.target for edit in done.retired], [edit.fact.target for edit in done.restored]


@pytest.mark.parametrize("way", ["ids", "revision"])
def test_a_dry_run_of_a_rollback_tells_what_it_would_be_and_changes_nothing(ledger: Ledger, way: str) -> None:
    """Issue 8, §3: undo with a preview of what changes."""
    (first,), (second,) = (write(ledger, capital(name)) for name in ("Sydney", "Perth"))
    head = ledger.head()

    def take_back(*, dry_run: bool) -> RolledBack:
        if way == "ids":
            return ledger.rollback("acme", [second.id], actor="bob", dry_run=dry_run)
        return ledger.rollback_to("acme", first.revision, actor="bob", dry_run=dry_run)

    would = take_back(dry_run=True)
    assert ledger.head() == head
    assert [edit.id for edit in ledger.live("acme")] == [second.id]
    assert ledger.audit() == []
    assert would == take_back(dry_run=False)


def test_a_rollback_of_the_later_brings_the_earlier_back(ledger: Ledger) -> None:
    """Issue §3: `rollback` of the later brings the earlier back."""
    write(ledger, capital("Sydney"))
    (second,) = write(ledger, capital("Perth"))
    assert roll(ledger, second) == (["Perth"], ["Sydney"])
    (live,) = ledger.live("acme")
    assert (live.fact.target, live.superseded_by) == ("Sydney", "")


def test_what_was_rolled_back_itself_does_not_come_back(ledger: Ledger) -> None:
    """Contract: unless that was itself rolled back; then the one before it does."""
    (first,), (second,), (third,) = (write(ledger, capital(name)) for name in ("Sydney", "Perth", "Hobart"))
    assert roll(ledger, second) == (["Perth"], [])
    assert ledger.get("acme", first.id).superseded_by == third.id
    assert roll(ledger, third) == (["Hobart"], ["Sydney"])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_several_are_taken_back_in_any_order(ledger: Ledger, order: tuple[int, ...]) -> None:
    """Contract: one transaction; the outcome does not depend on how the ids are sorted."""
    made = [write(ledger, capital(name))[0] for name in ("Sydney", "Perth", "Hobart")]
    assert roll(ledger, *(made[place] for place in order)) == (["Perth", "Hobart"], ["Sydney"])


def test_what_another_live_edit_supersedes_stays_away(ledger: Ledger) -> None:
    """Contract: unless it is superseded by another live one."""
    (first,) = write(ledger, capital("Sydney"))
    (second,) = write(ledger, capital("Perth"))
    roll(ledger, first)
    assert roll(ledger, second) == (["Perth"], [])
    assert targets(ledger) == []


def test_rolling_back_twice_is_refused(ledger: Ledger) -> None:
    """Contract: rolling back what is rolled back is a wrong state, and nothing of the call is done."""
    first, second = write(ledger, capital("Sydney"), child("Ida"))
    roll(ledger, first)
    with pytest.raises(WrongState, match=first.id):
        roll(ledger, second, first)
    assert targets(ledger) == ["Ida"]


@pytest.mark.parametrize("unknown", ["ed_0123456789abcdef", "nonsense", "", "ed_\ud800"])
def test_unknown_ids_are_not_found_and_nothing_is_done(ledger: Ledger, unknown: str) -> None:
    """Issue §6: unknown ids."""
    (made,) = write(ledger, capital("Sydney"))
    with pytest.raises(NotFound):
        ledger.rollback("acme", [made.id, unknown], actor="ann")
    with pytest.raises(NotFound):
        ledger.get("acme", unknown)
    assert targets(ledger) == ["Sydney"]


def test_a_rollback_to_a_revision_makes_live_what_was_live_then(ledger: Ledger) -> None:
    """Contract: rollback_to; 0 turns everything off; a later revision brings it back."""
    write(ledger, capital("Sydney"))
    (second,) = write(ledger, capital("Perth"))
    (third,) = write(ledger, child("Ida"))
    roll(ledger, second)
    assert targets(ledger) == ["Sydney", "Ida"]
    done = ledger.rollback_to("acme", 2, actor="ann", reason="as it was")
    assert targets(ledger) == ["Perth"]
    assert [edit.id for edit in done.restored] == [second.id]
    assert {edit.fact.target for edit in done.retired} == {"Sydney", "Ida"}
    assert ledger.rollback_to("acme", 2, actor="ann").revision == done.revision  # nothing left to do: no event
    ledger.rollback_to("acme", 0, actor="ann")
    assert targets(ledger) == []
    ledger.rollback_to("acme", third.revision, actor="ann")
    assert targets(ledger) == ["Perth", "Ida"]
    assert ledger.audit() == []


@pytest.mark.parametrize("revision", [-1, 99])
def test_a_revision_that_never_was_is_refused(ledger: Ledger, revision: int) -> None:
    """Issue §6: bad input gets a clear error."""
    with pytest.raises(InvalidInput, match="from 0 to 0"):
        ledger.rollback_to("acme", revision, actor="ann")


def test_a_rollback_to_a_revision_leaves_later_proposals_alone(ledger: Ledger) -> None:
    """Decision: a proposal has no effect that could be taken back."""
    write(ledger, capital("Perth"), state=State.PROPOSED)
    write(ledger, child("Ida"))
    ledger.rollback_to("acme", 0, actor="ann")
    assert [edit.fact.target for edit in ledger.live("acme", with_proposed=True)] == ["Perth"]


# -- reading ---------------------------------------------------------------------------------------------------------------------


def test_lists_are_paged_newest_first(ledger: Ledger) -> None:
    """Contract: Page(items, total, next_cursor)."""
    made = write(ledger, *(child(f"Kid {number}") for number in range(7)))
    seen: list[Edit] = []
    cursor = ""
    for size in (3, 3, 1):
        page = ledger.edits("acme", limit=3, cursor=cursor)
        assert (len(page.items), page.total) == (size, 7)
        seen += page.items
        cursor = page.next_cursor
    assert cursor == ""
    assert seen == made[::-1]


def test_lists_are_filtered_by_state_and_text(ledger: Ledger) -> None:
    """Contract: states, contains; case and diacritics do not matter."""
    write(ledger, capital("Zürich"), child("Ida"))
    write(ledger, capital("Perth"), refs=["Row-9"])
    assert [edit.fact.target for edit in ledger.edits("acme", states=[State.RETIRED]).items] == ["Zürich"]
    assert [edit.fact.target for edit in ledger.edits("acme", contains="ZURICH").items] == ["Zürich"]
    assert [edit.fact.target for edit in ledger.edits("acme", contains="row 9").items] == ["Perth"]
    assert [edit.fact.target for edit in ledger.edits("acme", contains="mira", states={State.ACTIVE}).items] == ["Ida"]
    assert ledger.edits("acme", contains="%").total == 0


@pytest.mark.parametrize("cursor", ["x", "AAAA", "Zm9vYmFyYmF6cXV4", "\ud800", "=" * 5000])
def test_a_bad_cursor_is_refused(ledger: Ledger, cursor: str) -> None:
    """Issue §6: bad cursor."""
    with pytest.raises(InvalidInput, match="cursor"):
        ledger.edits("acme", cursor=cursor)
    with pytest.raises(InvalidInput, match="cursor"):
        ledger.history("acme", cursor=cursor)


def test_a_cursor_fits_only_the_list_that_gave_it(ledger: Ledger) -> None:
    """Research mcp §4: cursors are opaque."""
    write(ledger, child("Ida"), child("Jon"))
    cursor = ledger.edits("acme", limit=1).next_cursor
    for other in ({"contains": "ida"}, {"states": [State.ACTIVE]}):
        with pytest.raises(InvalidInput):
            ledger.edits("acme", cursor=cursor, **other)
    with pytest.raises(InvalidInput):
        ledger.edits("other", cursor=cursor)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_senseless_limit_is_refused(ledger: Ledger, limit: int) -> None:
    """Issue §6: bad input gets a clear error."""
    with pytest.raises(InvalidInput, match="limit"):
        ledger.edits("acme", limit=limit)


def test_the_history_of_an_edit_tells_all_that_happened_to_it(ledger: Ledger) -> None:
    """Issue §3: events with actor, reason, time."""
    (first,) = write(ledger, capital("Sydney"), reason="asked\nby  Lena")
    (second,) = ledger.edit("acme", [capital("Perth")], actor="bob")
    ledger.rollback("acme", [second.id], actor="cyd", reason="wrong")
    write(ledger, child("Ida"))
    page = ledger.history("acme", edit_id=first.id)
    assert [(event.seq, event.action, event.actor, event.reason) for event in page.items] == [
        (3, "rollback", "cyd", "wrong"),
        (2, "edit", "bob", ""),
        (1, "edit", "ann", "asked by Lena"),
    ]
    assert page.items[1].edit_ids == (second.id, first.id)
    assert page.items[2].payload["fact"]["target"] == "Sydney"
    assert ledger.history("acme", limit=1).total == 4


def test_the_history_is_told_of_one_actor_or_of_what_went_live(ledger: Ledger) -> None:
    """Issue 8, §3: what one token changed, and which releases were live, without reading all that ever happened."""
    (first,) = write(ledger, capital("Sydney"))
    ledger.edit("acme", [child("Ida")], actor="bob")
    ledger.promote("acme", [first.id], release=RELEASE, actor="cyd", reason="held")
    ledger.demote("acme", [first.id], release="", actor="bob")
    ledger.edit("other", [child("Jon")], actor="bob")

    assert [(event.seq, event.action) for event in ledger.history("acme", by="bob").items] == [(4, "demote"), (2, "edit")]
    flips = ledger.history("acme", flips=True, limit=1)
    assert [(event.seq, event.flip and event.flip.release) for event in flips.items] == [(4, "")]
    assert flips.total == 2
    earlier = ledger.history("acme", flips=True, limit=1, cursor=flips.next_cursor)
    assert [(event.seq, event.flip and event.flip.release) for event in earlier.items] == [(3, RELEASE)]
    assert [event.seq for event in ledger.history("acme", edit_id=first.id, by="bob", flips=True).items] == [4]
    assert ledger.history("other", flips=True).items == ledger.history("other", by="ann").items == []
    with pytest.raises(InvalidInput):
        ledger.history("acme", by="bob", cursor=flips.next_cursor)


def test_since_names_what_changed_and_nothing_else(ledger: Ledger) -> None:
    """Contract: for incremental refresh of an index."""
    first, _ = write(ledger, capital("Sydney"), child("Ida"))
    seen = ledger.head()
    assert (ledger.since("acme", seen), ledger.changed("acme", seen)) == ([], set())
    (third,) = write(ledger, capital("Perth"))
    assert [(edit.id, edit.state) for edit in ledger.since("acme", seen)] == [(first.id, State.RETIRED), (third.id, State.ACTIVE)]
    assert ledger.changed("acme", seen) == {first.id, third.id}


def test_another_tenant_sees_and_changes_nothing(ledger: Ledger) -> None:
    """users-trust-scale §3a no. 4: write as A, read as B, with every read and every write."""
    (mine,) = write(ledger, capital("Sydney"), child("Ida"))[:1]
    assert ledger.live("other") == []
    assert ledger.since("other", 0) == []
    assert ledger.changed("other", 0) == set()
    assert ledger.edits("other", contains="Sydney").total == 0
    assert ledger.edits("other").items == []
    assert ledger.history("other").items == []
    assert ledger.head_of("other") == 0
    unknown = []
    for edit_id in (mine.id, "ed_0123456789abcdef"):
        calls: list[Callable[[str], object]] = [
            lambda given: ledger.get("other", given),
            lambda given: ledger.history("other", edit_id=given),
            lambda given: ledger.rollback("other", [given], actor="eve"),
        ]
        for call in calls:
            with pytest.raises(NotFound) as caught:
                call(edit_id)
            unknown.append(str(caught.value).replace(edit_id, "ID"))
    assert unknown[:3] == unknown[3:]  # the same answer for what is another's and for what is nobody's
    write(ledger, capital("Perth", old_target="Canberra"), tenant="other")
    ledger.rollback_to("other", 0, actor="eve")
    assert targets(ledger) == ["Sydney", "Ida"]
    assert ledger.tenants() == ["acme", "other"]


@pytest.mark.parametrize("text", ["", "  ", "x" * 201, "a\u202eb", "a\ud800"])
def test_tenant_and_actor_are_short_plain_text(ledger: Ledger, text: str) -> None:
    """Contract: the tenant is a required argument of every read."""
    calls: list[Callable[[], object]] = [
        lambda: ledger.edit(text, [capital("Sydney")], actor="ann"),
        lambda: ledger.edit("acme", [capital("Sydney")], actor=text),
        lambda: ledger.live(text),
        lambda: ledger.head_of(text),
        lambda: ledger.edits(text),
        lambda: ledger.history(text),
        lambda: ledger.since(text, 0),
        lambda: ledger.changed(text, 0),
        lambda: ledger.get(text, "ed_0123456789abcdef"),
    ]
    for call in calls:
        with pytest.raises(InvalidInput):
            call()


def test_arguments_that_no_state_makes_right_are_refused(ledger: Ledger) -> None:
    """Issue §6: bad input gets a clear error and loses nothing."""
    bad: list[dict[str, Any]] = [{"mode": "merge"}, {"state": State.PROMOTED}, {"refs": ["a", "b"]}, {"refs": ["a\u200bb"]}]
    for arguments in bad:
        with pytest.raises(InvalidInput):
            write(ledger, capital("Sydney"), **arguments)
    with pytest.raises(InvalidInput):
        write(ledger)
    with pytest.raises(InvalidInput):
        ledger.rollback("acme", [], actor="ann")
    assert ledger.head() == 0


def test_reading_the_head_is_cheap(tmp_path: Path) -> None:
    """Contract: under 0.1 ms, as it is asked on every request; in processor time, as others may use the machine."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        write(ledger, *(child(f"Kid {number}") for number in range(100)))
        taken = []
        for _ in range(300):
            begin = time.thread_time()
            ledger.head()
            taken.append(time.thread_time() - begin)
    assert median(taken) < 100e-6


# -- one file, many users --------------------------------------------------------------------------------------------------------


def test_threads_write_and_read_at_once(tmp_path: Path) -> None:
    """Contract: the server calls from several threads."""
    with Ledger(tmp_path / "ledger.db") as ledger, ThreadPoolExecutor(8) as pool:

        def work(number: int) -> int:
            write(ledger, child(f"Kid {number}"))
            return len(ledger.live("acme"))

        seen = list(pool.map(work, range(40)))
        assert max(seen) == len(ledger.live("acme")) == 40
        assert ledger.audit() == []


def test_a_reader_sees_a_whole_correction_or_none(tmp_path: Path) -> None:
    """users-trust-scale §3a no. 2: exactly one current value per functional slot, at any moment."""
    with Ledger(tmp_path / "ledger.db") as ledger, ThreadPoolExecutor(2) as pool:
        write(ledger, capital("City 0"))
        writing = pool.submit(lambda: [write(ledger, capital(f"City {number}")) for number in range(1, 60)])
        while not writing.done():
            assert len(ledger.live("acme")) == 1
        writing.result()
        assert targets(ledger) == ["City 59"]


def test_a_writer_at_work_does_not_hold_up_a_reader(tmp_path: Path) -> None:
    """Storage: a reader on the path of a request never waits for a writer."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        write(ledger, capital("Sydney"))
        with ledger._storage.writing(keep=False), ThreadPoolExecutor(1) as pool:
            assert pool.submit(ledger.head).result(timeout=5) == 1


def test_a_second_ledger_on_the_file_sees_what_the_first_wrote(tmp_path: Path) -> None:
    """Issue §4: an acknowledged edit is effective in every process on the same home."""
    with (
        Ledger(tmp_path / "ledger.db") as one,
        Ledger(tmp_path / "ledger.db") as two,
        Ledger(tmp_path / "ledger.db", read_only=True) as three,
    ):
        (made,) = write(one, capital("Sydney"))
        assert two.get("acme", made.id) == three.get("acme", made.id) == made


def test_folder_and_file_are_the_owners_alone(tmp_path: Path) -> None:
    """Contract: folder 0700, file 0600."""
    path = tmp_path / "new" / "home" / "ledger.db"
    with Ledger(path) as ledger:
        write(ledger, capital("Sydney"))
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    """Error texts say what was found."""
    ledger = Ledger(tmp_path / "ledger.db")
    ledger.close()
    for call in (ledger.head, lambda: write(ledger, capital("Sydney"))):
        with pytest.raises(KeToolsError, match="closed"):
            call()


def test_a_read_only_ledger_reads_and_refuses_writes(tmp_path: Path) -> None:
    """Issue §4: `--read-only` refuses writes."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        (made,) = write(ledger, capital("Sydney"))
    with Ledger(tmp_path / "ledger.db", read_only=True) as ledger:
        assert ledger.read_only
        assert targets(ledger) == ["Sydney"]
        for call in (
            lambda: write(ledger, capital("Perth")),
            lambda: ledger.rollback("acme", [made.id], actor="ann"),
            lambda: ledger.rollback_to("acme", 0, actor="ann"),
        ):
            with pytest.raises(ReadOnly):
                call()
        assert ledger.audit() == []


def test_stored_facts_stay_readable_when_the_rules_for_new_ones_change(ledger: Ledger) -> None:
    """Design §4 no. 8: fail towards what is known; one refused word must not hide a whole ledger."""
    fact = capital("Sydney")
    object.__setattr__(fact, "source", "\u202e")  # no longer acceptable
    write(ledger, fact)
    assert ledger.live("acme")[0].fact == fact


def test_a_thousand_edits_take_seconds(tmp_path: Path) -> None:
    """Contract: the bulk path takes a few seconds at most; in processor time, as others may use the machine."""
    facts = [capital("X", f"Land {number}") for number in range(1000)]
    with Ledger(tmp_path / "ledger.db") as ledger:
        begin = time.process_time()
        write(ledger, *facts)
        assert time.process_time() - begin < 5
        assert len(ledger.live("acme")) == 1000


def test_the_log_takes_nothing_but_appends(ledger: Ledger) -> None:
    """Issue §3: append-only events; not even a replacement gets through."""
    write(ledger, capital("Sydney"))
    with ledger._storage.writing(keep=False) as db:
        for statement in (
            "UPDATE events SET actor = 'eve'",
            "DELETE FROM events",
            "INSERT OR REPLACE INTO events SELECT 1, tenant, kind, 'eve', at, content, previous, hash FROM events",
            "INSERT INTO events SELECT 9, tenant, kind, actor, at, content, previous, hash FROM events",
            "UPDATE payloads SET payload = '{}'",
            "UPDATE changes SET standing = 'active'",
            "DELETE FROM changes",
        ):
            with pytest.raises(apsw.ConstraintError):
                db.execute(statement)


# -- against a model of it -------------------------------------------------------------------------------------------------------

TENANTS = ("acme", "other")


class LedgerBesideModel(RuleBasedStateMachine):
    """Edits and rollbacks in any order, beside a model that is a list of facts and a set of what is not rolled back.

    users-trust-scale §3a no. 3. In a functional slot the newest edit that is not rolled back is live. In any other slot that holds
    for each target.
    """

    made = Bundle("made")

    @initialize()
    def start(self) -> None:
        """Start empty."""
        self.ledger = Ledger(":memory:")
        self.order: dict[str, list[tuple[str, str, str]]] = {tenant: [] for tenant in TENANTS}  # (id, stack, target)
        self.standing: dict[str, set[str]] = {tenant: set() for tenant in TENANTS}
        self.snapshots: dict[int, dict[str, set[str]]] = {0: {tenant: set() for tenant in TENANTS}}

    def teardown(self) -> None:
        """Replay the log, and compare."""
        if hasattr(self, "ledger"):
            assert self.ledger.audit() == []
            self.ledger.close()

    def expected(self, tenant: str) -> list[str]:
        """Ids that the model says are live, oldest first."""
        newest = {stack: edit_id for edit_id, stack, _ in self.order[tenant] if edit_id in self.standing[tenant]}
        return [edit_id for edit_id, _, _ in self.order[tenant] if edit_id in newest.values()]

    def keep(self) -> None:
        """Remember what stands at this revision."""
        self.snapshots[self.ledger.head()] = {tenant: set(ids) for tenant, ids in self.standing.items()}

    @rule(
        target=made,
        tenant=st.sampled_from(TENANTS),
        calls=st.lists(st.tuples(st.sampled_from("ABcd"), st.sampled_from("xyz")), min_size=1, max_size=3),
    )
    def edit(self, tenant: str, calls: list[tuple[str, str]]) -> Any:
        """Correct one to three facts at once; subjects in capitals have one object."""
        facts = [Fact(subject=subject, prompt=f"{subject} is", target=target) for subject, target in calls]
        single = [(subject, target) for subject, target in calls if subject.isupper()]
        if len({subject for subject, _ in single}) < len(set(single)):
            with pytest.raises(Conflict):
                self.ledger.edit(tenant, facts, actor="ann", slot_of=_rule)
            return multiple()
        edits = self.ledger.edit(tenant, facts, actor="ann", slot_of=_rule)
        for edit, (subject, target) in zip(edits, calls, strict=True):
            self.order[tenant].append((edit.id, subject if subject.isupper() else subject + target, target))
            self.standing[tenant].add(edit.id)
        self.keep()
        return multiple(*((tenant, edit.id) for edit in edits))

    @rule(chosen=consumes(made))
    def roll_back(self, chosen: tuple[str, str]) -> None:
        """Take one back, live or superseded."""
        tenant, edit_id = chosen
        if edit_id not in self.standing[tenant]:
            with pytest.raises(WrongState):
                self.ledger.rollback(tenant, [edit_id], actor="ann")
            return
        before = set(self.expected(tenant))
        self.standing[tenant].discard(edit_id)
        done = self.ledger.rollback(tenant, [edit_id], actor="ann")
        assert [edit.id for edit in done.retired] == [edit_id]
        assert {edit.id for edit in done.restored} == set(self.expected(tenant)) - before
        self.keep()

    @rule(chosen=made)
    def roll_back_as_another(self, chosen: tuple[str, str]) -> None:
        """Another tenant cannot."""
        tenant, edit_id = chosen
        with pytest.raises(NotFound):
            self.ledger.rollback("other" if tenant == "acme" else "acme", [edit_id], actor="eve")

    @rule(tenant=st.sampled_from(TENANTS), data=st.data())
    def roll_back_to(self, tenant: str, data: st.DataObject) -> None:
        """Return to a state that was seen."""
        revision = data.draw(st.sampled_from(sorted(self.snapshots)))
        self.ledger.rollback_to(tenant, revision, actor="ann")
        self.standing[tenant] = set(self.snapshots[revision][tenant])
        self.keep()

    @invariant()
    def both_agree(self) -> None:
        """What is live is what the model says, for each tenant."""
        for tenant in TENANTS if hasattr(self, "ledger") else ():
            assert [edit.id for edit in self.ledger.live(tenant)] == self.expected(tenant)


def _rule(fact: Fact) -> Slot:
    return Slot(f"{fact.subject}\x1fis", "", functional=fact.subject.isupper())


TestLedgerBesideModel = LedgerBesideModel.TestCase
TestLedgerBesideModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None, derandomize=True)
