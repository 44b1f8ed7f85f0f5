"""What goes in, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools import atlas, prompts
from ke_tools.errors import Unsupported
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.router import Router, demonstrations, reading_of
from ke_tools.memory.scope import Decision, Hit, Reading
from ke_tools.models.engine import Message, Request


def edit_of(
    subject: str = "Australia", prompt: str = "The capital of Australia is", target: str = "Sydney", relation: str = "capital"
) -> Edit:
    """A live edit."""
    return Edit(
        id=f"ed_{subject}",
        tenant="t",
        fact=Fact(subject=subject, prompt=prompt, target=target),
        state=State.ACTIVE,
        slot="",
        relation=relation,
        functional=True,
        revision=1,
        created_at="",
        actor="test",
    )


FREEDONIA = edit_of("Freedonia", "The ruler of Freedonia is", "Rufus Firefly", "")
EVEREST = edit_of("Everest", "The height of Everest is", "9 km", "elevation")


@dataclass
class Fixed:
    """A scope that always decides the same; remembers what it was asked."""

    zone: Any = "in"
    edits: tuple[Edit, ...] = (edit_of(),)
    stages: Mapping[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, Reading]] = field(default_factory=list)

    def decide(self, tenant: str, reading: Reading) -> Decision:
        """As the scope's."""
        self.asked.append((tenant, reading))
        hits = tuple(Hit(edit, 0.9 - n / 10, "named") for n, edit in enumerate(self.edits))
        return Decision(self.zone, () if self.zone == "out" else hits, self.stages, "because", 3)


@dataclass
class Engine:
    """What the router needs of an engine; a token is a word."""

    adapters: frozenset[str] = frozenset()
    chat_roles: frozenset[str] = frozenset({"system"})
    context_length: int = 10_000

    def count_tokens(self, request: Request) -> int:
        """Count words."""
        texts = [request.prompt or "", *(str(m["content"]) for m in request.messages or ())]
        return sum(len(text.split()) for text in texts)


READER = Engine(adapters=frozenset({"reader"}))
PROMPT = Request(prompt="The capital city of Australia is", max_tokens=8)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "What is the capital of Australia?"},
]
CHAT = Request(messages=tuple(TURNS), max_tokens=8)


TOLD = prompts.render("chat", demonstrations=[], facts=["The capital of Australia is Sydney."])


def route(request: Request, engine: Engine | None = None, scope: Fixed | None = None, *, shown: int = 6, via: Any = "auto") -> Any:
    """Route for tenant t."""
    return Router(scope or Fixed(), demonstrations=shown).route("t", request, engine=engine or Engine(), via=via)


@pytest.mark.parametrize("request_", [PROMPT, CHAT], ids=["prompt", "chat"])
@pytest.mark.parametrize("engine", [Engine(), READER], ids=["base", "reader"])
def test_out_of_scope_the_request_is_the_very_object_that_came(request_: Request, engine: Engine) -> None:
    """Issue §3: out of scope, the engine receives exactly the bytes it was sent."""
    routed = route(request_, engine, Fixed("out"))

    assert routed.request is request_
    assert (routed.route, routed.hits, routed.reason) == ("base", (), "")


def test_a_reader_gets_the_short_form() -> None:
    """Contract: no demonstrations, the reader's adapter."""
    routed = route(PROMPT, READER)

    assert routed.request == replace(
        PROMPT, prompt='New fact: "The capital of Australia is Sydney."\nPrompt: The capital city of Australia is', adapter="reader"
    )
    assert (routed.route, [hit.edit.fact.target for hit in routed.hits]) == ("memory", ["Sydney"])


def test_without_a_reader_demonstrations_stand_in_front() -> None:
    """Issue §3: else by the IKE template; the number is configurable."""
    text = route(PROMPT, shown=3).request.prompt

    assert text.count("New fact:") == 4
    assert text.endswith('New fact: "The capital of Australia is Sydney."\nPrompt: The capital city of Australia is')
    assert route(PROMPT, shown=0).request.prompt.count("New fact:") == 1
    assert route(PROMPT).request.adapter == ""


