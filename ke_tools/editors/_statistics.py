r"""The second moment of a layer's keys, $C = \mathbb{E}[k k^\top]$: what the projection sees in ordinary text.

Accumulated in float64 over tokens of plain text, or, where no text is given, of the model's own samples. A cached moment lies in a folder
named by a hash of everything that it depends on, as one file a shard; several processes may compute shards, and a folder's moment is the
sum over its files, so that merging is copying.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.editors._budget import Budget
from ke_tools.editors._locate import padded
from ke_tools.editors._trace import inputs_of, run_until
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["Moments", "StatisticsKey", "collect", "moments", "texts_of"]

TOKENS_A_DIMENSION: Final = 10  # of a key: what is collected unless told otherwise
_RIDGE: Final = 1e-3  # of the mean diagonal
_VERSION: Final = 1
_LONGEST: Final = 256  # tokens of a piece of text
_AT_ONCE: Final = 4096  # tokens of a padded batch
_SAMPLED_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsKey:
    """All that a moment depends on."""

    model: str  # fingerprint of the weights
    layer: int
    module: str
    tokens: int
    source: str  # sha256 of the text, or "samples" with their seed
    dtype: str
    version: int = _VERSION

    @property
    def name(self) -> str:
        """A name for its folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of k kᵀ by layer, float64, and how many keys they are of."""

    sums: Mapping[int, torch.Tensor]
    count: int

    def of(self, layer: int) -> torch.Tensor:
        """C of a layer, [d_key, d_key]; with fewer keys than dimensions, a little of the identity stands for what they do not say."""
        import torch

        found = self.sums[layer] / max(1, self.count)
        if self.is_full_rank(layer):
            return found
        return found + _RIDGE * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype)

    def plus(self, other: Moments) -> Moments:
        """Those of both texts."""
        return Moments({layer: self.sums[layer] + other.sums[layer] for layer in self.sums}, self.count + other.count)

    def notes(self) -> tuple[str, ...]:
        """What one should know before one trusts C."""
        few = {layer: len(sums) for layer, sums in self.sums.items() if not self.is_full_rank(layer)}
        if not few:
            return ()
        width, named = max(few.values()), ", ".join(map(str, few))
        remedy = f"give tokens={TOKENS_A_DIMENSION * width}, or a longer text."
        return (f"{self.count} tokens are too few for C of {width} dimensions (layers {named}): it was regularised; {remedy}",)

    def is_full_rank(self, layer: int) -> bool:
        """Whether there were as many keys as dimensions; with fewer, C says nothing of some directions."""
        return self.count >= len(self.sums[layer])


def moments(
    model: CausalModel,
    layers: Sequence[int],
    *,
    text: Path | None = None,
    tokens: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    tell: Callable[[str, int, int], None] | None = None,
) -> Moments:
    """The moments of some layers, from the cache where they are.

    Args:
        model: whose.
        layers: of which.
        text: a file of plain text; the model's own samples unless given.
        tokens: how many; ten a dimension of the widest key unless given.
        seed: of the samples.
        cache: folder to keep them in; nothing is kept without one, nor for a model without fingerprint.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: the text is empty or unreadable, or the model's keys hold numbers that are none.
    """
    wanted = tokens or TOKENS_A_DIMENSION * max(model.key_width(layer) for layer in layers)
    source = hashlib.sha256(text.read_bytes()).hexdigest() if text else f"samples {seed}"
    keys = {layer: _key(model, layer, wanted, source) for layer in layers}
    folders = {layer: cache / "statistics" / key.name for layer, key in keys.items()} if cache and model.fingerprint else {}
    kept = {layer: _read(folders[layer]) if folders else None for layer in layers}
    missing = [layer for layer, found in kept.items() if found is None]
    if missing:
        rows = texts_of(model, text, wanted) if text else samples(model, wanted, seed=seed, tell=tell)
        made = collect(model, missing, rows, tell=tell)
        for layer in missing:
            kept[layer] = Moments({layer: made.sums[layer]}, made.count)
            if folders:
                _write(folders[layer], keys[layer], "0-of-1", kept[layer] or made)
    found = [one for one in kept.values() if one is not None]
    return Moments({layer: sums for one in found for layer, sums in one.sums.items()}, min(one.count for one in found))


def _key(model: CausalModel, layer: int, tokens: int, source: str) -> StatisticsKey:
    return StatisticsKey(
        model=model.fingerprint, layer=layer, module=model.projection_name(layer), tokens=tokens, source=source, dtype=str(model.dtype)
    )


def collect(
    model: CausalModel, layers: Sequence[int], rows: Sequence[Sequence[int]], *, tell: Callable[[str, int, int], None] | None = None
) -> Moments:
    """Sum k kᵀ over every token of the rows but the first, whose key says more of its place than of any text."""
    import torch

    sums = {
        layer: torch.zeros(model.key_width(layer), model.key_width(layer), dtype=torch.float64, device=model.device) for layer in layers
    }
    count, last = 0, max(layers)
    pad = model.tokenizer.pad_token_id

    def run(part: list[Sequence[int]]) -> None:
        nonlocal count
        ids, mask = padded(part, int(pad if pad is not None else model.tokenizer.eos_token_id or 0), model.device)
        with torch.inference_mode(), inputs_of({layer: model.projection(layer) for layer in layers}) as entered:
            run_until(model.model, model.blocks[last], input_ids=ids, attention_mask=mask, use_cache=False)
            counted = mask.bool()
            counted[:, 0] = False
            found = {layer: entered.pop(layer).reshape(*ids.shape, -1)[counted].double() for layer in layers}
            for layer, keys in found.items():
                sums[layer].addmm_(keys.T, keys)  # in place: once the keys are there, no memory can be missing
        count += int(counted.sum())
        if tell:
            tell("statistics", count, sum(map(len, rows)))

    Budget(_AT_ONCE).each(sorted(rows, key=len), len, run)
    if not count:
        raise InvalidInput("there is no text to take statistics of.", "Give a file with at least some sentences.")
    if wrong := [layer for layer in layers if not sums[layer].isfinite().all()]:
        raise InvalidInput(
            f"in ordinary text, the keys of layer {wrong[0]} hold numbers that are none.",
            "Nothing was kept. Load the model in float32; if it is, its weights are damaged.",
        )
    return Moments({layer: one.cpu() for layer, one in sums.items()}, count)


def texts_of(model: CausalModel, path: Path, tokens: int) -> list[list[int]]:
    """Rows of tokens of a text file, its blank-line-separated pieces cut to length, until there are enough.

    Raises:
        InvalidInput: unreadable or empty.
    """
    try:
        pieces = [piece for piece in path.read_text("utf-8").split("\n\n") if piece.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as text: {error}", "Give a plain text file in UTF-8.") from error
    rows: list[list[int]] = []
    for piece in pieces:
        ids = list(model.tokenizer(piece)["input_ids"])
        rows += [ids[start : start + _LONGEST] for start in range(0, len(ids), _LONGEST)]
        if sum(map(len, rows)) >= tokens:
            break
    if not rows:
        raise InvalidInput(f"{path} holds no text.", "Give a plain text file in UTF-8.")
    return rows


def samples(model: CausalModel, tokens: int, *, seed: int = 0, tell: Callable[[str, int, int], None] | None = None) -> list[list[int]]:
    """Rows of tokens that the model itself writes, at temperature 1, from its beginning-of-text token."""
    import torch

    tokenizer = model.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows: list[list[int]] = []
    length = min(_LONGEST, max(8, tokens // _SAMPLED_AT_ONCE + 1))
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        while (so_far := sum(map(len, rows))) < tokens:
            ids = torch.full((_SAMPLED_AT_ONCE, 1), int(start or 0), dtype=torch.long, device=model.device)
            with torch.inference_mode():
                out = model.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=length - 1,
                    min_new_tokens=length - 1,
                    pad_token_id=int(start or 0),
                )
            rows += out.tolist()
            if tell:
                tell("sampling", so_far, tokens)
    finally:
        torch.random.set_rng_state(state)
    return rows


# Files


def _write(folder: Path, key: StatisticsKey, shard: str, found: Moments) -> None:
    """Write a shard in one step."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    ((layer, sums),) = found.sums.items()
    told = {"key": json.dumps(asdict(key), sort_keys=True), "count": str(found.count), "layer": str(layer)}
    with tempfile.NamedTemporaryFile(dir=folder, delete=False, suffix=".tmp") as file:
        place = Path(file.name)
    save_file({"sum": sums.contiguous()}, place, told)
    place.replace(folder / f"{shard}.safetensors")


def _read(folder: Path) -> Moments | None:
    """The sum over a folder's shards; none where a file is missing, damaged, or holds numbers that are none."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*-of-*.safetensors"))
    if not files or len(files) < int(files[0].stem.rpartition("-")[2]):
        return None
    total: Moments | None = None
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                told: Mapping[str, Any] = file.metadata()
                one = Moments({int(told["layer"]): file.get_tensor("sum")}, int(told["count"]))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None
        total = one if total is None else total.plus(one)
    return total if total is not None and all(sums.isfinite().all() for sums in total.sums.values()) else None
