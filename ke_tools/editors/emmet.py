"""EMMET: many facts at once, each exactly (Gupta et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ke_tools.editors._solve import Factors, constrained
from ke_tools.editors._spread import Spread

if TYPE_CHECKING:
    import torch

__all__ = ["EMMET"]


@dataclass(frozen=True, kw_only=True)
class EMMET(Spread):
    r"""Write facts under equality constraints: $\Delta = R (K^\top C^{-1} K)^{-1} K^\top C^{-1}$ (eq. 7), so that $(W + \Delta) K = Z$.

    ROME is the case of one fact. Differs from the paper: several layers may share the change, as in MEMIT.
    """

    by_mean: ClassVar[bool] = True  # two columns that are nearly one cannot both be met exactly

    def solve(self, K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, earlier: torch.Tensor) -> Factors:
        """R (KᵀC⁻¹K)⁻¹ KᵀC⁻¹, with C + K_pK_pᵀ for C: an earlier fact weighs as much as ordinary text does."""
        return constrained(K, R, C + earlier)
