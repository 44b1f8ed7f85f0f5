r"""MEMIT as published, one fact after another, for what our way of computing it saves: the same update from the same settings.

For each fact (Meng et al. 2023, §4.2; the reference at 80426fd): 6 contexts, "{}" and five beginnings of ten tokens that the model writes;
$\delta$ is added to the output of block $L$ at the edited token, and at every step the *whole* model runs the six rows and the essence
"{subject} is a", forward and backward, with logits at every position of every row. 25 steps of Adam at .5; the loss is the mean negative
log-likelihood of the target, .0625 of the divergence behind the essence, and the decay of $\|\delta\| / \|h\|^2$; the search stops when
the whole loss falls below .05; $\delta$ is clamped to a multiple of $\|h\|$. Then for each layer in order the keys are taken one fact at a
time and $\Delta = R K^\top (\lambda C + K K^\top)^{-1}$ is solved in float64.

What depends on the model is the editor's that it stands beside, so that only the procedure differs: layers, the edited token, $\lambda$,
$C$, and that Adam's rate is a multiple of the root mean square of $h$ (.5 would be another thing in every model). Clamp and decay are those
that are usual for Llamas. Differs from the reference: 1. the above; 2. a fact's key is the plain mean over its prompts; 3. gradients
are taken of $\delta$ alone; 4. the last step too changes $\delta$.

A *saving* of ours can be switched on alone (:data:`SAVINGS`), which shows what each is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.editors._goals import contexts, goals
from ke_tools.editors._locate import Placed, padded
from ke_tools.editors._solve import Factors
from ke_tools.editors._spread import Clock, Prepared
from ke_tools.editors._targets import Goal, Objective, Steepest
from ke_tools.editors._trace import adding, inputs_of, run_until
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.update import Efficiency, Update
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["PUBLISHED", "SAVINGS", "Found", "Saving", "plan", "values", "wants"]

Saving = Literal[
    "none", "our contexts", "steepest descent", "stop by likelihood", "blocks above L", "logits where needed", "batches", "prefix once"
]
SAVINGS: Final[tuple[Saving, ...]] = (
    "none",
    "our contexts",  # as many as the editor takes, and the fact's paraphrases
    "steepest descent",  # ours, with our steps' length; else Adam
    "stop by likelihood",  # of the target, not by the whole loss
    "blocks above L",  # run at each step, the others once
    "logits where needed",
    "batches",  # of facts; one that is done rests
    "prefix once",  # keys and values of what stands before the edited token
)
PUBLISHED: Final = Objective(steps=25, learning_rate=0.5, kl=0.0625, weight_decay=1e-3, clamp=4.0, reached=0.05)
OURS: Final = Objective().learning_rate
CONTEXTS: Final = 6
_AT_ONCE: Final = 1024  # tokens of a padded batch, of which all logits are made

Run = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True)
class Found:
    """Values z [facts, width], and how many steps each took."""

    z: torch.Tensor
    steps: tuple[int, ...]


def wants(prepared: Prepared, facts: Sequence[Fact], seed: int) -> list[Goal]:
    """What is published of a fact's prompts: six contexts, no paraphrases."""
    before = contexts(prepared.model, CONTEXTS, length=10, seed=seed)
    return goals(prepared.model, [replace(fact, paraphrases=()) for fact in facts], before, site=prepared.where.site)


def plan(
    editor: MEMIT,
    prepared: Prepared,
    wanted: Sequence[Goal],
    objective: Objective,
    saving: Saving = "none",
    tell: Callable[[int, int], None] | None = None,
) -> Update:
    """Plan an update; the model stays as it is.

    Args:
        editor: whose λ is taken.
        prepared: what it made ready of the model, with its layers and site.
        wanted: what the facts want, e.g. :func:`wants`.
        objective: hyper-parameters of the search.
        saving: what is done our way.
        tell: hears after each fact of (facts whose z is found, facts).
    """
    clock = Clock()
    with clock.stage("z"):
        found = values(prepared.model, wanted, prepared.where.layers[-1], objective, saving, tell)
    with clock.stage("solve"):
        changes = _changes(editor, prepared, wanted, found.z.double().cpu())
    return Update({"name": "MEMIT, as published"}, changes, (), prepared.model.fingerprint, Efficiency(seconds=clock.seconds))


def values(
    model: CausalModel,
    wanted: Sequence[Goal],
    layer: int,
    objective: Objective,
    saving: Saving = "none",
    tell: Callable[[int, int], None] | None = None,
) -> Found:
    """Find z for every fact at the output of a block, one fact at a time unless batches are the saving."""
    import torch

    found: list[Found] = []
    for part in _parts(wanted) if saving == "batches" else [[goal] for goal in wanted]:
        found.append(_search(model, part, layer, objective, saving))
        if tell:
            tell(sum(len(one.steps) for one in found), len(wanted))
    return Found(torch.cat([one.z for one in found]), tuple(steps for one in found for steps in one.steps))


