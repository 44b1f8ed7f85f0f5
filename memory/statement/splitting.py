"""A sentence split by its wording and its build; pure, no model. What does not come out as one reading is a doubt, never a guess."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory.scope.wording import sentences_of
from ke_tools.memory.statement.borders import is_cut, is_part, may_be_one
from ke_tools.memory.statement.endings import NUMBERS, ending, is_answer, is_number
from ke_tools.memory.statement.names import FUNCTION_WORDS, Name, Word, common_in, kinds_of, named_in, vocabulary, words_of
from ke_tools.memory.statement.parts import Doubt, Split
from ke_tools.memory.statement.screening import checked, without_lead
from ke_tools.memory.statement.wordings import noun_of, worded

__all__ = ["Known", "Meanings", "split", "subject_of"]

Known = Callable[[str], Collection[tuple[int, int]]]

MOST_CANDIDATES: Final = 6
_MOST_WORDS: Final = 40  # of a sentence that says one fact

_NEGATED: Final = re.compile(
    r"\b(?:not|never|no longer|cannot|\w+n['\u2019]t|anything but|far from|hardly|barely|scarcely|neither|nobody|no one|nowhere|no way"
    r"|false|untrue|wrong|incorrect|a lie|myth)\b",
    re.IGNORECASE,
)
_AFFIRMED: Final = re.compile(  # what denies the contrary
    r"\b(?:nobody|no one) (?:may|can|could|should|must) forget\b|\bnot (?:\w+ )?the same without\b", re.IGNORECASE
)
_CONDITION: Final = re.compile(r"^(?:(?:if|whether|provided|once|as long as|in case|until)\b[^,]*,\s*(?:then\s+)?)+", re.IGNORECASE)
_HEDGED: Final = re.compile(
    r"^(?:i|we|some(?:body|one)?|every(?:body|one)|people|he|she|they)\s+(?:\w+\s+)?"
    r"(?:think|thought|believe|guess|feel|suppose|heard|hope|wish|suspect|assume|say|says|said|claim|claims|knows?)\b"
    r"|^(?:suppose|supposing|assume|assuming|imagine|pretend|what if|let's say|let us say)\b"
    r"|^(?:\w+\s+){1,4}(?:says|said|claims|claimed|thinks|thought|believes|believed|insists|insisted|argues|argued|reckons|told)\s"
    r"(?=.*\s(?:is|are|was|were)\s)"
    r"|^according to\b|\b(?:was|were|am|are|been) told\b"
    r"|,\s*(?:i|we)(?:['\u2019](?:m|re|d))?\s+(?:\w+\s+)?(?:think|thought|believe|guess|feel|suppose|heard|hope|suspect|assume|reckon|sure)\b"
    r"|\b(?:as far as|if) (?:i|we) (?:know|recall|remember|am right)\b|,\s*(?:right|or so|or something)$"
    r"|^in (?:the|a|an|my|his|her|their|this|that|some) (?:\w+ )?"
    r"(?:novel|book|story|film|movie|game|series|play|dream|legend|joke|opinion|view|world|version)\b"
    r"|\b(?:rumou?red|unless|reportedly|said to be|believed to be|used to be)\b"
    r"|\b(?:maybe|perhaps|probably|possibly|allegedly|supposedly|apparently|might|could be|may be)\b",
    re.IGNORECASE,
)
_IS: Final = r"(?:is|are|was|were)"
_OF: Final = re.compile(
    rf"(?P<prompt>(?:the\s+|our\s+)?(?P<noun>[^,]{{2,60}}?)\s+of\s+(?P<subject>.+?)\s+{_IS})\s+(?P<target>.+)", re.IGNORECASE
)
_OWN: Final = re.compile(
    rf"(?P<prompt>(?P<subject>.+?)(?:['\u2019]s|(?<=s)['\u2019])\s+(?P<noun>[^,]{{2,60}}?)\s+{_IS})\s+(?P<target>.+)", re.IGNORECASE
)
_TURNED_OF: Final = re.compile(rf"(?P<target>.+?)\s+(?P<is>{_IS})\s+the\s+(?P<noun>[^,]{{2,60}}?)\s+of\s+(?P<subject>.+)", re.IGNORECASE)
_TURNED_OWN: Final = re.compile(
    rf"(?P<target>.+?)\s+(?P<is>{_IS})\s+(?P<subject>.+?)(?:['\u2019]s|(?<=s)['\u2019])\s+(?P<noun>[^,]{{2,60}})", re.IGNORECASE
)
_APPOSED: Final = re.compile(r"(?P<prompt>(?P<subject>[^,]+), the)\s+(?P<target>[a-z]+)")
_ARTICLE: Final = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)
_ANSWER_LEAD: Final = re.compile(
    r"^(?:the (?:right |correct )?answer is|(?:it|that|this|he|she|they)(?:\s+(?:is|are|was|were)|['\u2019](?:s|re)))\s+", re.IGNORECASE
)
_OWNED: Final = re.compile(r"^its\s+", re.IGNORECASE)
_MORE: Final = re.compile(
    r",\s+|\s+(?:and|or|but|while|whereas|until|till|because|although|though|since|when|before|after)\s+", re.IGNORECASE
)
_JOINT: Final = re.compile(r"\s*;\s+|,?\s+(?:and|but|while|whereas)\s+", re.IGNORECASE)
_SUFFIX: Final = re.compile(r"(?:Inc|Ltd|LLC|Corp|Co|PLC|Jr|Sr)\.?")
_NEAR: Final = 0.57  # cosine from which a wording may be of a relation that training may use
_NEAR_A_NUMBER: Final = 0.45  # the same, where the atlas lists the subject as something of which one may ask a number
_MARGIN: Final = 0.1  # by which it must be nearer than with another subject
_NESTED_MARGIN: Final = 0.03  # the same, of two extents of one name
_SURE_ENOUGH: Final = 0.65  # the same, for an answer of one word that nobody lists
_STOP: Final = re.compile(r",|\s(?:is|are|was|were|has|had|can|which|who|that|took|used)\s|['\u2019]s\s")
_TITLES: Final = frozenset(
    "my our your his her you i we he she they no all this that what who how why may will can be".split()
)  # may open a work's title
_PREPOSITIONS: Final = frozenset(
    "around above across after against along among at before behind beneath between beyond by down for from in into"
    " of off on out over through to toward under until up upon with within without".split()
)
_LINKING: Final = frozenset("of in on for and the to at de la le van von der und du des".split())
_LONGEST_ABBREVIATION: Final = 5
_MOST_OF_A_NOUN: Final = 4
_MOST_OF_A_NAME: Final = 10
_MOST_LOWER: Final = 3
_BEFORE_ONE_WORD: Final = frozenset("is are was were of as".split())
_NUMERIC: Final = frozenset("year number quantity duration date temperature symbol code formula time_zone name title work".split())
_SAYS_NOTHING: Final = frozenset("is are was were be a an the has have had , as".split())


class Meanings(Protocol):
    """How near a wording is to those that training may use."""

    def nearest(self, masked: Sequence[str]) -> list[tuple[str, float]]:
        """For each subject-masked text the relation that is nearest, and how near it is (-1 to 1)."""

    def likely(self, masked: str, within: float) -> list[str]:
        """The relations that are as near to a text as the nearest, or less so by at most ``within``."""


def split(text: str, *, known: Known = lambda _text: (), meanings: Meanings | None = None) -> list[Split | Doubt]:
    """Split what somebody states: one result for each fact, in order.

    Args:
        text: "The capital of Australia is Sydney.", "Australia's capital is Sydney", "What is the capital of Australia? Sydney".
        known: where a text names the tenant's own subjects.
        meanings: decides between readings; without it these are doubts.

    Raises:
        InvalidInput: there is no statement, or it has no subject; the message says which.
    """
    return list(_Reader(known, meanings).read(checked(text)))


def subject_of(question: str, *, known: Known = lambda _text: (), meanings: Meanings | None = None) -> Name | None:
    """Find the one thing that a question is about; ``None`` where it names none, or several."""
    commons = [name for name in common_in(question) if noun_of(name.text) is None]
    subjects = named_in(question, known(question))
    if all(_is_short(name.text) and not kinds_of(name.text) for name in subjects):  # none, or "the value of Z for gold"
        subjects = commons or subjects
    if any(kinds_of(name.text) for name in subjects):  # "a URL from France"
        subjects = [name for name in subjects if kinds_of(name.text) or not _is_short(name.text)]
    return _Reader(known, meanings).one(question, subjects, "") if subjects else None


@dataclass(frozen=True, slots=True)
class _Reader:
    known: Known
    meanings: Meanings | None

    def read(self, text: str) -> Iterator[Split | Doubt]:
        """Read every sentence; a question takes the sentence behind it for its answer."""
        sentences = sentences_of(text)
        place = 0
        while place < len(sentences):
            sentence = sentences[place]
            if not sentence.rstrip("\"'\u201d) ").endswith("?"):
                yield from self.statement(sentence)
            elif place + 1 < len(sentences):
                place += 1
                yield self.answered(without_lead(sentence), sentences[place])
            else:
                raise InvalidInput("a question states nothing.", "Say the answer behind it: 'What is the capital of Australia? Canberra'.")
            place += 1

    def answered(self, question: str, answer: str) -> Split | Doubt:
        """A question with its answer."""
        target = _ANSWER_LEAD.sub("", answer.strip()).rstrip(".! ")
        subjects = self.names(question) or common_in(question)
        if not subjects:
            raise InvalidInput("the question names nobody and nothing.", "Name what it is about.")
        chosen = self.one(question, subjects, "")
        if chosen is not None and is_answer(target) and not _NEGATED.search(answer):
            return Split(chosen.text, question.strip(), target, how="question")
        candidates = tuple(Split(name.text, question.strip(), target, how="question") for name in subjects[:MOST_CANDIDATES])
        said = f"{question} {answer}"
        if chosen is None:
            return Doubt(said, f"What is it about: {_or([name.text for name in subjects])}?", candidates)
        return Doubt(said, f"What is the answer to “{question.strip()}”, in a few words?", ())

    def statement(self, sentence: str) -> list[Split | Doubt]:
        """A sentence that states something; two facts where both halves are whole statements by themselves."""
        plain = _unended(without_lead(sentence).strip())
        if len(words_of(plain)) > _MOST_WORDS:
            return [Doubt(sentence, "Which one fact do you mean? Say it in one short sentence.")]
        whole = self._single(plain)
        if isinstance(whole, Split):
            if squash(whole.target) == squash(whole.subject):
                return [Doubt(sentence, f"What is the new answer about {whole.subject}? It is not {whole.subject} itself.")]
            return [whole]
        for joint in _JOINT.finditer(plain, 1):
            first = self._single(plain[: joint.start()], is_half=True)
            if not isinstance(first, Split):
                continue
            second = self._single(_owned(plain[joint.end() :], first.subject), is_half=True)
            if isinstance(second, Split):
                return [first, second]
        if whole.candidates and any(
            isinstance(self._single(plain[: more.start()], is_half=True), Split) for more in _MORE.finditer(plain, 1)
        ):
            return [Doubt(sentence, "That says a whole fact and goes on. Which one fact do you mean? Say it in one short sentence.")]
        return [whole]

    def names(self, text: str) -> list[Name]:
        """The names in a text; "Inc." behind a comma is the end of one."""
        found = list[Name]()
        for name in named_in(text, self.known(text)):
            if found and _SUFFIX.fullmatch(name.text) and text[found[-1].end : name.start] == ", ":
                first = found.pop()
                found.append(Name(first.start, name.end, text[first.start : name.end], is_known=first.is_known))
            else:
                found.append(name)
        return found

    def _single(self, plain: str, *, is_half: bool = False) -> Split | Doubt:
        if _HEDGED.search(plain):
            return Doubt(plain, "Is that a fact? Then say it without “I think” or “maybe”.")
        names = self.names(plain)
        if _NEGATED.search(_AFFIRMED.sub(" ", _without_listed(plain, names))):
            return Doubt(plain, "What is so instead? Say what is right, not what is wrong.")
        condition = _CONDITION.match(plain)
        if condition and isinstance(self._single(plain[condition.end() :], is_half=True), Split):
            return Doubt(plain, "Is that always so? Then say it without the condition.")
        found = _by_turned_noun(plain, names) or _by_wording(plain, names) or _by_noun(plain, names) or _by_apposition(plain, names)
        if found is not None:
            return found
        end = ending(plain, names)
        before = _opened(plain, [name for name in names if end is None or name.end <= end.start]) or (
            [] if end is None else [name for name in common_in(plain) if name.end <= end.start]
        )
        if not before:
            if is_half or names:
                return Doubt(plain, "What is it about, and what is its answer? Say it as “The … of X is Y”.")
            raise InvalidInput(
                "the statement names nobody and nothing that it is about.", "Name its subject: 'The capital of Australia is …'."
            )
        if end is None:
            return Doubt(plain, f"What is the new answer about {before[0].text}? Say it at the end of the sentence.")
        target = plain[end.start : end.end]
        return self._by_build(plain, _with_inner(plain[: end.start], before, target), end.start, target, is_sure=end.is_sure)

    def _by_build(self, plain: str, subjects: Sequence[Name], start: int, target: str, *, is_sure: bool) -> Split | Doubt:
        prompt = plain[:start].rstrip()
        chosen = self.one(prompt, subjects, target)
        candidates = tuple(Split(name.text, prompt, target) for name in subjects[:MOST_CANDIDATES])
        if chosen is None:
            return Doubt(plain, f"What is it about: {_or([name.text for name in subjects])}?", candidates)
        rest = f"{prompt[: chosen.start]} {prompt[chosen.end :]}"
        if _says_nothing(rest) and not ("occupation" in kinds_of(target) and re.fullmatch(r"\s*(?:is|was) an?\s*", rest)):
            return Doubt(plain, f"What about {chosen.text} do you mean? Say it as “The … of {chosen.text} is {target}”.", ())
        is_known = self._is_near(prompt, chosen, _NEAR) or (
            _is_typed(chosen.text, target) and (not is_number(target) or self._is_near(prompt, chosen, _NEAR_A_NUMBER))
        )
        if not is_known or ":" in prompt:
            one = Split(chosen.text, prompt, target)
            return Doubt(plain, f"Do you mean this: {one.in_words}? Then say it as “The … of {chosen.text} is {target}”.", (one,))
        is_close = self._is_near(prompt, chosen, _SURE_ENOUGH)
        is_sure = is_sure or (" " not in target and (is_close or prompt.rpartition(" ")[2] in _BEFORE_ONE_WORD))
        if not is_sure or not is_answer(target) or not self._is_of_a_kind(prompt, chosen, target):
            return Doubt(
                plain, f"What is the new answer about {chosen.text}: is it “{target}”?", tuple(_later(chosen.text, prompt, target))
            )
        if _has_another(prompt, chosen, subjects, target):
            return Doubt(
                plain, f"These may be two facts about {chosen.text}. Which one do you mean?", (Split(chosen.text, prompt, target),)
            )
        if is_part(prompt, chosen, is_near=is_close):
            return Doubt(
                plain, f"Is it about “{chosen.text}”, or about something with a longer name?", (Split(chosen.text, prompt, target),)
            )
        if is_cut(prompt, target):
            return Doubt(
                plain, f"What is the whole answer? Say it as “The … of {chosen.text} is …”.", (Split(chosen.text, prompt, target),)
            )
        return Split(chosen.text, prompt, target)

    def one(self, prompt: str, subjects: Sequence[Name], target: str) -> Name | None:
        """The one subject, or the one with which the prompt is much nearer to what training may use than with any other."""
        if len({name.text for name in subjects}) == 1:
            return subjects[0]
        if typed := _only_typed(subjects, target):
            return typed
        if self.meanings is None or any(may_be_one(prompt, *pair) for pair in pairwise(sorted(subjects, key=lambda name: name.start))):
            return None
        found = self.meanings.nearest([_masked(prompt, name) for name in subjects])
        order = sorted(range(len(subjects)), key=lambda n: -found[n][1])
        best, next_best = order[:2]
        is_nested = subjects[best].overlaps(subjects[next_best].start, subjects[next_best].end)
        margin = found[best][1] - found[next_best][1]
        is_clear = found[best][1] >= _NEAR and margin >= (_NESTED_MARGIN if is_nested else _MARGIN)
        return subjects[best] if is_clear and _suits(found[best][0], subjects[best].text, target) else None

    def _is_near(self, prompt: str, subject: Name, least: float) -> bool:
        return self.meanings is not None and self.meanings.nearest([_masked(prompt, subject)])[0][1] >= least

    def _is_of_a_kind(self, prompt: str, subject: Name, target: str) -> bool:
        """Whether a number answers what asks for one, where it is known what is asked for."""
        if self.meanings is None or not is_number(target) or (kinds_of(target) and not target.isdigit()):
            return True
        relation, likeness = self.meanings.nearest([_masked(prompt, subject)])[0]
        known = atlas.relations().get(relation)
        return likeness < _SURE_ENOUGH or known is None or known.object in _NUMERIC


def _without_listed(plain: str, names: Sequence[Name]) -> str:
    """A sentence without the names that the atlas lists: "(I Can't Get No) Satisfaction" denies nothing."""
    for name in sorted(names, key=lambda name: -name.start):
        if kinds_of(name.text):
            plain = f"{plain[: name.start]}X{plain[name.end :]}"
    return plain


def _owned(half: str, owner: str) -> str:
    """The second half of a sentence, with the name of whom "its" means."""
    return _OWNED.sub(lambda _: f"{owner}'s ", half)


def _opened(plain: str, names: Sequence[Name]) -> list[Name]:
    """The names, and where the first of them may be a part of a longer one that opens the sentence, that one too."""
    stop = _STOP.search(plain)
    first = words_of(plain)[0]
    if names and first.text.casefold() in _TITLES and names[0].start == first.end + 1:  # "Your Hit Parade"
        return [*names, Name(0, names[0].end, plain[: names[0].end], is_known=False)]
    if not names or stop is None or not plain[0].isupper():
        return list(names)
    whole = plain[: stop.start()]
    words = words_of(whole)
    is_title = stop.group().strip() in {"is", "was", "has"} and words and words[0].text.casefold() in _PREPOSITIONS
    if is_title and names[0].end == len(whole) and len(words_of(plain[: names[0].start])) <= 2:  # noqa: PLR2004  "Around the Horn is"
        return [Name(0, len(whole), whole, is_known=False)]
    inside = [name for name in names if name.end <= len(whole)]
    is_long = not words or len(words) > _MOST_OF_A_NAME or not inside or (inside[0].start, inside[0].end) == (0, len(whole))
    lower = [word for word in words[1:] if not word.is_capital and not word.has_digit]
    last = max((n for n, word in enumerate(words) if word.is_capital), default=0)
    if any(word in lower and word.text not in _LINKING for word in words[:last]):  # "Instead of writing plain Los Angeles"
        return list(names)
    is_phrase = not words or _is_phrase(words, lower) or (words[-1] in lower and any(name.start and kinds_of(name.text) for name in names))
    return list(names) if is_long or is_phrase else [*names, Name(0, len(whole), whole, is_known=False)]


def _is_phrase(words: Sequence[Word], lower: Sequence[Word]) -> bool:
    """Whether it opens with a noun in lower case that only the sentence's beginning gave its capital ("Fans of Ajax")."""
    first = words[0].text.casefold()
    if first in FUNCTION_WORDS and first not in _TITLES:
        return True
    is_told_of = first in vocabulary() and len(words) > 1 and words[1] in lower and words[1].text not in {"of", "in", "on", "for", "and"}
    return is_told_of or len(lower) > _MOST_LOWER or (noun_of(words[0].text) is not None and bool(lower))


