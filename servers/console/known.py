"""Edits by their ids, for pages that name some; one that was purged is left out."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ke_tools.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ke_tools.facts import Edit
    from ke_tools.memory.ledger import Ledger

__all__ = ["known"]


def known(ledger: Ledger, tenant: str, edit_ids: Iterable[str]) -> dict[str, Edit]:
    """The tenant's edits of these ids, as far as there are any."""
    found = {}
    for edit_id in dict.fromkeys(edit_ids):
        with suppress(NotFound):
            found[edit_id] = ledger.get(tenant, edit_id)
    return found