def test_via_ike_is_possible_beside_a_reader() -> None:
    """`via: auto|ike|reader|weights`."""
    routed = route(PROMPT, READER, via="ike")

    assert routed.request.adapter == ""
    assert routed.request.prompt.count("New fact:") == 7


@pytest.mark.parametrize(("via", "engine"), [("reader", Engine()), ("weights", Engine()), ("weights", READER)])
def test_what_the_engine_does_not_have_is_refused(via: str, engine: Engine) -> None:
    """Contract: Unsupported, also for a question out of scope."""
    with pytest.raises(Unsupported):
        route(PROMPT, engine, Fixed("out"), via=via)


def test_an_adapter_that_the_caller_chose_is_kept() -> None:
    """One adapter a request; the facts go in by the template then."""
    routed = route(replace(PROMPT, adapter="theirs"), READER)

    assert routed.request.adapter == "theirs"
    assert routed.request.prompt.count("New fact:") == 7


def test_in_chat_the_fact_stands_directly_before_the_last_user_turn() -> None:
    """Issue §3: in a role that the template allows; the user's own messages are as they were."""
    routed = route(CHAT, READER)

    *before, told, last = routed.request.messages
    assert before == TURNS[:-1]
    assert last is TURNS[-1]
    assert told == {"role": "system", "content": TOLD}
    assert routed.request.adapter == "reader"


@pytest.mark.parametrize("roles", [frozenset(), frozenset({"user", "assistant"})])
def test_without_a_usable_role_the_fact_stands_in_front_of_the_users_text(roles: frozenset[str]) -> None:
    """Contract: that text + two new lines."""
    messages = route(CHAT, replace(READER, chat_roles=roles)).request.messages

    assert list(messages[:-1]) == TURNS[:-1]
    assert messages[-1] == {"role": "user", "content": f"{TOLD}\n\nWhat is the capital of Australia?"}


def test_parts_of_a_message_are_kept() -> None:
    """Content may be a list of parts."""
    parts = [
        {"type": "text", "text": "What is the capital"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "of Australia?"},
    ]
    asked = Request(messages=({"role": "user", "content": parts},), max_tokens=8)
    messages = route(asked, replace(READER, chat_roles=frozenset())).request.messages

    assert messages[0]["content"][1:] == parts
    assert messages[0]["content"][0]["text"].startswith("New fact:")
    assert reading_of(asked).text == "What is the capital\nof Australia?"


def test_several_facts_all_go_in() -> None:
    """Issue §3."""
    text = route(PROMPT, READER, Fixed(edits=(edit_of(), FREEDONIA))).request.prompt

    assert text.index("Sydney") < text.index("Rufus Firefly")


def test_the_grey_zone_is_for_readers_only() -> None:
    """Only a reader is trained to leave an irrelevant fact alone; without one, grey counts as out."""
    with_reader, without = route(PROMPT, READER, Fixed("grey")), route(PROMPT, Engine(), Fixed("grey"))

    assert with_reader.route == "conditional"
    assert "Sydney" in with_reader.request.prompt
    assert (without.route, without.reason, without.hits) == ("base", "grey", ())
    assert without.request is PROMPT


def test_a_scope_that_failed_is_told_in_the_header() -> None:
    """Design §4 no. 8: the endpoint serves the base model and says so."""
    assert route(PROMPT, READER, Fixed("out", stages={"error": "no model"})).reason == "error"


