"""The factors of LoRA adapters: several changes of one matrix side by side, and the best change of a lower rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Factors = tuple["torch.Tensor", "torch.Tensor"]  # A [rank, in], B [out, rank]; B A is what is added


def joined(pairs: Sequence[Factors]) -> Factors:
    """Factors whose product is the sum of the products: B A = B₁A₁ + B₂A₂."""
    import torch

    return torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)


def lowered(pair: Factors, rank: int) -> tuple[Factors, float]:
    """The best factors of that rank (0: any) for B A, and what they leave out of its norm; no product of full size is made."""
    import torch

    a, b = pair
    if not rank or a.shape[0] <= rank:
        return pair, 0.0
    q_b, r_b = torch.linalg.qr(b.double())  # [out, n], [n, n]
    q_a, r_a = torch.linalg.qr(a.double().T)  # [in, n], [n, n]
    u, s, v = torch.linalg.svd(r_b @ r_a.T)  # B A = q_b (u s v) q_aᵀ
    kept_b, kept_a = (q_b @ u[:, :rank]) * s[:rank], v[:rank] @ q_a.T
    loss = float((s[rank:].square().sum() / s.square().sum()).sqrt())
    return (kept_a.float(), kept_b.float()), loss
