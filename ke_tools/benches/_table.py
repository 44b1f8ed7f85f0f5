"""Rows of measures as a table: for a terminal, in Markdown, in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any, Final

__all__ = ["as_csv", "as_markdown", "cells", "notes"]

GROUPS: Final = ("free generation", "as published")
COST: Final = ("seconds an edit", "peak MiB")

Rows = Mapping[str, Mapping[str, Any]]


def as_csv(rows: Rows) -> str:
    """A line a method; behind each measure its standard error; empty what was not measured."""
    columns = [(group, name) for group in GROUPS for name in _measured(rows, group)]
    titles = [title for group, name in columns for title in (f"{group}: {name}", f"{group}: {name}, stderr")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *titles, *COST])
    for method, row in rows.items():
        pairs = (_numbers(row[group].get(name)) for group, name in columns)
        writer.writerow([method, *(number for pair in pairs for number in pair), *(row["cost"].get(name, "") for name in COST)])
    return text.getvalue()


def as_markdown(rows: Rows) -> str:
    """A table a group of columns."""
    told = [f"- {note}" for note in notes(rows)]
    return "\n".join([*(line for group, table in cells(rows).items() for line in _markdown(group, table)), *told]).rstrip() + "\n"


def cells(rows: Rows) -> dict[str, dict[str, dict[str, str]]]:
    """By group and method, the text of each cell: a value and its standard error, or nothing. Cost stands in the first group."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for group in GROUPS:
        names = _measured(rows, group)
        found[group] = {method: {name: _cell(row[group].get(name)) for name in names} for method, row in rows.items()}
    for method, row in rows.items():
        found[GROUPS[0]][method] |= {name: str(row["cost"].get(name, "")) for name in COST}
    return {group: table for group, table in found.items() if any(any(row.values()) for row in table.values())}


def notes(rows: Rows) -> list[str]:
    """What is to be said of a method beside its numbers."""
    return [f"{method}: {note}" for method, row in rows.items() for note in row["notes"]]


def _measured(rows: Rows, group: str) -> list[str]:
    """The measures that any method has, in order."""
    return list(dict.fromkeys(name for row in rows.values() for name, found in row[group].items() if found["measured"]))


def _numbers(found: Mapping[str, Any] | None) -> tuple[Any, Any]:
    return (found["value"], found["stderr"]) if found and found["measured"] else ("", "")


def _cell(found: Mapping[str, Any] | None) -> str:
    return f"{found['value']:.3f} ± {found['stderr']:.3f}" if found and found["measured"] else ""


def _markdown(group: str, table: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    names = list(next(iter(table.values())))
    yield f"**{group}**"
    yield ""
    yield f"| method | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for method, row in table.items():
        yield f"| {method} | {' | '.join(row[name] for name in names)} |"
    yield ""
