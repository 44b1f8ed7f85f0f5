r"""A codebook: states of a model that are replaced when it comes near them (Hartvigsen et al. 2023).

Behind block $L$, a residual vector $h$ whose nearest key $k_i$ lies within $\varepsilon_i$ is replaced by the value of that key's edit:

$$h \leftarrow v_{e(i)}, \quad i = \arg\min_j \|h - k_j\|, \quad \text{if } \|h - k_i\| \le \varepsilon_i.$$

No weight is touched. One edit has one value and several keys. Every position of a pass is looked up, by one matrix product, so that a text
has the same states whether it is read at once or token by token from a cache.

Differs from the reference (GRACE at f674183): 1. several keys an edit, each with an ε of its own that is fixed when it is made, from its
nearest negative; no ball grows or is split; 2. what replaces is the residual stream behind a block, not the output of a projection; 3.
keys, values, ε and edit ids lie in one structure, from which an edit is removed whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from ke_tools.editors import _safetensors
from ke_tools.editors._trace import changing
from ke_tools.editors.update import Efficiency, Reached
from ke_tools.errors import InvalidInput, ModelUnavailable, NotFound, WrongState
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["WEIGHTS", "Codebook", "load_codebook"]

WEIGHTS: Final = "grace.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class Codebook:
    """Keys with the edits that they belong to; may be applied to a model and taken back."""

    layer: int
    keys: torch.Tensor  # [keys, width]
    epsilons: torch.Tensor  # [keys]
    owners: torch.Tensor  # [keys]: a row of the values
    values: torch.Tensor  # [edits, width]
    edits: tuple[str, ...]  # an id of each value
    fingerprint: str = ""
    outcomes: tuple[Reached, ...] = ()
    efficiency: Efficiency = field(default_factory=Efficiency)
    _hooks: WeakKeyDictionary[Any, Any] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def apply(self, model: CausalModel) -> None:
        """Look up every state behind the block from now on.

        Raises:
            WrongState: it is applied already.
            InvalidInput: it does not fit the model, or holds numbers that are none.
        """
        if self in model.edits:
            raise WrongState("this codebook is applied to the model already.", "Revert it first.")
        hook = self.hook(model)
        self._hooks[model.model] = model.blocks[self.layer].register_forward_hook(hook)
        model.edits.append(self)

    def revert(self, model: CausalModel) -> None:
        """Look up no more.

        Raises:
            WrongState: it is not applied.
        """
        if self not in model.edits:
            raise WrongState("this codebook is not applied to the model.", "Apply it first.")
        model.edits.remove(self)
        self._hooks.pop(model.model).remove()

    @contextmanager
    def applied(self, model: CausalModel) -> Iterator[None]:
        """Look up for as long as the block lasts."""
        self.apply(model)
        try:
            yield
        finally:
            self.revert(model)

    def hook(self, model: CausalModel) -> Callable[..., Any]:
        """Make the forward hook that looks up what its block gave out.

        Raises:
            InvalidInput: it does not fit the model, or holds numbers that are none.
        """
        self.check(model)
        look_up = self.look_up(model.device, model.dtype)
        return changing(lambda _entered, output: look_up(output))

    def look_up(self, device: torch.device, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        """Make the function from states [..., width] to states."""
        import torch

        keys, values = self.keys.to(device, torch.float32), self.values.to(device, dtype)
        epsilons, owners = self.epsilons.to(device, torch.float32), self.owners.to(device)
        if not len(keys):
            return lambda states: states
        squares = keys.pow(2).sum(1)

        def looked_up(states: torch.Tensor) -> torch.Tensor:
            h = states.float()
            distances = (h.pow(2).sum(-1, keepdim=True) - 2 * h @ keys.T + squares).clamp_min(0).sqrt()  # ‖h − k_j‖
            nearest, which = distances.min(-1)
            hit = nearest <= epsilons[which]
            return torch.where(hit[..., None], values[owners[which]], states)

        return looked_up

    def without(self, edit: str) -> Codebook:
        """The codebook as it would be had the edit never been made.

        Raises:
            NotFound: it holds no such edit.
        """
        import torch

        if edit not in self.edits:
            raise NotFound(f"the codebook holds no edit {edit!r}.", f"It holds {', '.join(self.edits[:8])}.")
        row = self.edits.index(edit)
        stay = self.owners != row
        owners = self.owners[stay]
        kept = torch.tensor([n for n in range(len(self.edits)) if n != row], dtype=torch.long)
        return replace(
            self,
            keys=self.keys[stay],
            epsilons=self.epsilons[stay],
            owners=torch.where(owners > row, owners - 1, owners),
            values=self.values[kept],
            edits=tuple(name for name in self.edits if name != edit),
            outcomes=tuple(one for n, one in enumerate(self.outcomes) if n != row),
        )

    def plus(self, other: Codebook) -> Codebook:
        """Both; an edit that both have is the other's.

        Raises:
            InvalidInput: they are of two layers or two models.
        """
        import torch

        if (self.layer, self.fingerprint) != (other.layer, other.fingerprint):
            raise InvalidInput("the codebooks are of two layers or two models.", "Plan both for one layer of one model.")
        first = self
        for edit in set(self.edits) & set(other.edits):
            first = first.without(edit)
        return replace(
            other,
            keys=torch.cat([first.keys, other.keys]),
            epsilons=torch.cat([first.epsilons, other.epsilons]),
            owners=torch.cat([first.owners, other.owners + len(first.edits)]),
            values=torch.cat([first.values, other.values]),
            edits=first.edits + other.edits,
            outcomes=first.outcomes + other.outcomes,
        )

    def check(self, model: CausalModel) -> None:
        """Refuse what cannot be applied.

        Raises:
            InvalidInput: another model, another shape, or a number that is none.
        """
        if self.fingerprint and model.fingerprint and self.fingerprint != model.fingerprint:
            raise InvalidInput(f"the codebook was made for the model {self.fingerprint}; this is {model.fingerprint}.", "Plan it again.")
        if self.layer >= len(model.blocks) or {self.keys.shape[1], self.values.shape[1]} != {model.width}:
            raise InvalidInput("the codebook does not fit the model.", "Plan it again for this one.")
        if not all(part.isfinite().all() for part in (self.keys, self.values, self.epsilons)):
            raise InvalidInput("the codebook holds numbers that are none.", "Nothing was applied; plan it again.")

    def save(self, folder: Path) -> None:
        """Write ``grace.safetensors``, the same bytes for the same codebook; :func:`load_codebook` reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        told = {"layer": str(self.layer), "fingerprint": self.fingerprint, "edits": json.dumps(self.edits)}
        tensors = {
            "keys": self.keys.float(),
            "values": self.values.float(),
            "epsilons": self.epsilons.float(),
            "owners": self.owners.long(),
        }
        _safetensors.write(tensors, folder / WEIGHTS, told)


def load_codebook(folder: Path) -> Codebook:
    """Read what :meth:`Codebook.save` wrote.

    Raises:
        ModelUnavailable: missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            told = file.metadata()
            parts = {name: file.get_tensor(name) for name in ("keys", "values", "epsilons", "owners")}
        edits: Sequence[str] = json.loads(told["edits"])
        _refuse_torn(parts, len(edits))
        return Codebook(layer=int(told["layer"]), edits=tuple(edits), fingerprint=told["fingerprint"], **parts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelUnavailable(f"the codebook in {folder} cannot be read: {error}", "Plan it again.") from error


def _refuse_torn(parts: Mapping[str, torch.Tensor], edits: int) -> None:
    fits = len({len(parts[name]) for name in ("keys", "epsilons", "owners")}) == 1 and len(parts["values"]) == edits
    if not fits or (len(parts["owners"]) and int(parts["owners"].max()) >= edits):
        raise ValueError("its parts do not fit together")
