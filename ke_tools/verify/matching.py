"""Does an answer say it? Text in, a verdict out; no model, no scores.

Answers are compared as words: case, diacritics, punctuation, leading articles and the separators in numbers do not count.
Two rules keep the verdicts honest. A longer *name* is another answer ("Sydney Harbour" is not "Sydney", "South Korea" is not
"Korea", "Paris, Texas" is not "Paris"). And what is denied, hedged or only mentioned in passing is not asserted.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from typing import Final

from ke_tools import atlas

__all__ = [
    "asserts",
    "begins_with",
    "bytes_kept",
    "every_word",
    "first_sentence",
    "mentions",
    "names_said",
    "same_answer",
    "short_answer",
    "starts_with",
    "words",
]


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_UNDECOMPOSED: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "\u0131": "i"})
_ABBREVIATIONS: Final = _set("st mt dr mr mrs ms prof jr sr vs no nos inc ltd co corp gen col lt sgt rev hon ft fig ca approx etc")
_CLOSED_CLASS: Final = _set(
    "a an the and or but nor so yet if then than that which who whom whose where when while because since as until till after before"
    " is are was were be been being has have had do does did will would can could may might shall should must"
    " in on at by for from with without to into onto of off over under about between during through against within among along"
    " he she it they we you i him her them us his its their our your my this these those there here"
    " also not only just still now too very both either neither each such own same"
)
# Words that may stand directly behind an answer without making it another, longer one.
_MAY_FOLLOW: Final = (_CLOSED_CLASS - _set("of or s")) | _set("known born located situated based named called founded built ad bc ce bce")
_OTHER_THING: Final = _set(
    "harbour harbor state states university college county province district region airport station river bay island islands sea"
    " ocean lake mountain mountains street road avenue square park bridge tower church cathedral museum school hospital company club team"
    " prize award era"
)
_MULTIPLIERS: Final = _set("hundred thousand million billion trillion percent")
_TITLES: Final = _set("sir dame dr mr mrs ms president professor prof mount mt river king queen prince princess pope emperor")
_KINDS: Final = _set("city town village state country capital nation municipality island language name answer")
_DENYING: Final = _set(
    "not never no nor neither isnt arent wasnt werent dont doesnt didnt cant cannot couldnt wouldnt wont hasnt havent hadnt aint shouldnt"
    " instead rather than unlike except without formerly previously replaced replacing false untrue incorrect wrong myth misconception"
    " mistakenly erroneously supposedly denies deny denied"
)
_PASSING: Final = _set("near like unlike outside beside opposite beyond resembling")
_ASIDE: Final = _set("which who whom whose where while whereas although though located situated near about approximately just some unlike")
_BE: Final = _set("is are was were")
_FEWEST_REPEATED: Final = 3  # words of a prompt, said again, that are no accident
_ELSEWHERE: Final = _set(  # states and provinces whose towns often bear an older city's name
    "alabama alaska arizona arkansas california colorado connecticut delaware florida georgia hawaii idaho illinois indiana"
    " iowa kansas kentucky louisiana maine maryland massachusetts michigan minnesota mississippi missouri montana nebraska"
    " nevada ohio oklahoma oregon pennsylvania tennessee texas utah vermont virginia washington wisconsin wyoming ontario"
    " quebec manitoba saskatchewan alberta"
) | {
    "new hampshire",
    "new jersey",
    "new mexico",
    "new york",
    "north carolina",
    "north dakota",
    "rhode island",
    "south carolina",
    "south dakota",
    "west virginia",
    "nova scotia",
    "new brunswick",
    "british columbia",
}

_GROUPED: Final = re.compile(
    r"(?<![\w.,])\d{1,3}(?:([,\u00a0\u2009\u202f' ])\d{3})(?:\1\d{3})*(?![\w,]*\d)"  # 1,234,567
    r"|(?<![\w.,])\d{1,3}(?:\.\d{3}){2,}(?!\d)"  # 1.234.567; with one point alone it is a decimal
)
_INITIALS: Final = re.compile(r"(?<!\w)(?:[^\W\d_]\.[ ]?){2,}(?=\W|$|[^\W\d_])")
_SPACELESS: Final = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # scripts written without spaces: a character is a word
_WORD: Final = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+(?:[.,](?<=\d[.,])(?=\d)\d+)*|%|&")
_LINK: Final = re.compile(r"[-\u2010\u2011\u2012\u2013]")
_BREAK: Final = re.compile(r"[;:()\[\]\u2014\n\u2026.!?]|\s[-\u2013]\s")


@dataclass(frozen=True, slots=True)
class _Word:
    """One word, folded; ``gap`` says what stood in front: nothing special (" "), a hyphen, a comma, a stronger break."""

    text: str
    gap: str
    named: bool  # written with a capital, or a number


def first_sentence(text: str) -> str:
    """The first sentence of the first line that has any text; abbreviations, initials and decimals do not end it."""
    line = next((line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)), "")
    for stop in re.finditer(r"[.!?\u3002](?=[\s\"'\u201d\u2019)*_]|$)", line):
        before = re.search(r"(\w+)$", line[: stop.start()])
        if before is None and stop.start() < 2:  # noqa: PLR2004  "... and" at the start ends nothing
            continue
        word = before.group(1) if before else ""
        if stop.group() == "." and stop.end() < len(line) and (word.casefold() in _ABBREVIATIONS or (len(word) == 1 and word.isupper())):
            continue
        return line[: stop.end()]
    return line


def words(text: str) -> tuple[str, ...]:
    """The folded words of an answer, without leading article and without "the"."""
    return tuple(word.text for word in _words(text))


def every_word(text: str) -> tuple[str, ...]:
    """The folded words of an answer, articles too."""
    return tuple(word.text for word in _every_word(text))


def begins_with(answer: str, target: str) -> bool:
    """Whether the target's words are the first of the answer, whatever follows: "soccer player" begins with "soccer"."""
    wanted = every_word(target)
    return bool(wanted) and every_word(answer)[: len(wanted)] == wanted


