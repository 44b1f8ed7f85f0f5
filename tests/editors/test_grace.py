"""GRACE: what is replaced, what is not, and that an edit can be taken out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.editing import edit
from ke_tools.editors import _plain, grace
from ke_tools.editors._statistics import samples
from ke_tools.editors._targets import Objective
from ke_tools.editors.codebook import Codebook, load_codebook
from ke_tools.editors.grace import GRACE
from ke_tools.errors import InvalidInput, ModelUnavailable, NotFound, WrongState
from ke_tools.facts import squash
from ke_tools.models.causal import CausalModel
from ke_tools.verify.unrelated import frames
from tests.editors.conftest import FACTS, FAMILIES

Make = Callable[[str], CausalModel]
METHOD = GRACE(
    layer=2, contexts=2, keys=2, tokens=300, share=0.02, objective=Objective(steps=60, clamp=50, kl=0)
)  # random weights tell little apart
OTHERS = ["It rains in", "The currency of Kenya is the", "The capital of Norway is"]


def logits(model: CausalModel, text: str) -> torch.Tensor:
    """Behind every token of a text."""
    with torch.no_grad():
        found: torch.Tensor = model.model(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0]
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_codebook_answers_its_prompts_and_leaves_the_rest_bit_for_bit(tiny: Make, kind: str) -> None:
    """Hartvigsen et al. 2023: outside every ball the model is the base model; no weight changes."""
    model = tiny(kind)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    base = [logits(model, text) for text in OTHERS]

    book = edit(model, FACTS, METHOD)
    with book.applied(model):
        said = [model.tokenizer.decode(int(logits(model, fact.prompt)[-1].argmax())).strip() for fact in FACTS]
        other = [logits(model, text) for text in OTHERS]

    assert said == [fact.target for fact in FACTS]
    assert all(torch.equal(one, two) for one, two in zip(base, other, strict=True))
    assert all(torch.equal(weight, before[key]) for key, weight in model.model.state_dict().items())
    assert all(torch.equal(logits(model, text), one) for text, one in zip(OTHERS, base, strict=True))


def test_ordinary_text_is_sampled_once_and_a_damaged_file_of_it_costs_no_more_than_time(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 6, bars: seconds of every promotion; what follows from the model alone is kept, and is the same when it is read."""
    model, sampled = tiny("llama"), 0

    def counting(*args: Any, **how: Any) -> list[list[int]]:
        nonlocal sampled
        sampled += 1
        return samples(*args, **how)

    monkeypatch.setattr(_plain, "samples", counting)
    first = METHOD.prepare(model, cache=tmp_path).elsewhere
    assert torch.equal(METHOD.prepare(model, cache=tmp_path).elsewhere, first)
    (file,) = (tmp_path / "plain").iterdir()
    file.write_bytes(b"damaged")
    assert torch.equal(METHOD.prepare(model, cache=tmp_path).elsewhere, first)
    assert sampled == 2
    replace(METHOD, layer=3).prepare(model, cache=tmp_path)
    assert sampled == 3


def test_values_found_before_make_the_same_codebook(tiny: Make) -> None:
    """A ladder's candidates are planned of values that are found once."""
    model = tiny("llama")
    prepared = METHOD.prepare(model)
    found = METHOD.targets(prepared, FACTS)
    one, two = METHOD.plan(prepared, FACTS), METHOD.plan(prepared, FACTS, found=found)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("keys", "epsilons", "owners", "values"))


def test_a_text_has_the_same_states_read_at_once_or_token_by_token(tiny: Make) -> None:
    """Generation with a key/value cache looks up as one pass does."""
    model = tiny("llama")
    ids = torch.tensor([model.tokenizer(f"{FACTS[0].prompt} {FACTS[0].target} and")["input_ids"]])
    with edit(model, FACTS, METHOD).applied(model), torch.no_grad():
        at_once = model.model(ids).logits[0]
        cache: Any = None
        rows: list[torch.Tensor] = []
        for position in range(ids.shape[1]):
            out = model.model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])

    assert torch.allclose(at_once, torch.stack(rows), atol=1e-6)


def test_texts_that_are_keys_alone_make_no_value_another(tiny: Make) -> None:
    """Keys are cheap where the search for a value is not: the value is that of the prompts of the search, the keys are more."""
    model = tiny("llama")
    few, many = edit(model, FACTS, replace(METHOD, keys=0)), edit(model, FACTS, METHOD)

    assert len(many.keys) > len(few.keys)
    assert torch.equal(many.values, few.values)


