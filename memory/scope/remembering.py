"""What was computed for a key lately, so that it is computed once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Remembered"]

K = TypeVar("K", bound=Hashable)


class Remembered(Generic[K]):
    """Rows by key, the least lately asked for forgotten first; thread safe."""

    def __init__(self, most: int, at_once: int, compute: Callable[[Sequence[K]], NDArray[np.float32]], size: Callable[[K], int]) -> None:
        """Begin empty.

        Args:
            most: rows that are kept.
            at_once: keys that are computed together.
            compute: keys → rows, shape (keys, d).
            size: of a key; such of like size are computed together.
        """
        self._most = most
        self._at_once = at_once
        self._compute = compute
        self._size = size
        self._rows: OrderedDict[K, Any] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, keys: Sequence[K]) -> list[NDArray[np.float32]]:
        """Return a row for each key."""
        found = self._kept(keys)
        new = sorted(dict.fromkeys(key for key in keys if key not in found), key=self._size)
        for start in range(0, len(new), self._at_once):
            part = new[start : start + self._at_once]
            found.update(zip(part, self._compute(part), strict=True))
        with self._lock:
            self._rows.update((key, found[key]) for key in new)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)
        return [found[key] for key in keys]

    def _kept(self, keys: Sequence[K]) -> dict[K, NDArray[np.float32]]:
        with self._lock:
            kept = [key for key in keys if key in self._rows]
            for key in kept:
                self._rows.move_to_end(key)
            return {key: self._rows[key] for key in kept}
