"""What every editor owes, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools.editing import edit
from ke_tools.editors._targets import Objective
from ke_tools.editors.alphaedit import AlphaEdit
from ke_tools.editors.emmet import EMMET
from ke_tools.editors.finetune import FT, LoRA
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.pmet import PMET
from ke_tools.editors.rome import ROME
from ke_tools.editors.update import Outcome, Update, load_update
from ke_tools.errors import InvalidInput, ModelUnavailable, WrongState
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS, FAMILIES, tiny, tokenizer

__all__ = ["tiny", "tokenizer"]

QUICK: dict[str, Any] = {"site": "last", "contexts": 2, "tokens": 400, "objective": Objective(steps=30, clamp=50, kl=0)}
EDITORS: dict[str, Any] = {
    "memit": MEMIT(layers=(2, 3), regularisation=1e-3, **QUICK),
    "emmet": EMMET(layers=(3,), **QUICK),
    "alphaedit": AlphaEdit(layers=(3,), share=0.75, ridge=1e-6, **QUICK),
    "pmet": PMET(layers=(2, 3), regularisation=1e-3, **QUICK),
    "rome": ROME(layer=3, **QUICK),
    "rome, reference": ROME(layer=3, key="reference", **QUICK),
    "ft-m": FT(layers=(3,), steps=60, learning_rate=2e-2),
    "ft-l": FT(layers=(3,), objective="last", steps=3, bound=1e-2),
    "lora": LoRA(layers=(2, 3), rank=4, steps=80, learning_rate=5e-2),
}
EASY = replace(QUICK["objective"], reached=0.5)
ONE_BY_ONE = {"rome", "rome, reference"}  # each fact overrides what it must
BOUNDED = {"ft-l"}  # reaches nothing within its bound
HALVED = {"pmet"}  # what attention would have to do is left out
Make = Callable[[str], CausalModel]


def answers(model: CausalModel, texts: list[str]) -> torch.Tensor:
    """Logits behind each text, [texts, vocabulary]."""
    with torch.no_grad():
        return torch.stack([model.model(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0, -1] for text in texts])


PROMPTS = [fact.prompt for fact in FACTS] + ["It rains in", "The currency of Kenya is the"]


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_an_update_is_planned_applied_and_taken_back(tiny: Make, kind: str, name: str) -> None:
    """Issue §1: the model is unchanged bit for bit after planning, and after apply and revert."""
    model = tiny(kind)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}

    update = edit(model, FACTS, EDITORS[name])
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    with update.applied(model):
        changed = [key for key, weight in model.model.state_dict().items() if not torch.equal(weight, before[key])]
        assert changed == [f"{model.projection_name(layer)}.weight" for layer in update.changes]
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_and_hooked_forms_agree(tiny: Make, kind: str, name: str) -> None:
    """Issue, bars: ≤ 1e-9 in float64 on a tiny model."""
    model = tiny(kind)
    update = edit(model, FACTS, EDITORS[name])

    with update.hooked(model):
        hooked = answers(model, PROMPTS)
    with update.applied(model):
        merged = answers(model, PROMPTS)

    assert (hooked - merged).abs().max() <= 1e-9 * max(1, float(merged.abs().max()))
    assert (merged - answers(model, PROMPTS)).abs().max() > 0.1


@pytest.mark.parametrize("name", sorted(EDITORS.keys() - BOUNDED - HALVED))
def test_the_facts_hold(tiny: Make, name: str) -> None:
    """Reliability: greedy, the target follows each fact's prompt."""
    model, facts = tiny("llama"), FACTS[:1] if name in ONE_BY_ONE else FACTS
    update = edit(model, facts, EDITORS[name])

    with update.applied(model):
        said = [model.tokenizer.decode(int(row.argmax())).strip() for row in answers(model, [fact.prompt for fact in facts])]

    assert said == [fact.target for fact in facts]
    assert {one.outcome for one in update.outcomes} == {Outcome.REACHED}
    assert all(seconds >= 0 for seconds in update.efficiency.seconds.values())


def test_a_bound_holds_for_every_entry_and_what_is_missed_is_told(tiny: Make) -> None:
    """FT+L of the ROME paper; outcomes are values with advice."""
    update = edit(tiny("llama"), FACTS, EDITORS["ft-l"])

    (change,) = update.changes.values()
    assert (change.left @ change.right).abs().max() <= 1e-2 + 1e-9
    assert {one.outcome for one in update.outcomes} == {Outcome.MISSED}
    assert "raise steps" in Outcome.MISSED.value


