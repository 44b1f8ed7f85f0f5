"""What an edit is about, as one key: two live edits of one functional slot cannot both be true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ke_tools.facts import Fact, squash
from ke_tools.memory.names import subject_key

if TYPE_CHECKING:
    from ke_tools.atlas import Relation

_SEPARATOR: Final = "\x1f"
_MOST_WORDS: Final = 4
_FEWEST_LETTERS: Final = 3
_ARTICLES: Final = frozenset({"the", "a", "an"})
_DESCRIBING: Final = _ARTICLES | frozenset({"our", "my", "your", "his", "her", "its", "their", "this", "that"})


@dataclass(frozen=True, slots=True)
class Slot:
    """Subject and relation of a fact."""

    key: str
    relation: str  # of the inventory, "" where it is not known
    functional: bool  # one object a subject; what is not known counts as functional


SlotRule = Callable[[Fact], Slot]


def slot_of(fact: Fact) -> Slot:
    """Find the slot: the relation is the given one, else the one whose words the prompt has, else those words themselves.

    Where a prompt has the words of a relation that its subject cannot have ("the length of our refund policy" is no river's), the
    relation is not known, but two such prompts are about one thing all the same.
    """
    from ke_tools import atlas

    known = atlas.relations()
    if given := squash(fact.relation).replace(" ", "_"):
        relation = known.get(given) or atlas.worded(f"The {fact.relation} of {fact.subject}", fact.subject)
        return _slot(fact, relation.id if relation else given, relation)
    names = (fact.subject, *fact.aliases)
    if recognised := _first(atlas.recognise, fact.prompt, names):
        return _slot(fact, recognised.id, recognised)
    names += tuple(f"our {name}" for name in names)
    if worded := _first(atlas.worded, fact.prompt, names):
        return _slot(fact, worded.id, None)
    key = atlas.wording_key(atlas.mask(fact.prompt, names))
    return _slot(fact, atlas.noun_phrase(key) or key, None)


def _slot(fact: Fact, relation: str, known: Relation | None) -> Slot:
    key = subject_key(fact.subject) + _SEPARATOR + relation
    return Slot(key, known.id if known else "", known.functional if known else True)


def _first(find: Callable[[str, str], Relation | None], prompt: str, names: Sequence[str]) -> Relation | None:
    return next((found for name in names if (found := find(prompt, name))), None)


def relation_key(slot_key: str) -> str:
    """Return a slot's key without the subject."""
    return slot_key.partition(_SEPARATOR)[2]


def is_alias_risky(fact: Fact) -> bool:
    """Whether people name the subject in ways that no list of names catches, so that scope must also search by meaning.

    The rule: a name of one or two letters; or, without aliases, a description instead of a name: it begins with a lower-case
    letter, an article or a possessive, or has more than four words. An article before a capital is part of a name ("The Beatles").
    """
    words = fact.subject.split()
    if len(squash(fact.subject).replace(" ", "")) < _FEWEST_LETTERS:
        return True
    is_name = len(words) > 1 and words[0].casefold() in _ARTICLES and words[1][0].isupper()
    is_description = not is_name and (words[0][0].islower() or words[0].casefold() in _DESCRIBING)
    return (is_description or len(words) > _MOST_WORDS) and not fact.aliases
