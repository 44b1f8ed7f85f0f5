"""The bench of the editors, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools.benches import editors
from ke_tools.config import Settings
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import tiny, tokenizer

__all__ = ["tiny", "tokenizer"]

HOW = {
    "layers": "2-3",
    "site": "last",
    "contexts": "1",
    "tokens": "300",
    "regularisation": "0.001",
    "steps": "30",
    "clamp": "50",
    "kl": "0",
}
Make = Callable[[str], CausalModel]


def measured(settings: Settings, model: CausalModel, **how: Any) -> dict[str, Any]:
    """Run it."""
    return editors.run(settings, model=model, **{"method": "memit", "how": HOW, "numbers": [2], **how})


def test_both_kinds_of_number_stand_side_by_side(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §8: efficacy, paraphrase, neighbour as published, and free generation; perplexity, growth, seconds, memory."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    point = measured(settings, tiny("llama"))["results"]["edits"][2]

    assert {"statement", "paraphrase", "neighbour"} <= point["as published"].keys()
    assert {"before", "after"} == point["as published"]["statement"].keys()
    assert {"statement", "paraphrase", "neighbour", "distracted neighbour"} <= point["free generation"].keys()
    assert point["free generation"]["statement"]["n"] == 2
    assert point["as published"]["statement"]["after"]["value"] >= point["as published"]["statement"]["before"]["value"]
    assert point["perplexity"] > 0
    assert point["growth"].keys() == {"2", "3"}
    assert point["efficiency"]["s an edit"] > 0


@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_the_model_is_taken_back_whatever_the_mode(tiny: Make, settings: Settings, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of edits is measured from the unedited model on."""
    import torch

    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    report = measured(settings, model, mode=mode, batch=1, numbers=[1, 3])

    assert report["results"]["edits"].keys() == {1, 3}
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())
    assert bool(report["bars"]) == (mode == "batch")


@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_growth_is_a_share_of_the_unedited_weight(tiny: Make, settings: Settings, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the edited one, a change a hundred times the weight would be a share of 1."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    model, seen = tiny("llama"), list[float]()
    honest, base = Update.growth, float(model.weight(3).detach().norm())

    def noting(self: Update, model: CausalModel) -> dict[int, float]:
        seen.append(float(model.weight(3).detach().norm()))
        return honest(self, model)

    monkeypatch.setattr(Update, "growth", noting)
    measured(settings, model, mode=mode, batch=1)

    assert seen == [base] * (1 if mode == "batch" else 2)


def test_what_is_to_be_known_of_the_statistics_is_told_once(
    tiny: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue, bad input: regularised, and said so."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)

    (tmp_path / "text").write_text("It rains in Oslo, and in Lima it does not.", "utf-8")

    few = measured(settings, tiny("llama"), how={**HOW, "text": str(tmp_path / "text")}, numbers=[1, 2])
    enough = measured(settings, tiny("llama"), numbers=[1])

    assert len(few["notes"]) == 1
    assert "regularised" in few["notes"][0]
    assert enough["notes"] == []


def test_atlas_edits_are_asked_for_in_probe_wordings_and_worded_in_fitted_ones() -> None:
    """Design §4 no. 4: probe wordings are neither contexts of z nor keys."""
    from ke_tools import atlas

    for case in editors.atlas_cases(20, 0):
        fact = editors._fact(case)
        relation = atlas.worded(case.prompt, case.subject)
        assert relation is not None
        assert fact.paraphrases
        masked = {atlas.mask(text, [case.subject]) for text in (fact.prompt, *fact.paraphrases)}
        assert not any(map(atlas.holds_probe_wording, masked))
        assert case.target != case.truth


def test_more_edits_than_there_are_and_an_unknown_field_are_refused(tiny: Make, settings: Settings) -> None:
    """What was found, what was expected."""
    with pytest.raises(InvalidInput, match="no field 'lamda'"):
        measured(settings, tiny("llama"), how={"layers": "1", "lamda": "1"})
    with pytest.raises(InvalidInput, match="no method"):
        measured(settings, tiny("llama"), method="memmit")
    with pytest.raises(InvalidInput, match="cannot be"):
        measured(settings, tiny("llama"), how={"layers": "x"})