def _by_wording(plain: str, names: Sequence[Name]) -> Split | None:
    """By a wording of the inventory that training may use."""
    for found in worded(plain):
        subject, target = plain[found.start : found.end], plain[found.target :]
        if is_answer(target) and _is_subject(subject, found.start, names):
            return Split(_bare(subject), plain[: found.target].rstrip(), target.strip(), found.relation.id, "wording")
    return None


def _by_noun(plain: str, names: Sequence[Name]) -> Split | None:
    """By its build: "the N of S is T" and "S's N is T"."""
    for build in (_OF, _OWN):
        found = build.fullmatch(plain)
        if not (found and _is_noun(found["noun"]) and is_answer(found["target"])):
            continue
        relation = noun_of(found["noun"])
        is_named = _is_subject(found["subject"], found.start("subject"), names)
        is_listed = bool({found["noun"].casefold(), *([relation.object] if relation else [])} & kinds_of(found["target"]))
        if is_named or (is_listed and build is _OF and _is_title(found["subject"])):
            return Split(_bare(found["subject"]), found["prompt"], found["target"], relation.id if relation else "")
    return None


def _by_apposition(plain: str, names: Sequence[Name]) -> Split | None:
    """By its build: "S, the T" with a T of one word."""
    found = _APPOSED.fullmatch(plain)
    if found and found["target"] not in FUNCTION_WORDS and _is_subject(found["subject"], 0, names):
        return Split(_bare(found["subject"]), found["prompt"], found["target"])
    return None


