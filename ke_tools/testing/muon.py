"""Muon for the hidden matrices of a small model: momentum, made orthogonal by Newton-Schulz steps.

After Jordan et al., *Muon: an optimizer for hidden layers in neural networks* (2024). This one takes matrices of one shape
together; the Newton-Schulz steps are in bfloat16, as in the original.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

STEPS = 5
A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic that drives singular values to about one


class Muon:
    """Steps ``matrices`` by their gradients; the caller sets ``rate`` and clears the gradients."""

    def __init__(self, matrices: Sequence[torch.nn.Parameter], *, rate: float, momentum: float = 0.95, decay: float = 0.0) -> None:
        self.rate, self.momentum, self.decay = rate, momentum, decay
        by_shape: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in by_shape.items()]

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group, velocity in self._groups:
            gradient = torch.stack([matrix.grad for matrix in group if matrix.grad is not None])
            velocity.lerp_(gradient, 1 - self.momentum)
            direction = orthogonal(torch.lerp(gradient, velocity, self.momentum))
            size = self.rate * max(1.0, direction.shape[1] / direction.shape[2]) ** 0.5
            for matrix, change in zip(group, direction, strict=True):
                matrix.mul_(1 - self.rate * self.decay).sub_(change, alpha=size)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest matrices, roughly, whose singular values are all about one; shape (count, rows, columns)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = (matrices.mT if tall else matrices).to(torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if tall else x).to(matrices.dtype)
