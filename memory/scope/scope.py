"""Is a request about an edited fact? Decided in stages, the cheapest first.

Stage 0: who is named (:mod:`ke_tools.memory.subjects`), in the text or, where it only goes on ("and its capital?"), in earlier
turns. Nobody named: out, unless the tenant has edits whose subject people name in ways that no list catches; for those the
nearest vectors are looked up. Stage 1: what is asked, a trained score of the question with the subject masked against the
edit's prompt and paraphrases, masked alike. A tenant's edits are seen by this tenant alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.decision import Decision, Hit, Reading, Zone
from ke_tools.memory.scope.embedding import Embedder, minilm
from ke_tools.memory.scope.features import asks_on, neutral, resolve, views
from ke_tools.memory.scope.head import Head, shipped
from ke_tools.memory.subjects import Mention, SubjectIndex, names_of

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.memory.ledger import Ledger

log = logging.getLogger(__name__)

MOST_HITS: Final = 8
_LONGEST: Final = 20_000  # characters of a text in which subjects are looked for, from its end: bounds the time
_WORDINGS: Final = 4  # of a recognised relation, beside the edit's own
_NEAREST: Final = 5
_SIMILAR: Final = 0.6  # cosine from which a question that names nobody is compared at all; only for alias_risky edits


@dataclass(frozen=True, slots=True)
class _Candidate:
    edit: Edit
    spans: tuple[tuple[int, int], ...]
    text: str
    how: str


@dataclass(slots=True)
class _Tenant:
    """One tenant's derived state; equal to what a rebuild from the ledger would give."""

    revision: int = -1
    edits: dict[str, Edit] = field(default_factory=dict)
    names: SubjectIndex = field(default_factory=SubjectIndex)
    risky: dict[str, NDArray[np.float32]] | None = None  # vectors of the alias_risky edits; None: to be computed


class Scope:
    """Decides for every tenant of a ledger; follows the ledger by itself. Thread safe."""

    def __init__(self, ledger: Ledger, embedder: Embedder | None = None, head: Head | None = None) -> None:
        """Take the embedder and the head that come with the package unless others are given."""
        self._ledger = ledger
        self._embedder = embedder or minilm()
        self._head = head
        self._tenants: dict[str, _Tenant] = {}
        self._lock = threading.Lock()

    def decide(self, tenant: str, reading: Reading) -> Decision:
        """Decide; any text is fine. A broken scorer means out, with the reason: the base model answers."""
        started = time.perf_counter()
        with self._lock:
            state = self._fresh(tenant)
            candidates = self._candidates(state, reading)
        stages: dict[str, Any] = {"named": sorted({c.text[s:e] for c in candidates for s, e in c.spans})}
        if not candidates and not any(edit.alias_risky for edit in state.edits.values()):
            return Decision("out", (), stages, "names no edited subject", state.revision)
        try:
            candidates = candidates or self._similar(state, reading)
            scored = self._scored(candidates)
            head = self._head or shipped()
        except Exception as error:  # fail towards the base model, whatever broke
            log.exception("the scorer failed; the base model answers")
            return Decision("out", (), stages | {"error": str(error)}, f"the scorer failed: {error}", state.revision)
        stages |= {
            "scores": {hit.edit.id: round(hit.score, 4) for hit in scored[:MOST_HITS]},
            "thresholds": {"in": head.within, "grey": head.grey},
            "milliseconds": round((time.perf_counter() - started) * 1000, 2),
        }
        return _decision(scored, head, stages, state.revision)

    def audit(self) -> list[str]:
        """Compare the derived state of every tenant with the ledger's live edits; give the differences in words."""
        differences = []
        for tenant in self._ledger.tenants():
            with self._lock:
                state = self._fresh(tenant)
                live = {edit.id: edit for edit in self._ledger.live(tenant)}
                if state.edits.keys() != live.keys():
                    differences.append(f"{tenant}: {len(state.edits)} edits are indexed, {len(live)} are live")
                missed = [e.id for e in live.values() if not any(e.id in m.edit_ids for m in state.names.find(e.fact.subject))]
            if missed:
                differences.append(f"{tenant}: the subjects of {', '.join(missed[:5])} are not found by their own names")
        return differences

    def _fresh(self, tenant: str) -> _Tenant:
        state = self._tenants.setdefault(tenant, _Tenant())
        head = self._ledger.head()
        if state.revision == head:
            return state
        changed = self._ledger.live(tenant) if state.revision < 0 else self._ledger.since(tenant, state.revision)
        for edit in changed:
            if edit.is_live:
                state.edits[edit.id] = edit
                state.names.add(names_of(edit.fact.subject, edit.fact.aliases), edit.id)
            else:
                state.edits.pop(edit.id, None)
                state.names.discard(edit.id)
        if changed:
            state.risky = None
        state.revision = head
        return state

    def _candidates(self, state: _Tenant, reading: Reading) -> list[_Candidate]:
        if not state.edits:
            return []
        text = reading.text[-_LONGEST:]
        if mentions := state.names.find(text):
            return list(_named(state, mentions, text, "named"))
        if not asks_on(text):
            return []
        for earlier in reading.carried:
            if mentions := state.names.find(earlier[-_LONGEST:]):
                resolved = resolve(text) or text
                ids = dict.fromkeys(edit_id for mention in mentions for edit_id in sorted(mention.edit_ids))
                start = resolved.find("{}")
                span = ((start, start + 2),) if start >= 0 else ()
                return [_Candidate(state.edits[edit_id], span, resolved, "carried") for edit_id in ids]
        return []

    def _similar(self, state: _Tenant, reading: Reading) -> list[_Candidate]:
        """Stage 0b: edits whose subjects go by names that nobody listed, by the nearest prompts."""
        import faiss

        if state.risky is None:
            risky = [edit for edit in state.edits.values() if edit.alias_risky]
            state.risky = dict(zip([e.id for e in risky], self._embedder.encode([e.fact.prompt for e in risky]), strict=True))
        ids = list(state.risky)
        index = faiss.IndexFlatIP(self._embedder.dimension)
        index.add(np.stack([state.risky[edit_id] for edit_id in ids]))
        found, places = index.search(self._embedder.encode([reading.text[-1000:]]), min(_NEAREST, len(ids)))
        near = [ids[place] for score, place in zip(found[0], places[0], strict=True) if score >= _SIMILAR]
        return [_Candidate(state.edits[edit_id], (), reading.text[-1000:], "similar") for edit_id in near]

    def _scored(self, candidates: Sequence[_Candidate]) -> list[Hit]:
        """Score each candidate by its best pair of a view of the question and a wording of the edit."""
        asked, told, owner = [], [], []
        for number, candidate in enumerate(candidates):
            for view in views(candidate.text, candidate.spans) if candidate.spans else (candidate.text,):
                for wording in _wordings(candidate.edit, masked=bool(candidate.spans)):
                    asked.append(neutral(view))
                    told.append(neutral(wording))
                    owner.append(number)
        if not owner:
            return []
        head = self._head or shipped()
        scores = head.score(self._embedder.encode(asked), self._embedder.encode(told))
        best: dict[int, float] = {}
        for number, score in zip(owner, scores, strict=True):
            best[number] = max(best.get(number, 0.0), float(score))
        return sorted((Hit(candidates[n].edit, score, candidates[n].how) for n, score in best.items()), key=lambda hit: -hit.score)


