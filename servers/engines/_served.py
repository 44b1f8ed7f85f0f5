"""What a vLLM server is given to serve: a release, the reader, or both as one LoRA adapter, in a folder named by what it holds.

vLLM serves one adapter a request, so what acts together is one: of a module that several change, the factors stand side by side
(B A = B₁A₁ + B₂A₂), and all are padded with zeros to one rank, whose scaling is 1. A codebook lies beside as ``grace.safetensors``, which
the plugin (:mod:`ke_tools.servers.vllm_plugin`) reads; vLLM wants an adapter all the same, so without one there is one that adds zero.
``edits.json`` lists the edits that are in it, for a purge; vLLM looks at neither.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import releases
from ke_tools.editors import codebook as codebooks
from ke_tools.editors import peft_folder
from ke_tools.errors import ModelUnavailable, Unsupported, cannot_write
from ke_tools.models.lora import Factors, joined, lowered

if TYPE_CHECKING:
    import torch

__all__ = ["NAME", "Served", "by_module", "erase", "folder_of", "is_whole", "self_test", "serve"]

NAME: Final = re.compile(r"ke-[0-9a-f]{24}")
_EVERYWHERE: Final = 1e6  # farther from 0 is no state of a model
_EDITS: Final = "edits.json"
MOST_LOSS: Final = 0.01  # of the change's norm, that a lower rank may cost
_PARTS: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class Served:
    """A folder that a server can load."""

    name: str
    folder: Path
    rank: int
    loss: float  # share of the norm of what is added that a lower rank cost
    has_codebook: bool


def serve(root: Path, parts: Sequence[Path], *, config: Mapping[str, Any], most_rank: int = 0, owner: str = "") -> Served:
    """Write what some adapters and releases add together, or find it written already.

    Args:
        root: where such folders lie; the server must see it under the same path.
        parts: folders; at most one has a codebook.
        config: of the model (``hidden_size``, ``intermediate_size``).
        most_rank: the server's; a higher one is lowered by a singular value decomposition.
        owner: who loads and unloads it, as part of the name: what one process takes out, another may be serving.

    Raises:
        Unsupported: lowering the rank would cost more than :data:`MOST_LOSS`.
        ModelUnavailable: a part is damaged.
        ResourceExhausted, ReadOnly: the folder cannot be written.
    """
    factors: dict[str, list[Factors]] = defaultdict(list)
    for part in parts:
        for module, pair in _read(part).items():
            factors[module].append(pair)
    whole = {module: joined(pairs) for module, pairs in sorted(factors.items())}
    less = {module: lowered(pair, most_rank) for module, pair in whole.items()} if most_rank else {m: (p, 0.0) for m, p in whole.items()}
    loss = max((lost for _, lost in less.values()), default=0.0)
    if loss > MOST_LOSS:
        raise Unsupported(
            f"the server takes rank {most_rank} at most; lowering the edits' to that would cost {loss:.1%} of what they add.",
            f"Start it with --max-lora-rank {_next_rank(max(pair[0].shape[0] for pair in whole.values()))}.",
        )
    book = next((part / codebooks.WEIGHTS for part in parts if (part / codebooks.WEIGHTS).is_file()), None)
    edits = sorted({edit for part in parts for edit in _edits(part)})
    return _written(root, {module: pair for module, (pair, _) in less.items()} or _zero(config), book, loss, owner, edits)


def folder_of(root: Path, owner: str) -> Path:
    """Where what one owner serves lies, and nothing of anybody else's."""
    return root / hashlib.sha256(owner.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def erase(root: Path, edit_id: str) -> None:
    """Remove what carries an edit, whoever serves it: no release that does is live any more, so no server has to read it again.

    Raises:
        ReadOnly, ResourceExhausted: a folder could not be removed.
    """
    for folder, _, names in os.walk(root):  # also what somebody who was killed wrote in part, or put aside
        if _EDITS not in names:
            continue
        try:
            if edit_id.encode() in Path(folder, _EDITS).read_bytes():
                shutil.rmtree(folder)
        except FileNotFoundError:  # who served it removes it, too
            continue
        except OSError as error:
            raise cannot_write(Path(folder), error) from error


def by_module(root: Path, part: Path, *, most_rank: int, owner: str = "") -> dict[str, Served]:
    """What an adapter adds to each kind of module (``q_proj``, …) alone, as :func:`serve` would write it; to ask a server about.

    Raises:
        ModelUnavailable: it is damaged.
        ResourceExhausted, ReadOnly: as :func:`serve`.
    """
    kinds: dict[str, dict[str, Factors]] = defaultdict(dict)
    for module, pair in _read(part).items():
        kinds[module.rpartition(".")[2]][module] = lowered(pair, most_rank)[0]
    return {kind: _written(root, factors, None, 0.0, owner) for kind, factors in sorted(kinds.items())}


def is_whole(served: Served, owner: str = "") -> bool:
    """Whether a folder still holds what its name follows from."""
    try:
        return _name({file.name: file.read_bytes() for file in served.folder.iterdir()}, owner) == served.name
    except OSError:
        return False


def self_test(root: Path, layer: int, *, config: Mapping[str, Any], owner: str = "") -> Served:
    """A codebook behind a block whose one key is near to every state, so that it changes all that is said; to ask a server about.

    Raises:
        Unsupported: the model's configuration does not tell its widths.
        ResourceExhausted, ReadOnly: as :func:`serve`.
    """
    import torch

    zero = _zero(config)
    width = int(config["hidden_size"])
    book = codebooks.Codebook(
        layer=layer,
        keys=torch.zeros(1, width),
        epsilons=torch.full((1,), _EVERYWHERE),
        owners=torch.zeros(1, dtype=torch.long),
        values=torch.zeros(1, width),
        edits=("self-test",),
    )
    with tempfile.TemporaryDirectory() as folder:
        book.save(Path(folder))
        return _written(root, zero, Path(folder) / codebooks.WEIGHTS, 0.0, owner)


def _read(folder: Path) -> dict[str, Factors]:
    """An adapter's factors with its scaling in B; none of a release that is a codebook alone."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / peft_folder.CONFIG).exists():
        return {}
    try:
        config = json.loads((folder / peft_folder.CONFIG).read_text("utf-8"))
        found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, tensor in load_file(folder / peft_folder.WEIGHTS).items():
            match = _PARTS.fullmatch(name)
            if match is None:
                raise ValueError(f"{name} is no part of a LoRA")  # noqa: TRY301
            found[match[1]][match[2]] = tensor.float()
        return {module: (both["A"], both["B"] * peft_folder.scale(config, module, both["A"].shape[0])) for module, both in found.items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the adapter in {folder} cannot be read: {error}", "Make it again.") from error


def _zero(config: Mapping[str, Any]) -> dict[str, Factors]:
    import torch

    try:
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise Unsupported(
            "the model's configuration does not tell its widths, so no codebook can be served.", "Promote by memit."
        ) from error
    return {"model.layers.0.mlp.down_proj": (torch.zeros(1, inner), torch.zeros(width, 1))}


def _edits(part: Path) -> list[str]:
    """The edits of a release; none of another adapter."""
    manifest = part / releases.MANIFEST
    if not manifest.exists():
        return []
    try:
        return [str(edit) for edit in json.loads(manifest.read_bytes())["edits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"the release in {part} cannot be read: {error}", "`ke-tools rebuild` makes it again.") from error


def _written(root: Path, factors: Mapping[str, Factors], book: Path | None, loss: float, owner: str, edits: Sequence[str] = ()) -> Served:
    from safetensors.torch import save

    rank = max(a.shape[0] for a, _ in factors.values())
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = _padded(a, rank, 0)
        tensors[f"base_model.model.{module}.lora_B.weight"] = _padded(b, rank, 1)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({module.rpartition(".")[2] for module in factors}),
        "inference_mode": True,
    }
    files = {_EDITS: json.dumps(edits).encode()} if edits else {}  # written first, so that a purge finds the others
    files |= {peft_folder.CONFIG: json.dumps(config, sort_keys=True).encode(), peft_folder.WEIGHTS: save(tensors)}
    if book is not None:
        files[codebooks.WEIGHTS] = book.read_bytes()
    name = _name(files, owner)
    place = root / name
    if not _holds(place, files):
        try:
            _write(root, place, files)
        except OSError as error:
            raise cannot_write(root, error) from error
    return Served(name, place, rank, loss, book is not None)


def _padded(tensor: torch.Tensor, rank: int, dim: int) -> torch.Tensor:
    import torch

    missing = rank - tensor.shape[dim]
    if missing:
        shape = list(tensor.shape)
        shape[dim] = missing
        tensor = torch.cat([tensor, torch.zeros(shape)], dim=dim)
    return tensor.contiguous()


def _name(files: Mapping[str, bytes], owner: str) -> str:
    digest = hashlib.sha256(owner.encode("utf-8", "surrogateescape"))
    for name, content in sorted(files.items()):
        digest.update(name.encode("utf-8", "surrogateescape") + hashlib.sha256(content).digest())
    return f"ke-{digest.hexdigest()[:24]}"


def _holds(place: Path, files: Mapping[str, bytes]) -> bool:
    try:
        return all((place / name).is_file() and (place / name).read_bytes() == content for name, content in files.items())
    except OSError:  # a disk that fails, or another user's file
        return False


def _write(root: Path, place: Path, files: Mapping[str, bytes]) -> None:
    root.mkdir(mode=0o755, parents=True, exist_ok=True)  # the server may be another user
    partial, aside = (Path(tempfile.mkdtemp(prefix=f".{what}-", dir=root)) for what in ("partial", "damaged"))
    try:
        for name, content in files.items():
            (partial / name).write_bytes(content)
        partial.chmod(0o755)
        if place.exists():
            place.rename(aside / place.name)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def _next_rank(rank: int) -> int:
    """The smallest that vLLM knows and that holds it."""
    return next((known for known in (8, 16, 32, 64, 128, 256, 320, 512) if known >= rank), 512)
