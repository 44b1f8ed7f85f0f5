"""Is it about the edited fact? Decided in stages, the cheapest first.

Stage 0 asks who is named (:mod:`ke_tools.memory.subjects`), stage 1 what is asked: the question and the edit, both with the subject
masked, are embedded and compared by a small trained head. Where nobody is named, the nearest edits among those marked
``alias_risky`` are looked up (:mod:`ke_tools.memory.scope.alike`). Everything is derived from the ledger and follows it by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.errors import KeToolsError
from ke_tools.facts import Edit
from ke_tools.memory.names import names_of, subject_key
from ke_tools.memory.scope import alike
from ke_tools.memory.scope.candidates import likeliest
from ke_tools.memory.scope.embedding import Embedder, minilm
from ke_tools.memory.scope.features import asked_in, is_bare, neutral, resolve, speaks_of_another, views
from ke_tools.memory.scope.following import Follower
from ke_tools.memory.scope.head import Head, shipped
from ke_tools.memory.scope.rivals import Rivals, wordings
from ke_tools.memory.scope.tenant import Found, Seen, Tenant
from ke_tools.memory.subjects import names_another

if TYPE_CHECKING:
    from ke_tools.memory.index import VectorIndex
    from ke_tools.memory.ledger import Ledger

__all__ = ["Decision", "Embedder", "Head", "Hit", "Reading", "Scope", "minilm"]

log = logging.getLogger(__name__)

Zone = Literal["in", "grey", "out"]

MOST_HITS: Final = 8
MOST_JUDGED: Final = 64  # edits of the subjects named; of more, those whose words the question has
_MOST_SHOWN: Final = 64  # mentions
_LONGEST: Final = 20_000  # characters of a text that are searched for names, from its end
_ITSELF: Final = 0.999  # cosine of a text with itself, but for rounding


@dataclass(frozen=True, slots=True)
class Reading:
    """What is read of a request: its last user turn or prompt, and the turns of user and assistant before it, the latest first."""

    text: str
    carried: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """An edit that a question is about, how likely (0 to 1), and how its subject was found."""

    edit: Edit
    score: float
    how: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Which edits a question is about; ``stages`` holds what led to it, ``reason`` says it in words."""

    zone: Zone
    hits: tuple[Hit, ...]
    stages: Mapping[str, Any]
    reason: str
    revision: int  # of the ledger, up to which edits were seen


@dataclass(frozen=True, slots=True)
class _Named:
    """The subjects that a text is about: for each edit the masked views to compare it with."""

    how: str  # "named", "carried", "alike"; "" where there is none
    views: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mentions: tuple[Mapping[str, Any], ...] = ()
    edits: Mapping[str, Edit] = field(default_factory=dict)


