"""What the methods have in common that find values z first and then spread the change over some layers' output projections."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ke_tools.editors._fisher import damped_inverse, fisher
from ke_tools.editors._goals import contexts, goals
from ke_tools.editors._keys import look
from ke_tools.editors._locate import Site
from ke_tools.editors._site import Auto, Choice, Layers, resolve
from ke_tools.editors._solve import Factors, least_squares
from ke_tools.editors._statistics import Moments, moments
from ke_tools.editors._targets import At, Goal, Objective, Targets, optimise
from ke_tools.editors.update import Efficiency, Outcome, Reached, Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["Clock", "LeastSquares", "Prepared", "Spread", "described", "reached", "refuse_nonsense", "values"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a method needs to know of a model, whatever the facts."""

    model: CausalModel
    where: Choice
    moments: Moments
    contexts: tuple[str, ...]
    seconds: float
    inverse: torch.Tensor | None = None  # of the metric in which z is looked for


@dataclass(frozen=True, kw_only=True)
class Spread(ABC):
    """Layers, prompts, the search for z and the statistics; what a layer's change is, the method says."""

    at: ClassVar[At] = "block"  # where z is
    by_mean: ClassVar[bool] = False  # whether a fact is one column, the mean over its prompts, or each prompt is one
    is_ridged: ClassVar[bool] = True  # whether C has the ridge, or is as it was counted
    sharing: ClassVar[float] = 1.0  # the power of L − l + 1 by which a layer's share of the residual is divided
    layers: Layers = "auto"  # found by tracing (ke_tools.editors._site), as the site is
    site: Site | Auto = "auto"
    contexts: int = 4  # the bare prompt, and behind text of the model's own
    chat: bool = False  # whether prompts are asked as chat turns too
    objective: Objective = field(default_factory=Objective)
    damping: float | Literal["none"] = 0.1  # of the natural gradient in the search for z (ke_tools.editors._fisher)
    text: Path | None = None  # to take C from; else the model's samples
    tokens: int | None = None  # of it; else ten a dimension of the key
    seed: int = 0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        if self.layers != "auto" and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise InvalidInput(f"layers are {self.layers}.", 'Give numbers of layers in order, e.g. (4, 5, 6), or "auto".')
        if self.contexts < 1:
            raise InvalidInput(f"contexts is {self.contexts}.", "Give 1 for the bare prompt alone, or more.")
        if self.damping != "none" and not self.damping > 0:
            raise InvalidInput(f"damping is {self.damping}.", 'Give a positive number, e.g. 0.1, or "none" for plain steepest descent.')

    @abstractmethod
    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        """Δ of one layer from keys [d_key, u], residuals [d_out, u], C and the Gram matrix of the keys edited before."""

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> Prepared:
        """Take what depends on the model alone: where to edit, C of each layer, F of the last, and texts to stand before prompts.

        Raises:
            InvalidInput: the model has no such layer, it knows too little to be traced, or the text to take C from is none.
        """
        began = time.monotonic()
        where = resolve(model, self.layers, self.site, cache=cache, tell=tell)
        found = moments(model, where.layers, text=self.text, tokens=self.tokens, seed=self.seed, cache=cache, tell=tell)
        inverse = None
        if self.damping != "none":
            inverse = damped_inverse(fisher(model, where.layers[-1], seed=self.seed, cache=cache, tell=tell), self.damping)
        return Prepared(model, where, found, contexts(model, self.contexts, seed=self.seed), time.monotonic() - began, inverse)

    def targets(self, prepared: Prepared, facts: Sequence[Fact], *, tell: Progress | None = None) -> Targets:
        """Find the facts' values; those of one fact do not depend on the others'.

        Raises:
            InvalidInput: as :meth:`plan` says of values.
        """
        where = prepared.where
        wanted = goals(prepared.model, facts, prepared.contexts, site=where.site, chat=self.chat)
        return values(prepared.model, facts, wanted, where.layers[-1], self.objective, at=self.at, inverse=prepared.inverse, tell=tell)

    def plan(
        self,
        prepared: Prepared,
        facts: Sequence[Fact],
        *,
        earlier: Sequence[Update] = (),
        found: Targets | None = None,
        tell: Progress | None = None,
    ) -> Update:
        """Plan an update; the model stays as it is.

        Args:
            prepared: what :meth:`prepare` gave.
            facts: what the model shall believe.
            earlier: updates that are applied already and shall hold on.
            found: their values, where :meth:`targets` has found them.
            tell: hears (stage, done, total).

        Raises:
            InvalidInput: a value, a key or a change holds numbers that are none; it names the fact or the layer.
        """
        where, clock = prepared.where, Clock()
        wanted = goals(prepared.model, facts, prepared.contexts, site=where.site, chat=self.chat)
        with clock.stage("z"):
            found = found or self.targets(prepared, facts, tell=tell)
        with clock.stage("solve"):
            changes, keys = self._spread(prepared, facts, wanted, (found.z - found.h).double().cpu(), earlier)
        seconds = {"statistics": round(prepared.seconds, 2), **clock.seconds}
        outcomes = reached(facts, found, self.objective)
        method, efficiency = described(self, **where._asdict()), Efficiency(seconds=seconds)
        made = Update(method, changes, outcomes, prepared.model.fingerprint, efficiency, keys, prepared.moments.notes())
        made.check(prepared.model)
        return made

    def _spread(
        self, prepared: Prepared, facts: Sequence[Fact], wanted: Sequence[Goal], delta: torch.Tensor, earlier: Sequence[Update]
    ) -> tuple[dict[int, Factors], dict[int, torch.Tensor]]:
        """Change the layers in order so that ``delta`` [facts, width] comes on top of what the last of them held."""
        model, layers = prepared.model, prepared.where.layers
        last, goal = layers[-1], delta
        changes: dict[int, Factors] = {}
        keys: dict[int, torch.Tensor] = {}
        for layer in layers:
            with Update({}, changes).hooked(model):
                seen = look(model, wanted, sorted({layer, last}), self.at)
            held = seen.mean(seen.held)
            goal = goal if changes else held + delta
            keys[layer] = seen.mean(seen.keys[layer])
            refuse_nonsense(keys[layer], facts, f"the key in layer {layer}")
            refuse_nonsense(held, facts, f"what stands in layer {last}")
            R = ((goal - held) / (last - layer + 1) ** self.sharing).T  # (Z − Hᴸ) / (L − l + 1)
            K, E = (keys[layer].T, None) if self.by_mean else (seen.keys[layer].T * seen.owners.sum(0).sqrt(), seen.owners.sqrt())
            C = prepared.moments.of(layer) if self.is_ridged else prepared.moments.mean(layer)
            found = self.solve(K, R if E is None else R @ E, C, gram(earlier, layer, model.key_width(layer)))
            changes[layer] = found if E is None else Factors(R, E @ found.right)  # R E right = R (E right): a rank a fact
        return changes, keys


