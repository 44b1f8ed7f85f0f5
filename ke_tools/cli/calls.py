"""What all verbs share: the options of a call, how a verb is registered, exit codes, and how they take and give.

An option that verbs of several files take has its type here. Of this package, a file of verbs imports this one only.
"""

from __future__ import annotations

import gc
import inspect
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from ke_tools import printing
from ke_tools.config import Settings, Via
from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    from ke_tools.models.embedded import Progress as Fetching
    from ke_tools.servers.local import Local

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3

Verb = TypeVar("Verb", bound=Callable[..., int])
Lines = Annotated[Path | None, typer.Argument(metavar="FILE", help="JSON lines; without it, standard input.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many at most.")]
Cursor = Annotated[str, typer.Option(help="Where the last page ended (next_cursor).")]
Reason = Annotated[str, typer.Option(help="Kept in the history.")]
Aliases = Annotated[list[str] | None, typer.Option(help="Another name of the subject (repeatable).")]
Longest = Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")]
Means = Annotated[Via | None, typer.Option(help="How facts reach the model. [KE_VIA]")]
GpuGib = Annotated[
    float | None, typer.Option(min=1, metavar="GIB", help="Memory of one GPU: say how to serve and edit the model with such.")
]
Sample = Annotated[int, typer.Option(min=0, help="How many facts to ask about (0: a fair sample).")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same.")]


def group(help_text: str) -> typer.Typer:
    """Make a group of verbs, which shows its help when none is given."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


@dataclass(frozen=True, slots=True)
class Call:
    """What the options shared by all verbs say."""

    flags: Mapping[str, Any]
    as_json: bool

    def settings(self, **more: Any) -> Settings:
        """Join the flags with environment, files and defaults."""
        return Settings.load(**self.flags, **more)


_shared = partial(typer.Option, rich_help_panel="Settings (also before the verb)")


def before_the_verb(
    *,
    home: Annotated[str | None, _shared(metavar="DIR", help="Keeps ledger and revisions. [KE_HOME]")] = None,
    model: Annotated[str | None, _shared(metavar="embedded|ID|PATH", help="The model that is served. [KE_MODEL]")] = None,
    edit_model: Annotated[
        str | None, _shared(metavar="ID|PATH", help="Of the engine vllm: the unquantised twin to plan edits with. [KE_EDIT_MODEL]")
    ] = None,
    engine: Annotated[str | None, _shared(metavar="hf|vllm", help="What runs the model. [KE_ENGINE]")] = None,
    vllm_url: Annotated[
        str | None,
        _shared(metavar="URL[,URL]", help="Of the engine vllm: servers that run --model; without, one is started. [KE_VLLM_URL]"),
    ] = None,
    vllm: Annotated[str | None, _shared(metavar="PROGRAM", help="Of the engine vllm: the program that is started. [KE_VLLM]")] = None,
    vllm_args: Annotated[
        list[str] | None,
        _shared("--vllm-arg", metavar="WORD", help="An argument more for it, e.g. --vllm-arg=--enforce-eager; repeat. [KE_VLLM_ARGS]"),
    ] = None,
    upstream: Annotated[
        str | None, _shared(metavar="URL", help="Instead of an engine: a server with OpenAI's API that runs the model. [KE_UPSTREAM]")
    ] = None,
    upstream_key_file: Annotated[
        str | None, _shared(metavar="FILE", help="The key of those servers. [KE_UPSTREAM_KEY: the key itself]")
    ] = None,
    dtype: Annotated[str | None, _shared(metavar="auto|float32|bfloat16|float16", help="Numbers to compute in. [KE_DTYPE]")] = None,
    device: Annotated[str | None, _shared(metavar="auto|cpu|cuda|mps", help="Where to compute. [KE_DEVICE]")] = None,
    edit_device: Annotated[
        str | None, _shared(metavar="auto|cpu|cuda|mps", help="Where to plan edits; else as --device. [KE_EDIT_DEVICE]")
    ] = None,
    read_only: Annotated[bool | None, _shared("--read-only", help="Refuse every write. [KE_READ_ONLY]")] = None,
    token_file: Annotated[str | None, _shared(metavar="FILE", help="Who may do what, as TOML. [KE_TOKEN_FILE]")] = None,
    trust_remote_code: Annotated[
        bool | None, _shared("--trust-remote-code", help="Run code that a model brings along. [KE_TRUST_REMOTE_CODE]")
    ] = None,
    as_json: Annotated[bool, _shared("--json", help="Print for programs: one JSON object on a line.")] = False,
    debug: Annotated[bool, _shared("--debug", help="Show where an unexpected error came from.")] = False,
) -> None:
    """Take what every verb takes: see ``_Command``, which reads what was given."""


class _Command(TyperCommand):
    """A verb. It takes the options of ``before_the_verb`` too, which the program has once: made for each, they cost every start."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [*super().get_params(ctx), *ctx.find_root().command.params]

    def invoke(self, ctx: Any) -> Any:
        before = ctx.find_root().params
        given = {name: ctx.params.pop(name) or before[name] for name in before}
        ctx.obj = {name: None if value == () else value for name, value in given.items()}  # a list of which nothing was given
        return super().invoke(ctx)


def verb(app: typer.Typer, name: str, panel: str | None = None) -> Callable[[Verb], Verb]:
    """Register a function ``(call, its own parameters) → exit code`` as a verb that takes the shared options too."""

    def register(function: Verb) -> Verb:
        def run(context: typer.Context, **given: Any) -> int:
            gc.enable()
            flags = dict(context.obj)
            as_json = flags.pop("as_json")
            del flags["debug"]  # main has read it: it holds for errors of parsing too
            return function(Call(flags, as_json), **given)

        run.__doc__ = function.__doc__
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name, cls=_Command, rich_help_panel=panel)(run)
        return function

    return register


