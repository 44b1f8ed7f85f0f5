r"""Target values z: what the residual stream should hold at an edited token, for all facts of a batch at once.

For fact $i$ with contexts $x_j$ (Meng et al. 2023, eq. 16, with the KL term and the decay of the reference implementation)

$$\delta_i = \arg\min_\delta \frac{1}{P} \sum_{j=1}^{P} -\log p_{h_i^L \mathrel{+}= \delta}(o_i \mid x_j \oplus p_i)
  + \lambda_{\mathrm{KL}}\, D_{\mathrm{KL}}\bigl(p_{h_i^L \mathrel{+}= \delta}(\cdot \mid e_i) \,\|\, p(\cdot \mid e_i)\bigr)
  + \lambda_{\mathrm{wd}} \frac{\|\delta\|}{\|h_i^L\|^2}$$

subject to $\|\delta\| \le c\,\|h_i^L\|$, with $h_i^L$ the residual stream after block $L$ at the edited token, $e_i$ the *essence* prompt
"{subject} is a", and the log-probability of a target taken as the mean over its tokens; $z_i = h_i^L + \delta_i$.

The facts are independent of one another, so that all are optimised in one tensor $\delta$ (facts × width), each with its own steps:
the sum of the losses has for each row the gradient that it would have alone. Rows of tokens run in padded batches under a token budget.
Only blocks above $L$ run in the loop; what lies before the edited token is the same at every step, so its keys and values are computed
once; the vocabulary is projected only where the loss needs it; a fact that has reached its target leaves the batch.

With ``at="parts"`` there are two δ a fact, one added to the output $a^L$ of block $L$'s attention and one to that of its MLP, $m^L$. They
are optimised together, each with a decay, a clamp and a step in lengths of its own part (Li et al. 2024; :mod:`ke_tools.editors.pmet`),
and $z_i = m_i^L + \delta_i^m$; the loop then begins with block $L$, whose input no δ reaches. The likelihood that is told is that of
$\delta_i^m$ alone.

Steps are a share of $\|h_i^L\|$ long and go along $-G\,m$, with $m$ the gradient under momentum and $G$ the inverse of a metric: that in
which a δ is as long as what it changes in ordinary text (:mod:`ke_tools.editors._fisher`), or none.

Differs from the reference: 1. all facts at once; 2. steepest descent, where the reference takes Adam, whose first step moves every
coordinate alike: that needs twice the steps on the embedded model, and a δ longer by a third, which costs locality
(benchmarks/LOG.md); 3. a fact stops by the likelihood of its target, not by the whole loss; 4. the last of the facts' contexts
need not be the model's own text: paraphrases count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.editors._budget import Budget
from ke_tools.editors._locate import Placed, padded
from ke_tools.editors._trace import adding, inputs_of, run_until
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["At", "Goal", "Objective", "Steepest", "Targets", "optimise", "sites"]

At = Literal["block", "parts"]  # the residual stream behind block L, or the outputs of its attention and its MLP
_MOMENTUM: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The hyper-parameters of the loss and of its descent."""

    steps: int = 25
    learning_rate: float = 0.1  # length of a step, in lengths of h
    kl: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0  # longest δ, in lengths of h
    reached: float = 0.05  # nats a target token, from which on a fact is done
    batch_tokens: int = 4096  # of a padded batch


@dataclass(frozen=True, slots=True)
class Goal:
    """A fact's rows: prompts that shall be continued by the target, and the one whose continuation shall stay."""

    prompts: tuple[Placed, ...]
    essence: Placed | None


@dataclass(frozen=True, slots=True)
class Targets:
    """What was found, in the order of the goals."""

    z: torch.Tensor  # [facts, width], in float32; with parts, of the MLP's output
    h: torch.Tensor  # what stood there before, of each fact's first prompt
    nll: torch.Tensor  # [facts], nats a target token at z
    steps: tuple[int, ...]  # that each fact took

    def only(self, rows: Sequence[int]) -> Targets:
        """Those of some facts."""
        chosen = list(rows)
        return Targets(self.z[chosen], self.h[chosen], self.nll[chosen], tuple(self.steps[n] for n in chosen))

    def plus(self, *others: Targets) -> Targets:
        """These and others."""
        import torch

        every = (self, *others)
        z, h, nll = (torch.cat([getattr(one, name) for one in every]) for name in ("z", "h", "nll"))
        return Targets(z, h, nll, tuple(step for one in every for step in one.steps))


