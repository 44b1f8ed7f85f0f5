"""What the documents show can be done (design: docs' snippets are executed by tests)."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from ke_tools.cli import app
from ke_tools.config import Settings
from ke_tools.editors.update import Outcome
from ke_tools.servers.candidates import Wanted
from ke_tools.testing import thimble_path
from ke_tools.verify.policy import Policy

ROOT = Path(__file__).parent.parent
PAGES = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"--[a-z][a-z-]+")


def blocks(language: str) -> list[tuple[Path, str]]:
    """Collect the fenced blocks of a language, with their page."""
    return [(page, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def commands() -> list[tuple[str, list[str]]]:
    """Collect the ke-tools commands shown."""
    found = []
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["ke-tools"]:
                found.append((f"{page.name}: {line}", words[1:]))
    return found


@pytest.mark.parametrize(("shown", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_shown_exists_with_its_options(shown: str, words: list[str]) -> None:
    """A reader types what a page shows; a verb or an option that is not there would be the first thing they meet."""
    program = command = get_command(app)
    verbs = []
    for word in words:
        if word in (getattr(command, "commands", None) or {}):
            command = command.commands[word]  # type: ignore[attr-defined]
            verbs.append(word)
    told = CliRunner().invoke(app, [*verbs, "--help"], env={"COLUMNS": "200"}).output
    known = {option for parameter in (*program.params, *command.params) for option in parameter.opts}

    assert verbs, shown
    assert "Usage" in told
    assert {word for word in words if OPTION.fullmatch(word)} <= known, shown


@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda value: value.name if isinstance(value, Path) else "")
def test_python_shown_is_python_and_imports_what_exists(page: Path, text: str) -> None:
    """The snippets of the pages are programs."""
    tree = ast.parse(text, str(page))
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]

    for line in imports:
        exec(line, {})  # noqa: S102


def test_every_make_target_shown_exists() -> None:
    """The README's two commands."""
    shown = {name for _, text in blocks("bash") for name in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)}
    listed = subprocess.run(["make", "-pRrq", "-C", ROOT, ":"], capture_output=True, text=True, check=False).stdout
    targets = set(re.findall(r"^([a-z-]+):", listed, re.MULTILINE))

    assert {"demo", "test"} <= shown
    assert shown <= targets


def test_the_settings_shown_are_read(tmp_path: Path) -> None:
    """A reader copies them into the file."""
    for number, (_, text) in enumerate(blocks("toml")):
        home = tmp_path / str(number)
        home.mkdir()
        (home / "ke-tools.toml").write_text(text, "utf-8")
        promote = Settings.load(home=str(home)).promote
        Wanted.from_mapping(promote.get("auto", {}))
        for of in ({}, *promote.get("tenants", {}).values()):
            Policy.from_mapping({name: value for name, value in promote.items() if name not in {"auto", "tenants"}} | of)
    assert blocks("toml")


def test_the_gates_defaults_shown_are_the_gates() -> None:
    """The table of the page on promotion."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", (ROOT / "docs" / "promotion.md").read_text("utf-8"), re.MULTILINE)
    shown = {
        name: value.strip("` ")
        for names, values in rows
        for name, value in zip(re.findall(r"\w+", names), values.split(", "), strict=False)
        if hasattr(Policy, name)
    }
    defaults = asdict(Policy())
    assert {name for name, value in defaults.items() if value} == shown.keys()
    assert {name: defaults[name] if isinstance(defaults[name], str) else float(defaults[name]) for name in shown} == {
        name: value if isinstance(defaults[name], str) else float(value) for name, value in shown.items()
    }


def test_the_programs_of_the_page_on_chats_run() -> None:
    """As a reader would type them; no model is needed."""
    shown = [text for page, text in blocks("python") if page.name == "chat.md"]
    for text in shown:
        exec(text, {})  # noqa: S102

    assert shown


@pytest.mark.slow
def test_the_programs_of_the_page_on_editors_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, as a reader would type them, on a small trained model."""
    monkeypatch.setenv("KE_MODEL", str(thimble_path()))
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}

    for page, text in blocks("python"):
        if page.name == "editors.md":
            exec(text, known)  # noqa: S102

    said = capsys.readouterr().out
    assert said.startswith("The inventor of Tetris is")
    assert any(outcome.value in said for outcome in Outcome)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_fleets_example_starts_vllm_as_the_page_says() -> None:
    """A flag that is missing in the example would fail silently: vLLM ignores what it does not adapt."""
    example = yaml.safe_load((ROOT / "examples" / "fleet" / "compose.yaml").read_text("utf-8"))
    page = (ROOT / "docs" / "vllm.md").read_text("utf-8")
    replicas = [service for service in example["services"].values() if "vllm" in service["image"]]
    [asked] = re.findall(r"^vllm serve \S+ --port 8000 (--enable-lora.*?\n.*?)$", page, re.MULTILINE)
    flags = asked.replace("\\\n", " ").split()

    assert len(replicas) == 2
    for replica in replicas:
        assert set(flags) <= set(replica["command"][0].split())
        assert replica["environment"]["VLLM_PLUGINS"] in page