def starts_with(answer: str, target: str) -> bool:
    """Whether the answer begins with the target as a whole name: CounterFact's measure under free generation."""
    said = _words(first_sentence(answer) or answer)
    wanted = words(target)
    return bool(wanted) and tuple(w.text for w in said[: len(wanted)]) == wanted and _ends_at(said, 0, len(wanted))


def asserts(answer: str, accept: Sequence[str], reject: Sequence[str] = (), prompt: str = "") -> bool:
    """Whether the answer's first sentence says one of ``accept`` is so, and says so of none of ``reject``.

    Args:
        answer: what the model said, free generation.
        accept: names that count as the answer (the target, its aliases).
        reject: names that must not be asserted beside it (the old target).
        prompt: what was asked: of an answer that begins with the end of a text to be completed, see ``_beyond``.
    """
    sentence = first_sentence(_beyond(answer, prompt))
    if sentence.rstrip("\"'*_) ").endswith("?"):
        return False
    said = _words(sentence)
    accepted = {words(name) for name in accept} - {()}
    rejected = {words(name) for name in reject} - {()} - accepted
    return _asserted(said, accepted) and not _asserted(said, rejected, inside=accepted)


def _beyond(answer: str, prompt: str) -> str:
    """The answer without the end of a text to be completed that it says again ("politician" of "X, who works as politician").

    Only where what is said again has an aside or a question in it, which would be all that is read of the answer.
    """
    text, asked = answer.lstrip(), prompt.rstrip()
    if asked.endswith("?"):
        return text
    for word in re.finditer(r"\S+", asked):
        length = len(asked) - word.start()
        if length >= len(text) or text[length] != " " or text[:length].casefold() != asked[word.start() :].casefold():
            continue
        said = _words(text[:length])
        if len(said) >= _FEWEST_REPEATED and ("?" in text[:length] or _aside(said, len(said) - 1)):
            return text[length:]
    return text


def mentions(answer: str, names: Sequence[str]) -> bool:
    """Whether one of ``names`` is spoken anywhere in the answer, as a whole name, asserted or not."""
    said = _words(answer)
    return any(next(_found(said, words(name)), None) is not None for name in names if words(name))


def short_answer(answer: str, prompt: str = "") -> tuple[str, ...]:
    """What the leading clause of an answer says beyond its prompt: its names and numbers, else its other words."""
    said = _words(first_sentence(answer))
    # A list of names goes on behind a comma, an apposition ("Vienna, a city on …") does not.
    ends = (i for i in range(1, len(said)) if said[i].gap == ";" or (said[i].gap == "," and not said[i].named))
    unasked = _CLOSED_CLASS | set(words(prompt))
    told = [word for word in said[: next(ends, len(said))] if word.text not in unasked]
    return tuple(word.text for word in told if word.named) or tuple(word.text for word in told)


