r"""Training of the scorer: MiniLM is tuned by contrast, then a logistic regression learns what its likenesses are worth.

Of a batch of unit vectors $z_i$, with $P(i)$ the texts that ask for the same relation as $i$ and $N(i)$ those that certainly do not
(:mod:`ke_tools.memory.scope.batches`), the loss is

$$\frac{1}{|I|} \sum_{i \in I} \frac{1}{|P(i)|} \sum_{p \in P(i)}
-\log \frac{e^{z_i \cdot z_p / \tau}}{e^{z_i \cdot z_p / \tau} + \sum_{n \in N(i)} e^{z_i \cdot z_n / \tau}}$$

which is the supervised contrastive loss (Khosla et al. 2020, eq. 2) with the other positives left out of the denominator, so that one
positive does not push another away. Only a LoRA is trained. A tenth of each source's relations is kept back from it, for the regression and
the thresholds. What only probes may use never enters, nor do subjects for which :func:`ke_tools.cases.is_kept_back` holds.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory.scope import network
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.batches import NO_QUESTIONS, NOBODY, Batch, Mixer
from ke_tools.memory.scope.corpora import Corpus, Group, corpora, subjects_of, training_texts
from ke_tools.memory.scope.embedding import Embedder, minilm, tuned
from ke_tools.memory.scope.graph import locate
from ke_tools.memory.scope.inventory import Inventory
from ke_tools.memory.scope.scorer import CARD, Pair, Scorer, TrainedScorer, features

__all__ = ["SUBJECTS", "Recipe", "measure", "train", "training_texts"]

SUBJECTS: Final = "subjects.json"
_HELD_OUT: Final = 0.1  # of the groups of each source
_LONGEST: Final = 40  # tokens
_CLIP: Final = 1.0
_PAIRS: Final = 40  # of a group, for the regression
_PARTS: Final = 3  # of a batch that are padded alike
_REPORT_EVERY: Final = 10
_BUDGET: Final = {"in": 0.03, "grey": 0.08}  # of the negatives of relations kept back may pass
_FAR: Final = -1e4

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters; the defaults are those of the shipped scorer."""

    steps: int = 1200
    rank: int = 16
    learning_rate: float = 6e-4
    temperature: float = 0.06
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
    without: Collection[str] = (),
    recipe: Recipe | None = None,
    embedder: Embedder | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a scorer on the inventory and on data files, write it to ``out``; return its card.

    Args:
        data: benchmark files.
        out: a folder, for the adapter, the inventory's vectors, the card and the list of subjects fitted on.
        without: relations (the atlas's ids, ids of slots, or a file's masked wording) that no source shall teach.
        recipe: hyper-parameters.
        embedder: tells which relations are alike; all-MiniLM-L6-v2 unless given.
        progress: told (stage, done, total).

    Raises:
        InvalidInput: a data file is of no known format, or ``without`` names a relation that no source has.
        ModelUnavailable: the embedding model is not there.
    """
    chosen, tell = recipe or Recipe(), progress or (lambda _stage, _done, _total: None)
    began = time.monotonic()
    rng = random.Random(chosen.seed)  # noqa: S311  no secret
    _refuse_unknown(without, data)
    sources = corpora(data, without)
    fitted, kept = _split(sources, rng)
    tell("comparing relations", 0, 1)
    embed = (embedder or minilm()).encode
    mixer = Mixer(fitted, lambda texts: embed([neutral(text) for text in texts]), seed=chosen.seed)
    _fit(mixer, out, chosen, tell)
    tell("weighing likenesses", 0, 1)
    made = tuned(out)
    inventory = Inventory.of(made)
    inventory.save(out)
    weights, within, grey = _weigh(list(_judged(kept, sources, rng)), made, inventory)
    card = {
        "recipe": asdict(chosen),
        "data": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in data],
        "without": sorted(without),
        "relations": {corpus.name: len(corpus.groups) for corpus in fitted},
        "kept_back": {corpus.name: [group.name for group in corpus.groups] for corpus in kept},
        "weights": [round(weight, 4) for weight in weights],
        "thresholds": {"in": within, "grey": grey, "chosen": f"so many negatives of kept-back relations pass: {_BUDGET}"},
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    _write(out / CARD, card)
    _write(out / SUBJECTS, {"training_subjects": _subjects(data)})
    card["probe"] = measure(TrainedScorer(out), random.Random(chosen.seed))  # noqa: S311  no secret
    _write(out / CARD, card)
    return card


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


def _split(sources: Sequence[Corpus], rng: random.Random) -> tuple[list[Corpus], list[Corpus]]:
    """Keep some groups of each source back."""
    fitted, kept = [], []
    for corpus in sources:
        back = set(rng.sample(range(len(corpus.groups)), round(_HELD_OUT * len(corpus.groups))))
        fitted.append(replace(corpus, groups=tuple(group for n, group in enumerate(corpus.groups) if n not in back)))
        kept.append(replace(corpus, groups=tuple(group for n, group in enumerate(corpus.groups) if n in back)))
    return fitted, kept


def _subjects(data: Sequence[Path]) -> list[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for every subject of the data files, so that benches can leave them out."""
    names = {squash(name) for path in data for name in subjects_of(path)}
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:8] for name in names)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1 if path.name == CARD else None, ensure_ascii=False) + "\n", "utf-8")


