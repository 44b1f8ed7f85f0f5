"""Verbs that move edits out and in, as JSON lines."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ke_tools import printing
from ke_tools.cli.calls import DONE, Call, Lines, lines_of, service, show_lines, verb

PANEL: Final = "Move"

app = typer.Typer()


@verb(app, "export", PANEL)
def export(call: Call, *, events: Annotated[bool, typer.Option("--events", help="With the whole history.")] = False) -> int:
    """Write the live edits as JSON lines, which import reads."""
    with service(call) as local:
        for text in local.export_lines(events=events):
            printing.line(text)
    return DONE


@verb(app, "import", PANEL)
def import_(call: Call, file: Lines = None) -> int:
    """Correct a fact for each JSON line; one line of output for each line of input."""
    with lines_of(file) as lines, service(call) as local:
        return show_lines(local.import_lines(lines))