@dataclass(frozen=True, kw_only=True)
class LeastSquares(Spread):
    """A layer's change is that of MEMIT (Meng et al. 2023, eq. 14), whatever the values are of."""

    regularisation: float = 300.0  # λ: how many tokens' keys must not be moved count as much as one fact's

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        Spread.__post_init__(self)
        if self.regularisation <= 0:
            raise InvalidInput(f"regularisation is {self.regularisation}.", "Give a positive number, e.g. 300.")

    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        """R Kᵀ (λC + K_pK_pᵀ + KKᵀ)⁻¹."""
        return least_squares(K, R, self.regularisation * C + earlier)


def gram(earlier: Sequence[Update], layer: int, width: int) -> torch.Tensor:
    """K_p K_pᵀ of the facts that were edited before, [d_key, d_key]."""
    import torch

    total = torch.zeros(width, width, dtype=torch.float64)
    for update in earlier:
        if layer in update.keys:
            keys = update.keys[layer].double()
            total += keys.T @ keys
    return total


def values(
    model: CausalModel,
    facts: Sequence[Fact],
    wanted: Sequence[Goal],
    layer: int,
    objective: Objective,
    *,
    at: At = "block",
    inverse: torch.Tensor | None = None,
    tell: Progress | None = None,
) -> Targets:
    """Find the facts' values.

    Raises:
        InvalidInput: one holds a number that is none.
    """
    found = optimise(
        model, wanted, layer, objective, at=at, inverse=inverse, tell=lambda done, n: tell("values", done, n) if tell else None
    )
    refuse_nonsense(found.z, facts, f"the value in layer {layer}")
    refuse_nonsense(found.nll, facts, "the likelihood of the target")
    return found


def refuse_nonsense(rows: torch.Tensor, facts: Sequence[Fact], what: str) -> None:
    """Refuse rows, one a fact, with numbers that are none.

    Raises:
        InvalidInput: it names the first fact.
    """
    for fact, row in zip(facts, rows, strict=True):
        if not row.isfinite().all():
            raise InvalidInput(
                f"{what} of {fact.prompt!r} holds numbers that are none.",
                "Nothing was planned. Load the model in float32, or lower learning_rate; if neither helps, its weights are damaged.",
            )


def reached(facts: Sequence[Fact], found: Targets, objective: Objective) -> tuple[Reached, ...]:
    """How it went for each fact."""
    return tuple(
        Reached(fact.prompt, _outcome(nll, steps, objective), round(nll, 4), steps)
        for fact, nll, steps in zip(facts, found.nll.tolist(), found.steps, strict=True)
    )


def _outcome(nll: float, steps: int, objective: Objective) -> Outcome:
    if nll >= objective.reached:
        return Outcome.MISSED
    return Outcome.REACHED if steps else Outcome.KNOWN


def described(method: Any, **found: Any) -> Mapping[str, Any]:
    """A method's name and fields, as JSON has them; what was found for its "auto" stands in place of that."""
    fields = {**asdict(method), **found}
    return {"name": type(method).__name__, **{k: str(v) if isinstance(v, Path) else v for k, v in fields.items()}}


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)
