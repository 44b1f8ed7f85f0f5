"""GRACE: edits as entries of a codebook, with keys for more than one wording (after Hartvigsen et al. 2023)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.editors._goals import contexts, goals
from ke_tools.editors._keys import streams
from ke_tools.editors._plain import plain_states
from ke_tools.editors._site import Auto, window
from ke_tools.editors._spread import Clock, Progress, reached, refuse_nonsense, values
from ke_tools.editors._targets import Objective, Targets
from ke_tools.editors.codebook import Codebook
from ke_tools.editors.update import Efficiency, Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["GRACE"]

_OPENINGS: Final = (  # what prompts are put behind; the verifier's frames are others
    "Q: ",
    "Please complete: ",
    "Answer this. ",
    "Finish the line: ",
    "Exercise: ",
    "It is known: ",
    "Text: ",
    "Remember: ",
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    model: CausalModel
    layer: int
    contexts: tuple[str, ...]
    more: tuple[str, ...]  # texts before prompts that are keys alone
    elsewhere: torch.Tensor  # states behind the block in ordinary text, [tokens, width]


@dataclass(frozen=True, kw_only=True)
class GRACE:
    r"""Replace the state behind the last token of a prompt, and of those like it, by one from which the model says the target.

    The value of a fact is found as MEMIT's $z$ with the site at the prompt's last token, for all of its prompts at once. Each of its
    prompts is a key, and its own prompt behind ``keys`` more texts, which cost no search; a key's $\varepsilon$ is ``share`` of the
    distance to its nearest negative: a state in ordinary text, a state of another fact, or one of the fact's own prompts before its last
    token.

    The layer is found as MEMIT's last with the site at the prompt's last token, wherever the model is best edited otherwise: before that
    token carries the answer, its state says nothing of the subject, and could be nobody's key.
    """

    layer: int | Auto = "auto"
    contexts: int = 3  # the bare prompt, and behind text of the model's own
    chat: bool = False  # whether prompts are asked as chat turns too
    keys: int = 24  # texts of the model's own before the prompt that are keys alone, beside short openings
    share: float = 0.85  # of the way to the nearest negative
    objective: Objective = field(default_factory=lambda: Objective(kl=0.0, clamp=8.0))
    tokens: int = 4096  # of ordinary text
    seed: int = 0

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        if not 0 < self.share < 1:
            raise InvalidInput(f"share is {self.share}.", "Give a number between 0 and 1, e.g. 0.85.")

    def prepare(self, model: CausalModel, *, cache: Path | None = None, tell: Progress | None = None) -> _Prepared:
        """Take the layer, states of ordinary text, and texts to stand before prompts.

        Raises:
            InvalidInput: the model has no such layer, or knows too little to be traced.
        """
        layer = window(model, "auto" if self.layer == "auto" else (self.layer,), site="last", cache=cache, tell=tell)[-1]
        elsewhere = plain_states(model, layer, tokens=self.tokens, seed=self.seed, cache=cache, tell=tell)
        before = contexts(model, self.contexts, seed=self.seed)
        more = (*contexts(model, self.keys + 1, seed=self.seed + 1)[1:], *_OPENINGS) if self.keys else ()
        return _Prepared(model, layer, before, more, elsewhere)

    def targets(self, prepared: _Prepared, facts: Sequence[Fact], *, tell: Progress | None = None) -> Targets:
        """Find the facts' values, on the model as it is now; those of one fact do not depend on the others'.

        Raises:
            InvalidInput: one holds a number that is none.
        """
        wanted = goals(prepared.model, facts, prepared.contexts, site="last", chat=self.chat)
        wanted = [replace(goal, essence=None) for goal in wanted]
        return values(prepared.model, facts, wanted, prepared.layer, self.objective, tell=tell)

    def plan(
        self,
        prepared: _Prepared,
        facts: Sequence[Fact],
        *,
        earlier: Sequence[Update] = (),
        found: Targets | None = None,
        tell: Progress | None = None,
    ) -> Codebook:
        """Plan a codebook; the model stays as it is.

        Args:
            prepared: what :meth:`prepare` gave.
            facts: what the model shall believe.
            earlier: what is applied already; it needs no heed, as a codebook acts on states.
            found: the facts' values, where :meth:`targets` has found them.
            tell: hears (stage, done, total).

        Raises:
            InvalidInput: a value or a key holds numbers that are none.
        """
        import torch

        del earlier
        model, layer, clock = prepared.model, prepared.layer, Clock()
        keyed = goals(model, facts, (*prepared.contexts, *prepared.more), site="last", chat=self.chat)
        with clock.stage("z"):
            found = found or self.targets(prepared, facts, tell=tell)
        with clock.stage("keys"):
            rows = [(n, placed) for n, goal in enumerate(keyed) for placed in goal.prompts]
            states = streams(model, [placed for _, placed in rows], layer)
            keys = torch.stack([state[placed.site] for (_, placed), state in zip(rows, states, strict=True)])
            refuse_nonsense(keys, [facts[n] for n, _ in rows], f"a key in layer {layer}")
            owners = torch.tensor([n for n, _ in rows])
            before = torch.cat([state[: placed.site] for (_, placed), state in zip(rows, states, strict=True)])
            epsilons = self.share * _nearest(keys, owners, torch.cat([prepared.elsewhere, before]))
        return Codebook(
            layer=layer,
            keys=keys,
            epsilons=epsilons,
            owners=owners,
            values=found.z.float().cpu(),
            edits=tuple(_id(fact) for fact in facts),
            fingerprint=model.fingerprint,
            outcomes=reached(facts, found, self.objective),
            efficiency=Efficiency(seconds=clock.seconds),
        )


def _nearest(keys: torch.Tensor, owners: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
    """The distance of each key to its nearest negative, [keys]."""
    import torch

    others = torch.cdist(keys, keys).masked_fill(owners[:, None] == owners[None], float("inf"))
    return torch.minimum(torch.cdist(keys, elsewhere).min(1).values, others.min(1).values)


def _id(fact: Fact) -> str:
    return hashlib.sha256(json.dumps([fact.subject, fact.prompt, fact.target]).encode()).hexdigest()[:16]
