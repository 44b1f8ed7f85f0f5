"""What of the ledger could not be read when it was last tried, so that not only the caller who met it is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from ke_tools.errors import LedgerDamaged

log = logging.getLogger(__name__)

_MOST: Final = 64  # places that are remembered; the oldest are forgotten first


class Damage:
    """Damage by the place where it was met; it is gone when the same place can be read again. Thread safe."""

    def __init__(self) -> None:
        self._found: dict[tuple[Hashable, ...], str] = {}
        self._lock = threading.Lock()

    @property
    def told(self) -> str:
        """What was met last; empty where all that was tried could be read."""
        with self._lock:
            return next(reversed(self._found.values()), "")

    @contextmanager
    def watching(self, *place: Hashable) -> Iterator[None]:
        """Remember damage that the block meets, and forget it when the block ends well."""
        try:
            yield
        except LedgerDamaged as error:
            self.note(place, str(error))
            raise
        self.forget(place)

    def note(self, place: tuple[Hashable, ...], what: str) -> None:
        """Remember, and log what is new."""
        with self._lock:
            is_new = what not in self._found.values()
            self._found.pop(place, None)
            self._found[place] = what
            if len(self._found) > _MOST:
                del self._found[next(iter(self._found))]
        if is_new:
            log.error("the ledger cannot be read: %s", what)

    def forget(self, place: tuple[Hashable, ...]) -> None:
        """Take back what was noted of a place."""
        with self._lock:
            self._found.pop(place, None)