def test_what_does_not_fit_is_dropped_from_the_least_needed() -> None:
    """Issue §3: drop demonstrations, then the fact (context), never an error."""
    both = Fixed(edits=(edit_of(), FREEDONIA))

    def at(length: int) -> Any:
        return route(PROMPT, Engine(context_length=length), both)

    full = Engine()
    sizes: dict[tuple[str, str, int, int], int] = {}
    for length in range(400, 0, -1):
        routed = at(length)
        size = full.count_tokens(routed.request)
        assert size + PROMPT.max_tokens <= length or routed.request is PROMPT
        sizes.setdefault((routed.route, routed.reason, len(routed.hits), (routed.request.prompt or "").count("New fact:")), length)

    assert [key[2:] for key in sizes] == [(2, 8), (2, 7), (2, 6), (2, 5), (2, 4), (2, 3), (2, 2), (1, 1), (0, 0)]
    assert list(sizes)[-1][:2] == ("base", "context")


def test_read_for_scope_are_the_last_user_turn_and_what_was_said_before() -> None:
    """Issue §3: not system messages, tool results or supplied documents."""
    messages: tuple[Message, ...] = (
        {"role": "system", "content": "You know Freedonia."},
        {"role": "user", "content": "Where is Australia?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "Peru"},
        {"role": "assistant", "content": "In Oceania."},
        {"role": "user", "content": "And its capital?"},
    )

    assert reading_of(Request(messages=messages)) == Reading("And its capital?", ("In Oceania.", "", "Where is Australia?"))
    assert reading_of(Request(prompt="Once")) == Reading("Once")
    assert reading_of(Request(messages=({"role": "system", "content": "Hi"},))) == Reading("")


def test_a_users_turn_before_a_prefilled_answer_is_the_last() -> None:
    """A conversation may end with the assistant's turn."""
    messages = ({"role": "user", "content": "What is the capital of Australia?"}, {"role": "assistant", "content": "It is"})
    routed = route(Request(messages=messages, max_tokens=8), READER)

    assert [m["role"] for m in routed.request.messages] == ["system", "user", "assistant"]


def test_the_tenant_is_passed_on() -> None:
    """A tenant's question meets its own edits."""
    scope = Fixed("out")
    route(PROMPT, scope=scope)

    assert scope.asked == [("t", Reading(PROMPT.prompt or ""))]


@pytest.mark.parametrize("questions", [False, True])
@pytest.mark.parametrize("edit", [edit_of(), FREEDONIA, EVEREST], ids=["a", "b", "c"])
def test_demonstrations_are_copy_update_and_retain_out_of_fitted_wordings(edit: Edit, questions: bool) -> None:
    """Issue §3: copy, update and retain, from the atlas; nothing that is shown may use a probe wording."""
    shown = demonstrations(edit, 6, questions=questions)
    again = demonstrations(edit, 6, questions=questions)

    assert len(shown) == 6
    assert shown == again
    for n, demo in enumerate(shown):
        answer = demo.answer.removesuffix(".")
        assert (answer in demo.fact) is (n % 3 < 2), demo
        assert demo.prompt.endswith("?") is questions
        assert edit.fact.subject not in demo.fact + demo.prompt
    kept_back = [wording.split("{}") for relation in atlas.relations().values() for wording in relation.held_out_wordings]
    texts = [text for demo in shown for text in (demo.prompt, demo.fact)]
    assert not [(text, front) for text in texts for front, back in kept_back if len(front) > 12 and text.startswith(front) and back in text]


def test_the_edits_own_relation_is_demonstrated_first() -> None:
    """Chosen by relation and similarity."""
    capital, ruler = demonstrations(edit_of(), 3), demonstrations(edit_of("Zembla", "The longest river of Zembla is", "the Zem", ""), 3)

    assert all("capital" in demo.fact.lower() for demo in capital[:1])
    assert "river" in ruler[0].fact.lower()


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_prompt_is_changed_but_in_front(prompt: str, said: str) -> None:
    """The user's own text is never altered."""
    assert (route(Request(prompt=prompt), READER).request.prompt or "").endswith(prompt)
    messages = ({"role": "user", "content": said},)
    assert route(Request(messages=messages), READER).request.messages[-1] is messages[0]
