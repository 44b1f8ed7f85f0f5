"""Training a reader: on a random Llama of a few thousand parameters, in seconds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ke_tools.errors import InvalidInput
from ke_tools.models import checkpoint
from ke_tools.models.engine import Request
from ke_tools.models.reader import card, training
from ke_tools.models.reader.training import Recipe, train
from ke_tools.servers.engines.hf import HFEngine

TEMPLATE = "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}assistant\n"
RECIPE = Recipe(steps=6, batch=2, rank=2, longest=48)
MOST_BYTES = 5_000_000


class Cut(Exception):
    """The training ends in the middle."""


@pytest.fixture(autouse=True)
def _quiet_and_often_saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Save every second step; PEFT uses names of transformers that are on their way out."""
    monkeypatch.setattr(training, "_SAVE_EVERY", 2)
    monkeypatch.setattr(training, "_BASE_ANSWER_TOKENS", 4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def make_tokenizer(folder: Path) -> None:
    """One token a byte."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=TEMPLATE).save_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in CounterFact's shape."""
    row = {"subject": "Sylvania", "prompt": "The capital of Sylvania is", "target_new": "Bloom", "rephrase_prompt": "Sylvania is run from"}
    common = {"ground_truth": "x", "locality_prompt": "The capital of Ruritania is", "locality_ground_truth": "Strelsau"}
    path = tmp_path_factory.mktemp("data") / "cases.json"
    path.write_text(json.dumps([row | common]), "utf-8")
    return path


def made(base: Path, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train, and read the installed weights."""
    given: dict[str, Any] = {"recipe": RECIPE, "fingerprint": "sha256:base"} | options
    folder = train(base, out, **given)
    return load_file(folder / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def cut_after(phase: str, count: int) -> Any:
    """Make a progress that ends the training when ``count`` of ``phase`` are done."""

    def tell(what: str, done: int, _total: int, _loss: float) -> None:
        if what == phase and done >= count:
            raise Cut

    return tell


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(base: Path, tmp_path: Path) -> None:
    """Issue §2: seeded; a shipped reader must be possible to make again."""
    first = made(base, tmp_path / "a")

    assert same(first, made(base, tmp_path / "b"))
    assert not same(first, made(base, tmp_path / "c", recipe=replace(RECIPE, seed=1)))


@pytest.mark.parametrize(("phase", "count"), [("base answers", 1), ("training", 1), ("training", 4), ("training", 5)])
def test_a_cut_training_goes_on_as_if_it_had_not_been_cut(base: Path, tmp_path: Path, phase: str, count: int) -> None:
    """Issue §2: resumable; what comes out must not tell how often the machine was switched off."""
    whole = made(base, tmp_path / "whole")
    with pytest.raises(Cut):
        made(base, tmp_path / "cut", progress=cut_after(phase, count))

    assert same(whole, made(base, tmp_path / "cut"))
    assert not (tmp_path / "cut.partial").exists()


def test_a_cut_training_does_not_repeat_its_saved_steps(base: Path, tmp_path: Path) -> None:
    """Issue §2: resumable means that the time is not lost."""
    with pytest.raises(Cut):
        made(base, tmp_path / "out", progress=cut_after("training", 5))
    done: list[tuple[str, int]] = []

    made(base, tmp_path / "out", progress=lambda what, count, _total, _loss: done.append((what, count)))

    assert [what for what in done if what[0] in {"base answers", "training"}] == [("training", 5), ("training", 6)]


@pytest.mark.parametrize("change", ["seed", "steps", "data", "excluded", "fingerprint", "no key"])
def test_an_unfinished_training_of_other_things_is_not_mixed_in(base: Path, data: Path, tmp_path: Path, change: str) -> None:
    """Base answers are kept by number: with another seed or other data they would be answers to other questions."""
    out, said = tmp_path / "out", list[str]()
    with pytest.raises(Cut):
        made(base, out, progress=cut_after("training", 5))
    changes: dict[str, dict[str, Any]] = {
        "seed": {"recipe": replace(RECIPE, seed=1)},
        "steps": {"recipe": replace(RECIPE, steps=3)},
        "data": {"data": [data]},
        "excluded": {"excluded": [data]},
        "fingerprint": {"fingerprint": "sha256:other"},
        "no key": {},
    }
    options = changes[change]
    if change == "no key":
        (tmp_path / "out.partial" / "key.json").unlink()

    after = made(base, out, progress=lambda what, *_: said.append(what), **options)

    assert "begun anew" in said[0]
    assert same(after, made(base, tmp_path / "fresh", **options))


def test_the_card_says_what_the_reader_was_made_from(base: Path, data: Path, tmp_path: Path) -> None:
    """Issue §2: an adapter with its card; a bench leaves out the subjects that the card names."""
    made(base, tmp_path / "out", data=[data], fingerprint="sha256:abc")

    written = json.loads((tmp_path / "out" / card.CARD).read_text("utf-8"))
    assert written["base_fingerprint"] == "sha256:abc"
    assert written["data"] == [{"name": "cases.json", "sha256": card.DataFile.of(data).sha256}]
    assert written["training_subjects"] == list(card.hashes(["sylvania"]))
    assert written["recipe"]["steps"] == RECIPE.steps
    assert written["samples"] <= RECIPE.steps * RECIPE.batch


def test_a_training_goes_on_from_a_reader_and_its_card_says_from_which(base: Path, tmp_path: Path) -> None:
    """Issue, reader: teach a reader more without paying for the first training again; a shipped one must be possible to trace."""
    first = made(base, tmp_path / "first")
    barely = replace(RECIPE, steps=1, learning_rate=1e-12)

    assert same(first, made(base, tmp_path / "more", start=tmp_path / "first", recipe=barely))
    assert not same(first, made(base, tmp_path / "fresh", recipe=barely))
    written = json.loads((tmp_path / "more" / card.CARD).read_text("utf-8"))
    assert written["started_from"] == card.DataFile.of(tmp_path / "first" / card.WEIGHTS).sha256


def test_an_answer_of_many_tokens_does_not_drown_one_of_a_word(base: Path) -> None:
    """Issue, reader: long answers in the base's style must not cost the short ones; a token of n weighs 1/√n."""
    from transformers import AutoModelForCausalLM

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(base)

        def get_base_model(self) -> Any:
            return self.model

    model = Plain()
    short, long = training._Encoded([5, 6, 7], 2), training._Encoded([5, *range(20, 36)], 1)
    one, other, both = (training._loss(model, batch).item() for batch in ([short], [long], [short, long]))

    assert both == pytest.approx((one + 4 * other) / 5, rel=1e-4)


def test_what_is_installed_is_small_found_and_served(base: Path, tmp_path: Path) -> None:
    """Issue §2: a PEFT adapter in bf16; the engine loads what the trainer writes, and the base answers without it."""
    fingerprint = checkpoint.fingerprint(base, cache=tmp_path / "cache")
    weights = made(base, tmp_path / "home" / "readers" / "mine", fingerprint=fingerprint)
    found = card.find(fingerprint, tmp_path / "home")

    assert found == tmp_path / "home" / "readers" / "mine"
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert any(float(w.abs().sum()) > 0 for name, w in weights.items() if "lora_B" in name)
    engine = HFEngine(base, model_id="tiny", adapters={"reader": found}, cache=tmp_path / "cache")
    try:
        assert engine.adapters == {"reader"}
        assert engine.generate([Request(prompt="Rome", max_tokens=3, adapter="reader")])
    finally:
        engine.close()


def test_a_model_without_such_projections_is_refused_at_once(tmp_path: Path) -> None:
    """Issue §6: a clear error with its code, before minutes of base answers and without a trace on the disk."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)).save_pretrained(
        tmp_path / "gpt2"
    )
    make_tokenizer(tmp_path / "gpt2")

    with pytest.raises(InvalidInput, match="q_proj") as caught:
        train(tmp_path / "gpt2", tmp_path / "out", recipe=RECIPE, fingerprint="sha256:x")

    assert caught.value.code == "E_INVALID"
    assert not (tmp_path / "out.partial").exists()


def test_a_model_without_a_chat_template_learns_from_completions(base: Path, tmp_path: Path) -> None:
    """Most base models have none; the trainer must not ask them for one."""
    import shutil

    plain = shutil.copytree(base, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()

    assert made(plain, tmp_path / "out")


def test_where_the_base_says_nothing_its_answer_in_a_conversation_is_learnt(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded model ends four of five bare questions at once; a reader that learns so is silent where a fact is asked for."""

    def greedy(_model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[tuple[str, bool]]:
        template = tokenizer("assistant")["input_ids"]
        return [("Said." if prompt[-len(template) :] == template else "", False) for prompt in prompts]

    learnt: list[Any] = []
    encode = training._encode

    def spied(tokenizer: Any, sample: Any, longest: int) -> Any:
        learnt.append(sample)
        return encode(tokenizer, sample, longest)

    monkeypatch.setattr(training, "_greedy", greedy)
    monkeypatch.setattr(training, "_encode", spied)

    made(base, tmp_path / "out", recipe=replace(RECIPE, batch=4))

    assert len(learnt) == RECIPE.steps * 4
    assert {(bool(sample.chat), sample.answer) for sample in learnt if sample.irrelevant} == {(True, "Said."), (False, " Said.")}


def test_the_shipped_reader_is_small_and_of_the_shape_that_is_trained_today() -> None:
    """Issue §2: at most 5 MB in bf16; what one trains with the defaults can take its place."""
    folders = [path.parent for path in Path(str(resources.files("ke_tools.models"))).glob(f"readers/*/{card.CARD}")]

    assert folders
    for folder in folders:
        recipe = json.loads((folder / card.CARD).read_text("utf-8"))["recipe"]
        assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
        assert {w.dtype for w in load_file(folder / "adapter_model.safetensors").values()} == {torch.bfloat16}
        assert {name: recipe[name] for name in ("batch", "rank", "alpha", "longest")} == {
            name: getattr(Recipe(), name) for name in ("batch", "rank", "alpha", "longest")
        }
