"""The command line: parse, call the library, print. What a verb does lies in the library.

Every verb takes the settings' options, which may also stand before the verb, ``--json`` and ``--debug``.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused. Everything that is not needed to print the help is imported inside
the functions.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn

import typer

from ke_tools.config import DEFAULT_ADDRESS, Settings, Via
from ke_tools.errors import InvalidInput, KeToolsError

if TYPE_CHECKING:
    from ke_tools.servers.service import Service

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3

View = Literal["edited", "base", "both"]
Suite = Literal["quick", "full"]
Mode = Literal["auto", "replace", "add"]
Client = Literal["claude-code", "claude-desktop", "cursor", "vscode", "codex"]
Lines = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="JSON lines; without it, standard input.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many at most.")]
Cursor = Annotated[str, typer.Option(help="Where the last page ended (next_cursor).")]
Reason = Annotated[str, typer.Option(help="Kept in the history.")]
Key = Annotated[str, typer.Option(help="The same key again gives the first answer again.")]


def _new_app(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _new_app("Correct what a served language model believes, prove that it took, and take it back.")
model_app = _new_app("The language model that is served.")
reader_app = _new_app("The adapter that makes a model heed the facts in its context.")
scope_app = _new_app("What decides whether a question is about an edited fact.")
bench_app = _new_app("Measure; exit code 3 when a bar is missed.")


# What every verb takes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What the options shared by all verbs say."""

    settings: Settings
    as_json: bool


_shared = partial(typer.Option, rich_help_panel="Settings (also before the verb)")


def _options(
    *,
    home: Annotated[str | None, _shared(metavar="DIR", help="Keeps ledger and revisions. [KE_HOME]")] = None,
    model: Annotated[str | None, _shared(metavar="embedded|ID|PATH", help="The model that is served. [KE_MODEL]")] = None,
    engine: Annotated[str | None, _shared(metavar="hf", help="What runs the model. [KE_ENGINE]")] = None,
    dtype: Annotated[str | None, _shared(metavar="auto|float32|bfloat16|float16", help="Numbers to compute in. [KE_DTYPE]")] = None,
    device: Annotated[str | None, _shared(metavar="auto|cpu|cuda|mps", help="Where to compute. [KE_DEVICE]")] = None,
    read_only: Annotated[bool | None, _shared("--read-only", help="Refuse every write. [KE_READ_ONLY]")] = None,
    token_file: Annotated[str | None, _shared(metavar="FILE", help="Who may do what, as TOML. [KE_TOKEN_FILE]")] = None,
    trust_remote_code: Annotated[
        bool | None, _shared("--trust-remote-code", help="Run code that a model brings along. [KE_TRUST_REMOTE_CODE]")
    ] = None,
    as_json: Annotated[bool, _shared("--json", help="Print for programs: one JSON object on a line.")] = False,
    debug: Annotated[bool, _shared("--debug", help="Show where an unexpected error came from.")] = False,
) -> dict[str, Any]:
    return dict(locals())


@app.callback()
def _before_the_verb(context: typer.Context, **given: Any) -> None:
    """Correct what a served language model believes, prove that it took, and take it back."""
    context.obj = given


def _with_options(function: Callable[..., Any], own: Sequence[inspect.Parameter]) -> None:
    """Give ``function`` the signature (context, own parameters, shared options), which typer reads."""
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *_SHARED]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


_SHARED: Final = list(inspect.signature(_options, eval_str=True).parameters.values())
_with_options(_before_the_verb, [])


def verb[F: Callable[..., int]](group: typer.Typer, name: str, panel: str | None = None) -> Callable[[F], F]:
    """Register a function ``(call, its own parameters) → exit code`` as a verb that takes the shared options too."""

    def register(function: F) -> F:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def run(context: typer.Context, **given: Any) -> int:
            before: dict[str, Any] = context.find_root().obj or {}
            shared = {p.name: given.pop(p.name) for p in _SHARED}
            shared = {key: value if value not in (None, False) else before.get(key) for key, value in shared.items()}
            as_json = bool(shared.pop("as_json"))
            del shared["debug"]  # read by main, as it must hold before anything is parsed
            settings = Settings.load(**shared, http=given.pop("http", None))
            return function(Call(settings, as_json), **given)

        run.__doc__ = function.__doc__
        _with_options(run, own)
        group.command(name, rich_help_panel=panel)(run)
        return function

    return register
