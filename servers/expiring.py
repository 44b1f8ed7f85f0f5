"""Retires edits when their time has passed, while a service runs; they are served no longer from that moment on, retired or not."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ke_tools.errors import KeToolsError

if TYPE_CHECKING:
    from ke_tools.memory.ledger import Ledger

__all__ = ["Expiring"]

log = logging.getLogger(__name__)

_LONGEST: Final = 86_400.0  # seconds of one wait
_SHORTEST: Final = 0.01
_AGAIN: Final = 1.0  # after a ledger that could not be read or written


class Expiring:
    """A timer for the next expiry of a ledger; none where nothing expires. Thread safe."""

    def __init__(self, ledger: Ledger | None) -> None:
        """Take a ledger, or ``None`` to do nothing."""
        self._ledger = ledger if ledger is not None and not ledger.read_only else None
        self._timer: threading.Timer | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def arm(self) -> None:
        """Retire what is over, and wait for what expires next."""
        with self._lock:
            if self._ledger is None or self._is_closed:
                return
            seconds = self._swept(self._ledger)
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if seconds is not None:
                self._timer = threading.Timer(min(_LONGEST, max(_SHORTEST, seconds)), self.arm)
                self._timer.daemon = True
                self._timer.start()

    def _swept(self, ledger: Ledger) -> float | None:
        """Retire what is over; gives the seconds until there is something to do again, ``None`` for never."""
        try:
            over = ledger.expiries.next()
            if over and _seconds_until(over) <= 0:
                log.info("expired: %s", ", ".join(ledger.expiries.sweep()))
                over = ledger.expiries.next()
        except KeToolsError as error:
            log.warning("what has expired is not retired yet: %s", error)
            return _AGAIN if error.retryable else None
        return _seconds_until(over) if over else None

    def close(self) -> None:
        """Wait no longer."""
        with self._lock:
            self._is_closed = True
            if self._timer is not None:
                self._timer.cancel()


def _seconds_until(moment: str) -> float:
    return (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