@pytest.mark.parametrize("name", EDITORS)
def test_saving_and_loading_is_the_identity(tiny: Make, name: str, tmp_path: Path) -> None:
    """Design §3: nothing is pickled; factors are kept in float32."""
    model = tiny("llama")
    update = edit(model, FACTS, EDITORS[name])
    update.save(tmp_path)

    again = load_update(tmp_path)

    assert (again.fingerprint, again.outcomes, again.efficiency) == (update.fingerprint, update.outcomes, update.efficiency)
    assert again.notes == update.notes
    for layer, change in update.changes.items():
        assert torch.equal(again.changes[layer].left, change.left.float())
        assert torch.equal(again.changes[layer].right, change.right.float())
        assert (layer in again.keys) == (layer in update.keys)
        assert layer not in update.keys or torch.equal(again.keys[layer], update.keys[layer].float())


@pytest.mark.parametrize("name", sorted(EDITORS.keys() - BOUNDED - HALVED))
def test_a_fact_that_is_believed_already_changes_nothing(tiny: Make, name: str) -> None:
    """Issue, bad input: the target equals the present answer."""
    model, editor = tiny("llama"), EDITORS[name]
    editor = replace(editor, contexts=1) if hasattr(editor, "contexts") else editor
    edit(model, FACTS[1:2], editor).apply(model)

    again = edit(model, FACTS[1:2], replace(editor, reached=0.5) if hasattr(editor, "reached") else replace(editor, objective=EASY))

    assert {one.outcome for one in again.outcomes} == {Outcome.KNOWN}
    assert max(again.growth(model).values()) < 1e-4


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_edited_in_numbers_that_hold(tiny: Make, name: str, dtype: torch.dtype) -> None:
    """Issue, bad input: z in float32, the solve in float64, the update into the half weight without overflow."""
    model = tiny("llama")
    model.model.to(dtype)
    before = answers(model, PROMPTS)

    update = edit(model, FACTS, EDITORS[name])

    assert {part.dtype for change in update.changes.values() for part in change} == {torch.float64}
    with update.applied(model):
        merged = answers(model, PROMPTS)
        assert {weight.dtype for weight in model.model.parameters()} == {dtype}
    with update.hooked(model):
        hooked = answers(model, PROMPTS)
    moved = (merged - before).norm()
    assert merged.isfinite().all()
    assert (hooked - merged).norm() < (0.1 if dtype == torch.float16 else 0.5) * moved, "more than rounding"
    assert torch.equal(answers(model, PROMPTS), before)


@pytest.mark.parametrize("name", EDITORS)
def test_a_model_that_computes_no_numbers_is_told_and_left_as_it_was(tiny: Make, name: str) -> None:
    """Issue, bad input: NaN anywhere: nothing is planned; a loss that is none must not pass for one that is low."""
    model, editor = tiny("llama"), EDITORS[name]
    prepared = editor.prepare(model)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[7] = float("nan")
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}

    with pytest.raises(InvalidInput, match=r"The capital of France is.*none"):
        editor.plan(prepared, FACTS)

    assert all(
        torch.equal(weight, before[key]) or key.endswith(("embed_tokens.weight", "lm_head.weight"))
        for key, weight in model.model.state_dict().items()
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.fixture
def update(tiny: Make) -> Update:
    """One update of the tiny Llama."""
    planned: Update = edit(tiny("llama"), FACTS, EDITORS["memit"])
    return planned


def test_an_update_is_applied_once_and_reverted_once(tiny: Make, update: Update) -> None:
    """Twice would be another model; undoing nothing is an error of the caller."""
    model = tiny("llama")
    with pytest.raises(WrongState):
        update.revert(model)
    update.apply(model)
    with pytest.raises(WrongState):
        update.apply(model)
    update.revert(model)


@pytest.mark.parametrize("damage", ["shape", "nan", "fingerprint", "layer"])
def test_what_cannot_be_applied_changes_nothing(tiny: Make, update: Update, damage: str) -> None:
    """Issue, bad input: NaN anywhere: nothing is applied; another model: refused."""
    model = tiny("llama")
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    last = max(update.changes)
    left, right = update.changes[last]
    wrong = {
        "shape": replace(update, changes={**update.changes, last: type(update.changes[last])(left[:-1], right)}),
        "nan": replace(update, changes={**update.changes, last: type(update.changes[last])(left * float("nan"), right)}),
        "fingerprint": replace(update, fingerprint="sha256:other"),
        "layer": replace(update, changes={9: update.changes[last]}),
    }[damage]

    for use in (wrong.applied, wrong.hooked):
        with pytest.raises(InvalidInput), use(model):
            pass
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())


