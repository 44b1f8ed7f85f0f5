"""Verbs that look: which edits there are, what happened, and whether all is well."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import typer

from ke_tools.cli.calls import DONE, FAILED, Call, Cursor, GpuGib, Limit, service, show, verb

PANEL: Final = "Look"

app = typer.Typer()


@verb(app, "list", PANEL)
def list_edits(
    call: Call,
    *,
    state: Annotated[Literal["any", "live", "proposed", "active", "promoted", "retired"], typer.Option(help="Which.")] = "any",
    contains: Annotated[str, typer.Option(help="Only those with this text.")] = "",
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """List edits, newest first."""
    with service(call) as local:
        return show(call, local.list_edits(state=state, contains=contains, limit=limit, cursor=cursor))


@verb(app, "history", PANEL)
def history(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="Only this edit's.")] = "",
    *,
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """Show who changed what, when and why."""
    with service(call) as local:
        return show(call, local.history(edit_id=edit_id, limit=limit, cursor=cursor))


@verb(app, "doctor", PANEL)
def doctor(
    call: Call,
    *,
    deep: Annotated[bool, typer.Option("--deep", help="Derive everything from the log again and compare.")] = False,
    gpu_gib: GpuGib = None,
) -> int:
    """Say what is configured, what works and what does not, and whether the model fits."""
    with service(call) as local:
        report = local.doctor(deep=deep, gpu_gib=gpu_gib)
    show(call, report)
    return DONE if report["ok"] else FAILED
