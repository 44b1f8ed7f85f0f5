"""How many edits one actor may record in a minute, counted in the log, so that neither a restart nor a second process starts anew."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from ke_tools.errors import InvalidInput, LimitReached
from ke_tools.memory.events import now
from ke_tools.memory.moments import later

if TYPE_CHECKING:
    import apsw

    from ke_tools.memory.log import Author

_RECENT = (
    "SELECT at FROM events INDEXED BY events_by_actor WHERE tenant = ? AND actor = ? AND at > ? AND kind IN ('edit', 'propose') ORDER BY at"
)


def refuse_if_over(db: apsw.Connection, author: Author, count: int, per_minute: int) -> None:
    """Refuse ``count`` more edits where that makes over ``per_minute`` (0: any number) within the last minute.

    Raises:
        InvalidInput: it are too many for any minute.
        LimitReached: it are too many for this one; the message says when it may go on.
    """
    if not per_minute:
        return
    if count > per_minute:
        raise InvalidInput(
            f"{count} edits were given, and {author.name!r} may record {per_minute} a minute.", f"Give at most {per_minute} at a time."
        )
    moment = now()
    recent = [at for (at,) in db.execute(_RECENT, (author.tenant, author.name, later(moment, minutes=-1)))]
    excess = len(recent) + count - per_minute
    if excess > 0:
        again = later(recent[excess - 1], minutes=1)
        raise LimitReached(
            f"{author.name!r} recorded {len(recent)} edits within a minute and may record {per_minute}; nothing was recorded.",
            f"Go on at {again}.",
            again_at=again,
            poll_after_ms=max(1, round(1000 * (datetime.fromisoformat(again) - datetime.fromisoformat(moment)).total_seconds())),
        )
