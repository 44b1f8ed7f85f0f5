"""What one correction does to those before it: which give way, which stay, when it is refused.

================  =======================================================================================
mode ``auto``     a functional slot (unknown relations count as functional) has one live edit: the earlier
                  gives way; otherwise both stay, but the same target again, or the one that ``old_target``
                  names, gives way
mode ``replace``  all earlier edits of the slot give way
mode ``add``      none gives way
================  =======================================================================================

An edit under a name that was given as another name of one live subject is about that subject, and takes over its names, if the
relation is the same; that the new edit's own list of other names holds another's subject proves less, and is only pointed out.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from ke_tools.errors import Conflict, InvalidInput
from ke_tools.facts import MOST_WORDINGS, Edit, Fact, State
from ke_tools.memory.checks import check
from ke_tools.memory.events import LIVE, Change, Flip, Standing, record_of
from ke_tools.memory.log import Author, append, edits_where
from ke_tools.memory.names import name_key, names_of, subject_key, subject_keys
from ke_tools.memory.promotions import flip_of_succession, lawful
from ke_tools.memory.protections import Guard
from ke_tools.memory.slots import Slot, SlotRule, is_alias_risky, relation_key
from ke_tools.memory.subjects import keys_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    import apsw

Mode = Literal["auto", "replace", "add"]

_MODES: Final = ("auto", "replace", "add")
_ID_BYTES: Final = 8
_IS_LIVE: Final = "AND e.standing IN ({})".format(", ".join(f"'{standing.value}'" for standing in LIVE))
_SHARES_A_NAME: Final = (
    "AND e.id IN (SELECT edit_id FROM names WHERE tenant = ? AND name IN (SELECT value FROM json_each(?))) AND e.slot <> ?"
)
_SAME_RELATION: Final = "AND substr(e.slot, instr(e.slot, char(31)) + 1) = ?"
_UNKNOWN_RELATION: Final = (
    "AND p.payload ->> '$.relation' = '' AND coalesce(p.payload ->> '$.fact.relation', '') = ''"  # neither recognised nor given
)
_NOT_MENTIONED: Final = "AND e.id NOT IN (SELECT value FROM json_each(?))"
_MOST_NAMED: Final = 3  # edits in one warning
_NEWEST: Final = "ORDER BY +e.seq DESC LIMIT ?"
_MOST_COMPARED: Final = 64  # edits that have one name


@dataclass(frozen=True, slots=True)
class Correction:
    """A fact with how it is to be recorded."""

    fact: Fact
    slot: Slot
    ref: str = ""
    mode: Mode = "auto"
    state: State = State.ACTIVE

    @classmethod
    def of(cls, fact: Fact, rule: SlotRule, *, ref: str = "", mode: Mode = "auto", state: State = State.ACTIVE) -> Correction:
        """Find the fact's slot.

        Raises:
            InvalidInput: the mode or the state is none that a new edit can have, or the ref is no short plain text.
        """
        if ref:
            check(ref=ref)
        if mode not in _MODES:
            raise InvalidInput(f"the mode is {mode!r}.", f"Use one of {', '.join(_MODES)}.")
        if state not in {State.ACTIVE, State.PROPOSED}:
            raise InvalidInput(f"a new edit cannot be {state!r}.", "Record it as active or proposed.")
        return cls(fact, rule(fact), ref, mode, State(state))

    def contradicts(self, other: Correction) -> bool:
        """Whether both cannot be meant: one slot that has one object, two objects. A proposal contradicts no live edit."""
        is_single = self.slot.functional and "add" not in {self.mode, other.mode} and self.state is other.state
        return is_single and self.slot.key == other.slot.key and not _same(self.fact.target, other.fact.target)


def refuse_contradictions(corrections: Sequence[Correction]) -> None:
    """Refuse facts of one call that contradict each other.

    Raises:
        Conflict: naming the first such pair, counted from 1.
    """
    first: dict[str, int] = {}
    for place, correction in enumerate(corrections):
        other = corrections[first.setdefault(correction.slot.key, place)]
        if correction.contradicts(other):
            raise Conflict(
                f"contradictory edits in one call: edit {first[correction.slot.key] + 1} says {other.fact.target!r}, edit {place + 1} says"
                f" {correction.fact.target!r} of {correction.fact.subject!r} in the same relation.",
                "Keep one of them; if both are true, use mode add.",
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a correction would do now."""

    fact: Fact  # with the names that it takes over
    yielding: tuple[Edit, ...]  # what gives way
    warnings: tuple[str, ...]
    flip: Flip | None
    is_risky: bool

    def changes(self, edit_id: str) -> list[Change]:
        """How edits stand once it acts under this id."""
        return [Change(edit_id, Standing.ACTIVE), *(Change(other.id, Standing.SUPERSEDED, edit_id) for other in self.yielding)]


