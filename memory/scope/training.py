"""Training of the scorer, in four steps.

MiniLM is tuned by contrast, the inventory's wordings are embedded by it, a cross-encoder goes on from there, and two logistic regressions
learn what likenesses and the cross-encoder's judgement are worth. Or, from another scorer on: its embedding stays, and its cross-encoder
goes on where it ended.

A tenth of each source's relations is kept back from the tuning and the cross-encoder, for the regressions and the thresholds (those that a
scorer to go on from kept back). What only probes may use never enters, nor do subjects for which :func:`ke_tools.cases.is_kept_back` holds.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.errors import InvalidInput, ModelUnavailable
from ke_tools.facts import squash
from ke_tools.memory.scope import contrast, crossing
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.batches import NO_QUESTIONS, Mixer
from ke_tools.memory.scope.corpora import Corpus, Group, corpora, subjects_of, training_texts
from ke_tools.memory.scope.embedding import Embedder, minilm, tuned
from ke_tools.memory.scope.inventory import Inventory, of_atlas, of_slots
from ke_tools.memory.scope.network import ADAPTER, ADAPTER_CONFIG, CROSSING
from ke_tools.memory.scope.scorer import CARD, CROSSED_FROM, CrossEncoder, Pair, Scorer, TrainedScorer, features

__all__ = ["SUBJECTS", "Recipe", "measure", "train", "training_texts"]

SUBJECTS: Final = "subjects.json"
_HELD_OUT: Final = 0.1  # of the groups of each source
_PAIRS: Final = 48  # of a group, for the regressions
_RIDGE: Final = 3e-4
_REPORT_EVERY: Final = 10
_NO_SCORER: Final = "Name the folder of a trained scorer."
_BUDGET: Final = {"in": 0.06, "grey": 0.12}  # of the negatives of relations kept back may pass

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters; the shipped scorer was made in two parts, which its card names (benchmarks/LOG.md compares)."""

    steps: int = 800  # of the embedding
    rank: int = 16
    learning_rate: float = 6e-4
    temperature: float = 0.06
    crossing_steps: int = 500  # 0: a scorer's to go on from stays as it is
    crossing_rank: int = 64  # that is kept
    crossing_rate: float = 2e-4
    seed: int = 0


class _Judged(NamedTuple):
    """A pair of a kept-back relation, for the regression."""

    pair: Pair
    same: bool
    source: str
    relation: str


