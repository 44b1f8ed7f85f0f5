"""Signs that a name goes on behind its capitals, or that the answer began earlier; either makes a reading a doubt."""

from __future__ import annotations

import re
from typing import Final

from ke_tools import atlas
from ke_tools.memory.statement.endings import CLASSES, is_number, kind_words
from ke_tools.memory.statement.names import FUNCTION_WORDS, Name, is_listed, words_of
from ke_tools.memory.statement.wordings import noun_of

__all__ = ["is_cut", "is_part", "may_be_one"]

_DETERMINERS: Final = frozenset("the our my your their his her this that a an".split())
_PLAIN: Final = frozenset("pure common ordinary plain typical average adult baby young wild unit metal gas".split())
_BOUNDING: Final = re.compile(
    r"\b(?:than|least|most|under|over|above|below|about|around|up to|almost|nearly|another|every|each|a|an|no|quarter of|half|tenth of)$",
    re.IGNORECASE,
)
_BEGUN: Final = re.compile(  # an answer that has begun: "is a student named", "was her uncle", "is under a"
    r"\b(?:is|are|was|were)\s+(?:an?|under|over|about|around|his|her|their|its|our|my|some|two|three)\s+"
    r"(?!.*\b(?:is|are|was|were)\b)\w[^,]*$",
    re.IGNORECASE,
)
_TOLD_OF: Final = re.compile(r"\b(?:by|of)\s+an?\s+(?:[a-z-]+\s+){1,4}(?:from|in|at|on)$")  # "by a retired postman from"
_OPEN: Final = re.compile(r"\b(?:and|or)$|['\u2019]s$")
_OF_A_KIND: Final = re.compile(r"\b(?:is|are|was|were)\s+the\s+(?P<noun>[a-z][\w-]*)$")


def may_be_one(prompt: str, first: Name, second: Name) -> bool:
    """Whether two names may be one ("Three Winters in Podol")."""
    between = prompt[first.end : second.start].strip()
    return between in {"at", "in", "on", "for", "to", "with", "from"} and not is_listed(first.text)


def is_part(prompt: str, subject: Name, *, is_near: bool) -> bool:
    """Whether a subject may be a part of a longer name: a noun follows ("the Novafoam trial"), or something that it owns."""
    if re.match(r"[a-z]['\u2019]", subject.text):  # "fourme d'Ambert"
        return True
    if is_listed(subject.text):
        return subject.text.islower() and _is_compound(prompt[: subject.start])
    before, behind = words_of(prompt[: subject.start]), prompt[subject.end :]
    owned = re.match(r"['\u2019]s?\s+(?P<noun>.+)", behind)
    if owned:
        phrase = _until_grammar(owned["noun"])
        return len(phrase) > 1 and not is_near and noun_of(" ".join(phrase)) is None
    is_described = bool(before) and before[-1].text.casefold() in _DETERMINERS
    is_described = is_described or (bool(before) and before[-1].text == "of")
    phrase = _until_grammar(behind) if behind.startswith(" ") else []
    return is_described and bool(phrase) and not phrase[0].endswith("ed")  # "The Idoru started in" has no noun there


def is_cut(prompt: str, target: str) -> bool:
    """Whether the answer may have begun before the words that were taken for it."""
    if (is_number(target) or target.islower()) and _BOUNDING.search(prompt) and not is_listed(target):
        return True
    last = prompt.rpartition(" ")[2]
    if target.islower() and last[:1].isupper() and not is_listed(target):  # "the Tarvik site"
        return True
    if _TOLD_OF.search(prompt) or _OPEN.search(prompt) or (len(target) == 1 and target.islower()):
        return True
    of_a_kind = _OF_A_KIND.search(prompt)
    if of_a_kind is not None and of_a_kind["noun"] not in kind_words() | CLASSES | FUNCTION_WORDS:
        return True
    begun = _BEGUN.search(prompt)
    return begun is not None and not re.search(r"\b(?:of|by|in|called|named|from|at|to|for)$", prompt)


def _is_compound(before: str) -> bool:
    """Whether a noun stands before a common noun that may belong to it ("table tennis")."""
    words = words_of(before)
    if len(words) != 1 or words[-1].ends_part:
        return False
    last = words[-1].text.casefold()
    kinds = {kind for relation in atlas.relations().values() if not relation.probe for kind in (relation.subject, relation.object)}
    return last not in FUNCTION_WORDS | CLASSES | kinds | _PLAIN and not last.endswith(("ing", "ed", "ly"))


def _until_grammar(text: str) -> list[str]:
    found: list[str] = []
    for word in words_of(text):
        if word.text.casefold() in FUNCTION_WORDS:
            break
        found.append(word.text)
        if word.ends_part:
            break
    return found
