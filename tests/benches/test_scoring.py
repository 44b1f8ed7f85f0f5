"""What the benches of the weights read off a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ke_tools.benches._scoring import Forced, forced, greedy, likelihoods, read
from ke_tools.models.causal import CausalModel
from ke_tools.verify import peak
from tests.editors.conftest import FAMILIES, tiny, tokenizer

__all__ = ["tiny", "tokenizer"]

Make = Callable[[str], CausalModel]
ASKED = [("The capital of France is", "Oslo in Norway"), ("It rains in", "Peru"), ("What money do they use in Norway?", "yen")]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_text_read_once_is_as_good_as_one_in_every_prompt(tiny: Make, kind: str) -> None:
    """The row that puts all edits before each question would be hours of reading the same."""
    model, text = tiny(kind), "Peru can be found on the continent of Asia.\n"
    before = read(model, text)
    whole = [(text + prompt, target) for prompt, target in ASKED]
    assert model.tokenizer(whole[0][0])["input_ids"] == [*before.ids, *model.tokenizer(ASKED[0][0])["input_ids"]]

    once, again = forced(model, ASKED, behind=before), forced(model, whole)

    assert [one.likelihood for one in once] == pytest.approx([one.likelihood for one in again], rel=1e-5)
    assert [one.likeliest for one in once] == [one.likeliest for one in again]
    prompts = [prompt for prompt, _ in ASKED]
    assert greedy(model, prompts, 6, behind=before) == greedy(model, [text + prompt for prompt in prompts], 6)
    assert [one.likelihood for one in once] != pytest.approx(likelihoods(model, ASKED), rel=1e-5)


def test_teacher_forcing_says_what_the_model_would_have_chosen(tiny: Make) -> None:
    """EasyEdit's token match: the share of a target's tokens that are the argmax."""
    import torch

    model = tiny("llama")
    (one,) = forced(model, ASKED[:1])
    ids = model.tokenizer(" ".join(ASKED[0]))["input_ids"]
    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, -len(one.target) - 1 : -1].float().log_softmax(-1)

    assert list(one.likeliest) == logits.argmax(-1).tolist()
    assert one.likelihood == pytest.approx(float(logits[range(len(one.target)), list(one.target)].mean()), rel=1e-5)
    assert likelihoods(model, ASKED[:1]) == [one.likelihood]
    assert Forced(-1.0, (1, 2), (1, 3)).matched == 0.5
    assert Forced(-1.0, (1, 2), (1, 3)).unchanged(Forced(-1.0, (1, 2), (1, 3))) == 1


def test_the_memory_mark_is_above_what_is_held() -> None:
    """MiB, whether or not the system can reset the mark."""
    peak.reset()
    before = peak.peak()
    held = bytearray(64 * 2**20)

    assert peak.peak() >= before + 32
    assert held
