"""AlphaEdit: changes that lie in the null space of what the model knows (Fang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ke_tools.editors._solve import Factors, null_space, projected
from ke_tools.editors._spread import Spread
from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    import torch

__all__ = ["AlphaEdit"]


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(Spread):
    r"""Write facts by least squares among the changes that leave ordinary keys where they are.

    With $P$ the projection on the eigenvectors of $C$ whose eigenvalue is small (eq. 10) and $K_p$ the keys of earlier updates, for each
    layer (eq. 12)

    $$\Delta = R K^\top P\,(K_p K_p^\top P + K K^\top P + \alpha I)^{-1}.$$

    Differs from the reference (AlphaEdit at f5248d3): 1. an eigenvalue is small by its share of their mean, there by an absolute number;
    2. $\alpha$ is a share of the mean squared length of the facts' keys, there an absolute number.
    """

    by_mean: ClassVar[bool] = True  # alpha is in lengths of a fact's key
    is_ridged: ClassVar[bool] = False  # the rare directions are what is looked for

    threshold: float = 0.02  # of the mean eigenvalue
    ridge: float = 0.02  # alpha, of the keys' mean squared length

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        Spread.__post_init__(self)
        if self.threshold <= 0 or self.ridge <= 0:
            raise InvalidInput(f"threshold is {self.threshold}, ridge {self.ridge}.", "Give positive numbers, e.g. 0.02.")

    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        """R KᵀP (K_pK_pᵀP + KKᵀP + ridge·I)⁻¹.

        Raises:
            InvalidInput: C leaves no room: no eigenvalue is small.
        """
        P = null_space(C, self.threshold)
        if not float(P.diagonal().sum()):
            raise InvalidInput(f"no direction of the keys is as rare as {self.threshold} of the mean.", "Raise threshold.")
        return projected(K, R, P, earlier, self.ridge * float(K.pow(2).sum(0).mean()))