def _named(state: _Tenant, mentions: Sequence[Mention], text: str, how: str) -> Iterable[_Candidate]:
    spans: dict[str, list[tuple[int, int]]] = {}
    for mention in mentions:
        for edit_id in sorted(mention.edit_ids):
            spans.setdefault(edit_id, []).append((mention.start, mention.end))
    for edit_id, found in spans.items():
        yield _Candidate(state.edits[edit_id], tuple(found), text, how)


def _wordings(edit: Edit, *, masked: bool) -> tuple[str, ...]:
    """The edit's own wordings, and some fitted ones of its relation where that is known."""
    names = names_of(edit.fact.subject, edit.fact.aliases)
    own = (edit.fact.prompt, *edit.fact.paraphrases)
    if not masked:
        return own
    relation = atlas.relations().get(edit.relation)
    more = (*relation.fitted_questions[:2], *relation.fitted_statements[: _WORDINGS - 2]) if relation else ()
    return tuple(dict.fromkeys((*(atlas.mask(text, names) for text in own), *more)))


def _decision(scored: Sequence[Hit], head: Head, stages: Mapping[str, Any], revision: int) -> Decision:
    within = tuple(hit for hit in scored if hit.score >= head.within)[:MOST_HITS]
    grey = tuple(hit for hit in scored if hit.score >= head.grey)[:MOST_HITS]
    zone: Zone = "in" if within else "grey" if grey else "out"
    if not scored:
        return Decision("out", (), stages, "names an edited subject, and asks nothing of it", revision)
    best = scored[0]
    relation = (best.edit.relation or atlas.mask(best.edit.fact.prompt, [best.edit.fact.subject])).replace("_", " ")
    said = {"in": "asks for", "grey": "may ask for", "out": "asks for something other than"}[zone]
    return Decision(zone, within or grey, stages, f"{best.how} {best.edit.fact.subject}; {said} {relation} ({best.score:.2f})", revision)
