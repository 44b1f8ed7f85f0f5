"""Which tenants' live releases are not served, and why, so that it is told until it is mended."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

log = logging.getLogger(__name__)

Release = tuple[str, int]  # its name, and when its folder was written

_AGAIN_SECONDS: Final = 60.0  # until a release that could not be served is tried again


class Unserved:
    """One failure a tenant. Thread safe."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Release, str, float]] = {}  # tenant → release, why, when it is tried again
        self._lock = threading.Lock()

    @property
    def told(self) -> str:
        """What was met last; empty where every live release is served."""
        with self._lock:
            return next((f"the live release is not served, the memory answers: {why}" for _, why, _ in reversed(self._found.values())), "")

    def is_to_wait(self, tenant: str, release: Release) -> bool:
        """Whether it failed so lately that it is not tried again yet."""
        with self._lock:
            name, _, again = self._found.get(tenant, (("", 0), "", 0.0))
            return name == release and time.monotonic() < again

    def note(self, tenant: str, release: Release, why: str) -> None:
        """Remember, and log what is new."""
        with self._lock:
            is_new = self._found.pop(tenant, (("", 0), "", 0.0))[:2] != (release, why)
            self._found[tenant] = (release, why, time.monotonic() + _AGAIN_SECONDS)
        if is_new:
            log.error("the live release of %s is not served, the memory answers: %s", tenant, why)

    def forget(self, tenant: str) -> None:
        """The tenant's live release is served, or there is none."""
        with self._lock:
            self._found.pop(tenant, None)
