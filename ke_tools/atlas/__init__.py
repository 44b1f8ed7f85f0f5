"""Relations, their wordings, and true facts: data, no model.

One inventory serves four purposes: the wordings train the scope scorer and the reader, generate the verifier's probes and
render demonstrations. So that nothing is graded on what it was fitted on, some wordings of each relation, and some relations
entirely, are marked *probe*: :attr:`Relation.fitted_statements` and :attr:`Relation.fitted_questions` never contain them, and
only the verifier and the benches read ``probe_statements`` and ``probe_questions``.

The tables are TOML files beside this one: ``relations/``, ``facts/``, ``entities/``; ``slots/`` holds what can be asked about things
that no table lists (a firm's services, a recipe, an invented film), for training only.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

from ke_tools.atlas.nouns import LOCATIVES, fits, noun_phrase
from ke_tools.facts import squash

__all__ = [
    "AtlasFact",
    "Relation",
    "Slot",
    "aliases",
    "entities",
    "facts",
    "holds_probe_wording",
    "mask",
    "may_hold_probe_wording",
    "noun_phrase",
    "recognise",
    "relations",
    "slot_subjects",
    "slots",
    "worded",
    "wording_key",
]

_ARTICLES: Final = frozenset({"the", "a", "an"})
_POSSESSIVE: Final = re.compile(r"['\u2019]s?\b")


@dataclass(frozen=True, slots=True)
class Relation:
    """What can be said of a subject, and in which words; ``{}`` stands for the subject, the object follows."""

    id: str
    subject: str
    object: str
    inverse: str
    functional: bool
    probe: bool
    masked: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    probe_statements: tuple[str, ...]
    probe_questions: tuple[str, ...]
    plain: tuple[str, ...] = ()  # what it is called beside ``masked``, and other plain words for it (with ``{}``), for recognition

    @property
    def fitted_statements(self) -> tuple[str, ...]:
        """Statements that training and demonstrations may use; none of a probe relation's."""
        return () if self.probe else self.statements

    @property
    def fitted_questions(self) -> tuple[str, ...]:
        """Questions that training and demonstrations may use; none of a probe relation's."""
        return () if self.probe else self.questions

    @property
    def held_out_wordings(self) -> tuple[str, ...]:
        """Wordings that only probes may use."""
        kept = self.probe_statements + self.probe_questions
        return kept + self.statements + self.questions if self.probe else kept

    @property
    def wordings(self) -> tuple[str, ...]:
        """Every wording."""
        return self.statements + self.questions + self.probe_statements + self.probe_questions


