"""ke-tools: correct what a served language model believes, prove it, and take it back.

The names below are read on first use, so that ``import ke_tools`` loads neither torch nor anything else that is heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ke_tools.config import Settings as Settings
    from ke_tools.errors import Conflict as Conflict
    from ke_tools.errors import InvalidInput as InvalidInput
    from ke_tools.errors import KeToolsError as KeToolsError
    from ke_tools.errors import ModelLoading as ModelLoading
    from ke_tools.errors import NotFound as NotFound
    from ke_tools.errors import Refused as Refused
    from ke_tools.facts import Edit as Edit
    from ke_tools.facts import Fact as Fact
    from ke_tools.facts import Probe as Probe
    from ke_tools.facts import State as State
    from ke_tools.memory.ledger import Ledger as Ledger
    from ke_tools.memory.router import Router as Router
    from ke_tools.memory.scope import Scope as Scope
    from ke_tools.models.engine import Engine as Engine
    from ke_tools.models.engine import Generation as Generation
    from ke_tools.models.engine import Request as Request
    from ke_tools.servers.engines.hf import HFEngine as HFEngine
    from ke_tools.servers.service import Service as Service
    from ke_tools.servers.service import open_service as open_service

__version__ = "0.1.0"

_HOMES: Final = {
    "Conflict": "errors",
    "Edit": "facts",
    "Engine": "models.engine",
    "Fact": "facts",
    "Generation": "models.engine",
    "HFEngine": "servers.engines.hf",
    "InvalidInput": "errors",
    "KeToolsError": "errors",
    "Ledger": "memory.ledger",
    "ModelLoading": "errors",
    "NotFound": "errors",
    "Probe": "facts",
    "Refused": "errors",
    "Request": "models.engine",
    "Router": "memory.router",
    "Scope": "memory.scope",
    "Service": "servers.service",
    "Settings": "config",
    "State": "facts",
    "open_service": "servers.service",
}

__all__ = [  # noqa: PLE0604  the table above is the list
    "__version__",
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    """Read a public name from the module it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name the lazy names too."""
    return sorted({*globals(), *__all__})
