"""How a scope follows the ledger: which edits changed is read with each question, and what is derived lies in a file of the cache.

A question does small changes itself. After many at once (an import) it waits for :data:`PATIENCE` seconds and is then answered from the
edits known before; only the first question of all waits until everything is read.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.errors import KeToolsError
from ke_tools.memory.scope import stored
from ke_tools.memory.scope.stored import Origin, Unusable
from ke_tools.memory.scope.tenant import Derived, Tenant

if TYPE_CHECKING:
    from ke_tools.memory.index import VectorIndex
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.scope.embedding import Embedder

__all__ = ["PATIENCE", "Follower"]

log = logging.getLogger(__name__)

PATIENCE: Final = 2.0  # seconds; in these some 20,000 new edits are read
_FEW: Final = 256  # changes that a question does itself, in about 20 ms
_WORTH_A_FILE: Final = 256  # edits; fewer are derived sooner than a file is read
_SHARE: Final = 8  # a file is written anew when one in so many edits is not in it
_FEW_VECTORS: Final = 32  # edits that a question embeds itself, in about 100 ms


class Follower:
    """Brings tenants up to the ledger."""

    def __init__(self, ledger: Ledger, embedder: Embedder, cache: Path | None) -> None:
        """Follow a ledger; without a ``cache`` folder no files are kept."""
        self._ledger = ledger
        self._embedder = embedder
        self._folder = cache / "scope" if cache is not None and ledger.path != ":memory:" else None
        self._unsaved: dict[str, int] = {}  # tenant → how many edits its file lacks
        self._filing: dict[str, threading.Thread] = {}  # tenant → what last changed its file
        self._notes: dict[str, str] = {}

    def note(self, tenant: str) -> str:
        """Why the tenant's file was not used when the edits were first read; "" where it was, or there is none."""
        return self._notes.get(tenant, "")

    def follow(self, state: Tenant, *, patience: float = PATIENCE) -> dict[str, str]:
        """Bring a tenant up to the ledger; negative ``patience`` waits as long as it takes.

        Returns:
            Nothing, or why the edits last known act: ``stale``, the ledger cannot be read; ``behind``, it is still being read.

        Raises:
            KeToolsError: it cannot be read, and no edits are known.
        """
        is_new = state.seen < 0
        try:
            if self._ledger.head() == state.seen:
                return {}
            if not state.following.acquire(timeout=-1 if is_new else patience):
                return _behind(state)
            return self._read(state, patience)
        except KeToolsError as error:
            if is_new:
                raise
            return {"stale": str(error)}

    def _read(self, state: Tenant, patience: float) -> dict[str, str]:
        """Read what is new, here or in a thread; the lock is held and will be released."""
        work: threading.Thread | None = None
        try:
            now = self._ledger.head()
            if now == state.seen:
                return {}
            if state.seen < 0:
                self._begin(state, now)
                return {}
            changed = self._ledger.changed(state.name, state.seen)
            if len(changed) <= _FEW:
                self._catch_up(state, now, changed)
                return {}
            work = _started(self._catch_up_aside, state, now, changed)
        finally:
            if work is None:
                state.following.release()
        work.join(None if patience < 0 else patience)
        return _behind(state) if work.is_alive() else {}

    def place(self, state: Tenant, *, patience: float = PATIENCE) -> VectorIndex:
        """Return the vectors of a tenant's risky edits; where many are new, perhaps without some of them."""
        missing = state.unplaced
        if missing > _FEW_VECTORS:
            work = _started(self._place_aside, state, missing)
            work.join(None if patience < 0 else patience)
            if state.nearest is not None:
                return state.nearest
        return state.placed(self._embedder)

    def _begin(self, state: Tenant, now: int) -> None:
        """Read all live edits; what a file knows of them is not derived again."""
        self._shield(state)
        edits = self._ledger.live(state.name)
        origin, known = self._known(state.name, now)
        derived = state.apply(edits, (), now, known)
        self._unsaved[state.name] = derived if known else len(edits)
        retired = known.keys.keys() - state.edits.keys() if known else set()
        if retired.difference(edit.id for edit in self._ledger.since(state.name, origin)):
            self._erase(state)
        self._save_if_worth_it(state)

    def _catch_up(self, state: Tenant, now: int, changed: set[str]) -> None:
        self._shield(state)
        # Which changed was asked first, so that an edit made meanwhile is not taken for one that is gone.
        edits = self._ledger.since(state.name, state.seen)
        gone = changed.difference(edit.id for edit in edits)
        derived = state.apply(edits, gone, now)
        self._unsaved[state.name] = self._unsaved.get(state.name, 0) + derived
        if gone:
            self._erase(state)
        self._save_if_worth_it(state)

    def _shield(self, state: Tenant) -> None:
        state.shield([name for one in self._ledger.protections.all(state.name) for name in one.names])

    def _catch_up_aside(self, state: Tenant, now: int, changed: set[str]) -> None:
        try:
            self._catch_up(state, now, changed)
        except Exception as error:
            log.warning("the edits of tenant %s are not up to date: %s", state.name, error, exc_info=not isinstance(error, KeToolsError))
        finally:
            state.following.release()
        if state.nearest is not None:
            self._place_aside(state, state.unplaced)

    def _place_aside(self, state: Tenant, count: int) -> None:
        try:
            state.placed(self._embedder)
            with state.following:
                self._unsaved[state.name] = self._unsaved.get(state.name, 0) + count
                self._save_if_worth_it(state)
        except Exception as error:
            log.warning("no vectors for tenant %s: %s", state.name, error, exc_info=not isinstance(error, KeToolsError))

    def _known(self, tenant: str, now: int) -> tuple[int, Derived | None]:
        """Return what a file knows, and up to which event."""
        path = self._path(tenant)
        if path is None:
            return now, None
        try:
            origin, derived = stored.read(path, tenant=tenant, embedder=self._embedder.fingerprint, dimension=self._embedder.dimension)
        except FileNotFoundError:
            return now, None
        except Unusable as error:
            wrong = str(error)
        else:
            if origin.seq <= now and self._ledger.chain(origin.seq) == origin.chain:
                return origin.seq, derived
            wrong = "it belongs to another ledger"
        self._notes[tenant] = f"the index file was made anew: {wrong}"
        log.warning("the index file %s of tenant %s is made anew: %s", path, tenant, wrong)
        return now, None

    def _save_if_worth_it(self, state: Tenant) -> None:
        """Write the file in a thread, if enough changed."""
        path = self._path(state.name)
        unsaved, count = self._unsaved.get(state.name, 0), len(state.edits)
        if path is None or unsaved < max(_WORTH_A_FILE, count // _SHARE):
            return
        origin = Origin(
            state.name,
            state.seen,
            self._ledger.chain(state.seen),
            stored.naming(),
            self._embedder.fingerprint,
            self._embedder.dimension,
        )
        self._unsaved[state.name] = 0
        self._in_turn(state.name, partial(stored.write, path, origin, state.derived()))

    def erase(self, state: Tenant) -> None:
        """Remove the file now, whatever is in it; it is made again when it is worth it."""
        with state.following:
            self._erase(state)
        if (work := self._filing.get(state.name)) is not None:
            work.join()

    def _erase(self, state: Tenant) -> None:
        """Remove the file: an edit was purged, and no text of it may stay."""
        path = self._path(state.name)
        if path is not None:
            self._in_turn(state.name, partial(path.unlink, missing_ok=True))
            self._unsaved[state.name] = len(state.edits)

    def _in_turn(self, tenant: str, work: Callable[[], None]) -> None:
        """Change a tenant's file in a thread, after all that was begun before."""
        before = self._filing.get(tenant)
        self._filing[tenant] = thread = threading.Thread(target=_file, args=(work, before), name="ke-scope-save")
        thread.start()

    def _path(self, tenant: str) -> Path | None:
        if self._folder is None:
            return None
        whose = f"{Path(self._ledger.path).absolute()}\n{tenant}"
        return self._folder / f"{hashlib.sha256(whose.encode()).hexdigest()[:32]}.index"


def _started(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True, name="ke-scope-follow")
    thread.start()
    return thread


def _behind(state: Tenant) -> dict[str, str]:
    return {"behind": f"the changes since revision {state.seen} are still being read"}


def _file(work: Callable[[], None], before: threading.Thread | None) -> None:
    if before is not None:
        before.join()
    try:
        work()
    except OSError as error:
        log.warning("the index file could not be changed, the next start derives it again: %s", error)
