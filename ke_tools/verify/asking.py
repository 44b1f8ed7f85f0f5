"""One probe: a wording with a subject in it, what must come back, and the request that asks it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ke_tools.atlas import Relation
from ke_tools.facts import Edit, Origin, Probe, squash
from ke_tools.models.engine import Engine, Request, one_turn
from ke_tools.verify.about import targets_of, truth_of
from ke_tools.verify.dimensions import FLUENCY

__all__ = ["FLUENCY_TOKENS", "PROBE_TOKENS", "Asked", "fill", "forms", "one_wording", "request_of", "unchanged", "wanted"]

Asked = tuple[str, bool]  # a prompt, and whether it is a chat turn

PROBE_TOKENS: Final = 24
FLUENCY_TOKENS: Final = 100  # as in the ROME paper
_THE_SUBJECT: Final = re.compile(r"\b[Tt]he \{\}")
_DETERMINERS: Final = frozenset({"the", "a", "an", "our", "my", "your", "his", "her", "its", "their", "this", "that"})


def request_of(probe: Probe, engine: Engine) -> Request:
    """What a probe asks of the base model."""
    tokens = FLUENCY_TOKENS if probe.dimension == FLUENCY else PROBE_TOKENS
    request = one_turn(probe.prompt, engine, tokens) if probe.chat else Request(prompt=probe.prompt, max_tokens=tokens)
    return request if probe.seed is None else replace(request, temperature=1.0, seed=probe.seed)


def fill(wording: str, subject: str) -> str:
    """Put a subject into a wording; its own article or owner replaces the wording's "the", and a sentence begins with a capital."""
    if subject.partition(" ")[0].casefold() in _DETERMINERS:
        wording = _THE_SUBJECT.sub("{}", wording)
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


def forms(relation: Relation, subject: str) -> list[Asked]:
    """Every probe wording in every form: chat question, statement, plain question in turn, whatever part of them is taken."""
    statements = [(fill(wording, subject), False) for wording in relation.probe_statements]
    questions = [fill(wording, subject) for wording in relation.probe_questions]
    chat, plain = [(question, True) for question in questions], [(question, False) for question in questions[1:] + questions[:1]]
    longest = max(len(statements), len(questions))
    return [group[n] for n in range(longest) for group in (chat, statements, plain) if n < len(group)]


def one_wording(relation: Relation, subject: str, number: int) -> Asked:
    """Chat question, statement, plain question in turn, so that each kind of asking is covered."""
    if number % 3 == 1 and relation.probe_statements:
        return fill(relation.probe_statements[number % len(relation.probe_statements)], subject), False
    return fill(relation.probe_questions[number % len(relation.probe_questions)], subject), number % 3 == 0


def wanted(edit: Edit, dimension: str, asked: Asked, origin: Origin = "probe wording", *, accept: Sequence[str] = ()) -> Probe:
    """A probe whose answer is the edit's target and no longer what it replaced, or another answer that follows from the edit."""
    accepted = tuple(accept) or targets_of(edit)
    right = {squash(name) for name in accepted}
    rejected = () if accept else (name for name in (edit.fact.old_target, *truth_of(edit)) if name.strip() and squash(name) not in right)
    prompt, chat = asked
    return Probe(
        edit_id=edit.id,
        dimension=dimension,
        prompt=prompt,
        expect="target",
        origin=origin,
        chat=chat,
        accept=accepted,
        reject=tuple(dict.fromkeys(rejected)),
    )


def unchanged(edit: Edit, dimension: str, asked: Asked, origin: Origin = "probe wording", *, right: Sequence[str] = ()) -> Probe:
    """A probe whose answer stays the unedited model's and does not speak the edit's target; ``right`` is what would be true."""
    prompt, chat = asked
    return Probe(
        edit_id=edit.id,
        dimension=dimension,
        prompt=prompt,
        expect="unchanged",
        origin=origin,
        chat=chat,
        accept=tuple(right),
        reject=targets_of(edit),
    )