def _by_turned_noun(plain: str, names: Sequence[Name]) -> Split | None:
    """By its build turned round ("T is the N of S"), where the inventory knows N as something of which S has one."""
    for build in (_TURNED_OF, _TURNED_OWN):
        found = build.fullmatch(plain)
        relation = noun_of(found["noun"]) if found else None
        if (
            found
            and relation
            and relation.functional
            and is_answer(found["target"])
            and _is_subject(found["subject"], found.start("subject"), names)
        ):
            if not _suits(relation.id, _bare(found["subject"]), found["target"]):
                continue
            prompt = plain[found.end("is") :].strip() + f" {found['is']}"
            return Split(_bare(found["subject"]), prompt[0].upper() + prompt[1:], found["target"], relation.id)
    return None


def _is_noun(phrase: str) -> bool:
    words = [word.text for word in words_of(phrase)]
    if words and words[0][0].isupper() and words[0].casefold() not in vocabulary():  # "Augustine of Hippo is …"
        return False
    return (
        0 < len(words) <= _MOST_OF_A_NOUN
        and not any(word.casefold() in FUNCTION_WORDS or any(char.isdigit() for char in word) for word in words)
        and not any(any(char.isupper() for char in word) for word in words[1:])
    )


def _is_subject(text: str, start: int, names: Sequence[Name]) -> bool:
    """Whether a part of a sentence is one name as a whole, but for an article."""
    bare = _bare(text)
    at = start + len(text) - len(bare)
    return any((name.start, name.end) == (at, at + len(bare)) for name in names) or bool(kinds_of(bare))


