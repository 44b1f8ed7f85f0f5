"""Releases: named by content, whole or not there, and no byte changes unnoticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ke_tools import releases
from ke_tools.editors import peft_folder
from ke_tools.editors._solve import Factors
from ke_tools.editors.codebook import Codebook, load_codebook
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, ModelUnavailable, ReadOnly, ResourceExhausted
from ke_tools.facts import Edit, State
from ke_tools.models.causal import CausalModel
from ke_tools.releases import Release
from tests.editors.conftest import FACTS, tiny, tokenizer

__all__ = ["tiny", "tokenizer"]

HOW = {"method": "memit", "layers": [1, 2], "seed": 0, "statistics": "abc"}
EDITS = tuple(
    Edit(
        id=f"edit_{n}",
        tenant="default",
        fact=fact,
        state=State.ACTIVE,
        slot=f"slot {n}",
        relation="",
        functional=True,
        revision=n,
        created_at=f"2026-01-0{n + 1}T00:00:00Z",
        actor="a",
    )
    for n, fact in enumerate(FACTS)
)


@pytest.fixture(scope="module")
def model(tiny: Callable[[str], CausalModel]) -> CausalModel:
    """A tiny Llama."""
    return tiny("llama")


def an_update(seed: int = 0, layers: Sequence[int] = (1, 2)) -> Update:
    """Of random numbers."""
    made = torch.Generator().manual_seed(seed)
    factors = {layer: Factors(torch.randn(32, 2, generator=made), torch.randn(2, 48, generator=made)) for layer in sorted(layers)}
    return Update({"layers": [1, 2], "name": "memit"}, {layer: factors[layer] for layer in layers}, fingerprint="sha256:llama")


def a_codebook(seed: int = 0) -> Codebook:
    """Of random numbers."""
    made = torch.Generator().manual_seed(seed)
    return Codebook(
        layer=1,
        keys=torch.randn(3, 32, generator=made),
        epsilons=torch.rand(3, generator=made),
        owners=torch.tensor([0, 0, 1]),
        values=torch.randn(2, 32, generator=made),
        edits=("a", "b"),
        fingerprint="sha256:llama",
    )


def build(root: Path, model: CausalModel, **changed: Any) -> Release:
    """A release of both kinds."""
    return releases.build(root, model, **{"update": an_update(), "codebook": a_codebook(), "edits": EDITS, "how": HOW, **changed})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# Content and name --------------------------------------------------------------------------------------------------------


def test_the_same_content_has_the_same_name_and_the_same_bytes(model: CausalModel, tmp_path: Path) -> None:
    """Issue 6 §4; in whatever order things are given, and although safetensors orders its metadata by chance."""
    made = [build(tmp_path / str(n), model) for n in range(8)]
    turned = build(
        tmp_path / "turned",
        model,
        update=an_update(layers=(2, 1)),
        edits=[replace(edit, state=State.PROMOTED, revision=9) for edit in reversed(EDITS)],
        how=dict(reversed(HOW.items())),
    )

    assert {release.name for release in (*made, turned)} == {made[0].name}
    assert all(contents(release.folder) == contents(made[0].folder) for release in (*made[1:], turned))


@pytest.mark.parametrize(
    "changed",
    [
        {"update": an_update(seed=1)},
        {"update": None},
        {"codebook": a_codebook(seed=1)},
        {"codebook": None},
        {"edits": EDITS[:2]},
        {"edits": (replace(EDITS[0], id="edit_9"), *EDITS[1:])},
        {"edits": (replace(EDITS[0], fact=replace(FACTS[0], target="Bern")), *EDITS[1:])},
        {"how": {**HOW, "seed": 1}},
    ],
)
def test_what_acts_and_how_it_was_made_is_in_the_name(model: CausalModel, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Issue 6 §4: adapter, codebook, edits, method, parameters, seed."""
    assert build(tmp_path, model, **changed).name != build(tmp_path, model).name