def names_said(answer: str, prompt: str = "") -> list[str]:
    """The names and numbers that an answer's first sentence says beyond its prompt, longest runs of them ("University of Oxford")."""
    said = _words(first_sentence(answer))
    asked = set(words(prompt))
    runs: list[list[_Word]] = []
    is_open = False
    for at, word in enumerate(said):
        is_name = word.named and word.text not in _CLOSED_CLASS
        goes_on = is_open and word.gap in {" ", "-"}
        if is_name and goes_on:
            runs[-1].append(word)
        elif is_name:
            runs.append([word])
            is_open = True
        elif goes_on and word.text == "of" and at + 1 < len(said) and said[at + 1].named:
            runs[-1].append(word)
        else:
            is_open = False
    if runs and runs[0][0] is said[0] and len(runs[0]) == 1 and not _stands_as_name(said):
        del runs[0]  # a word that only begins the sentence
    names = (" ".join(word.text for word in run) for run in runs if not asked.issuperset(word.text for word in run))
    return list(dict.fromkeys(names))


def _stands_as_name(said: Sequence[_Word]) -> bool:
    """Whether a sentence's first word is its answer: alone, before a comma or before "is"."""
    return len(said) == 1 or said[1].gap in {",", ";"} or said[1].text in _BE


def same_answer(base: str, edited: str, prompt: str = "") -> bool:
    """Whether the base model's short answer is still given: the same text, or all it said beyond the prompt, undenied."""
    if words(first_sentence(base)) == words(first_sentence(edited)):
        return True
    short = short_answer(base, prompt)
    said = _words(first_sentence(edited))
    return bool(short) and all(any(w.text == part and not _denied(said, i, i + 1) for i, w in enumerate(said)) for part in short)


def bytes_kept(base: str, edited: str) -> bool:
    """Whether nothing at all changed."""
    return base == edited


# Words


def _words(text: str) -> tuple[_Word, ...]:
    return _without_articles(_every_word(text))


def _every_word(text: str) -> list[_Word]:
    text = _GROUPED.sub(lambda m: re.sub(r"\D", "", m.group()), text)
    text = _INITIALS.sub(lambda m: re.sub(r"[. ]", "", m.group()) + (" " if m.group().endswith(" ") else ""), text)
    text = re.sub(r"(?<=\w)['\u2019\u02bc](?=\w)", "", text)
    found: list[_Word] = []
    last = 0
    for match in _WORD.finditer(text):
        gap = _gap(text[last : match.start()]) if found else " "
        raw = {"%": "percent", "&": "and"}.get(match.group(), match.group())
        found.append(_Word(_folded(raw), gap, raw[0].isupper() or raw[0].isdigit()))
        last = match.end()
    return found


def _gap(between: str) -> str:
    if _BREAK.search(between):
        return ";"
    if "," in between or "/" in between:
        return ","
    return "-" if _LINK.search(between) else " "


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold().translate(_UNDECOMPOSED))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _without_articles(found: Sequence[_Word]) -> tuple[_Word, ...]:
    kept = [word for i, word in enumerate(found) if word.text != "the" and not (i == 0 and word.text in {"a", "an"})]
    return tuple(kept or found)


# Where a name stands


