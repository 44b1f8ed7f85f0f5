"""A tenant's edits as they stood after an event, for whoever follows a ledger: what was live then is answered from again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ke_tools.facts import State
from ke_tools.memory.ledger import Ledger

if TYPE_CHECKING:
    from ke_tools.facts import Edit

__all__ = ["Past"]


class Past(Ledger):
    """A ledger that ends with the event ``revision``, for reading; it lies in the file of the one that it was made of.

    What a purge erased since is not in it. Closing is for the ledger it was made of.
    """

    def __init__(self, ledger: Ledger, revision: int) -> None:
        self._storage = ledger._storage  # noqa: SLF001  a view of the same file
        self._revision = revision

    @property
    def path(self) -> str:
        """No file of its own, so that nothing derived from it is kept in one."""
        return ":memory:"

    @property
    def read_only(self) -> bool:
        """The past cannot be changed."""
        return True

    def head(self) -> int:
        """The event it ends with."""
        return self._revision

    def live(self, tenant: str, *, with_proposed: bool = False) -> list[Edit]:
        """Return what acted on answers then, oldest first."""
        states = {State.ACTIVE, State.PROMOTED} | ({State.PROPOSED} if with_proposed else set())
        then = (edit for edit in self.at(tenant, self._revision) if edit.state in states)
        return [replace(edit, fact=replace(edit.fact, expires="")) for edit in then]  # what has expired since acted then

    def since(self, tenant: str, seq: int) -> list[Edit]:  # noqa: ARG002  it has ended
        """Return nothing: who follows it has read it whole."""
        return []

    def changed(self, tenant: str, seq: int) -> set[str]:  # noqa: ARG002
        """Return nothing, likewise."""
        return set()

    def live_release(self, tenant: str) -> str:
        """Return what was live then."""
        return self.release_at(tenant, self._revision)