def test_the_base_is_in_the_name(tiny: Callable[[str], CausalModel], model: CausalModel, tmp_path: Path) -> None:
    """Issue 6 §4: the base fingerprint."""
    other = tiny("llama")
    other.fingerprint = "sha256:other"
    parts = {"update": replace(an_update(), fingerprint=""), "codebook": None}

    assert build(tmp_path, other, **parts).name != build(tmp_path, model, **parts).name


def test_a_release_says_what_it_holds(model: CausalModel, tmp_path: Path) -> None:
    """The adapter is PEFT's, the codebook ours, the facts readable."""
    release = build(tmp_path, model)

    assert release == releases.opened(tmp_path, release.name)
    assert (release.edit_ids, release.fingerprint, release.how) == (("edit_0", "edit_1", "edit_2"), "sha256:llama", HOW)
    assert (release.has_adapter, release.has_codebook) == (True, True)
    assert torch.equal(peft_folder.read(release.folder, model).changes[1].left, an_update().changes[1].left)
    assert torch.equal(load_codebook(release.folder).keys, a_codebook().keys)
    lines = (release.folder / "edits.jsonl").read_text().splitlines()
    assert [json.loads(line)["target"] for line in lines] == [fact.target for fact in FACTS]


def test_a_release_may_be_of_one_kind(model: CausalModel, tmp_path: Path) -> None:
    """A part that changes nothing is none."""
    plain = build(tmp_path, model, codebook=a_codebook().without("a").without("b"))
    looked_up = build(tmp_path, model, update=Update({}, {}))

    assert (plain.has_adapter, plain.has_codebook) == (True, False)
    assert (looked_up.has_adapter, looked_up.has_codebook) == (False, True)
    assert {file.name for file in looked_up.folder.iterdir()} == {"grace.safetensors", "edits.jsonl", "manifest.json"}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"update": None, "codebook": None}, "needs a change"),
        ({"update": Update({}, {}), "codebook": None}, "needs a change"),
        ({"edits": (*EDITS, EDITS[0])}, "given twice"),
        ({"how": {"at": object()}}, "JSON"),
        ({"how": {"share": float("nan")}}, "JSON"),
        ({"update": replace(an_update(), fingerprint="sha256:other")}, "was made for the model"),
        ({"codebook": replace(a_codebook(), layer=9)}, "does not fit"),
    ],
)
def test_what_makes_no_release_is_refused(model: CausalModel, tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    """Nothing is written then."""
    with pytest.raises(InvalidInput, match=complaint):
        build(tmp_path / "releases", model, **changed)
    assert not (tmp_path / "releases").exists()


def test_a_model_without_a_fingerprint_gets_none(tiny: Callable[[str], CausalModel], tmp_path: Path) -> None:
    """Issue 6, bad input: a model that changed under a release must be noticed."""
    nameless = tiny("llama")
    nameless.fingerprint = ""

    with pytest.raises(InvalidInput, match="fingerprint"):
        build(tmp_path, nameless)


# Damage ------------------------------------------------------------------------------------------------------------------


def test_no_byte_changes_unnoticed(model: CausalModel, tmp_path: Path) -> None:
    """Issue 6, bad input: a damaged artefact directory is not served; the message says which file."""
    release = build(tmp_path, model)
    for file in sorted(release.folder.iterdir()):
        sound = file.read_bytes()
        for place in range(0, len(sound), 7):
            file.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
            with pytest.raises(ModelUnavailable, match=file.name):
                releases.opened(tmp_path, release.name)
        for wrong in (sound[:-1], sound + b"\n", b""):
            file.write_bytes(wrong)
            with pytest.raises(ModelUnavailable, match=file.name):
                releases.opened(tmp_path, release.name)
        file.unlink()
        with pytest.raises(ModelUnavailable, match=file.name):
            releases.opened(tmp_path, release.name)
        file.write_bytes(sound)
    assert releases.opened(tmp_path, release.name) == release


def test_a_file_that_would_act_and_is_not_listed_is_damage(model: CausalModel, tmp_path: Path) -> None:
    """Else a codebook could be slipped into a release without one."""
    release = build(tmp_path, model, codebook=None)
    a_codebook().save(release.folder)

    with pytest.raises(ModelUnavailable, match=r"grace\.safetensors does not belong"):
        releases.opened(tmp_path, release.name)


def test_a_sound_release_under_another_ones_name_is_damage(model: CausalModel, tmp_path: Path) -> None:
    """The name is the content's."""
    one, two = build(tmp_path, model), build(tmp_path, model, codebook=None)
    shutil.rmtree(one.folder)
    two.folder.rename(one.folder)

    with pytest.raises(ModelUnavailable, match=f"is that of {two.name}"):
        releases.opened(tmp_path, one.name)


OUTSIDE = '{"files": {"../x": ""}, "edits": [], "fingerprint": "", "how": {}, "format": 1}'


@pytest.mark.parametrize("manifest", ["{}", "[]", '"x"', "null", OUTSIDE])
def test_what_is_no_manifest_is_told(tmp_path: Path, manifest: str) -> None:
    """Failure paths are real."""
    (tmp_path / "manifest.json").write_text(manifest)

    with pytest.raises(ModelUnavailable, match=r"manifest\.json"):
        releases.read(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "rel_x", "../rel_" + "0" * 24, "rel_" + "0" * 25])
