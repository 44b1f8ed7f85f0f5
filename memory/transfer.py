"""Edits as JSON lines, out of a ledger and into one.

A line that :func:`export_lines` wrote and :func:`import_lines` read gives the same line again. Only what acts on answers or waits
for an approval is an edit there; the rest is history, which is exported on request and skipped by an import.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import Conflict, InvalidInput, KeToolsError
from ke_tools.facts import Edit, Fact, State
from ke_tools.memory.corrections import Correction
from ke_tools.memory.events import record_of
from ke_tools.memory.moments import ahead, has_passed
from ke_tools.memory.names import name_key, subject_keys
from ke_tools.memory.slots import SlotRule, relation_key
from ke_tools.memory.slots import slot_of as default_slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ke_tools.memory.events import Event
    from ke_tools.memory.ledger import Ledger

_BATCH: Final = 500  # lines a transaction
_PAGE: Final = 1000
_LISTS: Final = frozenset({"paraphrases", "aliases", "forgotten"})
_FLAGS: Final = frozenset({"forget"})
_TEXTS: Final = frozenset({"ref", "mode", "state", *(field.name for field in fields(Fact))}) - _LISTS - _FLAGS


def export_lines(ledger: Ledger, tenant: str, *, events: bool = False) -> Iterator[str]:
    """Write a tenant's edits, oldest first, one JSON object a line without its line end.

    Args:
        ledger: where from.
        tenant: whose.
        events: then the whole history, oldest first, as ``{"event": {…}}``.
    """
    before: set[str] = set()
    for edit in ledger.live(tenant, with_proposed=True):
        if has_passed(edit.fact.expires):
            continue
        relation = relation_key(edit.slot)
        found = {edit.slot, *(f"{name}\n{relation}" for name in subject_keys(edit.fact.subject))}
        yield _line(_as_record(edit, is_first=not found & before))
        if edit.is_live:
            before |= {edit.slot, *(f"{name_key(name)}\n{relation}" for name in (edit.fact.subject, *edit.fact.aliases))}
    if events:
        yield from (_line({"event": _event_record(event)}) for event in reversed(_history(ledger, tenant)))


def import_lines(
    ledger: Ledger,
    tenant: str,
    lines: Iterable[str],
    *,
    actor: str,
    reason: str = "",
    slot_of: SlotRule = default_slot,
    as_proposals: bool = False,
    over_protection: bool = False,
) -> Iterator[dict[str, Any]]:
    """Record edits given as JSON lines; yield one object for each line, in order, once it is stored.

    A line is ``{"subject", "prompt", "target"}`` and, as wanted, ``old_target, relation, paraphrases, aliases, source, expires, ref, mode,
    state``; its answer is ``{"ref", "edit_id", "state", "revision", "superseded", "warnings"}`` or, where it is refused,
    ``{"ref", "line", "error": {"code", "message", …}}``. Empty lines are no lines. Lines are stored a few hundred at a time.
    ``as_proposals`` lets all wait for an approval, whatever their state; ``over_protection`` lets them change what is protected.

    Raises:
        KeToolsError: the ledger cannot be written; every line that was answered is stored, no other is.
    """
    reader = _Reader(slot_of, as_proposals=as_proposals)
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    while batch := [reader.read(number, line) for number, line in islice(numbered, _BATCH)]:
        corrections = [item for item in batch if isinstance(item, Correction)]
        stored = iter(
            ledger.edit_each(tenant, corrections, actor=actor, reason=reason, over_protection=over_protection) if corrections else []
        )
        for item, (number, ref) in zip(batch, reader.taken(), strict=True):
            outcome = next(stored) if isinstance(item, Correction) else item
            yield _answer(outcome, number, ref)


class _Reader:
    """Reads lines, and remembers what each slot was given, so that a file that contradicts itself is noticed."""

    def __init__(self, rule: SlotRule, *, as_proposals: bool) -> None:
        self._rule = rule
        self._more = {"state": State.PROPOSED.value} if as_proposals else {}
        self._places: list[tuple[int, str]] = []
        self._slots: dict[str, tuple[int, Correction]] = {}

    def taken(self) -> list[tuple[int, str]]:
        """Line number and ref of what was read since the last call."""
        places, self._places = self._places, []
        return places

    def read(self, number: int, line: str) -> Correction | KeToolsError | dict[str, Any]:
        """Make a correction of a line, or say what is wrong with it; an event becomes its answer."""
        self._places.append((number, ""))
        try:
            record = _parsed(line)
            if "event" in record:
                return {"event": _sequence_number(record), "skipped": True}
            self._places[-1] = number, str(record.get("ref", ""))[:200]
            correction = _correction({**record, **self._more}, self._rule)
            self._refuse_contradiction(number, correction)
        except KeToolsError as error:
            return error
        return correction

    def _refuse_contradiction(self, number: int, correction: Correction) -> None:
        if correction.state is State.PROPOSED:
            return  # several proposals for one slot may wait
        first, other = self._slots.setdefault(correction.slot.key, (number, correction))
        if correction.contradicts(other):
            raise Conflict(
                f"line {number} says {correction.fact.target!r}, line {first} says {other.fact.target!r} of {correction.fact.subject!r}"
                " in the same relation.",
                "Keep one of them; if both are true, give this one the mode add.",
            )


def _parsed(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the line is not JSON ({error}).", "Write one JSON object a line.") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"the line is a JSON {type(record).__name__}.", "Write one JSON object a line.")
    return record


def _correction(record: dict[str, Any], rule: SlotRule) -> Correction:
    for name, value in record.items():
        if name in _TEXTS:
            is_right = isinstance(value, str)
        elif name in _LISTS:
            is_right = isinstance(value, list) and all(isinstance(text, str) for text in value)
        elif name in _FLAGS:
            is_right = isinstance(value, bool)
        else:
            raise InvalidInput(f"the line has the unknown field {name!r}.", f"Known are {', '.join(sorted(_TEXTS | _LISTS | _FLAGS))}.")
        if not is_right:
            kind = "a text" if name in _TEXTS else "a list of texts" if name in _LISTS else "true or false"
            raise InvalidInput(f"{name} is {json.dumps(value)[:40]}.", f"Write {kind}.")
    if record.get("forget") and not record.get("target"):
        raise InvalidInput("the line forgets, and has no refusal as its target.", "`ke-tools edit --forget` asks the model how it refuses.")
    if missing := [name for name in ("subject", "prompt", "target") if name not in record]:
        raise InvalidInput(f"the line has no {', '.join(missing)}.", "Give subject, prompt and target.")
    given: dict[str, Any] = {
        name: tuple(value) if name in _LISTS else value for name, value in record.items() if name not in {"ref", "mode", "state"}
    }
    if given.get("expires"):
        given["expires"] = ahead(given["expires"])
    state = record.get("state", State.ACTIVE)
    return Correction.of(Fact(**given), rule, ref=record.get("ref", ""), mode=record.get("mode", "auto"), state=state)


def _sequence_number(record: dict[str, Any]) -> int:
    event = record["event"]
    seq = event.get("seq") if isinstance(event, dict) else None
    return seq if isinstance(seq, int) else 0


def _answer(outcome: Edit | KeToolsError | dict[str, Any], number: int, ref: str) -> dict[str, Any]:
    if isinstance(outcome, KeToolsError):
        return {"ref": ref, "line": number, "error": outcome.as_dict()}
    if isinstance(outcome, dict):
        return outcome
    return {
        "ref": outcome.ref,
        "edit_id": outcome.id,
        "state": outcome.state.value,
        "revision": outcome.revision,
        "superseded": list(outcome.supersedes),
        "warnings": list(outcome.warnings),
    }


def _as_record(edit: Edit, *, is_first: bool) -> dict[str, Any]:
    record = {"ref": edit.ref, **record_of(edit.fact)} if edit.ref else record_of(edit.fact)
    if edit.state is State.PROPOSED:
        return {**record, "state": edit.state.value}
    return record if is_first else {**record, "mode": "add"}  # both are live here, so both shall be there


def _event_record(event: Event) -> dict[str, Any]:
    record = asdict(event)
    record["payload"] = dict(event.payload)
    return record


def _history(ledger: Ledger, tenant: str) -> list[Event]:
    events: list[Event] = []
    cursor = ""
    while True:
        page = ledger.history(tenant, limit=_PAGE, cursor=cursor)
        events += page.items
        cursor = page.next_cursor
        if not cursor:
            return events


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False)
