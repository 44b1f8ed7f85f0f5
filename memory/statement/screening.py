"""What is no statement that could be split, with the reason: too long, hidden characters, another language, a question, nothing said."""

from __future__ import annotations

import re
from typing import Final

from ke_tools import screen
from ke_tools.errors import InvalidInput
from ke_tools.memory.statement.names import LINKS, words_of

__all__ = ["LONGEST", "checked", "without_lead"]

LONGEST: Final = 2000  # characters, as of a prompt

_HINT: Final = "Say one fact as a plain English sentence, e.g. 'The capital of Australia is Canberra.'"
_ENGLISH: Final = frozenset(
    "the is are was were of in by to at on for with from has have had its his her their as an and who which that what where when".split()
)
_FOREIGN: Final = frozenset(
    "der die das den dem des ist sind war ein eine einer einem nicht von und wird wurde im zum zur hat auf mit für"
    " le les est sont était une du des et pas dans par sur qui que c'est au aux avec"
    " el los las es son fue un una del por para con está y"
    " il gli è sono della dello dei delle nel nella che uno di per"
    " het een van en zijn was niet met voor op"
    " o os as é são foi um uma do da dos em no na não"
    " jest był w na i się nie på och är att av til og er det ikke".split()
)
_LEAD: Final = re.compile(
    r"^(?:(?:actually|please|(?:no|nope|well|ok|okay|hey|hi|hello|fyi|correction|fact|note|remember|in fact|for the record|listen)"
    r"(?=\s*[,.;:!\u2013\u2014-]))[\s,:;!.\u2013\u2014-]*)*"
    r"(?:(?:please\s+)?(?:note|remember|learn|record|store|know|correct|be aware)(?:\s+it)?(?:\s+that|:)\s+"
    r"|(?:(?:nobody|no one) (?:may|can|could|should|must)|never|do not|don['\u2019]t) forget(?: that|:)\s+"
    r"|(?:it is|it's)\s+(?:a fact|true|known)\s+that\s+|the (?:fact|truth) is(?:\s+that|,|:)\s+)?",
    re.IGNORECASE,
)


def checked(text: str) -> str:
    """Return the text on one line.

    Raises:
        InvalidInput: nothing in it could be split into a fact; the message says why.
    """
    plain = " ".join(text.split())
    if not any(char.isalnum() for char in plain):
        raise InvalidInput("there is no statement.", _HINT)
    if len(text) > LONGEST:
        raise InvalidInput(f"the statement has {len(text)} characters; at most {LONGEST} are read.", "Say one fact in one sentence.")
    if hidden := screen.hidden_character(plain):
        raise InvalidInput(f"the statement holds the invisible character {hidden[1]} at position {hidden[0]}.", "Write it without.")
    if addressed := screen.addressed(plain):
        raise InvalidInput(f"the statement reads like {addressed[0]} ({addressed[1]!r}), not like a fact.", "State the fact alone.")
    if _is_foreign(plain):
        raise InvalidInput("the statement seems to be in another language than English.", _HINT + " Or give subject, prompt and target.")
    return plain


def without_lead(sentence: str) -> str:
    """Drop what people put before a statement ("Actually,", "Please note that")."""
    return sentence[_end_of_lead(sentence) :]


def _end_of_lead(sentence: str) -> int:
    found = _LEAD.match(sentence)
    end = found.end() if found else 0
    return end if end < len(sentence) else 0


def _is_foreign(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    latin = sum(char < "\u0250" or "\u1e00" <= char < "\u1f00" for char in letters)
    if letters and latin < len(letters) / 2:
        return True
    said = words_of(text)
    linked = {n for n in range(1, len(said) - 1) if said[n].text in LINKS and said[n - 1].is_capital and said[n + 1].is_capital}
    words = [word.text.casefold() for n, word in enumerate(said) if word.is_first or (word.text.islower() and n not in linked)]
    foreign = sum(word in _FOREIGN and word not in _ENGLISH for word in words)
    return foreign > 0 and not any(word in _ENGLISH and word not in {"was", "as"} for word in words)
