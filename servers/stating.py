"""A sentence as an edit: split by its own words, else by the served model among spans of the sentence; else asked back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.memory.statement import Doubt, Split, corrected, split
from ke_tools.memory.statement.aided import aided
from ke_tools.memory.statement.meanings import InventoryMeanings
from ke_tools.models.engine import Request, Scores

if TYPE_CHECKING:
    from pathlib import Path

    from ke_tools.memory.scope import Scope

__all__ = ["Statements", "refused", "scored_by"]

_PARTS: Final = ("subject", "prompt", "target", "forget", "relation")
_SHARED: Final = frozenset({"source", "expires"})  # what holds for each fact of a sentence


class Statements:
    """Splits sentences for tenants. Thread safe; what it reads with is loaded with the first sentence."""

    def __init__(self, scope: Scope, *, cache: Path | None = None) -> None:
        self._scope = scope
        self._meanings = InventoryMeanings(cache=cache)

    def split(self, tenant: str, text: str, engine: object = None) -> list[Split | Doubt]:
        """Split a text into its facts, in order; an engine that can score may choose where one has several readings.

        Raises:
            InvalidInput: there is no statement that could be split.
        """
        found = split(text, known=lambda part: self._named(tenant, part), meanings=self._meanings)
        if not isinstance(engine, Scores):
            return found
        return [aided(one, scored_by(engine)) if isinstance(one, Doubt) else one for one in found]

    def corrected(self, tenant: str, remark: str, question: str, answer: str) -> Split | None:
        """Read a remark about an answer; ``None`` where it corrects nothing."""
        return corrected(remark, question, answer, known=lambda part: self._named(tenant, part), meanings=self._meanings)

    def expanded(self, tenant: str, facts: Sequence[Mapping[str, Any]], engine: object) -> list[dict[str, Any]]:
        """Put the parts of each ``statement`` in its place; two facts in a sentence are two.

        Raises:
            InvalidInput: a statement beside parts that it has itself, none at all, or one that is not certain; the message asks back, and
                ``data["candidates"]`` has the readings.
        """
        expanded: list[dict[str, Any]] = []
        for number, given in enumerate(facts, 1):
            rest = {name: value for name, value in given.items() if name != "statement"}
            stated = given.get("statement") or ""
            if not stated:
                expanded.append(rest)
                continue
            if not isinstance(stated, str) or any(rest.get(name) for name in _PARTS):
                raise InvalidInput(f"edit {number} has a statement and its parts.", "Give the statement, or subject, prompt and target.")
            parts = {name: value for name, value in rest.items() if name not in _PARTS}
            found = self.split(tenant, stated, engine)
            if len(found) > 1 and (kept := sorted(name for name, value in parts.items() if value and name not in _SHARED)):
                raise InvalidInput(
                    f"edit {number} states {len(found)} facts, and has {', '.join(kept)}.",
                    "Give each a statement; source and expires may hold for both.",
                )
            expanded += [{**parts, **one.as_fact()} for one in map(_sure, found)]
        return expanded

    def _named(self, tenant: str, text: str) -> Collection[tuple[int, int]]:
        return self._scope.named(tenant, text)


def refused(doubt: Doubt) -> InvalidInput:
    """The error of a statement that is not certain: one question back, and the readings."""
    return InvalidInput(
        f"it is not certain what {doubt.sentence[:200]!r} says. {doubt.question}",
        "Ask your user, then say it so, or give subject, prompt and target.",
        question=doubt.question,
        candidates=[one.as_dict() for one in doubt.candidates],
    )


def _sure(found: Split | Doubt) -> Split:
    if isinstance(found, Doubt):
        raise refused(found)
    return found


def scored_by(engine: Scores) -> Callable[[str, Sequence[str]], list[float | None]]:
    """Give what an engine makes of a prompt's endings."""

    def score(prompt: str, endings: Sequence[str]) -> list[float | None]:
        try:
            return engine.score([Request(prompt=prompt)] * len(endings), endings)
        except KeToolsError:  # a model that cannot say leaves the doubt
            return [None] * len(endings)

    return score