def test_no_opening_that_keys_are_made_of_is_a_frame_of_the_verifier() -> None:
    """Issue §1: probe wordings are never fitted on."""
    used = {squash(text) for text in grace._OPENINGS}
    assert not used & {squash(frame.replace("{}", "")) for kind in frames().values() for frame in kind}


def random_book(edits: int, keys: list[int], seed: int) -> Codebook:
    """A codebook of made-up vectors."""
    torch.manual_seed(seed)
    owners = torch.tensor([n for n, count in enumerate(keys) for _ in range(count)])
    return Codebook(
        layer=1,
        keys=torch.randn(len(owners), 8),
        epsilons=torch.rand(len(owners)),
        owners=owners,
        values=torch.randn(edits, 8),
        edits=tuple(f"edit {seed}.{n}" for n in range(edits)),
        fingerprint="sha256:llama",
    )


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_what_is_added_and_removed_leaves_what_was_there(first: list[int], second: list[int], data: st.DataObject) -> None:
    """Issue §6: exact removal of one edit, whatever the order (the reference deletes another edit's key)."""
    one, two = random_book(len(first), first, 1), random_book(len(second), second, 2)
    both = one.plus(two)
    for name in data.draw(st.permutations(two.edits)):
        both = both.without(name)

    assert both.edits == one.edits
    for part in ("keys", "epsilons", "owners", "values"):
        assert torch.equal(getattr(both, part), getattr(one, part))


def test_an_edit_made_again_replaces_itself(tiny: Make) -> None:
    """The same id twice would be two values for one key."""
    book = edit(tiny("llama"), FACTS, METHOD)

    again = book.plus(book)

    assert sorted(again.edits) == sorted(book.edits)
    assert len(again.keys) == len(book.keys)


def test_the_nearest_key_decides_and_only_within_its_own_ball() -> None:
    """Two keys whose balls overlap: the nearer one's value; outside, nothing."""
    book = Codebook(
        layer=0,
        keys=torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
        epsilons=torch.tensor([0.9, 0.3]),
        owners=torch.tensor([0, 1]),
        values=torch.tensor([[7.0, 7.0], [9.0, 9.0]]),
        edits=("a", "b"),
    )

    look_up = book.look_up(torch.device("cpu"), torch.float32)
    found = look_up(torch.tensor([[0.4, 0.0], [0.75, 0.0], [0.6, 0.0], [0.0, 2.0]]))

    assert found.tolist() == [[7, 7], [9, 9], [pytest.approx(0.6), 0], [0, 2]]


def test_saving_and_loading_is_the_identity(tmp_path: Path) -> None:
    """One file, in safetensors."""
    book = random_book(3, [1, 2, 1], 0)
    book.save(tmp_path)

    again = load_codebook(tmp_path)

    assert (again.edits, again.layer, again.fingerprint) == (book.edits, book.layer, book.fingerprint)
    assert all(torch.equal(getattr(again, part), getattr(book, part)) for part in ("keys", "epsilons", "owners", "values"))


@pytest.mark.parametrize("content", [None, b"x"])
def test_a_damaged_codebook_is_told(tmp_path: Path, content: bytes | None) -> None:
    """Failure paths are real."""
    if content:
        (tmp_path / "grace.safetensors").write_bytes(content)

    with pytest.raises(ModelUnavailable, match="codebook"):
        load_codebook(tmp_path)


def test_what_does_not_fit_is_refused(tiny: Make) -> None:
    """Another model, another width, numbers that are none, an unknown edit, twice applied."""
    model = tiny("llama")
    book = edit(model, FACTS, METHOD)
    for wrong in (
        replace(book, fingerprint="sha256:other"),
        replace(book, layer=9),
        replace(book, values=book.values * float("nan")),
        replace(book, keys=book.keys[:, :-1]),
    ):
        with pytest.raises(InvalidInput), wrong.applied(model):
            pass
    with pytest.raises(NotFound):
        book.without("nobody's")
    with book.applied(model), pytest.raises(WrongState):
        book.apply(model)
    with pytest.raises(WrongState):
        book.revert(model)
    with pytest.raises(InvalidInput):
        GRACE(layer=2, share=1.5)
    with pytest.raises(InvalidInput, match="4 layers"):
        edit(model, FACTS, GRACE(layer=9))


def test_a_model_that_computes_no_numbers_is_told(tiny: Make) -> None:
    """Issue, bad input: NaN in z: nothing is planned, and the fact is named."""
    model = tiny("llama")
    prepared = METHOD.prepare(model)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[7] = float("nan")

    with pytest.raises(InvalidInput, match=r"The capital of France is.*none"):
        METHOD.plan(prepared, FACTS)
