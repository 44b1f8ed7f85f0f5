"""Is it about the edited fact? Decided in stages, the cheapest first.

Stage 0 asks who is named (:mod:`ke_tools.memory.subjects`), stage 1 what is asked: the question and the edit, both with the subject
masked, are judged by a trained scorer (:mod:`ke_tools.memory.scope.scorer`), and each edit has a threshold of its own
(:mod:`ke_tools.memory.scope.calibration`). Where nobody is named, the nearest edits among those marked ``alias_risky`` are looked up
(:mod:`ke_tools.memory.scope.alike`). Everything is derived from the ledger and follows it by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache as remembered
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas
from ke_tools.errors import KeToolsError
from ke_tools.facts import Edit
from ke_tools.memory.moments import has_passed
from ke_tools.memory.names import names_of, subject_key
from ke_tools.memory.scope import alike
from ke_tools.memory.scope.aside import sets_aside
from ke_tools.memory.scope.asking import asked_in, is_bare, neutral, resolve, speaks_of_another, spoken, views
from ke_tools.memory.scope.calibration import Calibrated, Calibrator
from ke_tools.memory.scope.candidates import likeliest
from ke_tools.memory.scope.embedding import Embedder, minilm
from ke_tools.memory.scope.following import Follower
from ke_tools.memory.scope.judging import Wanted, best, settled
from ke_tools.memory.scope.longer import is_part_of_longer
from ke_tools.memory.scope.scorer import CosineScorer, Scorer, TrainedScorer, shipped_folder
from ke_tools.memory.scope.tenant import Found, Seen, Tenant
from ke_tools.memory.subjects import names_another

if TYPE_CHECKING:
    from ke_tools.memory.index import VectorIndex
    from ke_tools.memory.ledger import Ledger

__all__ = ["Decision", "Embedder", "Hit", "Reading", "Scope", "Scorer", "minilm", "prepare"]

log = logging.getLogger(__name__)

Zone = Literal["in", "grey", "out"]
_ZONES: Final[tuple[Zone, ...]] = ("in", "grey")

MOST_HITS: Final = 8
MOST_JUDGED: Final = 64  # edits of the subjects named; of more, those whose words the question has
_MOST_SCORED: Final = 8  # of these those that are nearest to the question
_MOST_SHOWN: Final = 64  # mentions
_MOST_TEXTS: Final = 5  # of an edit
_OPEN: Final = 0.5  # probability from which a question may speak of the fact
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


@dataclass(frozen=True, slots=True)
class _Score:
    """What the scorer says of a question and an edit, and from where on that counts."""

    same: float
    open: float
    within: float
    grey: float
    calibrated: Calibrated | None = None

    @property
    def zone(self) -> Zone:
        if self.same >= self.within:
            return "in"
        return "grey" if self.same >= self.grey or self.open >= _OPEN else "out"

    @property
    def likely(self) -> float:
        return self.same if self.zone == "in" else max(self.same, self.open)


class Scope:
    """Decides for each tenant which of its live edits a question is about. Thread safe; never raises."""

    def __init__(
        self,
        ledger: Ledger,
        embedder: Embedder | None = None,
        scorer: Scorer | None = None,
        *,
        alpha: float | None = None,
        cache: Path | None = None,
    ) -> None:
        """Follow a ledger.

        Args:
            ledger: the truth.
            embedder: all-MiniLM-L6-v2 unless given.
            scorer: the shipped one unless given; with an embedder of another kind its cosine.
            alpha: share of its negatives that an edit may be triggered by; ``None`` leaves every edit at the scorer's threshold.
            cache: the folder that files with what is derived lie in; without it, everything is derived at each start.
        """
        self._ledger = ledger
        self._embedder = embedder or minilm(cache=cache)
        self._scorer = scorer or (CosineScorer(embedder) if embedder else None)
        self._alpha = alpha
        self._cache = cache
        self._calibrator: Calibrator | None = None
        self._follower = Follower(ledger, self._embedder, cache)
        self._tenants: dict[str, Tenant] = {}
        self._lock = threading.Lock()

    @property
    def scorer(self) -> Scorer:
        """What judges; the shipped one is read when first needed."""
        with self._lock:
            if self._scorer is None:
                self._scorer = TrainedScorer(shipped_folder(), cache=self._cache)
            return self._scorer

    @property
    def calibrator(self) -> Calibrator | None:
        """What finds thresholds, if edits shall have some of their own."""
        scorer = self.scorer
        with self._lock:
            if self._alpha is not None and self._calibrator is None:
                path = self._cache / "scope" / "thresholds.db" if self._cache else None
                self._calibrator = Calibrator(scorer, alpha=self._alpha, path=path)
            return self._calibrator

    def warm(self) -> None:
        """Load the models and every tenant's edits now, not with the first question."""
        self.scorer.warm()
        self._embedder.encode(["X"])
        for tenant in self._ledger.tenants():
            state = self._state(tenant)
            self._follower.follow(state, patience=-1)
            if state.risky:
                self._follower.place(state, patience=-1)

    def calibrate(self, edits: Iterable[Edit]) -> None:
        """Have edits that were just made calibrated, in the background."""
        if calibrator := self.calibrator:
            for edit in edits:
                calibrator.ask(_wanted(edit))

    def calibration(self, edit: Edit) -> Calibrated | None:
        """Return an edit's own threshold and what it reached; ``None`` until it is calibrated."""
        calibrator = self.calibrator
        return calibrator.known(_wanted(edit)) if calibrator else None

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

    def out_at_once(self, tenant: str, reading: Reading) -> int | None:
        """For who may not block: the revision at which a reading is about no edit, as it names no subject; ``None`` where that takes more.

        It takes more where edits are new, or one may be meant without being named.
        """
        state = self._state(tenant)
        seen = state.seen
        if seen < 0 or state.risky or state.forgetting or state.following.locked():
            return None
        try:
            is_current = self._ledger.head() == seen
        except KeToolsError:
            return None
        is_named = any(state.find(text[-_LONGEST:]).mentions for text in (reading.text, *reading.carried))
        return seen if is_current and not is_named else None

    def named(self, tenant: str, text: str) -> list[tuple[int, int]]:
        """Where a text names subjects of the tenant's live edits, as the ledger stands."""
        state = self._state(tenant)
        self._follower.follow(state)
        return [(mention.start, mention.end) for mention in state.find(text[-_LONGEST:]).mentions]

    def forgetting(self, tenant: str) -> Mapping[str, Edit]:
        """The live edits that forget, by id, as the last decision saw them."""
        return {edit_id: edit for edit_id, edit in self._state(tenant).forgetting.items() if not has_passed(edit.fact.expires)}

    def erase(self, tenant: str, edits: Iterable[Edit]) -> None:
        """Remove what the cache holds of edits that were purged: the tenant's file of names, and what their words were calibrated to."""
        self._follower.erase(self._state(tenant))
        if calibrator := self.calibrator:
            for edit in edits:
                calibrator.erase(_wanted(edit))

    def behind(self, tenant: str) -> int | None:
        """How many edits changed since they were last read, which the next question does; ``None`` before the first question."""
        seen = self._state(tenant).seen
        return None if seen < 0 else len(self._ledger.changed(tenant, seen))

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
        wanted = dict(state.wanted)
        if (state.edits, state.risky) != (anew.edits, anew.risky) or any(
            found != _wanted(anew.edits[edit_id]) for edit_id, found in wanted.items() if edit_id in anew.edits
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
        stages = {
            "how": named.how,
            "mentions": list(named.mentions),
            "scores": {edit_id: round(score.same, 4) for edit_id, score in scores.items()},
            "open": {edit_id: round(score.open, 4) for edit_id, score in scores.items() if score.open >= _OPEN},
            "thresholds": {edit_id: round(score.within, 4) for edit_id, score in scores.items()},
            "ms": took,
        }
        zones = {edit_id: score.zone for edit_id, score in scores.items()}
        zone: Zone = next((zone for zone in _ZONES if zone in zones.values()), "out")
        meant = sorted((edit_id for edit_id, its in zones.items() if its == zone != "out"), key=lambda edit_id: -scores[edit_id].likely)
        likely = [Hit(seen.edits[edit_id], scores[edit_id].likely, named.how) for edit_id in meant]
        hits = tuple(_without_outdated(likely, named.views)[:MOST_HITS])
        of_hits = ((hit.edit.id, scores[hit.edit.id].calibrated) for hit in hits)
        stages["calibrated"] = {edit_id: asdict(reached) for edit_id, reached in of_hits if reached is not None}
        best = max(scores.values(), key=lambda score: score.same, default=None)
        return Decision(zone, hits, stages, _reason(zone, hits, named, best), state.seen)

    def _named(self, state: Tenant, text: str, carried: Sequence[str]) -> _Named:
        if not state.edits or not text.strip():
            return _Named("")
        found = _by_whole_names(text, state.find(text))
        if found.edits:
            chosen = likeliest(found.edits, asked_in(text), MOST_JUDGED)
            viewed = remembered(lambda spans: views(text, spans, carried))  # most edits of a text share their places
            read = {edit_id: viewed(found.spans[edit_id]) or _in_own_words(text, edit) for edit_id, edit in chosen.items()}
            return _Named("named", read, _shown(found), chosen)
        asked = resolve(text) if carried else None
        if asked is not None and not names_another(text) and not speaks_of_another(text):
            for turn in _still_meant([spoken(turn) for turn in carried]):
                found = _by_whole_names(turn, state.find(turn))
                if found.edits:
                    chosen = likeliest(found.edits, asked, MOST_JUDGED)
                    return _Named("carried", dict.fromkeys(chosen, (asked,)), _shown(found), chosen)
        return _Named("alike" if state.risky else "")

    def _scores(self, state: Seen, named: _Named, text: str) -> dict[str, _Score]:
        """How likely the text is about each edit of the subjects named; the best of its views against the best of the edit's texts."""
        if named.how == "alike":
            return {edit_id: _Score(cosine, 0.0, alike.WITHIN, alike.GREY) for edit_id, cosine in self._alike(state, text).items()}
        asked = {
            edit_id: () if sets_aside(text, named.edits[edit_id].fact.target) else tuple(map(neutral, texts))
            for edit_id, texts in named.views.items()
        }
        judged = self._judged(state, {edit_id: texts for edit_id, texts in asked.items() if texts})
        return {edit_id: judged.get(edit_id, _Score(0.0, 0.0, 1.0, 1.0)) for edit_id in asked}

    def _judged(self, state: Seen, asked: Mapping[str, Sequence[str]]) -> dict[str, _Score]:
        """Judge by each edit's first text, by its others what this leaves unclear, and by its relation's what is still in doubt."""
        meant = asked if len(asked) <= _MOST_SCORED else self._nearest_of(state, asked)
        wanted = {edit_id: state.wanted[edit_id] for edit_id in meant}
        found = best(self.scorer, meant, {edit_id: its.texts[:1] for edit_id, its in wanted.items()}, wanted)
        is_near = {edit_id: same >= self.scorer.grey / 2 for edit_id, (same, _) in found.items()}
        own = {edit_id: self._calibrated(state, edit_id) if is_near[edit_id] else None for edit_id in meant}
        within = {edit_id: reached.threshold if reached else self.scorer.within for edit_id, reached in own.items()}
        clear = {edit_id: max(its, self.scorer.doubtful[1]) for edit_id, its in within.items()}
        rest = {edit_id: its.texts[1:] for edit_id, its in wanted.items() if found[edit_id][0] < clear[edit_id]}
        for edit_id, second in best(self.scorer, {edit_id: meant[edit_id] for edit_id in rest}, rest, wanted).items():
            found[edit_id] = max(found[edit_id], second)
        found = settled(self.scorer, meant, found, wanted)
        return {i: _Score(*found[i], within[i], min(self.scorer.grey, within[i]), own[i]) for i in meant}

    def _nearest_of(self, state: Seen, asked: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """Keep the edits that are nearest to the question by the embedding."""
        views = self._embedder.encode([views[0] for views in asked.values()])
        told = self._embedder.encode([state.wanted[edit_id].texts[0] for edit_id in asked])
        order = (-(views * told).sum(1)).argsort()[:_MOST_SCORED].tolist()
        ids = list(asked)
        return {ids[n]: asked[ids[n]] for n in order}

    def _calibrated(self, state: Seen, edit_id: str) -> Calibrated | None:
        """What an edit's calibration reached; where there is none yet, it is asked for."""
        calibrator = self.calibrator
        return calibrator.reached(state.wanted[edit_id]) if calibrator else None

    def _alike(self, state: Seen, text: str) -> dict[str, float]:
        """Cosines of the nearest risky edits among those whose description the text uses without naming anybody else."""
        if state.tenant.subjects.says_shielded(text):
            return {}
        asked = asked_in(text)
        words = alike.telling(asked)
        described = (state.risky[edit_id] for edit_id, names in state.telling.items() if any(name <= words for name in names))
        acting = (edit for edit in described if not has_passed(edit.fact.expires))
        meant = {edit.id for edit in acting if not names_another(asked, names_of(edit.fact.subject, edit.fact.aliases))}
        if not meant:
            return {}
        near = self._nearest(state).search(self._embedder.encode([asked])[0], MOST_HITS)
        return {edit_id: score for edit_id, score in near if edit_id in meant}

    def _nearest(self, state: Seen) -> VectorIndex:
        return self._follower.place(state.tenant)


def prepare(cache: Path) -> None:
    """Put what the shipped models compute with into the cache, where it is missing; takes some seconds once.

    Raises:
        ModelUnavailable: the embedding model is not there.
    """
    TrainedScorer(shipped_folder(), cache=cache).warm()
    minilm(cache=cache).encode(["X"])


def _wanted(edit: Edit) -> Wanted:
    """What asks for the edit: its prompt and its paraphrases; its relation, where that is recognised and training may use it."""
    names = names_of(edit.fact.subject, edit.fact.aliases)
    own = [atlas.mask(text, names) for text in (edit.fact.prompt, *edit.fact.paraphrases)]
    relation = atlas.relations().get(edit.relation)
    texts = tuple(dict.fromkeys(map(neutral, own)))[:_MOST_TEXTS]
    return Wanted(texts, "" if edit.fact.forget else edit.fact.target, relation.id if relation and not relation.probe else "")


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


def _in_own_words(text: str, edit: Edit) -> tuple[str, ...]:
    """The text masked where it is one of the edit's own, however much that looks like something to work on ("Note for X:")."""
    if len(text) > 2 * max(map(len, (edit.fact.prompt, *edit.fact.paraphrases))):
        return ()
    masked = atlas.mask(text, names_of(edit.fact.subject, edit.fact.aliases))
    return (masked,) if atlas.wording_key(masked) in _own_words(edit) else ()


def _seen(state: Tenant, named: _Named) -> Seen:
    for edit_id, edit in named.edits.items():
        if edit_id not in state.wanted:
            state.wanted[edit_id] = _wanted(edit)
    wanted = {edit_id: state.wanted.get(edit_id) or _wanted(edit) for edit_id, edit in named.edits.items()}
    risky, telling = state.described()
    return Seen(state, risky if named.how == "alike" else named.edits, wanted, risky, telling)


def _by_whole_names(text: str, found: Found) -> Found:
    """Without the edits of which only a part of a longer name stands in the text."""
    spans = {}
    for edit_id, places in found.spans.items():
        fact = found.edits[edit_id].fact
        own = " ".join((fact.prompt, *fact.paraphrases))
        whole = tuple(place for place in places if not is_part_of_longer(text, *place, own=own))
        if whole:
            spans[edit_id] = whole
    return Found(found.mentions, {edit_id: found.edits[edit_id] for edit_id in spans}, spans)


def _still_meant(carried: Sequence[str]) -> Iterator[str]:
    """The earlier turns, the latest first, up to one that speaks of somebody else; a bare answer belongs to the turn before it."""
    for position, turn in enumerate(carried):
        yield turn
        if speaks_of_another(turn):
            yield from carried[position + 1 : position + 2] if is_bare(turn) else ()
            return


def _shown(found: Found) -> tuple[dict[str, Any], ...]:
    """The mentions as JSON; of a document that names hundreds, the first."""
    return tuple(
        {"text": mention.text, "start": mention.start, "end": mention.end, "edits": sorted(mention.edit_ids)[:MOST_JUDGED]}
        for mention in found.mentions[:_MOST_SHOWN]
    )


def _reason(zone: Zone, hits: Sequence[Hit], named: _Named, best: _Score | None) -> str:
    if best is None or (named.how == "alike" and not best.same):
        return "names no edited subject"
    who = ", ".join(dict.fromkeys(str(mention["text"]) for mention in named.mentions))
    found = {"named": f"names {who}", "carried": f"goes on about {who}, named earlier", "alike": "names no edited subject"}[named.how]
    if zone == "out":
        return f"{found}; asks for something else (best {best.same:.2f}, needed {best.within:.2f})"
    verb = {"in": "asks for", "grey": "may ask for"}[zone]
    return f"{found}; {verb} " + ", ".join(f"{_asked_for(hit.edit)} ({hit.score:.2f})" for hit in hits)


def _asked_for(edit: Edit) -> str:
    relation = atlas.relations().get(edit.relation)
    return relation.masked.replace("{}", edit.fact.subject) if relation else f"what \u201c{edit.fact.prompt}\u201d is about"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
