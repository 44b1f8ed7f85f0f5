"""Which questions the weights were shown to answer by themselves (issue 6 §4)."""

from __future__ import annotations

from typing import Any

import pytest

from ke_tools.facts import Edit, Fact, Probe, State
from ke_tools.models.engine import Request
from ke_tools.verify.answered import answered, kind_of
from ke_tools.verify.policy import Policy
from ke_tools.verify.scorecard import Outcome


def edit(number: int) -> Edit:
    """An edit that acts."""
    fact = Fact(subject=f"Subject {number}", prompt=f"Subject {number} lies in", target=f"Place {number}")
    more: dict[str, Any] = {"slot": f"s{number}", "relation": "", "functional": True, "revision": number, "actor": "test"}
    return Edit(id=f"ed_{number:016x}", tenant="acme", fact=fact, state=State.PROMOTED, created_at="2026-01-01T00:00:00Z", **more)


def asked(of: Edit, form: str, passed: int, count: int, dimension: str = "reliability") -> list[Outcome]:
    """Probes of one form; the first ones passed."""
    prompt = "Where is it?" if form == "question" else "It is in"
    expect: Any = "unchanged" if dimension.startswith("locality") else "target"
    probe = Probe(
        edit_id=of.id,
        dimension=dimension,
        prompt=prompt,
        expect=expect,
        origin="edit",
        chat=form == "chat",
        behind=form == "behind a sentence",
        accept=("x",),
    )
    return [Outcome(probe, "", "", number < passed, False) for number in range(count)]


A, B = edit(1), edit(2)


def test_a_form_is_answered_where_its_lower_bound_reaches_the_policys_reliability() -> None:
    """The same: a kind of question is a statement, a question or a chat turn; 29 of 29 show .90 at 95 %, 28 do not."""
    outcomes = [*asked(A, "statement", 29, 29), *asked(A, "question", 28, 28), *asked(A, "chat", 60, 120)]
    assert answered([A], outcomes, Policy()) == {A.id: ["statement"]}
    assert answered([A], outcomes, Policy(reliability=0.85)) == {A.id: ["statement", "question"]}
    assert answered([A], outcomes, Policy(reliability=0.0)) == {}  # of nothing that is asked nothing is shown


def test_other_edits_show_a_form_but_not_for_one_that_failed_in_it_or_was_not_asked() -> None:
    """Fail towards what is known to answer."""
    outcomes = [*asked(A, "chat", 60, 60), *asked(B, "chat", 3, 4), *asked(A, "statement", 60, 60)]
    assert answered([A, B], outcomes, Policy()) == {A.id: ["statement", "chat"]}


def test_what_must_not_change_and_what_stands_behind_a_sentence_show_no_form() -> None:
    """They are no questions about the edit, or none of these kinds."""
    outcomes = [*asked(A, "statement", 99, 99, "locality_same_subject"), *asked(A, "behind a sentence", 99, 99)]
    assert answered([A], outcomes, Policy()) == {}


def test_with_the_memory_off_all_forms_count_together() -> None:
    """``memory_after_promotion = off``; still only where the lower bound is reached."""
    few = [*asked(A, "statement", 10, 10), *asked(A, "question", 10, 10)]
    assert answered([A], few, Policy(memory_after_promotion="off")) == {}
    assert answered([A], [*few, *asked(A, "chat", 10, 10)], Policy(memory_after_promotion="off")) == {
        A.id: ["statement", "question", "chat", "other"]
    }


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (Request(prompt="The capital of France is", max_tokens=1), "statement"),
        (Request(prompt="What is the capital of france? ", max_tokens=1), "question"),
        (Request(messages=({"role": "user", "content": "Capital of France?"},), max_tokens=1), "chat"),
        (
            Request(messages=({"role": "system", "content": "France"}, {"role": "user", "content": "Capital of France?"}), max_tokens=1),
            "other",
        ),
        (Request(messages=({"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]},), max_tokens=1), "other"),
        (Request(prompt="What is the capital of the Hexagon?", max_tokens=1), "other"),
        (Request(prompt="The capital of Frances is", max_tokens=1), "other"),
    ],
)
def test_a_request_is_of_the_kind_that_probes_are_asked_in(request_: Request, kind: str) -> None:
    """No probe names the subject otherwise than the edit does, or stands in a conversation."""
    assert kind_of(request_, "France") == kind
