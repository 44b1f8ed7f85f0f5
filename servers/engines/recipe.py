"""How a vLLM of ke-tools' own is started: the command, and the environment that the plugin and the loading of adapters need."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.errors import InvalidInput, ModelUnavailable

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["LORA", "RANK", "SLOTS", "Recipe", "environment_of", "recipe_of"]

RANK: Final = 128  # the most of an adapter
SLOTS: Final = 8  # adapters in one batch
LORA: Final = (
    *("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", str(SLOTS), "--max-cpu-loras", "32"),
    *("--lora-target-modules", "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
)
_OURS: Final = ("--host", "--port", "--api-key", "--served-model-name", "--uds", "--root-path")
_PLUGINS: Final = ("ke_tools", "ke_tools_status")
_DEFAULTS: Final = {
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; without it the CPU build takes nearly all memory, in which ke-tools computes too
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is started: a program and its arguments, but for place and key."""

    program: str
    model: Path
    name: str  # that the model is served under
    arguments: tuple[str, ...] = ()

    def command(self, port: int) -> list[str]:
        """The command line for a port of loopback."""
        place = ("--host", "127.0.0.1", "--port", str(port))
        return [self.program, "serve", str(self.model), "--served-model-name", self.name, *place, *self.arguments]


def recipe_of(settings: Settings, model: Path, name: str) -> Recipe:
    """Put together what is started; what the user adds stands last, so that it wins.

    Args:
        settings: for the program, the numbers to compute in and what the user adds.
        model: the checkpoint's folder.
        name: that it is served under.

    Raises:
        ModelUnavailable: the program is not there.
        InvalidInput: what is added says what is ours to say.
    """
    if taken := [word for word in settings.vllm_args if word.split("=", 1)[0] in _OURS]:
        raise InvalidInput(
            f"{taken[0].split('=', 1)[0]} of vLLM is chosen by ke-tools.", "Leave it out, or start vLLM yourself and give --vllm-url."
        )
    program = shutil.which(settings.vllm)
    if program is None:
        raise ModelUnavailable(
            f"there is no program {settings.vllm!r}, which is to serve the model.",
            'Install it into an environment of its own (pip install "vllm>=0.32,<0.34" ke-tools-vllm) and give --vllm ENV/bin/vllm, '
            "or give the address of one that runs by --vllm-url.",
        )
    dtype = () if settings.dtype == "auto" else ("--dtype", settings.dtype)
    trust = ("--trust-remote-code",) if settings.trust_remote_code else ()
    return Recipe(program, model, name, (*LORA, *dtype, *trust, *settings.vllm_args))


def environment_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What the server is started in: the caller's environment without our settings, and what adapters and plugin need."""
    kept = {name: value for name, value in environment.items() if not name.startswith("KE_")}
    plugins = dict.fromkeys([*filter(None, kept.get("VLLM_PLUGINS", "").split(",")), *_PLUGINS])
    return {**_DEFAULTS, **kept, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_PLUGINS": ",".join(plugins)}
