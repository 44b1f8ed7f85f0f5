"""The entries for MCP clients: valid, absolute, complete."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path

import pytest

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput
from ke_tools.servers import clients, serve

LAUNCH = clients.Launch(("/opt/my tools/ke-tools", "serve", "--home", '/home/ü/a "b"\\c'), {"KE_CACHE": "/var/cache/ke"})


@pytest.mark.parametrize(("client", "key"), [("claude-desktop", "mcpServers"), ("cursor", "mcpServers"), ("vscode", "servers")])
def test_a_json_entry_is_json_and_starts_the_command(client: str, key: str) -> None:
    """research/mcp §3.5: the keys that each host reads."""
    entry = json.loads(clients.entry(client, LAUNCH))[key]["ke-tools"]
    assert (entry["command"], *entry["args"]) == LAUNCH.command
    assert entry["env"] == LAUNCH.environment
    assert (entry.get("type") == "stdio") is (client == "vscode")


def test_the_readme_leads_every_client_to_the_entry_with_absolute_paths() -> None:
    """A host has a PATH of its own, in which a bare `ke-tools` is not found."""
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    table = readme.partition("### In an MCP client")[2].partition("\n#")[0]

    for client in ("claude-code", "claude-desktop", "cursor", "vscode", "codex"):
        assert f"`ke-tools serve --print-config {client}`" in table, client
    assert "-- ke-tools serve" not in table


def test_the_codex_entry_is_toml() -> None:
    """research/mcp §3.5: Codex reads TOML and gives up after 10 s unless told otherwise."""
    entry = tomllib.loads(clients.entry("codex", LAUNCH))["mcp_servers"]["ke-tools"]
    assert (entry["command"], *entry["args"]) == LAUNCH.command
    assert entry["env"] == LAUNCH.environment
    assert entry["startup_timeout_sec"] >= 30


def test_the_claude_code_entry_is_a_command_line() -> None:
    """research/mcp §3.5: everything after -- is the server's command."""
    words = shlex.split(clients.entry("claude-code", LAUNCH))
    assert words[:4] == ["claude", "mcp", "add", "ke-tools"]
    assert words[4:6] == ["-e", "KE_CACHE=/var/cache/ke"]
    assert tuple(words[words.index("--") + 1 :]) == LAUNCH.command


def test_an_unknown_client_is_refused() -> None:
    """Style §4: the message names what is known."""
    with pytest.raises(InvalidInput, match="codex"):
        clients.entry("emacs", LAUNCH)


def test_the_entry_repeats_what_the_host_would_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §4: a host starts the server with an environment of its own, in a folder of its own."""
    monkeypatch.setenv("KE_DEMONSTRATIONS", "3")
    monkeypatch.setenv("KE_HOME", str(tmp_path / "unused"))
    settings = Settings.load(home=tmp_path / "home", read_only=True, http="127.0.0.1:9000")
    launch = clients.launch(settings, tool_prefix="ke_")
    assert Path(launch.command[0]).is_absolute()
    assert list(launch.command[launch.command.index("serve") :]) == [
        *("serve", "--home", str(tmp_path / "home"), "--read-only", "--tool-prefix", "ke_"),
    ]
    assert launch.environment == {"KE_DEMONSTRATIONS": "3"}


def test_serve_prints_the_entry_and_serves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §4: `ke-tools serve --print-config`."""
    assert serve.run(Settings.load(home=tmp_path / "home"), print_config="cursor") == 0
    assert "serve" in json.loads(capsys.readouterr().out)["mcpServers"]["ke-tools"]["args"]
    assert not (tmp_path / "home").exists()


def test_the_entry_repeats_each_argument_for_vllm_as_one_word() -> None:
    """Issue 7, §1: such an argument may hold commas and spaces."""
    launch = clients.launch(Settings.load(engine="vllm", vllm="/env/bin/vllm", vllm_args=["--x", '{"a": 1, "b": 2}']))
    assert launch.command[2:] == ("--engine", "vllm", "--vllm", "/env/bin/vllm", "--vllm-arg=--x", '--vllm-arg={"a": 1, "b": 2}')


def test_the_entry_repeats_what_edits_are_planned_with() -> None:
    """Issue 7, §5: a host that starts the server must plan with the same."""
    launch = clients.launch(Settings.load(engine="vllm", model="a/quantised", edit_model="a/twin", edit_device="cpu"))
    words = " ".join(launch.command)
    assert "--model a/quantised --edit-model a/twin --engine vllm --edit-device cpu" in words
