"""Counts which edits requests are about, off the path of the answers: in memory, and from time to time into the ledger's file."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from ke_tools.errors import KeToolsError

if TYPE_CHECKING:
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.scope import Hit

__all__ = ["Fired", "Hourly"]

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 30.0
_HOURS: Final = 24


class Fired:
    """The counts of one service. Thread safe. A process that is killed loses those of the last half minute."""

    def __init__(self, ledger: Ledger | None, *, seconds: float = FLUSH_SECONDS) -> None:
        """Take a ledger, or ``None`` to count nothing."""
        self._ledger = ledger if ledger is not None and not ledger.read_only else None
        self._seconds = seconds
        self._counts: Counter[tuple[str, str]] = Counter()
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def note(self, tenant: str, hits: Iterable[Hit]) -> None:
        """Count one request; touches no file."""
        if self._ledger is None or not (ids := [hit.edit.id for hit in hits]):
            return
        with self._lock:
            self._counts.update((tenant, edit_id) for edit_id in ids)
            if self._timer is None:
                self._timer = threading.Timer(self._seconds, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Write what was counted; what cannot be written is tried with the next."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if self._ledger is None or not counts:
            return
        try:
            self._ledger.count_fired(counts)
        except KeToolsError as error:
            log.warning("how often edits were asked for is not written yet: %s", error)
            with self._lock:
                self._counts.update(counts)


class Hourly:
    """How many edits fired in each of the last 24 hours, as far as this process has run, by tenant. Thread safe."""

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Begin at zero."""
        self._clock = clock
        self.since: Final = clock()
        self._counts: Counter[tuple[datetime, str]] = Counter()
        self._lock = threading.Lock()

    def note(self, tenant: str, fired: int) -> None:
        """Count what fired just now; forget what is older than a day."""
        if not fired:
            return
        hour = _whole(self._clock())
        with self._lock:
            if (hour, tenant) not in self._counts:
                oldest = hour - timedelta(hours=_HOURS - 1)
                for gone in [key for key in self._counts if key[0] < oldest]:
                    del self._counts[gone]
            self._counts[hour, tenant] += fired

    def of(self, tenant: str | None) -> list[tuple[datetime, int]]:
        """Return each hour's beginning with a tenant's count, or with ``None`` everybody's, the oldest first."""
        last = _whole(self._clock())
        hours = [last - timedelta(hours=back) for back in reversed(range(_HOURS))]
        with self._lock:
            counts = dict(self._counts)
        return [(hour, sum(n for (at, whose), n in counts.items() if at == hour and tenant in {None, whose})) for hour in hours]


def _whole(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
