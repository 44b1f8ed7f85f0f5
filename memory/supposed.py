"""A ledger as it would be if a proposal were approved, for whoever wants to see what it would change; nothing is written."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ke_tools.facts import State
from ke_tools.memory.view import View

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.proposals import Outlook

__all__ = ["Supposed"]


class Supposed(View):
    """A ledger in which one tenant's proposal acts."""

    def __init__(self, ledger: Ledger, outlook: Outlook) -> None:
        super().__init__(ledger, ledger.head())
        self._edit = replace(
            outlook.edit, fact=outlook.fact, state=State.ACTIVE, supersedes=tuple(other.id for other in outlook.superseding)
        )
        self._gone = frozenset(self._edit.supersedes)
        self._release = outlook.release

    def get(self, tenant: str, edit_id: str) -> Edit:
        """Return an edit as it would stand."""
        return self._as_it_would_be(super().get(tenant, edit_id))

    def live(self, tenant: str, *, with_proposed: bool = False) -> list[Edit]:
        """Return what would act on answers; the proposal is the latest."""
        there = [self._as_it_would_be(edit) for edit in super().live(tenant, with_proposed=with_proposed) if edit.id != self._edit.id]
        return [edit for edit in there if edit.id not in self._gone] + ([self._edit] if tenant == self._edit.tenant else [])

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
