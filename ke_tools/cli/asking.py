"""Verbs that ask and check: what the model answers, which edits a question is about, and whether edits took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from ke_tools.cli.calls import DONE, FAILED, Call, Lines, Longest, Means, drawable, following, lines_of, service, show, show_lines, verb
from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    from ke_tools.servers.local import Local

PANEL: Final = "Ask and check"
View = Literal["edited", "base", "both"]
Suite = Literal["quick", "full"]

app = typer.Typer()


@verb(app, "query", PANEL)
def query(
    call: Call,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION|FILE", help="A question; with --batch a file.")] = None,
    *,
    batch: Annotated[bool, typer.Option("--batch", help="Answer each line of FILE or standard input (JSON lines).")] = False,
    view: Annotated[View, typer.Option(help="With the edits, as the base model, or both.")] = "edited",
    max_tokens: Longest = 24,
    explain: Annotated[bool, typer.Option("--explain", help="Say why which edits were used.")] = False,
    via: Means = None,
) -> int:
    """Ask the served model."""
    if batch:
        if view == "both":
            raise InvalidInput("--batch answers in one view.", "Run it twice: --view base, --view edited.")
        with lines_of(Path(question) if question else None) as lines, service(call, asks_model=True) as local:
            return show_lines(local.answer_lines(lines, view=view, max_tokens=max_tokens))
    if not question:
        raise InvalidInput("there is no question.", "Give one, or --batch and JSON lines.")
    with service(call, asks_model=True) as local:
        result = local.query(question, view=view, max_tokens=max_tokens, explain=explain, via=via or call.settings().via)
    show(call, result)
    from ke_tools.servers.rows import is_without_memory

    return FAILED if is_without_memory(result["answers"]) else DONE


@verb(app, "route", PANEL)
def route(call: Call, file: Lines = None) -> int:
    """Say for each question which edits it is about, and why; needs no language model."""
    with lines_of(file) as lines, service(call) as local:
        return show_lines(local.route_lines(lines))


@verb(app, "verify", PANEL)
def verify(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to verify.")] = None,
    *,
    all_live: Annotated[bool, typer.Option("--all", help="Instead: all live edits.")] = False,
    revision: Annotated[int | None, typer.Option(min=0, help="Instead: what was live at this revision, as answered then.")] = None,
    release: Annotated[str, typer.Option(metavar="rel_…", help="Instead: what a release carries, by its weights alone.")] = "",
    suite: Annotated[Suite, typer.Option(help="How much to ask.")] = "quick",
    probes: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own: JSON lines of {prompt, expect}.")] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", dir_okay=False, help="Draw the scorecard into this file too.")
    ] = None,
) -> int:
    """Prove that edits took and that nothing else moved; what takes long is a job (see: job), which Ctrl-C leaves at work."""
    if not (edit_ids or all_live or revision is not None or release):
        raise InvalidInput("it is not said which edits.", "Give edit ids, --all, --revision or --release.")
    if all_live and (edit_ids or revision is not None or release):
        raise InvalidInput("--all stands alone.", "Leave it out, or the others.")
    drawable(svg)
    own: list[dict[str, Any]] = []
    if probes is not None:
        with lines_of(probes) as lines:
            own = [_object(line, f"{probes}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    with service(call, asks_model=True) as local:
        with following("the model answers the probes") as heard:
            result = local.verify(edit_ids or [], revision=revision, release=release, suite=suite, probes=own, heard=heard)
        show(call, result if call.as_json else {name: result[name] for name in ("summary", "scorecard_text", "scorecard")})
        if svg is not None:
            _draw(local, result["scorecard"], svg)
    return DONE if result["passed"] else FAILED


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {error}", "Write one JSON object a line.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{place} is no JSON object.", "Write one JSON object a line.")
    return value


@verb(app, "scorecard", PANEL)
def scorecard(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="HASH|EDIT_ID", help="A scorecard, or the newest one about an edit.")],
    *,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", dir_okay=False, help="Draw it into this file.")] = None,
) -> int:
    """Show what a verification or a promotion found; --json has all questions and answers."""
    drawable(svg)
    with service(call) as local:
        found = local.scorecard(name)
        if svg is not None:
            _draw(local, found["scorecard"], svg)
    told = {name: found[name] for name in ("scorecard", "made_at", "model", "revision", "release", "suite") if found.get(name)}
    return show(call, found if call.as_json else {"summary": _named(told), "scorecard_text": found["scorecard_text"]})


def _named(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())


def _draw(local: Local, name: str, file: Path) -> None:
    from ke_tools.verify.card import drawn

    document = local.scorecard(name)
    count = len(document["checks"])
    title = f"{count} edit{'' if count == 1 else 's'}, {document.get('suite') or 'promotion'}"
    notes = [f"Model {document.get('model', '')}, revision {document.get('revision', '')}, scorecard {name}."]
    try:
        file.write_text(drawn(document, title, notes=notes), "utf-8")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}.", "Give a file in a folder that takes files.") from error
