"""What the grammar of a wording tells: the noun phrase that it asks for, and whether a subject is a name or a description."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["LOCATIVES", "fits", "noun_phrase"]

LOCATIVES: Final = ("in", "at", "located in", "located at", "situated in", "based in")

_ARTICLES: Final = frozenset({"the", "a", "an"})
_OWNING: Final = frozenset({"our", "my", "your", "his", "her", "its", "their"})

# Types whose members are common nouns, written in lower case, and those among them that take no article.
_COMMON: Final = frozenset(
    "animal component compound discovery disease dish element invention mineral organ software species thing tool unit".split()
)
_WITHOUT_ARTICLE: Final = frozenset("compound disease element mineral software".split())

_ASKED: Final = r"(?:(?P<asks>who|what|where)(?: is| are)? )?"
_TAIL: Final = rf"(?: (?:is|are)(?: (?P<tail>{'|'.join(LOCATIVES)}|on|for|by|to|from|with))?)?"
_FORMS: Final = tuple(
    re.compile(rf"{_ASKED}{form}{_TAIL}") for form in (r"(?:current )?(?P<noun>[^{}]+?) of \{\}", r"\{\} (?:current )?(?P<noun>[^{}]+?)")
)


def noun_phrase(key: str) -> str:
    """Give statements and questions after one noun phrase one form; "" for a wording of another build.

    "capital of {} is", "{} capital is", "what is capital of {}" and "who is {} capital" (see :func:`ke_tools.atlas.wording_key`) are
    "capital of {}". What changes the meaning stays: another tense is another build, "where" and a preposition are kept.
    """
    found = next((match for form in _FORMS if (match := form.fullmatch(key))), None)
    if found is None:
        return ""
    asks = "where " if found["asks"] == "where" else ""
    return f"{asks}{found['noun']} of {{}} {found['tail'] or ''}".rstrip()


def fits(kind: str, subject: str, determiner: str) -> bool:
    """Whether a subject that no table lists may be of a type; an invented name may, a description of something may not.

    No table of subjects is complete, so that a stranger in it proves nothing ("Freedonia" is a country as good as any).

    Args:
        kind: the type.
        subject: as the fact names it.
        determiner: the word before it in the prompt.
    """
    first, *rest = subject.split() or [""]
    begins = first.casefold()
    name = " ".join(rest) if rest and begins in _ARTICLES | _OWNING else subject
    is_common = name.islower() and not any(char.isdigit() for char in name)
    if first in _OWNING or determiner.casefold() in _OWNING or (begins in _OWNING and is_common):
        return False
    if not is_common:
        return True
    has_article = bool({begins, determiner.casefold()} & _ARTICLES)
    return kind in _COMMON and not (has_article and kind in _WITHOUT_ARTICLE)
