r"""The second moment of a layer's keys, $C = \mathbb{E}[k k^\top]$: what the projection sees in ordinary text.

Accumulated in float64 over tokens of plain text, or, where no text is given, of the model's own samples. A cached moment lies in a folder
named by a hash of everything that it depends on, as one file a shard. Several processes may each compute a shard, every N-th row of the
text or samples of a seed of its own; a folder's moment is the sum over the N files of a whole set, so that merging is copying, in any
order and as often as one likes.

The text is read as prompts are: cut to rows of the length of one, each behind what the tokenizer puts in front of a prompt, and every
token counts, the first of a row too. Its key has little to do with what it says (of the embedded model in layer 9 it is six times as long
as another's, and two of them have a cosine of .9997), but a change acts there as everywhere, and all later tokens look at it. The
references count long articles, in which the first token is one of thousands; left out, it alone did a third of the damage
(benchmarks/LOG.md).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.editors._budget import Budget
from ke_tools.editors._locate import padded
from ke_tools.editors._trace import inputs_of, run_until
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["Moments", "Shard", "StatisticsKey", "as_prompts", "collect", "collect_shard", "moments", "texts_of"]

TOKENS_A_DIMENSION: Final = 10  # of a key: what is collected unless told otherwise
_RIDGE: Final = 1e-2  # of the mean diagonal: directions that the text hardly had are not free to write into; the references have none
_VERSION: Final = 2  # of what is counted
_LONGEST: Final = 256  # tokens of a piece of text
_ROW: Final = 16  # tokens of a row that is counted: how often there is a first one
_AT_ONCE: Final = 4096  # tokens of a padded batch
_SAMPLED_AT_ONCE: Final = 32
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsKey:
    """All that a moment depends on."""

    model: str  # fingerprint of the weights
    layer: int
    module: str
    tokens: int
    source: str  # sha256 of the text, or "samples" with their seed
    dtype: str
    row: int = _ROW
    version: int = _VERSION

    @property
    def name(self) -> str:
        """A name for its folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of what is to be counted; together, those with numbers below ``of`` are all of it."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: there is no such part.
        """
        if not 0 <= self.number < self.of:
            raise InvalidInput(f"there is no shard {self.number + 1} of {self.of}.", "Give 1/4, 2/4, 3/4, 4/4 for four.")

    @property
    def name(self) -> str:
        """A name for its file."""
        return f"{self.number}-of-{self.of}"

    def rows(self, model: CausalModel, text: Path | None, tokens: int, seed: int, tell: Tell | None) -> list[list[int]]:
        """Its rows of tokens, as prompts; ``tokens`` and ``seed`` are those of the whole."""
        if text:
            return as_prompts(model, texts_of(model, text, tokens)[self.number :: self.of])
        return as_prompts(model, samples(model, -(-tokens // self.of), seed=seed * self.of + self.number, tell=tell))


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of k kᵀ by layer, float64, and how many keys they are of."""

    sums: Mapping[int, torch.Tensor]
    count: int

    def of(self, layer: int) -> torch.Tensor:
        """C of a layer, [d_key, d_key], with a little of the identity for what the keys do not say."""
        found = self.mean(layer)
        found.diagonal().add_(_RIDGE * found.diagonal().mean())
        return found

    def mean(self, layer: int) -> torch.Tensor:
        """The mean of k kᵀ as it is, [d_key, d_key]."""
        return self.sums[layer] / max(1, self.count)

    def only(self, layer: int) -> Moments:
        """Those of one layer."""
        return Moments({layer: self.sums[layer]}, self.count)

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
        return (f"{self.count} tokens are too few for C of {width} dimensions (layers {named}): the ridge stands for the rest; {remedy}",)

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
    tell: Tell | None = None,
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
    wanted = tokens or _usual(model, layers)
    keys = _keys(model, layers, text, wanted, seed)
    folders = {layer: cache / "statistics" / key.name for layer, key in keys.items()} if cache and model.fingerprint else {}
    kept = {layer: _read(folders[layer]) if folders else None for layer in layers}
    missing = [layer for layer, found in kept.items() if found is None]
    if missing:
        made = collect(model, missing, Shard().rows(model, text, wanted, seed, tell), tell=tell)
        for layer in missing:
            kept[layer] = made.only(layer)
            if folders and not model.edits:
                with suppress(OSError):  # a full or read-only disk costs the cache, not the statistics
                    _write(folders[layer], keys[layer], Shard().name, made.only(layer))
    found = [one for one in kept.values() if one is not None]
    least = min(one.count for one in found)
    return Moments({layer: sums * (least / one.count) for one in found for layer, sums in one.sums.items()}, least)


