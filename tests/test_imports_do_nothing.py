"""Importing has no effect but names (issue 3 §1): nothing heavy is loaded, no file, thread, handler or filter is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ke_tools

HEAVY = {"torch", "transformers", "faiss", "vllm", "sentence_transformers", "peft", "gguf", "numpy", "pydantic", "mcp", "starlette"}
LIGHT = [f"ke_tools{name}" for name in ("", ".cli", ".config", ".errors", ".facts", ".jobs", ".printing", ".prompts")]

PROBE = """
import json, logging, os, random, sys, threading, warnings
before = (len(warnings.filters), random.getstate(), dict(os.environ), list(sys.path))
exec(sys.argv[1])
after = (len(warnings.filters), random.getstate(), dict(os.environ), list(sys.path))
sys.stdout.write("\\n" + json.dumps({
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "same": before == after,
    "handlers": len(logging.getLogger().handlers),
    "threads": threading.active_count(),
}))
"""


def after(code: str, tmp_path: Path) -> dict[str, Any]:
    """What a fresh interpreter looks like after running ``code`` in an empty folder with an empty home."""
    root = Path(ke_tools.__file__).parents[1]
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_light_module_loads_nothing_heavy_and_changes_nothing(module: str, tmp_path: Path) -> None:
    """Issue 3 §1: ``import ke_tools`` loads no torch, faiss, transformers or vllm."""
    state = after(f"import {module}", tmp_path)

    assert HEAVY.isdisjoint(state["loaded"])
    assert (state["same"], state["handlers"], state["threads"]) == (True, 0, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["nonsense"]])
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """Issue 3 §1: ``ke-tools --help`` is as light as an empty program."""
    state = after(f"from ke_tools.cli import run; run({arguments!r})", tmp_path)

    own = {"pydantic"} if arguments[0] != "--help" else set()  # typer checks the values of options with it
    assert (HEAVY - own).isdisjoint(state["loaded"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_importing_every_module_changes_nothing(tmp_path: Path) -> None:
    """No seeds, handlers, folders, downloads or patches on import."""
    root = Path(ke_tools.__file__).parent
    found = [path for folder in ("", "memory", "servers", "prompts") for path in (root / folder).rglob("*.py")]
    names = {".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__") for path in found}
    names -= {"ke_tools.__main__"}

    state = after(f"import importlib\nfor name in {sorted(names)!r}: importlib.import_module(name)", tmp_path)

    assert state["handlers"] == 0
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there_and_lives_where_the_facade_says() -> None:
    """The façade's table is the truth: each lazy name resolves."""
    for name in ke_tools.__all__:
        assert getattr(ke_tools, name) is not None
        assert name in dir(ke_tools)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    """PEP 562: the lazy façade behaves as a module."""
    with pytest.raises(AttributeError, match="no attribute 'Fakt'"):
        _ = ke_tools.Fakt
