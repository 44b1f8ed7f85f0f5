"""The entry that an MCP client needs to start ``ke-tools serve``, with absolute paths: hosts have a PATH of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput

NAME: Final = "ke-tools"
_OPTIONS: Final = (  # of the command line
    "home",
    "model",
    "edit_model",
    "engine",
    "vllm_url",
    "vllm",
    "vllm_args",
    "upstream",
    "upstream_key_file",
    "dtype",
    "device",
    "edit_device",
    "read_only",
    "token_file",
    "trust_remote_code",
)
_VARIABLES: Final = ("cache", "demonstrations", "alpha", "via", "grey", "edits", "edits_per_minute")  # which have none
_STARTUP_SECONDS: Final = 60
_CALL_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class Launch:
    """What a host starts, and what it adds to the environment."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def entry(client: str, launch: Launch) -> str:
    """Give the text to paste (JSON or TOML) or to run (``claude-code``), with a final line break.

    Raises:
        InvalidInput: nobody knows such a client.
    """
    if (write := _CLIENTS.get(client)) is None:
        raise InvalidInput(f"there is no entry for {client[:80]!r}.", f"Known are {', '.join(_CLIENTS)}.")
    return write(launch) + "\n"


def launch(settings: Settings, *, connect: str | None = None, tool_prefix: str = "") -> Launch:
    """Give what serves a window with these settings: what flags and environment say here, the host would not know."""
    given = [name for name, source in settings.sources.items() if source.startswith(("--", "KE_"))]
    words = [*program(), "serve"]
    for name in _OPTIONS:
        if name in given:
            words += _flag(name, getattr(settings, name))
    if connect is not None:
        words += ["--connect", connect]
    if tool_prefix:
        words += ["--tool-prefix", tool_prefix]
    return Launch(tuple(words), {f"KE_{name.upper()}": str(getattr(settings, name)) for name in _VARIABLES if name in given})


def program() -> list[str]:
    """Give the absolute command of this installation."""
    beside = Path(sys.executable).parent / NAME
    started = Path(sys.argv[0])
    for candidate in (started if started.name == NAME else None, beside, shutil.which(NAME)):
        if candidate is not None and os.access(candidate, os.X_OK):
            return [os.path.abspath(candidate)]  # noqa: PTH100  a link into an environment must stay one
    return [sys.executable, "-m", "ke_tools"]


def _flag(name: str, value: object) -> list[str]:
    option = "--" + name.replace("_", "-")
    if value is True:
        return [option]
    if name == "vllm_args" and isinstance(value, tuple):
        return [f"--vllm-arg={word}" for word in value]
    if isinstance(value, tuple):
        return [option, ",".join(map(str, value))]
    return [] if value is False or value is None else [option, str(value)]


def _claude_code(launch: Launch) -> str:
    variables = [word for name, value in launch.environment.items() for word in ("-e", f"{name}={value}")]
    return shlex.join(["claude", "mcp", "add", NAME, *variables, "--", *launch.command])


def _server(launch: Launch) -> dict[str, Any]:
    described: dict[str, Any] = {"command": launch.command[0], "args": list(launch.command[1:])}
    return {**described, "env": dict(launch.environment)} if launch.environment else described


def _servers(launch: Launch) -> str:
    return _json({"mcpServers": {NAME: _server(launch)}})


def _vscode(launch: Launch) -> str:
    return _json({"servers": {NAME: {"type": "stdio", **_server(launch)}}})


def _codex(launch: Launch) -> str:
    lines = [
        f"[mcp_servers.{NAME}]",
        f"command = {_toml(launch.command[0])}",
        f"args = [{', '.join(_toml(word) for word in launch.command[1:])}]",
        f"startup_timeout_sec = {_STARTUP_SECONDS}",
        f"tool_timeout_sec = {_CALL_SECONDS}",
    ]
    if launch.environment:
        lines += ["", f"[mcp_servers.{NAME}.env]", *(f"{name} = {_toml(value)}" for name, value in launch.environment.items())]
    return "\n".join(lines)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _toml(text: str) -> str:
    """Write a TOML string; its escapes are JSON's, and U+007F must be one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_CLIENTS: Final[Mapping[str, Callable[[Launch], str]]] = {
    "claude-code": _claude_code,
    "claude-desktop": _servers,
    "cursor": _servers,
    "vscode": _vscode,
    "codex": _codex,
}
