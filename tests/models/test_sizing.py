"""What a model takes in memory, from its configuration and its weights' headers."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from ke_tools import cli
from ke_tools.errors import Unsupported
from ke_tools.models.sizing import GIB, Sizes, layout, sizes
from ke_tools.testing import thimble_path
from tests.quantised import quantised

EIGHT_B: dict[str, Any] = {  # a Llama of 8 B, as its configuration tells
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
PARAMETERS = 8_030_261_248


def make(folder: Path, *, parameters: int = PARAMETERS, dtype: str = "BF16", **config: Any) -> Path:
    """A checkpoint of a header and a hole: as large as it says, on a file system that keeps holes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(EIGHT_B | config), "utf-8")
    size = parameters * {"BF16": 2, "F32": 4, "I32": 4, "F8_E4M3": 1}[dtype]
    header = json.dumps({"w": {"dtype": dtype, "shape": [parameters], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return folder


def of(path: Path, **more: Any) -> Sizes:
    """Its sizes, with vLLM as ke-tools starts it."""
    return sizes(path, **{"rank": 128, "slots": 8, **more})


def test_what_vllm_holds_follows_from_the_shapes(tmp_path: Path) -> None:
    """Issue 7, §5 and §7: weights, cache and adapter slots of a Llama of 8 B, by hand."""
    found = of(make(tmp_path / "m"))
    assert found.parameters == PARAMETERS
    assert found.weights == 2 * PARAMETERS
    assert found.cache_token == 2 * 32 * 8 * 128 * 2  # both, layers, heads, width, bytes
    assert found.cache == 32 * 8192 * found.cache_token
    columns = (4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096) + (14336 + 4096)  # q, k and v, o, down
    assert found.adapter_slot == columns * 128 * 2 * 32
    assert of(tmp_path / "m", rank=64).adapter_slot == found.adapter_slot // 2


def test_editing_takes_a_copy_in_float32_and_the_statistics(tmp_path: Path) -> None:
    """Issue 7, §5: what editing takes beside serving."""
    batch = 1024 * 4 * (4 * 128256 + 32 * (10 * 4096 + 4 * 14336))
    assert of(make(tmp_path / "m")).editing == 4 * PARAMETERS + 5 * 14336**2 * 8 + batch


@pytest.mark.parametrize(("dtype", "stored", "a_number"), [("auto", "F32", 2), ("float32", "BF16", 4), ("auto", "BF16", 2)])
def test_weights_are_counted_in_the_type_that_vllm_computes_in(tmp_path: Path, dtype: str, stored: str, a_number: int) -> None:
    """VLLM halves float32 unless it is told."""
    assert of(make(tmp_path / "m", parameters=1000, dtype=stored), dtype=dtype).weights == 1000 * a_number


def test_quantised_weights_take_what_they_take_and_are_edited_as_their_twin(tmp_path: Path) -> None:
    """Issue 7, §5: the unquantised twin of what is served; packed numbers cannot be counted."""
    found = of(make(tmp_path / "m", parameters=1_430_000_000, dtype="I32", quantization_config={"quant_method": "awq"}))
    assert found.weights == 4 * 1_430_000_000
    assert found.parameters == pytest.approx(PARAMETERS, rel=1e-4)
    assert found.editing > 4 * found.parameters


@pytest.mark.parametrize(
    ("gib", "said"),
    [
        (16, "2 GPUs for vLLM .*tensor-parallel-size=2.*--edit-device cpu"),
        (24, "one GPU for vLLM, with room for 2 sequences of 8,192 tokens; .*--edit-device cpu"),
        (141, "one GPU for both: --vllm-arg=--gpu-memory-utilization=0"),
        (1, "fits no 16"),
    ],
)
def test_a_layout_fits_the_gpu(tmp_path: Path, gib: float, said: str) -> None:
    """Issue 7, §5: says which layout fits."""
    assert re.search(said, layout(of(make(tmp_path / "m")), gib))


def test_what_is_left_to_vllm_holds_what_it_needs(tmp_path: Path) -> None:
    """The share that is told must not be too small for what was counted."""
    found = of(make(tmp_path / "m"))
    for gib in range(1, 200):
        said = layout(found, gib)
        if said.startswith("one GPU for both"):
            share = float(said.partition("utilization=")[2].split()[0])
            assert found.serving <= share * gib * GIB
            assert share * gib * GIB + found.editing <= gib * GIB


def test_a_mixture_of_experts_is_refused_by_name(tmp_path: Path) -> None:
    """Issue 7, §5."""
    with pytest.raises(Unsupported, match=r"mixtral is a mixture of experts \(num_local_experts = 8\)"):
        of(make(tmp_path / "m", model_type="mixtral", num_local_experts=8))


def test_a_configuration_that_tells_no_shape_is_refused(tmp_path: Path) -> None:
    """Bad input."""
    with pytest.raises(Unsupported, match="does not tell"):
        of(make(tmp_path / "m", num_attention_heads=None))


@pytest.mark.parametrize("kind", ["gpt2", "mamba"])
def test_models_without_adapters_of_ours_are_told(tmp_path: Path, kind: str) -> None:
    """Issue 7, bad input: an architecture without LoRA support; the memory works."""
    found = of(make(tmp_path / "m", model_type=kind))
    assert found.adapter_slot == 0
    assert "from the memory alone" in layout(found, 80)


def test_the_command_shows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 7, §5: for a given model, without loading it."""
    monkeypatch.setenv("KE_HOME", str(tmp_path))
    monkeypatch.setenv("KE_CACHE", str(tmp_path))
    assert cli.run(["model", "show", "--model", str(thimble_path()), "--gpu-gib", "80", "--json"]) == cli.DONE
    shown = json.loads(capsys.readouterr().out)
    assert {row["what"]: row["bytes"] for row in shown["memory"]}["weights in vLLM"] == 2 * shown["parameters"]
    assert shown["layout"].startswith("one GPU for both")


def test_the_command_counts_what_is_served_and_tells_whose_edits_act(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 7, §5: a quantised model and its twin."""
    monkeypatch.setenv("KE_HOME", str(tmp_path))
    monkeypatch.setenv("KE_CACHE", str(tmp_path))
    packed = quantised(thimble_path(), tmp_path / "packed")
    words = ["--engine", "vllm", "--edit-model", str(thimble_path()), "model", "show", "--model", str(packed), "--json"]
    assert cli.run(words) == cli.DONE
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["served"]) == (str(thimble_path()), str(packed))
    size = (packed / "model.safetensors").stat().st_size
    assert {row["what"]: row["bytes"] for row in shown["memory"]}["weights in vLLM"] == pytest.approx(size, rel=0.01)