class Scope:
    """Decides for each tenant which of its live edits a question is about. Thread safe; never raises."""

    def __init__(self, ledger: Ledger, embedder: Embedder | None = None, head: Head | None = None, *, cache: Path | None = None) -> None:
        """Follow a ledger.

        Args:
            ledger: the truth.
            embedder: all-MiniLM-L6-v2 unless given.
            head: the shipped one unless given; for an embedder that this was not trained on, the plain cosine.
            cache: the folder that files with what is derived lie in; without it, everything is derived at each start.
        """
        self._ledger = ledger
        self._embedder = embedder or minilm()
        self._given = head
        self._follower = Follower(ledger, self._embedder, cache)
        self._tenants: dict[str, Tenant] = {}
        self._lock = threading.Lock()

    @property
    def head(self) -> Head:
        """What scores."""
        if self._given is None:
            trained = shipped()
            if trained.card.get("embedder") != self._embedder.fingerprint:
                trained = Head.cosine()
            elif trained.rivals is None:  # made for another version of the atlas
                trained = replace(trained, rivals=Rivals(self._embedder.encode([text for _, text in wordings()])))
            self._given = trained
        return self._given

    def warm(self) -> None:
        """Load the embedding model, the head and every tenant's edits now, not with the first question."""
        _ = self.head
        self._embedder.encode(["X"])
        for tenant in self._ledger.tenants():
            state = self._state(tenant)
            self._follower.follow(state, patience=-1)
            if state.risky:
                self._follower.place(state, patience=-1)

    def decide(self, tenant: str, reading: Reading) -> Decision:
        """Say which edits the reading is about. What breaks on the way makes it none, and is told in ``reason``."""
        state = self._state(tenant)
        try:
            told = self._follower.follow(state)
            decision = self._decide(state, reading)
        except Exception as error:
            log.warning("the scope of tenant %s failed: %s", tenant, error, exc_info=not isinstance(error, KeToolsError))
            return Decision("out", (), {"error": str(error)}, f"the scope failed, the base model answers: {error}", max(state.seen, 0))
        if note := self._follower.note(tenant):
            told = {**told, "index": note}
        return replace(decision, stages={**decision.stages, **told}) if told else decision

    def notes(self) -> dict[str, str]:
        """Say of each tenant whose index file could not be used why that was."""
        with self._lock:
            tenants = list(self._tenants)
        return {tenant: note for tenant in tenants if (note := self._follower.note(tenant))}

    def _state(self, tenant: str) -> Tenant:
        with self._lock:
            return self._tenants.setdefault(tenant, Tenant(tenant))

    def audit(self) -> list[str]:
        """Give in words what is wrong with what is derived from the ledger; empty when all is well.

        Every tenant's state is derived anew and compared with what is used, which tells only of a scope that has followed the ledger
        for a while. Then each live edit is looked for as a question would: its own prompt must name it, and of an edit marked
        ``alias_risky`` no vector may be nearer to its prompt than its own.

        Raises:
            KeToolsError: the ledger cannot be read, or there are such vectors and no embedding model to compare them with.
        """
        return [f"{tenant}: {difference}" for tenant in self._ledger.tenants() for difference in self._differences(tenant)]

    def _differences(self, tenant: str) -> Iterator[str]:
        state, anew = self._state(tenant), Tenant(tenant)
        anew.apply(self._followed(state), (), state.seen)
        wordings = dict(state.wordings)
        if (state.edits, state.risky) != (anew.edits, anew.risky) or any(
            found != _wordings(anew.edits[edit_id]) for edit_id, found in wordings.items() if edit_id in anew.edits
        ):
            yield f"{len(state.edits)} edits are indexed, {len(anew.edits)} are live"
        keys, right = state.subjects.keys(), anew.subjects.keys()
        for edit in anew.edits.values():
            if keys.get(edit.id) != right[edit.id]:
                yield f"{edit.fact.subject!r} is not found as its edits say"
            if not any(edit.id in mention.edit_ids for mention in state.subjects.find(edit.fact.prompt)):
                yield f"{edit.id} is not named by its own prompt, {edit.fact.prompt!r}, and so without effect"
        yield from self._misplaced(state)

    def _followed(self, state: Tenant) -> list[Edit]:
        """Return the live edits of the revision that the state has followed the ledger to, whoever writes meanwhile."""
        while True:
            self._follower.follow(state, patience=-1)
            edits = self._ledger.live(state.name)
            if self._ledger.head() == state.seen:
                return edits

    def _misplaced(self, state: Tenant) -> Iterator[str]:
        if not state.risky:
            return
        nearest = self._follower.place(state, patience=-1)
        if len(nearest) != len(state.risky):
            yield f"{len(nearest)} edits have vectors, {len(state.risky)} are marked alias_risky"
        vectors = self._embedder.encode([edit.fact.prompt for edit in state.risky.values()])
        for edit_id, vector in zip(state.risky, vectors, strict=True):
            near = dict(nearest.search(vector, MOST_HITS))
            score = near.get(edit_id, min(near.values(), default=0.0))  # not among them: as many others with the same prompt may be
            if score < _ITSELF:
                yield f"the vector of {edit_id} is not that of its prompt (cosine {score:.3f})"

    def _decide(self, state: Tenant, reading: Reading) -> Decision:
        started = time.perf_counter()
        text = reading.text[-_LONGEST:]
        named = self._named(state, text, reading.carried)
        seen = _seen(state, named)
        found = time.perf_counter()
        scores = self._scores(seen, named, text)
        took = {"mentions": _ms(found - started), "scores": _ms(time.perf_counter() - found)}
        within, grey = (alike.WITHIN, alike.GREY) if named.how == "alike" else (self.head.within, self.head.grey)
        stages = {
            "how": named.how,
            "mentions": list(named.mentions),
            "scores": {edit_id: round(score, 4) for edit_id, score in scores.items()},
            "thresholds": {"in": round(within, 4), "grey": round(grey, 4)},
            "ms": took,
        }
        best = max(scores.values(), default=0.0)
        zone: Zone = "in" if best >= within else "grey" if best >= grey else "out"
        least = within if zone == "in" else grey
        order = sorted((edit_id for edit_id, score in scores.items() if score >= least), key=lambda edit_id: -scores[edit_id])
        likely = [Hit(seen.edits[edit_id], scores[edit_id], named.how) for edit_id in order]
        hits = tuple(_without_outdated(likely, named.views)[:MOST_HITS])
        return Decision(zone, hits, stages, _reason(zone, hits, named, best, grey), state.seen)

    def _named(self, state: Tenant, text: str, carried: Sequence[str]) -> _Named:
        if not state.edits or not text.strip():
            return _Named("")
        found = state.find(text)
        if found.edits:
            chosen = likeliest(found.edits, asked_in(text), MOST_JUDGED)
            viewed = remembered(lambda spans: views(text, spans))  # most edits of a text share their places
            return _Named("named", {edit_id: viewed(found.spans[edit_id]) for edit_id in chosen}, _shown(found), chosen)
        asked = resolve(text)
        if asked is not None and not names_another(text) and not speaks_of_another(text):
            for turn in _still_meant(carried):
                found = state.find(turn[-_LONGEST:])
                if found.edits:
                    chosen = likeliest(found.edits, asked, MOST_JUDGED)
                    return _Named("carried", dict.fromkeys(chosen, (asked,)), _shown(found), chosen)
        return _Named("alike" if state.risky else "")

    def _scores(self, state: Seen, named: _Named, text: str) -> dict[str, float]:
        """How likely the text is about each edit of the subjects named; the best of its views against the best of its wordings."""
        if named.how == "alike":
            return self._alike(state, text)
        asked = {edit_id: tuple(map(neutral, texts)) for edit_id, texts in named.views.items()}
        wanted = dict.fromkeys(chain.from_iterable((*texts, *state.wordings[edit_id]) for edit_id, texts in asked.items() if texts))
        vectors = dict(zip(wanted, self._embedder.encode(list(wanted)), strict=True)) if wanted else {}
        return {edit_id: self._score(state, edit_id, texts, vectors) if texts else 0.0 for edit_id, texts in asked.items()}

    def _score(self, state: Seen, edit_id: str, asked: Sequence[str], vectors: Mapping[str, NDArray[np.float32]]) -> float:
        u = np.stack([vectors[text] for text in asked])
        v = np.stack([vectors[text] for text in state.wordings[edit_id]])
        scores = self.head.score(np.repeat(u, len(v), axis=0), np.tile(v, (len(u), 1))).reshape(len(u), len(v)).max(1)
        if self.head.rivals is not None:
            rows = state.rivals.get(edit_id)
            if rows is None:
                rows = state.rivals[edit_id] = self.head.rivals.against(state.edits[edit_id].relation, v[0])
            scores = self.head.judge(scores, (u @ v.T).max(1) - self.head.rivals.nearest(u, rows))
        return float(scores.max())

    def _alike(self, state: Seen, text: str) -> dict[str, float]:
        """Cosines of the nearest risky edits among those whose description the text uses without naming anybody else."""
        asked = asked_in(text)
        words = alike.telling(asked)
        described = (state.risky[edit_id] for edit_id, names in state.telling.items() if any(name <= words for name in names))
        meant = {edit.id for edit in described if not names_another(asked, names_of(edit.fact.subject, edit.fact.aliases))}
        if not meant:
            return {}
        near = self._nearest(state).search(self._embedder.encode([asked])[0], MOST_HITS)
        return {edit_id: score for edit_id, score in near if edit_id in meant}

    def _nearest(self, state: Seen) -> VectorIndex:
        return self._follower.place(state.tenant)


