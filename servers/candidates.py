"""Which edits are worth a promotion: old enough to have held, asked for often enough to matter, made by somebody who is trusted.

Nothing is promoted by being named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, State

if TYPE_CHECKING:
    from ke_tools.memory.ledger import Ledger

__all__ = ["Candidate", "Wanted", "candidates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an edit must be; all of it.

    Raises:
        InvalidInput: a value means nothing.
    """

    older_than_days: float = 7.0  # a wrong correction is mostly taken back within days
    fired: int = 5  # requests that were about it
    actors: tuple[str, ...] = ()  # who made it; empty: anybody

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("older_than_days", "fired"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise InvalidInput(f"{name} is {value!r}.", "Give a number from 0 on.")
        if not isinstance(self.actors, tuple) or not all(isinstance(actor, str) for actor in self.actors):
            raise InvalidInput(f"actors is {self.actors!r}.", "Give a list of names.")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Self:
        """The defaults with some values replaced.

        Raises:
            InvalidInput: a name is unknown, or as for the class.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise InvalidInput(f"what `promote --auto` names has no {', '.join(map(repr, unknown))}.", f"It has: {', '.join(known)}.")
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An edit that is worth a promotion, and why."""

    edit: Edit
    reason: str


def candidates(ledger: Ledger, tenant: str, wanted: Wanted, *, now: datetime | None = None) -> list[Candidate]:
    """Name a tenant's edits that act from the memory and are what is wanted, the most asked for first."""
    fired, moment = ledger.fired(tenant), now or datetime.now(UTC)
    found: list[tuple[int, Candidate]] = []
    for edit in ledger.live(tenant):
        days = (moment - datetime.fromisoformat(edit.created_at)).total_seconds() / 86_400
        times = fired.get(edit.id, 0)
        is_trusted = not wanted.actors or edit.actor in wanted.actors
        is_able = edit.state is State.ACTIVE and not edit.fact.forget and not edit.fact.expires
        if is_able and days >= wanted.older_than_days and times >= wanted.fired and is_trusted:
            found.append((times, Candidate(edit, f"{days:.0f} days old, asked for {times} times, by {edit.actor}")))
    return [one for _, one in sorted(found, key=lambda pair: -pair[0])]
