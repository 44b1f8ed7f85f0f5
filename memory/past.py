"""A tenant's edits as they stood after an event, for whoever follows a ledger: what was live then is answered from again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ke_tools.facts import State
from ke_tools.memory.view import View

if TYPE_CHECKING:
    from ke_tools.facts import Edit

__all__ = ["Past"]


class Past(View):
    """A ledger that ends with an event; what a purge erased since is not in it."""

    def live(self, tenant: str, *, with_proposed: bool = False) -> list[Edit]:
        """Return what acted on answers then, oldest first."""
        states = {State.ACTIVE, State.PROMOTED} | ({State.PROPOSED} if with_proposed else set())
        then = (edit for edit in self.at(tenant, self._revision) if edit.state in states)
        return [replace(edit, fact=replace(edit.fact, expires="")) for edit in then]  # what has expired since acted then

    def live_release(self, tenant: str) -> str:
        """Return what was live then."""
        return self.release_at(tenant, self._revision)
