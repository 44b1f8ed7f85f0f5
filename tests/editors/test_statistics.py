"""The second moment of keys: right, cached under everything it depends on, and merged from shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools.editors import _statistics
from ke_tools.editors._statistics import Moments, StatisticsKey, collect, moments, texts_of
from ke_tools.editors._trace import inputs_of
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import SIZES

Make = Callable[[str], CausalModel]
TEXT = "The capital of Norway is Oslo.\n\nIn Kenya people pay with the shilling, and in Peru with the sol.\n\nIt rains."


@pytest.mark.parametrize("kind", SIZES)
def test_it_is_the_mean_of_the_keys_squares(tiny: Make, kind: str, tmp_path: Path) -> None:
    """C = E[kkᵀ] over every token but the first of a row, whatever the padding."""
    model = tiny(kind)
    path = tmp_path / "text"
    path.write_text(TEXT, "utf-8")
    rows = texts_of(model, path, 1000)

    found = collect(model, [1, 2], rows)

    keys = []
    for row in rows:
        with torch.no_grad(), inputs_of({1: model.projection(1)}) as entered:
            model.model(torch.tensor([row]))
        keys.append(entered[1].reshape(len(row), -1)[1:])
    wanted = torch.cat(keys)
    assert found.count == len(wanted)
    ridge = found.of(1) - wanted.T @ wanted / len(wanted)
    assert torch.allclose(ridge, torch.diag(ridge.diagonal()), atol=1e-8), "only the diagonal may be regularised"


def test_too_few_keys_are_regularised_and_said_so() -> None:
    """Issue, bad input: rank-deficient C."""
    keys = torch.randn(3, 8, dtype=torch.float64)
    few, many = Moments({0: keys.T @ keys}, 3), Moments({0: torch.eye(8, dtype=torch.float64)}, 8)

    assert not few.is_full_rank(0)
    assert many.is_full_rank(0)
    assert torch.linalg.eigvalsh(few.of(0)).min() > 0
    assert "3 tokens are too few for C of 8 dimensions (layers 0)" in few.notes()[0]
    assert many.notes() == ()
    assert torch.equal(many.of(0), torch.eye(8, dtype=torch.float64) / 8)


def test_it_is_computed_once(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §4: cached; another layer, another budget or another model is another file."""
    model, made = tiny("llama"), list[tuple[int, ...]]()

    def counting(model: CausalModel, layers: list[int], rows: list[list[int]], **_: object) -> Moments:
        made.append(tuple(layers))
        return collect(model, layers, rows)

    monkeypatch.setattr(_statistics, "collect", counting)
    first = moments(model, [1, 2], tokens=200, cache=tmp_path)
    again = moments(model, [1, 2], tokens=200, cache=tmp_path)
    moments(model, [2, 3], tokens=200, cache=tmp_path)
    moments(model, [1], tokens=201, cache=tmp_path)
    moments(model, [1], tokens=200, seed=1, cache=tmp_path)
    model.fingerprint = "sha256:other"
    moments(model, [1], tokens=200, cache=tmp_path)

    assert made == [(1, 2), (3,), (1,), (1,), (1,)]
    assert again.count == first.count
    assert all(torch.equal(again.sums[layer], first.sums[layer]) for layer in (1, 2))


@pytest.mark.parametrize("name", [field.name for field in fields(StatisticsKey)])
def test_the_key_depends_on_everything(name: str) -> None:
    """The reference's cache key left the token budget out (style.md §3.1)."""
    key = StatisticsKey(model="m", layer=1, module="a", tokens=10, source="s", dtype="float32")
    changed: Any = {name: 7 if isinstance(getattr(key, name), int) else "other"}
    other = replace(key, **changed)

    assert key.name != other.name


def test_shards_add_up_in_any_order_and_a_missing_one_counts_as_nothing(tmp_path: Path) -> None:
    """Issue §4: merging is associative and idempotent by shard id: a shard written twice is one file."""
    key = StatisticsKey(model="m", layer=1, module="a", tokens=10, source="s", dtype="float64")
    parts = [Moments({1: torch.full((2, 2), float(n), dtype=torch.float64)}, n + 1) for n in range(3)]
    for n in (2, 0, 2):
        _statistics._write(tmp_path, key, f"{n}-of-3", parts[n])
    assert _statistics._read(tmp_path) is None
    _statistics._write(tmp_path, key, "1-of-3", parts[1])

    total = _statistics._read(tmp_path)

    assert total is not None
    assert (total.count, total.sums[1].tolist()) == (6, [[3, 3], [3, 3]])


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_damaged_file_is_computed_again(tiny: Make, tmp_path: Path, content: bytes) -> None:
    """A cache is a cache."""
    model = tiny("llama")
    first = moments(model, [1], tokens=200, cache=tmp_path)
    (file,) = (tmp_path / "statistics").rglob("*.safetensors")
    file.write_bytes(content)

    again = moments(model, [1], tokens=200, cache=tmp_path)

    assert torch.equal(again.sums[1], first.sums[1])


def test_keys_that_are_no_numbers_are_refused_with_their_layer_and_not_kept(tiny: Make, tmp_path: Path) -> None:
    """Issue, bad input: NaN in the statistics."""
    model = tiny("llama")
    honest = model.weight(1).detach().clone()
    rows = _statistics.samples(model, 200)
    with torch.no_grad():
        model.weight(1)[0, 0] = float("nan")  # spoils the stream behind layer 1, and with it the keys of layer 2

    with pytest.raises(InvalidInput, match="layer 2 hold numbers that are none"):
        collect(model, [1, 2], rows)
    with pytest.raises((InvalidInput, RuntimeError)):
        moments(model, [1, 2], tokens=200, cache=tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))
    with torch.no_grad():
        model.weight(1).copy_(honest)


def test_a_cached_file_that_holds_no_numbers_is_computed_again(tmp_path: Path) -> None:
    """As a damaged one is."""
    key = StatisticsKey(model="m", layer=1, module="a", tokens=10, source="s", dtype="float64")
    _statistics._write(tmp_path, key, "0-of-1", Moments({1: torch.full((2, 2), float("inf"), dtype=torch.float64)}, 3))

    assert _statistics._read(tmp_path) is None


def test_the_same_seed_samples_the_same_and_leaves_the_callers_randomness_alone(tiny: Make) -> None:
    """No global state."""
    model = tiny("llama")
    torch.manual_seed(3)
    before = torch.random.get_rng_state()

    one, two = (_statistics.samples(model, 100, seed=5) for _ in range(2))

    assert one == two != _statistics.samples(model, 100, seed=6)
    assert sum(map(len, one)) >= 100
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("text", [None, "", " \n\n "])
def test_a_text_that_holds_nothing_is_refused(tiny: Make, tmp_path: Path, text: str | None) -> None:
    """What was found, what was expected."""
    path = tmp_path / "text"
    if text is not None:
        path.write_text(text, "utf-8")

    with pytest.raises((InvalidInput, FileNotFoundError)):
        moments(tiny("llama"), [1], text=path)
