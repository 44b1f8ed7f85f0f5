"""What a text asks of a subject: views of it with the subject masked, for the scorer to judge."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from ke_tools.memory.scope.material import own_words
from ke_tools.memory.scope.tasks import sentences_to_answer
from ke_tools.memory.scope.wording import LEAD, asks, is_aside, is_manner, sentences_of, without_lead_in, without_tail
from ke_tools.memory.subjects import names_another, names_in

__all__ = ["NEUTRAL", "asked_in", "is_bare", "neutral", "resolve", "sentences_of", "speaks_of_another", "spoken", "views"]

NEUTRAL: Final = "X"  # stands for the subject; measured against "it", "this", "someone", the type's name
_LONGEST: Final = 20_000  # characters of a text that are read, from its end
_MOST: Final = 3  # views
_FEWEST: Final = 3  # words of a sentence that asks something by itself
_SHORT: Final = 8  # words: "and the capital?" goes on with what was named before
_HEADING: Final = 4  # words: "Country: Freedonia", "In the south."
_NEAR: Final = 400  # characters back to what a pronoun speaks of
_LONGEST_TAIL: Final = 160
_MOST_CARRIED: Final = 4  # earlier turns in which the question may stand that is asked of another

_STACKED: Final = re.compile(r"(?P<outer>[^:{}\n]{1,40}[:.])\s+(?P<inner>[^:.{}\n]{1,40}:)\s+(?P<rest>[^:\n]*\{\}[^:\n]*)")
_PRONOUN: Final = re.compile(
    r"\b(?P<owner>its|his|their|that (?:country|city|person|company|place|film|book|team)(?:'s|\u2019s))\b|\bher\b(?P<her>\s+\w)?"
    r"|\b(?P<self>it|he|she|they|him|them|that (?:country|city|person|company|place|film|book|team)|there)\b",
    re.IGNORECASE,
)
_GOES_ON: Final = re.compile(r"^\s*(?:and|but|or|what about|how about|and what about)\b\s*", re.IGNORECASE)
_ONLY_NAMED: Final = re.compile(
    r"\W*(?:(?:ok|okay|and|but|or|so|now|then|what about|how about|what of|same (?:question )?for|for|of|in|with|the same for)\b[\s,:]*)*"
    r"(?:the )?\{\}(?:['\u2019]s)?(?:,? (?:then|please|too|as well|instead))?[?.! ]*",
    re.IGNORECASE,
)
_SOMEBODY: Final = re.compile(r"(?<=[\w,;:'\u2019]\s)(?!I\b)[A-Z]\w+")
_NAME: Final = re.compile(r"(?<=[\w,;:'\u2019\"]\s)(?!I\b)[A-Z][\w'.-]+(?: (?:(?:of|the|de|la|von|van|and) )?[A-Z][\w.-]+){0,5}")
_NO_PART: Final = (  # behind "the", what no subject has, or what is no end of a question
    r"(?:weather|time|date|day|news|text|passage|document|article|sentence|context|answer|main|author|point|topic|idea|meaning|difference"
    r"|problem|matter|best|worst|first|last|most|today|tomorrow|now|like|this|that|following|above|joke|story|poem|summary"
    r"|sky|sun|moon|world"
    r"|internet|rest|other|others|same|theme|title|message|conclusion|word|words|of|in|for|to|from|with|on|at|and|or|by|than"
    r"|between|was|is)"
)
_PART: Final = re.compile(  # "What's the capital?"
    rf"(?P<asked>\W{{0,3}}{LEAD}(?:(?:what|who|which|where|when)(?:['\u2019]?s| is| are| was| were)"
    r"|how (?:big|large|old|tall|high|long|many|far|much|wide|deep|populous) (?:is|are|was)|what about"
    r"|[^?:{}]{0,40}?\b(?:tell me|remind me of|give me|show me|let me know|let us know|know|remember|recall|need|name|find out|look up))"
    rf" the (?!{_NO_PART}\b)[\w-]+(?: (?!{_NO_PART}\b)[\w-]+){{0,2}})(?:,? (?:again|please|then|exactly|by the way|pls|thanks"
    rf"|there))*\s*(?P<end>[?.!]*)",
    re.IGNORECASE,
)


def neutral(masked: str) -> str:
    """Put the neutral word where the subject was."""
    return masked.replace("{}", NEUTRAL)


def views(text: str, spans: Sequence[tuple[int, int]], carried: Sequence[str] = ()) -> tuple[str, ...]:
    """Mask the subject's spans, and cut what is asked of the subject out of what stands around it.

    What is supplied to be read (:mod:`~ke_tools.memory.scope.material`) and texts to work on (:mod:`~ke_tools.memory.scope.tasks`) ask
    nothing. Of the asker's own words the last sentence counts, whatever it is, and questions directly before it, apart from a tail that
    says how to answer ("…? Answer in one word."). One that names the subject is a view, for a single one once more with its tail; into
    one that goes on about the subject it is put back. Any other asks something by itself.

    Args:
        text: the request, its last turn.
        spans: where it names the subject.
        carried: the turns before it, the latest first; "And Freedonia?" takes its question from there.
    """
    masked = _masked(text, spans)
    stacked = _STACKED.fullmatch(masked)
    if stacked is None:
        return _views_of(masked, carried)
    # A frame within a frame asks what the inner one does, where each of them alone would.
    alone = [_views_of(f"{frame} {stacked['rest']}", carried) for frame in (stacked["outer"], stacked["inner"])]
    return alone[-1] if all(alone) else _views_of(masked, carried)


def _views_of(masked: str, carried: Sequence[str]) -> tuple[str, ...]:
    own = own_words(masked)
    sentences = sentences_to_answer(own.said)
    asking = without_tail(sentences)
    if not asking or "{}" not in " ".join((*own.before, *asking)):
        return ()
    earlier = [sentence for paragraph in own.before for sentence in sentences_of(paragraph)]
    found = tuple(dict.fromkeys(_views(earlier, asking, carried)))[-_MOST:]
    tail = " ".join(sentences[len(asking) :])
    is_alone = len(found) == 1 and "{}" in asking[-1] and not own.has_material and tail and len(tail) <= _LONGEST_TAIL
    return (*found, f"{found[0]} {tail}") if is_alone else found


def asked_in(text: str) -> str:
    """Return the sentence that asks: the last of the asker's own words that does not only say how to answer."""
    return (without_tail(sentences_to_answer(own_words(text[-_LONGEST:]).said)) or [""])[-1]


