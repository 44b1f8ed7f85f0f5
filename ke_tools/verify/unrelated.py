"""Plain text, small tasks and frames that have nothing to do with any fact: data files beside this one, written by us."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Final

from ke_tools.facts import Edit, Probe
from ke_tools.verify.about import shuffled
from ke_tools.verify.asking import unchanged

__all__ = ["behind", "frames", "other_tasks", "paragraphs", "sentences", "tasks"]

_DATA: Final = resources.files("ke_tools.verify").joinpath("data")


@cache
def paragraphs() -> tuple[str, ...]:
    """Plain text, of which perplexity is taken."""
    text = _DATA.joinpath("plain.txt").read_text("utf-8")
    return tuple(" ".join(part.splitlines()) for part in text.strip().split("\n\n"))


@cache
def sentences() -> tuple[str, ...]:
    """The sentences of the plain text: what may stand before a question without being about it."""
    return tuple(line for line in _DATA.joinpath("plain.txt").read_text("utf-8").splitlines() if line)


@cache
def tasks() -> Mapping[str, tuple[str, ...]]:
    """Small tasks of reasoning, arithmetic, copying, with what is a right answer."""
    groups = tomllib.loads(_DATA.joinpath("tasks.toml").read_text("utf-8"))
    return MappingProxyType({task: tuple(right) for group in groups.values() for task, right in group.items()})


@cache
def frames() -> Mapping[str, tuple[str, ...]]:
    """What may stand around an edit's own prompt, by what that is: a statement or a question."""
    found = tomllib.loads(_DATA.joinpath("frames.toml").read_text("utf-8"))
    return MappingProxyType({kind: tuple(texts) for kind, texts in found.items()})


def behind(edit: Edit, purpose: str) -> Iterator[str]:
    """What to put before a prompt, never twice the same: each sentence once, then each pair of two."""
    known = shuffled(sentences(), edit, f"sentences of {purpose}")
    yield from known
    for distance in range(1, len(known)):
        yield from (f"{sentence} {known[(n + distance) % len(known)]}" for n, sentence in enumerate(known))


def other_tasks(edit: Edit) -> Iterator[Probe]:
    """Every task, as a chat turn."""
    for task in shuffled(tasks(), edit, "other tasks"):
        yield unchanged(edit, "other_tasks", (task, True), "data file", right=tasks()[task])
