"""What an edit is about, as one key: two live edits of one functional slot cannot both be true."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ke_tools.facts import Fact, squash

_SEPARATOR: Final = "\x1f"
_TELLING: Final = "+#*"  # C, C++ and C# are three subjects
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
    """Find the slot: the relation is the given one, else the inventory's for this wording, else the wording itself."""
    from ke_tools import atlas

    known = atlas.relations()
    relation = squash(fact.relation).replace(" ", "_")
    if not relation:
        names = (fact.subject, *fact.aliases)
        recognised = next((found for name in names if (found := atlas.recognise(fact.prompt, name))), None)
        relation = recognised.id if recognised else atlas.wording_key(atlas.mask(fact.prompt, names))
    key = name_key(fact.subject) + _SEPARATOR + relation
    return Slot(key, relation if relation in known else "", known[relation].functional if relation in known else True)


def relation_key(slot_key: str) -> str:
    """Return a slot's key without the subject."""
    return slot_key.partition(_SEPARATOR)[2]


def name_key(text: str) -> str:
    """A form in which two writings of one name are equal; telling signs stay, and a text of signs alone is kept."""
    telling = "".join(char for char in text if char in _TELLING)
    return (squash(text) + telling) or " ".join(text.casefold().split())


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
