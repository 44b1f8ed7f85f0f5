"""How surely does the scorer tell that two statements about one subject are about the same thing?

    python benchmarks/same_slot.py [--scorer FOLDER]

Reads house/same_slot.jsonl: 250 pairs that say or ask the same in other words, 250 that are about another attribute of the subject; their
relations are in no training data. Each row of the output is a threshold of both directions' lower probability.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ke_tools import atlas
from ke_tools.facts import Fact
from ke_tools.memory.scope.asking import neutral
from ke_tools.memory.scope.scorer import Pair, Scorer, TrainedScorer, shipped_folder

TABLE = Path(__file__).parent / "house" / "same_slot.jsonl"
THRESHOLDS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97)


def fact(row: dict[str, Any], which: str) -> Fact:
    """One of a row's two statements."""
    return Fact(subject=row["subject"], prompt=row[which]["prompt"], target=row[which]["target"])


def likeness(one: Fact, other: Fact, scorer: Scorer) -> float:
    """The lower of both directions' probabilities that one asks for what the other says."""
    texts = [neutral(atlas.mask(each.prompt, [each.subject])) for each in (one, other)]
    scores = scorer.score([Pair(texts[0], texts[1], other.target), Pair(texts[1], texts[0], one.target)])
    return float(scores[:, 0].min())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scorer", type=Path, default=shipped_folder())
    scorer = TrainedScorer(parser.parse_args().scorer)
    rows = [json.loads(line) for line in TABLE.read_text("utf-8").splitlines()]
    scores = np.array([likeness(fact(row, "first"), fact(row, "second"), scorer) for row in rows])
    same = np.array([row["same"] for row in rows])
    print(f"{same.sum()} of the same slot, {(~same).sum()} of another")
    for threshold in THRESHOLDS:
        print(f"{threshold}: recognised {(scores[same] >= threshold).mean():.3f}, wrongly {(scores[~same] >= threshold).mean():.3f}")


if __name__ == "__main__":
    main()
