"""Whether the model of the settings fits where it is to run, and where promotions are planned: estimates, from the checkpoint's headers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models import checkpoint, embedded, sizing
from ke_tools.models.machine import Machine, this_machine
from ke_tools.models.sizing import GIB, Sizes, shown

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["fits"]

_PROCESSORS: Final = "the processor's memory"
_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class _Room:
    """Where something is to be held."""

    name: str
    size: int  # bytes; 0: not known

    def lacks(self, size: int) -> bool:
        """Whether so many bytes plainly do not fit."""
        return 0 < self.size < size

    @property
    def is_processors(self) -> bool:
        """Whether it is no GPU's own."""
        return self.name == _PROCESSORS


def fits(settings: Settings, *, gpu_gib: float | None = None) -> tuple[bool, str]:
    """Say what serving the model and planning promotions take, what this machine has, and which layout fits.

    Args:
        settings: which model, and how it is served.
        gpu_gib: memory of one GPU of another machine, where vLLM is to run.

    Returns:
        False where the model plainly does not fit where these settings have it run, and the report.
    """
    if settings.upstream:
        return True, "nothing is estimated: another server holds the model, and nothing is planned here"
    path = _at_hand(settings)
    if path is None:
        return True, "nothing is estimated, as the model is not here yet, or not whole"
    here = this_machine()
    try:
        needs, failures = (_of_vllm if settings.engine == "vllm" else _of_transformers)(settings, path, here, gpu_gib)
    except Unsupported as error:
        return True, str(error)
    return not failures, "; ".join([*failures, *needs, _told(here)])


def _at_hand(settings: Settings) -> Path | None:
    """The checkpoint, where it is here already and whole."""
    name = settings.edited if settings.vllm_url else settings.model  # what servers have that run already need not be here
    if name == "embedded":
        return embedded.locate(settings.cache)
    path = Path(name).expanduser()
    try:
        if not path.exists():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(name, local_files_only=True))
        checkpoint.check(path, trust_remote_code=settings.trust_remote_code)
    except (ModelUnavailable, OSError, ValueError):  # the last two: of no hub's model
        return None
    return path


def _of_transformers(settings: Settings, path: Path, here: Machine, gpu_gib: float | None) -> tuple[list[str], list[str]]:
    """Of a model in this process: what is needed and fits, and what plainly does not."""
    room, failures = _room(settings.device, here), list[str]()
    is_exact = settings.device == "cpu" or (settings.device == "auto" and room.is_processors and sys.platform != "darwin")
    dtype = settings.dtype if settings.dtype != "auto" else "float32" if is_exact else "bfloat16"
    found = sizing.sizes(path, dtype=dtype, rank=0, slots=0)
    if settings.device.startswith("cuda") and room.is_processors:
        failures.append(f"it cannot be served here: --device is {settings.device}, and {here.looked}")
    elif room.lacks(found.weights):
        failures.append(_not_served(found, room))
    needs = [f"transformers serves it in {dtype} with {shown(found.in_process)}, one sequence's cache included, in {room.name}"]
    _plan(settings, found, here, needs, failures)
    if not failures and found.is_editable and room.size and room == _room(settings.planned_on, here):
        needs.append(_together(found.in_process + found.editing, room, here))
    if gpu_gib:
        needs.append(_layout(settings, path, gpu_gib, " if vLLM serves it"))
    return needs, failures


def _together(both: int, room: _Room, here: Machine) -> str:
    if room.lacks(both):
        return "both at once do not fit: the editors halve their batches where memory runs out, and a promotion may fail for want of it"
    if room.is_processors and 0 < here.available < both:
        return "both at once fit, if more is free than now"
    return "both at once fit"


def _of_vllm(settings: Settings, path: Path, here: Machine, gpu_gib: float | None) -> tuple[list[str], list[str]]:
    """The same of a model that vLLM serves, here or elsewhere."""
    found, failures = _served(settings, path), list[str]()
    is_here = all(urlsplit(url).hostname in _HERE for url in settings.vllm_url)
    where = " in the processor's memory" if is_here and not gpu_gib and not here.gpus else ""
    needs = [f"vLLM needs {shown(found.serving)} at least{where}, of which weights are {shown(found.weights)}"]
    if gpu_gib:
        needs.append(_layout(settings, path, gpu_gib))
    elif not is_here:
        needs.append("--gpu-gib N says which layout fits GPUs of the machine that vLLM runs on")
    elif here.gpus:
        needs.append(_layout(settings, path, min(here.gpus) / GIB))
    if not settings.vllm_url and not gpu_gib:  # it will be started here
        room = _Room("the GPUs" if len(here.gpus) > 1 else "the GPU", sum(here.gpus)) if here.gpus else _room("cpu", here)
        if room.lacks(found.weights):
            failures.append(_not_served(found, room))
    _plan(settings, found, here, needs, failures)
    return needs, failures


def _plan(settings: Settings, found: Sizes, here: Machine, needs: list[str], failures: list[str]) -> None:
    """Add what planning promotions comes to."""
    if not found.is_editable:
        needs.append("no editor is known for such a model, so nothing is planned")
        return
    room = _room(settings.planned_on, here)
    if settings.planned_on.startswith("cuda") and room.is_processors:
        flag = "--edit-device" if settings.edit_device else "--device"
        failures.append(f"no promotion can be planned here: {flag} is {settings.planned_on}, and {here.looked} (corrections act without)")
        return
    needs.append(f"planning a promotion here takes at most about {shown(found.editing)}, in {room.name}")
    if room.lacks(found.copy):
        failures.append(
            f"no promotion can be planned here: the editors' copy in float32 takes {shown(found.copy)}, more than the "
            f"{shown(room.size)} of {room.name} (corrections act without)"
        )


def _not_served(found: Sizes, room: _Room) -> str:
    return f"it cannot be served here: its weights take {shown(found.weights)}, more than the {shown(room.size)} of {room.name}"


def _served(settings: Settings, path: Path) -> Sizes:
    """As vLLM serves it where ke-tools starts it."""
    from ke_tools.servers.engines import recipe

    return sizing.sizes(path, dtype=settings.dtype, rank=recipe.RANK, slots=recipe.SLOTS)


def _layout(settings: Settings, path: Path, gpu_gib: float, when: str = "") -> str:
    return f"with GPUs of {gpu_gib:.3g} GiB{when}: {sizing.layout(_served(settings, path), gpu_gib)}"


def _room(device: str, here: Machine) -> _Room:
    """Where something is held on a device: a GPU that torch sees, else the processor's memory, of which Apple's GPUs take theirs, too."""
    kind, _, number = device.partition(":")
    if kind in {"auto", "cuda"} and int(number or 0) < len(here.gpus):
        return _Room(f"GPU {number or 0}", here.gpus[int(number or 0)])
    return _Room(_PROCESSORS, here.memory)


def _told(here: Machine) -> str:
    """What was looked at."""
    gpus = f" of {', '.join(shown(gpu) for gpu in here.gpus)}" if here.gpus else ""
    free = f", of which {shown(here.available)} are free now" if here.available else ""
    memory = f"{_PROCESSORS} is {shown(here.memory)}{free}" if here.memory else f"how much {_PROCESSORS} is the system does not tell"
    return f"here {here.looked}{gpus}; {memory}"
