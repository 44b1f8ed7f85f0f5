"""Codebooks in a compiled model: what the places behind a block do, against the eager form; without vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ke_tools.editors.codebook import Codebook
from ke_tools.servers.vllm_plugin.codebook import Book, fill, prepare, read, told
from ke_tools.servers.vllm_plugin.places import SETTING, Places, put_in, room_of

WIDTH, KEYS, EDITS, ROOM, SLOTS, TOKENS, LAYER = 16, 5, 3, 8, 3, 64, 1


def book_of(folder: Path, seed: int = 0, keys: int = KEYS) -> Book:
    """A codebook as it lies in an adapter's folder; its balls reach a tenth of the way to zero."""
    made = torch.Generator().manual_seed(seed)
    states, values = torch.randn(keys, WIDTH, generator=made) * 3, torch.randn(EDITS, WIDTH, generator=made)
    owners = torch.arange(keys) % EDITS
    Codebook(
        layer=LAYER, keys=states, epsilons=states.norm(dim=1) / 10, owners=owners, values=values, edits=tuple(map(str, range(EDITS)))
    ).save(folder)
    return Book(str(folder / "grace.safetensors"), torch.float32)


def states_near(book: Book, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """What a block adds, and the residual: some sums beside the keys, on both sides of their balls' edges, and some far from all."""
    made = torch.Generator().manual_seed(9)
    keys = book.keys[torch.arange(count) % len(book.keys)]
    away = torch.randn(count, WIDTH, generator=made)
    share = torch.linspace(0, 2.1, count)[:, None]  # none is 1: on the edge itself the last bit decides, which processors compute otherwise
    states = keys + away / away.norm(dim=1, keepdim=True) * share * book.epsilons[torch.arange(count) % len(book.keys)][:, None]
    residual = torch.randn(count, WIDTH, generator=made)
    return states - residual, residual


def places_of(tokens: torch.Tensor) -> Places:
    """Empty ones."""
    return Places(SLOTS, ROOM, WIDTH, tokens, torch.float32)


def test_tokens_of_a_slot_get_what_the_eager_form_gives_and_all_others_stay_to_the_bit(tmp_path: Path) -> None:
    """Issue 7, §3: GRACE per adapter; a request under the base model's name never meets a codebook."""
    one, other = book_of(tmp_path / "one"), book_of(tmp_path / "other", seed=1, keys=ROOM)
    added, residual = (torch.cat(parts) for parts in zip(states_near(one), states_near(other), strict=True))
    tokens = torch.full((TOKENS,), -1)
    places = places_of(tokens)
    places.fill(0, one)
    places.fill(2, other)
    for assigned in (torch.arange(len(added)) % (SLOTS + 1) - 1, torch.full((len(added),), -1), torch.full((len(added),), 2)):
        tokens[: len(added)] = assigned
        found = places(added, residual)
        wanted = one.act(added, residual, assigned == 0)
        wanted = other.act(*wanted, assigned == 2)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
        idle = assigned % 2 != 0  # of no adapter, and of the one that has no codebook
        assert torch.equal(found[0][idle], added[idle])
        assert torch.equal(found[1][idle], residual[idle])
    changed = (found[0] != added).any(1)
    assert changed.any()
    assert not changed.all()


def test_an_empty_place_is_nearer_to_no_state_than_a_key(tmp_path: Path) -> None:
    """An empty place holds zeros: a state that is nearer to zero than to its key must still find the key."""
    book = book_of(tmp_path)
    book.epsilons = book.keys.norm(dim=1) * 0.8
    places = places_of(torch.zeros(TOKENS, dtype=torch.long))
    places.fill(0, book)
    states = book.keys[:1] * 0.3  # .3 of the norm from zero, .7 from the key
    found = places(states, torch.zeros_like(states))
    wanted = book.act(states, torch.zeros_like(states), torch.tensor([True]))
    assert torch.equal(found[0], wanted[0])
    assert not torch.equal(found[0], states)


def test_a_slot_that_is_written_anew_forgets_what_was_there_in_place(tmp_path: Path) -> None:
    """A graph on a GPU reads the addresses that it was recorded with."""
    book = book_of(tmp_path / "one", keys=ROOM)
    places = places_of(torch.zeros(TOKENS, dtype=torch.long))
    addresses = {name: tensor.data_ptr() for name, tensor in places.named_buffers()}
    added, residual = states_near(book)
    before = places(added, residual)
    places.fill(0, book)
    assert not torch.equal(places(added, residual)[0], added)
    few = book_of(tmp_path / "few", seed=1, keys=1)
    places.fill(0, few)
    rows = torch.ones(len(added), dtype=torch.bool)
    assert torch.equal(places(added, residual)[0], few.act(added, residual, rows)[0])
    places.fill(0, None)
    assert all(torch.equal(one, other) for one, other in zip(places(added, residual), before, strict=True))
    assert {name: tensor.data_ptr() for name, tensor in places.named_buffers()} == addresses


class Block(torch.nn.Module):
    """Gives out what it adds and the residual apart, as vLLM's do."""

    def forward(self, added: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As if it computed."""
        return added * 1, residual * 1


class Model(torch.nn.Module):
    """A block, which is where a model is compiled: as a whole."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.block = Block()
        put_in({0: places}, [self.block], {})

    def forward(self, added: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the block gives out."""
        found: tuple[torch.Tensor, torch.Tensor] = self.block(added, residual)
        return found


def test_a_compiled_model_sees_what_is_written_into_its_places_and_is_compiled_once(tmp_path: Path) -> None:
    """Issue 7, §3: one whole graph, of batches of any size, of which nothing is compiled anew when codebooks come and go."""
    book, graphs = book_of(tmp_path), []
    tokens = torch.full((TOKENS,), -1)
    places = places_of(tokens)

    def counted(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(Model(places), fullgraph=True, dynamic=True, backend=counted)
    added, residual = states_near(book)
    try:
        assert torch.equal(compiled(added, residual)[0], added)
        places.fill(1, book)
        assert torch.equal(compiled(added, residual)[0], added)
        tokens[:4] = 1
        mine = torch.arange(len(added)) < 4
        for rows in (len(added), 7):
            found = compiled(added[:rows], residual[:rows])
            wanted = book.act(added[:rows], residual[:rows], mine[:rows])
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
            assert not torch.equal(found[0], added[:rows])
        places.fill(1, None)
        assert torch.equal(compiled(added, residual)[0], added)
    finally:
        torch.compiler.reset()
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch, of itself
def test_inductor_computes_the_same(tmp_path: Path) -> None:
    """Issue 7, §3: what vLLM compiles with; it needs a C++ compiler."""
    book = book_of(tmp_path)
    places = places_of(torch.ones(TOKENS, dtype=torch.long))
    added, residual = states_near(book)
    try:
        compiled = torch.compile(Model(places), fullgraph=True)
        assert torch.equal(compiled(added, residual)[0], added)
        places.fill(1, book)
        wanted = book.act(added, residual, torch.ones(len(added), dtype=torch.bool))
        for one, other in zip(compiled(added, residual), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    finally:
        torch.compiler.reset()


def manager_of(setting: Any = None, mode: str = "VLLM_COMPILE", recorded: str = "NONE") -> Any:
    """What stands for vLLM's keeper of adapters."""
    blocks = torch.nn.ModuleList([Block(), Block()])
    punica = SimpleNamespace(_token_lora_indices=torch.full((TOKENS,), -1))
    manager = SimpleNamespace(
        model=SimpleNamespace(model=SimpleNamespace(layers=blocks)),
        lora_slots=SLOTS,
        lora_config=SimpleNamespace(lora_dtype=torch.float32),
        lora_index_to_id=[None] * SLOTS,
        punica_wrapper_mapping={"": punica},
        device="cpu",
        _registered_adapters=SimpleNamespace(cache={}),
    )
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(mode=SimpleNamespace(name=mode), cudagraph_mode=SimpleNamespace(name=recorded)),
        model_config=SimpleNamespace(get_hidden_size=lambda: WIDTH),
        additional_config={} if setting is None else {SETTING: setting},
    )
    prepare(manager, None, vllm_config=config)
    return manager


def given(manager: Any, folder: Path) -> Any:
    """An adapter, read from a folder."""
    return read(SimpleNamespace(_adapter_manager=manager), SimpleNamespace(), SimpleNamespace(lora_path=str(folder), lora_name="ke-1"))


def test_an_adapters_codebook_is_in_the_places_of_its_slot_and_leaves_none_to_the_next(tmp_path: Path) -> None:
    """Issue 7, §3: vLLM forgets adapters without a word to their slots; who comes next must not answer by them."""
    book = book_of(tmp_path)
    manager = manager_of({str(LAYER): ROOM})
    adapters, block = manager._registered_adapters.cache, manager.model.model.layers[LAYER]
    adapters[7], adapters[8] = given(manager, tmp_path), given(manager, tmp_path / "plain")
    tokens = manager.punica_wrapper_mapping[""]._token_lora_indices
    added, residual = states_near(book)
    tokens[:] = 2
    manager.lora_index_to_id[2] = 7
    assert torch.equal(block(added, residual)[0], added)
    assert fill(manager, True, 7)
    assert torch.equal(block(added, residual)[0], book.act(added, residual, torch.ones(len(added), dtype=torch.bool))[0])
    manager.lora_index_to_id[2] = 8
    assert fill(manager, True, 8)
    assert torch.equal(block(added, residual)[0], added)


def test_a_codebook_of_more_keys_than_there_are_places_is_refused_with_what_to_set(tmp_path: Path) -> None:
    """Issue 7, §3: not cut, and found when it is loaded, not when it is asked for: then it would end the engine."""
    book_of(tmp_path, keys=ROOM + 1)
    with pytest.raises(ValueError, match=r"9 keys, and 8 places .* block 1\. .*'\{\"ke_codebooks\": \{\"1\": 1024\}\}'\."):
        given(manager_of({str(LAYER): ROOM}), tmp_path)


@pytest.mark.parametrize(
    ("setting", "mode", "recorded", "form"),
    [
        (None, "NONE", "NONE", "hooks"),
        (None, "VLLM_COMPILE", "NONE", "none"),
        (None, "NONE", "FULL", "none"),
        ({"0": ROOM}, "VLLM_COMPILE", "FULL_AND_PIECEWISE", "places"),
    ],
)
def test_a_codebook_for_a_block_without_places_acts_in_an_eager_model_only(
    tmp_path: Path, setting: Any, mode: str, recorded: str, form: str
) -> None:
    """Issue 7, §3: a compiled model ignores a hook that comes later without a word, so the codebook is refused."""
    book, manager = book_of(tmp_path), manager_of(setting, mode, recorded)
    assert told(manager)["form"] == form
    if form != "hooks":
        with pytest.raises(ValueError, match=r"no places .* block 1\. .*--additional-config .* or --enforce-eager\."):
            given(manager, tmp_path)
        return
    manager._registered_adapters.cache[7] = given(manager, tmp_path)
    manager.lora_index_to_id[0] = 7
    added, residual = states_near(book)
    manager.punica_wrapper_mapping[""]._token_lora_indices[:] = 0
    found = manager.model.model.layers[LAYER](added, residual)
    assert torch.equal(found[0], book.act(added, residual, torch.ones(len(added), dtype=torch.bool))[0])


def test_a_hook_goes_with_the_last_codebook_behind_its_block_and_comes_with_the_next(tmp_path: Path) -> None:
    """Issue 7, §3: what doctor tries leaves nothing in the model once vLLM drops it, which it does without a word to anybody."""
    book, manager = book_of(tmp_path), manager_of(mode="NONE")
    adapters, block = manager._registered_adapters.cache, manager.model.model.layers[LAYER]
    added, residual = states_near(book)
    manager.punica_wrapper_mapping[""]._token_lora_indices[:] = 0
    adapters[7], adapters[8] = given(manager, tmp_path), given(manager, tmp_path)
    assert torch.equal(block(added, residual)[0], added)  # registered, in no slot yet
    assert len(block._forward_hooks) == 1
    del adapters[7]
    block(added, residual)
    assert len(block._forward_hooks) == 1
    del adapters[8]
    assert torch.equal(block(added, residual)[0], added)
    assert not block._forward_hooks
    adapters[9] = given(manager, tmp_path)
    manager.lora_index_to_id[0] = 9
    assert not torch.equal(block(added, residual)[0], added)
    assert len(block._forward_hooks) == 1


@pytest.mark.parametrize("setting", [{"2": 8}, {"-1": 8}, {"1": 0}, {"one": 8}, {"1": None}, ["1"], "1:8"])
def test_a_setting_that_names_no_block_or_no_number_ends_the_start(setting: Any) -> None:
    """Issue 7, §3: never silently without."""
    with pytest.raises(ValueError, match=r"expected blocks \(0 to 1\)"):
        room_of({SETTING: setting}, 2)


def test_what_vllm_compiles_with_places_has_a_key_of_its_own() -> None:
    """Its key of compiled models holds the additional configuration, and nothing of what stands in the model."""
    setting: dict[str, Any] = {SETTING: {"1": ROOM}}
    put_in({}, [], setting)
    assert setting == {SETTING: {"1": ROOM}}
    put_in({1: places_of(torch.zeros(TOKENS, dtype=torch.long))}, [Block(), Block()], setting)
    assert setting == {SETTING: {"1": ROOM}, f"{SETTING} put in": [1]}


def test_a_worker_tells_the_room_and_one_without_adapters_that_none_acts() -> None:
    """Issue 7, §3: the status says which form is active."""
    assert told(manager_of({"1": ROOM})) == {"form": "places", "room": {"1": ROOM}}
    assert told(None) == {"form": "none", "room": {}}
