"""A checkpoint folder: which one is meant, what it is, and the hash over its weights.

Only safetensors are read, as pickles run code when they are opened. Nothing here loads the weights or imports torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import ModelUnavailable, Unsupported

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.embedded import Progress

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SMALL_FILES: Final = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md", "LICENSE*")
_DTYPES: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8", "F8_E5M2": "float8"}
_LONGEST_HEADER: Final = 100_000_000  # bytes; the format's own limit
_CHUNK: Final = 1 << 22
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOICES: Final = "Give `embedded`, a folder with config.json and *.safetensors, or a hub id such as HuggingFaceTB/SmolLM2-360M-Instruct."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What is known of a checkpoint without loading it."""

    name: str
    architecture: str
    parameters: int
    dtype: str  # of most of the weights, as stored
    layers: int
    width: int
    vocabulary: int
    context_length: int  # tokens; 0: the configuration does not say
    licence: str
    fingerprint: str
    path: Path


def resolve(settings: Settings, *, progress: Progress | None = None) -> Path:
    """Return the folder of the model that edits are planned with, fetching it if need be; mostly it is also the one that is served.

    Raises:
        ModelUnavailable: it is not there, cannot be fetched, is not in safetensors, or wants to run code of its own.
        Unsupported: it was named by ``edit_model``, and is quantised itself.
    """
    path = _found(settings.edited, settings, progress)
    if settings.edit_model:
        refuse_quantised(path)
    return path


def at_hand(name: str, settings: Settings) -> Path | None:
    """Return the folder of a model that is here already; ``None`` where it would have to be fetched.

    Raises:
        ModelUnavailable: it can only be here and is not, or as :func:`check` says.
    """
    if name == "embedded":
        from ke_tools.models import embedded

        return embedded.locate(settings.cache)
    path = Path(name).expanduser()
    if not path.exists():
        _refuse_folder(name)
        from huggingface_hub import snapshot_download

        try:
            path = Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):  # not there, or no name of the hub's
            return None
    check(path, trust_remote_code=settings.trust_remote_code)
    return path


def _found(name: str, settings: Settings, progress: Progress | None) -> Path:
    if name == "embedded":
        from ke_tools.models import embedded

        return embedded.fetch(settings.cache, progress=progress)
    path = Path(name).expanduser()
    if not path.exists():
        _refuse_folder(name)
        path = _from_hub(name, with_code=settings.trust_remote_code)
    check(path, trust_remote_code=settings.trust_remote_code)
    return path.absolute()


def _refuse_folder(name: str) -> None:
    """Refuse the name of a folder, where there is none; others may be the hub's."""
    if Path(name).expanduser().is_absolute() or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise ModelUnavailable(f"there is no folder {name}.", _CHOICES)


