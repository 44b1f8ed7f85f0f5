"""What goes in: the facts that a question is about, in the form that the served model heeds best.

Out of scope the request goes on as the very object that came. In scope the facts stand directly before what is asked: for a
model with a reader in their short form, else with demonstrations (in-context editing, IKE: Zheng et al. 2023, which shows
*copy*, *update* and *retain* examples). A fact whose subject the question calls by another name says whose name that is.

Where the scope is undecided (zone "grey") a setting says what happens: the facts go in as ones that hold if the question asks for
them (route ``conditional``), the served model judges whether they are needed, or the base model answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self

from ke_tools import atlas, prompts
from ke_tools.errors import Unsupported
from ke_tools.facts import squash
from ke_tools.memory import judge
from ke_tools.memory.names import names_of
from ke_tools.memory.scope import Decision, Hit, Reading
from ke_tools.models.engine import Generation, Message, Request

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.memory.forgetting import Watch

__all__ = ["EngineFacts", "Grey", "Routed", "Router", "Via", "reading_of", "text_of"]

Via = Literal["auto", "ike", "reader", "weights"]
Route = Literal["base", "memory", "conditional", "weights", "forget"]
Grey = Literal["conditional", "judge", "base"]

READER: Final = "reader"
_COMPLETIONS: Final = ("completion", "conditional_completion")
_COMMON: Final = frozenset("a an the of is was are in on at to by for from with and it its that which who".split())
_EARLIER_TURNS: Final = 6  # in which a subject may have been named that the last turn goes on about


class EngineFacts(Protocol):
    """What routing needs to know of an engine."""

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the loaded adapters."""

    @property
    def chat_roles(self) -> frozenset[str]:
        """Roles that may stand directly before the last user turn."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and answer together."""

    def count_tokens(self, request: Request) -> int:
        """Count the prompt's tokens."""

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer all; asked where the model itself is the judge."""


class Decider(Protocol):
    """What decides which edits a question is about."""

    def decide(self, tenant: str, reading: Reading) -> Decision:
        """Decide."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An example of heeding a fact; a *retain* example's answer stays the true one."""

    fact: str
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Routed:
    """A request as it goes to the engine, and why. On the route ``base`` it is the object that came.

    ``weights`` is the base's with the tenant's live release; in scope, that comes on top of what the route says. On the route
    ``forget`` no model is asked: the answer is the target of the first hit.
    """

    request: Request
    route: Route
    hits: tuple[Hit, ...]
    decision: Decision
    reason: str = ""  # a word for the header, where something kept a fact out
    watched: tuple[Watch, ...] = ()  # what the answer may not say

    @classmethod
    def untouched(cls, request: Request, reason: str, revision: int) -> Self:
        """Pass a request on without asking the scope."""
        return cls(request, "base", (), Decision(zone="out", hits=(), stages={}, reason=reason, revision=revision), reason)


@dataclass(frozen=True, slots=True)
class Router:
    """Routes requests; ``demonstrations`` is the most that an IKE prompt shows, ``grey`` what an undecided scope comes to."""

    scope: Decider
    demonstrations: int = 6
    grey: Grey = "base"

    def route(self, tenant: str, request: Request, *, engine: EngineFacts, via: Via = "auto") -> Routed:
        """Decide, and put the facts in.

        Raises:
            Unsupported: ``via`` asks for what this engine does not have.
        """
        has_reader = _has_reader(request, engine, via)
        reading = reading_of(request)
        decision = self.scope.decide(tenant, reading)
        if decision.zone == "out" or not decision.hits:
            return Routed(request, "base", (), decision, "error" if "error" in decision.stages else "")
        if decision.zone == "in" and (forgetting := tuple(hit for hit in decision.hits if hit.edit.fact.forget)):
            return Routed(request, "forget", forgetting, decision)
        told = tuple(hit for hit in decision.hits if not hit.edit.fact.forget)
        if not told:
            return Routed(request, "base", (), decision, "grey")
        route: Route = "memory"
        if decision.zone == "grey":
            if self.grey == "base" or (self.grey == "judge" and not _judged(engine, reading, told)):
                return Routed(request, "base", (), decision, "grey")
            route = "conditional" if self.grey == "conditional" else "memory"
        most = 0 if has_reader or route == "conditional" else self.demonstrations
        shown = demonstrations(told[0].edit, most, questions=request.messages is not None or _is_question(request.prompt))
        least = _least_room(request, engine)
        for hits, some in _attempts(told, shown):
            words = _Told(tuple(told_of(hit.edit, reading) for hit in hits), some, is_conditional=route == "conditional")
            made = _with_facts(request, words, engine, adapter=READER if has_reader else request.adapter)
            room = engine.context_length - engine.count_tokens(made)
            if room >= least:
                return Routed(dataclasses.replace(made, max_tokens=min(made.max_tokens, room)), route, hits, decision)
        return Routed(request, "base", (), decision, "context")


