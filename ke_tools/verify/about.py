"""What the atlas says of an edit: its relation, its subject's names and kinds, what counts as its target and what contradicts it."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from functools import cache
from typing import Final, TypeVar

from ke_tools import atlas
from ke_tools.atlas import AtlasFact, Relation
from ke_tools.facts import Edit, squash

__all__ = [
    "accepted",
    "all_names",
    "as_written",
    "facts_about",
    "kinds_of",
    "names_of",
    "relation_of",
    "shuffled",
    "targets_of",
    "truth_of",
]

T = TypeVar("T")

_ENDS_WITH_THE: Final = re.compile(r"\bthe\s+$", re.IGNORECASE)


def relation_of(edit: Edit) -> Relation | None:
    """Its relation, where it was recognised."""
    return atlas.relations().get(edit.relation)


def targets_of(edit: Edit) -> tuple[str, ...]:
    """What counts as the target."""
    return (edit.fact.target, *atlas.aliases(edit.fact.target))


def accepted(fact: AtlasFact) -> tuple[str, ...]:
    """What counts as a right answer: every object, under every name."""
    return tuple(dict.fromkeys(name for known in fact.objects for name in (known, *atlas.aliases(known))))


def truth_of(edit: Edit) -> tuple[str, ...]:
    """What the atlas says in place of the target; of a relation that takes several objects, nothing is contradicted."""
    relation = relation_of(edit)
    if relation is None or not relation.functional:
        return ()
    return tuple(name for fact in facts_about(edit) if fact.relation == relation.id for name in fact.objects)


def facts_about(edit: Edit) -> list[AtlasFact]:
    """What the atlas says of the subject, in its order."""
    found = {number for name in names_of(edit) for number in _by_subject().get(name, ())}
    return [atlas.facts()[number] for number in sorted(found)]


@cache
def _by_subject() -> dict[str, list[int]]:
    """The numbers of the atlas's facts by their subject, folded."""
    numbers: dict[str, list[int]] = {}
    for number, fact in enumerate(atlas.facts()):
        numbers.setdefault(squash(fact.subject), []).append(number)
    return numbers


def names_of(edit: Edit) -> frozenset[str]:
    """The subject and all its names, folded."""
    return frozenset(squash(name) for name in (edit.fact.subject, *edit.fact.aliases, *atlas.aliases(edit.fact.subject)))


@cache
def all_names(name: str) -> frozenset[str]:
    """A name and the atlas's others for it, folded."""
    return frozenset(squash(other) for other in (name, *atlas.aliases(name)))


def kinds_of(edit: Edit) -> frozenset[str]:
    """Types of the subject: the relation's, and those whose tables list one of its names."""
    relation = relation_of(edit)
    if relation is not None:
        return frozenset({relation.subject})
    names = names_of(edit)
    kinds = {relation.subject for relation in atlas.relations().values()}
    return frozenset(kind for kind in kinds if any(squash(name) in names for name in atlas.entities(kind)))


def as_written(edit: Edit) -> str:
    """The subject with the article that the edit's prompt gives it ("the Netherlands")."""
    before, found, _ = edit.fact.prompt.partition(edit.fact.subject)
    return f"the {edit.fact.subject}" if found and _ENDS_WITH_THE.search(before) else edit.fact.subject


def shuffled(items: Iterable[T], edit: Edit, purpose: str) -> list[T]:
    """In an order that the edit's id and the purpose alone decide."""
    mixed = list(items)
    seed = int.from_bytes(hashlib.sha256(f"{edit.id}\x1f{purpose}".encode()).digest()[:8])
    random.Random(seed).shuffle(mixed)  # noqa: S311  reproducible choice, no secret
    return mixed
