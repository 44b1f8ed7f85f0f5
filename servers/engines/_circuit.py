"""What keeps a server that does not answer from being asked by everybody: each would wait as long as the first did."""

from __future__ import annotations

import threading
import time
from typing import Final

from ke_tools.errors import ModelUnavailable

__all__ = ["Circuit"]

FAILURES: Final = 3  # in a row
SECONDS: Final = 2.0


class Circuit:
    """After :data:`FAILURES` failures in a row, whoever asks within :data:`SECONDS` is refused at once; then one may try. Thread safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._failures = 0
        self._why = ""
        self._again = 0.0

    @property
    def told(self) -> str:
        """What failed last; empty where the last try went well."""
        with self._lock:
            return self._why

    def check(self) -> None:
        """Do nothing where the server may be asked.

        Raises:
            ModelUnavailable: it failed lately.
        """
        with self._lock:
            if self._failures < FAILURES:
                return
            if (left := self._again - time.monotonic()) <= 0:
                self._again = time.monotonic() + SECONDS  # this one tries; the others wait for what comes of it
                return
            raise self._error(left)

    def worked(self) -> None:
        """It answered, whatever it said."""
        with self._lock:
            self._failures, self._why = 0, ""

    def failed(self, why: str) -> ModelUnavailable:
        """It did not answer; gives the error to raise."""
        with self._lock:
            self._failures, self._why = self._failures + 1, why
            self._again = time.monotonic() + SECONDS
            return self._error(SECONDS)

    def _error(self, seconds: float) -> ModelUnavailable:
        return ModelUnavailable(
            f"{self._name} does not answer: {self._why}.", "Start it, or see `ke-tools doctor`.", poll_after_ms=int(1000 * seconds) + 1
        )