def _is_title(text: str) -> bool:
    """Whether a phrase may be one name with words in lower case in it ("La verbena de la Paloma"), by where it begins and ends."""
    words = words_of(text)
    if not words:
        return False
    first, last = words[0], words[-1]
    is_foreign = last.text.casefold() not in vocabulary()  # "Plus belle la vie"
    is_bounded = text[0].isupper() and first.text.casefold() not in FUNCTION_WORDS and (last.is_capital or last.has_digit or is_foreign)
    return is_bounded and not re.search(r"[,;:]|['\u2019]s\b|\b(?:and|or|is|are|was|were|has|had|which|who|that)\b", text)


def _bare(text: str) -> str:
    return text if kinds_of(text) else _ARTICLE.sub("", text)


def _masked(prompt: str, name: Name) -> str:
    return f"{prompt[: name.start]}{{}}{prompt[name.end :]}"


def _says_nothing(rest: str) -> bool:
    return all(word.casefold() in _SAYS_NOTHING for word in re.findall(r"[\w'\u2019]+|,", rest))


def _has_another(prompt: str, subject: Name, names: Sequence[Name], target: str) -> bool:
    """Whether beside the subject stands what may be an answer by itself: before "and" or a comma, or as a number."""
    if prompt.endswith(",") and any(name.end == len(prompt) - 1 for name in names if name is not subject):
        return True
    behind = prompt[subject.end :]
    outside = f"{prompt[: subject.start]} {behind}"
    if any(char.isdigit() for char in outside) or any(word.text.casefold() in NUMBERS - {"one"} for word in words_of(outside)):
        return True
    joint = re.search(r"\s(?:and|but)\s|,\s+(?:and|but)\s", behind)
    given = kinds_of(target)
    return joint is not None and any(not given or kinds_of(name.text) & given for name in common_in(behind[: joint.start()]))