@contextmanager
def service(call: Call, *, asks_model: bool = False) -> Iterator[Local]:
    """The service of this home, in this process; where a model will be asked, it is fetched before, visibly."""
    settings = call.settings()
    if asks_model and not settings.upstream:
        checkpoint_of(settings)
    from ke_tools.servers.local import Local

    with Local(settings) as local:
        yield local


def checkpoint_of(settings: Settings) -> Path:
    """Folder of the model that edits are planned with; fetched before, visibly, where it is not there."""
    from ke_tools.models import checkpoint

    with fetching() as progress:
        return checkpoint.resolve(settings, progress=progress)


@contextmanager
def fetching() -> Iterator[Fetching]:
    """Give what shows how far a download is."""
    with printing.progress() as progress:
        yield lambda what, part: progress(what, part or 0, 0 if part is None else 1)


@contextmanager
def following(begins: str = "") -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give what shows how far a job is, first what ``begins``; a person who stops waiting hears how to find it again."""
    job_id = ""

    def heard(job: Mapping[str, Any]) -> None:
        nonlocal job_id
        job_id = job["job_id"]
        progress(job["message"] or job["stage"] or "waiting", job["progress"], job["total"])

    try:
        with printing.progress() as progress:
            if begins:
                progress(begins, 0, 0)
            yield heard
    except KeyboardInterrupt:
        if job_id:
            printing.note(f"{job_id} goes on. `ke-tools job {job_id}` shows it, with --cancel it stops.")
        raise


@contextmanager
def lines_of(file: Path | None) -> Iterator[Iterable[str]]:
    """Lines of a file or of standard input; bytes that are no UTF-8 survive until somebody judges the line."""
    if file is None or str(file) == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdin
    else:
        try:
            lines = file.open(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}.", "Give a file of JSON lines.") from error
        with lines:
            yield lines


def drawable(plot: Path | None) -> None:
    """Refuse a picture in a folder that does not exist, before the work that it would show.

    Raises:
        InvalidInput: there is no such folder.
    """
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InvalidInput(f"nothing can be drawn into {plot}.", "Give a file in a folder that exists.")


def names_in(text: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def show(call: Call, result: Mapping[str, Any]) -> int:
    """Print a result for a person or, with --json, for a program."""
    printing.show(result, as_json=call.as_json)
    return DONE


def show_lines(results: Iterable[Mapping[str, Any]]) -> int:
    """Print one line for each result; one that failed or had no corrections makes the verb fail, after all have been tried."""
    from ke_tools.servers.rows import is_without_memory

    total = failed = without = 0
    for result in results:
        printing.line(result)
        total += 1
        failed += "error" in result
        without += "reason" in result and is_without_memory([result])
    if failed:
        printing.note(f"{failed} of {total} lines failed; each says why.")
    if without:
        printing.note(f"{without} of {total} answers are the base model's, as the corrections could not be looked up: see ke-tools doctor.")
    return FAILED if failed or without else DONE
