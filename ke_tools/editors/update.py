"""What an editor planned: for each layer a matrix of low rank that is added to the MLP's output projection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from ke_tools.editors._solve import Factors
from ke_tools.editors._trace import adding, changing
from ke_tools.errors import InvalidInput, ModelUnavailable, WrongState
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["Efficiency", "Outcome", "Reached", "Update", "load_update"]

WEIGHTS: Final = "update.safetensors"


class Outcome(Enum):
    """How it went for a fact; the value says what to try."""

    REACHED = "the target's likelihood was reached."
    MISSED = "the target was not reached; raise steps or clamp, or give paraphrases that word it more plainly."
    KNOWN = "the model gives the target already; nothing had to be changed."


@dataclass(frozen=True, slots=True)
class Reached:
    """A fact's outcome, and how unlikely its target still is (nats a token) at the values that were planned."""

    prompt: str
    outcome: Outcome
    nll: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Seconds by stage."""

    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Update:
    """A plan; the model it was made for is as it was.

    ``changes`` maps a layer to factors ``left`` [d_out, u] and ``right`` [u, d_key]: Δ = left @ right.
    """

    method: Mapping[str, Any]
    changes: Mapping[int, Factors]
    outcomes: tuple[Reached, ...] = ()
    fingerprint: str = ""  # of the model's weights
    efficiency: Efficiency = Efficiency()
    keys: Mapping[int, torch.Tensor] = field(default_factory=dict)  # layer → [facts, d_key]: what later updates shall leave alone
    notes: tuple[str, ...] = ()  # what one should know of how it was made
    _before: WeakKeyDictionary[Any, dict[int, torch.Tensor]] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    @property
    def rank(self) -> int:
        """The highest rank of a layer's change."""
        return max((change.right.shape[0] for change in self.changes.values()), default=0)

    def apply(self, model: CausalModel) -> None:
        """Add the changes to the weights.

        Raises:
            WrongState: it is applied already.
            InvalidInput: it was made for a model of another shape, holds a number that is none, or makes a weight larger than its type
                can hold; nothing is changed then.
        """
        import torch

        if self in model.edits:
            raise WrongState("this update is applied to the model already.", "Revert it first.")
        self.check(model)
        before: dict[int, torch.Tensor] = {}
        after: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for layer, (left, right) in self.changes.items():
                weight = model.weight(layer)
                delta = (left.double() @ right.double()).to(weight.device)
                before[layer] = weight.data
                after[layer] = (weight.double() + (delta.T if model.is_transposed(layer) else delta)).to(weight.dtype)
                if not after[layer].isfinite().all():
                    raise InvalidInput(
                        f"with the update, weights of layer {layer} are larger than {weight.dtype} can hold.",
                        "Nothing was applied. Load the model in float32 or bfloat16.",
                    )
            for layer, changed in after.items():  # in its place, not into it: an engine may serve the same tensor
                model.weight(layer).data = changed
        self._before[model.model] = before
        model.edits.append(self)

    def revert(self, model: CausalModel) -> None:
        """Put the weights back, bit for bit.

        Raises:
            WrongState: it is not applied, or another one was applied after it.
        """
        if self not in model.edits:
            raise WrongState("this update is not applied to the model.", "Apply it first.")
        if any(isinstance(later, Update) for later in model.edits[model.edits.index(self) + 1 :]):
            raise WrongState("another update was applied to the model after this one.", "Revert that one first.")
        model.edits.remove(self)
        before = self._before.pop(model.model)
        for layer, weight in before.items():
            model.weight(layer).data = weight

    @contextmanager
    def applied(self, model: CausalModel) -> Iterator[None]:
        """Add the changes to the weights for as long as the block lasts."""
        self.apply(model)
        try:
            yield
        finally:
            self.revert(model)

    @contextmanager
    def hooked(self, model: CausalModel) -> Iterator[None]:
        """Add to each projection's output what the change makes of its input; no weight is touched."""
        self.check(model)
        with adding([(model.projection(layer), _through(change, model)) for layer, change in self.changes.items()]):
            yield

    def hooks(self, model: CausalModel) -> dict[int, Callable[..., Any]]:
        """Make, by layer, the forward hook that :meth:`hooked` has behind its projection.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        self.check(model)
        return {layer: changing(_through(change, model)) for layer, change in self.changes.items()}

    def check(self, model: CausalModel) -> None:
        """Refuse what cannot be applied.

        Raises:
            InvalidInput: another model, another shape, or a number that is none.
        """
        if self.fingerprint and model.fingerprint and self.fingerprint != model.fingerprint:
            raise InvalidInput(
                f"the update was made for the model {self.fingerprint}; this is {model.fingerprint}.", "Plan it again for this one."
            )
        for layer, (left, right) in self.changes.items():
            if layer >= len(model.blocks) or (left.shape[0], right.shape[1]) != (model.width, model.key_width(layer)):
                raise InvalidInput(f"the update's change of layer {layer} does not fit the model.", "Plan it again for this one.")
            if not (left.isfinite().all() and right.isfinite().all()):
                raise InvalidInput(
                    f"the update's change of layer {layer} holds numbers that are none.", "Nothing was applied; plan it again."
                )

    def growth(self, model: CausalModel) -> dict[int, float]:
        """By layer, the change's Frobenius norm as a share of the weight's."""
        return {layer: _norm(change) / float(model.weight(layer).detach().double().norm()) for layer, change in self.changes.items()}

    def save(self, folder: Path) -> None:
        """Write it; :func:`load_update` reads it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{layer}.{name}": getattr(change, name) for layer, change in self.changes.items() for name in Factors._fields}
        tensors |= {f"{layer}.keys": keys for layer, keys in self.keys.items()}
        tensors = {name: part.float().contiguous() for name, part in tensors.items()}
        card = {
            "method": dict(self.method),
            "fingerprint": self.fingerprint,
            "outcomes": [{**asdict(one), "outcome": one.outcome.name} for one in self.outcomes],
            "efficiency": asdict(self.efficiency),
            "notes": list(self.notes),
        }
        part = folder / f"{WEIGHTS}.tmp"
        save_file(tensors, part, {"card": json.dumps(card)})  # one file, replaced in one step: numbers and card cannot be of two updates
        part.replace(folder / WEIGHTS)

    def truncated(self, rank: int) -> tuple[Update, float]:
        """The best approximation of every change by a rank, and the greatest share of a change's norm that it loses."""
        import torch

        changes, worst = {}, 0.0
        for layer, (left, right) in self.changes.items():
            if right.shape[0] <= rank:
                changes[layer] = Factors(left, right)
                continue
            q, r = torch.linalg.qr(left.double())
            u, s, v = torch.linalg.svd(r @ right.double(), full_matrices=False)
            worst = max(worst, float(s[rank:].norm() / s.norm()))
            root = s[:rank].sqrt()
            changes[layer] = Factors(q @ u[:, :rank] * root, root[:, None] * v[:rank])
        return Update(self.method, changes, self.outcomes, self.fingerprint, self.efficiency, self.keys, self.notes), worst