def _search(model: CausalModel, wanted: Sequence[Goal], layer: int, objective: Objective, saving: Saving) -> Found:
    import torch

    with torch.no_grad():
        h = torch.stack([_stream(model, goal.prompts[0], layer) for goal in wanted]).float()
        loss_of = _Loss.of(model, wanted, layer, objective, saving)
    length = h.norm(dim=1)
    rows = torch.zeros_like(h)
    rate = OURS if saving == "steepest descent" else objective.learning_rate
    move = _by_steepest(rows, rate * length) if saving == "steepest descent" else _by_adam(rows, rate * h.pow(2).mean(1).sqrt())
    active, steps = torch.ones(len(h), dtype=torch.bool, device=h.device), [0] * len(h)
    for _ in range(objective.steps):
        delta = rows.clone().requires_grad_()
        likelihood, drift = loss_of(delta)
        loss = likelihood + objective.kl * drift + objective.weight_decay * delta.norm(dim=1) / length.pow(2)
        active &= (likelihood if saving == "stop by likelihood" else loss).detach() >= objective.reached
        if not active.any():
            break
        steps = [taken + moving for taken, moving in zip(steps, active.tolist(), strict=True)]
        move(torch.autograd.grad(loss.sum(), delta)[0], active)
        rows *= (objective.clamp * length / rows.norm(dim=1).clamp_min(1e-12)).clamp_max(1)[:, None]
    return Found(h + rows, tuple(steps))


