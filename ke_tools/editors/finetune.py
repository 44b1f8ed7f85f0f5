"""Fine-tuning of some layers' output projections (FT-L, FT-M), and of a LoRA on them: the baselines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ke_tools.editors._goals import goals
from ke_tools.editors._locate import Placed, padded
from ke_tools.editors._site import Layers, window
from ke_tools.editors._solve import Factors
from ke_tools.editors._spread import Clock, Progress, described, refuse_nonsense
from ke_tools.editors.update import Efficiency, Outcome, Reached, Update
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["FT", "LoRA"]


@dataclass(frozen=True, slots=True)
class _Prepared:
    model: CausalModel
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Tuning:
    """What both have: layers, and how long and in what portions to descend."""

    layers: Layers = "auto"
    reached: float = 0.05  # nats a target token, the mean of every fact, from which on all are done
    batch: int = 16

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> _Prepared:
        """Take the layers.

        Raises:
            InvalidInput: the model has no such layer, or knows too little to be traced.
        """
        return _Prepared(model, window(model, self.layers, cache=cache, tell=tell))


@dataclass(frozen=True, kw_only=True)
class FT(_Tuning):
    r"""Descend on $-\log p(o \mid p)$ over some layers' output projections, and nothing else.

    ``objective="target"`` (FT-M, EasyEdit's ``target_new``) is the ordinary loss: each token of the target behind those before it.
    ``objective="last"`` (FT-L, ``prompt_last``) scores every token of the target behind the prompt, as the field's tables do, which is
    wrong for targets of several tokens. ``bound`` keeps every entry of Δ within ±bound (the ROME paper's FT+L).

    The descent is on a copy of the weight in float32 at least: in a half, small steps and Adam's ε would be lost.
    Δ is not of low rank by itself; it is kept as its singular value decomposition, whole.
    Differs from EasyEdit at 14cea82: paraphrases that come with a fact are learnt too.
    """

    objective: Literal["target", "last"] = "target"
    steps: int = 25  # the reference's
    learning_rate: float = 5e-4  # the reference's
    bound: float = 0.0  # 0: none

    def plan(self, prepared: _Prepared, facts: Sequence[Fact], *, earlier: Sequence[Update] = (), tell: Progress | None = None) -> Update:
        """Plan an update; the model stays as it is.

        Raises:
            InvalidInput: the loss of a fact became a number that is none.
        """
        import torch

        del earlier
        model, layers, clock = prepared.model, prepared.layers, Clock()
        wanted = goals(model, facts, ("",))
        weights = [model.weight(layer) for layer in layers]
        stored = [weight.detach().clone() for weight in weights]
        before = [one.to(torch.promote_types(one.dtype, torch.float32)) for one in stored]
        masters = [torch.nn.Parameter(one.clone()) for one in before]

        def hand_over(*_: Any) -> None:
            for master, weight in zip(masters, weights, strict=True):
                master.grad, weight.grad = weight.grad if weight.grad is None else weight.grad.to(master.dtype), None

        def write() -> None:
            if self.bound:
                for master, old in zip(masters, before, strict=True):
                    master.copy_(old + (master - old).clamp(-self.bound, self.bound))
            for weight, master in zip(weights, masters, strict=True):
                weight.copy_(master)

        with clock.stage("descent"), _learning(model, weights):
            optimizer = torch.optim.Adam(masters, lr=self.learning_rate)
            optimizer.register_step_pre_hook(hand_over)
            rows = [(n, placed) for n, goal in enumerate(wanted) for placed in goal.prompts]
            try:
                nll, steps = _descend(model, rows, optimizer, self.steps, self.batch, self.reached, self.objective, write, tell)
                deltas = [(master.detach() - old).double().cpu() for master, old in zip(masters, before, strict=True)]
            finally:
                with torch.no_grad():
                    for weight, old in zip(weights, stored, strict=True):
                        weight.copy_(old)
        refuse_nonsense(torch.tensor([nll[n] for n in range(len(facts))]), facts, "the loss")
        changes = {layer: _factored(delta.T if model.is_transposed(layer) else delta) for layer, delta in zip(layers, deltas, strict=True)}
        return Update(
            described(self, layers=layers),
            changes,
            _outcomes(facts, nll, steps, self.reached),
            model.fingerprint,
            Efficiency(seconds=clock.seconds),
        )


@dataclass(frozen=True, kw_only=True)
class LoRA(_Tuning):
    """Descend on the facts' likelihood over a LoRA (Hu et al. 2021) on some layers' output projections, through PEFT."""

    rank: int = 8  # EasyEdit's
    alpha: int = 32  # EasyEdit's
    steps: int = 50
    learning_rate: float = 5e-3  # EasyEdit's
    seed: int = 0

    def plan(self, prepared: _Prepared, facts: Sequence[Fact], *, earlier: Sequence[Update] = (), tell: Progress | None = None) -> Update:
        """Plan an update; the model stays as it is.

        Raises:
            InvalidInput: the loss of a fact became a number that is none.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        del earlier
        model, layers, clock = prepared.model, prepared.layers, Clock()
        names = {layer: model.projection_name(layer) for layer in layers}
        needed = [weight.requires_grad for weight in model.model.parameters()]
        torch.manual_seed(self.seed)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(names.values()),
            fan_in_fan_out=model.is_transposed(layers[0]),
            task_type="CAUSAL_LM",
        )
        wanted = goals(model, facts, ("",))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers under an old name
            tuned: Any = get_peft_model(model.model, config)
        try:
            with clock.stage("descent"):
                optimizer = torch.optim.AdamW([w for w in tuned.parameters() if w.requires_grad], lr=self.learning_rate, weight_decay=0.0)
                rows = [(n, placed) for n, goal in enumerate(wanted) for placed in goal.prompts]
                nll, steps = _descend(model, rows, optimizer, self.steps, self.batch, self.reached, "target", lambda: None, tell)
            refuse_nonsense(torch.tensor([nll[n] for n in range(len(facts))]), facts, "the loss")
            changes = {}
            for layer in layers:
                part: Any = model.projection(layer)
                a, b = (side["default"].weight.detach().double().cpu() for side in (part.lora_A, part.lora_B))
                changes[layer] = Factors(b * (self.alpha / self.rank), a)
        finally:
            tuned.unload()
            for weight, is_needed in zip(model.model.parameters(), needed, strict=True):
                weight.requires_grad_(is_needed)
                weight.grad = None
        return Update(
            described(self, layers=layers),
            changes,
            _outcomes(facts, nll, steps, self.reached),
            model.fingerprint,
            Efficiency(seconds=clock.seconds),
        )


def _factored(delta: torch.Tensor) -> Factors:
    """Δ as its singular value decomposition, whole."""
    import torch

    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    kept = int((s > s.max() * 1e-12).sum()) if s.max() > 0 else 1
    return Factors(u[:, :kept] * s[:kept], v[:kept])


@contextmanager
def _learning(model: CausalModel, weights: Sequence[Any]) -> Iterator[None]:
    """Only these weights have gradients, for as long as the block lasts."""
    needed = [weight.requires_grad for weight in model.model.parameters()]
    model.model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, is_needed in zip(model.model.parameters(), needed, strict=True):
            weight.requires_grad_(is_needed)
            weight.grad = None


def _descend(
    model: CausalModel,
    rows: Sequence[tuple[int, Placed]],
    optimizer: Any,
    steps: int,
    batch: int,
    reached: float,
    objective: str,
    after: Callable[[], None],
    tell: Progress | None,
) -> tuple[dict[int, float], int]:
    """Pass over the rows until their mean loss is low or the steps are over; of each fact its last loss, and the steps taken."""
    import torch

    found: dict[int, float] = {}
    ordered = sorted(rows, key=lambda row: len(row[1].ids))
    for step in range(steps + 1):
        seen: dict[int, list[float]] = {}
        optimizer.zero_grad()
        for start in range(0, len(ordered), batch):
            part = ordered[start : start + batch]
            with torch.set_grad_enabled(step < steps):
                losses = _losses(model, [placed for _, placed in part], objective)
            if step < steps:
                (losses.sum() / len(ordered)).backward()  # type: ignore[no-untyped-call]
            for (number, _), loss in zip(part, losses.tolist(), strict=True):
                seen.setdefault(number, []).append(loss)
        found = {number: sum(losses) / len(losses) for number, losses in seen.items()}
        if tell:
            tell("descent", step, steps)
        if step == steps or max(found.values()) < reached:
            break
        optimizer.step()
        with torch.no_grad():
            after()
    return found, step


def _losses(model: CausalModel, placed: Sequence[Placed], objective: str) -> torch.Tensor:
    """Mean negative log-likelihood of each row's target."""
    import torch

    ids, mask = padded([one.ids for one in placed], model.pad, model.device)
    logits = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
    rows = []
    for number, one in enumerate(placed):
        where = [one.prompt_length - 1] * len(one.target) if objective == "last" else list(one.predicting)
        rows.append(-logits[number, where, list(one.target)].mean())
    return torch.stack(rows)


def _outcomes(facts: Sequence[Fact], nll: dict[int, float], steps: int, reached: float) -> tuple[Reached, ...]:
    return tuple(
        Reached(fact.prompt, Outcome.MISSED if nll[n] >= reached else Outcome.REACHED if steps else Outcome.KNOWN, round(nll[n], 4), steps)
        for n, fact in enumerate(facts)
    )
