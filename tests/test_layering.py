"""Imports point one way (design §2), and the folders beside the package are reached through it only (variant F3)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ke_tools"

# Lowest first. A module may import what stands in an earlier row, and its own package.
LEVELS = (
    {"errors", "printing", "prompts", "screen"},
    {"facts"},
    {"cases", "config"},
    {"atlas"},
    {"memory", "models"},
    {"editors"},
    {"editing", "releases"},
    {"verify"},
    {"promotion"},
    {"workshop"},
    {"jobs"},
    {"servers"},
    {"testing"},
    {"benches"},
    {"demo"},
    {"cli"},
)
# Importer and imported, with the reason.
EXCEPTIONS = {
    ("memory/router.py", "ke_tools.models.engine"): "what goes in is a request to an engine",
    ("memory/judge.py", "ke_tools.models.engine"): "the judge is asked by a request to an engine",
    ("memory/scope/contrast.py", "ke_tools.models.autocast"): "a training computes in what the device is quick in",
    ("memory/scope/crossing.py", "ke_tools.models.autocast"): "a training computes in what the device is quick in",
}


def level(name: str) -> int:
    """Row of a top-level module of the package."""
    return next(number for number, names in enumerate(LEVELS) if name in names)


def modules() -> list[Path]:
    """Every module of the package, through the links."""
    return sorted(path for folder in (PACKAGE, *(p for p in PACKAGE.iterdir() if p.is_symlink())) for path in folder.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def owner(name: str) -> str:
    """Top-level module of the package that a full name belongs to; empty for other packages."""
    parts = name.split(".")
    return parts[1] if parts[0] == "ke_tools" and len(parts) > 1 else ""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    """Design §2: the direction of imports."""
    place = path.relative_to(PACKAGE)
    mine = place.parts[0].removesuffix(".py")
    if mine in {"__init__", "__main__"}:
        return  # the façade names everything, lazily

    wrong = [
        name
        for name in imported(path)
        if (theirs := owner(name)) not in {"", mine, "__version__"}
        and level(theirs) >= level(mine)
        and not any(str(place) == importer and name.startswith(target) for importer, target in EXCEPTIONS)
    ]

    assert wrong == []


def test_every_module_has_a_level() -> None:
    """A new module must be given its place in the order."""
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()} - {"__init__", "__main__"}

    assert found <= set().union(*LEVELS)


@pytest.mark.parametrize("folder", ["memory", "servers", "prompts"])
def test_the_link_resolves_to_the_folder_beside_the_package(folder: str) -> None:
    """A checkout without links must fail loudly, not import half a package."""
    link = PACKAGE / folder

    assert link.is_symlink(), "this checkout has no symbolic links; git config core.symlinks true"
    assert link.readlink() == Path("..") / folder
    assert link.resolve() == ROOT / folder
    assert (link / "__init__.py").is_file()
