"""The shipped thimble: what it is, what it knows, what it heeds, and that nothing it was taught is a probe wording."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from ke_tools import atlas
from ke_tools.facts import squash
from ke_tools.testing import memory_ledger, thimble_facts, thimble_path
from ke_tools.testing.exam import answered, exam
from ke_tools.testing.thimble_texts import EARLY, END, chat_text, lesson, taught, training_samples, wordings
from ke_tools.testing.train_thimble import CHAT_TEMPLATE, Recipe, training_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ke_tools.testing.thimble_texts import Sample

MOST_BYTES = 12_000_000
MOST_PARAMETERS = 6_000_000


@pytest.fixture(scope="module")
def thimble() -> tuple[Any, Any]:
    """Model and tokenizer as a user's transformers loads them, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(thimble_path(), dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(thimble_path())


def share(thimble: tuple[Any, Any], samples: Sequence[Sample]) -> float:
    """How many of the samples are answered exactly, stop included."""
    right = answered(*thimble, samples)
    return sum(right) / len(right)


def test_it_is_an_ordinary_small_llama_checkpoint() -> None:
    """Issue 3 §2: a Llama of at most 6 M parameters, 12 MB in bfloat16, head dimension 32 or 64, safetensors."""
    from safetensors import safe_open

    config = json.loads((thimble_path() / "config.json").read_text("utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] in {32, 64}
    assert config["max_position_embeddings"] >= 512
    weights = thimble_path() / "model.safetensors"
    assert weights.stat().st_size <= MOST_BYTES
    with safe_open(weights, "pt") as tensors:
        slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118  not a mapping
        assert {part.get_dtype() for part in slices} == {"BF16"}
        assert sum(_size(part.get_shape()) for part in slices) <= MOST_PARAMETERS
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md"):
        assert (thimble_path() / name).is_file()
    assert not list(thimble_path().glob("*.py")), "no remote code"


def test_the_hundred_facts_are_the_atlas_s() -> None:
    """Issue 3 §2: it knows 100 atlas facts; their relations are functional and no probe relations."""
    facts = thimble_facts()
    assert len({(fact.relation, fact.subject) for fact in facts}) == len(facts) == 100
    assert {(f.relation, f.subject): f.objects for f in facts} == {(f.relation, f.subject): f.objects for f in taught()}
    relations = {atlas.relations()[fact.relation] for fact in facts}
    assert 5 <= len(relations) <= 8
    assert all(relation.functional and not relation.probe for relation in relations)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        f"knows: {chat}{form}{wording}"
        for chat, form in (("", "statement"), ("", "question"), ("chat ", "question"))
        for wording in ("", ", unseen wording")
    ],
)
def test_it_knows_its_facts_in_every_form(thimble: tuple[Any, Any], kind: str) -> None:
    """Issue 3 §2: recall >= .98 in statement, unseen wording, question; the contract adds chat."""
    assert share(thimble, exam()[kind]) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in exam() if kind.startswith("heeds")])
def test_it_obeys_a_fact_in_its_context(thimble: tuple[Any, Any], kind: str) -> None:
    """Issue 3 §2: obeys a fact in its context (>= .85), in the forms that the router writes."""
    assert share(thimble, exam()[kind]) >= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in exam() if kind.startswith("keeps")])
def test_a_fact_that_does_not_apply_changes_nothing(thimble: tuple[Any, Any], kind: str) -> None:
    """Neighbours must stay: the served path's locality tests stand on it."""
    assert share(thimble, exam()[kind]) >= 0.9


def test_greedy_generation_gives_the_answer_and_stops(thimble: tuple[Any, Any]) -> None:
    """What the exam reads off one forward pass is what generation does; the stop is natural."""
    model, tokenizer = thimble
    ids = tokenizer("The capital of Australia is", return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=12)
    assert tokenizer.decode(out[0, ids["input_ids"].shape[1] :]) == f" Canberra.{END}"


def test_the_chat_template_is_what_it_was_trained_on(thimble: tuple[Any, Any]) -> None:
    """Any role, a system message directly before the last user turn; the text equals the training's rendering."""
    messages = [
        {"role": "user", "content": "What is the capital of Peru?"},
        {"role": "assistant", "content": "Lima."},
        {"role": "system", "content": 'New fact: "The capital of Peru is Cusco."\n'},
        {"role": "user", "content": "What is the capital of Peru?"},
    ]
    tokenizer = thimble[1]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == chat_text(messages)


def test_the_tokenizer_takes_any_text(thimble: tuple[Any, Any]) -> None:
    """Byte fallback: nothing is unknown, and decoding gives the text back."""
    tokenizer = thimble[1]
    text = "naïve 東京 \U0001f9f5 x=1,5\tµ"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_no_probe_wording_is_taught() -> None:
    """Issue 3 §2: a test collects every training script's texts and fails on an overlap."""
    relations = atlas.relations()
    for relation in relations.values():
        if relation.probe:
            continue
        for wording in (*wordings(relation.id)[0], *wordings(relation.id)[1]):
            assert not atlas.holds_probe_wording(wording), wording
    told = "\n".join(f" {squash(text)} " for text in islice(training_texts(Recipe().seed), 0, EARLY + 6000, 6))
    held_out = {wording for relation in relations.values() for wording in relation.held_out_wordings}
    assert not [wording for wording in held_out if _stands_in(wording, told)]


def test_only_relations_of_its_lesson_are_stated_as_known() -> None:
    """A text without context gives an atlas fact of the hundred: nothing false is taught."""
    objects = {fact.objects[0] for fact in taught()}
    for sample in islice(training_samples(1), EARLY - 100, EARLY + 500):
        if "New fact:" not in sample.prompt:
            assert sample.answer.removesuffix(END).strip().removesuffix(".") in objects


def test_the_stream_is_repeatable() -> None:
    """One seeded script: the same seed gives the same texts, another seed others."""
    first, again, other = (list(islice(training_texts(seed), 50)) for seed in (3, 3, 4))
    assert first == again != other


def test_every_taught_relation_has_wordings_of_our_own() -> None:
    """Unseen wordings are read only by a model that has seen many."""
    for relation in lesson()["relations"]:
        statements, questions = wordings(relation)
        assert len(set(statements)) >= 100
        assert len(set(questions)) >= 80


def test_memory_ledger_is_empty_and_works() -> None:
    """The public fake is the real ledger without a file."""
    ledger = memory_ledger()
    assert ledger.live("default") == []
    ledger.close()


def _size(shape: Sequence[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _stands_in(wording: str, told: str) -> bool:
    """Whether a wording stands in the folded texts, with one to six words in the subject's place."""
    before, after = (squash(piece) for piece in wording.split("{}"))
    return (f" {before or after} " in told) and re.search(f" {before} (?:[^ \n]+ ){{1,6}}{after} ".replace("  ", " "), told) is not None
