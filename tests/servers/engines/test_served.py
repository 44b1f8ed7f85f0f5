"""Adapters as servers of vLLM get them: sums, paddings and lower ranks."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ke_tools.editors.codebook import load_codebook
from ke_tools.errors import ModelUnavailable, ReadOnly, Unsupported
from ke_tools.servers.engines._served import NAME, by_module, is_whole, self_test, serve
from ke_tools.servers.engines.vllm import VLLM

CONFIG = {"hidden_size": 6, "intermediate_size": 10}
DOWN, ATTENTION = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"


def adapter(folder: Path, factors: dict[str, tuple[torch.Tensor, torch.Tensor]], **config: Any) -> Path:
    """A PEFT folder."""
    folder.mkdir(parents=True)
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = max(a.shape[0] for a, _ in factors.values())
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, **config}
    (folder / "adapter_config.json").write_text(json.dumps(told), "utf-8")
    return folder


def pair(rank: int, inner: int = 10, outer: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random factors."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inner, generator=made), torch.randn(outer, rank, generator=made)


def added(folder: Path, module: str) -> torch.Tensor:
    """What a served folder adds to a module."""
    tensors = load_file(folder / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert a.shape[0] == b.shape[1] == config["r"] == config["lora_alpha"]
    return b @ a


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 32))
def test_what_acts_together_is_the_sum_of_what_each_adds(
    tmp_path_factory: pytest.TempPathFactory, one: int, other: int, alpha: int
) -> None:
    """Issue 7, §4: one adapter that holds both, zero-padded to one rank; each part's own scaling counts."""
    folder = tmp_path_factory.mktemp("served")
    first = adapter(folder / "first", {DOWN: pair(one)})
    second = adapter(folder / "second", {DOWN: pair(other, seed=1), ATTENTION: pair(other, 6, 6, seed=2)}, lora_alpha=alpha)
    made = serve(folder / "root", [first, second], config=CONFIG)
    (a, b), (c, d) = pair(one), pair(other, seed=1)
    torch.testing.assert_close(added(made.folder, DOWN), b @ a + (d @ c) * (alpha / other))
    e, f = pair(other, 6, 6, seed=2)
    torch.testing.assert_close(added(made.folder, ATTENTION), (f @ e) * (alpha / other))
    assert made.rank == max(one + other, other)


def test_an_adapters_kinds_of_module_can_be_served_apart(tmp_path: Path) -> None:
    """Issue 7, §4: modules that the server does not target are ignored silently, so each kind is asked about alone."""
    second = "model.layers.1.self_attn.q_proj"
    part = adapter(tmp_path / "part", {DOWN: pair(3), ATTENTION: pair(3, 6, 6), second: pair(3, 6, 6, seed=1)}, lora_alpha=6)
    made = by_module(tmp_path / "root", part, most_rank=0)
    assert list(made) == ["down_proj", "q_proj"]
    assert {name.split(".lora")[0] for name in load_file(made["q_proj"].folder / "adapter_model.safetensors")} == {
        f"base_model.model.{module}" for module in (ATTENTION, second)
    }
    alone = adapter(tmp_path / "alone", {DOWN: pair(3)}, lora_alpha=6)
    assert made["down_proj"].name == serve(tmp_path / "other", [alone], config=CONFIG).name
    assert {one.rank for one in by_module(tmp_path / "root", part, most_rank=2).values()} == {2}


def test_a_name_follows_from_the_content(tmp_path: Path) -> None:
    """VLLM's prefix cache knows adapters by name and path, so neither may ever mean something else."""
    first, second = adapter(tmp_path / "a", {DOWN: pair(2)}), adapter(tmp_path / "b", {DOWN: pair(2, seed=1)})
    one, again, other = (serve(tmp_path / "root", [part], config=CONFIG) for part in (first, first, second))
    assert one == again
    assert one.name != other.name
    assert NAME.fullmatch(one.name)
    assert one.folder.name == one.name


def test_a_folder_that_was_damaged_is_written_anew(tmp_path: Path) -> None:
    """A torn file must not be served."""
    part = adapter(tmp_path / "a", {DOWN: pair(2)})
    made = serve(tmp_path / "root", [part], config=CONFIG)
    whole = (made.folder / "adapter_model.safetensors").read_bytes()
    (made.folder / "adapter_model.safetensors").write_bytes(whole[:20])
    assert serve(tmp_path / "root", [part], config=CONFIG) == made
    assert (made.folder / "adapter_model.safetensors").read_bytes() == whole
    assert [path.name for path in (tmp_path / "root").iterdir() if path.name == made.name] == [made.name]


