"""Who is named in a text: edited subjects and their other names, found as whole spans.

Texts and names are folded before they are compared (NFKD, case, combining marks and invisible characters dropped, white space
squeezed, dashes and apostrophes unified), and every folded character remembers where it came from, so that a mention is always
a true slice of the original text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import ahocorasick

from ke_tools import atlas
from ke_tools.memory.names import known_entities, without_determiner
from ke_tools.screen import EVERYDAY

__all__ = ["Mention", "SubjectIndex", "fold", "names_another", "names_in"]

_APOSTROPHES: Final = frozenset("'\u2018\u2019\u02bc\u2032\uff07`\u00b4")
_DASHES: Final = frozenset("-\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d")
_SHORTEST_PLURAL: Final = 3  # "us" is no plural of "u"
_RECENT: Final = 256  # names added since the large automaton was built

_SPACELESS: Final = (  # scripts that are written without spaces, or whose particles follow a name without one
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul, decomposed
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Kana
    (0x3130, 0x318F),
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True, slots=True)
class Mention:
    """A subject named in a text; ``text`` is the original's slice from ``start`` to ``end``."""

    start: int
    end: int
    text: str
    edit_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text; character ``i`` comes from ``origin[i]`` of the original."""

    text: str
    origin: tuple[int, ...]
    length: int  # of the original


@dataclass(frozen=True, slots=True)
class _Span:
    start: int  # in the folded text
    end: int
    key: str

    def lies_within(self, other: _Span) -> bool:
        """Whether the other is the longer name; a name that ends in s beats the plural of one that does not."""
        return other.start <= self.start and self.end <= other.end and self.size < other.size

    @property
    def size(self) -> tuple[int, int]:
        return self.end - self.start, len(self.key)

    def overlaps(self, other: _Span) -> bool:
        return self.start < other.end and other.start < self.end


@lru_cache(maxsize=4096)
def _fold_character(char: str) -> str:
    if char in _APOSTROPHES:
        return "'"
    if char in _DASHES:
        return "-"
    if char.isspace():
        return " "
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    kept = "".join(c for c in folded if not unicodedata.combining(c) and unicodedata.category(c) not in {"Cf", "Cc"})
    return " " if kept.isspace() else kept


def fold(text: str) -> Folded:
    """Fold a text for comparing, with the way back."""
    out: list[str] = []
    origin: list[int] = []
    for index, char in enumerate(text):
        for part in _fold_character(char):
            if part == " " and (not out or out[-1] == " "):
                continue
            out.append(part)
            origin.append(index)
    return Folded("".join(out), tuple(origin), len(text))


class SubjectIndex:
    """Finds the subjects of edits in texts.

    Names added since the last build of the large automaton stand in a small one of their own; discarded names stay in the automata
    until the next build and are ignored.
    """

    def __init__(self) -> None:
        """Begin without names."""
        self._edits: dict[str, set[str]] = {}  # key → edits
        self._keys: dict[str, tuple[str, ...]] = {}  # edit → keys
        self._spellings: dict[str, dict[str, set[str]]] = {}  # everyday words → edit → how it writes the name
        self._built: frozenset[str] = frozenset()
        self._large: Any = None
        self._small: Any = None
        self._recent: set[str] = set()

    def __len__(self) -> int:
        """Count the edits."""
        return len(self._keys)

    def add(self, names: Iterable[str], edit_id: str) -> None:
        """Let every name point to the edit; names given earlier for it are forgotten."""
        self.discard(edit_id)
        keys = tuple(dict.fromkeys(key for name in names for key in self._keys_of(name, edit_id)))
        self._keys[edit_id] = keys
        for key in keys:
            self._edits.setdefault(key, set()).add(edit_id)
            if key not in self._built and key not in self._recent:
                self._recent.add(key)
                self._small = None

    def discard(self, edit_id: str) -> None:
        """Forget an edit; unknown ones are no error."""
        for key in self._keys.pop(edit_id, ()):
            self._edits[key].discard(edit_id)
            self._spellings.get(key, {}).pop(edit_id, None)
            if not self._edits[key]:
                del self._edits[key]

    def find(self, text: str) -> list[Mention]:
        """Find who is named: longest whole spans, in order, never overlapping."""
        if not self._edits:
            return []
        folded = fold(text)
        named = [span for span in self._spans(folded) if self._meant(span, folded, text)]
        if not named:
            return []
        known = [*named, *_entity_spans(folded)]
        whole = [span for span in named if not any(span.lies_within(other) for other in known)]
        return [self._mention(span, folded, text) for span in _without_overlaps(whole)]

    def _keys_of(self, name: str, edit_id: str) -> Iterator[str]:
        key = fold(name).text.strip()
        if not any(c.isalnum() for c in key):
            return
        if key in EVERYDAY:  # it counts only as it is written: "US" is not "us", "It" not "it"
            self._spellings.setdefault(key, {}).setdefault(edit_id, set()).add(name.strip())
        yield key
        rest = key.removeprefix("the ")
        if rest != key and " " in rest:
            yield rest
        if len(key) > _SHORTEST_PLURAL and key.endswith("y") and key[-2] not in "aeiou":
            yield key[:-1] + "ies"

    def _spans(self, folded: Folded) -> list[_Span]:
        self._build()
        automata = [automaton for automaton in (self._large, self._small) if automaton is not None]
        return [span for automaton in automata for span in _matches(automaton, folded)]

    def _build(self) -> None:
        if len(self._recent) > max(_RECENT, len(self._built) // 8) or len(self._built) > 2 * len(self._edits) + _RECENT:
            self._built = frozenset(self._edits)
            self._recent = set()
            self._large, self._small = _automaton(self._built), None
        elif self._small is None and self._recent:
            self._recent = {key for key in self._recent if key in self._edits}
            self._small = _automaton(self._recent)

    def _meant(self, span: _Span, folded: Folded, text: str) -> frozenset[str]:
        """The edits whose name stands there; of an everyday word those that write it so; behind an article those without one too."""
        edits = self._edits.get(span.key, set())
        bare = without_determiner(span.key)
        if bare != span.key and bare not in EVERYDAY:
            edits = edits | self._edits.get(bare, set())
        if (spellings := self._spellings.get(span.key)) is None:
            return frozenset(edits)
        written = text[slice(*_borders(span, folded))]
        return frozenset(edit_id for edit_id in edits if written in spellings[edit_id])

    def _mention(self, span: _Span, folded: Folded, text: str) -> Mention:
        start, end = _borders(span, folded)
        return Mention(start, end, text[start:end], self._meant(span, folded, text))


def names_another(text: str, own: Iterable[str] = ()) -> bool:
    """Whether the text names an entity of the atlas that is none of ``own``."""
    folded = fold(text)
    keys = {fold(name).text.strip().removeprefix("the ") for name in own}
    return any(span.key not in keys and _is_name(span, folded, text) for span in _entity_spans(folded))


def names_in(text: str) -> list[tuple[int, int]]:
    """Where the text names entities of the atlas: the longest, never overlapping."""
    folded = fold(text)
    return [_borders(span, folded) for span in _without_overlaps([span for span in _entity_spans(folded) if _is_name(span, folded, text)])]


def _is_name(span: _Span, folded: Folded, text: str) -> bool:
    """Whether it is written as a name, or cannot be a common noun ("salt" may be one, "austria" not)."""
    return not text[folded.origin[span.start]].islower() or span.key in _places()


@cache
def _places() -> frozenset[str]:
    return frozenset(fold(name).text.strip() for kind in ("country", "city", "continent") for name in atlas.entities(kind))


def _automaton(keys: Iterable[str]) -> Any:
    automaton = ahocorasick.Automaton()
    for key in keys:
        automaton.add_word(key, key)
    if not len(automaton):
        return None
    automaton.make_automaton()
    return automaton


@cache
def _entities() -> Any:
    names = (name for entity, other in known_entities() for name in (entity, *other))
    keys = {fold(name).text.strip().removeprefix("the ") for name in names}
    return _automaton(keys - EVERYDAY - {""})


def _entity_spans(folded: Folded) -> list[_Span]:
    automaton = _entities()
    return [] if automaton is None else list(_matches(automaton, folded))


def _matches(automaton: Any, folded: Folded) -> Iterator[_Span]:
    for last, key in automaton.iter(folded.text):
        span = _whole(_Span(last + 1 - len(key), last + 1, key), folded)
        if span is not None:
            yield span


def _whole(span: _Span, folded: Folded) -> _Span | None:
    """Return the span, a plural's ending included, if it begins and ends with a word."""
    text, origin = folded.text, folded.origin
    if span.start and (origin[span.start - 1] == origin[span.start] or _joined(text, span.start)):
        return None
    for ending in ("", "s", "es"):
        end = span.end + len(ending)
        plural = ending and (len(span.key) < _SHORTEST_PLURAL or not text.startswith(ending, span.end) or not text[span.end - 1].isalpha())
        if plural or (end < len(text) and (origin[end - 1] == origin[end] or _joined(text, end))):
            continue
        return _Span(span.start, end, span.key)
    return None


def _joined(text: str, position: int) -> bool:
    """Whether the characters around a position belong to one word."""
    left, right = text[position - 1], text[position]
    return left.isalnum() and right.isalnum() and not _is_spaceless(left) and not _is_spaceless(right)


def _is_spaceless(char: str) -> bool:
    code = ord(char)
    return code >= _SPACELESS[0][0] and any(low <= code <= high for low, high in _SPACELESS)


def _without_overlaps(spans: list[_Span]) -> list[_Span]:
    kept: list[_Span] = []
    for span in sorted(set(spans), key=lambda s: (s.start - s.end, -len(s.key), s.start)):
        if not any(span.overlaps(other) for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda s: s.start)


def _borders(span: _Span, folded: Folded) -> tuple[int, int]:
    """Return the span's place in the original; marks that folding dropped belong to the character before them."""
    end = folded.origin[span.end - 1] + 1
    following = folded.origin[span.end] if span.end < len(folded.origin) else folded.length
    return folded.origin[span.start], max(end, following)