def train(
    data: Sequence[Path],
    out: Path,
    *,
    start: Path | None = None,
    without: Collection[str] = (),
    recipe: Recipe | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a scorer on the inventory and on data files, write it to ``out``; return its card.

    Args:
        data: benchmark files.
        out: a folder, for the weights, the inventory's vectors, the card and the list of subjects fitted on.
        start: a scorer to go on from.
        without: relations (the atlas's ids, ids of slots, or a file's masked wording) that no source shall teach.
        recipe: hyper-parameters.
        embedder: tells which relations are alike; all-MiniLM-L6-v2 unless given.
        progress: told (stage, done, total).

    Raises:
        InvalidInput: a data file is of no known format, ``without`` names a relation that no source has or that ``start`` was taught,
            ``start`` is ``out``, or there would be no cross-encoder.
        ModelUnavailable: the embedding model, or a scorer to go on from, is not there.
    """
    chosen, tell = recipe or Recipe(), progress or (lambda _stage, _done, _total: None)
    began = time.monotonic()
    rng = random.Random(chosen.seed)  # noqa: S311  no secret
    _refuse_unknown(without, data)
    before = _card(start, out, without) if start else {}
    if not (before or chosen.crossing_steps):
        raise InvalidInput("a scorer without a cross-encoder is none.", "Give it 1 step or more, or a scorer to go on from.")
    sources = corpora(data, without)
    fitted, kept = _split(sources, rng, before.get("kept_back", {}))
    made, inventory = _networks(fitted, out, start, without, chosen, embedder, tell)
    tell("weighing", 0, 1)
    weighed = _weigh(list(_judged(kept, sources, rng)), made, inventory, CrossEncoder(out))
    card = {
        "recipe": asdict(replace(chosen, steps=0) if start else chosen),
        "data": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in data],
        "without": sorted(without),
        "relations": {corpus.name: len(corpus.groups) for corpus in fitted},
        "kept_back": {corpus.name: [group.name for group in corpus.groups] for corpus in kept},
        **({"start": {name: before[name] for name in ("recipe", "data", "made", "start") if name in before}} if before else {}),
        **weighed,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    _write(out / CARD, card)
    earlier = json.loads((start / SUBJECTS).read_text("utf-8"))["training_subjects"] if start else []
    _write(out / SUBJECTS, {"training_subjects": sorted({*earlier, *_subjects(data)})})
    card["probe"] = measure(TrainedScorer(out), random.Random(chosen.seed))  # noqa: S311  no secret
    _write(out / CARD, card)
    return card


def _networks(
    fitted: Sequence[Corpus],
    out: Path,
    start: Path | None,
    without: Collection[str],
    recipe: Recipe,
    embedder: Embedder | None,
    tell: Progress,
) -> tuple[Embedder, Inventory]:
    """Train the two networks, or what of them a scorer to go on from leaves to do, and embed the inventory by the first."""

    @cache
    def mixer() -> Mixer:
        tell("comparing relations", 0, 1)
        embed = (embedder or minilm()).encode
        return Mixer(fitted, lambda texts: embed([neutral(text) for text in texts]), seed=recipe.seed)

    if start:
        _copy(start, out)
    else:
        contrast.fit(
            mixer(),
            out,
            steps=recipe.steps,
            rank=recipe.rank,
            rate=recipe.learning_rate,
            temperature=recipe.temperature,
            seed=recipe.seed,
            tell=_told("tuning", recipe.steps, tell),
        )
    made = tuned(out)
    tell("embedding the inventory", 0, 1)
    inventory = Inventory.of(made, [one for one in (*of_atlas(), *of_slots()) if one[0].removeprefix("slot:") not in without])
    inventory.save(out)
    if recipe.crossing_steps:
        crossing.fit(
            mixer(),
            made,
            out,
            steps=recipe.crossing_steps,
            rank=recipe.crossing_rank,
            rate=recipe.crossing_rate,
            seed=recipe.seed,
            goes_on=start is not None,
            tell=_told("crossing", recipe.crossing_steps, tell),
        )
    return made, inventory


def _told(stage: str, steps: int, tell: Progress) -> Callable[[int, float], None]:
    def report(step: int, loss: float) -> None:
        if step % _REPORT_EVERY == 0 or step == steps:
            tell(f"{stage}, loss {loss:.2f}", step, steps)

    return report


def measure(scorer: Scorer, rng: random.Random) -> dict[str, dict[str, float]]:
    """Share of the atlas's probe pairs that pass the thresholds, by kind."""
    kinds, pairs = zip(*_probe_pairs(rng), strict=True)
    scores = scorer.score(pairs)[:, 0]
    found = np.array(kinds)
    return {
        kind: {
            "n": int((found == kind).sum()),
            "in": round(float((scores[found == kind] >= scorer.within).mean()), 4),
            "grey": round(float((scores[found == kind] >= scorer.grey).mean()), 4),
        }
        for kind in sorted(set(kinds))
    }


def _probe_pairs(rng: random.Random) -> Iterator[tuple[str, Pair]]:
    """Pairs out of the wordings that training never sees, each with its kind."""
    relations = list(atlas.relations().values())
    objects = {fact.relation: fact.objects[0] for fact in atlas.facts()}
    for relation in relations:
        seen = "unseen relation" if relation.probe else "seen relation, unseen wording"
        edit, target = neutral(relation.statements[0]), objects.get(relation.id, "")
        own = relation.wordings[1:] if relation.probe else relation.probe_statements + relation.probe_questions
        yield from ((f"{seen}: same", Pair(neutral(asked), edit, target)) for asked in own)
        others = [other for other in relations if other.subject == relation.subject and other.id not in {relation.id, relation.inverse}]
        for other in rng.sample(others, min(len(others), 6)):
            asked = rng.choice(other.wordings if relation.probe else other.probe_statements + other.probe_questions)
            yield f"{seen}: same subject, other relation", Pair(neutral(asked), edit, target)
        yield f"{seen}: no question", Pair(neutral(rng.choice(NO_QUESTIONS)), edit, target)


def _refuse_unknown(without: Collection[str], data: Sequence[Path]) -> None:
    known = {name for corpus in corpora(data) for group in corpus.groups for name in (group.name, group.relation)} if without else set()
    unknown = sorted(set(without) - known)
    if unknown:
        raise InvalidInput(f"no source has the relation {unknown[0]!r}.", "Name relations as `ke-tools scope relations` lists them.")


def _card(start: Path, out: Path, without: Collection[str]) -> Mapping[str, Any]:
    """The card of a scorer to go on from, whatever its regressions weighed.

    Raises:
        InvalidInput: it would be written over, or was taught what nothing shall teach.
        ModelUnavailable: the folder holds no scorer.
    """
    if start.resolve() == out.resolve():
        raise InvalidInput(f"{out} is to be written and gone on from.", "Give --out another folder than --start.")
    if missing := [name for name in (CARD, ADAPTER, ADAPTER_CONFIG, CROSSING, SUBJECTS) if not (start / name).is_file()]:
        raise ModelUnavailable(f"the scorer in {start} has no {missing[0]}.", _NO_SCORER)
    try:
        card: dict[str, Any] = json.loads((start / CARD).read_text("utf-8"))
        taught = sorted(set(without) - set(card["without"]))
        dict(card["kept_back"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"the card of the scorer in {start} cannot be read: {error!r}", _NO_SCORER) from error
    if taught:
        raise InvalidInput(f"the scorer in {start} was taught {taught[0]!r}.", "Train one without it from the beginning.")
    return card


def _copy(start: Path, out: Path) -> None:
    """Copy a scorer's networks."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (ADAPTER, ADAPTER_CONFIG, CROSSING):
        shutil.copyfile(start / name, out / name)


def _split(sources: Sequence[Corpus], rng: random.Random, earlier: Mapping[str, Collection[str]]) -> tuple[list[Corpus], list[Corpus]]:
    """Keep some groups of each source back; of one that was there ``earlier`` those that were kept back then."""
    fitted, kept = [], []
    for corpus in sources:
        names = [group.name for group in corpus.groups]
        back = set(earlier[corpus.name] if corpus.name in earlier else rng.sample(names, round(_HELD_OUT * len(names))))
        fitted.append(replace(corpus, groups=tuple(group for group in corpus.groups if group.name not in back)))
        kept.append(replace(corpus, groups=tuple(group for group in corpus.groups if group.name in back)))
    return fitted, kept


def _subjects(data: Sequence[Path]) -> list[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for every subject of the data files, so that benches can leave them out."""
    names = {squash(name) for path in data for name in subjects_of(path)}
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:8] for name in names)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1 if path.name == CARD else None, ensure_ascii=False) + "\n", "utf-8")