def check(path: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse what cannot or must not be loaded.

    Raises:
        ModelUnavailable: not a checkpoint, not in safetensors, or with code of its own that is not trusted.
    """
    config = _config(path)
    weight_files(path)
    if config.get("auto_map") and not trust_remote_code and not _is_known(str(config.get("model_type", ""))):
        raise ModelUnavailable(
            f"{path} needs code of its own to run ({', '.join(sorted(config['auto_map']))}), which nobody has checked.",
            "If you trust its authors, say --trust-remote-code.",
        )


def describe(path: Path, *, cache: Path | None = None) -> ModelCard:
    """Read what a checkpoint is; hashes its weights unless that was done before.

    Raises:
        ModelUnavailable: not a checkpoint, or a damaged one.
    """
    config = _config(path)
    text = config.get("text_config") or config
    weights = stored(path)
    main = max(weights, key=lambda dtype: weights[dtype][1], default="")
    return ModelCard(
        name=path.name,
        architecture=", ".join(config.get("architectures") or [str(config.get("model_type", "unknown"))]),
        parameters=sum(count for count, _ in weights.values()),
        dtype=_DTYPES.get(main, main.lower()),
        layers=_first(text, "num_hidden_layers", "n_layer", "num_layers"),
        width=_first(text, "hidden_size", "n_embd", "d_model"),
        vocabulary=_first(text, "vocab_size"),
        context_length=_first(text, "max_position_embeddings", "n_positions", "max_sequence_length"),
        licence=_licence(path),
        fingerprint=fingerprint(path, cache=cache),
        path=path,
    )


def refuse_experts(config: Mapping[str, Any]) -> None:
    """Refuse a mixture of experts by its configuration: which expert a fact would have to be written into is nothing that editors know.

    Raises:
        Unsupported: it is one.
    """
    if experts := next((name for name in _EXPERTS if _first(config, name) > 1), ""):
        raise Unsupported(
            f"{config.get('model_type', 'the model')} is a mixture of experts ({experts} = {config[experts]}), which no editor of ours "
            "writes into.",
            "Serve it by --upstream; corrections act from the memory.",
        )


def refuse_quantised(path: Path) -> None:
    """Refuse to edit weights that are quantised, to which nothing small can be added.

    Raises:
        Unsupported: they are.
    """
    if quantised := _config(path).get("quantization_config"):
        method = quantised.get("quant_method", "in a way that is not told") if isinstance(quantised, dict) else quantised
        raise Unsupported(
            f"{path} holds quantised weights ({method}), with which no edit can be planned; --edit-model takes what they were made from.",
            "Serve this one by --engine vllm, and give the one that it was made from by --edit-model.",
        )


def stored(path: Path) -> dict[str, tuple[int, int]]:
    """Numbers and bytes of the weights by their type as stored (``BF16``), from the headers alone.

    Raises:
        ModelUnavailable: no safetensors, or damaged ones.
    """
    found: dict[str, tuple[int, int]] = {}
    for tensor in (tensor for file in weight_files(path) for tensor in _tensors(file)):
        count, size = found.get(tensor.dtype, (0, 0))
        found[tensor.dtype] = count + math.prod(tensor.shape), size + tensor.end - tensor.start
    return found


def fingerprint(path: Path, *, cache: Path | None = None) -> str:
    """Hash the weights: names, types, shapes and bytes of all tensors, by name, whatever file they lie in.

    The result is kept in the cache folder (by default the settings' one) under the files' sizes, times and inodes.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.

    Raises:
        ModelUnavailable: no safetensors, or damaged ones.
    """
    files = weight_files(path)
    note = _note(files, cache)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        known = note.read_text("ascii").strip()
        if re.fullmatch(r"sha256:[0-9a-f]{64}", known):
            return known
    digest = hashlib.sha256()
    try:
        for tensor in sorted((tensor for file in files for tensor in _tensors(file)), key=lambda tensor: tensor.name):
            tensor.feed(digest)
    except OSError as error:
        raise ModelUnavailable(f"the weights in {path} cannot be read: {error}", "Check the disk, or fetch the model again.") from error
    found = f"sha256:{digest.hexdigest()}"
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        _write(note, found)
    return found


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files that make up the model.

    Raises:
        ModelUnavailable: there are none, or one that the index names is missing.
    """
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json_in(index).get("weight_map", {}).values()))
        missing = [name for name in names if Path(name).name != name or not (path / name).is_file()]
        if missing or not names:
            raise ModelUnavailable(f"{index} names files that are not there: {missing}.", "Fetch the model again.")
        return [path / name for name in names]
    single = path / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ModelUnavailable(
            f"{path} has its weights in {pickles[0]} only. Such files can run code when they are opened; only safetensors are read.",
            "Take a version in safetensors, or convert it: `model.save_pretrained(folder)` on a machine of your trust.",
        )
    raise ModelUnavailable(f"{path} has no model.safetensors.", _CHOICES)


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        what = "a file, not a checkpoint folder" if path.is_file() else "without config.json, so not a checkpoint folder"
        hint = " A GGUF of the embedded model is taken by `ke-tools model fetch --from`." if path.suffix == ".gguf" else ""
        raise ModelUnavailable(f"{path} is {what}.", _CHOICES + hint)
    return json_in(file)


def json_in(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ModelUnavailable: there is none in the file.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{file} cannot be read: {error}", "Fetch the model again.") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{file} holds no JSON object.", "Fetch the model again.")
    return found


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor's place in a safetensors file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int  # bytes from the file's beginning
    end: int

    def feed(self, digest: Any) -> None:
        """Add name, type, shape and bytes to a hash."""
        digest.update(json.dumps([self.name, self.dtype, list(self.shape)]).encode())
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            left = self.end - self.start
            while left > 0:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise _damaged(self.file, f"it ends within {self.name}")
                digest.update(chunk)
                left -= len(chunk)


def _tensors(file: Path) -> Iterator[_Tensor]:
    """Read a safetensors header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                raise _damaged(file, "its header's length makes no sense")
            header = json.loads(stream.read(length))
        size = file.stat().st_size
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            if not 8 + length <= start <= end <= size:
                raise _damaged(file, f"{name} lies outside of it")
            yield _Tensor(name, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]), file, start, end)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(f"{file} is no whole safetensors file: {why}.", "Delete the folder and fetch the model again.")


def _note(files: Sequence[Path], cache: Path | None) -> Path:
    if cache is None:
        from ke_tools.config import Settings

        cache = Settings.load().cache
    marks = [(file.name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for file in files for stat in (file.stat(),)]
    return cache / "fingerprints" / hashlib.sha256(repr(marks).encode()).hexdigest()[:32]


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(descriptor, "w", encoding="ascii") as out:
        out.write(text)
    Path(temporary).replace(file)


def _first(config: Mapping[str, Any], *names: str) -> int:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)


def _licence(path: Path) -> str:
    """Read the licence out of the model card's front matter."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        card = (path / "README.md").read_text("utf-8")
        front = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
        if front and (found := re.search(r"^license:\s*[\"']?([^\s\"']+)", front[1], re.MULTILINE)):
            return found[1]
    return "unknown"


def _is_known(model_type: str) -> bool:
    """Whether transformers has this architecture itself, so that the checkpoint's own code is not needed."""
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _from_hub(name: str, *, with_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    wanted = ["*.safetensors", *_SMALL_FILES, *(["*.py"] if with_code else [])]
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ModelUnavailable(
            f"{name} is no folder here, and the model hub did not give it: {type(error).__name__}: {reason}",
            "Check the name and the network (a gated model needs HF_TOKEN); without a network give --model PATH or --model embedded.",
        ) from error
    finally:
        if not were_disabled:
            enable_progress_bars()
