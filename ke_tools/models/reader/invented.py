"""Names, objects and clauses that do not exist: what is copied must not depend on a list of names, nor on sense."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final

LONGEST_CLAUSE: Final = 200
_SYLLABLES: Final = tuple(
    (
        "ba ce di fo gu ha je ki lo mu na pe qui ra so tu ve wi xa yo zel bran cor dane fen gar holt ist lan mor nor pol ris stan ther vale"
    ).split()
)
_MONTHS: Final = tuple("January February March April May June July August September October November December".split())
_COUNTED: Final = tuple("minutes hours days weeks months people euros points per cent metres kilograms litres".split())
_JOINS: Final = (
    ", and ",
    ", but ",
    "; ",
    ", unless ",
    " or ",
    ", provided that ",
    ", except when ",
    " and then ",
    " only after ",
    ", counted from ",
)


def name(rng: random.Random) -> str:
    """Draw a name of one to three words."""
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(2, 3))).capitalize() for _ in range(rng.randint(1, 3))]
    return " ".join(words)


def amount(rng: random.Random) -> str:
    """Draw a number of something."""
    return f"{rng.randint(2, 90)} {rng.choice(_COUNTED)}"


_BY_TYPE: Final[Mapping[str, Callable[[random.Random], str]]] = {
    "year": lambda rng: str(rng.randint(1500, 2030)),
    "number": lambda rng: f"{rng.randint(2, 999_999):,}",
    "date": lambda rng: f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1700, 2030)}",
    "quantity": lambda rng: f"{rng.randint(2, 9000)} {rng.choice(('metres', 'kilometres', 'tonnes', 'litres'))}",
    "duration": lambda rng: f"{rng.randint(2, 90)} {rng.choice(('minutes', 'hours', 'days', 'weeks', 'months', 'years'))}",
}


def of_type(kind: str, rng: random.Random) -> str | None:
    """Draw an object of a type that consists of figures; None for any other type."""
    make = _BY_TYPE.get(kind)
    return make(rng) if make else None


def clause(parts: Sequence[str], rng: random.Random) -> str:
    """Join the parts to a clause of up to :data:`LONGEST_CLAUSE` characters that is to be copied exactly."""
    text = parts[0]
    for part in parts[1:]:
        longer = text + rng.choice(_JOINS) + part
        if len(longer) > LONGEST_CLAUSE:
            break
        text = longer
    return text[:LONGEST_CLAUSE].strip(" ,;:.")


def look_alike(subject: str, rng: random.Random) -> str:
    """Make another thing's name out of a name: a letter, a word or a number is another, or a word more stands there."""
    words = subject.split()
    ways: list[Callable[[], str]] = [lambda: _with_other_letter(words, rng), lambda: f"{subject} {rng.choice(_SYLLABLES).capitalize()}"]
    if any(c.isdigit() for c in subject):
        ways.append(lambda: "".join(str((int(c) + rng.randint(1, 8)) % 10) if c.isdecimal() else c for c in subject))
    if len(words) > 1:
        ways.append(lambda: " ".join([name(rng).split()[0], *words[1:]]))
        ways.append(lambda: " ".join([*words[:-1], name(rng).split()[0]]))
    made = rng.choice(ways)()
    return made if made != subject else f"{subject} II"


def _with_other_letter(words: Sequence[str], rng: random.Random) -> str:
    which = max(range(len(words)), key=lambda i: (len(words[i]), rng.random()))
    word = words[which]
    at = rng.randrange(1, len(word)) if len(word) > 1 else 0
    pool = "aeiou" if word[at].lower() in "aeiou" else "bdgklmnprstvz"
    letter = rng.choice([c for c in pool if c != word[at].lower()])
    return " ".join([*words[:which], word[:at] + letter + word[at + 1 :], *words[which + 1 :]])