@dataclass(slots=True)
class _Row:
    fact: int
    placed: Placed
    is_essence: bool

    @property
    def behind(self) -> int:
        """Tokens from the edited one on; rows with as many go well together."""
        return len(self.placed.ids) - self.placed.site


def sites(model: CausalModel, layer: int, at: At) -> tuple[nn.Module, ...]:
    """The modules of block L to whose outputs δ are added; z is found at the last of them."""
    return (model.blocks[layer],) if at == "block" else (model.attention_out(layer), model.projection(layer))


def optimise(
    model: CausalModel,
    goals: Sequence[Goal],
    layer: int,
    objective: Objective,
    *,
    at: At = "block",
    inverse: torch.Tensor | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Targets:
    """Find z for every goal at the output of a block, or of its MLP.

    Args:
        model: stays as it is.
        goals: what each fact wants.
        layer: the block L.
        objective: hyper-parameters.
        at: what δ are added to.
        inverse: G, [width, width]; steepest descent in the usual metric unless given. With parts, both δ move the stream, and in the
            metric of the stream behind the block; of what the attention's changes by way of the MLP, that says nothing.
        tell: hears after each batch of each step (facts that are done, facts).
    """
    import torch

    rows = [_Row(n, placed, is_essence=False) for n, goal in enumerate(goals) for placed in goal.prompts]
    if objective.kl:
        rows += [_Row(n, goal.essence, is_essence=True) for n, goal in enumerate(goals) if goal.essence is not None]
    rows.sort(key=lambda row: (row.behind, row.placed.site))
    budget, told = Budget(objective.batch_tokens), tell or _nobody

    def batches() -> list[_Batch]:
        made: list[_Batch] = []

        def take(part: list[_Row]) -> None:
            made.append(_Batch.of(model, part, layer, at))
            told(0, len(goals))

        budget.each(rows, lambda row: len(row.placed.ids), take)
        return made

    first = batches()
    h = torch.zeros(len(goals), len(sites(model, layer, at)), model.width, dtype=torch.float32, device=model.device)
    firsts = {id(goal.prompts[0]): n for n, goal in enumerate(goals)}
    for batch in first:
        for number, row in enumerate(batch.rows):
            if not row.is_essence and id(row.placed) in firsts:
                h[row.fact] = batch.held[number].float()
    weights = torch.tensor([1 / len(goal.prompts) for goal in goals], device=model.device)
    delta, nll, steps = _descend(model, first, h, weights, objective, budget, inverse, told)
    if at == "parts":  # what the attention would have to do, nobody will
        delta = torch.cat([torch.zeros_like(delta[:, :1]), delta[:, 1:]], 1)
        _, nll = _loss(model, batches(), delta, weights, objective.kl, budget, with_gradient=False)
    return Targets((h + delta)[:, -1], h[:, -1], nll, steps)


def _nobody(_done: int, _all: int) -> None:
    """Who hears where nobody asked to."""


def _descend(
    model: CausalModel,
    batches: list[_Batch],
    h: torch.Tensor,
    weights: torch.Tensor,
    objective: Objective,
    budget: Budget,
    inverse: torch.Tensor | None,
    tell: Callable[[int, int], None],
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """δ [facts, sites, width], the likelihoods at it, and the steps that each fact took."""
    import torch

    delta = torch.zeros_like(h)  # [facts, sites, width]
    length = h.norm(dim=-1, keepdim=True)
    descent = Steepest(delta, objective.learning_rate * length, inverse)
    active = torch.ones(len(h), dtype=torch.bool, device=h.device)
    nll, taken = torch.zeros(len(h), device=h.device), torch.zeros(len(h), dtype=torch.long)
    for step in range(objective.steps + 1):
        is_last = step == objective.steps
        for batch in batches:
            batch.keep(active)
        batches[:] = [batch for batch in batches if batch.rows]
        say = partial(tell, int((~active).sum()), len(active))
        gradient, fresh = _loss(model, batches, delta, weights, objective.kl, budget, with_gradient=not is_last, say=say)
        nll = torch.where(active, fresh, nll)
        active = active & (nll >= objective.reached)
        tell(int((~active).sum()), len(active))
        if is_last or not active.any():
            break
        taken += active.cpu()
        gradient = gradient + objective.weight_decay * _direction(delta) / length.pow(2).clamp_min(1e-12)
        descent.step(gradient, active)
        delta *= (objective.clamp * length / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    return delta, nll, tuple(taken.tolist())


def _loss(
    model: CausalModel,
    batches: list[_Batch],
    delta: torch.Tensor,
    weights: torch.Tensor,
    kl: float,
    budget: Budget,
    *,
    with_gradient: bool,
    say: Callable[[], None] = lambda: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the sum of the losses at δ, and each fact's likelihood; batches that memory does not hold are halved for good."""
    import torch

    gradient, nll = torch.zeros_like(delta), torch.zeros(len(delta), device=delta.device)

    def run(batch: _Batch) -> None:
        nonlocal gradient, nll
        found = delta.clone().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            likelihood, drift = batch.losses(model, found)
            loss = (likelihood * weights[batch.facts]).sum() + kl * drift.sum()
        if with_gradient:
            gradient = gradient + torch.autograd.grad(loss, found)[0]
        nll = nll.index_add(0, batch.facts, likelihood.detach() * weights[batch.facts])

    waiting, batches[:] = batches[::-1], []
    while waiting:
        batch = waiting.pop()
        longest = max(len(row.placed.ids) for row in batch.rows)
        is_too_big = len(batch.rows) > 1 and longest * len(batch.rows) > budget.tokens
        if not is_too_big and budget.holds(partial(run, batch), len(batch.rows), longest):
            batches.append(batch)
            say()
        else:
            waiting += batch.halves()
    return gradient, nll


def _direction(delta: torch.Tensor) -> torch.Tensor:
    """The gradient of ‖δ‖, 0 at 0."""
    unit: torch.Tensor = delta / delta.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit


class Steepest:
    """Steepest descent with momentum on rows that come to rest one by one: every step of a row is as long as its rate says."""

    def __init__(self, rows: torch.Tensor, rates: torch.Tensor, inverse: torch.Tensor | None = None) -> None:
        """Change ``rows`` [facts, sites, width] in place; ``rates`` [facts, sites, 1] are lengths, ``inverse`` [width, width] is G."""
        import torch

        self._rows, self._rates, self._mean = rows, rates, torch.zeros_like(rows)
        self._inverse = None if inverse is None else inverse.to(rows)

    def step(self, gradient: torch.Tensor, active: torch.Tensor) -> None:
        """Move the active rows [facts]; the others stay."""
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * gradient
        moving = active[:, None, None]
        along = self._mean if self._inverse is None else self._mean @ self._inverse  # G m, as rows; G is symmetric
        self._rows -= (self._rates * _direction(along)).where(moving, self._rates.new_zeros(()))


@dataclass(slots=True)
class _Batch:
    """Rows from their edited token on, with what the blocks that the loop runs need to know of what lies before it."""

    layer: int
    at: At
    rows: list[_Row]
    held: torch.Tensor  # [rows, sites, width]: what the sites put out at the edited token
    residual: torch.Tensor  # [rows, tokens, width]: the stream in front of the blocks that the loop runs, from the edited token on
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # how the model called each of them
    cache: Any  # keys and values of what lies before; None where nothing does
    base: torch.Tensor | None = None  # log-probabilities of the essence rows before any change, [essence rows, vocabulary]
    facts: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._index()

    def _index(self) -> None:
        import torch

        self.facts = torch.tensor([row.fact for row in self.rows], dtype=torch.long, device=self.residual.device)

    @classmethod
    def of(cls, model: CausalModel, rows: list[_Row], layer: int, at: At = "block") -> _Batch:
        """Compute all that no step changes."""
        import torch

        with torch.no_grad():
            cache, before = _before(model, rows)
            behind = [row.placed.ids[row.placed.site :] for row in rows]
            ids, mask = padded(behind, model.pad, model.device)
            first = torch.tensor([row.placed.site for row in rows], device=model.device)
            run = _above(model, layer, at)
            calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
            handles = [
                block.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args[1:], kwargs)), with_kwargs=True)
                for block in run
            ]
            held: list[torch.Tensor] = []

            def note(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
                held.append(output.reshape(*ids.shape, -1)[:, 0])
                return output

            kept = _kept([(layer.keys, layer.values) for layer in cache.layers]) if cache is not None else None
            try:
                with adding([(site, note) for site in sites(model, layer, at)]), inputs_of({"stream": [*run, model.norm][0]}) as entered:
                    run_until(
                        model.model,
                        model.norm,
                        input_ids=ids,
                        attention_mask=torch.cat([before, mask], 1),
                        position_ids=torch.arange(ids.shape[1], device=model.device)[None] + first[:, None],
                        use_cache=False,
                        **({"past_key_values": kept} if kept is not None else {}),
                    )
            finally:
                for handle in handles:
                    handle.remove()
            batch = cls(layer, at, rows, torch.stack(held, 1), entered["stream"], calls, kept)
            batch.base = batch._essence(model, batch._top(model, batch.residual)).log_softmax(-1)
        return batch

    def keep(self, active: torch.Tensor) -> None:
        """Drop the rows of facts that are done."""
        left = active.tolist()
        self.choose([number for number, row in enumerate(self.rows) if left[row.fact]])

    def halves(self) -> tuple[_Batch, _Batch]:
        """Two batches, of half of the rows each."""
        middle = len(self.rows) // 2
        first, second = copy(self), copy(self)
        first.choose(range(middle))
        second.choose(range(middle, len(self.rows)))
        return first, second

    def choose(self, stay: Sequence[int]) -> None:
        """Drop the other rows."""
        import torch

        if len(stay) == len(self.rows):
            return
        n, chosen = len(self.rows), torch.tensor(list(stay), dtype=torch.long, device=self.residual.device)
        if self.base is not None:
            essence = [number for number, row in enumerate(self.rows) if row.is_essence]
            left = set(stay)
            self.base = self.base[
                torch.tensor([k for k, number in enumerate(essence) if number in left], dtype=torch.long, device=self.base.device)
            ]
        self.rows = [self.rows[number] for number in stay]
        self.held, self.residual = self.held[chosen], self.residual[chosen]
        new = _kept([(layer.keys[chosen], layer.values[chosen]) for layer in self.cache.layers]) if self.cache is not None else None
        self.calls = [
            (
                tuple(_chosen(value, chosen, n, self.cache, new) for value in args),
                {k: _chosen(v, chosen, n, self.cache, new) for k, v in kw.items()},
            )
            for args, kw in self.calls
        ]
        self.cache = new
        self._index()

    def losses(self, model: CausalModel, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row the negative log-likelihood of its target's tokens, their mean, and the essence's divergence; both [rows]."""
        import torch

        top = self._moved(model, delta)
        likelihood = torch.zeros(len(self.rows), device=top.device, dtype=torch.float32)
        where = [
            (n, p - row.placed.site, t, len(row.placed.target))
            for n, row in enumerate(self.rows)
            if not row.is_essence
            for p, t in zip(row.placed.predicting, row.placed.target, strict=True)
        ]
        if where:
            numbers, positions, tokens, lengths = (torch.tensor(column, device=top.device) for column in zip(*where, strict=True))
            logits = model.model.get_output_embeddings()(top[numbers, positions]).float()
            each = torch.nn.functional.cross_entropy(logits, tokens, reduction="none") / lengths
            likelihood = likelihood.index_add(0, numbers, each)
        drift = torch.zeros(len(self.rows), device=top.device, dtype=torch.float32)
        essence = [n for n, row in enumerate(self.rows) if row.is_essence]
        if essence and self.base is not None:
            now = self._essence(model, top).log_softmax(-1)
            each = (now.exp() * (now - self.base)).sum(-1)  # D(p now ‖ p before)
            drift = drift.index_add(0, torch.tensor(essence, device=top.device), each)
        return likelihood, drift

    def _moved(self, model: CausalModel, delta: torch.Tensor) -> torch.Tensor:
        """What the last norm puts out with δ [facts, sites, width] added at the edited tokens."""
        if self.at == "block":
            return self._top(model, _plus(self.residual, delta[self.facts, 0]))

        def adds(change: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
            return lambda _entered, output: _plus(output.reshape(self.residual.shape), change).reshape(output.shape)

        with adding([(site, adds(delta[self.facts, n])) for n, site in enumerate(sites(model, self.layer, self.at))]):
            return self._top(model, self.residual)

    def _essence(self, model: CausalModel, top: torch.Tensor) -> torch.Tensor:
        """Logits behind the essence rows, [essence rows, vocabulary]."""
        import torch

        where = [(n, row.placed.prompt_length - 1 - row.placed.site) for n, row in enumerate(self.rows) if row.is_essence]
        numbers = torch.tensor([n for n, _ in where], dtype=torch.long, device=top.device)
        positions = torch.tensor([p for _, p in where], dtype=torch.long, device=top.device)
        logits: torch.Tensor = model.model.get_output_embeddings()(top[numbers, positions]).float()
        return logits

    def _top(self, model: CausalModel, stream: torch.Tensor) -> torch.Tensor:
        """Run the blocks from there on and the last norm."""
        for block, (args, kwargs) in zip(_above(model, self.layer, self.at), self.calls, strict=True):
            stream = _stream(block(stream, *args, **kwargs))
        top: torch.Tensor = model.norm(stream)
        return top


def _above(model: CausalModel, layer: int, at: At) -> Sequence[nn.Module]:
    """The blocks that δ changes the output of: those above L, and with parts L itself."""
    return model.blocks[layer + (at == "block") :]


def _plus(states: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """States [rows, tokens, width] with a change [rows, width] at each row's first token, the edited one."""
    import torch

    return torch.cat([states[:, :1] + change[:, None].to(states.dtype), states[:, 1:]], 1)


def _kept(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    """Keys and values of what lies before the edited tokens, as a cache that does not grow."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Layer(DynamicLayer):  # type: ignore[misc]
        def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2)

    cache = DynamicCache()
    cache.layers = []
    for keys, values in layers:
        layer = Layer()
        layer.lazy_initialization(keys, values)
        # A row whose edited token is its first has nothing before it: all its columns are masked, and may hold anything but NaN.
        layer.keys, layer.values = keys.nan_to_num(), values.nan_to_num()
        cache.layers.append(layer)
    return cache


def _before(model: CausalModel, rows: Sequence[_Row]) -> tuple[Any, torch.Tensor]:
    """Keys and values of the tokens before the edited ones, and their mask [rows, longest]; no cache where no row has any."""
    import torch
    from transformers import DynamicCache

    before = [row.placed.ids[: row.placed.site] for row in rows]
    ids, mask = padded(before, model.pad, model.device, left=True)
    if not ids.shape[1]:
        return None, mask
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache()
    run_until(model.model, model.norm, input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    if torch.is_grad_enabled():
        raise AssertionError("the prefix is computed without gradients")
    return cache, mask


def _stream(output: Any) -> torch.Tensor:
    stream: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return stream


def _chosen(value: Any, rows: torch.Tensor, n: int, old: Any, new: Any) -> Any:
    """Some rows of a batch's argument: of tensors over its rows, in tuples too; the cache's own."""
    import torch

    if old is not None and value is old:
        return new
    if isinstance(value, torch.Tensor) and value.dim() > 1 and n > 1 and value.shape[0] == n:
        return value[rows]
    if isinstance(value, tuple):
        return tuple(_chosen(one, rows, n, old, new) for one in value)
    return value