def record(
    db: apsw.Connection, author: Author, correction: Correction, *, siblings: Collection[int] = (), guard: Guard | None = None
) -> int:
    """Append one correction; return its sequence number, which is the new edit's revision.

    ``siblings`` are the revisions of the same call's earlier edits; of these only the same target gives way. ``guard`` keeps what is
    protected.

    Raises:
        Conflict: ``old_target`` is not what is live.
        Forbidden: the guard keeps it.
    """
    plan = planned(db, author.tenant, correction, siblings=siblings)
    if guard is not None:
        guard.refuse(plan.fact, *(other.fact for other in plan.yielding))
    slot, is_proposed = correction.slot, correction.state is State.PROPOSED
    edit_id = "ed_" + secrets.token_hex(_ID_BYTES)
    payload = {
        "id": edit_id,
        "fact": record_of(plan.fact),
        "slot": slot.key,
        "relation": slot.relation,
        "functional": slot.functional,
        "ref": correction.ref,
        "mode": correction.mode,
        "supersedes": [] if is_proposed else [other.id for other in plan.yielding],
        "warnings": list(plan.warnings),
        "alias_risky": plan.is_risky,
    }
    changes = [Change(edit_id, Standing.PROPOSED)] if is_proposed else plan.changes(edit_id)
    return append(db, author, "propose" if is_proposed else "edit", payload, lawful(db, author.tenant, changes, plan.flip), plan.flip)


def planned(db: apsw.Connection, tenant: str, correction: Correction, *, siblings: Collection[int] = ()) -> Plan:
    """Say what a correction would do now; nothing is changed. ``siblings`` as :func:`record` says.

    Raises:
        Conflict: ``old_target`` is not what is live.
    """
    live = edits_where(db, tenant, f"{_IS_LIVE} AND e.slot = ? ORDER BY e.seq", (correction.slot.key,))
    live = live or _under_another_name(db, tenant, correction)
    warnings = _refuse_if_outdated(correction, live)
    yielding = [other for other in live if _gives_way(correction, other, is_sibling=other.revision in siblings)]
    is_proposed = correction.state is State.PROPOSED
    warnings += [*_superseding(correction, yielding), *_staying(correction, live, yielding)]
    fact = correction.fact if is_proposed else _with_names_of(correction.fact, yielding)
    warnings += _renamed(correction.fact, fact, yielding)
    warnings += _beside(db, tenant, correction, {other.id for other in live})
    warnings += _waiting(db, tenant, correction) if is_proposed else []
    is_risky = is_alias_risky(fact)
    if is_risky:
        warnings.append(f"people may name {fact.subject!r} in other words; give aliases")
    warnings += [f"{name!r} is found only where it is written so" for name in (fact.subject, *fact.aliases) if _is_common(name)]
    flip = None if is_proposed else flip_of_succession(db, tenant, [other.id for other in yielding])
    return Plan(fact, tuple(yielding), (*warnings, *_flipping(flip)), flip, is_risky)


def waiting(db: apsw.Connection, tenant: str, slot: str) -> list[Edit]:
    """The proposals of a slot that wait, oldest first."""
    return edits_where(db, tenant, "AND e.standing = 'proposed' AND e.slot = ? ORDER BY e.seq", (slot,))


def _waiting(db: apsw.Connection, tenant: str, correction: Correction) -> list[str]:
    others = waiting(db, tenant, correction.slot.key)
    same = [other for other in others if _same(correction.fact.target, other.fact.target)]
    told = [f"{other.id}, by {other.actor}, says the same and waits too" for other in same[-_MOST_NAMED:]]
    rest = [_quoted(correction, other) for other in others if other not in same]
    return told + ([f"of the same subject and relation there wait too: {', '.join(rest[-_MOST_NAMED:])}"] if rest else [])


