"""The nouns of the ledger, and the hash that chains its events.

An event says who did what when; its *payload* says with which words, its *changes* how the edits stand since, and its *flip*, where
it has one, which release is live since. Changes and flips alone decide what acts on answers, so that a purged payload takes nothing
else with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from ke_tools.facts import Edit, Fact, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

T = TypeVar("T")

_FIELDS: Final = tuple((field.name, field.default) for field in fields(Fact))

GENESIS: Final = bytes(32)  # what the first event follows


class Standing(StrEnum):
    """How an edit stands; :class:`~ke_tools.facts.State` does not tell the last two apart."""

    PROPOSED = "proposed"
    ACTIVE = "active"
    PROMOTED = "promoted"
    SUPERSEDED = "superseded"  # comes back when what superseded it is rolled back
    ROLLED_BACK = "rolled back"  # or rejected; comes back by a rollback to a revision only
    EXPIRED = "expired"  # its time has passed

    @property
    def state(self) -> State:
        """The public state."""
        return State.RETIRED if self in {Standing.SUPERSEDED, Standing.ROLLED_BACK, Standing.EXPIRED} else State(self.value)


LIVE: Final = (Standing.ACTIVE, Standing.PROMOTED)


@dataclass(frozen=True, slots=True)
class Change:
    """How an edit stands from an event on."""

    edit_id: str
    standing: Standing
    superseded_by: str = ""  # a live edit, or one that is itself superseded; "" unless superseded


@dataclass(frozen=True, slots=True)
class Flip:
    """Which release is live from an event on."""

    release: str = ""  # "" for none
    edit_ids: tuple[str, ...] = ()  # what it carries, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the log. ``edit_ids`` are all edits whose standing it changed, the one it made first."""

    seq: int
    at: str  # UTC, ISO 8601
    actor: str
    action: str  # edit | propose | approve | reject | promote | demote | rollback | expire | purge | protect | unprotect
    edit_ids: tuple[str, ...]
    reason: str
    payload: Mapping[str, Any]  # empty when purged
    tenant: str
    changes: tuple[Change, ...]
    flip: Flip | None = None  # where it made another release live
    purged: bool = False

    @property
    def note(self) -> str:
        """What a reader of the history is told besides: the reason, and which release went live."""
        said = "what it said was purged" if self.purged else self.reason
        if self.flip is None:
            return said
        count = len(self.flip.edit_ids)
        live = f"{self.flip.release} is live with {count} edit{'s' * (count != 1)}" if self.flip.release else "no release is live"
        return f"{said}; {live}" if said else live


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a longer list, newest first; ``next_cursor`` is "" on the last page."""

    items: list[T]
    total: int
    next_cursor: str


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback changed, oldest first; ``revision`` is the ledger's after it."""

    retired: list[Edit]
    restored: list[Edit]
    revision: int
    release: str = ""  # what is live after it


@dataclass(frozen=True, slots=True)
class Published:
    """What a flip to another release changed, oldest first; ``revision`` is the ledger's after it."""

    promoted: list[Edit]
    demoted: list[Edit]
    revision: int
    release: str  # what is live after it


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge could not erase itself, as it lies outside the ledger or is somebody else's word."""

    edit_id: str
    revision: int  # the ledger's after it
    quoted_by: tuple[str, ...]  # edits that say the target too: only their own purge erases it there
    releases: tuple[str, ...]  # that carry the edit; their folders are the caller's to erase


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that :meth:`~ke_tools.memory.ledger.Ledger.audit` has to say.

    All but ``purged`` needs a person; ``unerased`` is what a purge left behind.
    """

    kind: Literal["file", "chain", "payload", "projection", "release", "scorecard", "key", "unerased", "purged"]
    message: str
    seq: int = 0  # of the event; 0 where none is meant

    @property
    def is_damage(self) -> bool:
        """Whether something is wrong; a whole purge is not."""
        return self.kind != "purged"


def now() -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def canonical(value: Any) -> str:
    """One text for one JSON value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(salt: bytes, payload: str) -> bytes:
    """Hash of what an event says. The salt keeps an erased text from being guessed."""
    return hashlib.sha256(salt + payload.encode()).digest()


def chain_hash(
    previous: bytes, row: tuple[int, str, str, str, str], content: bytes, changes: Iterable[Change], flip: Flip | None = None
) -> bytes:
    """Hash of an event ``row`` = (seq, tenant, kind, actor, at), of what it says, changes and follows.

    An event without a flip hashes as it did before there were any.
    """
    moved = sorted((change.edit_id, change.standing.value, change.superseded_by) for change in changes)
    flipped = [] if flip is None else [flip.release, sorted(flip.edit_ids)]
    return hashlib.sha256(canonical([previous.hex(), *row, content.hex(), moved, *flipped]).encode()).digest()


def record_of(fact: Fact) -> dict[str, Any]:
    """A fact as JSON; what is empty is left out."""
    values = ((field.name, getattr(fact, field.name)) for field in fields(Fact))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values if value}


def recalled(record: Mapping[str, Any]) -> Fact:
    """A stored fact, unchecked: what was accepted once stays readable when the rules for new facts change."""
    fact = object.__new__(Fact)
    for name, default in _FIELDS:
        value = record.get(name, default)
        object.__setattr__(fact, name, tuple(value) if isinstance(value, list) else value)
    return fact