@dataclass(frozen=True, slots=True)
class AtlasFact:
    """A true fact; a relation that is not functional may have several objects."""

    relation: str
    subject: str
    objects: tuple[str, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Slot:
    """What can be asked about a type of thing that no table lists; ``{}`` stands for the thing, the answer follows a statement."""

    id: str
    subject: str  # the type; slots of one type ask for different things
    masked: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    targets: tuple[str, ...]  # made up answers
    near: tuple[str, ...] = ()  # slots whose questions one could fairly take for this one's
    beside: tuple[str, ...] = ()  # what asks for something else in like words


def _tables(folder: str) -> list[dict[str, Any]]:
    files = sorted((f for f in resources.files(__name__).joinpath(folder).iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return [tomllib.loads(f.read_text("utf-8")) for f in files]


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}


@cache
def relations() -> Mapping[str, Relation]:
    """All relations by id."""
    found: dict[str, Relation] = {}
    for table in _tables("relations"):
        for row in table["relation"]:
            relation = Relation(**_columns(row))
            if relation.id in found:
                raise ValueError(f"the relation {relation.id!r} stands in two tables")
            found[relation.id] = relation
    return MappingProxyType(found)


@cache
def facts() -> tuple[AtlasFact, ...]:
    """All facts, by relation and as the tables order them."""
    return tuple(
        AtlasFact(table["relation"], subject, (objects,) if isinstance(objects, str) else tuple(objects), table["source"])
        for table in _tables("facts")
        for subject, objects in table["facts"].items()
    )


@cache
def slots() -> tuple[Slot, ...]:
    """All slots, as the tables order them."""
    rows: Iterator[dict[str, Any]] = (row for table in _tables("slots") for row in table["slot"])
    return tuple(Slot(**_columns(row)) for row in rows)


@cache
def slot_subjects() -> Mapping[str, tuple[str, ...]]:
    """Invented names by the type that slots have."""
    return MappingProxyType({kind: tuple(names) for table in _tables("slots") for kind, names in table["subjects"].items()})


@cache
def _entities() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    return {table["type"]: {name: tuple(other) for name, other in table["entities"].items()} for table in _tables("entities")}


def entities(kind: str) -> Mapping[str, tuple[str, ...]]:
    """Names of a type, each with its aliases; empty for a type without a table."""
    return _entities().get(kind, {})


@cache
def _aliases() -> Mapping[str, tuple[str, ...]]:
    merged: dict[str, tuple[str, ...]] = {}
    for table in _entities().values():
        for name, other in table.items():
            merged[squash(name)] = tuple(dict.fromkeys(merged.get(squash(name), ()) + other))
    return merged


def aliases(name: str) -> tuple[str, ...]:
    """Other names of an entity of any type."""
    return _aliases().get(squash(name), ())


def mask(text: str, names: Sequence[str]) -> str:
    """Replace the longest of ``names`` that stands in ``text`` as whole words by ``{}``; case and diacritics are folded.

    Returns the text as it is where none stands in it.
    """
    folded, origin = _fold(text)
    for name in sorted({" ".join(_fold(n)[0].split()) for n in names if n.strip()}, key=len, reverse=True):
        found = re.search(r"(?<!\w)" + re.escape(name).replace(r"\ ", r"\s+") + r"(?!\w)", folded)
        if found:
            return text[: origin[found.start()]] + "{}" + text[origin[found.end() - 1] + 1 :]
    return text


def wording_key(masked: str) -> str:
    """A form in which two writings of one wording are equal: case, punctuation, articles and possessive marks dropped."""
    words = squash(_POSSESSIVE.sub(" ", masked.replace("{}", " zqsubjectqz "))).split()
    return " ".join("{}" if word == "zqsubjectqz" else word for word in words if word not in _ARTICLES)


@cache
def _by_wording() -> Mapping[str, Relation]:
    return {wording_key(wording): relation for relation in relations().values() for wording in relation.wordings}


@cache
def _by_plain_words() -> Mapping[str, tuple[Relation, ...]]:
    """Plain words → the relations that they may mean."""
    found: dict[str, list[Relation]] = {}
    for relation in relations().values():
        for phrase in dict.fromkeys(_plain_forms(relation)):
            found.setdefault(phrase, []).append(relation)
    return {phrase: tuple(meant) for phrase, meant in found.items()}


def _plain_forms(relation: Relation) -> Iterator[str]:
    is_place = " where {} " in relation.masked
    for words in (relation.masked, *relation.plain):
        key = wording_key(words if "{}" in words else f"{words} of {{}}")
        yield noun_phrase(key) or key
        if is_place and "{}" not in words:
            yield f"where {key}"
            yield from (f"{key} {tail}" for tail in LOCATIVES)


@cache
def _probe_keys() -> tuple[frozenset[int], frozenset[str]]:
    """How many words they have, and they themselves."""
    keys = frozenset(wording_key(wording) for relation in relations().values() for wording in relation.held_out_wordings)
    return frozenset(len(key.split()) for key in keys), keys


def worded(prompt: str, subject: str) -> Relation | None:
    """Find the relation whose words a prompt has, whatever the subject is.

    These are the inventory's wordings up to case, articles and punctuation, and what can be said and asked after the name of a
    relation ("Freedonia's capital is"). Where these mean two relations, the subject's table decides, or nothing.
    """
    key = wording_key(mask(prompt, [subject]))
    if listed := _by_wording().get(key):
        return listed
    meant = _by_plain_words().get(noun_phrase(key) or key, ())
    if len(meant) > 1:
        meant = tuple(relation for relation in meant if _is_listed(relation.subject, subject))
    return meant[0] if len(meant) == 1 else None


def recognise(prompt: str, subject: str) -> Relation | None:
    """Name the relation of a prompt that has its words (:func:`worded`) and whose subject can be of its type."""
    relation = worded(prompt, subject)
    if relation is None or _is_listed(relation.subject, subject):
        return relation
    before = mask(prompt, [subject]).partition("{}")[0].split()
    return relation if fits(relation.subject, subject, before[-1] if before else "") else None


def _is_listed(kind: str, name: str) -> bool:
    key = squash(name)
    return not _names_of_type(kind).isdisjoint({key, key.removeprefix("the ")})


@cache
def _names_of_type(kind: str) -> frozenset[str]:
    return frozenset(squash(name) for entity, other in entities(kind).items() for name in (entity, *other))


def holds_probe_wording(masked: str) -> bool:
    """Whether a subject-masked text is a wording that only probes may use, or holds one among other words."""
    words = wording_key(masked).split()
    lengths, keys = _probe_keys()
    return any(" ".join(words[start : start + length]) in keys for length in lengths for start in range(len(words) - length + 1))


def may_hold_probe_wording(text: str) -> bool:
    """Whether a text holds a probe wording with whatever in the subject's place.

    For texts that name their subject otherwise than one knows (an alias, a slip of the pen): rather one too many than one missed.
    """
    key = wording_key(text)
    return any(pattern.search(key) for word in set(key.split()) for pattern in _probe_patterns().get(word, ()))


@cache
def _probe_patterns() -> Mapping[str, tuple[re.Pattern[str], ...]]:
    """The held-out wordings as patterns, by the rarest of their words."""
    keys = _probe_keys()[1]
    counts = Counter(word for key in keys for word in key.split())
    found: dict[str, tuple[re.Pattern[str], ...]] = {}
    for key in sorted(keys):
        rarest = min((word for word in key.split() if word != "{}"), key=lambda word: (counts[word], word))
        pattern = re.compile(r"(?<!\S)" + r"\S.*".join(map(re.escape, key.split("{}"))) + r"(?!\S)")
        found[rarest] = (*found.get(rarest, ()), pattern)
    return MappingProxyType(found)


def _fold(text: str) -> tuple[str, list[int]]:
    """Case- and diacritics-folded text, and for each of its characters the index in the original."""
    out: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        for part in unicodedata.normalize("NFKD", char.casefold()):
            if not unicodedata.combining(part):
                out.append(part)
                origin.append(index)
    return "".join(out), origin
