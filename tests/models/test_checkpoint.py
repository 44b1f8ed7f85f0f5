"""Which checkpoint is meant, what it is, and the hash over its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ke_tools.config import Settings
from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models import checkpoint, embedded
from ke_tools.models.causal import CausalModel

WEIGHTS: dict[str, Any] = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, np.float16)}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 3, "vocab_size": 5}


def make(folder: Path, weights: dict[str, Any] | None = None, **config: Any) -> Path:
    """Write a checkpoint of a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(WEIGHTS if weights is None else weights, folder / "model.safetensors")
    return folder


def settings(tmp_path: Path, model: str, **options: Any) -> Settings:
    """Settings that name a model."""
    return Settings(home=tmp_path / "home", cache=tmp_path / "cache", model=model, **options)


def test_the_fingerprint_depends_on_names_types_shapes_and_bytes_alone(tmp_path: Path) -> None:
    """Issue 3 §2: a hash over the weights; not over files, order or metadata."""
    known = checkpoint.fingerprint(make(tmp_path / "one"), cache=tmp_path)
    assert known.startswith("sha256:")
    twin = make(tmp_path / "two", dict(reversed(WEIGHTS.items())))
    save_file(dict(reversed(WEIGHTS.items())), twin / "model.safetensors", metadata={"by": "another program"})
    assert checkpoint.fingerprint(twin, cache=tmp_path) == known
    others: list[dict[str, Any]] = [
        WEIGHTS | {"b": WEIGHTS["b"] + 1},
        WEIGHTS | {"b": WEIGHTS["b"].T.copy()},
        WEIGHTS | {"b": WEIGHTS["b"].view(np.int32)},
        {"c": WEIGHTS["b"], "a": WEIGHTS["a"]},
        {"a": WEIGHTS["a"]},
    ]
    hashes = {checkpoint.fingerprint(make(tmp_path / f"other{i}", weights), cache=tmp_path) for i, weights in enumerate(others)}
    assert len(hashes | {known}) == 6


