"""Verbs that approve and protect: what waits for an approval, and what only an admin may correct."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from ke_tools.cli.calls import Aliases, Call, Cursor, Limit, Reason, service, show, verb
from ke_tools.errors import InvalidInput

PANEL: Final = "Approve and protect"
Proposals = Annotated[list[str], typer.Argument(metavar="EDIT_ID...", help="Proposals.")]

app = typer.Typer()


@verb(app, "proposals", PANEL)
def proposals(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="Only this one, with the answers before and after.")] = "",
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Also measure it, as if it were approved; about ten seconds.")] = False,
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """Show what waits for an approval: whose word it is, and what it would change."""
    if verify and not edit_id:
        raise InvalidInput("--verify needs to know which proposal.", "`ke-tools proposals` lists them.")
    with service(call, asks_model=bool(edit_id)) as local:
        found = local.evidence(edit_id, verify=verify) if edit_id else local.proposals(limit=limit, cursor=cursor)
    told = ("summary", "proposals_text", "answers", "scorecard_text")
    return show(call, found if call.as_json else {name: found[name] for name in told if found.get(name)})


@verb(app, "approve", PANEL)
def approve(call: Call, edit_ids: Proposals, *, reason: Reason = "") -> int:
    """Let proposals act, all or none."""
    with service(call) as local:
        return show(call, local.approve(edit_ids, reason=reason))


@verb(app, "reject", PANEL)
def reject(
    call: Call,
    edit_ids: Proposals,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
) -> int:
    """Retire proposals, all or none."""
    with service(call) as local:
        return show(call, local.reject(edit_ids, reason=reason))


@verb(app, "protect", PANEL)
def protect(
    call: Call,
    subject: Annotated[str, typer.Argument(help="Whom or what only an admin may correct.")] = "",
    *,
    alias: Aliases = None,
    relation: Annotated[str, typer.Option(help="Only this about the subject.")] = "",
    prompt: Annotated[str, typer.Option(help="Only what this statement or question is about.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Instead: show what is protected.")] = False,
    reason: Reason = "",
) -> int:
    """Keep facts from being edited without the right admin."""
    if listed == bool(subject) or (listed and (alias or relation or prompt or reason)):
        raise InvalidInput("protect takes a subject or --list, and exactly one of them.", "See `ke-tools protect --help`.")
    with service(call) as local:
        if listed:
            return show(call, local.protections())
        return show(call, local.protect(subject, aliases=alias or [], relation=relation, prompt=prompt, reason=reason))


@verb(app, "unprotect", PANEL)
def unprotect(
    call: Call, name: Annotated[str, typer.Argument(metavar="SUBJECT|ID", help="As protect --list shows it.")], *, reason: Reason = ""
) -> int:
    """Let facts be edited again."""
    with service(call) as local:
        return show(call, local.unprotect(name, reason=reason))
