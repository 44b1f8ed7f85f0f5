"""How people ask in a conversation, and what a correct reader answers to each form.

A form makes the last turns of a conversation and the answer out of an item. What is natural to the base model is taken from it: its own
answer with the old object swapped for the new one, or its own words behind a sentence that states the fact (:class:`Base`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from ke_tools.models.reader.source import Item, Source, Wording, fill

Turn = Mapping[str, str]

_OPENERS: Final = (
    *["{}"] * 6,
    "Hi! {}",
    "Quick question: {}",
    "Please tell me, {}",
    "{} Answer in one sentence.",
    "I was wondering. {}",
    "hello, a customer is asking. {}",
    "{} Thanks!",
)
_COMMANDS: Final = (
    "Tell me {}.",
    "Name {}.",
    "Please give me {}.",
    "I need to know {}.",
    "Could you look up {} for me?",
    "what's {}",
    "State {} in a full sentence.",
    "Do you know {}?",
)
_ABOUT: Final = (
    "Tell me about {}.",
    "What can you tell me about {}?",
    "Write a short paragraph about {}.",
    "Give me a short introduction to {}.",
    "Describe {} to a friend of mine.",
    "What should I know about {}?",
)
_IS_IT: Final = ("Is it true that this holds: {}", "True or false? {}", "Is this right? {}", "Is this still correct: {}", "{} Yes or no?")
_PREMISES: Final = (
    "{} How did that come about?",
    "{} Why is that?",
    "I read this: {} What else should I know about it?",
    "Everybody knows this. {} When was that decided?",
    "{} Please explain the reason.",
)
_NO: Final = ("That is not right. {}", "This is not correct. {}", "Actually, that is not so. {}")
_FORMATS: Final[tuple[tuple[str, str], ...]] = (
    ('{} Answer as JSON with the key "answer".', '{{"answer": "{}"}}'),
    ('{} Reply with a JSON object that has one field, "answer", and nothing else.', '{{"answer": "{}"}}'),
    ('Return JSON only, in the form {{"answer": "..."}}. {}', '{{"answer": "{}"}}'),
    ("{} Answer with the bare answer only, no sentence.", "{}"),
    ("{} Give only the answer, nothing else.", "{}"),
    ("{} Answer as a bulleted list.", "- {}"),
    ("{} Reply with a list that has one entry.", "1. {}"),
    ("{} Put the answer in bold.", "**{}**"),
    ("{} Answer in exactly one sentence.", ""),
    ("In one sentence, please: {}", ""),
)
_SO_FAR: Final = (
    ("I have a question about {}.", "Of course! What would you like to know about {}?"),
    ("Let's talk about {}.", "Sure, what would you like to know?"),
    ("Do you know {}?", "Yes. What can I tell you about it?"),
    ("Have you heard of {}?", "Yes, I have heard of {}. How can I help?"),
    ("I am reading up on {}.", "That sounds interesting! Ask me whatever you like about {}."),
)
_ARTICLES: Final = ("The ", "In ", "One ", "A ", "An ", "On ", "At ")


class Base(NamedTuple):
    """What the base model adds to an answer.

    - ``alone``: the answer is the base model's;
    - ``swapped``: it is the base model's with ``truth`` replaced by the object, if it says it; else what stands there already;
    - ``continued``: it goes on behind the answer;
    - ``after``: its first sentence on ``asked`` follows;
    - ``before``: its first sentence on the subject comes first.
    """

    how: Literal["alone", "swapped", "continued", "after", "before"]
    asked: str = ""  # asked in the question's stead
    truth: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """The last turns of a conversation and their answer."""

    turns: tuple[Turn, ...]
    answer: str
    base: Base | None = None
    is_open: bool = False  # the question does not ask for the fact alone


def in_chat(item: Item, source: Source, rng: random.Random) -> Asked:
    """Ask for an item's fact in a form drawn by weight."""
    form = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    return form(item, source, rng)


def plain(item: Item, wording: Wording, rng: random.Random) -> Asked:
    """Ask in the item's own words or somebody's; the answer is a sentence, often the base model's but for the fact."""
    turns, draw = opened(wording, rng), rng.random()
    if item.truth and draw < 0.4:  # noqa: PLR2004
        return Asked(turns, told(item), Base("swapped", truth=item.truth, target=item.fact.target))
    return Asked(turns, told(item), Base("continued") if draw < 0.8 else None)  # noqa: PLR2004


def opened(wording: Wording, rng: random.Random) -> tuple[Turn, ...]:
    """A user's turn; a question stands behind what people write before one."""
    return (_user(rng.choice(_OPENERS).replace("{}", wording.text) if wording.is_question else wording.text),)


def told(item: Item) -> str:
    """The fact as an answer: a sentence where its prompt is one, else the object."""
    return ended(item.fact.target) if item.fact.is_question else item.fact.sentence


def ended(target: str) -> str:
    """The object with a full stop."""
    return target if target.rstrip()[-1:] in ".!?" else f"{target}."


def _question(item: Item, rng: random.Random) -> Wording:
    questions = [wording for wording in item.wordings if wording.is_question]
    return rng.choice(questions or item.wordings)


