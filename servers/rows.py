"""What callers give and get: facts and conversations are read, and edits, answers and what was done are said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.moments import ahead, has_passed

if TYPE_CHECKING:
    from ke_tools.memory.events import Event, RolledBack
    from ke_tools.memory.router import Routed
    from ke_tools.memory.scope import Decision
    from ke_tools.models.engine import Generation, Message

__all__ = [
    "answer_row",
    "counted",
    "edit_summary",
    "event_row",
    "explanation",
    "fact_of",
    "frozen_messages",
    "query_summary",
    "rollback_summary",
    "row",
    "state_of",
]

_FIELDS: Final = {field.name for field in dataclasses.fields(Fact)}


def frozen_messages(messages: Any) -> tuple[Message, ...]:
    """Check the shape of a conversation given by a caller.

    Raises:
        InvalidInput: not a list of ``{"role", "content"}``.
    """
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("messages is not a list of turns.", 'Write [{"role": "user", "content": "…"}].')
    for turn in messages:
        if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or "content" not in turn:
            raise InvalidInput(f"a message is not of the form {{role, content}}: {str(turn)[:80]}", "Give both for every turn.")
    return tuple(messages)


def state_of(edit: Edit) -> State:
    """How an edit stands at this moment; one whose time has passed is retired before an event says so."""
    return State.RETIRED if edit.is_live and has_passed(edit.fact.expires) else edit.state


def row(edit: Edit) -> dict[str, Any]:
    """An edit as the tools show it."""
    return {
        "edit_id": edit.id,
        "ref": edit.ref,
        "subject": edit.fact.subject,
        "prompt": edit.fact.prompt,
        "target": edit.fact.target,
        "forget": edit.fact.forget,
        "relation": edit.relation,
        "state": state_of(edit).value,
        "expires": edit.fact.expires,
        "approved_by": edit.approved_by,
        "created_at": edit.created_at,
        "revision": edit.revision,
        "superseded": list(edit.supersedes),
        "superseded_by": edit.superseded_by,
        "alias_risky": edit.alias_risky,
        "warnings": list(edit.warnings),
    }


def explanation(decision: Decision) -> dict[str, str]:
    """A decision as text."""
    return {"zone": decision.zone, "reason": decision.reason, "stages": json.dumps(dict(decision.stages), ensure_ascii=False, default=str)}


def fact_of(given: Mapping[str, Any], number: int = 1) -> Fact:
    """Read a fact as the tools take it.

    Raises:
        InvalidInput: it cannot be read; the message names its number.
    """
    unknown = given.keys() - _FIELDS - {"ref", "statement"}
    if unknown:
        raise InvalidInput(f"edit {number} has the unknown fields {sorted(unknown)}.", f"Known are {sorted(_FIELDS | {'ref'})}.")
    if missing := [name for name in ("subject", "prompt", "target") if name not in given]:
        raise InvalidInput(f"edit {number} lacks {', '.join(missing)}.", "Give subject, prompt and target.")
    fields: dict[str, Any] = {}
    for name in _FIELDS & given.keys():
        many = name in {"paraphrases", "aliases", "forgotten"}
        value = given[name]
        if name == "forget" and isinstance(value, bool):
            fields[name] = value
        elif many and isinstance(value, Collection) and not isinstance(value, str | bytes) and all(isinstance(v, str) for v in value):
            fields[name] = tuple(value)
        elif not many and isinstance(value, str):
            fields[name] = value
        else:
            raise InvalidInput(f"edit {number}: {name} is not {'a list of texts' if many else 'a text'}.", "See the schema of edit.")
    try:
        if fields.get("expires"):
            fields["expires"] = ahead(fields["expires"])
        return Fact(**fields)
    except InvalidInput as error:
        raise InvalidInput(f"edit {number}: {error.message}", error.hint) from error


def answer_row(view: str, routed: Routed, made: Generation) -> dict[str, Any]:
    """An answer as the tools show it."""
    return {
        "view": view,
        "text": made.text.strip(),
        "route": routed.route,
        "used_edits": [{"edit_id": hit.edit.id, "score": round(hit.score, 4)} for hit in routed.hits],
        "finish_reason": made.finish_reason,
        "reason": routed.reason,
    }


def is_without_memory(answers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of them is the base model's because what is corrected could not be found out."""
    return any(answer["reason"] in {"ledger", "error"} for answer in answers)


def query_summary(answers: Sequence[Mapping[str, Any]]) -> str:
    """What was answered, without and with edits."""
    texts = {str(answer["view"]): str(answer["text"]) for answer in answers}
    used = [edit["edit_id"] for answer in answers for edit in answer["used_edits"]]
    if is_without_memory(answers):
        return f"The corrections could not be looked up (see ke-tools doctor); the base model says: {answers[-1]['text']}"
    if len(texts) == 2:  # noqa: PLR2004
        if texts["base"] != texts["edited"]:
            return f"Before: {texts['base']} After: {texts['edited']}"
        if used:
            return f"Given to the model, but its answer did not change: {', '.join(used)}. It says: {texts['base']}"
        return f"Unchanged by edits: {texts['base']}"
    return str(answers[0]["text"]) + (f" (from {', '.join(used)})" if used else "")


def event_row(event: Event) -> dict[str, Any]:
    """An event as the tools show it."""
    return {
        "at": event.at,
        "revision": event.seq,
        "actor": event.actor,
        "action": event.action,
        "edit_ids": list(event.edit_ids),
        "note": event.note,
    }


def edit_summary(edits: Sequence[Edit], flip: str, where: str, *, dry_run: bool) -> str:
    """What came of correcting, or would; ``where`` names the model."""
    superseded = [earlier for edit in edits for earlier in edit.supersedes]
    told = f", superseding {', '.join(superseded)}" if superseded else ""
    waiting = [edit for edit in edits if edit.state is State.PROPOSED]
    if dry_run and any(edit.id for edit in edits):
        return f"Dry run: recorded before under this key: {', '.join(edit.id for edit in edits)}. To repeat the call changes nothing."
    if dry_run:
        how = "proposed and wait for an approval" if waiting else f"active{told}"
        return f"Dry run: {counted(edits, 'edit')} would be {how}. Nothing was changed."
    if waiting:
        return (
            f"{counted(waiting, 'edit')} proposed, not active: no answer changes until somebody of scope write approves"
            f" (`ke-tools approve {' '.join(edit.id for edit in waiting)}`)."
        )
    if gone := [edit.id for edit in edits if not edit.is_live]:
        return f"Recorded before under this key, and retired since: {', '.join(gone)}. See history."
    active = f"{counted(edits, 'edit')} active from the next answer on{told}."
    return f"{active}{flip} Check with verify, undo with rollback. {where}"


def rollback_summary(done: RolledBack, flip: str, where: str, to_revision: int | None, *, dry_run: bool) -> str:
    """What came of taking back, or would."""
    retired = f"{counted(done.retired, 'edit')} rolled back." if done.retired else ""
    restored = f"{counted(done.restored, 'earlier edit')} came back." if done.restored else ""
    told = " ".join(part for part in (retired, restored, flip.strip()) if part)
    if not told:
        return f"Nothing was changed: what was live at revision {to_revision} is what is live now."
    return f"Dry run, nothing was changed. It would be: {told}" if dry_run else f"{told} {where}"


def counted(things: Sequence[Any] | int, noun: str) -> str:
    """A number of things, in words."""
    number = things if isinstance(things, int) else len(things)
    return f"{number} {noun}" + ("" if number == 1 else "s")
