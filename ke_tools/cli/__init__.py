"""The command line: parse, call the library, print. What a verb does lies in the library.

Every verb takes the settings' options, which may also stand before the verb, ``--json`` and ``--debug``.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused. Everything that is not needed to print the help is imported inside
the functions. Each panel of the help is a file here, and what their verbs share is in ``calls``.
"""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import NoReturn

import typer

from ke_tools import printing
from ke_tools.cli import approving, asking, benches, correcting, looking, models, moving, serving
from ke_tools.cli.calls import DONE, FAILED, REFUSED, USAGE, before_the_verb, group
from ke_tools.config import DEFAULT_ADDRESS
from ke_tools.errors import InvalidInput, KeToolsError, ResourceExhausted

__all__ = ["DONE", "FAILED", "REFUSED", "USAGE", "app", "main", "run"]

app = group("Correct what a served language model believes, prove that it took, and take it back.")
app.callback()(before_the_verb)
app.add_typer(serving.app)
app.add_typer(correcting.app)
app.add_typer(approving.app)
app.add_typer(asking.app)
app.add_typer(looking.app)
app.add_typer(moving.app)
app.add_typer(models.app)
app.add_typer(models.model_app, name="model", rich_help_panel=models.PANEL)
app.add_typer(models.reader_app, name="reader", rich_help_panel=models.PANEL)
app.add_typer(models.scope_app, name="scope", rich_help_panel=models.PANEL)
app.add_typer(benches.bench_app, name="bench", rich_help_panel=models.PANEL)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    gc.disable()  # until a verb runs: what reads a command line is needed to the end, and looking for garbage in it takes time
    # Read by OpenMP when torch is imported, here or in a server that is started from here. Threads that spin while they wait
    # make answers several times slower as soon as another program wants a core (benchmarks/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every error becomes a message and an exit code."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        _refuse_half_characters(arguments)
        return app(_with_address(arguments), prog_name="ke-tools", standalone_mode=False) or DONE
    except KeToolsError as error:
        _report(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        if message := error.format_message():  # empty: no verb was given, and the help has been printed
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "ke-tools"
            _report(InvalidInput(message.rstrip(".") + ".", f"See `{path} --help`."), as_json=as_json)
        return USAGE
    except typer.Abort:
        return FAILED
    except Exception as error:
        if debug:
            raise
        return _broken(error, as_json=as_json)


def _broken(error: Exception, *, as_json: bool) -> int:
    """Report what no verb expects: an output that takes nothing more, or a defect."""
    number = error.errno if isinstance(error, OSError) else None
    if number in {errno.EPIPE, errno.ENOSPC, errno.EDQUOT}:
        _let_output_go()
    if number in {errno.ENOSPC, errno.EDQUOT}:
        cure = "Free some; `ke-tools history` shows what was done."
        _report(ResourceExhausted(f"there was no space to write: {error}.", cure), as_json=False)
    elif number != errno.EPIPE:  # who closes a pipe has read enough
        _report(KeToolsError(f"{type(error).__name__}: {error}.", "This is a bug; --debug shows where."), as_json=as_json)
    return FAILED


def _let_output_go() -> None:
    """Lose what is still to be written to standard output, which takes nothing more, so that the interpreter does not try at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _refuse_half_characters(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no UTF-8, which Python hands on as halves of characters."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"an argument is not UTF-8: {printing.plain(argument)}.", "Give it in UTF-8.") from error


def _with_address(arguments: Sequence[str]) -> list[str]:
    """Give a bare ``--http`` the usual address, as typer knows no option whose value may be left out."""
    completed: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="-"):
        completed.append(argument)
        if argument == "--http" and following.startswith("-"):
            completed.append(DEFAULT_ADDRESS)
    return completed


def _report(error: KeToolsError, *, as_json: bool) -> None:
    if as_json:
        printing.line({"error": error.as_dict()})
    else:
        printing.note(printing.plain(str(error)))
