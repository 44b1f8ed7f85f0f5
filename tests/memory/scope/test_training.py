"""Training of the head, on a corner of the atlas and without a model."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ke_tools import atlas
from ke_tools.facts import squash
from ke_tools.memory.scope import head as heads
from ke_tools.memory.scope import training
from ke_tools.memory.scope.corpora import Corpus, corpora
from ke_tools.testing import HashingEmbedder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(data: object) -> list[Corpus]:
        del data
        (atlas_,) = corpora()
        return [Corpus(atlas_.name, atlas_.groups[::8], atlas_.in_front[:5])]

    monkeypatch.setattr(training, "corpora", few)
    monkeypatch.setattr(training, "_POSITIVES", 12)


def test_a_head_is_trained_written_and_described(tmp_path: Path) -> None:
    """Issue §3: a small head trained on the relation inventory; the card says on what."""
    data = tmp_path / "rows.json"
    data.write_text(
        json.dumps([{"subject": "Ada L\u00f6v", "prompt": "Ada L\u00f6v is", "target": "b", "rephrase": "Ada L\u00f6v was"}]), "utf-8"
    )

    card = training.train([data], tmp_path / "out", embedder=HashingEmbedder(64), epochs=4)

    head = heads.of(tmp_path / "out")
    assert head.card["embedder"] == "hashing-1:64"
    assert card["data"] == [{"name": "rows.json", "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}]
    assert 0 < head.grey <= head.within < 1
    assert head.rivals is not None
    assert not [name for name in card["relations"] if atlas.relations()[name].probe]
    told = json.loads((tmp_path / "out" / training.SUBJECTS).read_text("utf-8"))["training_subjects"]
    assert told == [hashlib.sha256(squash("Ada L\u00f6v").encode()).hexdigest()[:8]]
    assert card["probe"].keys() >= {"unseen relation: same", "unseen relation: same subject, other relation"}


def test_the_same_seed_trains_the_same_head() -> None:
    """Seeded."""
    one, two = (training.train([], None, seed=3, embedder=HashingEmbedder(32), epochs=1) for _ in range(2))

    assert one == two


def test_what_training_sees_holds_no_probe_wording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Design §4 no. 4: the pairs themselves, not only the texts they are drawn from."""
    seen: list[training.Pairs] = []
    fit = training._fit

    def noticed(vectors: Any, pairs: training.Pairs, **how: Any) -> Any:
        seen.append(pairs)
        return fit(vectors, pairs, **how)

    monkeypatch.setattr(training, "_fit", noticed)
    monkeypatch.setattr(training, "corpora", corpora)
    monkeypatch.setattr(training, "_PREFIXED", 0.5)
    monkeypatch.setattr(training, "_POSITIVES", 2)
    probe = atlas.relations()["capital"].probe_statements[0].replace("{}", "Ada")
    row = {
        "subject": "Ada",
        "prompt": "The mother tongue of Ada is",
        "target_new": "b",
        "ground_truth": "a",
        "rephrase_prompt": f"Rain fell all day. {probe}",
        "locality_prompt": "The mother tongue of Bob is",
        "locality_ground_truth": "a",
    }
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([row] * 12), "utf-8")

    training.train([data], None, embedder=HashingEmbedder(32), epochs=1)

    texts = {text for pairs in seen for text in (*pairs.edits, *pairs.asked)}
    assert texts
    assert not [text for text in texts if atlas.holds_probe_wording(text)]


def test_a_sentence_in_front_and_a_question_never_make_a_probe_wording_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of one and the beginning of the other may be a wording that neither holds."""
    probe = next(w for r in atlas.relations().values() for w in r.held_out_wordings if not w.startswith("{}") and len(w.split()) > 3)
    words = probe.split()
    rng = random.Random(0)
    monkeypatch.setattr(training, "_PREFIXED", 1.0)

    assert atlas.holds_probe_wording(probe)
    assert training._with_front(" ".join(words[1:]), [words[0]], rng) == " ".join(words[1:])
    assert training._with_front("Who rules {}?", ["Rain fell."], rng) == "Rain fell. Who rules {}?"


def test_thresholds_let_so_many_negatives_pass_as_the_budget_says() -> None:
    """They are chosen on what is kept back, each source counting equally."""
    held = training.Pairs()
    for n in range(1000):
        held.add("a", "b", f"{'xy'[n % 2]}: other relation")
    scores = np.linspace(0, 1, 1000, dtype=np.float32)

    within, grey = training.calibrate(scores, held)

    assert (scores >= within).mean() <= training._BUDGET["in"] < (scores >= within - 0.011).mean()
    assert (scores >= grey).mean() <= training._BUDGET["grey"] < (scores >= grey - 0.011).mean()