def load_update(folder: Path) -> Update:
    """Read what :meth:`Update.save` wrote.

    Raises:
        ModelUnavailable: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
        layers = sorted({int(name.partition(".")[0]) for name in tensors})
        changes = {layer: Factors(tensors[f"{layer}.left"], tensors[f"{layer}.right"]) for layer in layers}
        outcomes = tuple(Reached(**{**one, "outcome": Outcome[one["outcome"]]}) for one in card["outcomes"])
        keys = {layer: tensors[f"{layer}.keys"] for layer in layers if f"{layer}.keys" in tensors}
        efficiency = Efficiency(**card["efficiency"])
        return Update(card["method"], changes, outcomes, card["fingerprint"], efficiency, keys, tuple(card.get("notes", ())))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the update in {folder} cannot be read: {error}", "Plan it again.") from error


def _through(change: Factors, model: CausalModel) -> Any:
    import torch

    dtype = torch.promote_types(model.dtype, torch.float32)  # a factor may hold numbers too small for a half
    left, right = (part.to(model.device, dtype) for part in change)

    def added(entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return (output + entered.to(dtype) @ right.T @ left.T).to(output.dtype)

    return added


def _norm(change: Factors) -> float:
    """‖left right‖ without making the product."""
    left, right = (part.double() for part in change)
    return float(((left.T @ left) * (right @ right.T)).sum().clamp_min(0).sqrt())