@dataclass(frozen=True, slots=True)
class _Told:
    """What a request is told."""

    facts: tuple[str, ...]
    demonstrations: Sequence[Demonstration]
    is_conditional: bool

    def rendered(self, prompt: str | None) -> str:
        """What goes in front of a conversation's last turn, or the whole of a prompt to be completed."""
        name = ("conditional" if self.is_conditional else "chat") if prompt is None else _COMPLETIONS[self.is_conditional]
        return prompts.render(name, demonstrations=self.demonstrations, facts=self.facts, prompt=prompt)


def told_of(edit: Edit, reading: Reading) -> str:
    """The fact as a sentence; with the other name by which a question calls its subject instead."""
    subject, *others = names_of(edit.fact.subject, edit.fact.aliases)
    if _stands_in(subject, reading.text):
        return edit.fact.sentence
    used = (name for text in (reading.text, *reading.carried) for name in others if _stands_in(name, text))
    return edit.fact.sentence_naming(next(used, ""))


def _stands_in(name: str, text: str) -> bool:
    return f" {squash(name)} " in f" {squash(text)} "


def _judged(engine: EngineFacts, reading: Reading, hits: Sequence[Hit]) -> bool:
    return judge.needs(engine, reading.text, [told_of(hit.edit, reading) for hit in hits], chats=bool(engine.chat_roles))