def _by_adam(rows: torch.Tensor, rates: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Adam on each row by itself, in place."""
    import torch

    alone = [row.detach() for row in rows]
    adam = torch.optim.Adam([{"params": [row], "lr": rate} for row, rate in zip(alone, rates.tolist(), strict=True)])

    def move(gradient: torch.Tensor, active: torch.Tensor) -> None:
        for row, slope, is_moving in zip(alone, gradient, active.tolist(), strict=True):
            row.grad = slope if is_moving else None  # Adam leaves alone what has none
        adam.step()

    return move


def _by_steepest(rows: torch.Tensor, rates: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Our descent, in place."""
    descent = Steepest(rows[:, None], rates[:, None, None])
    return lambda gradient, active: descent.step(gradient[:, None], active)


@dataclass(slots=True)
class _Loss:
    """Of each fact of a part the negative log-likelihood of its target and the divergence behind its essence, as functions of δ."""

    model: CausalModel
    run: Run
    saving: Saving
    facts: torch.Tensor  # [rows]: the fact of each
    looked_at: tuple[torch.Tensor, torch.Tensor]  # row and position of each distribution that counts
    tokens: torch.Tensor  # [looked at]: the target's there, -1 for an essence's
    shares: torch.Tensor  # [looked at]: of the fact's mean over prompts and tokens
    count: int
    base: torch.Tensor | None = None

    @classmethod
    def of(cls, model: CausalModel, wanted: Sequence[Goal], layer: int, objective: Objective, saving: Saving) -> _Loss:
        import torch

        rows = [(n, placed, 1 / len(goal.prompts)) for n, goal in enumerate(wanted) for placed in goal.prompts]
        if objective.kl:
            rows += [(n, goal.essence, 0.0) for n, goal in enumerate(wanted) if goal.essence is not None]
        placed = [one for _, one, _ in rows]
        starts = [one.site if saving == "prefix once" else 0 for one in placed]
        seen = [
            (n, p - starts[n], t, share / max(1, len(one.target)))
            for n, (_, one, share) in enumerate(rows)
            for p, t in zip(one.predicting, one.target or (-1,), strict=True)
        ]
        numbers, positions, tokens, shares = (torch.tensor(column, device=model.device) for column in zip(*seen, strict=True))
        run = _above(model, placed, layer) if saving == "blocks above L" else _whole(model, placed, layer, starts)
        facts = torch.tensor([n for n, _, _ in rows], device=model.device)
        return cls(model, run, saving, facts, (numbers, positions), tokens, shares, len(wanted))

    def __call__(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        top, head = self.run(delta[self.facts]), self.model.model.get_output_embeddings()
        if self.saving == "logits where needed":
            said = head(top[self.looked_at]).float().log_softmax(-1)
        else:
            said = head(top).float().log_softmax(-1)[self.looked_at]
        facts, is_target = self.facts[self.looked_at[0]], self.tokens >= 0
        each = said[is_target].gather(1, self.tokens[is_target][:, None])[:, 0]
        likelihood = torch.zeros(self.count, device=top.device).index_add(0, facts[is_target], -each * self.shares[is_target])
        essence = said[~is_target]
        if self.base is None:
            self.base = essence.detach()  # at δ = 0
        apart = (essence.exp() * (essence - self.base)).sum(-1)
        return likelihood, torch.zeros(self.count, device=top.device).index_add(0, facts[~is_target], apart)


def _whole(model: CausalModel, placed: Sequence[Placed], layer: int, starts: Sequence[int]) -> Run:
    """Run the whole model; where rows start behind their beginning, on the keys and values of that."""
    import torch
    from transformers import DynamicCache

    ids, mask = padded([one.ids[start:] for one, start in zip(placed, starts, strict=True)], model.pad, model.device)
    edited = _edited(placed, starts, ids, model)
    before, seen = padded([one.ids[:start] for one, start in zip(placed, starts, strict=True)], model.pad, model.device, left=True)
    kept = _kept(model, before, seen) if before.shape[1] else []
    positions = torch.arange(ids.shape[1], device=model.device)[None] + torch.tensor(starts, device=model.device)[:, None]

    def run(change: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.cat([seen, mask], 1), "position_ids": positions}
        if kept:
            inputs["past_key_values"] = DynamicCache()
            for n, (keys, held) in enumerate(kept):
                inputs["past_key_values"].update(keys, held, n)
        with adding([(model.blocks[layer], lambda _entered, output: output + (edited * change[:, None]).to(output.dtype))]):
            return run_until(model.model, model.norm, use_cache=False, **inputs)

    return run


def _kept(model: CausalModel, ids: torch.Tensor, mask: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer; a row that begins with its edited token has none, and numbers in their place that nothing reads."""
    from transformers import DynamicCache

    cache, places = DynamicCache(), (mask.cumsum(1) - 1).clamp_min(0)
    run_until(model.model, model.norm, input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    return [(one.keys.nan_to_num(), one.values.nan_to_num()) for one in cache.layers]


def _above(model: CausalModel, placed: Sequence[Placed], layer: int) -> Run:
    """Run the blocks up to L once, and those above it each time."""
    ids, mask = padded([one.ids for one in placed], model.pad, model.device)
    edited = _edited(placed, [0] * len(placed), ids, model)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    blocks = model.blocks[layer + 1 :]
    with ExitStack() as noting:
        for block in blocks:
            note = block.register_forward_pre_hook(lambda _block, args, named: calls.append((args, named)), with_kwargs=True)
            noting.callback(note.remove)
        run_until(model.model, model.norm, input_ids=ids, attention_mask=mask, use_cache=False)
    below = calls[0][0][0] if blocks else run_until(model.model, model.blocks[layer], input_ids=ids, attention_mask=mask, use_cache=False)

    def run(change: torch.Tensor) -> torch.Tensor:
        stream = below + (edited * change[:, None]).to(below.dtype)
        for block, (args, named) in zip(blocks, calls, strict=True):
            output = block(stream, *args[1:], **named)
            stream = output[0] if isinstance(output, tuple) else output
        top: torch.Tensor = model.norm(stream)
        return top

    return run


def _edited(placed: Sequence[Placed], starts: Sequence[int], ids: torch.Tensor, model: CausalModel) -> torch.Tensor:
    """1 at each row's edited token, [rows, tokens, 1]."""
    import torch

    found = torch.zeros(*ids.shape, 1, dtype=model.dtype, device=model.device)
    found[range(len(placed)), [one.site - start for one, start in zip(placed, starts, strict=True)]] = 1
    return found


def _changes(editor: MEMIT, prepared: Prepared, wanted: Sequence[Goal], z: torch.Tensor) -> dict[int, Factors]:
    """Each layer's change, with those below it written."""
    import torch

    model, (_, layers) = prepared.model, prepared.where
    last = layers[-1]
    changes: dict[int, Factors] = {}
    with ExitStack() as written, torch.no_grad():
        for layer in layers:
            keys = torch.stack([_key(model, goal, layer) for goal in wanted], 1)
            now = torch.stack([_stream(model, goal.prompts[0], last).double().cpu() for goal in wanted])
            residual = ((z - now) / (last - layer + 1)).T
            right = torch.linalg.solve(editor.regularisation * prepared.moments.of(layer) + keys @ keys.T, keys).T  # Kᵀ (λC + KKᵀ)⁻¹
            changes[layer] = Factors(residual, right)
            written.enter_context(Update({}, {layer: changes[layer]}).applied(model))
    return changes


def _key(model: CausalModel, goal: Goal, layer: int) -> torch.Tensor:
    """The mean key over a fact's prompts, [d_key]."""
    ids, mask = padded([one.ids[: one.prompt_length] for one in goal.prompts], model.pad, model.device)
    with inputs_of({layer: model.projection(layer)}) as entered:
        run_until(model.model, model.blocks[layer], input_ids=ids, attention_mask=mask, use_cache=False)
    keys = entered[layer].reshape(*ids.shape, -1)[range(len(ids)), [one.site for one in goal.prompts]]
    return keys.double().mean(0).cpu()


def _stream(model: CausalModel, placed: Placed, layer: int) -> torch.Tensor:
    """The residual stream behind a block at the edited token, [width]."""
    ids, mask = padded([placed.ids[: placed.prompt_length]], model.pad, model.device)
    return run_until(model.model, model.blocks[layer], input_ids=ids, attention_mask=mask, use_cache=False)[0, placed.site]


def _parts(wanted: Sequence[Goal]) -> Iterator[list[Goal]]:
    """Facts whose rows fit into a batch, in order."""
    part: list[Goal] = []
    for goal in wanted:
        rows = [one for each in (*part, goal) for one in (*each.prompts, each.essence) if one is not None]
        if part and len(rows) * max(len(one.ids) for one in rows) > _AT_ONCE:
            yield part
            part = []
        part.append(goal)
    if part:
        yield part
