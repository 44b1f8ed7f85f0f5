"""How surprised a model is by plain text; issue 6 §1 (other tasks) and §2 (at most +2 %)."""

from __future__ import annotations

import pytest

from ke_tools.models.causal import CausalModel
from ke_tools.testing import thimble_path
from ke_tools.verify.perplexity import perplexity, plain_perplexity


@pytest.fixture(scope="module")
def thimble() -> CausalModel:
    """The tiny trained model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return CausalModel(AutoModelForCausalLM.from_pretrained(thimble_path()).float(), AutoTokenizer.from_pretrained(thimble_path()))


def test_perplexity_is_that_of_each_row_alone(thimble: CausalModel) -> None:
    """Rows are padded to be read together, which must not count."""
    import torch

    rows = [[5, 9, 14, 3], [7, 2], list(range(20, 40))]
    total = count = 0.0
    for row in rows:
        with torch.inference_mode():
            logits = thimble.model(torch.tensor([row])).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:]), reduction="sum"))
        count += len(row) - 1
    assert perplexity(thimble, rows) == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-4)


def test_damage_to_the_weights_shows_in_plain_text(thimble: CausalModel) -> None:
    """And the same weights give the same number, so that the ratio of an undone edit is exactly 1."""
    import torch

    before = plain_perplexity(thimble)
    assert plain_perplexity(thimble) == before
    weight = thimble.weight(1)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 3 * kept.std())
        damaged = plain_perplexity(thimble)
        weight.copy_(kept)
    assert damaged > before
    assert plain_perplexity(thimble) == before
