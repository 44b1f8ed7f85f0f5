"""Public fakes for tests: a tiny trained model, an embedder without a model, a ledger without a file.

The *thimble* is a real Llama checkpoint of three million parameters that knows :func:`thimble_facts`, obeys a fact in its context and
answers in milliseconds; ``thimble/README.md`` has its numbers. It is for tests only.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ke_tools.atlas import AtlasFact
from ke_tools.testing.embedder import HashingEmbedder

if TYPE_CHECKING:
    from ke_tools.memory.ledger import Ledger

__all__ = ["HashingEmbedder", "memory_ledger", "thimble_facts", "thimble_path"]


def thimble_path() -> Path:
    """The thimble's checkpoint directory, as transformers and vLLM load it."""
    return Path(__file__).parent / "thimble"


@cache
def thimble_facts() -> tuple[AtlasFact, ...]:
    """The hundred facts of the atlas that the shipped thimble knows, one object each."""
    rows = json.loads((thimble_path() / "facts.json").read_text("utf-8"))
    return tuple(AtlasFact(row["relation"], row["subject"], tuple(row["objects"]), row["source"]) for row in rows)


def memory_ledger() -> Ledger:
    """A ledger in memory, gone when it is closed."""
    from ke_tools.memory.ledger import Ledger

    return Ledger(":memory:")