def _is_common(name: str) -> bool:
    """Whether a name is also an everyday word or a letter, which other texts are full of."""
    return any(key.written == name.strip() for key in keys_of([name]))


def _same(a: str, b: str) -> bool:
    return name_key(a) == name_key(b)


def _refuse_if_outdated(correction: Correction, live: Sequence[Edit]) -> list[str]:
    """Guard against losing somebody's correction unseen; to ask for what is live already loses nothing. A proposal is only warned."""
    fact = correction.fact
    replaces = correction.mode == "replace" or (correction.mode == "auto" and correction.slot.functional)
    if not (fact.old_target and live and replaces):
        return []
    if any(_same(other.fact.target, wanted) for other in live for wanted in (fact.old_target, fact.target)):
        return []
    last = live[-1]
    found = f"old_target is {fact.old_target!r}, but live is {last.fact.target!r} ({last.id}, by {last.actor})"
    if correction.state is State.PROPOSED:
        return [found]
    raise Conflict(
        f"{found}.",
        f"Repeat with old_target {last.fact.target!r} if it shall be replaced, or without old_target.",
        edit_id=last.id,
        live_target=last.fact.target,
    )


def _gives_way(correction: Correction, other: Edit, *, is_sibling: bool) -> bool:
    if _same(correction.fact.target, other.fact.target):
        return True  # whatever the mode: one belief is one edit, and its rollback takes it back
    if correction.mode == "add" or is_sibling:
        return False
    is_named = bool(correction.fact.old_target) and _same(correction.fact.old_target, other.fact.target)
    return correction.mode == "replace" or correction.slot.functional or is_named or correction.fact.forget


SUPERSEDES: Final = ("supersedes ", "would supersede ")  # how warnings begin that say what gives way


def _superseding(correction: Correction, yielding: Sequence[Edit]) -> list[str]:
    verb = "would supersede" if correction.state is State.PROPOSED else "supersedes"
    return [
        f"same target as {other.id}, which it {verb}"
        if _same(correction.fact.target, other.fact.target)
        else f"{verb} {_quoted(correction, other)}"
        for other in yielding
    ]


def _flipping(flip: Flip | None) -> list[str]:
    if flip is None:
        return []
    return [f"the superseded edit leaves the weights; {f'{flip.release} is live' if flip.release else 'no release is live'}"]


def _staying(correction: Correction, live: Sequence[Edit], yielding: Sequence[Edit]) -> list[str]:
    staying = [other for other in live if other not in yielding]
    if not staying:
        return []
    last = staying[-1]
    if _same(last.fact.target, correction.fact.target):
        return [f"same target as {last.id}, which stays live beside it"]
    more = f" and {len(staying) - 1} more" if len(staying) > 1 else ""
    return [f"{_quoted(correction, last)}{more} of the same subject and relation stays live beside it"]


def _under_another_name(db: apsw.Connection, tenant: str, correction: Correction) -> list[Edit]:
    """Find the live edits of the relation that this edit's subject is another name of, if they are all about one subject."""
    found = _sharing(db, tenant, correction, subject_keys(correction.fact.subject), _SAME_RELATION, (relation_key(correction.slot.key),))
    return found if len({subject_key(other.fact.subject) for other in found}) == 1 else []


def _sharing(
    db: apsw.Connection, tenant: str, correction: Correction, names: Collection[str], condition: str, values: Sequence[str | int] = ()
) -> list[Edit]:
    """Find live edits of other slots that have one of these names, oldest first."""
    shared = (tenant, json.dumps(sorted(names)), correction.slot.key)
    found = edits_where(db, tenant, f"{_IS_LIVE} {_SHARES_A_NAME} {condition}", (*shared, *values))
    return sorted(found, key=lambda edit: edit.revision)


def _with_names_of(fact: Fact, yielding: Sequence[Edit]) -> Fact:
    """Keep the names under which a subject was corrected so far, so that a question with any of them finds the new correction."""
    own = {name_key(name).removeprefix("the ") for name in names_of(fact.subject, fact.aliases)}
    renamed = [other.fact for other in yielding if name_key(other.fact.subject).removeprefix("the ") not in own]
    if not renamed:
        return fact
    names = {name_key(name): name for other in renamed for name in (*other.aliases[::-1], other.subject)}
    for name in (fact.subject, *fact.aliases):
        names.pop(name_key(name), None)
    return replace(fact, aliases=(*fact.aliases, *reversed(names.values()))[:MOST_WORDINGS])


