"""What one token changed, and the way to take all of it back at once."""

from __future__ import annotations

from typing import Final

from ke_tools.errors import InvalidInput
from ke_tools.memory.moments import ago
from ke_tools.servers import undoing
from ke_tools.servers.console.edits import change
from ke_tools.servers.console.pages import Asked, Moved, Page, Part, Row, seen

__all__ = ["Actors"]

_A_PAGE: Final = 25
_SHOWN: Final = 30  # edits of each kind in a preview
_NAMED: Final = 3  # edits of an event
_SINCE: Final = "1d"


class Actors(Part):
    """The pages about who did what."""

    def routes(self) -> list[Row]:
        """Give method, path and page; a name stands in the query, as it may hold any sign."""
        return [
            ("GET", "/console/actors", self.one),
            ("GET", "/console/actors/undo", self.preview),
            ("POST", "/console/actors/undo", self.undo),
        ]

    def one(self, asked: Asked) -> Page:
        """Show what a token did, newest first."""
        asked.who.require("read")
        name, cursor, tenant, ledger = _name(asked), asked.said("cursor"), asked.who.tenant, self._service.ledger
        with self._service.damage.watching("actor", tenant, name, cursor):
            page = ledger.history(tenant, by=name, limit=_A_PAGE, cursor=cursor)
            record = ledger.proposals.record(tenant, name)
            edits = ledger.several(tenant, (edit_id for event in page.items for edit_id in event.edit_ids[:_NAMED]))
        context = {
            "name": name,
            "record": record,
            "events": page.items,
            "edits": edits,
            "named": _NAMED,
            "total": page.total,
            "next_cursor": page.next_cursor,
            "is_first": not cursor,
            "since": _SINCE,
        }
        return Page("actor.html", context)

    def preview(self, asked: Asked) -> Page:
        """Say what undoing all that a token changed would come to."""
        self._pages.check_writable()
        self._service.check_writable(asked.who)
        name, since = _name(asked), ago(asked.said("since").strip())
        if asked.later:
            return Page("actor_undo.html", {"name": name, "since": since})
        would = undoing.undo(self._service, asked.who, name, since, dry_run=True)
        context = {
            "name": name,
            "since": since,
            "would": would,
            "most": _SHOWN,
            "live_release": self._service.ledger.live_release(asked.who.tenant),
            "seen": seen(*change(would)),
        }
        return Page("_actor_undo.html" if asked.is_part else "actor_undo.html", context)

    def undo(self, asked: Asked) -> Moved:
        """Undo it."""
        self._pages.check_writable()
        name, since, reason = _name(asked), asked.said("since").strip(), asked.said("reason").strip()
        with self._pages.deciding:
            self._pages.check_seen(asked, *change(undoing.undo(self._service, asked.who, name, since, dry_run=True)))
            done = undoing.undo(self._service, asked.who, name, since, reason=reason)
        return Moved("/console/queue", done["summary"])


def _name(asked: Asked) -> str:
    name = asked.said("actor").strip()
    if not name:
        raise InvalidInput("no token was named.", "Give its name as the history has it.")
    return name
