"""Verbs that correct: record an edit, take it back or erase it, write it into the weights, and follow the jobs of this."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import typer

from ke_tools.cli.calls import DONE, FAILED, Aliases, Call, Reason, following, service, show, verb
from ke_tools.errors import InvalidInput

PANEL: Final = "Correct"
Mode = Literal["auto", "replace", "add"]
Key = Annotated[str, typer.Option(help="The same key again gives the first answer again.")]

app = typer.Typer()


@verb(app, "edit", PANEL)
def edit(
    call: Call,
    prompt: Annotated[
        str, typer.Argument(help='A statement that the target completes ("The capital of Australia is") or a question; or --statement.')
    ] = "",
    target: Annotated[str, typer.Argument(help="What the model shall believe; none with --forget.")] = "",
    *,
    subject: Annotated[str, typer.Option(help="What the fact is about; stands in the prompt.")] = "",
    statement: Annotated[str, typer.Option(help="Instead of prompt, target and subject: one plain sentence.")] = "",
    forget: Annotated[bool, typer.Option("--forget", help="Instead of a target: the model declines to answer from now on.")] = False,
    old_target: Annotated[
        str, typer.Option(help="What you think is believed now; refused if it is not. With --forget kept as a hash.")
    ] = "",
    relation: Annotated[str, typer.Option(help="What about the subject is stated; else it is recognised.")] = "",
    paraphrase: Annotated[list[str] | None, typer.Option(help="Another wording of the prompt (repeatable).")] = None,
    alias: Aliases = None,
    source: Annotated[str, typer.Option(help="Where the fact stands; kept, never fetched.")] = "",
    expires: Annotated[str, typer.Option(help="Until when it holds: 2027-03-01, 2027-03-01T12:00:00Z, 12h, 7d, 2w.")] = "",
    mode: Annotated[Mode, typer.Option(help="Replace what is live of this relation, or add to it.")] = "auto",
    reason: Reason = "",
    idempotency_key: Key = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and tell; change nothing.")] = False,
) -> int:
    """Correct one fact (many: import)."""
    fact: dict[str, Any] = {
        "subject": subject,
        "prompt": prompt,
        "target": target,
        "old_target": old_target,
        "relation": relation,
        "paraphrases": paraphrase or [],
        "aliases": alias or [],
        "source": source,
        "expires": expires,
    }
    if statement:
        if prompt or target or subject or forget or relation:
            raise InvalidInput("--statement has prompt, target and subject in it.", "Leave these out, or --statement.")
        fact = {"statement": statement} | {name: fact[name] for name in ("old_target", "paraphrases", "aliases", "source", "expires")}
    elif not prompt or not subject:
        raise InvalidInput("there is no prompt or no --subject.", "Give both, or --statement with a sentence.")
    elif forget == bool(target):
        raise InvalidInput("--forget takes no target." if forget else "there is no target.", "Give a target or --forget, and not both.")
    if forget:
        fact["forget"] = True
    with service(call, asks_model=forget) as local:
        result = local.edit([fact], mode=mode, reason=reason, idempotency_key=idempotency_key, dry_run=dry_run)
    return show(call, result)


@verb(app, "rollback", PANEL)
def rollback(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to take back.")] = None,
    *,
    to_revision: Annotated[int | None, typer.Option(min=0, help="Instead: as it was at this revision (0: no edits).")] = None,
    to: Annotated[Literal["base", "memory"], typer.Option(help="memory: only out of the weights.")] = "base",
    actor: Annotated[str, typer.Option(metavar="NAME", help="Instead: all that this token recorded, proposed or approved.")] = "",
    since: Annotated[str, typer.Option(metavar="WHEN", help="With --actor: 2026-11-29, 2026-11-29T12:00:00Z, 30min, 12h, 7d.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would come to; change nothing.")] = False,
    reason: Reason = "",
) -> int:
    """Take edits back; what they had replaced is believed again."""
    if bool(actor) != bool(since) or (actor and (edit_ids or to_revision is not None or to != "base")):
        raise InvalidInput("--actor and --since stand together, without edits or a revision.", "See `ke-tools rollback --help`.")
    with service(call) as local:
        if actor:
            return show(call, local.undo(actor, since, reason=reason, dry_run=dry_run))
        return show(call, local.rollback(edit_ids=edit_ids or [], to_revision=to_revision, to=to, reason=reason, dry_run=dry_run))


@verb(app, "purge", PANEL)
def purge(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="The edit whose text is to be erased.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, without words of the edit; kept in the history.")],
) -> int:
    """Take an edit back and erase what it says wherever it is kept; this cannot be undone."""
    with service(call) as local:
        return show(call, local.purge(edit_id, reason=reason))


@verb(app, "promote", PANEL)
def promote(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to write into the weights.")] = None,
    *,
    auto: Annotated[bool, typer.Option("--auto", help="Name edits that are worth it, and why; without --yes, ask.")] = False,
    older_than: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="With --auto: at least so old.")] = None,
    fired: Annotated[int | None, typer.Option(min=0, metavar="N", help="With --auto: asked for at least so often.")] = None,
    actor: Annotated[list[str] | None, typer.Option(help="With --auto: made by one of these (repeatable).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --auto: promote what it names.")] = False,
    method: Annotated[Literal["auto", "memit", "grace"], typer.Option(help="auto: weights, else a codebook, else memory.")] = "auto",
    policy: Annotated[list[str] | None, typer.Option("--policy", metavar="NAME=VALUE", help="What the gate asks (repeatable).")] = None,
    reason: Reason = "",
    idempotency_key: Key = "",
) -> int:
    """Write edits into the weights as far as the gate lets them; Ctrl-C leaves the job at work (see: job)."""
    if auto is bool(edit_ids):
        raise InvalidInput("promote takes edit ids or --auto, and exactly one of them.", "list shows the ids.")
    if not auto and (yes or actor or older_than is not None or fired is not None):
        raise InvalidInput("--older-than, --fired, --actor and --yes choose among edits; these are named already.", "Leave them out.")
    wanted = dict(_asked(text) for text in policy or [])
    with service(call) as local:
        if auto:
            named = local.candidates({"older_than_days": older_than, "fired": fired, "actors": actor or None})
            edit_ids = [one["edit_id"] for one in named["candidates"]]
            if not (yes and edit_ids and call.as_json):  # where one object alone is printed, the job's
                show(call, named)
            if not edit_ids or not (yes or _agrees(f"Write {len(edit_ids)} of them into the weights, as far as the gate lets them?")):
                return DONE
        with following() as heard:
            ended = local.promote(edit_ids or [], method=method, policy=wanted, reason=reason, idempotency_key=idempotency_key, heard=heard)
    return _show_job(call, ended)


def _agrees(question: str) -> bool:
    """Ask the person at the terminal; where there is none, nobody agreed."""
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _asked(text: str) -> tuple[str, float | str]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdecimal() else float(value)
    except ValueError:
        return name, value  # the policy says what it takes


@verb(app, "rebuild", PANEL)
def rebuild(call: Call, *, idempotency_key: Key = "") -> int:
    """Make the live release again: where its folder is damaged, or the model is another one (doctor tells)."""
    with service(call) as local, following() as heard:
        ended = local.rebuild(idempotency_key=idempotency_key, heard=heard)
    return _show_job(call, ended)


@verb(app, "job", PANEL)
def job_(
    call: Call,
    job_id: Annotated[str | None, typer.Argument(help="As promote or verify gave it; without one the newest are listed.")] = None,
    *,
    wait: Annotated[float, typer.Option(min=0, max=25, help="Seconds to wait for its end.")] = 0.0,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it, unless it takes effect already.")] = False,
) -> int:
    """See how a job stands, or stop it; without an id, which there are."""
    if cancel and not job_id:
        raise InvalidInput("--cancel needs to know which job.", "`ke-tools job` lists them.")
    with service(call) as local:
        if not job_id:
            return show(call, local.jobs())
        found = local.job_cancel(job_id) if cancel else local.job(job_id, wait_seconds=wait)
    return _show_job(call, found)


def _show_job(call: Call, job: Mapping[str, Any]) -> int:
    show(call, job)
    return FAILED if job["status"] == "failed" else DONE
