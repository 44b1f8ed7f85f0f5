"""A ledger as it would be if a proposal were approved, for whoever wants to see what it would change; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ke_tools.facts import State
from ke_tools.memory.ledger import Ledger

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.memory.proposals import Outlook

__all__ = ["Supposed"]


class Supposed(Ledger):
    """A ledger in which one tenant's proposal acts, for reading; it lies in the file of the one that it was made of.

    Closing is for the ledger it was made of.
    """

    def __init__(self, ledger: Ledger, outlook: Outlook) -> None:
        self._storage = ledger._storage  # noqa: SLF001  a view of the same file
        self._revision = ledger.head()
        self._edit = replace(
            outlook.edit, fact=outlook.fact, state=State.ACTIVE, supersedes=tuple(other.id for other in outlook.superseding)
        )
        self._gone = frozenset(self._edit.supersedes)
        self._release = outlook.release

    @property
    def path(self) -> str:
        """No file of its own, so that nothing derived from it is kept in one."""
        return ":memory:"

    @property
    def read_only(self) -> bool:
        """What is only supposed cannot be changed."""
        return True

    def head(self) -> int:
        """The event after which it is supposed."""
        return self._revision

    def get(self, tenant: str, edit_id: str) -> Edit:
        """Return an edit as it would stand."""
        return self._as_it_would_be(super().get(tenant, edit_id))

    def live(self, tenant: str, *, with_proposed: bool = False) -> list[Edit]:
        """Return what would act on answers; the proposal is the latest."""
        there = [self._as_it_would_be(edit) for edit in super().live(tenant, with_proposed=with_proposed) if edit.id != self._edit.id]
        return [edit for edit in there if edit.id not in self._gone] + ([self._edit] if tenant == self._edit.tenant else [])

    def since(self, tenant: str, seq: int) -> list[Edit]:  # noqa: ARG002  it does not go on
        """Return nothing: who follows it has read it whole."""
        return []

    def changed(self, tenant: str, seq: int) -> set[str]:  # noqa: ARG002
        """Return nothing, likewise."""
        return set()

    def live_release(self, tenant: str) -> str:
        """Return what would be live."""
        if tenant == self._edit.tenant and self._release is not None:
            return self._release
        return super().live_release(tenant)

    def _as_it_would_be(self, edit: Edit) -> Edit:
        if edit.tenant != self._edit.tenant:
            return edit
        if edit.id in self._gone:
            return replace(edit, state=State.RETIRED, superseded_by=self._edit.id)
        return self._edit if edit.id == self._edit.id else edit