def _wordings(edit: Edit) -> tuple[str, ...]:
    """What asks for the edit, masked: its prompt, its paraphrases, and its relation's wordings where that is recognised."""
    names = names_of(edit.fact.subject, edit.fact.aliases)
    own = [atlas.mask(text, names) for text in (edit.fact.prompt, *edit.fact.paraphrases)]
    relation = atlas.relations().get(edit.relation)
    known = (relation.fitted_statements + relation.fitted_questions) if relation else ()
    return tuple(dict.fromkeys(map(neutral, (*own, *known))))


def _without_outdated(hits: list[Hit], views: Mapping[str, Sequence[str]]) -> list[Hit]:
    """Where a question is in the very words of an edit, leave out the older ones of its subject.

    They may say the same in words whose relation is not known, so that the later edit did not supersede them.
    """
    settled: dict[str, int] = {}  # subject → revision of the latest edit in whose words it is asked
    for hit in hits:
        if _own_words(hit.edit) & {atlas.wording_key(view) for view in views.get(hit.edit.id, ())}:
            subject = subject_key(hit.edit.fact.subject)
            settled[subject] = max(settled.get(subject, 0), hit.edit.revision)
    slots = {hit.edit.slot for hit in hits if hit.edit.revision == settled.get(subject_key(hit.edit.fact.subject))}
    return [h for h in hits if h.edit.slot in slots or h.edit.revision >= settled.get(subject_key(h.edit.fact.subject), 0)]


