"""What things are called: the keys by which two writings of one name are equal, and the other names that the atlas knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from typing import Final

from ke_tools import atlas
from ke_tools.facts import squash

__all__ = ["entity_named", "known_entities", "name_key", "names_of", "subject_key", "subject_keys", "without_determiner"]

_TELLING: Final = "+#*"  # C, C++ and C# are three subjects


def name_key(text: str) -> str:
    """A form in which two writings of one name are equal; telling signs stay, and a text of signs alone is kept."""
    telling = "".join(char for char in text if char in _TELLING)
    return (squash(text) + telling) or " ".join(text.casefold().split())


def subject_key(name: str) -> str:
    """The key of what a name stands for, without article or "our"; of another name of one entity of the atlas, that entity's."""
    return name_key(without_determiner(entity_named(name) or name))


def without_determiner(name: str) -> str:
    """Drop a leading article or "our", which in a tenant's memory says no more; "A" and "Our" may begin a title, and stay."""
    first, _, rest = name.strip().partition(" ")
    return rest.strip() if squash(rest) and (first.casefold() == "the" or first in {"a", "an", "our"}) else name


def names_of(subject: str, aliases: Iterable[str] = ()) -> tuple[str, ...]:
    """Every name of an edit's subject: its own, those given with the edit, the atlas's (also where the subject is such another name)."""
    entity = entity_named(subject) or without_determiner(subject)
    other = atlas.aliases(entity)
    known = (*atlas.aliases(subject), *([entity, *other] if other else []))
    return tuple(dict.fromkeys((subject, *aliases, *known)))


@lru_cache(maxsize=4096)
def entity_named(name: str) -> str:
    """Return the one entity that the atlas knows under this other name; "" where there is none.

    A single word must be written as the atlas writes it: "The Who" is not the WHO.
    """
    bare = without_determiner(name)
    for written in (bare, f"the {bare}", bare.replace(".", "")):
        names = _by_other_name().get(squash(written), ())
        same = (other for other in names if name_key(other) == name_key(written))
        if any(" " in without_determiner(other) or _unmarked(other) == _unmarked(written) for other in same):
            return names[0]
    return ""


@lru_cache(maxsize=4096)
def subject_keys(subject: str) -> frozenset[str]:
    """Folded names that can stand for nothing but this subject, as the ledger lists names."""
    own = subject_key(subject)
    names = (subject, without_determiner(subject), *names_of(subject))
    keys = {name_key(name) for name in names if subject_key(name) == own} | {own}
    return frozenset(keys | {f"{word} {key}" for key in keys for word in ("the", "our")})


def known_entities() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every entity that a relation may be about or lead to, with its other names."""
    kinds = {kind for relation in atlas.relations().values() for kind in (relation.subject, relation.object)}
    return ((entity, other) for kind in sorted(kinds) for entity, other in atlas.entities(kind).items())


@cache
def _by_other_name() -> dict[str, tuple[str, ...]]:
    """Other name → all names of the one entity that has it."""
    found: dict[str, tuple[str, ...]] = {}
    own = {squash(entity) for entity, _ in known_entities()}
    for entity, other in known_entities():
        for name in map(squash, other):
            if name not in own:
                found[name] = () if name in found and squash(entity) not in map(squash, found[name]) else (entity, *other)
    return found


def _unmarked(name: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKD", name) if char.isalnum())