def test_a_folder_that_cannot_be_read_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails below a file is damage as any other."""
    part = adapter(tmp_path / "a", {DOWN: pair(2)})
    made, read, failed = serve(tmp_path / "root", [part], config=CONFIG), Path.read_bytes, list[Path]()

    def failing(path: Path) -> bytes:
        if path.parent == made.folder and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    before = made.folder.stat().st_ino
    monkeypatch.setattr(Path, "read_bytes", failing)
    assert serve(tmp_path / "root", [part], config=CONFIG) == made
    assert failed
    assert made.folder.stat().st_ino != before


@pytest.mark.parametrize("is_reader", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_what_was_damaged_is_written_again_from_what_it_was_made_of_unless_that_is_another(
    tmp_path: Path, *, is_reader: bool, changed: bool
) -> None:
    """Issue 7, bars: adapter directory damaged. A reader that was trained meanwhile leaves what is whole alone, and nothing beside it."""
    part, root, key = tmp_path / "part", tmp_path / "root", "reader" if is_reader else "mine"
    adapter(part, {DOWN: pair(2)})
    known = [serve(root, [part], config=CONFIG, owner="o")]
    known += by_module(root, part, most_rank=known[0].rank, owner="o").values() if is_reader else []
    engine: Any = SimpleNamespace(_made={key: ([part], 0)}, _readers=[part], _root=root, _config=CONFIG, _owner="o")
    if changed:
        shutil.rmtree(part)
        adapter(part, {DOWN: pair(2, seed=1)})
    VLLM._write_again(engine, key, known)
    assert {folder.name for folder in root.iterdir()} == {one.name for one in known}
    (known[-1].folder / "adapter_model.safetensors").write_bytes(b"torn")
    assert not is_whole(known[-1], "o")
    if changed:
        with pytest.raises(ModelUnavailable, match="another by now"):
            VLLM._write_again(engine, key, known)
    else:
        VLLM._write_again(engine, key, known)
        assert all(is_whole(one, "o") for one in known)


def test_the_codebook_of_the_self_test_is_near_every_state(tmp_path: Path) -> None:
    """Issue 7, §3: a known effect; the plugin replaces what is within a key's epsilon."""
    made = self_test(tmp_path / "root", 3, config=CONFIG)
    book = load_codebook(made.folder)
    states = 1000 * torch.randn(50, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(0))
    assert ((states - book.keys).norm(dim=1) <= book.epsilons).all()
    assert (book.layer, book.values.any().item()) == (3, False)
    assert not added(made.folder, "model.layers.0.mlp.down_proj").any()
    with pytest.raises(Unsupported, match="widths"):
        self_test(tmp_path / "root", 3, config={"text_config": CONFIG})


def test_a_codebook_alone_gets_an_adapter_that_adds_nothing(tmp_path: Path) -> None:
    """Issue 7, §3: it rides in an adapter's folder, and vLLM wants an adapter."""
    part = tmp_path / "book"
    part.mkdir()
    (part / "grace.safetensors").write_bytes(b"as it is")
    made = serve(tmp_path / "root", [part], config=CONFIG)
    assert (made.folder / "grace.safetensors").read_bytes() == b"as it is"
    assert made.has_codebook
    assert not added(made.folder, "model.layers.0.mlp.down_proj").any()
    with pytest.raises(Unsupported, match="widths"):
        serve(tmp_path / "root", [part], config={})


def test_a_rank_over_the_servers_is_lowered_where_that_costs_nothing_and_refused_where_it_does(tmp_path: Path) -> None:
    """Issue 7, §2: by a singular value decomposition with its loss stated, else refused."""
    a, b = pair(5)
    two = b[:, :2] @ a[:2]
    redundant = adapter(tmp_path / "redundant", {DOWN: (torch.cat([a[:2], a[:2]]), torch.cat([b[:, :2], b[:, :2]], dim=1))})
    made = serve(tmp_path / "root", [redundant], config=CONFIG, most_rank=2)
    assert made.rank == 2
    assert made.loss < 1e-6
    torch.testing.assert_close(added(made.folder, DOWN), 2 * two)
    full = adapter(tmp_path / "full", {DOWN: (a, b)})
    with pytest.raises(Unsupported, match=r"would cost \d.*--max-lora-rank 8"):
        serve(tmp_path / "root", [full], config=CONFIG, most_rank=1)


@pytest.mark.parametrize("damage", ["weights", "config", "names"])
def test_a_part_that_cannot_be_read_is_told(tmp_path: Path, damage: str) -> None:
    """Bad input: nothing reaches a server."""
    part = adapter(tmp_path / "a", {DOWN: pair(2)})
    if damage == "names":
        save_file({"something.else": torch.zeros(1)}, part / "adapter_model.safetensors")
    else:
        (part / {"weights": "adapter_model.safetensors", "config": "adapter_config.json"}[damage]).write_bytes(b"{torn")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        serve(tmp_path / "root", [part], config=CONFIG)


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path) -> None:
    """Bad input: a full or read-only disk."""
    part = adapter(tmp_path / "a", {DOWN: pair(2)})
    root = tmp_path / "root"
    os.symlink("/dev/full", root)  # noqa: PTH211  no folder can be made there
    with pytest.raises(ReadOnly):
        serve(root, [part], config=CONFIG)