# The embedding


def _fit(mixer: Mixer, out: Path, recipe: Recipe, tell: Progress) -> None:
    import torch

    torch.manual_seed(recipe.seed)
    encode = _Encoder(locate(), recipe.rank)
    learnt = [weight for weight in encode.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.08, anneal_strategy="linear"
    )
    for step in range(1, recipe.steps + 1):
        batch = mixer.draw()
        loss = contrast(encode([neutral(text) for text in batch.texts]), batch, mixer.unsure, recipe.temperature)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, _CLIP)
        optimizer.step()
        schedule.step()
        if step % _REPORT_EVERY == 0 or step == recipe.steps:
            tell(f"tuning, loss {loss.item():.2f}", step, recipe.steps)
    out.mkdir(parents=True, exist_ok=True)
    encode.model.to(torch.float16).save_pretrained(str(out))
    (out / "README.md").unlink(missing_ok=True)  # PEFT's form for a model's card, empty


def contrast(z: Any, batch: Batch, unsure: NDArray[np.bool_], temperature: float) -> Any:
    """The loss of unit vectors ``z``, shape (texts, d); a scalar."""
    import torch

    owners, against = np.array(batch.owners), np.array(batch.against)
    is_owned = owners != NOBODY
    both = is_owned[:, None] & is_owned[None, :]
    same = both & (owners[:, None] == owners[None, :])
    np.fill_diagonal(same, val=False)
    apart = both & (owners[:, None] != owners[None, :]) & ~unsure[owners[:, None], owners[None, :]]
    of_nobody = is_owned[:, None] & ~is_owned[None, :] & ((against[None, :] == NOBODY) | (against[None, :] == owners[:, None]))
    positive, negative = torch.from_numpy(same), torch.from_numpy(apart | of_nobody)
    likeness = z @ z.T / temperature
    rest = torch.logsumexp(likeness.masked_fill(~negative, _FAR), 1, keepdim=True)  # log of the sum over N(i)
    losses = torch.nn.functional.softplus(rest - likeness) * positive
    has = positive.any(1)
    return (losses.sum(1)[has] / positive.sum(1)[has]).mean()


