"""What runs inside vLLM: codebooks of releases, and a repair of vLLM's LoRA on processors.

Installed into the server's own environment, as ``ke-tools-vllm`` (this folder, without ke-tools' dependencies). vLLM calls
:func:`register` in each of its processes. The parts: ``codebook`` (a release's codebook acts for the requests of that release alone),
``processor`` (requests without adapter stay without, on a CPU), ``status`` (a route that says that the plugin is there).
"""

from __future__ import annotations

import logging
from importlib import import_module

__all__ = ["OLDEST", "TOO_NEW", "register"]

OLDEST, TOO_NEW = (0, 32), (0, 34)  # of vLLM: what is patched was read in these

_log = logging.getLogger("vllm.ke_tools")


def register() -> None:
    """Put the parts in; may be called several times.

    Raises:
        RuntimeError: this vLLM is not known, so that its inside may be another.
    """
    import vllm

    _check(str(vllm.__version__))
    import_module(".codebook", __name__).register()
    if import_module(".processor", __name__).register():
        _log.info("ke-tools: requests without adapter stay without on this processor")
    _log.info("ke-tools: codebooks of releases act")


def _check(version: str) -> None:
    found = tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:2] if part.isdigit())
    if not OLDEST <= found < TOO_NEW:
        raise RuntimeError(
            f"the plugin of ke-tools knows vLLM {_shown(OLDEST)} up to before {_shown(TOO_NEW)}; this is {version}. "
            "Install one of these, or leave the plugin out (VLLM_PLUGINS) and promote by memit alone."
        )


def _shown(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
