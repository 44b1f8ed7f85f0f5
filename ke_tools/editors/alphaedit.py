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

    Differs from the reference (AlphaEdit at f5248d3): 1. small are the eigenvalues of the rarest ``share`` of the directions, there those
    below an absolute number: a small model uses all of its directions (in the embedded one the least eigenvalue is a quarter of the median,
    and where a few are enormous, their mean is no measure either), so that there would be none; 2. $\alpha$ is a share of the mean squared
    length of the facts' keys, there an absolute number.
    """

    by_mean: ClassVar[bool] = True  # alpha is in lengths of a fact's key
    is_ridged: ClassVar[bool] = False  # the rare directions are what is looked for

    share: float = 0.5  # of the directions of the keys, that may be written into
    ridge: float = 0.02  # alpha, of the keys' mean squared length

    def __post_init__(self) -> None:
        """Check.

        Raises:
            InvalidInput: it says what to give.
        """
        Spread.__post_init__(self)
        if not 0 < self.share <= 1:
            raise InvalidInput(f"share is {self.share}.", "Give a number above 0 and up to 1, e.g. 0.5.")
        if self.ridge <= 0:
            raise InvalidInput(f"ridge is {self.ridge}.", "Give a positive number, e.g. 0.02.")

    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        """R KᵀP (K_pK_pᵀP + KKᵀP + ridge·I)⁻¹."""
        return projected(K, R, null_space(C, self.share), earlier, self.ridge * float(K.pow(2).sum(0).mean()))
