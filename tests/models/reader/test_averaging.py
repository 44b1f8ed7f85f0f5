"""The mean of several readers: what it computes, what its card says, what is refused. Issue 4, §5, of the reader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ke_tools.errors import InvalidInput
from ke_tools.models.reader import card
from ke_tools.models.reader.averaging import average

MODULE = "base_model.model.model.layers.{}.self_attn.q_proj"
RANK, WIDE, OUT = 2, 12, 10
LAYERS = 3


def reader(folder: Path, seed: int, *, rank: int = RANK, alpha: int = 4, **changed: Any) -> Path:
    """A reader of random factors, with a card."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        weights[f"{MODULE.format(layer)}.lora_A.weight"] = torch.randn(rank, WIDE, generator=generator).to(torch.bfloat16)
        weights[f"{MODULE.format(layer)}.lora_B.weight"] = torch.randn(OUT, rank, generator=generator).to(torch.bfloat16)
    save_file(weights, folder / card.WEIGHTS, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": alpha, "target_modules": ["q_proj"]}))
    written = {
        "base_fingerprint": "sha256:base",
        "base_model": "tiny",
        "recipe": {"steps": seed},
        "data": [],
        "samples": 7,
        "training_subjects": [f"{seed:08x}", "0000000a"],
    }
    (folder / card.CARD).write_text(json.dumps(written | changed))
    return folder


def products(folder: Path) -> dict[int, torch.Tensor]:
    """B A of each layer."""
    weights: Mapping[str, torch.Tensor] = load_file(folder / card.WEIGHTS)
    return {
        layer: weights[f"{MODULE.format(layer)}.lora_B.weight"].double() @ weights[f"{MODULE.format(layer)}.lora_A.weight"].double()
        for layer in range(LAYERS)
    }


def test_the_mean_is_the_best_of_its_rank_of_what_the_readers_add(tmp_path: Path) -> None:
    """The docstring's equation: against the decomposition of the full mean; factors are stored in bfloat16."""
    parts = [reader(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]

    lost = average(parts, tmp_path / "out")

    shares = []
    for layer, found in products(tmp_path / "out").items():
        mean = torch.stack([products(part)[layer] for part in parts]).mean(dim=0)
        u, s, v = torch.linalg.svd(mean)
        best = (u[:, :RANK] * s[:RANK]) @ v[:RANK]
        assert (found - best).norm() <= 0.01 * best.norm()
        shares.append(float((s[RANK:].square().sum() / s.square().sum()).sqrt()))
    assert lost == pytest.approx(max(shares), rel=1e-6)
    assert {w.dtype for w in load_file(tmp_path / "out" / card.WEIGHTS).values()} == {torch.bfloat16}


@given(seed=st.integers(0, 1000), count=st.integers(2, 4))
def test_the_mean_of_a_reader_with_itself_is_that_reader(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    """An identity: nothing is lost where all agree."""
    folder = tmp_path_factory.mktemp("readers")
    one = reader(folder / "one", seed)

    lost = average([one] * count, folder / "out")

    assert lost < 1e-6
    for layer, found in products(folder / "out").items():
        assert (found - products(one)[layer]).norm() <= 0.01 * products(one)[layer].norm()


def test_the_card_tells_the_parts_and_every_subject_that_was_trained_on(tmp_path: Path) -> None:
    """Issue 2, §2: a reader has a card; a bench leaves out the subjects that it names, so none of a part may be missing."""
    parts = [reader(tmp_path / "a", 1), reader(tmp_path / "b", 2)]

    average(parts, tmp_path / "home" / "readers" / "out")

    written = json.loads((tmp_path / "home" / "readers" / "out" / card.CARD).read_text("utf-8"))
    assert written["training_subjects"] == ["00000001", "00000002", "0000000a"]
    assert [part["sha256"] for part in written["averaged"]] == [card.DataFile.of(part / card.WEIGHTS).sha256 for part in parts]
    assert [part["recipe"] for part in written["averaged"]] == [{"steps": 1}, {"steps": 2}]
    assert card.find("sha256:base", tmp_path / "home") == tmp_path / "home" / "readers" / "out"
    assert [file.name for file in (tmp_path / "home" / "readers").iterdir()] == ["out"]


def test_a_mean_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    """As a training does: the folder is replaced by a rename, also where a part lies in it."""
    parts = [reader(tmp_path / "a", 1), reader(tmp_path / "b", 2)]
    before = products(parts[0])

    average(parts, parts[0])

    assert (products(parts[0])[0] - before[0]).norm() > 0.1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"base_fingerprint": "sha256:other"}, "another base model"),
        ({"rank": 3}, "another rank"),
        ({"alpha": 8}, "another rank, scaling"),
    ],
)
def test_readers_that_do_not_fit_together_are_refused(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    """Bad input: nothing is written, and what does not fit is named."""
    parts = [reader(tmp_path / "a", 1), reader(tmp_path / "b", 2, **other)]

    with pytest.raises(InvalidInput, match=says):
        average(parts, tmp_path / "out")

    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("damage", ["no card", "no JSON", "a list", "an empty card", "torn weights"])
def test_a_folder_that_holds_no_reader_is_named(tmp_path: Path, damage: str) -> None:
    """Bad input: the folder is in the message."""
    parts = [reader(tmp_path / "a", 1), reader(tmp_path / "b", 2)]
    if damage == "no card":
        (parts[1] / card.CARD).unlink()
    if damage == "no JSON":
        (parts[1] / card.CARD).write_text("{")
    if damage in {"a list", "an empty card"}:
        (parts[1] / card.CARD).write_text("[]" if damage == "a list" else "{}")
    if damage == "torn weights":
        (parts[1] / card.WEIGHTS).write_bytes((parts[1] / card.WEIGHTS).read_bytes()[:100])

    with pytest.raises(InvalidInput, match=str(parts[1])):
        average(parts, tmp_path / "out")


def test_one_reader_has_no_mean(tmp_path: Path) -> None:
    """Bad input."""
    with pytest.raises(InvalidInput, match="two readers"):
        average([reader(tmp_path / "a", 1)], tmp_path / "out")
