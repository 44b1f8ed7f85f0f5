"""MEMIT: many facts at once, spread over the MLPs of several layers (Meng et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from ke_tools.editors._spread import LeastSquares

__all__ = ["MEMIT"]


@dataclass(frozen=True, kw_only=True)
class MEMIT(LeastSquares):
    r"""Write facts by least squares into the output projections of some layers, the last of which is $L$.

    With keys $K^l$ [d_key, c] at the edited tokens, a column a prompt, and the values $z$ that the residual stream shall have after block
    $L$ (:mod:`ke_tools.editors._targets`), for each layer $l$ in order (eq. 14, 20)

    $$R^l = \frac{Z - H^L}{L - l + 1}, \qquad \Delta^l = R^l {K^l}^\top (\lambda C^l + K_p^l {K_p^l}^\top + K^l {K^l}^\top)^{-1},$$

    where $H^L$ is what the stream holds once the layers below are changed, and $K_p$ the keys of updates made before, the mean over each
    fact's prompts. $P$ columns of one
    fact have the weight $1/P$ each, and the same residual, the mean of theirs, so that Δ has a rank a fact.

    Differs from the reference (memit at 80426fd): 1. earlier keys are kept ($K_p$; as AlphaEdit does), there a later batch forgets them;
    2. each prompt of a fact is a column, there the mean over them is one, in which the bare prompt weighs as much as the others together;
    3. statistics come from ten tokens a dimension of the key, not from 100,000 articles; 4. paraphrases that come with a fact are among
    its prompts.
    """