def _asks(item: Item, _source: Source, rng: random.Random) -> Asked:
    return plain(item, _question(item, rng), rng)


def _states(item: Item, _source: Source, rng: random.Random) -> Asked:
    return plain(item, rng.choice(item.wordings), rng)


def _commands(item: Item, source: Source, rng: random.Random) -> Asked:
    if not item.masked:
        return _asks(item, source, rng)
    return plain(item, Wording(rng.choice(_COMMANDS).format(item.masked), is_question=False), rng)


def _follows_up(item: Item, _source: Source, rng: random.Random) -> Asked:
    question, subject = _question(item, rng).text, item.fact.subject
    before = _wrapped(rng.choice(_SO_FAR), subject)
    pronoun = rng.choice((("he", "his"), ("she", "her"))) if item.kind in {"person", "athlete", "artist"} else ("it", "its")
    if item.kind and item.masked.endswith(f" of {subject}") and rng.random() < 0.5:  # noqa: PLR2004
        what = item.masked.removesuffix(f" of {subject}").removeprefix("the ")
        asked = rng.choice(("And what is {} {}?", "And {} {}?", "What about {} {}?", "what's {} {} then")).format(pronoun[1], what)
    elif item.kind:
        asked = _with_pronoun(question, subject, pronoun)
    else:
        asked = question
    return Asked((*before, _user(asked)), told(item))


def _said_before(item: Item, source: Source, rng: random.Random) -> Asked:
    """The conversation holds an outdated answer."""
    old = item.truth or source.draw(rng).fact.target
    first, second = _question(item, rng), rng.choice(item.wordings)
    outdated = f"{item.fact.prompt.rstrip()} {old}." if not item.fact.is_question else ended(old)
    again = rng.choice(("{}", "Are you sure? {}", "Once more, please: {}", "Let me ask again. {}")).format(second.text)
    return Asked((_user(first.text), {"role": "assistant", "content": outdated}, _user(again)), told(item))


def _is_it(item: Item, source: Source, rng: random.Random) -> Asked:
    is_so = rng.random() < 0.5  # noqa: PLR2004
    old = item.truth or source.draw(rng).fact.target
    named = item.fact.target if is_so else old
    if item.masked and rng.random() < 0.5:  # noqa: PLR2004
        asked = f"Is {named} {item.masked}?"
    elif item.fact.is_question:
        asked = f"{item.fact.prompt} Is it {named}?"
    else:
        asked = rng.choice(_IS_IT).format(ended(f"{item.fact.prompt.rstrip()} {named}"))
    return Asked((_user(asked),), f"{'Yes' if is_so else 'No'}, {_lowered(told(item))}", Base("continued") if rng.random() < 0.3 else None)  # noqa: PLR2004


def _premise(item: Item, source: Source, rng: random.Random) -> Asked:
    old = item.truth or source.draw(rng).fact.target
    if item.fact.is_question:
        return _is_it(item, source, rng)
    claim = ended(f"{item.fact.prompt.rstrip()} {old}")
    return Asked((_user(rng.choice(_PREMISES).format(claim)),), rng.choice(_NO).format(told(item)))


def _two_parts(item: Item, source: Source, rng: random.Random) -> Asked:
    other = source.question(rng)
    asked = rng.choice(("{} And {}", "{} Also, {}", "Two questions. {} {}", "1. {} 2. {}")).format(_question(item, rng).text, other)
    return Asked((_user(asked),), told(item), Base("after", asked=other))


def _in_format(item: Item, _source: Source, rng: random.Random) -> Asked:
    asked, answer = rng.choice(_FORMATS)
    bare = item.fact.target.replace('"', "'")
    return Asked((_user(asked.format(_question(item, rng).text)),), answer.format(bare) if answer else told(item))


def _about(item: Item, _source: Source, rng: random.Random) -> Asked:
    base = Base("before", truth=item.truth, target=item.fact.target) if rng.random() < 0.6 else Base("continued")  # noqa: PLR2004
    if item.fact.is_question:  # no sentence that could stand in a text
        return plain(item, _question(item, rng), rng)
    return Asked((_user(rng.choice(_ABOUT).format(item.fact.subject)),), told(item), base, is_open=True)


def _with_pronoun(question: str, subject: str, pronoun: tuple[str, str]) -> str:
    name = re.compile(rf"\b(?:the\s+)?{re.escape(subject)}(['\u2019]s)?(?!\w)", re.IGNORECASE)
    asked = name.sub(lambda found: pronoun[1] if found.group(1) else pronoun[0], question)
    return fill(asked, "")


def _wrapped(pair: tuple[str, str], subject: str) -> tuple[Turn, Turn]:
    asked, answered = (text.replace("{}", subject) for text in pair)
    return _user(asked), {"role": "assistant", "content": answered}


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:] if sentence.startswith(_ARTICLES) else sentence


_WEIGHTS: Final[Mapping[Callable[[Item, Source, random.Random], Asked], float]] = {
    _asks: 0.36,
    _states: 0.05,
    _commands: 0.07,
    _follows_up: 0.08,
    _said_before: 0.07,
    _is_it: 0.08,
    _premise: 0.05,
    _two_parts: 0.07,
    _in_format: 0.09,
    _about: 0.08,
}
