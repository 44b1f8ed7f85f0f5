"""What a bench keeps of its work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ke_tools.benches._kept import keep, load


@dataclass(frozen=True)
class Key:
    """All that a result depends on."""

    edits: int
    settings: tuple[tuple[str, str], ...] = (("layers", "2-3"),)


@dataclass(frozen=True)
class OtherKey:
    """The same fields, another thing."""

    edits: int
    settings: tuple[tuple[str, str], ...] = (("layers", "2-3"),)


FOUND = {"rate": 0.5, "by layer": {"2": 1.0}, "words": ["ä", ""]}


def test_what_was_kept_is_found_under_its_key_alone(tmp_path: Path) -> None:
    """Benches are resumable: another number, setting or kind of result is another one."""
    keep(tmp_path / "new", Key(3), FOUND)

    assert load(tmp_path / "new", Key(3)) == FOUND
    assert load(tmp_path / "new", Key(4)) is None
    assert load(tmp_path / "new", replace(Key(3), settings=())) is None
    assert load(tmp_path / "new", OtherKey(3)) is None
    assert load(tmp_path / "nowhere", Key(3)) is None


def test_keeping_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """--fresh computes what is there already."""
    keep(tmp_path, Key(3), FOUND)
    keep(tmp_path, Key(3), [1])

    assert load(tmp_path, Key(3)) == [1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b'{"key": ', b"[]", b"\xff", b'{"key": {"edits": 3}, "found": 1}'])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: bytes) -> None:
    """A run that is killed, a full disk, another program's file: it is computed again."""
    keep(tmp_path, Key(3), FOUND)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)

    assert load(tmp_path, Key(3)) is None


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Whole or not at all."""
    keep(tmp_path, Key(3), FOUND)

    with pytest.raises(TypeError):
        keep(tmp_path, Key(3), object())

    assert load(tmp_path, Key(3)) == FOUND
