"""An update as an adapter: PEFT itself gives the same logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ke_tools.editing import edit
from ke_tools.editors import peft_folder
from ke_tools.editors._targets import Objective
from ke_tools.editors.memit import MEMIT
from ke_tools.errors import InvalidInput, ModelUnavailable
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS, FAMILIES

METHOD = MEMIT(layers=(2, 3), site="last", contexts=1, tokens=300, regularisation=1e-3, objective=Objective(steps=10, clamp=50, kl=0))
TEXTS = [fact.prompt for fact in FACTS]
Make = Callable[[str], CausalModel]


def logits(model: object, tokenizer: object) -> torch.Tensor:
    """Behind each text."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1] for text in TEXTS])  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("kind", FAMILIES)
def test_peft_and_the_applied_update_agree(tiny: Make, kind: str, tmp_path: Path) -> None:
    """Issue, bars: ≤ 1e-5 in float32; scaling 1."""
    from peft import PeftModel

    model = tiny(kind)
    update = edit(model, FACTS, METHOD)
    peft_folder.write(update, model, tmp_path)
    model.model.float()
    with update.applied(model):
        wanted = logits(model.model, model.tokenizer)

    adapted = PeftModel.from_pretrained(model.model, str(tmp_path))

    assert (logits(adapted, model.tokenizer) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_an_adapter_is_read_back(tiny: Make, tmp_path: Path) -> None:
    """Export and import are the identity, in float32."""
    model = tiny("llama")
    update = edit(model, FACTS, METHOD)
    peft_folder.write(update, model, tmp_path)

    again = peft_folder.read(tmp_path, model)

    assert again.fingerprint == update.fingerprint
    for layer, change in update.changes.items():
        assert torch.equal(again.changes[layer].left, change.left.float())
        assert torch.equal(again.changes[layer].right, change.right.float())


def test_an_adapter_for_another_model_or_of_another_part_is_refused(tiny: Make, tmp_path: Path) -> None:
    """Issue §7: import checks shapes, finiteness, base fingerprint."""
    model, other = tiny("llama"), tiny("gpt2")
    peft_folder.write(edit(model, FACTS, METHOD), model, tmp_path)

    with pytest.raises(InvalidInput):
        peft_folder.read(tmp_path, other)
    model.fingerprint = "sha256:other"
    with pytest.raises(InvalidInput, match="made for the model"):
        peft_folder.read(tmp_path, model)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_told(tiny: Make, tmp_path: Path, name: str) -> None:
    """Failure paths are real."""
    model = tiny("llama")
    peft_folder.write(edit(model, FACTS, METHOD), model, tmp_path)
    (tmp_path / name).write_bytes(b"{")

    with pytest.raises(ModelUnavailable, match="cannot be read"):
        peft_folder.read(tmp_path, model)
