"""The second moment of keys: right, cached under everything it depends on, and merged from shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools import cli
from ke_tools.config import Settings
from ke_tools.editors import _statistics
from ke_tools.editors._statistics import Moments, Shard, StatisticsKey, as_prompts, collect, collect_shard, moments, texts_of
from ke_tools.editors._trace import inputs_of
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel, load
from tests.editors.conftest import FAMILIES

Make = Callable[[str], CausalModel]
TEXT = "The capital of Norway is Oslo.\n\nIn Kenya people pay with the shilling, and in Peru with the sol.\n\nIt rains."


@pytest.mark.parametrize("kind", FAMILIES)
def test_it_is_the_mean_of_the_keys_squares(tiny: Make, kind: str, tmp_path: Path) -> None:
    """C = E[kkᵀ] over every token of the rows, the first too, whatever the padding."""
    model = tiny(kind)
    path = tmp_path / "text"
    path.write_text(TEXT, "utf-8")
    rows = texts_of(model, path, 1000)

    found = collect(model, [1, 2], rows)

    keys = []
    for row in rows:
        with torch.no_grad(), inputs_of({1: model.projection(1)}) as entered:
            model.model(torch.tensor([row]))
        keys.append(entered[1].reshape(len(row), -1))
    wanted = torch.cat(keys)
    assert found.count == len(wanted)
    ridge = found.of(1) - wanted.T @ wanted / len(wanted)
    assert torch.allclose(ridge, torch.diag(ridge.diagonal()), atol=1e-8), "only the diagonal may be regularised"


def test_a_text_is_counted_as_prompts_are_read(tiny: Make) -> None:
    """A change acts on the first token of a prompt too: C without it costs the neighbours' answers (benchmarks/LOG.md)."""
    model = tiny("llama")
    start = model.tokenizer.bos_token_id
    rows = [[start, *range(10, 30)], list(range(40, 43)), [start]]

    made = as_prompts(model, rows, 8)

    assert made == [list(range(10, 18)), list(range(18, 26)), list(range(26, 30)), [40, 41, 42]], "no prompt has that token in front"


