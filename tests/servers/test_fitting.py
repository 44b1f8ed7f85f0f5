"""What doctor says of memory: what the settings' model takes, what the machine has, and what plainly does not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.models.machine import Machine
from ke_tools.models.sizing import GIB, layout, shown, sizes
from ke_tools.servers import fitting
from ke_tools.servers.engines import recipe
from ke_tools.servers.fitting import fits
from ke_tools.testing import thimble_path
from tests.models.test_sizing import make

Asked = Callable[..., tuple[bool, str]]
NO_GPU = "there is no GPU"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Asks about a Llama of 8 B (16 GB in bfloat16, 32 GB in float32) on a machine that the test describes."""
    model = make(tmp_path / "m")

    def ask(memory: float, *gpus: float, available: float = 0, gpu_gib: float | None = None, **given: Any) -> tuple[bool, str]:
        looked = f"torch sees {len(gpus)} GPUs" if gpus else NO_GPU
        here = Machine(tuple(int(gpu * GIB) for gpu in gpus), looked, int(memory * GIB), int((available or memory) * GIB))
        monkeypatch.setattr(fitting, "this_machine", lambda: here)
        settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache", **{"model": str(model), **given})
        return fits(settings, gpu_gib=gpu_gib)

    return ask


def test_what_serving_and_planning_take_here_is_told_beside_what_there_is(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §5: `doctor` estimates memory for a given model; the numbers are those of `model show`."""
    is_well, said = asked(128)
    found = sizes(tmp_path / "m", dtype="float32", rank=0, slots=0)
    assert is_well
    assert f"transformers serves it in float32 with {found.in_process / GIB:.3g} GiB" in said
    assert f"planning a promotion here takes at most about {found.editing / GIB:.3g} GiB, in the processor's memory" in said
    assert "both at once fit;" in said
    assert said.endswith(f"here {NO_GPU}; the processor's memory is 128 GiB, of which 128 GiB are free now")


def test_a_promotion_is_planned_in_the_memory_of_edit_device(asked: Asked) -> None:
    """Issue 7, §5: the worker plans in the processor's memory, or in another GPU, beside a GPU that serving fills."""
    is_well, said = asked(128, 24, edit_device="cpu")
    assert is_well
    assert "one sequence's cache included, in GPU 0" in said
    assert "planning a promotion here takes at most about" in said
    assert "in the processor's memory" in said
    assert "both at once" not in said


def test_of_quantised_weights_that_are_to_be_served_the_size_is_their_own(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §5: the twin that edits are planned with takes more than what is served."""
    served = make(tmp_path / "small", parameters=1_000_000)
    _, said = asked(128, engine="vllm", model=str(served), edit_model=str(tmp_path / "m"))
    assert f"of which weights are {shown(sizes(served, rank=0, slots=0).weights)}" in said
    _, said = asked(128, engine="vllm", model=str(served), edit_model=str(tmp_path / "m"), vllm_url=("http://elsewhere:1",))
    assert "what the servers hold is not known here" in said
    assert f"planning a promotion here takes at most about {shown(sizes(tmp_path / 'm', rank=0, slots=0).editing)}" in said


def test_a_setting_by_which_no_promotion_can_be_planned_is_told_and_corrections_act_all_the_same(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §5: quantised weights without a twin; a GPU that is not there."""
    packed = make(tmp_path / "packed", quantization_config={"quant_method": "awq"})
    is_well, said = asked(128, engine="vllm", model=str(packed))
    assert is_well
    assert "no promotion can be planned" in said
    assert "--edit-model" in said
    is_well, said = asked(128, edit_device="cuda:9")
    assert is_well
    assert f"no promotion can be planned: --edit-device is cuda:9, and {NO_GPU}" in said


@pytest.mark.parametrize(
    ("memory", "available", "is_well", "told"),
    [
        (128, 100, True, "both at once fit;"),
        (128, 20, True, "both at once fit, if more is free than now"),
        (64, 60, True, "both at once do not fit"),
        (24, 24, False, "it cannot be served here: its weights take 29.9 GiB, more than the 24 GiB of the processor's memory"),
    ],
)
def test_only_what_plainly_does_not_fit_needs_attention(asked: Asked, memory: int, available: int, told: str, *, is_well: bool) -> None:
    """What is taken by others now may be free when it is needed, and editors halve their batches."""
    found, said = asked(memory, available=available)
    assert found is is_well
    assert told in said


def test_a_model_that_is_served_in_half_as_many_bytes_may_fit_where_no_promotion_can_be_planned(asked: Asked) -> None:
    """Editors compute in float32, whatever the model is served in."""
    is_well, said = asked(24, dtype="bfloat16")
    assert is_well
    assert "cannot be served" not in said
    assert (
        "no promotion can be planned: the editors' copy in float32 takes 29.9 GiB, more than the 24 GiB of the processor's memory" in said
    )


@pytest.mark.parametrize(
    ("device", "gpus", "room"),
    [("auto", (80.0, 24.0), "GPU 0"), ("cuda:1", (24.0, 80.0), "GPU 1"), ("cpu", (80.0,), "the processor's memory")],
)
def test_what_is_looked_at_is_where_the_settings_have_it_run(asked: Asked, device: str, gpus: tuple[float, ...], room: str) -> None:
    """Issue 7, §5: by these settings."""
    is_well, said = asked(128, *gpus, device=device)
    assert is_well
    assert f"one sequence's cache included, in {room};" in said
    assert f"torch sees {len(gpus)} GPUs of " in said


def test_a_gpu_that_is_too_small_and_one_that_is_not_there_are_told(asked: Asked) -> None:
    """Issue 7, §5: engine hf, in one GPU."""
    is_well, said = asked(128, 12.0)
    assert not is_well
    assert "its weights take 15 GiB, more than the 12 GiB of GPU 0" in said
    is_well, said = asked(128, device="cuda")
    assert not is_well
    assert f"--device is cuda, and {NO_GPU}" in said


@pytest.mark.parametrize(("given", "flag"), [({"edit_device": "cuda:1"}, "--edit-device"), ({"device": "cuda:1"}, "--device")])
def test_a_gpu_for_planning_that_is_not_there_is_told(asked: Asked, given: dict[str, str], flag: str) -> None:
    """Issue 7, §5: --edit-device may be another GPU; where it is none, no promotion can be planned."""
    _, said = asked(128, engine="vllm", **given)
    assert f"no promotion can be planned: {flag} is cuda:1, and {NO_GPU}" in said
    assert "planning a promotion here takes" not in said
    assert "in GPU 1" in asked(128, 24.0, 48.0, engine="vllm", **given)[1]


def test_gpus_elsewhere_are_named_by_a_flag_and_the_layout_is_that_of_model_show(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §5: a vLLM on another machine; one arithmetic for both commands."""
    found = sizes(tmp_path / "m", rank=recipe.RANK, slots=recipe.SLOTS)
    elsewhere: dict[str, Any] = {"engine": "vllm", "vllm_url": ("http://gpus:8000",)}
    assert "--gpu-gib N says which layout fits" in asked(128, **elsewhere)[1]
    for gpu in (24.0, 80.0):
        is_well, said = asked(128, gpu_gib=gpu, **elsewhere)
        assert is_well
        assert f"with GPUs of {gpu:.3g} GiB: {layout(found, gpu)}" in said
    assert f"with GPUs of 80 GiB if vLLM serves it: {layout(found, 80)}" in asked(128, gpu_gib=80)[1]


def test_a_vllm_elsewhere_needs_no_room_here_but_planning_does(asked: Asked) -> None:
    """Issue 7, §5: promotions are planned by ke-tools' own copy of the model."""
    is_well, said = asked(24, engine="vllm", vllm_url=("http://gpus:8000",))
    assert is_well
    assert "cannot be served" not in said
    assert "no promotion can be planned: the editors' copy" in said


def test_a_vllm_of_our_own_is_held_against_the_gpus_here_else_against_the_processors_memory(asked: Asked) -> None:
    """Issue 7, §1 and §5: where ke-tools starts it."""
    is_well, said = asked(128, 12.0, 12.0, engine="vllm", device="cpu")
    assert is_well
    assert "with GPUs of 12 GiB: 4 GPUs for vLLM" in said
    is_well, said = asked(128, 6.0, 6.0, engine="vllm", device="cpu")
    assert not is_well
    assert "its weights take 15 GiB, more than the 12 GiB of the GPUs" in said
    is_well, said = asked(12, engine="vllm")
    assert not is_well
    assert "its weights take 15 GiB, more than the 12 GiB of the processor's memory" in said
    assert "vLLM needs 20.7 GiB at least in the processor's memory" in asked(128, engine="vllm")[1]


def test_nothing_is_estimated_for_what_another_server_holds_or_what_is_not_here(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §0: such a server's model is not at hand; and doctor fetches nothing."""
    assert asked(1, upstream="http://127.0.0.1:9") == (
        True,
        "nothing is estimated: another server holds the model, and nothing is planned here",
    )
    for model in ("embedded", str(tmp_path / "nowhere"), "nobody/has-this", str(tmp_path)):
        is_well, said = asked(1, model=model)
        assert is_well
        assert said.startswith("nothing is estimated")


def test_a_model_that_no_editor_knows_is_told_so_and_needs_no_room_for_planning(asked: Asked, tmp_path: Path) -> None:
    """Issue 7, §5: it acts from memory."""
    model = make(tmp_path / "other", model_type="bloom")
    is_well, said = asked(32, model=str(model))
    assert is_well
    assert "no editor is known for such a model, so nothing is planned" in said
    assert "planning a promotion" not in said


@pytest.mark.parametrize(
    ("config", "told"), [({"num_local_experts": 8}, "is a mixture of experts"), ({"hidden_size": None}, "does not tell layers")]
)
def test_what_cannot_be_estimated_is_said_and_fails_nothing(asked: Asked, tmp_path: Path, config: dict[str, Any], told: str) -> None:
    """Issue 7, §5: mixture-of-experts models are refused by name where one promotes; the memory serves them."""
    is_well, said = asked(1, model=str(make(tmp_path / "odd", **config)))
    assert is_well
    assert told in said


def test_doctor_says_it_and_loads_no_torch_where_there_is_no_gpu(tmp_path: Path) -> None:
    """Issue 7, §5: `ke-tools doctor` stays quick."""
    code = "import sys; from ke_tools import cli; from ke_tools.models import machine; machine._DEVICES = (); code = cli.main()"
    command = [sys.executable, "-c", f"{code}; sys.exit(code + 10 * ('torch' in sys.modules))"]
    options = ("--home", str(tmp_path / "home"), "--model", str(thimble_path()), "--gpu-gib", "80", "--json")
    done = subprocess.run([*command, "doctor", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [memory] = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "memory"]
    assert "with GPUs of 80 GiB if vLLM serves it: one GPU for both" in memory["detail"]
    assert "torch was not asked" in memory["detail"]
