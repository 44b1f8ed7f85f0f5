"""Several processes of a home at one vLLM (issue 7, §1 to §3): what one gives it and takes away, no other misses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ke_tools.config import Settings
from ke_tools.errors import ModelUnavailable
from ke_tools.jobs import run_worker
from ke_tools.memory.router import READER
from ke_tools.models import checkpoint
from ke_tools.servers import doctor
from ke_tools.servers.engines import _served, vllm
from ke_tools.servers.engines._server import Server
from ke_tools.servers.engines.loading import SERVER, WORKER, load_engine
from ke_tools.servers.service import open_service
from ke_tools.servers.working import engine_of
from ke_tools.testing import thimble_path

LAST = -1e-3  # of an adapter's number, so that each says something of its own


class VLLM:
    """What a server of vLLM keeps: adapters by name, and whether it takes part in what it is asked for."""

    def __init__(self) -> None:
        self.loaded: dict[str, Path] = {}
        self.ever: list[str] = []
        self.ignores = False  # adapters from now on: it loads them, and answers as without
        self.ignored: set[str] = set()
        self.is_gone = False


class Asked(Server):
    """A server of a test that keeps its adapters in memory."""

    kept: VLLM

    def cards(self) -> list[Mapping[str, Any]]:
        self._answer()
        return [{"id": "thimble", "max_model_len": 512}, *({"id": name, "parent": "thimble"} for name in self.kept.loaded)]

    def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:  # noqa: ARG002  as Server has it
        self._answer()
        if path == "/load_lora_adapter":
            self.kept.loaded[body["lora_name"]] = Path(body["lora_path"])
            self.kept.ever.append(body["lora_name"])
            if self.kept.ignores:
                self.kept.ignored.add(body["lora_name"])
        elif path == "/unload_lora_adapter":
            if self.kept.loaded.pop(body["lora_name"], None) is None:
                raise ModelUnavailable("404", "")
        elif "prompt_logprobs" in body:
            name = body["model"]
            says = -1.0 if name == "thimble" or name in self.kept.ignored else LAST * (1 + int(name[3:9], 16))
            assert name == "thimble" or (self.kept.loaded[name] / "adapter_config.json").exists()
            return {"choices": [{"prompt_logprobs": [None, *({str(t): {"logprob": says}} for t in text[1:])]} for text in body["prompt"]]}
        else:
            return {"choices": [{"text": " x", "finish_reason": "length"}], "usage": {"completion_tokens": 1}}
        return None

    def told(self, path: str) -> Mapping[str, Any] | None:
        self._answer()
        return {"plugin": "ke-tools", "vllm": "0.32", "form": "hooks"} if path == "/ke/status" else None

    def _answer(self) -> None:
        if self.kept.is_gone:
            raise self.circuit.failed("it is away")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> VLLM:
    """The one server that all engines of a test ask."""
    made = VLLM()
    monkeypatch.setattr(vllm, "Server", type("Asked", (Asked,), {"kept": made}))
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home with a reader of the thimble."""
    found = Settings(
        home=tmp_path / "home", cache=tmp_path / "cache", model=str(thimble_path()), engine="vllm", vllm_url=("http://127.0.0.1:9",)
    )
    reader = found.home / "readers" / "thimble"
    reader.mkdir(parents=True)
    factors = {"A": torch.ones(1, 8), "B": torch.ones(8, 1)}
    of = "base_model.model.model.layers.0.self_attn"
    tensors = {f"{of}.{kind}.lora_{part}.weight": factors[part].clone() for kind in ("q_proj", "v_proj") for part in "AB"}
    save_file(tensors, reader / "adapter_model.safetensors")
    (reader / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}), "utf-8")
    fingerprint = checkpoint.fingerprint(thimble_path(), cache=found.cache)
    (reader / "ke_reader.json").write_text(json.dumps({"base_fingerprint": fingerprint}), "utf-8")
    return found


@pytest.fixture
def serving(settings: Settings, kept: VLLM) -> Iterator[Any]:
    """The engine of the home's server, which serves the reader."""
    engine: Any = load_engine(settings, lambda _said: None, owner=SERVER)
    assert engine.served_as(READER) in kept.loaded
    yield engine
    engine.close()


def folders(settings: Settings) -> set[Path]:
    """What lies there for servers to load."""
    return {path.parent for path in settings.served.rglob("adapter_config.json")}


def examined(settings: Settings) -> Mapping[str, Any]:
    """What doctor says of the model."""
    service = open_service(settings)
    try:
        return next(check for check in doctor.examine(service, deep=False)["checks"] if check["name"] == "model")
    finally:
        service.close()