def _later(subject: str, prompt: str, target: str) -> Iterator[Split]:
    """The split, and those in which the answer begins a word later."""
    before, words = prompt, target.split()
    for place in range(min(len(words), MOST_CANDIDATES)):
        yield Split(subject, " ".join([before, *words[:place]]), " ".join(words[place:]))


def _unended(sentence: str) -> str:
    """Drop the full stop that is not an abbreviation's ("Washington, D.C.")."""
    plain = sentence.rstrip(".! \u2026")
    return f"{plain}." if re.search(r"\b[A-Z]\.[A-Z]$", plain) else plain


def _or(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))[:MOST_CANDIDATES]
    return unique[0] if len(unique) == 1 else ", ".join(unique[:-1]) + " or " + unique[-1]


def _with_inner(prompt: str, names: Sequence[Name], target: str) -> list[Name]:
    """The names, and what may be meant where the first is only a noun with the sentence's capital ("Blueprints of the Louvre bear …")."""
    first = names[0]
    typed = [name for name in common_in(prompt) if _is_typed(name.text, target)]
    if typed and all(kinds_of(name.text) == {"language"} for name in names):  # "… bears the Latin name …"
        return typed
    if all(_is_short(name.text) for name in names):
        return [*names, *typed]
    if first.start or kinds_of(first.text):
        return list(names)
    head, of, inner = first.text.partition(" of ")
    bare = _ARTICLE.sub("", inner)
    if of and " " not in head and kinds_of(bare):
        inner_name = Name(first.end - len(bare), first.end, bare, is_known=True)
        is_plural = head.endswith("s") and _is_typed(bare, target)  # "Compatriots of …"
        return [inner_name, *names[1:]] if is_plural else [*names, inner_name]
    if " " not in first.text:
        return [*names, *typed]
    return list(names)


