"""The edits that a bench makes: a seeded sample of a file's, without what we trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools import atlas
from ke_tools.benches._serving import TENANT
from ke_tools.cases import Answered, Case
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, squash

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["Sample", "hops", "imported", "names_any", "record_of", "sample", "trained", "with_other_names"]

IMPORT_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Sample:
    """The cases chosen, and how many were left out."""

    chosen: tuple[Case, ...]
    trained: int  # left out: the subject occurs in our training data
    refused: int  # left out: not a valid fact (subject not in the prompt …)


def sample(loaded: Sequence[Case], most: int, seed: int, is_trained: Callable[[str], bool]) -> Sample:
    """A seeded sample, one edit a subject, in random order; edits of one record (MQuAKE) come together or not at all.

    Of these only the first one's subject stands in the questions, so that it alone must not have been trained on.
    """
    records: dict[str, list[Case]] = {}
    for case in loaded:
        records.setdefault(record_of(case.id), []).append(case)
    order = list(records.values())
    random.Random(seed).shuffle(order)  # noqa: S311  reproducible choice, no secret
    chosen: dict[str, Case] = {}
    left_out = {"trained": 0, "refused": 0}
    for record in order:
        if len(chosen) >= most:
            break
        subjects = {squash(case.subject): case for case in record}
        if chosen.keys() & subjects.keys():
            continue
        if is_trained(record[0].subject):
            left_out["trained"] += 1
        elif len(subjects) < len(record) or not all(map(_is_fact, record)):
            left_out["refused"] += 1
        else:
            chosen |= subjects
    if not chosen:
        raise InvalidInput("no usable edit in the file.", "Each record needs a subject that stands in its prompt, and a target.")
    return Sample(tuple(chosen.values()), **left_out)


def record_of(case: str) -> str:
    """The record that a case stands in, by the case's id."""
    return case.rpartition(".")[0] or case


def hops(case: Case) -> Sequence[Answered]:
    """A case's questions with hops; of a record with several edits (MQuAKE) only the first edit's, as all have the same."""
    return () if record_of(case.id) != case.id and not case.id.endswith(".0") else case.reasoning


def names_any(prompt: str, chosen: Sequence[Case]) -> bool:
    """Whether a prompt names the subject of an edit."""
    text = f" {squash(prompt)} "
    return any(f" {squash(case.subject)} " in text for case in chosen)


def _is_fact(case: Case) -> bool:
    try:
        case.fact()
    except InvalidInput:
        return False
    return True


def trained(fingerprint: str, settings: Settings, *, with_scope: bool) -> Callable[[str], bool]:
    """A test whether a subject occurs in training data of ours: the atlas's facts, and what the cards of reader and scope list.

    A reader is a model's, found by its fingerprint; the scope's card counts only where the scope decides.
    """
    prefixes = set(_listed(_card_folders(fingerprint, settings, with_scope=with_scope)))
    ours = {squash(fact.subject) for fact in atlas.facts()}
    return lambda subject: squash(subject) in ours or hashlib.sha256(squash(subject).encode()).hexdigest()[:8] in prefixes


def _card_folders(fingerprint: str, settings: Settings, *, with_scope: bool) -> Iterator[Path]:
    """Where cards lie: the reader's folder, and the scope's."""
    from ke_tools.models.reader import card

    folder = card.find(fingerprint, settings.home)
    if folder is not None:
        yield folder
    if with_scope:
        with resources.as_file(resources.files("ke_tools.memory.scope")) as folder:
            yield folder


def _listed(folders: Iterable[Path]) -> Iterator[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for each subject of the training data."""
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            try:
                card = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(card, dict):
                yield from card.get("training_subjects") or ()


def imported(edit: Callable[..., list[Edit]], chosen: Sequence[Case], fact: Callable[[Case], Fact]) -> Iterator[Edit]:
    """Edit all, a part at a time, each as ``fact`` makes it; an edit's ``ref`` is its case's id."""
    for start in range(0, len(chosen), IMPORT_BATCH):
        part = chosen[start : start + IMPORT_BATCH]
        yield from edit(TENANT, [fact(case) for case in part], actor="bench", refs=[case.id for case in part])


def with_other_names(case: Case) -> Fact:
    """The case as an edit to which the other names are given that its questions use."""
    names = dict.fromkeys(case.other_name(asked) for asked, _ in case.aliased)
    given = tuple(name for name in names if name and squash(name) != squash(case.subject))
    return dataclasses.replace(case.fact(), aliases=given)