def collect_shard(
    model: CausalModel,
    layers: Sequence[int],
    shard: Shard,
    cache: Path,
    *,
    text: Path | None = None,
    tokens: int | None = None,
    seed: int = 0,
    tell: Tell | None = None,
) -> tuple[int, ...]:
    """Compute one shard of the moments of some layers, unless it lies in the cache, where :func:`moments` finds them once all do.

    Args:
        model: whose.
        layers: of which.
        shard: of what the other arguments say of the whole.
        cache: folder to keep them in.
        text: a file of plain text; the model's own samples unless given.
        tokens: of the whole; ten a dimension of the widest key unless given.
        seed: of the samples.
        tell: hears (stage, done, total).

    Returns:
        Numbers of the shards that are still missing.

    Raises:
        InvalidInput: the model has no such layer or no fingerprint, or there is no text for this shard.
    """
    if not layers or not all(0 <= layer < len(model.blocks) for layer in layers):
        raise InvalidInput(f"the model has {len(model.blocks)} layers; asked for is {list(layers)}.", "Name layers that it has.")
    if not model.fingerprint:
        raise InvalidInput("what is kept of a model goes by its fingerprint, and this one has none.", "Give CausalModel(fingerprint=).")
    wanted = tokens or _usual(model, layers)
    keys = _keys(model, layers, text, wanted, seed)
    folders = {layer: cache / "statistics" / key.name for layer, key in keys.items()}
    todo = [layer for layer, folder in folders.items() if _moments_in(folder / f"{shard.name}.safetensors") is None]
    if todo:
        rows = shard.rows(model, text, wanted, seed, tell)
        if not rows:
            raise InvalidInput(f"no text is left for shard {shard.number + 1} of {shard.of}.", "Take fewer shards, or a longer text.")
        made = collect(model, todo, rows, tell=tell)
        for layer in todo:
            _write(folders[layer], keys[layer], shard.name, made.only(layer))
    if all(_read(folder) is not None for folder in folders.values()):
        return ()
    there: list[set[int]] = [set(_sets(folder).get(shard.of, {})) for folder in folders.values()]
    return tuple(n for n in range(shard.of) if not all(n in one for one in there))


def _usual(model: CausalModel, layers: Sequence[int]) -> int:
    return TOKENS_A_DIMENSION * max(model.key_width(layer) for layer in layers)


def _keys(model: CausalModel, layers: Sequence[int], text: Path | None, tokens: int, seed: int) -> dict[int, StatisticsKey]:
    try:
        source = hashlib.sha256(text.read_bytes()).hexdigest() if text else f"samples {seed}"
    except OSError as error:
        raise InvalidInput(f"{text} cannot be read: {error}", "Give a plain text file in UTF-8.") from error
    dtype = str(model.dtype)
    return {
        layer: StatisticsKey(
            model=model.fingerprint, layer=layer, module=model.projection_name(layer), tokens=tokens, source=source, dtype=dtype
        )
        for layer in layers
    }


def collect(model: CausalModel, layers: Sequence[int], rows: Sequence[Sequence[int]], *, tell: Tell | None = None) -> Moments:
    """Sum k kᵀ over every token of the rows."""
    import torch

    sums = {
        layer: torch.zeros(model.key_width(layer), model.key_width(layer), dtype=torch.float64, device=model.device) for layer in layers
    }
    count, last = 0, max(layers)

    def run(part: list[Sequence[int]]) -> None:
        nonlocal count
        ids, mask = padded(part, model.pad, model.device)
        with torch.inference_mode(), inputs_of({layer: model.projection(layer) for layer in layers}) as entered:
            run_until(model.model, model.blocks[last], input_ids=ids, attention_mask=mask, use_cache=False)
            counted = mask.bool()
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


def as_prompts(model: CausalModel, rows: Sequence[Sequence[int]], length: int = _ROW) -> list[list[int]]:
    """Cut rows to a length, each piece behind the special tokens that the tokenizer puts in front of a prompt, where it puts any."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    front = _front(tokenizer)
    made: list[list[int]] = []
    for row in rows:
        own = list(row[next((n for n, token in enumerate(row) if token not in special), len(row)) :])
        made += [[*front, *own[start : start + length]] for start in range(0, len(own), length)]
    return made


def _front(tokenizer: Any) -> list[int]:
    """The special tokens in front of every text."""
    whole, bare = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    return whole[: whole.index(bare[0])]


def samples(model: CausalModel, tokens: int, *, seed: int = 0, tell: Tell | None = None) -> list[list[int]]:
    """Rows of tokens that the model itself writes, at temperature 1, from its beginning-of-text token."""
    import torch
    from transformers import StoppingCriteriaList

    tokenizer = model.tokenizer
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows: list[list[int]] = []
    length = min(_LONGEST, max(8, tokens // _SAMPLED_AT_ONCE + 1))
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
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
                    repetition_penalty=1.0,
                    max_new_tokens=length - 1,
                    min_new_tokens=length - 1,
                    pad_token_id=int(start or 0),
                    stopping_criteria=StoppingCriteriaList([partial(_tell_of, tell, so_far, tokens)] if tell else []),
                )
            rows += out.tolist()
    return rows


def _tell_of(tell: Tell, before: int, wanted: int, ids: torch.Tensor, _scores: Any) -> torch.Tensor:
    """Tell of what is sampled so far, as transformers asks after each token whether it is to stop."""
    import torch

    tell("sampling", min(wanted, before + ids.numel()), wanted)
    return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


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
    """The sum over a whole set of shards, the smallest set there is; none where each lacks a file or has a damaged one."""
    for of, files in sorted(_sets(folder).items()):
        found = [_moments_in(files[number]) for number in range(of) if number in files]
        whole = [one for one in found if one is not None]
        if len(whole) == of:
            return reduce(Moments.plus, whole)
    return None


def _sets(folder: Path) -> dict[int, dict[int, Path]]:
    """Of how many shards → number of the shard → its file."""
    found: dict[int, dict[int, Path]] = {}
    for path in folder.glob("*-of-*.safetensors"):
        number, _, of = path.stem.partition("-of-")
        if number.isdecimal() and of.isdecimal():
            found.setdefault(int(of), {})[int(number)] = path
    return found


def _moments_in(path: Path) -> Moments | None:
    """A shard; none where it is missing, damaged, or holds numbers that are none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told: Mapping[str, Any] = file.metadata()
            one = Moments({int(told["layer"]): file.get_tensor("sum")}, int(told["count"]))
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return one if all(sums.isfinite().all() for sums in one.sums.values()) else None
