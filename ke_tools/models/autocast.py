"""bfloat16 where a device multiplies in it. A processor that does not emulates it: a product of 1,024² takes ninety times as long there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["autocast", "has_bfloat16"]


def has_bfloat16(kind: str) -> bool:
    """Whether products of bfloat16 are quick on a device of this kind (``cpu``, ``cuda`` ...)."""
    import torch

    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    can: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that we allow
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def autocast(kind: str) -> torch.autocast:
    """The context for training in bfloat16; it changes nothing where :func:`has_bfloat16` says no."""
    import torch

    return torch.autocast(kind, torch.bfloat16, enabled=has_bfloat16(kind))
