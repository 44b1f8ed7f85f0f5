"""Verbs that measure, each a benchmark; one that misses a bar is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ke_tools import printing
from ke_tools.cli.calls import DONE, REFUSED, Call, Longest, Means, Sample, Seed, drawable, group, names_in, show, verb
from ke_tools.errors import InvalidInput

Format = Annotated[Literal["auto", "counterfact", "zsre", "knowedit", "mquake", "house"], typer.Option("--format", help="Its format.")]
Unrelated = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Questions that no edit is about.")]
Mode = Annotated[Literal["batch", "sequential"], typer.Option(help="All at once, or one batch after another.")]
Batch = Annotated[int, typer.Option(min=1, help="Edits of a batch in sequential mode.")]

bench_app = group("Measure; exit code 3 when a bar is missed.")


@verb(bench_app, "model")
def bench_model(call: Call, *, limit: Sample = 0, seed: Seed = 0) -> int:
    """Measure what the served model knows, and how it heeds facts in its context."""
    from ke_tools.benches import model

    with printing.progress() as progress:
        return _bars(call, model.run(call.settings(), limit=limit, seed=seed, progress=progress))


@verb(bench_app, "answers")
def bench_answers(
    call: Call,
    *,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")],
    kind: Format = "auto",
    edits: Annotated[int, typer.Option(min=1, help="How many of them to edit.")] = 200,
    unrelated: Unrelated = None,
    max_tokens: Longest = 24,
    via: Means = None,
    forced: Annotated[bool, typer.Option("--forced", help="Leave the scope out: each question is told its own edits.")] = False,
    seed: Seed = 0,
) -> int:
    """Edit facts of a benchmark and measure the answers through the serving path."""
    from ke_tools.benches import answers

    settings = call.settings()
    with printing.progress() as progress:
        report = answers.run(
            settings,
            data=data,
            kind=kind,
            edits=edits,
            unrelated=unrelated,
            seed=seed,
            max_tokens=max_tokens,
            via=via or settings.via,
            forced=forced,
            progress=progress,
        )
    return _bars(call, report)


@verb(bench_app, "passing")
def bench_passing(
    call: Call,
    *,
    requests: Annotated[int, typer.Option(min=1, help="How many a round.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    edits: Annotated[int, typer.Option(min=1, help="Live edits, about which no question is.")] = 1000,
    asked: Annotated[int, typer.Option(min=2, help="How many one by one, for the latency.")] = 200,
    seed: Seed = 0,
) -> int:
    """Measure what it costs that requests to another server's model go through ours."""
    from ke_tools.benches import passing

    with printing.progress() as progress:
        found = passing.run(call.settings(), requests=requests, tokens=tokens, edits=edits, asked=asked, seed=seed, progress=progress)
    return _bars(call, found)


@verb(bench_app, "scope")
def bench_scope(
    call: Call,
    *,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")] = None,
    kind: Format = "auto",
    edits: Annotated[int, typer.Option(min=1, help="How many of them to edit.")] = 1000,
    unrelated: Unrelated = None,
    scope: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A trained scorer; else the shipped one.")] = None,
    synthetic: Annotated[int | None, typer.Option(min=1, help="Measure the scale with so many made-up edits instead.")] = None,
    logged: Annotated[int, typer.Option(min=0, help="With so many events logged before.")] = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw recall against false triggers into an SVG file.")] = None,
    seed: Seed = 0,
) -> int:
    """Edit facts of a benchmark and measure which questions are found to be about them; no answers."""
    from ke_tools.benches import scale
    from ke_tools.benches import scope as bench
    from ke_tools.benches._frontier import picture

    if (data is None) == (synthetic is None):
        raise InvalidInput("bench scope measures a file or made-up edits.", "Give --data FILE, or --synthetic N.")
    if plot is not None and (data is None or not plot.absolute().parent.is_dir()):
        raise InvalidInput(f"nothing can be drawn into {plot}.", "Give --data too, and a file in a folder that exists.")
    settings = call.settings()
    with printing.progress() as progress:
        if synthetic is not None:
            return _bars(call, scale.run(settings, synthetic=synthetic, logged=logged, seed=seed, progress=progress))
        assert data is not None
        found = bench.run(
            data=data,
            kind=kind,
            edits=edits,
            unrelated=unrelated,
            scope=scope,
            alpha=settings.alpha,
            cache=settings.cache,
            seed=seed,
            progress=progress,
        )
    if plot is not None:
        plot.write_text(picture(data.name, found["results"]["frontier"]), "utf-8")
    return _bars(call, found)


@verb(bench_app, "editors")
def bench_editors(
    call: Call,
    *,
    method: Annotated[str, typer.Option(help="memit, rome, emmet, alphaedit, pmet, ft-m, ft-l, lora or grace.")] = "memit",
    fields: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method (repeatable).")] = None,
    edits: Annotated[str, typer.Option(metavar="N,…", help="How many edits, each from the unedited model on.")] = "1,10,100",
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records; else atlas facts.")] = None,
    kind: Format = "auto",
    mode: Mode = "batch",
    batch: Batch = 20,
    naive: Annotated[
        int, typer.Option(min=0, metavar="N", help="Let MEMIT as published edit the first N too, and show what each saving is worth.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw rates and seconds an edit into an SVG file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again what is kept of earlier runs.")] = False,
    seed: Seed = 0,
) -> int:
    """Write edits into the weights, measure the final state, and take them back."""
    from ke_tools.benches import _curves, editors

    how = {name: value for name, _, value in (text.partition("=") for text in fields or [])}
    parts = [part.strip() for part in edits.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) < len(parts) or min(numbers) < 1:
        raise InvalidInput(f"--edits is {edits!r}.", "Give numbers, e.g. 1,10,100.")
    drawable(plot)
    with printing.progress() as progress:
        found = editors.run(
            call.settings(),
            method=method,
            how=how,
            numbers=numbers,
            data=data,
            kind=kind,
            mode=mode,
            batch=batch,
            naive=naive,
            fresh=fresh,
            seed=seed,
            progress=progress,
        )
    if plot is not None:
        plot.write_text(_curves.picture(f"{method}, {mode}: {data.name if data else 'atlas'}", found["results"]["edits"]), "utf-8")
    return _bars(call, found if call.as_json else editors.readable(found))


