"""Whether the model of the settings fits where it is to run, and where promotions are planned: estimates, from the checkpoint's headers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models import checkpoint, sizing
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
    here = this_machine()
    try:
        if (path := checkpoint.at_hand(settings.known, settings)) is None:
            return True, "nothing is estimated, as the model is not fetched yet"
        needs, failures = (_of_vllm if settings.engine == "vllm" else _of_transformers)(settings, path, here, gpu_gib)
    except (ModelUnavailable, Unsupported) as error:  # whether that keeps it from being served, another check says
        return True, f"nothing is estimated: {error}"
    return not failures, "; ".join([*failures, *needs, _told(here)])


def _of_transformers(settings: Settings, path: Path, here: Machine, gpu_gib: float | None) -> tuple[list[str], list[str]]:
    """Of a model in this process: what is needed and fits, and what cannot be."""
    room = _room(settings.device, here)
    is_exact = settings.device == "cpu" or (settings.device == "auto" and room.is_processors and sys.platform != "darwin")
    dtype = settings.dtype if settings.dtype != "auto" else "float32" if is_exact else "bfloat16"
    found = sizing.sizes(path, dtype=dtype, rank=0, slots=0)
    failures = _lacking(settings.device, "--device", here) or _too_large(found, room)
    needs = [f"transformers serves it in {dtype} with {shown(found.in_process)}, one sequence's cache included, in {room.name}"]
    needs.append(_planned(settings, path, found, here))
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
    if settings.vllm_url and settings.edit_model:
        needs = ["what the servers hold is not known here, as --edit-model is another form of it"]
    elif gpu_gib:
        needs.append(_layout(settings, path, gpu_gib))
    elif not is_here:
        needs.append("--gpu-gib N says which layout fits GPUs of the machine that vLLM runs on")
    elif here.gpus:
        needs.append(_layout(settings, path, min(here.gpus) / GIB))
    if not settings.vllm_url and not gpu_gib:  # it will be started here
        room = _Room("the GPUs" if len(here.gpus) > 1 else "the GPU", sum(here.gpus)) if here.gpus else _room("cpu", here)
        failures = _too_large(found, room)
    return [*needs, _planned(settings, path, found, here)], failures


def _planned(settings: Settings, path: Path, found: Sizes, here: Machine) -> str:
    """What planning promotions comes to; where none can be planned, corrections act from the memory all the same."""
    room = _room(settings.planned_on, here)
    if not found.is_editable:
        return "no editor is known for such a model, so nothing is planned"
    try:
        if not settings.edit_model:  # of which no engine is made where it is quantised
            checkpoint.refuse_quantised(path)
    except Unsupported as error:
        return f"no promotion can be planned: {error}"
    if lacking := _lacking(settings.planned_on, "--edit-device" if settings.edit_device else "--device", here):
        return f"no promotion can be planned: {lacking[0]}"
    if room.lacks(found.editors_copy):
        return (
            f"no promotion can be planned: the editors' copy in float32 takes {shown(found.editors_copy)}, more than the "
            f"{shown(room.size)} of {room.name}"
        )
    return f"planning a promotion here takes at most about {shown(found.editing)}, in {room.name}"


def _lacking(device: str, flag: str, here: Machine) -> list[str]:
    """What keeps something from a device that is named and is not there; nothing where it is."""
    is_there = not device.startswith("cuda") or not _room(device, here).is_processors
    return [] if is_there else [f"{flag} is {device}, and {here.looked}"]


def _too_large(found: Sizes, room: _Room) -> list[str]:
    return (
        [f"it cannot be served here: its weights take {shown(found.weights)}, more than the {shown(room.size)} of {room.name}"]
        if room.lacks(found.weights)
        else []
    )


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
