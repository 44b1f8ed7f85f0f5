r"""MEMIT: many facts at once, spread over the MLPs of several layers (Meng et al. 2023)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.editors._goals import contexts, goals
from ke_tools.editors._keys import look
from ke_tools.editors._locate import Site
from ke_tools.editors._solve import Factors, least_squares
from ke_tools.editors._statistics import Moments, moments
from ke_tools.editors._targets import Goal, Objective, optimise
from ke_tools.editors.update import Efficiency, Outcome, Reached, Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["MEMIT", "Prepared"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a method needs to know of a model, whatever the facts."""

    model: CausalModel
    moments: Moments
    contexts: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class MEMIT:
    r"""Write facts by least squares into the output projections of some layers $\mathcal{R}$, the last of which is $L$.

    With keys $K^l$ [d_key, u] at the edited tokens, the mean over each fact's prompts, and the values $z$ that the residual stream shall have
    after block $L$ (:mod:`ke_tools.editors._targets`), for each layer $l$ in order (eq. 14, 20)

    $$R^l = \frac{Z - H^L}{L - l + 1}, \qquad \Delta^l = R^l {K^l}^\top (\lambda C^l + K^l {K^l}^\top)^{-1},$$

    where $H^L$ is what the stream holds once the layers below are changed.

    Differs from the reference (memit at 80426fd): 1. λ counts tokens' worth of C, which is a mean (there it is an absolute number for C as a
    mean, so that the default is a number of the same kind, and smaller for smaller models); 2. a fact's key is the plain mean over its
    prompts (there the bare prompt weighs as much as the five others together); 3. statistics come from ten tokens a dimension of the key, not
    from 100,000 articles; 4. paraphrases that come with a fact are among its prompts.
    """

    layers: tuple[int, ...]
    site: Site = "subject"
    regularisation: float = 3000.0  # λ, in tokens' worth of C
    contexts: int = 6  # the bare prompt, and behind text of the model's own
    objective: Objective = field(default_factory=Objective)
    text: Path | None = None  # to take C from; else the model's samples
    tokens: int | None = None  # of it; else ten a dimension of the key
    seed: int = 0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InvalidInput(f"layers are {self.layers}.", "Give numbers of layers in order, e.g. (4, 5, 6).")
        if self.regularisation <= 0:
            raise InvalidInput(f"regularisation is {self.regularisation}.", "Give a positive number, e.g. 3000.")
        if self.contexts < 1:
            raise InvalidInput(f"contexts is {self.contexts}.", "Give 1 for the bare prompt alone, or more.")

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> Prepared:
        """Take what depends on the model alone: C of each layer, and texts to stand before prompts."""
        began = time.monotonic()
        if self.layers[-1] >= len(model.blocks):
            raise InvalidInput(f"the model has {len(model.blocks)} layers; asked for is {self.layers[-1]}.", "Name layers that it has.")
        found = moments(model, self.layers, text=self.text, tokens=self.tokens, seed=self.seed, cache=cache, tell=tell)
        return Prepared(model, found, contexts(model, self.contexts, seed=self.seed), time.monotonic() - began)

    def plan(self, prepared: Prepared, facts: Sequence[Fact], *, tell: Progress | None = None) -> Update:
        """Plan an update; the model stays as it is."""
        model = prepared.model
        clock = _Clock()
        wanted = goals(model, facts, prepared.contexts, site=self.site)
        with clock.stage("z"):
            targets = optimise(model, wanted, self.layers[-1], self.objective, tell=lambda done, n: tell("z", done, n) if tell else None)
        with clock.stage("solve"):
            changes = self.spread(prepared, wanted, targets.z.double().cpu())
        outcomes = tuple(
            Reached(fact.prompt, _outcome(float(nll), steps, self.objective), round(float(nll), 4), steps)
            for fact, nll, steps in zip(facts, targets.nll, targets.steps, strict=True)
        )
        return Update(
            {"name": type(self).__name__, **{k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}},
            changes,
            outcomes,
            model.fingerprint,
            Efficiency(seconds={"statistics": round(prepared.seconds, 2), **clock.seconds}),
        )

    def spread(self, prepared: Prepared, wanted: Sequence[Goal], z: torch.Tensor) -> dict[int, Factors]:
        """Change the layers in order so that the stream comes to hold ``z`` [facts, width] after the last of them."""
        model, changes = prepared.model, dict[int, Factors]()
        for layer in self.layers:
            with Update({}, changes).hooked(model):
                seen = look(model, wanted, [layer] if layer == self.layers[-1] else [layer, self.layers[-1]])
            R = ((z - seen.stream) / (self.layers[-1] - layer + 1)).T  # (Z − Hᴸ) / (L − l + 1)
            K = seen.keys[layer].T
            changes[layer] = self.solve(K, R, prepared.moments.of(layer))
        return changes

    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor) -> Factors:  # noqa: N803  the paper's names
        """Δ of one layer."""
        return least_squares(K, R, C, self.regularisation)


_KNOWN: Final = 0  # steps


def _outcome(nll: float, steps: int, objective: Objective) -> Outcome:
    if nll >= objective.reached:
        return Outcome.MISSED
    return Outcome.KNOWN if steps == _KNOWN else Outcome.REACHED


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._began = "", 0.0

    def stage(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self._name] = round(time.monotonic() - self._began, 3)
