"""The entry that an MCP client needs to start ``ke-tools serve``, with absolute paths: hosts have a PATH of their own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput

NAME: Final = "ke-tools"
_LEFT_OUT: Final = frozenset({"http"})  # a window has no port
_STARTUP_SECONDS: Final = 60
_CALL_SECONDS: Final = 120


def entry(client: str, command: Sequence[str]) -> str:
    """Give the text to paste (JSON or TOML) or to run (``claude-code``), with a final line break.

    Raises:
        InvalidInput: nobody knows such a client.
    """
    if (write := _CLIENTS.get(client)) is None:
        raise InvalidInput(f"there is no entry for {client[:80]!r}.", f"Known are {', '.join(_CLIENTS)}.")
    return write(list(command)).rstrip("\n") + "\n"


def command(settings: Settings, *, connect: str | None = None, tool_prefix: str = "") -> list[str]:
    """Give the command that serves a window with these settings: what flags and environment say, the host would not know."""
    words = [*program(), "serve"]
    for name, source in settings.sources.items():
        if source.startswith(("--", "KE_")) and name not in _LEFT_OUT:
            words += _flag(name, getattr(settings, name))
    if connect is not None:
        words += ["--connect", connect]
    if tool_prefix:
        words += ["--tool-prefix", tool_prefix]
    return words


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
    return [] if value is False or value is None else [option, str(value)]


def _claude_code(words: list[str]) -> str:
    return shlex.join(["claude", "mcp", "add", NAME, "--", *words])


def _servers(words: list[str]) -> str:
    return _json({"mcpServers": {NAME: {"command": words[0], "args": words[1:]}}})


def _vscode(words: list[str]) -> str:
    return _json({"servers": {NAME: {"type": "stdio", "command": words[0], "args": words[1:]}}})


def _codex(words: list[str]) -> str:
    lines = [
        f"[mcp_servers.{NAME}]",
        f"command = {_toml(words[0])}",
        f"args = [{', '.join(_toml(word) for word in words[1:])}]",
        f"startup_timeout_sec = {_STARTUP_SECONDS}",
        f"tool_timeout_sec = {_CALL_SECONDS}",
    ]
    return "\n".join(lines)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _toml(text: str) -> str:
    """Write a TOML string; its escapes are JSON's, and U+007F must be one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_CLIENTS: Final[Mapping[str, Callable[[list[str]], str]]] = {
    "claude-code": _claude_code,
    "claude-desktop": _servers,
    "cursor": _servers,
    "vscode": _vscode,
    "codex": _codex,
}