def test_what_is_no_releases_name_is_refused(tmp_path: Path, name: str) -> None:
    """A name comes from a ledger; it must not lead out of the folder."""
    with pytest.raises(InvalidInput, match="name"):
        releases.opened(tmp_path, name)


def test_a_release_that_is_not_there_is_told(tmp_path: Path) -> None:
    """The base or the last good one is served then."""
    with pytest.raises(ModelUnavailable, match="there is no release"):
        releases.opened(tmp_path, "rel_" + "0" * 24)


# Written whole or not at all -----------------------------------------------------------------------------------------------


def test_one_that_is_there_is_reused_if_sound_and_replaced_if_not(model: CausalModel, tmp_path: Path) -> None:
    """Issue 6 §4: immutable; and building again is how a damaged one is mended."""
    release = build(tmp_path, model)
    weights = release.folder / "adapter_model.safetensors"
    was = weights.stat().st_ino, weights.read_bytes()

    assert build(tmp_path, model) == release
    assert weights.stat().st_ino == was[0]
    weights.write_bytes(b"x")
    assert build(tmp_path, model) == release
    assert weights.read_bytes() == was[1]
    assert [place.name for place in tmp_path.iterdir()] == [release.name]


class Full:
    """Lets the n-th of the calls that need room fail."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: int, code: int = errno.ENOSPC) -> None:
        self.left, self.code = fails, code
        for owner, name in ((Path, "open"), (Path, "mkdir"), (Path, "rename"), (os, "fsync"), (shutil, "copyfile")):
            patch.setattr(owner, name, self._guarded(getattr(owner, name)))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.code, os.strerror(self.code))
            return call(*args, **options)

        return guarded


def test_a_full_disk_leaves_nothing_that_looks_like_a_release(model: CausalModel, tmp_path: Path) -> None:
    """Issue 6, bad input: nothing is published, whatever step the room is lacking for."""
    failed = 0
    for step in range(1, 200):
        root = tmp_path / str(step)
        with pytest.MonkeyPatch.context() as patch:
            full = Full(patch, step)
            try:
                build(root, model)
            except (ResourceExhausted, ModelUnavailable):  # the latter: it lay there whole, and could not be read back
                failed += 1
        if full.left > 0:
            break
        found = list(root.iterdir()) if root.exists() else []
        assert all(releases.read(place) for place in found)
        assert build(root, model).folder.is_dir()
    assert failed > 15


def test_a_folder_that_takes_no_files_is_told(model: CausalModel, tmp_path: Path) -> None:
    """Another reason than room."""
    (tmp_path / "file").write_text("")

    with pytest.raises(ReadOnly, match="could not be written"):
        build(tmp_path / "file", model)


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import AutoTokenizer
import ke_tools.testing
from ke_tools.models.causal import CausalModel
from tests.test_releases import a_codebook, an_update, build
torch.manual_seed(0)
config = LlamaConfig(vocab_size=8, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4)
tokenizer = AutoTokenizer.from_pretrained(str(ke_tools.testing.thimble_path()))
model = CausalModel(LlamaForCausalLM(config), tokenizer, fingerprint="sha256:llama")
"""
KILLED = """
from ke_tools import releases
root = Path(sys.argv[1])
name = build(root / "sound", model).name
watched = {"releases.py", "peft_folder.py", "codebook.py", "_safetensors.py", "shutil.py"}

def build_and_die(root, line):
    left = line
    def trace(frame, event, arg):
        nonlocal left
        if os.path.basename(frame.f_code.co_filename) not in watched:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    build(root, model)
    sys.settrace(None)

line = whole = 0
again = root / "again"
while True:
    line += 1
    child = os.fork()
    if child == 0:
        build_and_die(again, line)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert status == 0, status
        break
    found = [place.name for place in again.iterdir() if place.name.startswith("rel_")] if again.exists() else []
    assert found in ([], [name]), found
    if found:
        releases.opened(again, name)
        whole += 1
        releases.shutil.rmtree(again / name)
assert build(again, model).name == name
assert [place.name for place in again.iterdir()] == [name]
print(line, whole)
"""


