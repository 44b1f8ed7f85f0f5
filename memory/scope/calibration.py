r"""A threshold for each edit, from its own negatives.

An edit is tried against the inventory's wordings. Of $n$ such scores $s_{(1)} \le \dots \le s_{(n)}$ the threshold is $s_{(k)}$ with
$k = \lceil (n + 1)(1 - \alpha) \rceil$ (split conformal prediction: Vovk et al. 2005, ch. 4), so that a question drawn like them passes
with a probability of at most $\alpha$. Differs from the textbook: 1. wordings of the edit's own relation are left out, and of those that it
may be of by the tuned embedding: the bound holds for what certainly asks for something else; 2. only the nearest of the rest are scored,
the others count as passing nothing; 3. the threshold is never below the scorer's own, and never above what the edit's own words score: who
asks in these is answered.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import Queue
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.judging import Wanted, best, settled, wordings_of
from ke_tools.memory.scope.scorer import Scorer

__all__ = ["Calibrated", "Calibrator"]

log = logging.getLogger(__name__)

_SCORED: Final = 64  # negatives
_HIGHEST: Final = 0.9
_OWN_MARGIN: Final = 0.02
_LONGEST_SECONDS: Final = 10.0  # that the end of the process waits for an edit under way


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An edit's threshold, the share of its negatives that pass it, and of its relation's other wordings (1 where there is none)."""

    threshold: float
    false_triggers: float
    recall: float


class Calibrator:
    """Calibrates in a thread of its own; what is not calibrated yet has the scorer's threshold."""

    def __init__(self, scorer: Scorer, *, alpha: float, path: Path | None = None) -> None:
        """Begin.

        Args:
            scorer: what scores.
            alpha: the most of the negatives that may pass.
            path: a file to remember results in, across processes; a cache.
        """
        self._scorer = scorer
        self._alpha = alpha
        self._kept = _Kept(path, f"{scorer.fingerprint}/{alpha}") if path else None
        self._known: dict[str, Calibrated] = {}
        self._asked: set[str] = set()
        self._queue: Queue[Wanted | None] = Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_ending = False

    def reached(self, wanted: Wanted) -> Calibrated | None:
        """Return what is known already; asks for a calibration where there is none yet."""
        known = self.known(wanted)
        if known is None:
            self.ask(wanted)
        return known

    def known(self, wanted: Wanted) -> Calibrated | None:
        """Return what is known already."""
        key = wanted.key
        if key not in self._known and self._kept is not None and key not in self._asked:
            found = self._kept.get(key)
            if found is not None:
                self._known[key] = found
        return self._known.get(key)

    def ask(self, wanted: Wanted) -> None:
        """Have it calibrated, soon."""
        with self._lock:
            if wanted.key in self._asked or wanted.key in self._known:
                return
            self._asked.add(wanted.key)
            self._queue.put(wanted)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="calibration", daemon=True)
                self._thread.start()
                atexit.register(self._end)  # a thread inside ONNX Runtime when Python ends takes the process down with it

    def erase(self, wanted: Wanted) -> None:
        """Remove what is known of an edit's words; of other edits with the same words it is found out again."""
        with self._lock:
            self._asked.discard(wanted.key)
            self._known.pop(wanted.key, None)
            if self._kept is not None:
                self._kept.drop(wanted.key)

    def settle(self) -> None:
        """Wait until everything asked for is calibrated."""
        self._queue.join()

    def calibrate(self, wanted: Wanted) -> Calibrated:
        """Try an edit against its negatives, now."""
        worded = (*wanted.texts, *wordings_of(wanted.relation))
        near, n = self._scorer.rivals(worded, _SCORED, besides=_own_relations(wanted.relation))
        passing = n - math.ceil((n + 1) * (1 - self._alpha))  # so many may lie above the threshold
        if passing >= _SCORED:
            near, n = self._scorer.rivals(worded, passing + 1, besides=_own_relations(wanted.relation))
        scored = np.sort(self._best(wanted, near))[::-1]
        conformal = 1.0 if passing < 0 else float(scored[passing]) if passing < len(scored) else 0.0
        own = self._best(wanted, wanted.texts)
        others = self._best(wanted, [text for text in wordings_of(wanted.relation) if text not in (*wanted.texts, *wanted.more)])
        highest = min(_HIGHEST, max(self._scorer.within, float(own.min()) - _OWN_MARGIN))
        threshold = min(max(conformal + 1e-4, self._scorer.within), highest)
        recall = float((others >= threshold).mean()) if len(others) else 1.0
        return Calibrated(round(threshold, 4), round(float((scored >= threshold).sum()) / max(n, 1), 5), round(recall, 4))

    def _end(self) -> None:
        """Finish the one under way; the others are asked for again by the next process."""
        self._is_ending = True
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join(_LONGEST_SECONDS)

    def _work(self) -> None:
        while True:
            wanted = self._queue.get()
            if self._is_ending or wanted is None:
                return
            try:
                self._remember(wanted, self.calibrate(wanted))
            except Exception as error:  # noqa: BLE001  the default threshold stays
                log.warning("an edit could not be calibrated: %s", error)
            finally:
                self._queue.task_done()

    def _remember(self, wanted: Wanted, found: Calibrated) -> None:
        with self._lock:
            if wanted.key not in self._asked:  # erased meanwhile
                return
            self._known[wanted.key] = found
            if self._kept is not None:
                self._kept.put(wanted.key, found)

    def _best(self, wanted: Wanted, asked: Sequence[str]) -> NDArray[np.float32]:
        """What the scope would find of each text."""
        texts = {n: (text,) for n, text in enumerate(asked)}
        meant = dict.fromkeys(texts, wanted)
        found = best(self._scorer, texts, dict.fromkeys(texts, wanted.texts), meant)
        return np.array([same for same, _ in settled(self._scorer, texts, found, meant).values()], np.float32)


class _Kept:
    """Results in a file that several processes may write; what is wrong with it makes it empty, never an error."""

    def __init__(self, path: Path, made_by: str) -> None:
        self._path = path
        self._made_by = made_by
        self._lock = threading.Lock()

    def get(self, key: str) -> Calibrated | None:
        row = self._do(
            lambda db: db.execute("SELECT threshold, wrong, recall FROM kept WHERE key = ? AND by = ?", self._of(key)).fetchone()
        )
        return Calibrated(*row) if row else None

    def put(self, key: str, found: Calibrated) -> None:
        values = (*self._of(key), found.threshold, found.false_triggers, found.recall)
        self._do(lambda db: db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)", values).fetchall())

    def drop(self, key: str) -> None:
        self._do(lambda db: db.execute("DELETE FROM kept WHERE key = ?", (key,)).fetchall())

    def _of(self, key: str) -> tuple[str, str]:
        return key, self._made_by

    def _do(self, work: Callable[[Any], Any]) -> Any:
        import apsw

        with self._lock:
            try:
                return work(self._db)
            except (apsw.Error, OSError) as error:
                log.info("%s is not used: %s", self._path, error)
                return None

    @cached_property
    def _db(self) -> Any:
        import apsw

        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = apsw.Connection(str(self._path))
        db.set_busy_timeout(500)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA secure_delete = ON")
        db.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT, by TEXT, threshold REAL, wrong REAL, recall REAL, PRIMARY KEY (key, by))")
        return db


def _own_relations(relation: str) -> set[str]:
    """A relation, its inverse, and those that share a wording with it."""
    if not relation:
        return set()
    own = set(wordings_of(relation))
    return {relation, atlas.relations()[relation].inverse, *(name for name in atlas.relations() if own.intersection(wordings_of(name)))}
