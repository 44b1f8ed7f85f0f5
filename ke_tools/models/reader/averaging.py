r"""Average readers: what several trainings changed alike stays, what each of them took on by chance becomes small.

$$\Delta W = \frac1n \sum_{i=1}^{n} \frac{\alpha}{r} B_i A_i$$

(the uniform soup of Wortsman et al. 2022, "Model soups", §2, of what a LoRA adds). Differs in: 1. the products are averaged, as the mean of
factors is not the factors of a mean; 2. the mean has the rank n r and is brought back to r by a singular value decomposition, the best
that this rank can do (Eckart and Young 1936); what it leaves out is told.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.models.lora import Factors, joined, lowered
from ke_tools.models.reader import card

if TYPE_CHECKING:
    import torch

_SHAPE: Final = ("r", "lora_alpha", "use_rslora", "target_modules", "rank_pattern", "alpha_pattern")  # of adapter_config.json
_TOLD: Final = ("base_fingerprint", "base_model", "training_subjects")  # of the card


@dataclass(frozen=True, slots=True)
class _Reader:
    """A reader as it lies in a folder."""

    folder: Path
    card: dict[str, Any]
    config: dict[str, Any]
    weights: dict[str, torch.Tensor]


def average(readers: Sequence[Path], out: Path) -> float:
    """Install the mean of some readers at ``out``.

    Args:
        readers: folders of at least two, of one base model and one shape.
        out: where it goes; what was there is replaced.

    Returns:
        The largest share of a matrix' change, in norm, that the rank of one reader cannot hold.

    Raises:
        InvalidInput: fewer than two, one that cannot be read, or of another base model or shape than the first.
    """
    if len(readers) < 2:  # noqa: PLR2004
        raise InvalidInput(f"an average is of two readers at least; found {len(readers)}.", "Name the folders of two or more.")
    parts = [_read(folder) for folder in readers]
    for part in parts[1:]:
        _check_alike(parts[0], part)
    weights: dict[str, torch.Tensor] = {}
    lost = 0.0
    for a_name in sorted(name for name in parts[0].weights if ".lora_A." in name):
        b_name = a_name.replace(".lora_A.", ".lora_B.")
        (a, b), loss = _mean([(part.weights[a_name], part.weights[b_name]) for part in parts])
        weights |= {a_name: a, b_name: b}
        lost = max(lost, loss)
    _install(weights, parts, out)
    return lost


def _mean(pairs: Sequence[Factors]) -> tuple[Factors, float]:
    """Factors of the mean product, of the first pair's rank, and what they leave out."""
    return lowered(joined([(a.float(), b.float() / len(pairs)) for a, b in pairs]), pairs[0][0].shape[0])


def _read(folder: Path) -> _Reader:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        written = json.loads((folder / card.CARD).read_text("utf-8"))
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        if not isinstance(config, dict) or not isinstance(written, dict) or any(name not in written for name in _TOLD):
            raise ValueError(f"its card tells not all of {', '.join(_TOLD)}")  # noqa: TRY301
        return _Reader(folder, written, config, load_file(folder / card.WEIGHTS))
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidInput(
            f"{folder} holds no reader that can be read: {error}", "Name a folder that `ke-tools reader train` made."
        ) from error


def _check_alike(first: _Reader, other: _Reader) -> None:
    if other.card["base_fingerprint"] != first.card["base_fingerprint"]:
        raise InvalidInput(
            f"{other.folder} is a reader of another base model ({other.card['base_fingerprint']}) than {first.folder} "
            f"({first.card['base_fingerprint']}).",
            "Average readers of one model.",
        )
    shapes = [{name: tuple(w.shape) for name, w in one.weights.items()} for one in (first, other)]
    if shapes[0] != shapes[1] or any(first.config.get(name) != other.config.get(name) for name in _SHAPE):
        raise InvalidInput(
            f"{other.folder} has another rank, scaling or other modules than {first.folder}.", "Average readers of one recipe's shape."
        )


def _install(weights: Mapping[str, torch.Tensor], parts: Sequence[_Reader], out: Path) -> None:
    import torch
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        made.chmod(0o755)
        shutil.copy(parts[0].folder / "adapter_config.json", made)
        stored = {name: w.to(torch.bfloat16).contiguous() for name, w in weights.items()}
        save_file(stored, made / card.WEIGHTS, {"format": "pt"})
        (made / card.CARD).write_text(json.dumps(_card(parts), indent=1) + "\n", "utf-8")
        card.put(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _card(parts: Sequence[_Reader]) -> dict[str, Any]:
    """Base model, how each part was made, and every subject that one of them was trained on."""
    subjects = sorted({subject for part in parts for subject in part.card["training_subjects"]})
    first = parts[0].card
    averaged = [
        {"sha256": card.DataFile.of(part.folder / card.WEIGHTS).sha256}
        | {name: value for name, value in part.card.items() if name not in {"base_fingerprint", "base_model", "training_subjects"}}
        for part in parts
    ]
    return {
        "base_fingerprint": first["base_fingerprint"],
        "base_model": first["base_model"],
        "averaged": averaged,
        "training_subjects": subjects,
    }