def test_doctor_beside_a_server_leaves_the_servers_vllm_as_it_was(settings: Settings, kept: VLLM, serving: Any) -> None:
    """Issue 7, §3: what doctor loads to try it is its own, and gone afterwards, from the server and from the disk."""
    before, lay, loaded = dict(kept.loaded), folders(settings), len(kept.ever)
    found = examined(settings)
    assert found["ok"], found["detail"]
    assert "a codebook for a test acted" in found["detail"]
    assert len(kept.ever) > loaded
    assert not set(kept.ever[:loaded]) & set(kept.ever[loaded:])
    assert kept.loaded == before
    assert folders(settings) == lay
    assert kept.loaded[serving.served_as(READER)] in lay


def test_a_doctor_that_fails_takes_nothing_from_the_server(settings: Settings, kept: VLLM, serving: Any) -> None:
    """Issue 7, §3: the reader that the server uses was taken out of vLLM when doctor's own try failed."""
    before, lay = dict(kept.loaded), folders(settings)
    kept.ignores = True
    assert not examined(settings)["ok"]
    assert kept.loaded == before
    assert folders(settings) == lay
    assert serving.served_as(READER) in kept.loaded


def test_two_that_ask_at_once_do_not_know_each_others_adapters(settings: Settings, kept: VLLM) -> None:
    """Issue 7, §3: two doctors, or two verbs of the command line, at one vLLM."""
    one, other = (load_engine(settings, lambda _said: None) for _ in range(2))
    names = [engine.served_as(READER) for engine in (one, other)]  # type: ignore[attr-defined]
    assert set(kept.loaded) == set(names)
    assert len(set(names)) == 2
    one.close()
    assert set(kept.loaded) == {names[1]}
    other.close()
    assert not kept.loaded
    assert not folders(settings)


@pytest.mark.parametrize("owner", [SERVER, WORKER, ""])
def test_who_ends_in_order_leaves_nothing_in_vllm_and_nothing_on_the_disk(settings: Settings, kept: VLLM, owner: str) -> None:
    """Issue 7, §2: what an ended process left would stay in vLLM until that is started again."""
    load_engine(settings, lambda _said: None, owner=owner).close()
    assert kept.ever
    assert not kept.loaded
    assert not any(settings.served.iterdir())


def test_the_workers_engine_is_closed_with_the_worker_and_made_anew_after_that(settings: Settings, kept: VLLM) -> None:
    """Issue 7, §2: a worker ends a minute after its last job; what it loaded to ask candidates goes with it."""
    engine = engine_of(settings)
    assert engine_of(settings) is engine
    assert kept.loaded
    run_worker(settings, handlers={}, idle_seconds=0)
    assert not kept.loaded
    assert engine_of(settings) is not engine
    run_worker(settings, handlers={}, idle_seconds=0)
    assert not any(settings.served.iterdir())