@dataclass(slots=True)
class _Encoder:
    """Texts → unit vectors with gradients: the mean over a text's tokens."""

    folder: Path
    rank: int
    model: Any = field(init=False)
    tokenizer: Any = field(init=False)

    def __post_init__(self) -> None:
        from tokenizers import Tokenizer

        self.model = network.trainable(self.folder, self.rank)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(_LONGEST)
        self.tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> Any:
        import torch

        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        parts = [part.tolist() for part in np.array_split(order, _PARTS) if len(part)]
        vectors = torch.cat([self._states([texts[n] for n in part]) for part in parts])
        return vectors[torch.tensor(np.argsort(np.concatenate(parts)))]

    def _states(self, texts: list[str]) -> Any:
        import torch

        encoded = self.tokenizer.encode_batch(texts)
        ids, mask = (torch.tensor([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean, dim=-1)


# The regression


def _judged(kept: Sequence[Corpus], sources: Sequence[Corpus], rng: random.Random) -> Iterator[_Judged]:
    """Pairs of the relations kept back, each positive with negatives of its source."""
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
                    yield _Judged(Pair(neutral(text), neutral(edit), target), same, corpus.name, _inventoried(corpus.name, group))


def _inventoried(source: str, group: Group) -> str:
    """The name that the inventory has for a group's relation, if it has it."""
    return group.relation or (f"slot:{group.name}" if source == "slots" else group.name)


def _may_contrast(group: Group, other: Group) -> bool:
    is_apart = other.name != group.name and other.name not in group.alike and group.name not in other.alike
    return is_apart and not set(group.texts) & set(other.texts) and not (group.relation and group.relation == other.relation)


def _weigh(judged: Sequence[_Judged], embedder: Embedder, inventory: Inventory) -> tuple[list[float], float, float]:
    """Fit the regression and choose the thresholds (in, grey).

    Each pair counts twice: as it is, and as if the inventory did not have its relation, as with relations that nobody has listed.
    """
    asked, told, edits = (embedder.encode([getattr(one.pair, name) for one in judged]) for name in ("asked", "told", "edit"))
    known, unknown = [], []
    for vectors in (asked, told, edits):
        likeness = inventory.likeness(vectors)
        known.append(np.concatenate([vectors, likeness], axis=1))
        hidden = likeness.copy()
        for row, one in enumerate(judged):
            if one.relation in inventory.relations:
                hidden[row, inventory.relations.index(one.relation)] = -1
        unknown.append(np.concatenate([vectors, hidden], axis=1))
    found = np.concatenate([features(rows[0], rows[1], rows[2], embedder.dimension) for rows in (known, unknown)])
    same = np.array([one.same for one in judged] * 2)
    sources = np.array([one.source for one in judged] * 2)
    weights = _logistic(found, same, _even(sources, same))
    scores = 1 / (1 + np.exp(-(found @ weights[:-1] + weights[-1])))
    grid = np.linspace(0.01, 0.99, 99)
    passing = np.mean([[(scores[(sources == s) & ~same] >= t).mean() for t in grid] for s in sorted(set(sources))], axis=0)
    within, grey = (float(grid[passing <= most].min(initial=grid[-1])) for most in (_BUDGET["in"], _BUDGET["grey"]))
    return weights.tolist(), round(within, 2), round(min(grey, within), 2)


def _even(sources: NDArray[np.str_], same: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights by which each source, and in it each class, counts alike; their mean is 1."""
    weights = np.zeros(len(sources), np.float64)
    for source in set(sources.tolist()):
        for label in (True, False):
            rows = (sources == source) & (same == label)
            weights[rows] = 1 / max(rows.sum(), 1)
    return np.asarray(weights / weights.mean(), np.float64)


def _logistic(x: NDArray[np.float32], y: NDArray[np.bool_], weights: NDArray[np.float64], ridge: float = 1e-3) -> NDArray[np.float64]:
    """Weighted logistic regression by Newton's method; (n, k) → k weights and the intercept."""
    design = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1).astype(np.float64)
    beta: NDArray[np.float64] = np.zeros(design.shape[1], np.float64)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        gradient = design.T @ (weights * (y - p)) - ridge * len(x) * beta
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + ridge * len(x) * np.eye(len(beta))
        beta = beta + np.asarray(np.linalg.solve(hessian, gradient), np.float64)
    return beta