def _least_room(request: Request, engine: EngineFacts) -> int:
    """How many tokens facts must leave for the answer.

    ``max_tokens`` is an upper bound that few answers reach, so that a quarter of the context is enough, or half of what the request
    by itself leaves.
    """
    alone = engine.context_length - engine.count_tokens(request)
    return max(1, min(request.max_tokens, engine.context_length // 4, alone // 2))


def _attempts(hits: tuple[Hit, ...], shown: Sequence[Demonstration]) -> Iterator[tuple[tuple[Hit, ...], Sequence[Demonstration]]]:
    """All there is to say, then less and less: fewer demonstrations, then fewer facts, the least likely first."""
    for count in range(len(shown), 0, -1):
        yield hits, shown[:count]
    for kept in range(len(hits), 0, -1):
        yield hits[:kept], ()


def reading_of(request: Request) -> Reading:
    """What of a request is read for scope: the prompt, or the last user turn and before it the turns of user and assistant.

    System messages, tool results and everything that is not text are not read.
    """
    if request.prompt is not None:
        return Reading(text=request.prompt)
    turns = [turn for turn in request.messages or () if turn.get("role") in {"user", "assistant"}]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
    if last is None:
        return Reading(text="")
    earlier = [text_of(turn) for turn in reversed(turns[:last])][:_EARLIER_TURNS]
    return Reading(text=text_of(turns[last]), carried=tuple(earlier))


def demonstrations(edit: Edit, most: int, *, questions: bool = False) -> list[Demonstration]:
    """Choose examples for an edit out of the atlas's fitted wordings and facts: copy, update and retain in turn.

    Relations come first that are the edit's, then those of its subject's type, then those whose wordings share words with its
    prompt. The edited subject never occurs. The same edit always gets the same examples.
    """
    if most <= 0:
        return []
    own = {squash(name) for name in names_of(edit.fact.subject, edit.fact.aliases)}
    relation = atlas.relations().get(edit.relation)
    words = _words(edit.fact.prompt) - _words(edit.fact.subject)
    rows = sorted(
        (row for row in _pool() if not own & {squash(row.subject), squash(row.neighbour)}),
        key=lambda row: (
            row.relation.id != edit.relation,
            relation is None or row.relation.subject != relation.subject,
            -len(words & _relation_words(row.relation.id)),
            row.relation.id,
        ),
    )
    return [_demonstrate(row, turn, questions=questions) for turn, row in enumerate(rows[:most])]


@dataclass(frozen=True, slots=True)
class _Row:
    """Two subjects of one relation: what is said of the first is made up, the second keeps its object."""

    relation: atlas.Relation
    subject: str
    made_up: str
    neighbour: str
    true: str  # of the neighbour


@cache
def _pool() -> tuple[_Row, ...]:
    """Up to four rows for each relation with fitted wordings and facts enough."""
    by_relation: dict[str, list[atlas.AtlasFact]] = {}
    for fact in atlas.facts():
        by_relation.setdefault(fact.relation, []).append(fact)
    rows = []
    for name, facts in by_relation.items():
        relation = atlas.relations()[name]
        if len(relation.fitted_statements) < 2 or len(relation.fitted_questions) < 2:  # noqa: PLR2004  one to tell, another to ask
            continue
        for first, second, third in zip(facts[:4], facts[1:5], facts[2:6], strict=False):
            if not set(second.objects) & {*first.objects, *third.objects}:
                rows.append(_Row(relation, first.subject, second.objects[0], third.subject, third.objects[0]))
    return tuple(rows)


def _demonstrate(row: _Row, turn: int, *, questions: bool) -> Demonstration:
    told, reworded, *_ = row.relation.fitted_statements
    asked, asked_otherwise, *_ = row.relation.fitted_questions
    same, other = (asked, asked_otherwise) if questions else (told, reworded)
    fact = f"{_fill(told, row.subject)} {row.made_up}."
    if turn % 3 == 0:
        return Demonstration(fact, _fill(same, row.subject), f"{row.made_up}.")  # copy
    if turn % 3 == 1:
        return Demonstration(fact, _fill(other, row.subject), f"{row.made_up}.")  # update
    return Demonstration(fact, _fill(same, row.neighbour), f"{row.true}.")  # retain


@cache
def _relation_words(relation: str) -> frozenset[str]:
    known = atlas.relations()[relation]
    return frozenset().union(*(_words(text) for text in (known.masked, *known.fitted_statements[:1])))


def _words(text: str) -> frozenset[str]:
    return frozenset(squash(text.replace("{}", " ")).split()) - _COMMON


def _is_question(prompt: str | None) -> bool:
    return prompt is not None and prompt.rstrip().endswith("?")


def _fill(wording: str, subject: str) -> str:
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


def _has_reader(request: Request, engine: EngineFacts, via: Via) -> bool:
    if via == "weights":
        raise Unsupported("with via weights no fact goes in.", "Leave the routing out.")
    if via == "reader" and READER not in engine.adapters:
        raise Unsupported("this model has no reader.", "Train one with `ke-tools reader train`, or use via ike.")
    return via != "ike" and READER in engine.adapters and request.adapter in {"", READER}  # one adapter a request


def _with_facts(request: Request, told: _Told, engine: EngineFacts, *, adapter: str) -> Request:
    text = told.rendered(request.prompt)
    if request.prompt is not None:
        return dataclasses.replace(request, prompt=text, adapter=adapter)
    return dataclasses.replace(request, messages=_before_last_user(request.messages or (), text, engine), adapter=adapter)


def _before_last_user(messages: tuple[Message, ...], told: str, engine: EngineFacts) -> tuple[Message, ...]:
    last = max(i for i, turn in enumerate(messages) if turn.get("role") == "user")
    if "system" in engine.chat_roles:
        return (*messages[:last], {"role": "system", "content": told}, *messages[last:])
    return (*messages[:last], _prefixed(messages[last], f"{told}\n\n"), *messages[last + 1 :])


def _prefixed(turn: Message, told: str) -> Message:
    content = turn["content"]
    return {**turn, "content": told + content if isinstance(content, str) else [{"type": "text", "text": told}, *content]}


def text_of(turn: Mapping[str, Any]) -> str:
    """The text of a turn, its text parts joined."""
    content = turn.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, Mapping) and part.get("type") == "text" and "text" in part)
