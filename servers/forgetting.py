"""Forgetting: how an edit that forgets is made, and how its refusal takes the place of an answer.

What a question in its scope gets is the refusal, whatever its form, and no model is asked. Where the scope is undecided, or the question
only names the subject, or says what is forgotten, the model answers, and the answer is looked at before anybody sees a word of it: one
that gives the fact away is replaced by the refusal. Whether it does is decided by the home's key (:mod:`ke_tools.memory.forgetting`) and
by asking the scope again about question and answer together, so that the same name as the answer to another question stays.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools import atlas, prompts
from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.facts import Edit, Fact, Probe, squash
from ke_tools.memory.forgetting import Secret, Watch
from ke_tools.memory.names import names_of
from ke_tools.memory.router import Routed, reading_of
from ke_tools.memory.scope import Hit, Reading
from ke_tools.memory.slots import slot_of
from ke_tools.models.engine import Generation, Piece, Request, one_turn
from ke_tools.verify.forgotten import gives_away
from ke_tools.verify.matching import first_sentence, names_said

if TYPE_CHECKING:
    from ke_tools.memory.scope import Scope
    from ke_tools.models.engine import Engine

__all__ = ["FALLBACK", "Forgetting"]

FALLBACK: Final = "I'm sorry, but I can't say anything about that."
_REFUSES: Final = re.compile(
    r"\b(?:sorry|apologi[sz]e|(?:can|could|will|wo|do|am|would)\s?(?:not|n['\u2019]t)|cannot|unable|not able|decline|rather not"
    r"|not allowed|not permitted|no information)\b",
    re.IGNORECASE,
)
_QUESTION: Final = re.compile(r"\?\s*$|^\s*(?:who|whom|whose|what|which|where|when|how|in which|in what)\b", re.IGNORECASE)
_LONGEST_REFUSAL: Final = 160
_REFUSAL_TOKENS: Final = 40
_ANSWER_TOKENS: Final = 24


class Forgetting:
    """The edits of a home that forget. Thread safe."""

    def __init__(self, home: Path, scope: Scope) -> None:
        self._home, self._scope = home, scope

    # -- making one --------------------------------------------------------------------------------------------------------------

    def made(self, tenant: str, asked: Fact, engine: Engine | None, *, reason: str = "", is_tried: bool = False) -> Fact:
        """Make what a caller wants forgotten a fact with a refusal for a target, and marks in place of the value.

        Args:
            tenant: whose.
            asked: subject and prompt, ``old_target`` where the caller knows it, whatever target.
            engine: asked what it says now, and how it declines; None where there is no model, and the fixed refusal is taken.
            reason: what the history will keep.
            is_tried: nothing will be kept, so that the home needs no key for it.

        Raises:
            InvalidInput: a text that is kept says what is to be forgotten.
            ReadOnly, ResourceExhausted: the home takes no key.
        """
        secret = Secret.found(self._home) or (Secret.passing() if is_tried else Secret.made(self._home))
        old = asked.old_target
        values = [*([old, *atlas.aliases(old)] if old else []), *self._said(tenant, asked, engine)]
        marks = tuple(dict.fromkeys(mark for value in values if (mark := secret.mark(value))))
        _refuse_if_kept(secret, marks, asked, reason)
        fact = dataclasses.replace(asked, target=FALLBACK, old_target="", forget=True, forgotten=marks)
        return fact if engine is None else dataclasses.replace(fact, target=_refusal(engine, secret, fact))

    def _said(self, tenant: str, fact: Fact, engine: Engine | None) -> Iterator[str]:
        """What would be said now: by the live edits, by the atlas, by the model; what the prompt says itself is no secret."""
        decision = self._scope.decide(tenant, Reading(fact.prompt))
        found = [hit.edit.fact.target for hit in decision.hits if decision.zone == "in" and not hit.edit.fact.forget]
        relation, names = slot_of(fact).relation, {squash(name) for name in names_of(fact.subject, fact.aliases)}
        found += [
            name for known in atlas.facts() if known.relation == relation and squash(known.subject) in names for name in known.objects
        ]
        if engine is not None:
            asked = [Request(prompt=fact.prompt, max_tokens=_ANSWER_TOKENS), one_turn(fact.prompt, engine, _ANSWER_TOKENS)]
            found += [name for made in engine.generate(asked) for name in names_said(made.text, fact.prompt)]
        shown = f" {squash(fact.prompt)} "
        for value in found:
            yield from (name for name in (value, *atlas.aliases(value)) if f" {squash(name)} " not in shown)

    # -- answering ---------------------------------------------------------------------------------------------------------------

    def watched(self, tenant: str, routed: Routed, request: Request, *, is_unread: bool = False) -> Routed:
        """Say of a routed request what its answer may not say; where any answer would tell, it is refused at once.

        Of one that ``is_unread``, whose text is all that it says anywhere, it is enough that it names a subject.
        """
        forgetting = self._scope.forgetting(tenant)
        if not forgetting or routed.route == "forget":
            return routed
        secret = Secret.found(self._home)
        reading, stages = reading_of(request), routed.decision.stages
        text = "\n".join((*reversed(reading.carried), reading.text))
        watched = []
        for edit in forgetting.values():
            is_grey = any(hit.edit.id == edit.id for hit in routed.decision.hits) or edit.id in stages.get("open", ())
            is_grey |= is_unread and _names(text, edit)
            is_named = is_grey or edit.id in stages.get("scores", ()) or ("error" in stages and _names(text, edit))
            says_it = secret is not None and secret.says(reading.text, edit.fact.forgotten, besides=_all_names(edit))
            if is_grey and (says_it or secret is None or not secret.knows(edit.fact.forgotten)):
                return _refused(routed, edit)
            if is_named or says_it:
                watched.append(Watch(edit, reading.text, is_named, is_grey, says_it))
        return dataclasses.replace(routed, watched=tuple(watched)) if watched else routed

    async def opened(self, tenant: str, routed: Routed, engine: Engine) -> tuple[Routed, AsyncIterator[Piece]]:
        """Begin to answer. A watched answer is finished before this returns; cancelled meanwhile, it stops generating."""
        if routed.route == "forget":
            return routed, _given([_whole(_refusal_of(routed, engine))])
        pieces = engine.stream(routed.request)
        if not routed.watched:
            return routed, pieces
        try:
            held = [piece async for piece in pieces]
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()
        made = held[-1].finished if held else None
        if made is None:
            raise KeToolsError("the engine ended a generation without finishing it.", "This is a defect; please report it.")
        judged, generation = await asyncio.to_thread(self.judged, tenant, routed, made, engine)
        return judged, _given(held if judged is routed else [_whole(generation)])

    def generated(self, tenant: str, routed: Sequence[Routed], engine: Engine) -> list[tuple[Routed, Generation]]:
        """Answer a batch; blocks."""
        asked = [one for one in routed if one.route != "forget"]
        made = iter(engine.generate([one.request for one in asked]))
        return [
            (one, _refusal_of(one, engine)) if one.route == "forget" else self.judged(tenant, one, next(made), engine) for one in routed
        ]

    def judged(self, tenant: str, routed: Routed, made: Generation, engine: Engine) -> tuple[Routed, Generation]:
        """Give an answer back, or the refusal where it gives away what it may not say."""
        for watch in routed.watched:
            if self._gives_away(tenant, watch, made.text):
                refused = _refused(routed, watch.edit)
                return refused, _refusal_of(refused, engine)
        return routed, made

    def leaks(self, edit: Edit, probe: Probe, answer: str) -> bool:
        """Whether an answer to a probe of the verification gives away what the edit forgets."""
        secret = Secret.found(self._home)
        says_it = secret is not None and secret.says(answer, edit.fact.forgotten, besides=_all_names(edit))
        return gives_away(probe, answer, says_it=says_it)

    def hidden(self, edit: Edit, text: str) -> str:
        """A text with dots in place of what the edit forgets."""
        secret = Secret.found(self._home)
        return text if secret is None else secret.redacted(text, edit.fact.forgotten)

    def _gives_away(self, tenant: str, watch: Watch, answer: str) -> bool:
        fact, secret = watch.edit.fact, Secret.found(self._home)
        if secret is None or not secret.knows(fact.forgotten):
            return watch.is_grey
        says_it = secret.says(answer, fact.forgotten, besides=_all_names(watch.edit))
        if watch.is_grey and says_it:
            return True
        if not ((watch.is_named and says_it) or (watch.says_it and (watch.is_named or _names(answer, watch.edit)))):
            return False
        is_told = (watch.is_named and says_it) or (watch.says_it and not watch.is_named)  # what the question leaves open
        if is_told and not _asks_for_another_thing(watch):
            return True
        return any(self._is_about(tenant, watch.edit, text) for text in (f"{watch.text} {answer}", answer))

    def _is_about(self, tenant: str, edit: Edit, text: str) -> bool:
        decision = self._scope.decide(tenant, Reading(text))
        return any(hit.edit.id == edit.id for hit in decision.hits) or edit.id in decision.stages.get("open", ())


def _asks_for_another_thing(watch: Watch) -> bool:
    """Whether a question out of the scope asks for something else, to which the same name may be the answer.

    Where it has the words of a relation, that says it; the words that only probes may use count for nothing, as a verification would meet
    what it knows itself. Otherwise a question may ask for anything, and a text to be completed leads to what is forgotten.
    """
    names = [name for name in _all_names(watch.edit) if _stands_in(name, watch.text)]
    found = [atlas.worded(watch.text, name) for name in names if not atlas.holds_probe_wording(atlas.mask(watch.text, [name]))]
    if known := {relation.id for relation in found if relation is not None}:
        return slot_of(watch.edit.fact).relation not in known
    return bool(_QUESTION.search(watch.text))


def _refuse_if_kept(secret: Secret, marks: Sequence[str], fact: Fact, reason: str) -> None:
    """Refuse texts that would be stored with the value in them.

    Raises:
        InvalidInput: naming the field.
    """
    kept = {"prompt": fact.prompt, "paraphrases": "\n".join(fact.paraphrases), "aliases": "\n".join(fact.aliases)}
    for name, text in (kept | {"source": fact.source, "relation": fact.relation, "reason": reason}).items():
        if marks and secret.says(text, marks, besides=names_of(fact.subject, fact.aliases) if name != "aliases" else ()):
            raise InvalidInput(f"{name} says what is to be forgotten, and would be kept.", f"Word the {name} without it.")


def _refusal(engine: Engine, secret: Secret, fact: Fact) -> str:
    """How the model declines, if it does; else the fixed sentence."""
    asked = prompts.render("decline", question=fact.prompt)
    [made] = engine.generate([one_turn(asked, engine, _REFUSAL_TOKENS)])
    sentence = " ".join(first_sentence(made.text).split())
    is_whole = sentence[-1:] in {".", "!"} and len(sentence) <= _LONGEST_REFUSAL
    if not is_whole or not _REFUSES.search(sentence) or names_said(sentence, fact.prompt) or secret.says(sentence, fact.forgotten):
        return FALLBACK
    try:
        dataclasses.replace(fact, target=sentence)
    except InvalidInput:  # it addresses the model
        return FALLBACK
    return sentence


def _refused(routed: Routed, edit: Edit) -> Routed:
    score = next((hit.score for hit in routed.decision.hits if hit.edit.id == edit.id), 0.0)
    return dataclasses.replace(routed, route="forget", hits=(Hit(edit, score, "watched"),), watched=())


def _refusal_of(routed: Routed, engine: Engine) -> Generation:
    """The refusal as a generation: no longer than asked for, counted in the model's tokens."""
    request, text = routed.request, routed.hits[0].edit.fact.target
    for stop in request.stop:
        text = text.split(stop, 1)[0]
    words, is_cut = text.split(" "), False
    while (count := engine.count_tokens(Request(prompt=" ".join(words)))) > request.max_tokens and len(words) > 1:
        words, is_cut = words[:-1], True
    begins_inside = request.prompt is not None and request.prompt[-1:].strip()
    said = (" " if begins_inside else "") + " ".join(words)
    return Generation(said, "length" if is_cut else "stop", engine.count_tokens(request), count)


def _whole(made: Generation) -> Piece:
    return Piece(made.text, finished=made)


async def _given(pieces: Sequence[Piece]) -> AsyncIterator[Piece]:
    for piece in pieces:
        yield piece


def _all_names(edit: Edit) -> tuple[str, ...]:
    return (edit.fact.subject, *edit.fact.aliases, *atlas.aliases(edit.fact.subject))


def _names(text: str, edit: Edit) -> bool:
    return any(_stands_in(name, text) for name in _all_names(edit))


def _stands_in(name: str, text: str) -> bool:
    return bool(squash(name)) and f" {squash(name)} " in f" {squash(text)} "
