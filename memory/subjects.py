"""Who is named in a text: edited subjects and their other names, found as whole spans."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Final, NamedTuple

from ke_tools import atlas
from ke_tools.memory.folding import fold, foldings
from ke_tools.memory.lexicon import Lexicon, Span
from ke_tools.memory.names import known_entities, without_determiner
from ke_tools.memory.spellings import spellings
from ke_tools.screen import EVERYDAY

__all__ = ["Key", "Mention", "SubjectIndex", "fold", "keys_of", "names_another", "names_in"]

_SHORTEST_PLURAL: Final = 3
_NOBODY: Final = Lexicon()


@dataclass(frozen=True, slots=True)
class Mention:
    """A subject named in a text; ``text`` is the original's slice from ``start`` to ``end``."""

    start: int
    end: int
    text: str
    edit_ids: frozenset[str]


class Key(NamedTuple):
    """A folded name. An everyday word or a single letter counts only as it is ``written``: "US" is not "us", "It" not "it"."""

    name: str
    written: str = ""


def keys_of(names: Iterable[str]) -> tuple[Key, ...]:
    """Everything by which the bearer of these names is found."""
    return tuple(dict.fromkeys(key for name in names for written in spellings(name) for key in _keys(written)))


class SubjectIndex:
    """Finds the subjects of edits in texts.

    Nothing is ever built anew: adding an edit, or forgetting one, costs as much as its names.
    """

    def __init__(self, keys: Mapping[str, Iterable[Key]] | None = None) -> None:
        """Begin without edits, or with the keys of some, as :meth:`keys` tells them."""
        self._edits: dict[str, set[str]] = {}  # name → edits
        self._keys: dict[str, tuple[Key, ...]] = {}
        self._written: dict[str, dict[str, set[str]]] = {}  # everyday words → edit → how it writes the name
        self._lexicon = Lexicon()
        self._shields = _NOBODY
        for edit_id, found in (keys or {}).items():
            self.put(edit_id, found)

    def __len__(self) -> int:
        """Count the edits."""
        return len(self._keys)

    def keys(self) -> dict[str, tuple[Key, ...]]:
        """The keys of every edit, from which an equal index can be made."""
        return dict(self._keys)

    def add(self, names: Iterable[str], edit_id: str) -> None:
        """Let every name point to the edit; names given earlier for it are forgotten."""
        self.put(edit_id, keys_of(names))

    def put(self, edit_id: str, keys: Iterable[Key]) -> None:
        """Let every key point to the edit, as :meth:`add`."""
        self.discard(edit_id)
        self._keys[edit_id] = kept = tuple(keys)
        for name, written in kept:
            self._lexicon.add(name)
            self._edits.setdefault(name, set()).add(edit_id)
            if written:
                self._written.setdefault(name, {}).setdefault(edit_id, set()).add(written)

    def discard(self, edit_id: str) -> None:
        """Forget an edit; unknown ones are no error."""
        for name in dict.fromkeys(key.name for key in self._keys.pop(edit_id, ())):
            edits = self._edits[name]
            edits.discard(edit_id)
            if not edits:
                del self._edits[name]
                self._lexicon.discard(name)
            if name in self._written:
                self._written[name].pop(edit_id, None)
                if not self._written[name]:
                    del self._written[name]

    def shield(self, names: Iterable[str]) -> None:
        """Let these names, and none given before, stand for nobody but their bearers: a part of one names no edit's subject."""
        self._shields = Lexicon({key.name for key in keys_of(names) if not key.written})

    def says_shielded(self, text: str) -> bool:
        """Whether a shielded name stands in a text."""
        return len(self._shields) > 0 and any(True for form in foldings(text) for _ in self._shields.spans(form))

    def find(self, text: str) -> list[Mention]:
        """Find who is named: longest whole spans, in order, never overlapping."""
        if not self._edits:
            return []
        folded = list(foldings(text))
        meant: dict[Span, frozenset[str]] = {}
        by_writing: dict[tuple[str, str], frozenset[str]] = {}  # a document may name one subject thousands of times
        for span in chain.from_iterable(map(self._lexicon.spans, folded)):
            writing = (span.name, text[span.start : span.end])
            if writing not in by_writing:
                by_writing[writing] = self._meant(*writing)
            if by_writing[writing]:
                meant[span] = by_writing[writing]
        if meant and len(self._shields):
            shields = [shield for form in folded for shield in self._shields.spans(form)]
            meant = {span: edits for span, edits in meant.items() if not any(_cuts(span, shield) for shield in shields)}
        if not meant:
            return []
        whole = _without_parts(chain(meant, *map(_entities().spans, folded)))
        return [Mention(span.start, span.end, text[span.start : span.end], meant[span]) for span in _without_overlaps(whole & meant.keys())]

    def _meant(self, name: str, written: str) -> frozenset[str]:
        """The edits whose name stands there; of an everyday word those that write it so; behind an article those without one too."""
        edits = self._edits.get(name, set())
        bare = without_determiner(name)
        if bare != name and bare not in EVERYDAY:
            edits = edits | self._edits.get(bare, set())
        if (writings := self._written.get(name)) is None:
            return frozenset(edits)
        return frozenset(edit_id for edit_id in edits if written in writings.get(edit_id, ()))