def test_shards_have_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    """However the tensors are spread over files."""
    whole = checkpoint.fingerprint(make(tmp_path / "whole"), cache=tmp_path)
    sharded = make(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    for name, weight in WEIGHTS.items():
        save_file({name: weight}, sharded / f"{name}.safetensors")
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in WEIGHTS}}))
    assert checkpoint.fingerprint(sharded, cache=tmp_path) == whole
    assert checkpoint.describe(sharded, cache=tmp_path).parameters == 10
    (sharded / "b.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"b\.safetensors"):
        checkpoint.fingerprint(sharded, cache=tmp_path)


def test_a_known_fingerprint_is_not_computed_again_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept beside, under size, time and inode; hashing a large model takes minutes."""
    path = make(tmp_path / "model")
    known = checkpoint.fingerprint(path, cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_tensors", None)
        assert checkpoint.fingerprint(path, cache=tmp_path / "cache") == known
    make(path, {"b": WEIGHTS["b"] + 1, "a": WEIGHTS["a"]})
    assert checkpoint.fingerprint(path, cache=tmp_path / "cache") != known


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    """A read-only cache is no error; nor is a note that makes no sense."""
    path = make(tmp_path / "model")
    (tmp_path / "file").write_text("")
    known = checkpoint.fingerprint(path, cache=tmp_path / "file")
    assert checkpoint.fingerprint(path, cache=tmp_path) == known
    (note,) = (tmp_path / "fingerprints").iterdir()
    note.write_text("nonsense")
    assert checkpoint.fingerprint(path, cache=tmp_path) == known


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x10\0\0\0\0\0\0\0not json at all!", None])
def test_damaged_weights_are_refused(tmp_path: Path, damage: bytes | None) -> None:
    """Issue 3 §6: empty, nonsense, and cut off in the middle."""
    path = make(tmp_path / "model")
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(ModelUnavailable, match="no whole safetensors file"):
        checkpoint.fingerprint(path, cache=tmp_path)


def test_a_checkpoint_is_described_without_loading_it(tmp_path: Path) -> None:
    """Issue 3 §2 `model show`: architecture, size, licence, fingerprint, place."""
    path = make(tmp_path / "model", max_position_embeddings=77)
    (path / "README.md").write_text("---\ntags: [x]\nlicense: 'mit'\n---\n# M\nlicense: none\n")
    card = checkpoint.describe(path, cache=tmp_path)
    assert (card.architecture, card.parameters, card.dtype, card.licence) == ("LlamaForCausalLM", 10, "float32", "mit")
    assert (card.layers, card.width, card.vocabulary, card.context_length) == (2, 3, 5, 77)
    assert (card.name, card.path, card.fingerprint) == ("model", path, checkpoint.fingerprint(path, cache=tmp_path))


def test_a_model_is_found_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model PATH`."""
    path = make(tmp_path / "model")
    assert checkpoint.resolve(settings(tmp_path, str(path))) == path
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve(settings(tmp_path, "./model")) == path


def test_embedded_means_the_embedded_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model embedded`: whatever first needs it fetches it, with a visible notice."""
    said: list[str] = []

    def fetch(cache: Path, *, progress: Any) -> Path:
        progress("downloading", 0.0)
        return cache / "model"

    monkeypatch.setattr(embedded, "fetch", fetch)
    found = checkpoint.resolve(settings(tmp_path, "embedded"), progress=lambda what, _part: said.append(what))
    assert (found, said) == (tmp_path / "cache" / "model", ["downloading"])


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-of-this-name", "not a name", "a/b/c"])
def test_a_folder_that_is_not_there_is_said_and_no_hub_is_asked(tmp_path: Path, name: str) -> None:
    """Issue 3 §6: missing model."""
    with pytest.raises(ModelUnavailable, match="there is no folder") as caught:
        checkpoint.resolve(settings(tmp_path, name))
    assert "embedded" in caught.value.hint


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    """What is expected instead is said."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match=r"without config\.json"):
        checkpoint.resolve(settings(tmp_path, str(tmp_path / "empty")))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelUnavailable, match="a file") as caught:
        checkpoint.resolve(settings(tmp_path, str(tmp_path / "m.gguf")))
    assert "--from" in caught.value.hint
    bad = make(tmp_path / "bad")
    (bad / "config.json").write_text("[]")
    with pytest.raises(ModelUnavailable, match="no JSON object"):
        checkpoint.resolve(settings(tmp_path, str(bad)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    """Issue 3 §2: safetensors only."""
    path = make(tmp_path / "model")
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(ModelUnavailable, match="safetensors"):
        checkpoint.resolve(settings(tmp_path, str(path)))


def test_code_of_the_checkpoints_own_is_refused_unless_trusted(tmp_path: Path) -> None:
    """Issue 3 §2: no remote code unless asked for; not needed where transformers has the architecture."""
    own = make(tmp_path / "own", model_type="newfangled", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    with pytest.raises(ModelUnavailable, match="code of its own") as caught:
        checkpoint.resolve(settings(tmp_path, str(own)))
    assert "--trust-remote-code" in caught.value.hint
    assert checkpoint.resolve(settings(tmp_path, str(own), trust_remote_code=True)) == own
    known = make(tmp_path / "known", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert checkpoint.resolve(settings(tmp_path, str(known))) == known


def test_a_hub_id_is_fetched_in_safetensors_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model ID`: no pickles, no code, no files of subfolders are downloaded."""
    import huggingface_hub

    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(make(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    assert checkpoint.resolve(settings(tmp_path, "someone/model")) == tmp_path / "snapshot"
    assert asked["name"] == "someone/model"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not {"*.bin", "*.py", "*"} & set(asked["allow_patterns"])
    checkpoint.resolve(settings(tmp_path, "someone/model", trust_remote_code=True))
    assert "*.py" in asked["allow_patterns"]


def test_without_a_hub_the_error_tells_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §2: offline."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_given: Any, **_options: Any) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelUnavailable, match="no connection") as caught:
        checkpoint.resolve(settings(tmp_path, "someone/model"))
    assert "--model embedded" in caught.value.hint


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"])
def test_a_mixture_of_experts_is_refused_with_what_says_that_it_is_one(name: str) -> None:
    """Issue 7, §5: refused by name; one expert is none."""
    checkpoint.refuse_experts({"model_type": "m", name: 1})
    with pytest.raises(Unsupported, match=rf"m is a mixture of experts \({name} = 8\)"):
        checkpoint.refuse_experts({"model_type": "m", name: 8})


def test_the_editing_copy_of_a_mixture_of_experts_is_refused_by_name() -> None:
    """Issue 7, §5: where promotions are planned, not only where memory is estimated."""
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2))
    with pytest.raises(Unsupported, match=r"mixtral is a mixture of experts \(num_local_experts = 2\)"):
        CausalModel(model, tokenizer=None)