def run(program: str, *args: str, seed: str = "0") -> str:
    """What a process of its own prints."""
    root = Path(releases.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM + program, *args], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_build_killed_at_any_line_leaves_a_whole_release_or_none(tmp_path: Path) -> None:
    """Issue 6, bars: kill -9 at any moment leaves no half release; the next build works and clears up."""
    lines, whole = map(int, run(KILLED, str(tmp_path)).split())

    assert lines > 150
    assert whole > 0


@pytest.mark.slow
def test_two_processes_give_one_name_and_the_same_bytes(tmp_path: Path) -> None:
    """Issue 6 §4: rebuilding gives the same bytes on the same machine; both may build at once."""
    names = [run("print(build(Path(sys.argv[1]), model).name)", str(tmp_path / seed), seed=seed) for seed in ("1", "2")]

    assert names[0] == names[1]
    assert contents(tmp_path / "1" / names[0].strip()) == contents(tmp_path / "2" / names[0].strip())


def test_builds_at_once_do_not_disturb_each_other(model: CausalModel, tmp_path: Path) -> None:
    """The folder's lock: one writes, the others wait."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: build(tmp_path, model, how={**HOW, "seed": n % 3}).name, range(24)))

    assert len(set(made)) == 3
    assert {place.name for place in tmp_path.iterdir()} == set(made)
    assert all(releases.opened(tmp_path, name) for name in made)


# Export --------------------------------------------------------------------------------------------------------------------


def test_an_export_is_the_release_with_its_scorecards(model: CausalModel, tmp_path: Path) -> None:
    """Design §3: on export scorecard.json; whoever gets it can check it, whatever they call the folder."""
    release = build(tmp_path / "releases", model)

    copied = releases.export(release, tmp_path / "out" / "mine", [{"suite": "quick"}])

    assert copied == replace(release, folder=tmp_path / "out" / "mine")
    assert json.loads((copied.folder / "scorecard.json").read_text()) == [{"suite": "quick"}]
    assert contents(copied.folder).items() >= contents(release.folder).items()
    assert [place.name for place in (tmp_path / "out").iterdir()] == ["mine"]


def test_an_export_overwrites_nothing_and_copies_no_damage(model: CausalModel, tmp_path: Path) -> None:
    """Failure paths are real."""
    release = build(tmp_path / "releases", model)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")

    with pytest.raises(InvalidInput, match="something in"):
        releases.export(release, tmp_path / "out")
    (tmp_path / "out" / "mine").unlink()
    (release.folder / "edits.jsonl").write_text("")
    with pytest.raises(ModelUnavailable, match=r"edits\.jsonl"):
        releases.export(release, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_an_export_without_room_leaves_nothing(model: CausalModel, tmp_path: Path) -> None:
    """As a build."""
    release = build(tmp_path / "releases", model)
    with pytest.MonkeyPatch.context() as patch:
        Full(patch, 9)
        with pytest.raises((ResourceExhausted, ModelUnavailable)):
            releases.export(release, tmp_path / "out")

    assert [place.name for place in tmp_path.iterdir()] == ["releases"]
