"""How a result reaches a person's terminal or a program's pipe. The only place of the command line that prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console

# What a person needs of a row, where that is less than all; --json has the rest.
_COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "edits": ("edit_id", "state", "prompt", "target", "expires", "rung", "reason", "superseded", "warnings"),
    "jobs": ("job_id", "kind", "status", "summary"),
    "candidates": ("edit_id", "prompt", "target", "reason"),
    "retired": ("edit_id", "prompt", "target"),
    "restored": ("edit_id", "prompt", "target"),
    "waiting": ("edit_id", "prompt", "target"),
    "answers": ("view", "text", "route", "used_edits"),
    "events": ("at", "actor", "action", "edit_ids", "note"),
    "left": ("at", "action", "edit_ids", "note"),
    "protections": ("id", "subject", "aliases", "relation", "actor", "at", "reason"),
}
_EMPTY: Final[tuple[object, ...]] = ("", None, [], ())
_UNFOLDED: Final = {"edit_id", "job_id", "rung", "state", "status", "view"}

Progress = Callable[[str, float, float], None]  # what is being done, how much of it, out of how much (0: unknown)


def show(result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: one JSON object on a line, or its ``summary``, its scalars as pairs and its lists as tables."""
    if as_json:
        line(result)
        return
    console = _console()
    if summary := result.get("summary"):
        console.print(plain(summary), markup=False, highlight=False)
    for key, value in _apart(result):
        if key == "summary":
            continue
        if isinstance(value, Mapping):
            if any(item not in _EMPTY for item in value.values()):
                _table(console, key, [{"": name, **_columns(item)} for name, item in value.items()])
        elif isinstance(value, list | tuple):
            _table(console, key, [_columns(item) for item in value])
        elif isinstance(value, str) and "\n" in value:  # made for people already
            console.print("", plain(value), sep="\n", markup=False, highlight=False)
        elif not summary:
            console.print(f"{key}: {plain(value)}", markup=False, highlight=False)


def line(value: Mapping[str, Any] | str) -> None:
    """Print one line for programs: a mapping as JSON, text as it is."""
    sys.stdout.write((value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


def streamed(pieces: Iterable[str]) -> None:
    """Print a text as it comes; on a terminal as Markdown, elsewhere as it is, and a line break behind it."""
    console = _console()
    if not console.is_terminal:
        for piece in pieces:
            sys.stdout.write(plain(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        return
    from rich.live import Live
    from rich.markdown import Markdown

    said = ""
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for piece in pieces:
            said += piece
            live.update(Markdown(plain(said)))


def note(text: str) -> None:
    """Say something to the person on stderr."""
    sys.stderr.write(text + "\n")


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on stderr while something long runs; where stderr is no terminal, a line for each thing that begins."""
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def tell(what: str, _done: float, _total: float) -> None:
            if what not in begun:
                begun.add(what)
                note(what)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total or None)


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True)


def _apart(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values; what inside a mapping would be no cell of a table (a list, a table of its own) comes after it by itself."""
    for key, value in result.items():
        inside = {name: item for name, item in value.items() if _is_table(item)} if isinstance(value, Mapping) else {}
        yield key, {name: item for name, item in value.items() if name not in inside} if inside else value
        yield from inside.items()


def _is_table(item: Any) -> bool:
    return isinstance(item, list) or (isinstance(item, Mapping) and any(isinstance(part, Mapping) for part in item.values()))


def _columns(item: Any) -> dict[str, Any]:
    return dict(item) if isinstance(item, Mapping) else {"value": item}


def _table(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    chosen = _COLUMNS.get(title) or dict.fromkeys(name for row in rows for name in row)
    names = [name for name in chosen if any(row.get(name) not in _EMPTY for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold", no_wrap=name in _UNFOLDED)
    for row in rows:
        table.add_row(*(Text(plain(row.get(name, ""))) for name in names))
    console.print(Text(title.replace("_", " "), style="bold"))  # as the table's own title it would be folded to the table's width
    console.print(table, soft_wrap=False)


def plain(value: Any) -> str:
    """Text that cannot steer the terminal: what is not printable is shown escaped."""
    text = value if isinstance(value, str) else _short(value)
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _short(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return str(value)
