"""The checkpoint that is served and the one that edits are planned with: two of one model, or refused before anything starts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models import causal, checkpoint, twins
from ke_tools.models.reader import training
from ke_tools.testing import thimble_path
from tests.quantised import quantised


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """The thimble, quantised."""
    return quantised(thimble_path(), tmp_path / "packed")


def given(tmp_path: Path, model: Path, **more: Any) -> Settings:
    """Settings by which vLLM serves a model."""
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=str(model), **{"engine": "vllm", **more})


def changed(file: Path, change: Callable[[Any], object]) -> Path:
    """Change what a JSON file says; gives its folder."""
    said = json.loads(file.read_text("utf-8"))
    change(said)
    file.write_text(json.dumps(said), "utf-8")
    return file.parent


def copied(tmp_path: Path) -> Path:
    """A copy of the thimble to change."""
    return Path(shutil.copytree(thimble_path(), tmp_path / "copy"))


def test_one_is_served_and_edits_are_of_the_other(tmp_path: Path, packed: Path) -> None:
    """Issue 7, §5: the unquantised twin of what is served."""
    settings = given(tmp_path, packed, edit_model=str(thimble_path()))
    assert twins.served_checkpoint(settings) == packed
    assert checkpoint.resolve(settings) == thimble_path()


def test_without_a_twin_what_is_served_is_edited(tmp_path: Path) -> None:
    """Issue 7, §5: without a twin all is of --model."""
    settings = given(tmp_path, thimble_path())
    assert twins.served_checkpoint(settings) == checkpoint.resolve(settings) == thimble_path()


def test_of_servers_that_run_already_no_folder_is_looked_for(tmp_path: Path) -> None:
    """Issue 7, §5: there --edit-model stands in --model's place; what they hold they are asked."""
    settings = given(tmp_path, tmp_path / "on-another-machine", edit_model=str(thimble_path()), vllm_url=("http://127.0.0.1:9",))
    assert twins.served_checkpoint(settings) == thimble_path()


@pytest.mark.parametrize(
    ("field", "value"), [("hidden_size", 256), ("num_hidden_layers", 5), ("vocab_size", 2049), ("architectures", ["OtherForCausalLM"])]
)
def test_another_shape_is_no_twin(tmp_path: Path, packed: Path, field: str, value: object) -> None:
    """Issue 7, §5: what was found, what was expected, what to do; from the configurations alone."""
    other = changed(copied(tmp_path) / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(Unsupported, match=re.escape(f"{other} of --edit-model is no twin of {packed}")) as caught:
        twins.served_checkpoint(given(tmp_path, packed, edit_model=str(other)))
    assert f"{field} is {value} there, and " in caught.value.message
    assert "quantised from" in caught.value.hint


def test_what_a_configuration_leaves_to_its_default_is_no_difference(tmp_path: Path, packed: Path) -> None:
    """Tools that quantise write the configuration anew."""
    other = changed(copied(tmp_path) / "config.json", lambda config: [config.pop(name) for name in ("head_dim", "num_key_value_heads")])
    assert twins.served_checkpoint(given(tmp_path, packed, edit_model=str(other))) == packed
    null = changed(other / "config.json", lambda config: config.update({"head_dim": None, "text_config": None}))
    assert twins.served_checkpoint(given(tmp_path, packed, edit_model=str(null))) == packed


def test_a_tokenizer_of_other_tokens_is_no_twin_and_one_that_is_only_written_otherwise_is(tmp_path: Path, packed: Path) -> None:
    """Issue 7, §5: the tokenizer; its file's form differs from version to version."""
    other = changed(copied(tmp_path) / "tokenizer.json", lambda said: said.update({"version": "1.1"}))
    settings = given(tmp_path, packed, edit_model=str(other))
    assert twins.served_checkpoint(settings) == packed
    odd = changed(other / "tokenizer.json", lambda said: said["model"]["vocab"].update({"<odd>": 7}))
    with pytest.raises(Unsupported, match=re.escape(f"{odd} of --edit-model is no twin")) as caught:
        twins.served_checkpoint(settings)
    assert "their tokenizers differ in 1 tokens, e.g. '<odd>'" in caught.value.message


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"model": "BPE"}', "lists no tokens"),
        ('{"model": {"vocab": [["a", 0.5], 7]}}', "lists no tokens"),
        ('{"added_tokens": [{"id": 1}]}', "lists no tokens"),
    ],
)
def test_a_damaged_tokenizer_is_told(tmp_path: Path, packed: Path, said: str, told: str) -> None:
    """Issue 7, bad input: what cannot be read is told with its name."""
    (packed / "tokenizer.json").write_text(said, "utf-8")
    with pytest.raises(ModelUnavailable, match=rf"tokenizer\.json {told}"):
        twins.served_checkpoint(given(tmp_path, packed, edit_model=str(thimble_path())))


def test_a_twin_that_is_quantised_itself_is_refused(tmp_path: Path, packed: Path) -> None:
    """Issue 7, §5: the *unquantised* twin."""
    with pytest.raises(Unsupported, match=r"holds quantised weights \(compressed-tensors\)"):
        checkpoint.resolve(given(tmp_path, thimble_path(), edit_model=str(packed)))


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_no_edit_is_planned_by_quantised_weights(tmp_path: Path, packed: Path, engine: str) -> None:
    """Issue 7, §5: the error names what would do."""
    with pytest.raises(Unsupported, match=r"holds quantised weights.*--engine vllm.*--edit-model"):
        causal.load(given(tmp_path, packed, engine=engine))


def test_no_reader_is_trained_on_quantised_weights(tmp_path: Path, packed: Path) -> None:
    """The same for the reader, before anything is computed."""
    with pytest.raises(Unsupported, match="--edit-model"):
        training.train(packed, tmp_path / "reader", fingerprint="sha256:0")


def test_the_editing_copy_lies_on_the_device_for_that(tmp_path: Path) -> None:
    """Issue 7, §5: --edit-device; the engine goes on with --device, which this machine need not have."""
    settings = given(tmp_path, thimble_path(), device="cuda:99", edit_device="cpu")
    assert causal.load(settings).device.type == "cpu"