def spoken(text: str) -> str:
    """Return the asker's own words, without what is supplied and texts to work on."""
    own = own_words(text[-_LONGEST:])
    return "\n".join((*own.before, *sentences_to_answer(own.said)))


def resolve(text: str) -> str | None:
    """Put ``{}`` where what a text asks speaks of something named before; ``None`` where it does not."""
    return _resolved(asked_in(text))


def speaks_of_another(text: str) -> bool:
    """Whether a text names somebody before any pronoun: an entity of the atlas, or what is written like a name.

    In "It lies in Oceania" the name is no new subject.
    """
    pronoun = _PRONOUN.search(text)
    before = text[: pronoun.start()] if pronoun else text
    return bool(_SOMEBODY.search(before)) or names_another(before)


def is_bare(text: str) -> bool:
    """Whether a turn is a bare answer ("In Oceania."), so that what it is about stands in the turn before it."""
    return len(text.split()) <= _HEADING and not text.rstrip().endswith("?")


def _views(earlier: Sequence[str], asking: Sequence[str], carried: Sequence[str]) -> Iterator[str]:
    """The view of each sentence that counts."""
    whole = [*earlier, *asking]
    start = len(whole)
    first = len(earlier)
    while start > first and (start == len(whole) or asks(whole[start - 1]) or is_aside(whole[start - 1])):
        start -= 1
    for position in range(start, len(whole)):
        view = _view(whole, position, carried, is_last=position == len(whole) - 1, first=first)
        if view:
            yield view


def _view(whole: Sequence[str], position: int, carried: Sequence[str], *, is_last: bool, first: int) -> str | None:
    sentence = whole[position]
    if "{}" in sentence:
        if _ONLY_NAMED.fullmatch(sentence):
            moved = _moved([*reversed(whole[:position]), *carried[:_MOST_CARRIED]])
            if moved:
                return moved
        return without_lead_in(sentence) if not is_last or _stands_alone(sentence) else "\n".join(whole[first : position + 1])
    naming = max((n for n, other in enumerate(whole[:position]) if "{}" in other), default=-1)
    since = " ".join(whole[naming + 1 : position + 1])
    if naming >= 0 and _is_fragment(sentence) and len(whole[naming].split()) <= _HEADING and naming == position - 1:
        return "\n".join(whole[naming : position + 1])
    if naming < 0 or len(since) > _NEAR or is_manner(sentence) or speaks_of_another(since):
        return None
    resolved = _resolved(sentence)
    if resolved is not None:
        return without_lead_in(resolved)
    named = whole[naming].replace("{}", "")
    part = _PART.fullmatch(without_lead_in(sentence))
    if part and not names_another(named) and not _SOMEBODY.search(named):
        return f"{part['asked'].strip()} of {{}}{part['end'] or '?'}"
    return None


def _resolved(sentence: str) -> str | None:
    replaced = _PRONOUN.sub(_subject, sentence)
    if replaced != sentence:
        return replaced
    rest = _GOES_ON.sub("", sentence)
    if rest != sentence and rest.rstrip().endswith("?") and len(rest.split()) <= _SHORT:
        return rest.rstrip("? ") + " of {}?"
    return None


def _moved(turns: Sequence[str]) -> str | None:
    """The last question of these turns, the latest first, with the subject in place of the one that it names."""
    for turn in turns:
        asked = asked_in(turn)
        if "{}" in asked or not asks(asked):
            continue
        places = names_in(asked) or [found.span() for found in _NAME.finditer(asked)]
        if len(places) == 1:
            (start, end), *_ = places
            return without_lead_in(f"{asked[:start]}{{}}{asked[end:]}")
    return None


def _stands_alone(sentence: str) -> bool:
    """Whether it needs nothing before it; "Freedonia." does, "Freedonia plays" does not."""
    words = len(sentence.split())
    return words >= _FEWEST or (words == _FEWEST - 1 and sentence[-1].isalpha())


def _is_fragment(sentence: str) -> bool:
    """Whether a sentence is too short to ask something by itself ("Capital?")."""
    return len(sentence.split()) < _FEWEST and sentence.endswith(("?", ":"))


def _masked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    parts, position = [], 0
    for start, end in sorted(spans):
        parts += [text[position:start].replace("{}", " "), "{}"]
        position = end
    masked = "".join([*parts, text[position:].replace("{}", " ")])
    return masked[-_LONGEST:].strip()


def _subject(found: re.Match[str]) -> str:
    if found["owner"]:
        return "{}'s"
    if found["self"]:
        return "{}"
    return "{}'s" + found["her"] if found["her"] else "{}"