def test_what_the_tokenizer_puts_before_a_prompt_stands_before_every_row(tiny: Make) -> None:
    """Llama's and Gemma's beginning of text: there the first key is always the same, and counts as such."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    model = tiny("llama")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model.tokenizer.backend_tokenizer, bos_token=model.tokenizer.eos_token)
    assert tokenizer.bos_token_id is not None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)]
    )
    text = tokenizer("It rains in Oslo.")["input_ids"]
    assert text[0] == tokenizer.bos_token_id
    model.tokenizer = tokenizer

    made = as_prompts(model, [text], 3)

    assert [row[0] for row in made] == [tokenizer.bos_token_id] * len(made)
    assert [token for row in made for token in row[1:]] == text[1:]


def test_too_few_keys_are_regularised_and_said_so() -> None:
    """Issue, bad input: rank-deficient C."""
    keys = torch.randn(3, 8, dtype=torch.float64)
    few, many = Moments({0: keys.T @ keys}, 3), Moments({0: torch.eye(8, dtype=torch.float64)}, 8)

    assert not few.is_full_rank(0)
    assert many.is_full_rank(0)
    assert torch.linalg.eigvalsh(few.of(0)).min() > 0
    assert "3 tokens are too few for C of 8 dimensions (layers 0)" in few.notes()[0]
    assert many.notes() == ()
    assert torch.equal(many.mean(0), torch.eye(8, dtype=torch.float64) / 8)
    assert torch.allclose(many.of(0), 1.01 * torch.eye(8, dtype=torch.float64) / 8)


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


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 2, 3, 0, 1)])
def test_four_shards_in_any_order_come_to_what_one_pass_does(tiny: Make, tmp_path: Path, order: tuple[int, ...]) -> None:
    """Issue §4: merging is associative, to 1e-12; a shard that is asked for twice is counted once."""
    model = tiny("llama")
    path = tmp_path / "text"
    path.write_text("\n\n".join(f"{TEXT} Row {n} says so." for n in range(9)), "utf-8")
    whole = moments(model, [1, 2], text=path, tokens=500)

    missing = [collect_shard(model, [1, 2], Shard(number, 4), tmp_path, text=path, tokens=500) for number in order]
    found = moments(model, [1, 2], text=path, tokens=500, cache=tmp_path)

    assert missing[0] == tuple(number for number in range(4) if number != order[0])
    assert missing[-1] == ()
    assert found.count == whole.count
    for layer in (1, 2):
        assert (found.sums[layer] - whole.sums[layer]).norm() <= 1e-12 * whole.sums[layer].norm()
    assert not list(tmp_path.rglob("0-of-1.safetensors")), "the shards were not found"


def test_shards_of_samples_are_of_different_samples_and_together_as_many_as_asked_for(tiny: Make, tmp_path: Path) -> None:
    """Each has a seed of its own, which no shard of another seed shares."""
    model = tiny("llama")

    missing = [collect_shard(model, [1], Shard(number, 2), tmp_path, tokens=400, seed=1) for number in range(2)]

    assert missing == [(1,), ()]
    assert moments(model, [1], tokens=400, seed=1, cache=tmp_path).count >= 400 * 0.9  # less each row's first token
    rows = [Shard(number, 2).rows(model, None, 400, seed, None) for seed in (1, 2) for number in range(2)]
    assert all(one != other for n, one in enumerate(rows) for other in rows[:n])


def test_a_set_that_is_not_whole_is_not_mixed_with_another(tmp_path: Path) -> None:
    """Two of three and one of one are of the same text: counted together they would count it twice."""
    key = StatisticsKey(model="m", layer=1, module="a", tokens=10, source="s", dtype="float64")
    for name, count in (("0-of-3", 1), ("1-of-3", 1), ("0-of-1", 3)):
        _statistics._write(tmp_path, key, name, Moments({1: torch.eye(2, dtype=torch.float64)}, count))

    found = _statistics._read(tmp_path)

    assert found is not None
    assert found.count == 3


def test_a_shard_without_text_a_layer_that_is_none_and_a_part_that_is_none_are_refused(tiny: Make, tmp_path: Path) -> None:
    """What was found, what to do."""
    path = tmp_path / "text"
    path.write_text("It rains in Oslo.", "utf-8")

    with pytest.raises(InvalidInput, match=r"shard 2 of 2.*fewer"):
        collect_shard(tiny("llama"), [1], Shard(1, 2), tmp_path, text=path)
    with pytest.raises(InvalidInput, match="4 layers"):
        collect_shard(tiny("llama"), [4], Shard(), tmp_path, text=path)
    with pytest.raises(InvalidInput, match="no shard 3 of 2"):
        Shard(2, 2)


def test_the_command_line_counts_shards_and_says_when_all_are_there(
    tiny: Make, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue §4: several processes; what an editor then asks for is there."""
    model = tiny("llama")
    for part in (model.model.float(), tokenizer):
        part.save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text("\n\n".join([TEXT] * 3), "utf-8")
    monkeypatch.setenv("KE_CACHE", str(tmp_path / "cache"))
    words = ["statistics", "--model", str(tmp_path / "model"), "--layers", "1-2", "--text", str(tmp_path / "text"), "--tokens", "99"]

    told = []
    for shard in ("1/2", "1/2", "2/2"):
        assert cli.run([*words, "--shard", shard, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))

    assert [one["missing"] for one in told] == [["2/2"], ["2/2"], []]
    assert [one["complete"] for one in told] == [False, False, True]
    monkeypatch.setattr(_statistics, "collect", None)
    loaded = load(Settings.load(model=str(tmp_path / "model")))
    assert moments(loaded, [1, 2], text=tmp_path / "text", tokens=99, cache=tmp_path / "cache").count > 0
    assert cli.run([*words, "--shard", "half"]) == 2
    assert "1/4" in capsys.readouterr().err


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


def test_sampling_tells_at_every_token_and_may_be_left_there(tiny: Make) -> None:
    """Issue 6, bars: progress at least every two seconds; on a large model one batch of samples takes minutes."""
    told: list[int] = []
    quiet = _statistics.samples(tiny("llama"), 100)
    assert _statistics.samples(tiny("llama"), 100, tell=lambda _stage, done, _total: told.append(done)) == quiet
    assert (len(told), told) == (len(quiet[0]) - 1, sorted(told))

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _statistics.samples(tiny("llama"), 100, tell=leave)


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
