"""Verbs that serve: agents and chat clients, a person at the terminal, and the story that shows it all."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import Annotated, Final, Literal

import typer

from ke_tools import printing
from ke_tools.cli.calls import DONE, Call, Longest, service, verb
from ke_tools.config import DEFAULT_ADDRESS, ChatCorrections, Edits

PANEL: Final = "Serve"
Client = Literal["claude-code", "claude-desktop", "cursor", "vscode", "codex"]

app = typer.Typer()


@verb(app, "serve", PANEL)
def serve(
    call: Call,
    *,
    http: Annotated[
        str | None, typer.Option(metavar="[HOST:PORT]", help=f"One port for MCP, /v1 and health; bare: {DEFAULT_ADDRESS}.")
    ] = None,
    connect: Annotated[str | None, typer.Option(metavar="URL", help="Be a front of the server at URL.")] = None,
    print_config: Annotated[Client | None, typer.Option(help="Print the entry for this client and stop.")] = None,
    tool_prefix: Annotated[str, typer.Option(help="Put before every tool's name, for hosts that mix servers.")] = "",
    allow_host: Annotated[list[str] | None, typer.Option(help="Answer to this name in the Host header too (repeatable).")] = None,
    edits: Annotated[
        Edits | None, typer.Option(help="propose: an edit waits until `ke-tools approve`, whoever makes it. [KE_EDITS]")
    ] = None,
    edits_per_minute: Annotated[
        int | None, typer.Option(min=0, help="That one token may record; 0: any number. [KE_EDITS_PER_MINUTE]")
    ] = None,
    chat_corrections: Annotated[
        ChatCorrections | None, typer.Option(help='Whether /correct and "no, it is …" are obeyed in chats at /v1. [KE_CHAT_CORRECTIONS]')
    ] = None,
) -> int:
    """Serve agents over MCP on standard input and output, or everybody on one port."""
    from ke_tools.servers import serve as serving

    settings = call.settings(http=http, edits=edits, edits_per_minute=edits_per_minute, chat_corrections=chat_corrections)
    return serving.run(
        settings, http=settings.http, print_config=print_config, connect=connect, tool_prefix=tool_prefix, allow_hosts=allow_host or []
    )


@verb(app, "demo", PANEL)
def demo(
    call: Call,
    *,
    full: Annotated[bool, typer.Option("--full", help="Also promote corrections into a tiny model, and roll them back.")] = False,
) -> int:
    """Tell the whole story on the real model: ask, correct, ask again, verify, take back."""
    from ke_tools import demo as story

    return story.run(call.settings(), is_full=full, as_json=call.as_json)


@verb(app, "chat", PANEL)
def chat(
    call: Call,
    *,
    view: Annotated[Literal["edited", "base"], typer.Option(help="With the edits, or as the base model.")] = "edited",
    max_tokens: Longest = 256,
) -> int:
    """Talk to the served model; /correct SENTENCE, /why and /undo act, an empty line or the end of the input ends it."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    with service(call, asks_model=True) as local, local.conversation(view=view, max_tokens=max_tokens) as talk:
        while question := _ask_person():
            if call.as_json:
                for _ in talk.say(question):
                    pass
                printing.line(talk.last)
            else:
                printing.streamed(talk.say(question))
    return DONE


def _ask_person() -> str:
    while not _is_whole(question := _read_turn()):
        printing.note("That was not UTF-8, so it was not asked.")
    return question


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def _read_turn() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    with suppress(ImportError):
        import readline  # noqa: F401  earlier messages by the arrow keys; nothing is written to a file
    try:
        return input("> ").strip()
    except EOFError:
        return ""