@verb(bench_app, "compare")
def bench_compare(
    call: Call,
    *,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")],
    kind: Format = "auto",
    methods: Annotated[
        str, typer.Option(metavar="METHOD,…", help="none, prompt, ike, reader and editors (see bench editors); else the usual ones.")
    ] = "",
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.FIELD=VALUE", help="A field of an editor (repeatable).")
    ] = None,
    edits: Annotated[int, typer.Option(min=1, help="How many edits.")] = 100,
    mode: Mode = "batch",
    batch: Batch = 20,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again what is kept from an earlier run.")] = False,
    as_csv: Annotated[Path | None, typer.Option("--csv", dir_okay=False, help="Write the table into this file too.")] = None,
    as_markdown: Annotated[Path | None, typer.Option("--markdown", dir_okay=False, help="Write the table into this file too.")] = None,
    seed: Seed = 0,
) -> int:
    """Make the same edits with many methods and measure the final state of each: the surveys' table."""
    from ke_tools.benches import compare

    for file in (as_csv, as_markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise InvalidInput(f"nothing can be written to {file}.", "Give a file in a folder that exists.")
    with printing.progress() as progress:
        found = compare.run(
            call.settings(),
            data=data,
            kind=kind,
            methods=names_in(methods) or compare.DEFAULT,
            how=_by_method(fields or []),
            edits=edits,
            mode=mode,
            batch=batch,
            seed=seed,
            fresh=fresh,
            progress=progress,
        )
    rows = found["results"]["rows"]
    if as_csv is not None:
        as_csv.write_text(compare.as_csv(rows), "utf-8")
    if as_markdown is not None:
        as_markdown.write_text(compare.as_markdown(rows), "utf-8")
    return show(call, found if call.as_json else {**compare.cells(rows), "notes": compare.notes(rows)})


def _by_method(fields: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read METHOD.FIELD=VALUE."""
    found: dict[str, dict[str, str]] = {}
    for text in fields:
        name, equals, value = text.partition("=")
        method, dot, field = name.partition(".")
        if not (method and dot and field and equals):
            raise InvalidInput(f"--set is {text!r}.", "Give METHOD.FIELD=VALUE, e.g. memit.layers=4-8.")
        found.setdefault(method, {})[field] = value
    return found


@verb(bench_app, "promote")
def bench_promote(
    call: Call,
    *,
    edits: Annotated[int, typer.Option(min=1, help="How many to promote at once.")] = 50,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Records for half of them.")] = None,
    method: Annotated[Literal["auto", "memit", "grace"], typer.Option(help="As for promote.")] = "auto",
    seed: Seed = 0,
) -> int:
    """Promote edits in a home of their own, and measure what came of it and how long it took."""
    from ke_tools.benches import promote

    settings = call.settings()
    with printing.progress() as progress:
        return _bars(call, promote.run(settings, edits=edits, data=data, method=method, seed=seed, progress=progress))


@verb(bench_app, "forms")
def bench_forms(
    call: Call,
    *,
    facts: Annotated[int, typer.Option(min=1, help="How many facts that the model knows to contradict.")] = 24,
    via: Means = None,
    seed: Seed = 0,
) -> int:
    """Ask in conversations of many forms about an edited fact, and compare with what the model makes of facts that it knows."""
    from ke_tools.benches import forms

    settings = call.settings()
    with printing.progress() as progress:
        return _bars(call, forms.run(settings, facts=facts, seed=seed, via=via or settings.via, progress=progress))


@verb(bench_app, "forget")
def bench_forget(
    call: Call,
    *,
    facts: Annotated[int, typer.Option(min=1, help="How many facts that the model says to forget.")] = 50,
    seed: Seed = 0,
) -> int:
    """Forget facts that the model says, ask for each in thirty ways, and look what else moved."""
    from ke_tools.benches import forget

    with printing.progress() as progress:
        return _bars(call, forget.run(call.settings(), facts=facts, seed=seed, progress=progress))


@verb(bench_app, "statements")
def bench_statements(
    call: Call,
    *,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="CounterFact records.")] = None,
    unknown: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Records of facts that nobody trained on (house format).")
    ] = None,
    aided: Annotated[bool, typer.Option("--aided", help="Let the served model choose where a sentence has several readings.")] = False,
    seed: Seed = 0,
) -> int:
    """Measure how sentences and remarks are split into edits, and what is taken for one that is none; no answers."""
    from ke_tools.benches import statements
    from ke_tools.benches._statements import scored

    settings = call.settings()
    with printing.progress() as progress, scored(settings, on=aided) as score:
        return _bars(call, statements.run(settings, data=data, unknown=unknown, scored=score, seed=seed, progress=progress))


def _bars(call: Call, report: Mapping[str, Any]) -> int:
    show(call, report)
    return DONE if all(bar["ok"] for bar in report["bars"]) else REFUSED
