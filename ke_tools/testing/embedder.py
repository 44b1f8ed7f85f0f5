"""An embedder without a model: hashed words and character n-grams."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from ke_tools.facts import squash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LENGTHS: Final = (3, 4)


class HashingEmbedder:
    """Texts that share words or parts of words are near each other; the same everywhere, at once, without weights.

    Each word and each of its 3- and 4-grams (edges marked) adds +1 or -1, damped by a root, to one of ``dimension`` places that its
    CRC-32 names. Implements :class:`ke_tools.memory.scope.Embedder`.
    """

    def __init__(self, dimension: int = 384) -> None:
        self.dimension = dimension
        self.fingerprint = f"hashing-1:{dimension}"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, float32, shape (texts, dimension); a text without letters or digits has a vector too."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for part, count in Counter(_parts(text)).items():
                code = zlib.crc32(part.encode())
                vectors[row, (code >> 1) % self.dimension] += (1.0 if code & 1 else -1.0) * count**0.5
            if not vectors[row].any():
                vectors[row, 0] = 1.0
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def _parts(text: str) -> Iterator[str]:
    for word in squash(text).split():
        marked = f"^{word}$"
        yield marked
        for length in LENGTHS:
            yield from (marked[i : i + length] for i in range(len(marked) - length + 1))