def _renamed(given: Fact, kept: Fact, yielding: Sequence[Edit]) -> list[str]:
    added = kept.aliases[len(given.aliases) :]
    if not added:
        return []
    by = ", ".join(other.id for other in yielding)
    return [f"{given.subject!r} is another name of {added[0]!r} ({by}); it counts as the same subject and keeps its names"]


def _beside(db: apsw.Connection, tenant: str, correction: Correction, mentioned: Collection[str]) -> list[str]:
    """Name the live edits of other slots that this one may contradict; none of them gives way on a guess."""
    overlapping = {other.id: warning for other, warning in _overlapping(db, tenant, correction) if other.id not in mentioned}
    known = {*mentioned, *overlapping}
    return [
        *overlapping.values(),
        *_ambiguous(db, tenant, correction, known),
        *_unplaced(correction, _unclear(db, tenant, correction, known)),
    ]


def _overlapping(db: apsw.Connection, tenant: str, correction: Correction) -> Iterator[tuple[Edit, str]]:
    """Name live edits of the same relation whose subject shares a name with this one's, but is written otherwise."""
    fact = correction.fact
    names = [name_key(name) for name in names_of(fact.subject, fact.aliases)]
    for other in _sharing(db, tenant, correction, names, _SAME_RELATION, (relation_key(correction.slot.key),)):
        theirs = {name_key(name) for name in (other.fact.subject, *other.fact.aliases)}
        shared = next(name for name in names if name in theirs)
        said = "" if correction.fact.forget else f": {other.fact.target!r}"
        yield other, f"{other.id} ({other.fact.subject!r}{said}) shares the name {shared!r} and stays live beside it"


def _ambiguous(db: apsw.Connection, tenant: str, correction: Correction, mentioned: Collection[str]) -> list[str]:
    """Name each given alias that other subjects have too: a question with it may be about either, and both are looked at."""
    fact, warnings = correction.fact, []
    own = subject_keys(fact.subject)
    for alias in dict.fromkeys(name_key(alias) for alias in fact.aliases):
        others = [other for other in _sharing(db, tenant, correction, [alias], _NEWEST, (_MOST_COMPARED,)) if other.id not in mentioned]
        subjects = dict.fromkeys(other.fact.subject for other in others if subject_key(other.fact.subject) not in own)
        if alias not in own and subjects:
            named = ", ".join(map(repr, list(subjects)[-_MOST_NAMED:])) + (" and others" if len(subjects) > _MOST_NAMED else "")
            warnings.append(f"{alias!r} is also a name of {named}; a question with it may be about either")
    return warnings


def _unclear(db: apsw.Connection, tenant: str, correction: Correction, mentioned: Collection[str]) -> list[Edit]:
    """Find live edits of the same subject that may say the same in other words: one of the two relations is not known."""
    is_known = bool(correction.slot.relation or correction.fact.relation)
    condition = f"{_UNKNOWN_RELATION if is_known else ''} {_NOT_MENTIONED} ORDER BY +e.seq DESC LIMIT ?"
    values = (json.dumps(sorted(mentioned)), _MOST_NAMED + 1)
    return _sharing(db, tenant, correction, subject_keys(correction.fact.subject), condition, values)


def _quoted(correction: Correction, other: Edit) -> str:
    """Name another edit by what it says; one that forgets must not keep that."""
    return other.id if correction.fact.forget else f"{other.id} ({other.fact.target!r})"


def _unplaced(correction: Correction, unclear: Sequence[Edit]) -> list[str]:
    if not unclear:
        return []
    shown = unclear[-_MOST_NAMED:]
    told = (other.id if correction.fact.forget else f"{other.id} ({other.fact.prompt!r} {other.fact.target!r})" for other in shown)
    named = ", ".join(told)
    more = " and others" if len(unclear) > _MOST_NAMED else ""
    doubt = "if one of them says the same in other words, which is not known, take it back, or give both the same relation"
    return [f"of the same subject, {named}{more} stay live beside it; {doubt}"]
