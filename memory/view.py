"""A ledger seen otherwise than it stands, for reading: what all such views have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ke_tools.memory.ledger import Ledger

if TYPE_CHECKING:
    from ke_tools.facts import Edit

__all__ = ["View"]


class View(Ledger):
    """A ledger in the file of another one, that goes no further than an event. Closing is for the ledger it was made of."""

    def __init__(self, ledger: Ledger, revision: int) -> None:
        self._storage = ledger._storage  # noqa: SLF001  a view of the same file
        self._revision = revision

    @property
    def path(self) -> str:
        """No file of its own, so that nothing derived from it is kept in one."""
        return ":memory:"

    @property
    def read_only(self) -> bool:
        """A view changes nothing."""
        return True

    def head(self) -> int:
        """The event it ends with."""
        return self._revision

    def since(self, tenant: str, seq: int) -> list[Edit]:  # noqa: ARG002  it has ended
        """Return nothing: who follows it has read it whole."""
        return []

    def changed(self, tenant: str, seq: int) -> set[str]:  # noqa: ARG002
        """Return nothing, likewise."""
        return set()
