"""A home's secret key in a file of its own: made once, whole, and readable by its owner alone."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KEY_BYTES", "made"]

KEY_BYTES: Final = 32


def made(path: Path) -> bytes:
    """Read the key, which is made where there is none; the first of several processes wins.

    Raises:
        OSError: it cannot be written or read.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(partial)  # whole, or not there
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    return path.read_bytes()