# The regressions


def _judged(kept: Sequence[Corpus], sources: Sequence[Corpus], rng: random.Random) -> Iterator[_Judged]:
    """Pairs of the relations kept back, each positive with negatives of its source; few wordings give the same pair more than once."""
    for corpus, source in zip(kept, sources, strict=True):
        for group in corpus.groups:
            rivals = [other for other in source.groups if _may_contrast(group, other)]
            kin = [other for other in rivals if group.kind and other.kind == group.kind] or rivals
            for _ in range(min(_PAIRS, 2 * len(group.texts))):
                edit, asked = rng.choice(group.edits or group.texts), rng.choice(group.texts)
                target = rng.choice(group.targets) if group.targets else ""
                negatives = [rng.choice(rng.choice(kin or [group]).texts), rng.choice(group.contrasts or NO_QUESTIONS)]
                rows = [(asked, True), *((text, False) for text in negatives if text not in group.texts)]
                for text, same in rows:
                    if text == edit:  # its own words need no judgement
                        continue
                    yield _Judged(Pair(neutral(text), neutral(edit), target), same, corpus.name, _inventoried(corpus.name, group))


def _inventoried(source: str, group: Group) -> str:
    """The name that the inventory has for a group's relation, if it has it."""
    return group.relation or (f"slot:{group.name}" if source == "slots" else group.name)


def _may_contrast(group: Group, other: Group) -> bool:
    is_apart = other.name != group.name and other.name not in group.alike and group.name not in other.alike
    return is_apart and not set(group.texts) & set(other.texts) and not (group.relation and group.relation == other.relation)