def test_a_weight_that_would_overflow_stops_the_whole_update(tiny: Make, update: Update) -> None:
    """Issue, bad input: half weights end at 65504; the layers before the one that overflows stay as they are too."""
    model = tiny("llama")
    model.model.to(torch.float16)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    last = max(update.changes)
    left, right = update.changes[last]
    large = replace(update, changes={**update.changes, last: type(update.changes[last])(left * 1e9, right)})

    with pytest.raises(InvalidInput, match=f"layer {last} are larger than torch.float16 can hold"):
        large.apply(model)

    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    update.apply(model)


def test_a_truncated_update_says_what_it_lost(update: Update) -> None:
    """Issue §7: rank above a limit: SVD with the loss stated."""
    whole, nothing = update.truncated(update.rank)
    less, lost = update.truncated(1)

    assert nothing == 0
    assert whole.rank == update.rank == len(FACTS)
    assert less.rank == 1
    for layer, change in update.changes.items():
        exact = change.left @ change.right
        off = float((exact - less.changes[layer].left @ less.changes[layer].right).norm() / exact.norm())
        assert off <= lost + 1e-9
    assert 0 < lost < 1


def test_growth_is_the_changes_share_of_the_weight(tiny: Make, update: Update) -> None:
    """The gate watches it."""
    model = tiny("llama")

    for layer, share in update.growth(model).items():
        change = update.changes[layer]
        wanted = (change.left @ change.right).norm() / model.weight(layer).detach().norm()
        assert share == pytest.approx(float(wanted))


@pytest.mark.parametrize("content", [None, b"no tensors"])
def test_a_damaged_file_is_told_with_a_remedy(update: Update, tmp_path: Path, content: bytes | None) -> None:
    """Failure paths are real."""
    update.save(tmp_path)
    if content is None:
        (tmp_path / "update.safetensors").unlink()
    else:
        (tmp_path / "update.safetensors").write_bytes(content)

    with pytest.raises(ModelUnavailable, match="update"):
        load_update(tmp_path)


def test_updates_are_taken_back_in_the_order_that_leaves_the_model_as_it_was(tiny: Make) -> None:
    """Issue, bars: revert is bit-exact; out of order it would put back what a later update had changed."""
    model = tiny("llama")
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    first, second = (edit(model, [fact], EDITORS["memit"]) for fact in FACTS[:2])
    first.apply(model)
    second.apply(model)

    with pytest.raises(WrongState, match="after this one"):
        first.revert(model)
    second.revert(model)
    first.revert(model)

    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert model.edits == []


def test_what_is_measured_of_an_edited_model_is_not_kept_as_the_models_own(tiny: Make, tmp_path: Path) -> None:
    """The cache is named by the fingerprint of the unedited weights."""
    model = tiny("llama")
    update = edit(model, FACTS[:1], EDITORS["memit"])

    with update.applied(model):
        edit(model, FACTS[1:], EDITORS["memit"], cache=tmp_path)

    assert not list(tmp_path.rglob("*.safetensors"))


def test_no_facts_and_facts_that_contradict_one_another_are_refused(tiny: Make) -> None:
    """Issue, bad input."""
    model = tiny("llama")
    other = Fact(subject="France", prompt="The capital of France is", target="Rome")

    with pytest.raises(InvalidInput, match="no facts"):
        edit(model, [], EDITORS["memit"])
    with pytest.raises(InvalidInput, match=r"Oslo.*Rome"):
        edit(model, [*FACTS, other], EDITORS["memit"])


@pytest.mark.parametrize(
    "wrong", [{"layers": ()}, {"layers": (3, 2)}, {"layers": (2,), "contexts": 0}, {"layers": (2,), "regularisation": 0}]
)
def test_a_method_refuses_what_makes_no_sense_and_says_what_does(wrong: dict[str, Any]) -> None:
    """Style §4 no. 2: invariants are checked where the fields are."""
    with pytest.raises(InvalidInput, match="Give"):
        MEMIT(**wrong)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"ridge": 0.0}])
def test_alphaedit_refuses_a_share_of_directions_that_is_none(wrong: dict[str, Any]) -> None:
    """Style §4 no. 2: invariants are checked where the fields are."""
    with pytest.raises(InvalidInput, match="Give a"):
        AlphaEdit(**wrong)


def test_a_layer_that_the_model_has_not_is_named(tiny: Make) -> None:
    """Not an IndexError."""
    for method in (MEMIT(layers=(7,)), ROME(layer=7)):
        with pytest.raises(InvalidInput, match="4 layers"):
            edit(tiny("llama"), FACTS, method)
