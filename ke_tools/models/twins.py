"""Two checkpoints of one model: the one that vLLM serves, quantised as a rule, and its twin that edits are planned with.

Which weights are near enough is not asked here, as the gate asks what is served. Two that cannot be twins are refused before anything is
started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models import checkpoint

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.models.embedded import Progress

__all__ = ["refuse_others", "served_checkpoint"]

_SAME: Final = (  # what a quantisation leaves as it is, by the names that configurations have
    *("architectures", "model_type", "vocab_size"),
    *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("n_embd", "n_layer", "n_inner", "n_head"),
)


def served_checkpoint(settings: Settings, *, progress: Progress | None = None) -> Path:
    """Return the folder of the model that a vLLM of our own serves, fetching it if need be.

    Raises:
        ModelUnavailable: as :func:`~ke_tools.models.checkpoint.resolve` says.
        Unsupported: it is no twin of the one that edits are planned with.
    """
    edited = checkpoint.resolve(settings, progress=progress)
    if settings.known == settings.edited:
        return edited
    path = checkpoint.resolve(replace(settings, edit_model=None), progress=progress)
    refuse_others(path, edited)
    return path


def refuse_others(path: Path, edited: Path) -> None:
    """Refuse two checkpoints that cannot be of one model.

    Args:
        path: the one that is served.
        edited: the one that edits are planned with.

    Raises:
        ModelUnavailable: a file of one cannot be read.
        Unsupported: they differ in what a quantisation leaves as it is.
    """
    if found := _difference(path, edited):
        raise Unsupported(
            f"{edited} of --edit-model is no twin of {path}, which is served: {found}.",
            "Give the checkpoint that the served one was quantised from by --edit-model.",
        )


def _difference(path: Path, edited: Path) -> str:
    """The first that is found, in words; empty where there is none."""
    theirs, ours = (_text(checkpoint.json_in(folder / "config.json")) for folder in (path, edited))
    for name in _SAME:
        if None not in (theirs.get(name), ours.get(name)) and theirs[name] != ours[name]:  # null is the default, as what is left out is
            return f"{name} is {ours[name]} there, and {theirs[name]} in what is served"
    files = [folder / "tokenizer.json" for folder in (path, edited)]
    if all(file.is_file() for file in files) and files[0].read_bytes() != files[1].read_bytes():
        theirs, ours = (_tokens(file) for file in files)
        if odd := sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)):
            return f"their tokenizers differ in {len(odd)} tokens, e.g. {odd[0]!r}"
    return ""


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part about the language model, of one that also sees."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _tokens(file: Path) -> dict[str, Any]:
    """Numbers by token, those that were added included; how the file writes them differs from version to version."""
    tokenizer = checkpoint.json_in(file)
    try:
        known = (tokenizer.get("model") or {}).get("vocab") or {}
        if not isinstance(known, dict):  # pairs of token and weight, by number
            known = {str(pair[0]): number for number, pair in enumerate(known)}
        return {**known, **{str(token["content"]): token["id"] for token in tokenizer.get("added_tokens") or ()}}
    except (AttributeError, LookupError, TypeError) as error:
        raise ModelUnavailable(f"{file} lists no tokens: {error}", "Fetch the model again.") from error
