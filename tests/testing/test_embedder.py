"""The embedder of the tests."""

from __future__ import annotations

import numpy as np

from ke_tools.testing import HashingEmbedder


def test_vectors_are_unit_float32_of_the_stated_dimension() -> None:
    """Contract of Embedder: float32, (n, d), unit length; also for texts without a word."""
    embedder = HashingEmbedder(64)
    vectors = embedder.encode(["The capital of France is", "", "?!"])
    assert vectors.shape == (3, embedder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


def test_no_texts_give_no_rows() -> None:
    """An empty batch is a batch."""
    assert HashingEmbedder().encode([]).shape == (0, 384)


def test_the_same_text_has_the_same_vector_in_every_process() -> None:
    """Deterministic: no salted hash(); case and diacritics are folded."""
    first, second = HashingEmbedder().encode(["Málaga is a city", "malaga IS a city"])
    np.testing.assert_array_equal(first, second)
    assert np.flatnonzero(HashingEmbedder(16).encode(["a"])[0]).tolist() == [15]


def test_texts_that_share_words_are_nearer() -> None:
    """An embedder for tests must order the plain cases as a real one does."""
    asked, near, far = HashingEmbedder().encode(["the capital of {}", "what is the capital city of {}", "who wrote the book {}"])
    assert asked @ near > asked @ far + 0.2


def test_the_fingerprint_names_the_method_and_the_dimension() -> None:
    """Indexes are rebuilt when the fingerprint changes."""
    assert HashingEmbedder(8).fingerprint != HashingEmbedder(16).fingerprint
