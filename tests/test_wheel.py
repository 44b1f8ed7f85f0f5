"""What users install: one top-level name, everything of ours in it, nothing of the developer's."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
FOLDERS = ("memory", "servers", "prompts")
LEFT_OUT = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of this tree in which a developer has been at work."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("ke_tools", *FOLDERS):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tree / name)
    (tree / "memory" / "facts.db").write_bytes(b"a developer's own")
    (tree / "memory" / "facts.db-wal").write_bytes(b"a developer's own")
    [built] = WheelBuilder(str(tree)).build(directory=str(tree / "dist"), versions=["standard"])
    return zipfile.ZipFile(built)


def test_the_wheel_holds_ke_tools_and_nothing_else_at_its_top(wheel: zipfile.ZipFile) -> None:
    """An MCP server starts in projects that have their own memory/ and prompts/: we must install none."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    assert {top for top in tops if not top.endswith(".dist-info")} == {"ke_tools"}
    assert len(tops) == 2


def test_every_file_of_the_package_and_of_the_three_folders_is_in_the_wheel_once(wheel: zipfile.ZipFile) -> None:
    """A new nested package or data file is shipped without being listed anywhere."""
    own = [path for path in (ROOT / "ke_tools").rglob("*") if not path.is_symlink()]
    linked = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    wanted = {
        path.relative_to(ROOT).as_posix() if path in own else f"ke_tools/{path.relative_to(ROOT).as_posix()}"
        for path in [*own, *linked]
        if path.is_file() and not LEFT_OUT & set(path.parts) and ".db" not in path.suffix
    }
    names = wheel.namelist()

    assert wanted <= set(names)
    assert len(names) == len(set(names))


def test_no_database_of_a_developer_is_shipped(wheel: zipfile.ZipFile) -> None:
    """A git-ignored ledger beside the code stays where it is."""
    assert [name for name in wheel.namelist() if ".db" in name] == []


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    """Name, licence, types and the console script, which is how clients start the server."""
    [info] = {name.split("/")[0] for name in wheel.namelist() if ".dist-info" in name}
    metadata = wheel.read(f"{info}/METADATA").decode()
    scripts = wheel.read(f"{info}/entry_points.txt").decode()

    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "ke_tools/py.typed" in wheel.namelist()
    assert "ke-tools = ke_tools.cli:main" in scripts