def _weigh(judged: Sequence[_Judged], embedder: Embedder, inventory: Inventory, cross: CrossEncoder) -> dict[str, Any]:
    """Fit the regressions and choose the thresholds; what the card says of them.

    Each pair counts three times: with an inventory that has not the question's wording, with one that has not the edit's either (compared
    without its target), and with one that has not their relation at all, as with relations that nobody has listed.
    """
    asked, told, edit = (embedder.encode([getattr(one.pair, name) for one in judged]) for name in ("asked", "told", "edit"))
    without_asked = inventory.likeness(asked, [one.pair.asked for one in judged])
    of_told, of_edit = inventory.likeness(told), inventory.likeness(edit)
    without_edit = inventory.likeness(edit, [one.pair.edit for one in judged])
    hidden = (_hidden(likeness, judged, inventory) for likeness in (without_asked, of_told, of_edit))
    ways = ((without_asked, of_told, of_edit), (without_asked, of_told, without_edit), tuple(hidden))
    found = np.concatenate(
        [
            features(np.hstack([asked, of_a]), np.hstack([told, of_t]), np.hstack([edit, of_e]), embedder.dimension)
            for of_a, of_t, of_e in ways
        ]
    )
    same = np.array([one.same for one in judged] * len(ways))
    sources = np.array([one.source for one in judged] * len(ways))
    first = _logistic(found, same, _even(sources, same))
    odds = found @ first[:-1] + first[-1]
    both = np.stack([odds, np.tile(cross.logits([one.pair for one in judged]), len(ways))], axis=1)
    near = odds >= CROSSED_FROM
    second = _logistic(both[near], same[near], _even(sources[near], same[near]))
    odds[near] = both[near] @ second[:-1] + second[-1]
    within, grey = _thresholds(1 / (1 + np.exp(-odds)), same, sources)
    return {
        "weights": [round(weight, 4) for weight in first.tolist()],
        "crossing": [round(weight, 4) for weight in second.tolist()],
        "thresholds": {"in": within, "grey": grey, "chosen": f"so many negatives of kept-back relations pass: {_BUDGET}"},
    }


def _hidden(likeness: NDArray[np.float32], judged: Sequence[_Judged], inventory: Inventory) -> NDArray[np.float32]:
    """The likeness, but that of each pair to its own relation."""
    hidden, places = likeness.copy(), {name: place for place, name in enumerate(inventory.relations)}
    for row, one in enumerate(judged):
        if one.relation in places:
            hidden[row, places[one.relation]] = -1
    return hidden


def _thresholds(scores: NDArray[np.float64], same: NDArray[np.bool_], sources: NDArray[np.str_]) -> tuple[float, float]:
    """The thresholds *in* and *grey*: the lowest that let no more negatives pass than the budget says, in the mean over the sources."""
    grid = np.linspace(0.01, 0.99, 99)
    passing = np.mean([[(scores[(sources == s) & ~same] >= t).mean() for t in grid] for s in sorted(set(sources))], axis=0)
    within, grey = (float(grid[passing <= most].min(initial=grid[-1])) for most in (_BUDGET["in"], _BUDGET["grey"]))
    return round(within, 2), round(min(grey, within), 2)


def _even(sources: NDArray[np.str_], same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights by which each source, and in it each class, counts alike; their mean is 1."""
    weights = np.zeros(len(sources), np.float64)
    for source in set(sources.tolist()):
        for label in (True, False):
            rows = (sources == source) & (same == label)
            weights[rows] = 1 / max(rows.sum(), 1)
    return np.asarray(weights / weights.mean(), np.float64)


def _logistic(x: NDArray[np.float32], y: NDArray[np.bool_], weights: NDArray[np.float64], ridge: float = _RIDGE) -> NDArray[np.float64]:
    """Weighted logistic regression by Newton's method; (n, k) → k weights and the intercept."""
    design = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1).astype(np.float64)
    beta: NDArray[np.float64] = np.zeros(design.shape[1], np.float64)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (weights * (y - p)) - ridge * len(x) * beta
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge * len(x) * np.eye(len(beta))
        beta = beta + np.asarray(np.linalg.solve(hessian, gradient), np.float64)
    return beta
