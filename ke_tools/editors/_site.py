"""Where a model is best edited, found by tracing facts that it knows: at which token, in which layers."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from ke_tools import atlas
from ke_tools.editors._locate import Placed, Site, padded, place
from ke_tools.editors.tracing import Heat, Kind, Where, trace
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    from ke_tools.facts import Fact

__all__ = ["ROLES", "Auto", "Averaged", "Choice", "Layers", "SiteKey", "averaged", "by_role", "choose", "known", "resolve", "window"]

Auto = Literal["auto"]
Layers = tuple[int, ...] | Auto
Role = Literal["first of subject", "middle of subject", "last of subject", "further", "last of prompt"]
ROLES: Final[tuple[Role, ...]] = ("first of subject", "middle of subject", "last of subject", "further", "last of prompt")
SAMPLES: Final = 6  # of the noise
PROMPTS: Final = 12
_LEAST: Final = 3  # prompts that a mean may be of
_ASKED: Final = 2048  # atlas facts at most, until enough are known
_AT_ONCE: Final = 32
_VERSION: Final = 1
Progress = Callable[[str, int, int], None]


class Choice(NamedTuple):
    """Where to edit."""

    site: Site
    layers: tuple[int, ...]  # consecutive; the last is L


@dataclass(frozen=True, slots=True)
class Averaged:
    """Indirect effects by role of the token and by layer, the mean over prompts."""

    prompts: int
    clean: float
    corrupted: float
    effect: Mapping[Role, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKey:
    """All that a mean over traces depends on."""

    model: str  # fingerprint of the weights
    facts: str  # sha256 of what is asked, in order
    prompts: int
    kind: str
    where: str
    samples: int
    seed: int
    dtype: str
    version: int = _VERSION

    @property
    def name(self) -> str:
        """A name for its file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def choose(effect: Mapping[Role, Sequence[float]], site: Site | Auto = "auto") -> Choice:
    """Choose from what restoring the hidden state of the subject's last token, and of the prompt's last, recovers behind each layer.

    *Site.* The token whose state carries more of the answer in the middle third of the layers, the mean over them. Where attention
    brings what the model knows of a subject to the end of the prompt late, as in large models, it is the subject's; where early, as in
    tiny ones, the prompt's.

    *Layers.* That token's state carries the answer where it recovers at least half of the most that it recovers anywhere. L is the
    middle of the layers from the first to the last that do so (rounded down), and the window are as many layers up to L as make a
    sixth of the model, at least two. What is written so has layers before it that bring the subject together (or to the end of the
    prompt), and layers behind it that still read that token.

    Args:
        effect: by role, for each layer; only the two roles are looked at.
        site: given, only the layers are chosen.

    Raises:
        InvalidInput: neither recovers anything.
    """
    curves: dict[Site, Sequence[float]] = {"subject": effect["last of subject"], "last": effect["last of prompt"]}
    count = len(curves["subject"])
    middle = slice(count // 3, count - count // 3)
    found: Site = max(curves, key=lambda one: fmean(curves[one][middle])) if site == "auto" else site
    most = max(curves[found])
    if not most > 0:
        raise InvalidInput(
            "restoring what the noise corrupts recovers nothing of the answers.",
            "Give layers and site, e.g. layers=(4, 5, 6), site='subject'.",
        )
    carrying = [layer for layer, share in enumerate(curves[found]) if share >= most / 2]
    wide = min(count, max(2, round(count / 6)))
    last = max(wide - 1, (carrying[0] + carrying[-1]) // 2)
    return Choice(found, tuple(range(last - wide + 1, last + 1)))


def resolve(model: CausalModel, layers: Layers, site: Site | Auto, *, cache: Path | None = None, tell: Progress | None = None) -> Choice:
    """What a method says of where to edit, with "auto" found by tracing.

    Args:
        model: to be edited.
        layers: as the method has them.
        site: as the method has it.
        cache: folder in which the traces are kept.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: the model has no such layer, or says too few of the atlas's facts to be traced.
    """
    if layers != "auto" and (not layers or not all(0 <= layer < len(model.blocks) for layer in layers)):
        asked = ", ".join(map(str, layers))
        raise InvalidInput(f"the model has {len(model.blocks)} layers; asked for is number {asked or 'none'}.", "Name layers that it has.")
    if layers != "auto" and site != "auto":
        return Choice(site, layers)
    found = choose(averaged(model, cache=cache, tell=tell).effect, site)
    return found if layers == "auto" else Choice(found.site, layers)


def window(
    model: CausalModel, layers: Layers, *, site: Site | Auto = "auto", cache: Path | None = None, tell: Progress | None = None
) -> tuple[int, ...]:
    """The layers alone, for methods to which the site says nothing else.

    Raises:
        InvalidInput: as :func:`resolve`.
    """
    return resolve(model, layers, site if layers == "auto" else "last", cache=cache, tell=tell).layers


def averaged(
    model: CausalModel,
    facts: Sequence[Fact] | None = None,
    *,
    kind: Kind = "hidden",
    where: Where = "sites",
    samples: int = SAMPLES,
    seed: int = 0,
    cache: Path | None = None,
    tell: Progress | None = None,
) -> Averaged:
    """The mean of the traces of prompts that the model completes with a fact that it knows; from the cache where it is.

    Args:
        model: stays as it is.
        facts: to choose from; the atlas's unless given.
        kind: what is restored.
        where: in which tokens; all tokens take several times as long.
        samples: of the noise.
        seed: of the noise, and of the order in which atlas facts are asked for.
        cache: folder to keep it in; nothing is kept without one, nor for a model without fingerprint.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: the model says too few of the facts.
    """
    asked = _of_atlas(seed) if facts is None else [_Asked(fact.prompt, fact.subject, fact.target) for fact in facts]
    key = SiteKey(
        model=model.fingerprint,
        facts=hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        prompts=PROMPTS,
        kind=kind,
        where=where,
        samples=samples,
        seed=seed,
        dtype=str(model.dtype),
    )
    file = cache / "sites" / f"{key.name}.json" if cache and model.fingerprint else None
    if file and (kept := _read(file, len(model.blocks))):
        return kept
    chosen = known(model, asked, tell=tell)
    heats: list[Heat] = []
    for number, one in enumerate(chosen):
        if tell:
            tell(f"tracing {kind}", number, len(chosen))
        heats += [trace(model, one.prompt, one.subject, kind=kind, where=where, samples=samples, seed=seed)]
    found = _mean(heats)
    if file and not model.edits:
        _write(file, key, found)
    return found


class _Asked(NamedTuple):
    prompt: str
    subject: str
    target: str


def _of_atlas(seed: int) -> list[_Asked]:
    """Atlas facts in a wording with the subject inside, one of each relation first, then the second of each."""
    wordings = {
        relation.id: next((text for text in relation.fitted_statements if not text.startswith("{}") and not text.endswith("{}")), "")
        for relation in atlas.relations().values()
    }
    facts = [fact for fact in atlas.facts() if wordings[fact.relation]]
    random.Random(seed).shuffle(facts)  # noqa: S311  reproducible choice, no secret
    seen: dict[str, int] = {}
    ranked: list[tuple[int, _Asked]] = []
    for fact in facts:
        seen[fact.relation] = seen.get(fact.relation, 0) + 1
        text = wordings[fact.relation].replace("{}", fact.subject)
        ranked.append((seen[fact.relation], _Asked(text[:1].upper() + text[1:], fact.subject, fact.objects[0])))
    return [asked for _, asked in sorted(ranked, key=lambda one: one[0])]


def known(model: CausalModel, asked: Sequence[_Asked], *, tell: Progress | None = None) -> list[_Asked]:
    """The first dozen whose target the model says greedily.

    Raises:
        InvalidInput: there are fewer than three.
    """
    found: list[_Asked] = []
    most = min(len(asked), _ASKED)
    for start in range(0, most, _AT_ONCE):
        if tell:
            tell("asking", start, most)
        found += _said(model, asked[start : min(most, start + _AT_ONCE)])
        if len(found) >= PROMPTS:
            break
    if len(found) < _LEAST:
        raise InvalidInput(
            f"of {most} facts the model says {len(found)}; at least {_LEAST} are needed to find where it keeps them.",
            "Give layers and site, e.g. layers=(4, 5, 6), site='subject'.",
        )
    return found[:PROMPTS]


def _said(model: CausalModel, asked: Sequence[_Asked]) -> Iterator[_Asked]:
    """Those whose target's tokens are each the likeliest behind those before it."""
    import torch

    rows = list(_placed(model, asked))
    if not rows:
        return
    ids, mask = padded([placed.ids for _, placed in rows], model.pad, model.device)
    with torch.inference_mode():
        hidden = model.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for number, (one, placed) in enumerate(rows):
            likeliest = model.model.get_output_embeddings()(hidden[number, list(placed.predicting)]).argmax(-1)
            if likeliest.tolist() == list(placed.target):
                yield one


def _placed(model: CausalModel, asked: Iterable[_Asked]) -> Iterator[tuple[_Asked, Placed]]:
    for one in asked:
        with suppress(InvalidInput):  # the subject ends inside a token
            yield one, place(model.tokenizer, one.prompt, [one.subject], one.target)


def by_role(heat: Heat) -> dict[Role, tuple[float, ...]]:
    """A prompt's effects by role, the mean over the tokens that have it; a role that no traced token has is left out.

    The only token of a subject is its last. A subject at the prompt's end has its last token in common with it.
    """
    inside, last = list(heat.subject), len(heat.tokens) - 1
    tokens = (inside[:-1][:1], inside[1:-1], inside[-1:], list(range(inside[-1] + 1, last)), [last])
    return {
        role: tuple(heat.effect[which].mean(0).tolist())
        for role, which in zip(ROLES, tokens, strict=True)
        if which and not heat.effect[which].isnan().any()
    }


def _mean(heats: Sequence[Heat]) -> Averaged:
    rows = [by_role(heat) for heat in heats]
    effect: dict[Role, tuple[float, ...]] = {}
    for role in ROLES:
        if curves := [row[role] for row in rows if role in row]:
            effect[role] = tuple(fmean(column) for column in zip(*curves, strict=True))
    return Averaged(len(heats), fmean(heat.clean for heat in heats), fmean(heat.corrupted for heat in heats), effect)


# Files


def _write(file: Path, key: SiteKey, found: Averaged) -> None:
    """Write it in one step. A full or read-only disk costs the cache, not the answer."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=file.parent, delete=False, suffix=".tmp") as made:
            json.dump({"key": asdict(key), **asdict(found)}, made)
        Path(made.name).replace(file)


def _read(file: Path, layers: int) -> Averaged | None:
    """What is kept; none where the file is missing or damaged."""
    try:
        told: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        effect = {role: tuple(map(float, told["effect"][role])) for role in ROLES if role in told["effect"]}
        found = Averaged(int(told["prompts"]), float(told["clean"]), float(told["corrupted"]), effect)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_whole = {"last of subject", "last of prompt"} <= effect.keys() and all(len(curve) == layers for curve in effect.values())
    return found if is_whole else None
