r"""The linear algebra that turns keys and residuals into an update of low rank, in float64.

Columns are facts, or their prompts: $K$ is [d_key, u], $R = Z - W K$ (or its share) is [d_out, u]. Each function returns $(A, B)$ with
$\Delta = A B$, $A$ [d_out, u], $B$ [u, d_key].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    import torch

__all__ = ["Factors", "constrained", "least_squares", "null_space", "projected", "rank_one"]

_LEAST = 1e-12  # of the mean diagonal


class Factors(NamedTuple):
    """A low-rank matrix, left @ right."""

    left: torch.Tensor
    right: torch.Tensor


def least_squares(K: torch.Tensor, R: torch.Tensor, prior: torch.Tensor) -> Factors:
    r"""MEMIT (Meng et al. 2023, eq. 14): $\Delta = R K^\top (M + K K^\top)^{-1}$, with $M = \lambda C$ = ``prior``.

    By the push-through identity $K^\top(M + KK^\top)^{-1} = (I + K^\top M^{-1}K)^{-1} K^\top M^{-1}$, so that only $M$ and a u × u matrix
    are factored.
    """
    import torch

    G = _solve_spd(prior, K)  # M⁻¹K
    small = torch.eye(K.shape[1], dtype=K.dtype) + K.T @ G  # I + KᵀM⁻¹K
    return Factors(R, torch.linalg.solve(small, G.T))


def rank_one(direction: torch.Tensor, key: torch.Tensor, residual: torch.Tensor, C: torch.Tensor) -> Factors:
    r"""ROME (Meng et al. 2022, eq. 2): $\Delta = r\,(C^{-1} d)^\top / (k^\top C^{-1} d)$, so that $\Delta k = r$; as derived, $d = k$."""
    u = _solve_spd(C, direction[:, None])[:, 0]  # C⁻¹d
    return Factors(residual[:, None], (u / (key @ u))[None])


def constrained(K: torch.Tensor, R: torch.Tensor, C: torch.Tensor) -> Factors:
    r"""EMMET (Gupta et al. 2024, eq. 7): $\Delta = R (K^\top C^{-1} K)^{-1} K^\top C^{-1}$, so that $(W + \Delta) K = Z$ exactly.

    For a single fact this is ROME's update (Meng et al. 2022, eq. 2).

    Raises:
        InvalidInput: two facts have one key, so that not both can hold.
    """
    import torch

    G = _solve_spd(C, K)  # C⁻¹K
    small = K.T @ G  # KᵀC⁻¹K
    if torch.linalg.matrix_rank(small, hermitian=True) < len(small):
        raise InvalidInput("two of the facts have the same key, so that not both can hold exactly.", "Leave one out, or take MEMIT.")
    return Factors(R, torch.linalg.solve(small, G.T))


def projected(K: torch.Tensor, R: torch.Tensor, P: torch.Tensor, earlier: torch.Tensor, ridge: float) -> Factors:
    r"""AlphaEdit (Fang et al. 2025, eq. 12): $\Delta = R K^\top P (K_p K_p^\top P + K K^\top P + \alpha I)^{-1}$.

    ``earlier`` is $K_p K_p^\top$ of the facts edited before. $P$ is symmetric and idempotent, and so
    $\Delta = R K^\top P\,(P M P + \alpha I)^{-1}$ with $M = K_pK_p^\top + KK^\top$, whose inverse is that of a symmetric positive matrix.
    """
    import torch

    M = P @ (earlier + K @ K.T) @ P
    right = _solve_spd(M + ridge * torch.eye(len(P), dtype=P.dtype), P @ K).T
    return Factors(R, right @ P)


def null_space(C: torch.Tensor, share: float) -> torch.Tensor:
    """The projection on the share of C's eigenvectors whose eigenvalues are the smallest (AlphaEdit, eq. 10: on those below a number)."""
    import torch

    _, vectors = torch.linalg.eigh(C)  # by eigenvalue, the smallest first
    kept = vectors[:, : max(1, round(share * len(C)))]
    projection: torch.Tensor = kept @ kept.T
    return projection


def _solve_spd(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A⁻¹B for symmetric positive A; regularised where rounding makes it singular.

    Raises:
        InvalidInput: A holds a number that is none, which no regularisation mends.
    """
    import torch

    if not A.isfinite().all():
        raise InvalidInput("a matrix of the keys holds numbers that are none.", "Nothing was planned. Load the model in float32.")
    lower, failed = torch.linalg.cholesky_ex(A)
    ridge = (_LEAST * A.diagonal().mean()).clamp_min(torch.finfo(A.dtype).tiny)
    while failed:
        lower, failed = torch.linalg.cholesky_ex(A + ridge * torch.eye(len(A), dtype=A.dtype))
        ridge = ridge * 10
    return torch.cholesky_solve(B, lower)
