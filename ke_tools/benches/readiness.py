"""``ke-tools model prepare``: makes what is made once for a model, tries one edit, and says what the model is ready for.

Each step is told with how it ended; one that fails leaves the others, but for those that need it. What is made stays: where the model keeps
facts and what its layers see (in the cache), the reader (in the home).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ke_tools import atlas
from ke_tools.benches import model as bench
from ke_tools.benches._report import Progress, Stages
from ke_tools.benches._serving import serving
from ke_tools.errors import KeToolsError, Unsupported
from ke_tools.models import checkpoint
from ke_tools.models.reader import card
from ke_tools.verify import asserts, knows

if TYPE_CHECKING:
    from pathlib import Path

    from ke_tools.config import Settings
    from ke_tools.editors._spread import Prepared
    from ke_tools.facts import Fact
    from ke_tools.models.causal import CausalModel
    from ke_tools.models.engine import Engine

__all__ = ["run"]

_T = TypeVar("_T")
_ASKED: Final = 256  # facts, among which the one that is edited for a trial
_TOKENS: Final = 12
_READY: Final = "corrections act from the memory{reader}, and may climb into the weights."
_MEMORY_ALONE: Final = "corrections act from the memory{reader}; of the weights: {why}"


@dataclass(frozen=True, slots=True)
class Step:
    """How one ended."""

    step: str
    ok: bool
    seconds: float
    detail: str


class _Card:
    """The steps so far."""

    def __init__(self, stages: Stages) -> None:
        self.steps: list[Step] = []
        self._stages = stages

    def take(self, name: str, work: Callable[[], tuple[str, _T | None]]) -> _T | None:
        """Take a step that tells what came of it and gives something to go on with; ``None`` where it failed."""
        began = time.monotonic()
        self._stages.tell(name, 0, 0)
        made: _T | None = None
        try:
            detail, made = work()
        except KeToolsError as error:
            detail = str(error)
        self.steps.append(Step(name, made is not None, round(time.monotonic() - began, 1), detail))
        return made

    def leave_out(self, name: str, why: str) -> None:
        """Note a step that could not be taken."""
        self.steps.append(Step(name, False, 0.0, why))

    def told(self, name: str) -> Step:
        """How a step ended."""
        return next(step for step in self.steps if step.step == name)


def run(settings: Settings, *, limit: int = 0, reader: bool = True, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare the model of the settings.

    Args:
        settings: which model, and how it is served.
        limit: how many facts to ask it about; 0 takes a fair sample.
        reader: whether to train a reader where there is none.
        seed: of the samples and of the trial.
        progress: told (stage, done, total).

    Raises:
        ModelUnavailable: there is no such model.
        Unsupported: its weights are not at hand.
    """
    if settings.upstream:
        raise Unsupported(
            "the weights of a model behind --upstream are not at hand.", "Give --model with the checkpoint, without --upstream."
        )
    path = checkpoint.resolve(settings)
    fingerprint = checkpoint.fingerprint(path, cache=settings.cache)
    stages = Stages(progress)
    made = _Card(stages)
    weights = made.take("weights", lambda: _weights(settings, stages))
    made.take("reader", lambda: _reader(settings, path, fingerprint, reader, stages))
    with serving(settings, None, stages) as engine:
        made.take("knowledge", lambda: _knowledge(settings, engine, limit, seed, progress))
        if weights is None:
            made.leave_out("trial", "not tried, as the weights are not prepared")
        else:
            made.take("trial", lambda: _trial(weights, engine, settings, random.Random(seed), stages))  # noqa: S311  no secret
    trial = made.told("trial")
    with_reader = " with the reader" if made.told("reader").ok else " with demonstrations"
    ready = (_READY if trial.ok else _MEMORY_ALONE).format(reader=with_reader, why=trial.detail)
    return {
        "summary": f"{path.name}: {ready}",
        "ready": trial.ok,
        "model": path.name,
        "fingerprint": fingerprint,
        "steps": [{"step": one.step, "ok": one.ok, "seconds": one.seconds, "detail": one.detail} for one in made.steps],
    }


