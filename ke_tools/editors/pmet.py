"""PMET: as MEMIT, with the change that attention would make found beside the MLP's and left out (Li et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ke_tools.editors._spread import LeastSquares
from ke_tools.editors._targets import At

__all__ = ["PMET"]


@dataclass(frozen=True, kw_only=True)
class PMET(LeastSquares):
    r"""Write facts by least squares, towards values of the last layer's MLP rather than of the residual stream.

    Li et al. 2024, "PMET: Precise Model Editing in a Transformer". At the edited token, $h^L = h^{L-1} + a^L + m^L$, of which the MLP gives
    $m^L$ only. MEMIT's δ is of the sum, and so makes the MLP write what attention should have. Here

    $$(\delta^a, \delta^m) = \arg\min\ \text{MEMIT's loss with}\ a^L \mathrel{+}= \delta^a,\ m^L \mathrel{+}= \delta^m, \qquad
      \|\delta^a\| \le c\,\|a^L\|,\ \|\delta^m\| \le c\,\|m^L\|,$$

    (:mod:`ke_tools.editors._targets`, ``at="parts"``); $\delta^a$ is thrown away, and an outcome says what $\delta^m$ alone reaches. For
    each layer $l$ in order

    $$R^l = \frac{m^L + \delta^m - M^L}{\sqrt{L - l + 1}}, \qquad
      \Delta^l = R^l {K^l}^\top (\lambda C^l + K_p^l {K_p^l}^\top + K^l {K^l}^\top)^{-1},$$

    where $M^L$ is what the MLP of layer $L$ puts out once the layers below are changed. So layer $L$ is given all that its MLP lacks; what
    the layers below are given in the same direction reaches $M^L$ through the stream alone, if at all. In families whose attention and
    MLP read the same stream (GPT-J, GPT-NeoX, Phi) the two δ move the stream alike, and differ by their lengths only.

    Differs from the reference (PMET at c9a39ff): 1. as MEMIT's file says of prompts, keys, C and earlier keys; 2. a fact stops by the
    likelihood of its target; there, the weight of the likelihood falls to a tenth when the target is the likeliest, and the fact stops
    once the divergence is small too; 3. steps of steepest descent, each in lengths of its part; 4. layers are counted to $L$, there among
    those that are changed, which differs where one between is left out; 5. that the attention's output projection may be changed too is
    left out; 6. loss and λ are MEMIT's: with the reference's for GPT-J (``kl`` 1, ``weight_decay`` .5, λ 6000) the embedded model says
    half as many statements, and keeps more of its neighbours (benchmarks/LOG.md).
    """

    at: ClassVar[At] = "parts"
    sharing: ClassVar[float] = 0.5

    damping: float | Literal["none"] = "none"  # of two δ, the metric is right of the MLP's only