def test_who_cannot_write_the_readers_parts_leaves_nothing(settings: Settings, kept: VLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: a disk that fills up while the second of two folders is written."""

    def full(*_: Any, **__: Any) -> Any:
        raise ModelUnavailable("no more", "")

    monkeypatch.setattr(vllm, "by_module", full)
    engine = load_engine(settings, lambda _said: None)
    assert READER not in engine.adapters
    engine.close()
    assert not kept.loaded
    assert not any(settings.served.iterdir())


def test_a_server_that_is_gone_keeps_no_folder_of_who_ends(settings: Settings, kept: VLLM) -> None:
    """Nobody asks by its names any more; what is left in a server that comes back is never read."""
    engine = load_engine(settings, lambda _said: None, owner=SERVER)
    kept.is_gone = True
    engine.close()
    assert not any(settings.served.iterdir())


def test_a_server_that_was_killed_is_followed_by_one_that_finds_its_adapters(settings: Settings, kept: VLLM) -> None:
    """A home's server has one name, so that what a killed one left is used and taken out by the next."""
    killed: Any = load_engine(settings, lambda _said: None, owner=SERVER)
    loaded = len(kept.ever)
    following: Any = load_engine(settings, lambda _said: None, owner=SERVER)
    assert following.served_as(READER) == killed.served_as(READER)
    assert len(kept.ever) == loaded
    following.close()
    assert not kept.loaded
    killed.close()


def test_what_a_killed_process_had_loaded_and_the_next_does_not_goes_with_the_next(settings: Settings, kept: VLLM) -> None:
    """A candidate, or a release that was rolled back meanwhile: the names of the folders tell what vLLM may have of it."""
    killed: Any = load_engine(settings, lambda _said: None, owner=WORKER)
    [folder] = [one for one in folders(settings) if one.name == killed.served_as(READER)]
    candidate = "ke-" + "a" * 24
    shutil.copytree(folder, folder.with_name(candidate))
    kept.loaded |= {candidate: folder.with_name(candidate), "somebody-elses": folder}
    following = load_engine(settings, lambda _said: None, owner=WORKER)
    assert candidate in kept.loaded
    following.close()
    assert set(kept.loaded) == {"somebody-elses"}
    killed.close()


def test_homes_do_not_know_each_others_adapters(settings: Settings, kept: VLLM, tmp_path: Path) -> None:
    """Several homes may stand before one vLLM."""
    other_home = tmp_path / "other"
    other_home.mkdir()
    (settings.home / "readers").rename(other_home / "readers")
    (settings.home / "readers").symlink_to(other_home / "readers")
    one, other = (load_engine(of, lambda _said: None, owner=SERVER) for of in (settings, replace(settings, home=other_home)))
    one.close()
    assert set(kept.loaded) == {other.served_as(READER)}  # type: ignore[attr-defined]
    other.close()


def release(folder: Path, *edits: str) -> Path:
    """A release as far as it is served: a codebook, and the list of its edits."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"edits": edits}), "utf-8")
    (folder / "grace.safetensors").write_bytes(b"keys of " + " ".join(edits).encode())
    return folder


def test_a_purge_erases_what_was_served_of_the_edit_whoever_serves_it(tmp_path: Path) -> None:
    """Issue 7, §2, and issue 3: also where a replica was away when it went, where a server was killed, and beside one that runs."""
    config, root = {"hidden_size": 6, "intermediate_size": 10}, tmp_path / "served"
    gone, stays = release(tmp_path / "gone", "ed_1", "ed_2"), release(tmp_path / "stays", "ed_2")
    made = [
        _served.serve(_served.folder_of(root, owner), [part], config=config, owner=owner) for owner in ("a", "b") for part in (gone, stays)
    ]
    _served.erase(root, "ed_1")
    assert [one.folder.exists() for one in made] == [False, True, False, True]
    _served.erase(root, "ed_1")
    _served.erase(tmp_path / "nowhere", "ed_1")


@pytest.mark.parametrize("at", ["adapter_model.safetensors", "grace.safetensors"])
def test_a_purge_erases_also_what_a_killed_process_had_written_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    """The same; such folders have no name yet, and nobody else removes them."""
    config, root = {"hidden_size": 6, "intermediate_size": 10}, tmp_path / "served"
    folder, part, write = _served.folder_of(root, "a"), release(tmp_path / "part", "ed_1"), Path.write_bytes

    def until(file: Path, content: bytes) -> int:
        written = write(file, content)
        if file.name == at:
            raise KeyboardInterrupt
        return written

    with monkeypatch.context() as killed:
        killed.setattr(Path, "write_bytes", until)
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            _served.serve(folder, [part], config=config, owner="a")
    assert [*folder.rglob(at)]
    _served.erase(root, "ed_1")
    assert not [*folder.rglob(at)]


def test_a_purge_goes_on_where_an_owner_ends_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same: a verb of the command line takes its folder away when it ends."""
    config, root = {"hidden_size": 6, "intermediate_size": 10}, tmp_path / "served"
    part = release(tmp_path / "part", "ed_1")
    made = [_served.serve(_served.folder_of(root, owner), [part], config=config, owner=owner) for owner in "abc"]
    read = Path.read_bytes

    def while_one_ends(file: Path) -> bytes:
        said = read(file)
        [*others] = [one.folder.parent for one in made if one.folder != file.parent and one.folder.exists()]
        for other in others[:1]:
            shutil.rmtree(other)
        return said

    monkeypatch.setattr(Path, "read_bytes", while_one_ends)
    _served.erase(root, "ed_1")
    assert not [*root.rglob("*.safetensors")]


def test_a_purge_erases_also_what_was_put_aside_as_damaged(tmp_path: Path) -> None:
    """The same, of a process that was killed while it wrote a folder again."""
    config, root = {"hidden_size": 6, "intermediate_size": 10}, tmp_path / "served"
    made = _served.serve(_served.folder_of(root, "a"), [release(tmp_path / "part", "ed_1")], config=config, owner="a")
    aside = made.folder.parent / ".damaged-x"
    aside.mkdir()
    made.folder.rename(aside / made.name)
    _served.erase(root, "ed_1")
    assert not [*root.rglob("*.safetensors")]


def test_a_release_whose_edits_cannot_be_read_is_not_served(tmp_path: Path) -> None:
    """A purge could not find it."""
    part = release(tmp_path / "part")
    (part / "manifest.json").write_text("{torn", "utf-8")
    with pytest.raises(ModelUnavailable, match="rebuild"):
        _served.serve(tmp_path / "served", [part], config={"hidden_size": 6, "intermediate_size": 10})