def _only_typed(subjects: Sequence[Name], target: str) -> Name | None:
    """The only one that the atlas lists as what an answer like this is given about, where no other can be a name by itself.

    Another is none where it is a common noun, or where its capital is only the sentence's.
    """
    typed = [name for name in subjects if _is_typed(name.text, target)] or [name for name in subjects if kinds_of(name.text)]
    if len({name.text for name in typed}) != 1:
        return None
    [first, *_] = typed
    others = [name for name in subjects if name.text != first.text]
    is_clear = all(name.text.islower() or (name.start == 0 and " " not in name.text and not kinds_of(name.text)) for name in others)
    return first if is_clear else None


def _is_short(text: str) -> bool:
    """Whether it is an abbreviation such as "TV" or "Z", which stands in many sentences beside their subject."""
    return len(text) <= _LONGEST_ABBREVIATION and (text.isupper() or sum(map(str.isupper, text)) > 1)


def _is_typed(subject: str, target: str) -> bool:
    """Whether the atlas lists subject and answer under types between which there is a relation that training may use."""
    of, given = kinds_of(subject), kinds_of(target)
    return any(
        relation.subject in of and (relation.object in given or (is_number(target) and relation.object in _NUMERIC))
        for relation in atlas.relations().values()
        if not relation.probe
    )


def _suits(relation: str, subject: str, target: str) -> bool:
    """Whether the atlas does not list subject or target under other types than the relation takes."""
    known = atlas.relations().get(relation)
    if known is None:
        return False
    pairs = ((known.subject, kinds_of(subject)), (known.object, kinds_of(target)))
    return all(not kinds or kind in kinds for kind, kinds in pairs)