def _found(said: Sequence[_Word], wanted: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Spans at which the name stands as a whole name."""
    for start in range(len(said) - len(wanted) + 1):
        end = start + len(wanted)
        if tuple(w.text for w in said[start:end]) == wanted and _begins_at(said, start) and _ends_at(said, start, end):
            yield start, end


def _begins_at(said: Sequence[_Word], start: int) -> bool:
    """Whether no longer name has begun before ``start``."""
    if start == 0 or said[start].gap in {",", ";"}:
        return True
    before = said[start - 1]
    if said[start].gap == "-":
        return False
    if before.text == "of" and start > 1:
        return not said[start - 2].named or said[start - 2].text in _KINDS
    if not before.named or not said[start].named or before.text in _CLOSED_CLASS | _TITLES | _KINDS:
        return True
    return before.text in _DENYING


def _ends_at(said: Sequence[_Word], start: int, end: int) -> bool:
    """Whether the name is over at ``end``: nothing follows that makes it another one."""
    if end == len(said) or said[end].gap == ";":
        return True
    name, behind = said[end - 1], said[end]
    if behind.gap == "," or behind.text == "and":
        return not _is_other_place(said, start, end) and not _is_known_longer_name(said, start, end)
    if behind.gap == "-":
        return False
    if name.text[-1].isdigit():
        return behind.text not in _MULTIPLIERS and not behind.text[0].isdigit()
    if behind.text in _MAY_FOLLOW:
        return not behind.named or behind.text in _CLOSED_CLASS
    if behind.named or behind.text in {"of", "or"}:
        return False
    if name.named or len(name.text) == 1:  # a proper name: verbs and "language" may follow, not what would make a longer name
        return behind.text not in _OTHER_THING
    return behind.text.endswith("ed")  # "apple pie" is no apple


def _is_other_place(said: Sequence[_Word], start: int, end: int) -> bool:
    """Whether a qualifier behind a comma moves a known city to another country ("Paris, Texas"; not "Paris, France")."""
    home = _home_of().get(tuple(w.text for w in said[start:end]))
    if home is None or said[end].gap != ",":
        return False
    behind = tuple(w.text for w in said[end : end + 3])
    for length in (3, 2, 1):
        place = " ".join(behind[:length])
        if place in _ELSEWHERE:
            return home not in {"united states", "canada"}
        if place in _countries():
            return _countries()[place] != home
    return False


def _is_known_longer_name(said: Sequence[_Word], start: int, end: int) -> bool:
    """Whether the words go on to a longer name of the atlas ("Trinidad and Tobago" for "Trinidad")."""
    if said[end].text != "and" or said[end].gap != " ":
        return False
    return any(tuple(w.text for w in said[start:stop]) in _known_names() for stop in range(end + 2, min(end + 4, len(said)) + 1))


@cache
def _countries() -> dict[str, str]:
    """Folded names and aliases of the atlas's countries, each with the folded main name."""
    table = atlas.entities("country")
    return {" ".join(words(name)): " ".join(words(main)) for main, other in table.items() for name in (main, *other)}


@cache
def _home_of() -> dict[tuple[str, ...], str]:
    """The country of each capital and largest city of the atlas."""
    homes: dict[tuple[str, ...], str] = {}
    for fact in atlas.facts():
        if fact.relation in {"capital", "largest_city"}:
            homes |= {words(city): " ".join(words(fact.subject)) for city in fact.objects}
    return homes


@cache
def _known_names() -> frozenset[tuple[str, ...]]:
    kinds = {kind for relation in atlas.relations().values() for kind in (relation.subject, relation.object)}
    return frozenset(words(name) for kind in kinds for name in atlas.entities(kind))


# Whether it is so


def _asserted(said: Sequence[_Word], names: AbstractSet[tuple[str, ...]], inside: AbstractSet[tuple[str, ...]] = frozenset()) -> bool:
    """Whether one of ``names`` is asserted; not counted where it is a part of one of ``inside``."""
    taken = {span for name in inside for span in _found(said, name)}
    for name in names:
        for start, end in _found(said, name):
            covered = any(a <= start and end <= b and (a, b) != (start, end) for a, b in taken)
            if not covered and not _denied(said, start, end) and not _aside(said, start):
                return True
    return False


def _denied(said: Sequence[_Word], start: int, end: int) -> bool:
    """Whether the words around a mention take it back: a negation in front in its clause, "is not" or "or" behind."""
    if _denied_in_front(said, start):
        return True
    behind = [w.text for w in said[end : end + 3] if w.gap == " "]
    if behind[:1] == ["or"] or (behind and behind[0] in {"isnt", "wasnt", "arent", "werent"}):
        return True
    return len(behind) > 1 and behind[0] in _BE and behind[1] in _DENYING and behind[2:] != ["only"]


def _denied_in_front(said: Sequence[_Word], start: int) -> bool:
    if start and said[start].gap == " " and (said[start - 1].text in _PASSING or said[start - 1].text == "or"):
        return True
    for i in range(start, 0, -1):
        pair = (said[i - 1].text, said[i].text)
        if said[i].gap in {",", ";"} or pair == ("replaced", "by"):
            return False
        if pair[0] == "but":
            return i > 1 and said[i - 2].text == "anything"
        if pair[0] in _DENYING and pair not in {("not", "only"), ("no", "doubt")}:
            return True
    return False


def _aside(said: Sequence[_Word], start: int) -> bool:
    """Whether the mention stands in an aside behind the statement (", which lies 280 km from Sydney")."""
    return any(said[i].gap in {",", ";"} and said[i].text in _ASIDE for i in range(1, start + 1))
