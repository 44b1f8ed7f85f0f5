"""Training of the scorer: cross-entropy over pairs of masked texts (:mod:`ke_tools.memory.scope.pairs`), MiniLM as cross-encoder.

What only probes may use never enters; :func:`~ke_tools.memory.scope.corpora.training_texts` lists what does. Subjects for which
:func:`ke_tools.cases.is_kept_back` holds are never fitted on.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory.scope import network
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.corpora import corpora, subjects_of, training_texts
from ke_tools.memory.scope.embedding import Embedder, minilm
from ke_tools.memory.scope.graph import locate
from ke_tools.memory.scope.pairs import NO_QUESTIONS, Labelled, Maker
from ke_tools.memory.scope.scorer import CARD, Pair, Scorer, TrainedScorer

__all__ = ["SUBJECTS", "Recipe", "measure", "train", "training_texts"]

SUBJECTS: Final = "subjects.json"
_CHUNK: Final = 40  # batches that are sorted by length together
_CLIP: Final = 1.0
_WEIGHTS: Final = (1.5, 1.0, 1.0)  # of the classes; a missed question is worse than the one in three that it is
_SMOOTHING: Final = 0.02
_REPORT_EVERY: Final = 10

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters; the defaults are those of the shipped scorer."""

    passes: float = 1.0  # over the corpora
    batch: int = 64
    rank: int = 64  # of what is kept of a change
    learning_rate: float = 2e-4
    within: float = 0.3
    grey: float = 0.15
    seed: int = 0


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
        out: a folder, for the weights, the card and the list of subjects fitted on.
        without: relations (the atlas's ids, ids of slots, or a file's masked wording) that no source shall teach.
        recipe: hyper-parameters.
        embedder: chooses rivals; all-MiniLM-L6-v2 unless given.
        progress: told (stage, done, total).

    Raises:
        InvalidInput: a data file is of no known format, or ``without`` names a relation that no source has.
        ModelUnavailable: the embedding model is not there.
    """
    chosen, tell = recipe or Recipe(), progress or (lambda _stage, _done, _total: None)
    began = time.monotonic()
    sources = corpora(data, without)
    _refuse_unknown(without, data)
    tell("rivals", 0, 1)
    embed = (embedder or minilm()).encode
    maker = Maker(sources, lambda texts: embed([neutral(text) for text in texts]), seed=chosen.seed)
    pairs = [pair for share in _shares(chosen.passes) for pair in maker.draw(share)]
    _fit(pairs, out, chosen, tell)
    card = {
        "recipe": asdict(chosen),
        "pairs": len(pairs),
        "data": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in data],
        "without": sorted(without),
        "relations": {corpus.name: len(corpus.groups) for corpus in sources},
        "thresholds": {"in": chosen.within, "grey": chosen.grey},
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
    scores = scorer.score([Pair(neutral(asked), neutral(edit)) for asked, edit in pairs])[:, 0]
    found = np.array(kinds)
    return {
        kind: {
            "n": int((found == kind).sum()),
            "in": round(float((scores[found == kind] >= scorer.within).mean()), 4),
            "grey": round(float((scores[found == kind] >= scorer.grey).mean()), 4),
        }
        for kind in sorted(set(kinds))
    }


def _probe_pairs(rng: random.Random) -> Iterator[tuple[str, tuple[str, str]]]:
    """Pairs of (asked, edit) out of the wordings that training never sees, each with its kind."""
    relations = list(atlas.relations().values())
    objects = {fact.relation: fact.objects[0] for fact in atlas.facts()}
    for relation in relations:
        seen = "unseen relation" if relation.probe else "seen relation, unseen wording"
        edit = f"{relation.statements[0]} {objects.get(relation.id, '')}".strip()
        own = relation.wordings[1:] if relation.probe else relation.probe_statements + relation.probe_questions
        yield from ((f"{seen}: same", (asked, edit)) for asked in own)
        others = [other for other in relations if other.subject == relation.subject and other.id not in {relation.id, relation.inverse}]
        for other in rng.sample(others, min(len(others), 6)):
            asked = rng.choice(other.wordings if relation.probe else other.probe_statements + other.probe_questions)
            yield f"{seen}: same subject, other relation", (asked, edit)
        yield f"{seen}: no question", (rng.choice(NO_QUESTIONS), edit)


def _refuse_unknown(without: Collection[str], data: Sequence[Path]) -> None:
    known = {name for corpus in corpora(data) for group in corpus.groups for name in (group.name, group.relation)} if without else set()
    unknown = sorted(set(without) - known)
    if unknown:
        raise InvalidInput(f"no source has the relation {unknown[0]!r}.", "Name relations as `ke-tools scope relations` lists them.")


def _shares(passes: float) -> list[float]:
    whole = int(passes)
    return [1.0] * whole + ([passes - whole] if passes > whole else [])


def _subjects(data: Sequence[Path]) -> list[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for every subject of the data files, so that benches can leave them out."""
    names = {squash(name) for path in data for name in subjects_of(path)}
    return sorted(hashlib.sha256(name.encode()).hexdigest()[:8] for name in names)


def _fit(pairs: Sequence[Labelled], out: Path, recipe: Recipe, tell: Progress) -> None:
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(recipe.seed)
    folder = locate()
    model = network.untrained(folder).train()
    encode = _Encoder(folder)
    batches = _batches(pairs, recipe)
    learnt = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=len(batches), pct_start=0.08, anneal_strategy="linear"
    )
    loss_of = nn.CrossEntropyLoss(weight=torch.tensor(_WEIGHTS), label_smoothing=_SMOOTHING)
    for step, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**encode(batch))
        loss = loss_of(logits.float(), torch.tensor([pair.label for pair in batch]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learnt, _CLIP)
        optimizer.step()
        schedule.step()
        if step % _REPORT_EVERY == 0 or step == len(batches):
            tell(f"training, loss {loss.item():.2f}", step, len(batches))
    out.mkdir(parents=True, exist_ok=True)
    save_file(network.changes(model, folder, recipe.rank), out / network.WEIGHTS)


class _Encoder:
    """Pairs → the network's inputs."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(96)
        self._tokenizer.enable_padding()

    def __call__(self, batch: Sequence[Labelled]) -> dict[str, Any]:
        import torch

        encoded = self._tokenizer.encode_batch([(neutral(pair.asked), neutral(pair.edit)) for pair in batch])
        return {
            "input_ids": torch.tensor([one.ids for one in encoded]),
            "attention_mask": torch.tensor([one.attention_mask for one in encoded]),
            "token_type_ids": torch.tensor([one.type_ids for one in encoded]),
        }


def _batches(pairs: Sequence[Labelled], recipe: Recipe) -> list[list[Labelled]]:
    """Batches of pairs of like length, in random order."""
    rng = random.Random(recipe.seed)  # noqa: S311  no secret
    found: list[list[Labelled]] = []
    for start in range(0, len(pairs), recipe.batch * _CHUNK):
        chunk = sorted(pairs[start : start + recipe.batch * _CHUNK], key=lambda pair: len(pair.asked) + len(pair.edit))
        part = [list(chunk[n : n + recipe.batch]) for n in range(0, len(chunk), recipe.batch)]
        rng.shuffle(part)
        found += part
    return found


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1 if path.name == CARD else None, ensure_ascii=False) + "\n", "utf-8")
