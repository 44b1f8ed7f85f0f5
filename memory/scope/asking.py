"""What a text asks of a subject: views of it with the subject masked, for the scorer to judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ke_tools.memory.subjects import names_another

__all__ = ["NEUTRAL", "asked_in", "is_bare", "neutral", "resolve", "sentences_of", "speaks_of_another", "views"]

NEUTRAL: Final = "X"  # stands for the subject; measured against "it", "this", "someone", the type's name
_LONGEST: Final = 1000  # characters of a text that are read, from its end
_LONGEST_MANNER: Final = 160  # characters of a sentence that says how to answer; patterns with this freedom are slow on long ones
_FEWEST: Final = 3  # words of a sentence that asks something by itself
_SHORT: Final = 8  # words: "and the capital?" goes on with what was named before
_HEADING: Final = 4  # words: "Country: Freedonia", "In the south."

_SENTENCE_END: Final = re.compile(  # people who type in lower case end sentences too
    r"(?P<mark>[.!?])[\"')\u201d]*\s+(?=[\"'(\u201c]*[A-Z0-9{]|(?:what|who|whose|when|where|which|why|how|please|tell me|can you)\b)"
    r"|(?<=\?)\s+(?=[a-z])|\n+"
)
_ABBREVIATION: Final = re.compile(r"(?:^|[\s.(])(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Mt|No|vs|cf|e\.g|i\.e|[A-Z])$")
_PRONOUN: Final = re.compile(
    r"\b(?P<owner>its|his|their|that (?:country|city|person|company|place|film|book|team)(?:'s|\u2019s))\b|\bher\b(?P<her>\s+\w)?"
    r"|\b(?P<self>it|he|she|they|him|them|that (?:country|city|person|company|place|film|book|team)|there)\b",
    re.IGNORECASE,
)
_GOES_ON: Final = re.compile(r"^\s*(?:and|but|or|what about|how about|and what about)\b\s*", re.IGNORECASE)
_SOMEBODY: Final = re.compile(r"(?<=[\w,;:'\u2019]\s)(?!I\b)[A-Z]\w+")
_PHRASES: Final = (  # how to answer, or courtesy
    r"(?:answer|reply|respond)(?: (?:in|with|using|by|briefly|shortly|concisely|only|just|me|please)\b[^?:]*|)",
    r"(?:keep|limit|make) (?:it|this|that|(?:the|your) (?:answer|reply|response))\b[^?:]*",
    r"(?:do not|don['\u2019]t|no|without|never)(?: [\w-]+){1,6}",
    r"(?:think|explain) (?:step by step|carefully|first|briefly|why|yourself|(?:your|the) (?:answer|reasoning))",
    r"be(?: \w+){1,5}",
    r"(?:give|tell|write|say|state|output|return|use|name)(?: me)? (?:just|only|at most|no more than|(?:the|your)(?: \w+)? answer)\b[^?:]*",
    r"(?:just|only) (?:(?:give|tell|say|write|state)(?: me)? )?(?:the|a|an|one)(?: \w+){1,3}",
    (
        r"(?:(?:give|tell|write|say|use|in|with|as|me|at most|not more than|no more than|a|an|the) )*"
        r"(?:one|two|three|few|single|short|brief|full)(?:[ -]\w+)?"
        r"[ -](?:words?|sentences?|lines?|names?|answer|reply|response)(?: (?!about|on|of|that)\w+){0,3}"
    ),
    r"(?:the |your |my )?(?:final |short )?(?:answer|response|reply|assistant|a)(?: is| (?:should|must) [^?:]*|) *:?",
    r"briefly|quickly|shortly|concisely|thank(?:s| you)\b(?:[ ,]+\w+){0,4}|thx|cheers|please|ok|okay|hello|hi|bye",
)
_MANNER: Final = re.compile(
    rf"\W*(?:(?:and|but|so|then|please|kindly)\b,? *)*(?:(?:just|only|simply) )?(?:{'|'.join(_PHRASES)})(?:,? please)?[^\w?]*",
    re.IGNORECASE,
)
_NUDGE: Final = re.compile(
    r"(?:please |and )?(?:any (?:ideas?|clue|thoughts)|do you know|right|correct|okay|ok|yes or no|true or false|please"
    r"|(?:can|could|would|will) you(?: please| just)? (?:tell me|help|help me|(?:answer|reply|respond)(?: (?:in|with|briefly)\b.*)?"
    r"|be (?:brief|short|concise|quick)|keep (?:it|the answer) (?:short|brief)))(?:,? please)?\?*",
    re.IGNORECASE,
)
_ASIDE: Final = re.compile(r"(?:I|I['\u2019]\w+|my|we|we['\u2019]\w+|asking|it['\u2019]s|it is|this is|that is)\b[^?]*[.!]", re.IGNORECASE)


def neutral(masked: str) -> str:
    """Put the neutral word where the subject was."""
    return masked.replace("{}", NEUTRAL)


def views(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """Mask the subject's spans, and cut what is asked of the subject out of what stands around it.

    The last sentence is what is asked, apart from a tail that says how to answer ("…? Answer in one word."). If it names the
    subject, it is the view, once without and once with its tail; if it goes on about the subject by a pronoun, that is put back.
    Else it asks something by itself, and nothing is asked of the subject: what stands before is a document or small talk.
    """
    masked = _masked(text, spans)
    sentences = sentences_of(masked)
    asking = _without_tail(sentences)
    naming = max((n for n, sentence in enumerate(asking) if "{}" in sentence), default=-1)
    if naming < 0:
        return ()
    last, since = asking[-1], asking[naming + 1 :]
    if not since:
        whole = " ".join(sentences[naming:])
        return tuple(dict.fromkeys((last, whole))) if len(last.split()) >= _FEWEST else (masked,)
    resolved = resolve(last)
    if resolved is not None:
        return () if speaks_of_another(" ".join(since)) else (resolved,)
    return (masked,) if _is_fragment(last) and len(asking[naming].split()) <= _HEADING and len(since) == 1 else ()


def asked_in(text: str) -> str:
    """Return the sentence that asks: the last one that does not only say how to answer."""
    return (_without_tail(sentences_of(text[-_LONGEST:])) or [""])[-1]


def resolve(text: str) -> str | None:
    """Put ``{}`` where what a text asks speaks of something named before; ``None`` where it does not."""
    last = asked_in(text)
    replaced = _PRONOUN.sub(_subject, last)
    if replaced != last:
        return replaced
    rest = _GOES_ON.sub("", last)
    if rest != last and rest.rstrip().endswith("?") and len(rest.split()) <= _SHORT:
        return rest.rstrip("? ") + " of {}?"
    return None


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


def _without_tail(sentences: Sequence[str]) -> list[str]:
    """Drop sentences from the end that ask nothing: how to answer, courtesy, and after a question what the speaker adds."""
    end = len(sentences)
    while end and _is_manner(sentences[end - 1]):
        end -= 1
    question = end
    while question and (_is_manner(sentences[question - 1]) or _is_aside(sentences[question - 1])):
        question -= 1
    return list(sentences[: question if question and sentences[question - 1].endswith("?") else end])


def _is_manner(sentence: str) -> bool:
    is_short = len(sentence) <= _LONGEST_MANNER
    return is_short and "{}" not in sentence and bool(_MANNER.fullmatch(sentence) or _NUDGE.fullmatch(sentence))


def _is_aside(sentence: str) -> bool:
    """Whether a sentence tells of the speaker, or is a name or greeting at the end of a letter."""
    is_signature = len(sentence.split()) < _FEWEST and not sentence.endswith(("?", ":"))
    return "{}" not in sentence and (is_signature or bool(_ASIDE.fullmatch(sentence)))


def _is_fragment(sentence: str) -> bool:
    """Whether a sentence is too short to ask something by itself ("Capital?")."""
    return len(sentence.split()) < _FEWEST and sentence.endswith(("?", ":"))


def sentences_of(text: str) -> list[str]:
    """Cut a text into sentences and lines."""
    parts, start = [], 0
    for found in _SENTENCE_END.finditer(text):
        if found["mark"] == "." and _ABBREVIATION.search(text, start, found.start()):
            continue
        parts.append(text[start : found.end()].strip())
        start = found.end()
    return [part for part in (*parts, text[start:].strip()) if part]


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
