"""The index file: a cache that is checked before it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.memory.scope import stored
from ke_tools.memory.scope.stored import Origin, Unusable
from ke_tools.memory.scope.tenant import Derived
from ke_tools.memory.subjects import keys_of

NAMES = st.lists(st.text(min_size=1, max_size=12), max_size=3)


def origin(**other: object) -> Origin:
    """What a file was made from."""
    made = {"tenant": "t", "seq": 7, "chain": "ab" * 32, "naming": stored.naming(), "embedder": "e", "dimension": 3}
    return Origin(**{**made, **other})  # type: ignore[arg-type]


def derived(*names: list[str], vectors: int = 0) -> Derived:
    """Keys of an edit each, and vectors of the first."""
    keys = {f"ed_{number}": keys_of(some) for number, some in enumerate(names)}
    return Derived(keys, {"ed_0": np.arange(3 * vectors, dtype=np.float32).reshape(vectors, 3)} if vectors and names else {})


def read(path: Path, **other: object) -> tuple[Origin, Derived]:
    """Read what :func:`origin` describes."""
    return stored.read(path, **{"tenant": "t", "embedder": "e", "dimension": 3, **other})  # type: ignore[arg-type]


@given(st.lists(NAMES, max_size=4), st.integers(0, 3))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, names: list[list[str]], vectors: int) -> None:
    """The issue on scope: export and import are the identity."""
    path = tmp_path_factory.mktemp("cache") / "scope" / "a.index"
    made = derived(*names, vectors=vectors)
    stored.write(path, origin(), made)

    found_origin, found = read(path)

    assert (found_origin, found.keys) == (origin(), made.keys)
    assert found.vectors.keys() == made.vectors.keys()
    assert all(np.array_equal(found.vectors[edit_id], rows) for edit_id, rows in made.vectors.items())


def test_only_the_owner_may_read_it_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    """It holds the names of a tenant's subjects."""
    path = tmp_path / "scope" / "a.index"
    stored.write(path, origin(), derived(["Australia"]))
    stored.write(path, origin(), derived(["Austria"]))

    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The issue on scope: temporary file, fsync, rename."""
    path = tmp_path / "a.index"
    stored.write(path, origin(), derived(["Australia"]))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        stored.write(path, origin(), derived(["Austria"]))

    assert read(path)[1] == derived(["Australia"])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"tenant": "another"}, "made for another tenant"),
        ({"embedder": "another"}, "made for another embedding model"),
        ({"dimension": 4}, "made for another embedding model"),
    ],
)
def test_a_file_of_another_tenant_or_model_is_refused(tmp_path: Path, other: dict[str, object], told: str) -> None:
    """The issue on scope: any mismatch means that it is made anew."""
    path = tmp_path / "a.index"
    stored.write(path, origin(), derived(["Australia"], vectors=2))

    with pytest.raises(Unusable, match=told):
        read(path, **other)


def test_a_file_made_with_other_names_is_refused(tmp_path: Path) -> None:
    """Keys depend on the atlas's names and on how they are folded."""
    path = tmp_path / "a.index"
    stored.write(path, origin(naming="older"), derived(["Australia"]))

    with pytest.raises(Unusable, match="list of names"):
        read(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda whole: whole[:-1], "damaged"),
        (lambda whole: whole[: len(whole) // 2], "damaged"),
        (lambda whole: whole[:20], "damaged"),
        (lambda _whole: b"", "damaged"),
        (lambda _whole: b"\x80\x04K\x01.\n", "damaged"),
        (lambda _whole: b"[]\n", "damaged"),
        (lambda _whole: b"{" * 100_000, "damaged"),
        (lambda whole: whole + b"x", "damaged"),
        (lambda whole: whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:], "damaged"),
        (lambda whole: whole.replace(b"australia", b"austrasia"), "damaged"),
        (lambda whole: whole.replace(b'"edits": 1', b'"edits": 2'), "damaged"),
        (lambda whole: whole.replace(b'"vectors": 2', b'"vectors": 1'), "damaged"),
        (lambda whole: whole.replace(b'"format": 1', b'"format": 0'), "has the form 0"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], told: str) -> None:
    """The issue on scope: truncated, altered, of an older form: never an error, never believed."""
    path = tmp_path / "a.index"
    stored.write(path, origin(), derived(["Australia"], vectors=2))
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))

    with pytest.raises(Unusable, match=told):
        read(path)


def test_the_header_says_in_words_what_the_file_was_made_from(tmp_path: Path) -> None:
    """A person can look at it; nothing is pickled."""
    path = tmp_path / "a.index"
    stored.write(path, origin(), derived(["Australia"], ["Austria"], vectors=2))

    header = json.loads(path.read_bytes().splitlines()[0])

    assert (header["edits"], header["vectors"], header["seq"], header["dimension"]) == (2, 2, 7, 3)
    assert header.keys() >= {"format", "tenant", "chain", "naming", "embedder", "sha256"}