def _weights(settings: Settings, stages: Stages) -> tuple[str, tuple[CausalModel, Prepared]]:
    """Where the model is edited, and what its layers see there."""
    from ke_tools.editors.memit import MEMIT
    from ke_tools.models import causal

    model = causal.load(settings)
    found = MEMIT().prepare(model, cache=settings.cache, tell=stages.tell)
    layers = f"{found.where.layers[0]} to {found.where.layers[-1]}"
    notes = "".join(f"; {note}" for note in found.moments.notes())
    return f"edited at {found.where.site} in layers {layers}; {found.moments.count:,} tokens counted{notes}", (model, found)


def _reader(settings: Settings, path: Path, fingerprint: str, trains: bool, stages: Stages) -> tuple[str, Path | None]:
    """The model's reader, trained where there is none and that is wanted."""
    found = card.find(fingerprint, settings.home)
    if found is None and trains:
        from ke_tools.models.reader import training

        out = settings.home / "readers" / path.name
        found = training.train(
            path, out, fingerprint=fingerprint, progress=lambda phase, done, total, _loss: stages.tell(phase, done, total)
        )
    return (f"in {found}" if found else "none; `ke-tools reader train` makes one"), found


def _knowledge(settings: Settings, engine: Engine, limit: int, seed: int, progress: Progress | None) -> tuple[str, dict[str, Any]]:
    """What the model knows, and how it heeds its context."""
    results = bench.run(settings, limit=limit, seed=seed, progress=progress, engine=engine)["results"]
    way = "reader" if "reader" in engine.adapters else f"ike-{bench.DEMONSTRATIONS[-1]}"
    heeds = results["obedience"][way]["question"]["value"]
    known = results["known"]["all"]["value"]
    return f"knows {known:.2f} of {results['facts']} facts, and heeds {heeds:.2f} of what is put before its questions ({way})", results


def _trial(
    prepared: tuple[CausalModel, Prepared], engine: Engine, settings: Settings, chance: random.Random, stages: Stages
) -> tuple[str, bool | None]:
    """Edit one fact that the model knows, ask for it, and take it back."""
    import torch

    from ke_tools.editors.memit import MEMIT

    model, found = prepared
    fact = _known(engine, settings, chance, stages)
    before = _logits(model, fact.prompt)
    update = MEMIT().plan(found, [fact], tell=stages.tell)
    with update.applied(model):
        said = _said(model, fact.prompt)
    if not torch.equal(_logits(model, fact.prompt), before):
        return "the model is not as before after the edit was taken back", None
    took = f"{fact.prompt!r} was answered {said.strip()!r}"
    if not asserts(said, [fact.target]):
        return f"{took} after an edit to {fact.target!r}", None
    return f"{took} after an edit, and as ever once it was taken back", True


def _known(engine: Engine, settings: Settings, chance: random.Random, stages: Stages) -> Fact:
    """What the model knows, turned into something else.

    Raises:
        Unsupported: it knows nothing that it was asked.
    """
    asked = chance.sample(atlas.facts(), min(_ASKED, len(atlas.facts())))
    for fact in knows(engine, asked, cache=settings.cache, progress=stages.tell):
        if (edit := bench.counterfactual(fact, chance)) is not None:
            return edit.fact
    raise Unsupported(f"the model knows none of {len(asked)} facts, so that no edit can be tried.", "Corrections act from the memory.")


def _logits(model: CausalModel, prompt: str) -> Any:
    import torch

    with torch.no_grad():
        return model.model(**_inputs(model, prompt)).logits


def _said(model: CausalModel, prompt: str) -> str:
    import torch

    inputs = _inputs(model, prompt)
    with torch.no_grad():
        made = model.model.generate(**inputs, max_new_tokens=_TOKENS, do_sample=False)
    return str(model.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def _inputs(model: CausalModel, prompt: str) -> dict[str, Any]:
    found = model.tokenizer(prompt, return_tensors="pt")
    return {name: found[name].to(model.device) for name in ("input_ids", "attention_mask")}
