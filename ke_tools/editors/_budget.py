"""How many tokens run at once: as many as a budget says, and half as many whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from ke_tools.errors import ResourceExhausted

__all__ = ["Budget"]

Row = TypeVar("Row")
_SIGNS: Final = ("out of memory", "not enough memory", "can't allocate memory")  # CUDA and MPS; the CPU, on Windows and elsewhere


@dataclass(slots=True)
class Budget:
    """Tokens of a padded batch; what was learnt of the memory holds for all that is run under it."""

    tokens: int

    def each(self, rows: Sequence[Row], length: Callable[[Row], int], run: Callable[[list[Row]], None]) -> None:
        """Run rows in batches, in order; ``run`` must leave nothing behind when it fails.

        Raises:
            ResourceExhausted: there is no memory for a row alone.
        """
        rest = list(rows)
        while rest:
            part: list[Row] = []
            longest = 0
            for row in rest:
                longest = max(longest, length(row))
                if part and longest * (len(part) + 1) > self.tokens:
                    break
                part.append(row)
            if self.holds(partial(run, part), len(part), max(map(length, part))):
                del rest[: len(part)]

    def holds(self, run: Callable[[], None], rows: int, longest: int) -> bool:
        """Run a batch; false where memory ran out, with the budget below what the batch took.

        Raises:
            ResourceExhausted: the batch is one row already.
        """
        try:
            run()
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)):
                raise
            if rows == 1:
                raise ResourceExhausted(
                    f"there is no memory for one text of {longest} tokens by itself.",
                    "Nothing was changed. Give fewer facts at once or shorter prompts, or load the model in bfloat16.",
                ) from error
        else:
            return True
        self.tokens = min(self.tokens, rows * longest) // 2
        _release()  # out of the handler, whose traceback keeps the batch's tensors
        return False


def _release() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
