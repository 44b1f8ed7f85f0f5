"""What is derived from one tenant's live edits, and what one question sees of it.

A question holds the lock only while it looks for names. What takes longer for many changes is done in parts or without the lock, and
the edits change all at once, so that no question waits for it or meets half of a change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from ke_tools.facts import Edit
from ke_tools.memory.moments import has_passed
from ke_tools.memory.names import names_of
from ke_tools.memory.scope import alike
from ke_tools.memory.scope.judging import Wanted
from ke_tools.memory.subjects import Key, Mention, SubjectIndex, keys_of

if TYPE_CHECKING:
    from ke_tools.memory.index import VectorIndex
    from ke_tools.memory.scope.embedding import Embedder

__all__ = ["Derived", "Found", "Recent", "Seen", "Tenant"]

K = TypeVar("K")
V = TypeVar("V")

_IN_ONE_GO: Final = 500  # edits; a question waits for no more
_REMEMBERED: Final = 10_000  # edits of which is kept what asks for them


class Recent(dict[K, V]):
    """A dictionary that forgets what it was given first when it is full."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        """Keep one more."""
        super().__setitem__(key, value)
        for oldest in list(islice(self, max(0, len(self) - self._most))):
            self.pop(oldest, None)


@dataclass(frozen=True, slots=True)
class Derived:
    """What is worth keeping in a file: each edit's keys, and the vectors of the risky ones."""

    keys: Mapping[str, tuple[Key, ...]]
    vectors: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Found:
    """Who is named in a text: the mentions, and the edits they belong to, each with its places."""

    mentions: Sequence[Mention]
    edits: Mapping[str, Edit]
    spans: Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a question is compared with, whatever is corrected meanwhile."""

    tenant: Tenant
    edits: Mapping[str, Edit]
    wanted: Mapping[str, Wanted]
    risky: Mapping[str, Edit]
    telling: Mapping[str, tuple[frozenset[str], ...]]  # words of the risky ones' names


class Tenant:
    """One tenant's live edits and their indexes. Thread safe for questions; :meth:`apply` is for one thread at a time."""

    def __init__(self, name: str) -> None:
        """Begin without edits."""
        self.name = name
        self.seen = -1  # the ledger's head when it was last read
        self.edits: dict[str, Edit] = {}
        self.subjects = SubjectIndex()
        self.risky: Mapping[str, Edit] = {}  # this and the next two are replaced, never changed
        self.telling: Mapping[str, tuple[frozenset[str], ...]] = {}
        self.forgetting: Mapping[str, Edit] = {}
        self.nearest: VectorIndex | None = None  # of the risky ones; made when first needed
        self.wanted: Recent[str, Wanted] = Recent(_REMEMBERED)
        self.following = threading.Lock()  # held by whoever reads the ledger
        self._placed: set[str] = set()  # risky ones that the vectors stand for
        self._placing = threading.Lock()
        self._lock = threading.Lock()

    def find(self, text: str) -> Found:
        """Find who is named."""
        with self._lock:
            mentions = self.subjects.find(text)
            named = set[str]().union(*{mention.edit_ids for mention in mentions})
            known = (self.edits[edit_id] for edit_id in sorted(named) if edit_id in self.edits)
            edits = {edit.id: edit for edit in known if not has_passed(edit.fact.expires)}  # retired by the ledger's next event
            return Found(mentions, edits, _places(mentions, edits))

    def shield(self, names: Collection[str]) -> None:
        """Let protected names stand for nobody but their bearers."""
        with self._lock:
            self.subjects.shield(names)

    def described(self) -> tuple[Mapping[str, Edit], Mapping[str, tuple[frozenset[str], ...]]]:
        """The risky edits, and the telling words of their names."""
        with self._lock:
            return self.risky, self.telling

    def apply(self, edits: Collection[Edit], gone: Collection[str], seen: int, known: Derived | None = None) -> int:
        """Take edits as they stand at the revision ``seen``; those that are not live, and those ``gone``, are forgotten.

        What is ``known`` of them is not derived again. Returns how many had to be derived.
        """
        live = {edit.id: edit for edit in edits if edit.is_live}
        new = [edit for edit in live.values() if edit.id not in self.edits]
        kept = known.keys if known else {}
        for some in _parts(new):
            keys = {edit.id: kept.get(edit.id) or keys_of(names_of(edit.fact.subject, edit.fact.aliases)) for edit in some}
            with self._lock:  # that they are found too early does no harm: they are no edits yet
                for edit_id, found in keys.items():
                    self.subjects.put(edit_id, found)
        if known:
            self._place(known.vectors)
        dead = {*gone, *(edit.id for edit in edits if not edit.is_live)}
        self._exchange(live, dead, seen)
        for ids in _parts(sorted(dead)):
            with self._lock:
                for edit_id in ids:
                    self.subjects.discard(edit_id)
                    self.wanted.pop(edit_id, None)
        return sum(edit.id not in kept for edit in new)

    def derived(self) -> Derived:
        """What a file keeps; the vectors are those that were needed so far."""
        with self._lock:
            keys = self.subjects.keys()
        with self._placing:
            vectors = self.nearest.vectors() if self.nearest is not None else {}
        return Derived(keys, vectors)

    @property
    def unplaced(self) -> int:
        """How many risky edits have no vectors yet."""
        return len(self.risky.keys() - self._placed)

    def placed(self, embedder: Embedder) -> VectorIndex:
        """Return the vectors of the risky edits; those made since the last call are embedded now, while others can search."""
        from ke_tools.memory.index import VectorIndex

        with self._placing:
            if self.nearest is None:
                self.nearest = VectorIndex(embedder.dimension)
            risky = self.risky
            for edit_id in self._placed - risky.keys():
                self.nearest.discard(edit_id)
            self._placed &= risky.keys()
            for some in _parts([edit for edit_id, edit in risky.items() if edit_id not in self._placed]):
                texts = [(edit.fact.prompt, *edit.fact.paraphrases) for edit in some]
                vectors = embedder.encode([text for wordings in texts for text in wordings])
                ends = np.cumsum([len(wordings) for wordings in texts])[:-1]
                for edit, rows in zip(some, np.split(vectors, ends), strict=True):
                    self.nearest.add(edit.id, rows)
                    self._placed.add(edit.id)
            return self.nearest

    def _place(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        if not vectors:
            return
        from ke_tools.memory.index import VectorIndex

        with self._placing:
            if self.nearest is None:
                self.nearest = VectorIndex(next(iter(vectors.values())).shape[1])
            for edit_id, rows in vectors.items():
                self.nearest.add(edit_id, rows)
            self._placed |= vectors.keys()

    def _exchange(self, live: Mapping[str, Edit], dead: Collection[str], seen: int) -> None:
        new = {edit_id: edit for edit_id, edit in live.items() if edit.alias_risky}
        risky, telling = self.risky, self.telling
        if new or not risky.keys().isdisjoint(dead):
            risky = {edit_id: edit for edit_id, edit in {**risky, **new}.items() if edit_id not in dead}
            told = {edit.id: alike.telling_of((edit.fact.subject, *edit.fact.aliases)) for edit in new.values() if edit.id not in telling}
            telling = {edit_id: words for edit_id, words in {**telling, **told}.items() if edit_id in risky}
        forgetting = {edit_id: edit for edit_id, edit in self.forgetting.items() if edit_id not in dead}
        forgetting |= {edit_id: edit for edit_id, edit in live.items() if edit.fact.forget}
        with self._lock:
            self.edits.update(live)
            for edit_id in dead:
                self.edits.pop(edit_id, None)
            self.risky, self.telling, self.forgetting, self.seen = risky, telling, forgetting, seen


def _places(mentions: Iterable[Mention], edits: Collection[str]) -> dict[str, tuple[tuple[int, int], ...]]:
    """The places of each edit, in order; a tuple is shared by all edits of the same names, who may be many."""
    by_names: dict[frozenset[str], list[tuple[int, int]]] = {}
    for mention in mentions:
        by_names.setdefault(mention.edit_ids, []).append((mention.start, mention.end))
    spans: dict[str, tuple[tuple[int, int], ...]] = {}
    for edit_ids, places in by_names.items():
        shared = tuple(places)
        for edit_id in edit_ids.intersection(edits):
            spans[edit_id] = tuple(sorted((*spans[edit_id], *shared))) if edit_id in spans else shared
    return spans


def _parts(items: Sequence[V]) -> Iterator[Sequence[V]]:
    for start in range(0, len(items), _IN_ONE_GO):
        yield items[start : start + _IN_ONE_GO]
        if start + _IN_ONE_GO < len(items):
            time.sleep(0)  # lets a question that waits for the lock have it