def _own_words(edit: Edit) -> set[str]:
    names = names_of(edit.fact.subject, edit.fact.aliases)
    return {atlas.wording_key(atlas.mask(text, names)) for text in (edit.fact.prompt, *edit.fact.paraphrases)}


def _seen(state: Tenant, named: _Named) -> Seen:
    for edit_id, edit in named.edits.items():
        if edit_id not in state.wordings:
            state.wordings[edit_id] = _wordings(edit)
    wordings = {edit_id: state.wordings.get(edit_id) or _wordings(edit) for edit_id, edit in named.edits.items()}
    risky, telling = state.described()
    return Seen(state, risky if named.how == "alike" else named.edits, wordings, state.rivals, risky, telling)


def _still_meant(carried: Sequence[str]) -> Iterator[str]:
    """The earlier turns, the latest first, up to one that speaks of somebody else; a bare answer belongs to the turn before it."""
    for position, turn in enumerate(carried):
        yield turn
        if speaks_of_another(turn[-_LONGEST:]):
            yield from carried[position + 1 : position + 2] if is_bare(turn) else ()
            return


def _shown(found: Found) -> tuple[dict[str, Any], ...]:
    """The mentions as JSON; of a document that names hundreds, the first."""
    return tuple(
        {"text": mention.text, "start": mention.start, "end": mention.end, "edits": sorted(mention.edit_ids)[:MOST_JUDGED]}
        for mention in found.mentions[:_MOST_SHOWN]
    )


def _reason(zone: Zone, hits: Sequence[Hit], named: _Named, best: float, grey: float) -> str:
    if not named.how or (named.how == "alike" and not best):
        return "names no edited subject"
    who = ", ".join(dict.fromkeys(str(mention["text"]) for mention in named.mentions))
    found = {"named": f"names {who}", "carried": f"goes on about {who}, named earlier", "alike": "names no edited subject"}[named.how]
    if zone == "out":
        return f"{found}; asks for something else (best {best:.2f}, needed {grey:.2f})"
    verb = {"in": "asks for", "grey": "may ask for"}[zone]
    return f"{found}; {verb} " + ", ".join(f"{_asked_for(hit.edit)} ({hit.score:.2f})" for hit in hits)


def _asked_for(edit: Edit) -> str:
    relation = atlas.relations().get(edit.relation)
    return relation.masked.replace("{}", edit.fact.subject) if relation else f"what \u201c{edit.fact.prompt}\u201d is about"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