def names_another(text: str, own: Iterable[str] = ()) -> bool:
    """Whether the text names an entity of the atlas that is none of ``own``."""
    keys = {key.name.removeprefix("the ") for key in keys_of(own)}
    spans = (span for folded in foldings(text) for span in _entities().spans(folded))
    return any(span.name not in keys and _is_name(span, text) for span in spans)


def names_in(text: str) -> list[tuple[int, int]]:
    """Where the text names entities of the atlas: the longest, never overlapping."""
    spans = {span for folded in foldings(text) for span in _entities().spans(folded) if _is_name(span, text)}
    return [(span.start, span.end) for span in _without_overlaps(spans)]


def _keys(written: str) -> Iterator[Key]:
    for name in dict.fromkeys(folded.text.strip() for folded in foldings(written)):
        if not any(char.isalnum() for char in name):
            continue
        yield Key(name, written.strip() if name in EVERYDAY or len(name) == 1 else "")
        rest = name.removeprefix("the ")
        if rest != name and " " in rest:
            yield Key(rest)
        if len(name) > _SHORTEST_PLURAL and name.endswith("y") and name[-2] not in "aeiou":
            yield Key(name[:-1] + "ies")


def _is_name(span: Span, text: str) -> bool:
    """Whether it is written as a name, or cannot be a common noun ("salt" may be one, "austria" not)."""
    return not text[span.start].islower() or span.name in _places()


@cache
def _places() -> frozenset[str]:
    return frozenset(fold(name).text.strip() for kind in ("country", "city", "continent") for name in atlas.entities(kind))


@cache
def _entities() -> Lexicon:
    names = (name for entity, other in known_entities() for name in (entity, *other))
    keys = {folded.text.strip().removeprefix("the ") for name in names for folded in foldings(name)}
    return Lexicon(keys - EVERYDAY - {""})


def _cuts(span: Span, other: Span) -> bool:
    """Whether a span has a part of another and not all of it."""
    overlaps = span.start < other.end and other.start < span.end
    return overlaps and not (span.start <= other.start and other.end <= span.end)


def _without_parts(spans: Iterable[Span]) -> set[Span]:
    """Leave out the spans that lie within a longer name."""
    kept: set[Span] = set()
    widest = Span(0, 0, "")
    for span in sorted(spans, key=lambda s: (s.start, -s.end, -len(s.name))):
        is_part = span.end <= widest.end and span.size < widest.size
        if not is_part:
            kept.add(span)
        if span.end > widest.end:
            widest = span
    return kept


def _without_overlaps(spans: Collection[Span]) -> list[Span]:
    """Keep the longest of those that overlap, in the text's order."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start - s.end, -len(s.name), s.start, s.name)):
        place = bisect_left(kept, span.start, key=lambda s: s.start)
        is_free = (place == 0 or kept[place - 1].end <= span.start) and (place == len(kept) or span.end <= kept[place].start)
        if is_free:
            kept.insert(place, span)
    return kept
