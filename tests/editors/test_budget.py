"""Where memory runs out, less is done at once, and the same comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ke_tools.editors._budget import Budget
from ke_tools.editors._goals import goals
from ke_tools.editors._keys import look
from ke_tools.editors._statistics import collect, samples
from ke_tools.editors._targets import At, Objective, optimise
from ke_tools.errors import ResourceExhausted
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import FACTS

Make = Callable[[str], CausalModel]
BEFORE = ("", "It rains. ")
OUT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    "windows": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
}


@contextmanager
def room_for(model: CausalModel, rows: int, error: BaseException, block: int = 3) -> Iterator[list[int]]:
    """A machine on which a block runs so many rows at most; tells of all that were tried."""
    tried: list[int] = []

    def weigh(_module: object, args: tuple[Any, ...]) -> None:
        tried.append(len(args[0]))
        if len(args[0]) > rows:
            raise error

    handle = model.blocks[block].register_forward_pre_hook(weigh)
    try:
        yield tried
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", OUT)
@pytest.mark.parametrize("at", ["block", "parts"])
def test_values_are_the_same_with_little_memory(tiny: Make, at: At, kind: str) -> None:
    """Issue, bad input: out of memory: the batch is halved and the work goes on."""
    model = tiny("llama")
    wanted = goals(model, FACTS, BEFORE)
    how = Objective(steps=6, reached=29.0, clamp=50)
    whole = optimise(model, wanted, 1, how, at=at)

    with room_for(model, 2, OUT[kind]) as tried:
        found = optimise(model, wanted, 1, how, at=at)

    assert max(tried) > 2 >= tried[-1]
    assert found.steps == whole.steps
    assert torch.allclose(found.z, whole.z, rtol=1e-3, atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_memory_that_runs_out_in_the_middle_of_the_descent_halves_what_is_left(tiny: Make) -> None:
    """With gradients a step takes more than the first look did."""
    model = tiny("llama")
    wanted = goals(model, FACTS, BEFORE)
    how = Objective(steps=4, clamp=50)
    whole = optimise(model, wanted, 1, how)

    def weigh(_module: object, args: tuple[Any, ...]) -> None:
        if torch.is_grad_enabled() and len(args[0]) > 2:
            raise OUT["cuda"]

    handle = model.blocks[3].register_forward_pre_hook(weigh)
    found = optimise(model, wanted, 1, how)
    handle.remove()

    assert torch.allclose(found.z, whole.z, rtol=1e-3, atol=1e-4)


def test_keys_and_statistics_are_the_same_with_little_memory(tiny: Make) -> None:
    """Nothing of a batch that failed is counted."""
    model = tiny("llama")
    wanted, rows = goals(model, FACTS, BEFORE), samples(model, 300)
    keys, moments = look(model, wanted, [1, 2]), collect(model, [1, 2], rows)

    with room_for(model, 3, OUT["cpu"], block=1) as tried:
        few_keys, few_moments = look(model, wanted, [1, 2]), collect(model, [1, 2], rows)

    assert max(tried) > 3
    assert few_moments.count == moments.count
    for layer in (1, 2):
        assert torch.allclose(few_keys.keys[layer], keys.keys[layer])
        assert torch.allclose(few_moments.sums[layer], moments.sums[layer])


def test_where_one_text_alone_is_too_much_it_is_said_what_to_do(tiny: Make) -> None:
    """An error of ours, with a remedy, and no endless halving."""
    model = tiny("llama")
    wanted = goals(model, FACTS, BEFORE)

    with room_for(model, 0, OUT["cuda"]), pytest.raises(ResourceExhausted, match=r"one text of \d+ tokens.*shorter"):
        optimise(model, wanted, 1, Objective(steps=2))


def test_another_error_is_not_taken_for_missing_memory() -> None:
    """A bug would be tried again, row by row."""
    tried: list[list[int]] = []

    def run(part: list[int]) -> None:
        tried.append(part)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        Budget(100).each([1, 2, 3], lambda _row: 10, run)
    assert tried == [[1, 2, 3]]


def test_what_was_learnt_of_the_memory_holds_on() -> None:
    """Not every batch has to fail first."""
    sizes: list[int] = []

    def run(part: list[int]) -> None:
        sizes.append(len(part))
        if len(part) > 4:
            raise OUT["cuda"]

    budget = Budget(160)
    budget.each(list(range(20)), lambda _row: 10, run)

    assert sizes == [16, 8, *[4] * 5]
    assert budget.tokens == 40
