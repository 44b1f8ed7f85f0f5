"""The verb: write facts into a model's weights, as a plan that can be applied, saved and taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

__all__ = ["Editor", "edit"]

Progress = Callable[[str, int, int], None]
Planned_co = TypeVar("Planned_co", covariant=True)  # an Update, or a Codebook


class Editor(Protocol[Planned_co]):
    """A method: a frozen dataclass that is its own configuration."""

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> Any:
        """Take what depends on the model alone."""

    def plan(self, prepared: Any, facts: Sequence[Fact], *, earlier: Sequence[Update] = (), tell: Progress | None = None) -> Planned_co:
        """Plan an update; the model stays as it is, bit for bit."""


def edit(
    model: CausalModel,
    facts: Sequence[Fact],
    method: Editor[Planned_co],
    *,
    earlier: Sequence[Update] = (),
    cache: Path | None = None,
    tell: Progress | None = None,
) -> Planned_co:
    """Plan an update that makes a model believe facts; the model stays as it is.

    Args:
        model: to be edited.
        facts: what it shall believe; a fact's paraphrases are more ways in which it is to be reached.
        method: how.
        earlier: updates that are applied already and shall hold on, for methods that heed them.
        cache: folder in which statistics of the model are kept.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: there are no facts, two contradict one another, or one cannot be placed.
    """
    if not facts:
        raise InvalidInput("there are no facts.", "Give at least one.")
    made: Planned_co = method.plan(method.prepare(model, cache=cache, tell=tell), facts, earlier=earlier, tell=tell)
    return made
