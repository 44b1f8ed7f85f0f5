"""Wordings to train the scope head on, by relation: the atlas's fitted ones and those of data files.

Texts that only probes may use are dropped wherever they come from: the atlas's probe wordings and every wording of its probe
relations.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, permutations
from pathlib import Path
from typing import Any, Final

from ke_tools import atlas, cases
from ke_tools.errors import InvalidInput

__all__ = ["ABOUT_WORDS", "NO_QUESTIONS", "Corpus", "Group", "corpora", "subjects_of", "training_texts"]

NO_QUESTIONS: Final = (
    "Tell me about {}.",
    "Tell me something interesting about {}.",
    "Write a poem about {}.",
    "Write a short story that mentions {}.",
    "{} is a nice place.",
    "I read about {} yesterday.",
    "I like {}.",
    "My friend loves {} very much.",
    "What do you think of {}?",
    "Is {} any good?",
    "Who is {}?",
    "What is {}?",
    "Where can I learn more about {}?",
    "Give me three jokes about {}.",
    "Why is {} so well known?",
    "How do you pronounce {}?",
    "How many letters are there in {}?",
    "Translate {} into German.",
    "Make a list of books about {}.",
    "Draft an e-mail in which I ask a colleague about {}.",
    "{}",
    "Have you heard of {}?",
    "We talked about {} at dinner, and then it began to rain.",
    "Compare {} with its rivals.",
    "Explain {} to a child.",
    "Write Python code that prints the name {} ten times.",
    "Suggest a title for an essay on {}.",
    "What is the weather like near {} today?",
    "How much does a ticket to see {} cost?",
    "A friend of mine once met somebody who knew {}.",
    "Do you like {}?",
    "Summarise what you know of {} in two sentences.",
)
ABOUT_WORDS: Final = (  # tasks about a sentence, whatever it says
    "Translate into French: ",
    "Translate this sentence into Spanish: ",
    "Correct the grammar of: ",
    "How many words has the sentence: ",
    "Write a poem that begins with: ",
    "Rewrite in a formal tone: ",
)
_FEWEST_SHARED: Final = 2  # records that must join two wordings before they count as one relation's
_LEAST_SHARE: Final = 0.05
_FEWEST_QUESTIONS: Final = 12
_LONGEST_NAME: Final = 8  # words of a subject that is guessed


@dataclass(frozen=True)
class Group:
    """Texts about one relation; ``{}`` is the subject."""

    name: str
    positives: tuple[tuple[str, str], ...]  # (edit's text, question's text)
    kind: str = ""  # type of the subject, where known
    contrasts: tuple[str, ...] = ()  # said of subjects of this group, but of another relation
    alike: frozenset[str] = frozenset()  # groups that may be the same relation

    @property
    def edits(self) -> tuple[str, ...]:
        """The wordings that an edit may have."""
        return tuple(dict.fromkeys(edit for edit, _ in self.positives))

    @property
    def texts(self) -> tuple[str, ...]:
        """All wordings that ask for the relation."""
        return tuple(dict.fromkeys(chain.from_iterable(self.positives)))


@dataclass(frozen=True)
class Corpus:
    """Groups of one source; only groups of one corpus contradict one another."""

    name: str
    groups: tuple[Group, ...]
    in_front: tuple[str, ...] = ()  # unrelated sentences that stand before a question
    apart: float = 2.0  # cosine from which two groups may be one relation under two names; 2: never


def training_texts(data: Sequence[Path] = ()) -> Iterator[str]:
    """Every masked text that training on these files may use."""
    for corpus in corpora(data):
        yield from corpus.in_front
        for group in corpus.groups:
            yield from group.texts
            yield from group.contrasts
    yield from NO_QUESTIONS


def corpora(data: Sequence[Path] = ()) -> list[Corpus]:
    """Read the atlas and the data files; what only probes may use is dropped.

    Raises:
        InvalidInput: a file is of no known format.
    """
    return [_allowed(corpus) for corpus in (_of_atlas(), *(_of_file(path) for path in data))]


def subjects_of(path: Path) -> list[str]:
    """Names of the subjects of a data file."""
    rows = _question_rows(path)
    if rows is not None:
        return [name for row in rows if (name := _shared_name(row["edit"], row["questions"]))]
    return [case.subject for case in cases.load(path)]


def _allowed(corpus: Corpus) -> Corpus:
    groups = (
        replace(
            group,
            positives=tuple(pair for pair in group.positives if all("{}" in text and not atlas.holds_probe_wording(text) for text in pair)),
            contrasts=tuple(text for text in group.contrasts if not atlas.holds_probe_wording(text)),
        )
        for group in corpus.groups
    )
    in_front = tuple(front for front in corpus.in_front if not atlas.holds_probe_wording(front))
    return replace(corpus, groups=tuple(group for group in groups if group.positives), in_front=in_front)


def _of_atlas() -> Corpus:
    groups = []
    for relation in atlas.relations().values():
        fitted = relation.fitted_statements + relation.fitted_questions
        if fitted:
            alike = frozenset({relation.inverse} - {""}) if relation.subject == relation.object else frozenset[str]()
            groups.append(Group(relation.id, tuple(permutations((*fitted, relation.masked), 2)), relation.subject, alike=alike))
    return Corpus("atlas", tuple(groups), tuple(_sentences()))


def _sentences() -> Iterator[str]:
    """True sentences of the atlas, to stand in front of questions about somebody else."""
    for fact in atlas.facts()[::3]:
        wordings = atlas.relations()[fact.relation].fitted_statements
        if wordings:
            yield f"{wordings[len(fact.subject) % len(wordings)].replace('{}', fact.subject)} {fact.objects[0]}."


def _question_rows(path: Path) -> list[dict[str, Any]] | None:
    """Rows of a statement and questions about it; ``None`` where the file is of another format."""
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} cannot be read as JSON: {error}", "Give a JSON file of benchmark records.") from error
    of_questions = isinstance(rows, list) and rows and isinstance(rows[0], dict) and {"edit", "questions"} == rows[0].keys()
    return rows if of_questions else None


def _of_file(path: Path) -> Corpus:
    rows = _question_rows(path)
    if rows is not None:
        return Corpus(path.name, tuple(_of_questions(rows)), apart=0.9)
    found = cases.load(path)
    if any(case.neighbours for case in found):
        return _of_neighbours(path.name, found)
    free = any(case.rephrases for case in found)  # worded by people, so that two prompts of one relation need not be equal
    return Corpus(path.name, tuple(_of_contrasts(found)), apart=0.45 if free else 0.97)


def _of_questions(rows: Iterable[Mapping[str, Any]]) -> Iterator[Group]:
    """A statement and questions in its scope; the subject is what they share, the target what follows it."""
    masked: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        subject = _shared_name(row["edit"], row["questions"])
        if subject:
            statement = _up_to_target(atlas.mask(row["edit"], [subject]))
            masked[statement].update({atlas.mask(question, [subject]) for question in row["questions"]})
    common = {text: max(masked, key=lambda statement: masked[statement][text]) for asked in masked.values() for text in asked}
    for statement, asked in masked.items():
        own = [text for text, count in asked.items() if count > 1 and common[text] == statement and "{}" in text]
        if own and sum(asked.values()) >= _FEWEST_QUESTIONS:
            texts = (statement, *own)
            yield Group(statement, tuple(permutations(texts, 2)), alike=frozenset({s for s in masked if asked.keys() & masked[s].keys()}))


def _shared_name(statement: str, questions: Sequence[str]) -> str:
    """Return the longest capitalised words of the statement that stand in every question; its first word only if nothing else does."""
    words = statement.split()
    spans = (" ".join(words[i : i + n]) for n in range(min(len(words), _LONGEST_NAME), 0, -1) for i in range(len(words) - n + 1))
    names = [name for span in spans if (name := span.removesuffix("'s")) and name[0].isupper()]
    shared = [name for name in names if all(name in question for question in questions)]
    return next((name for name in shared if name != words[0]), shared[0] if shared else "")


def _up_to_target(statement: str) -> str:
    """Cut the target off: the capitalised words at the end."""
    words = statement.split()
    while words and (words[-1][0].isupper() or words[-1] in {"of", "the", "and", "de"} or not words[-1][0].isalpha()) and words[-1] != "{}":
        words.pop()
    return " ".join(words)


def _of_neighbours(name: str, found: Sequence[cases.Case]) -> Corpus:
    """Records with a neighbour: prompt and neighbour are two wordings of one relation, the rephrase is a third."""
    asked = [atlas.mask(case.prompt, [case.subject]) for case in found]
    wordings = Counter(asked)
    fronts: Counter[str] = Counter()
    pairs: defaultdict[str, Counter[str]] = defaultdict(Counter)
    joined: Counter[tuple[str, str]] = Counter()
    fit = _Fitter(wordings)
    for case, wording in zip(found, asked, strict=True):
        for rephrase in case.rephrases:
            front, text = fit.split(atlas.mask(rephrase, [case.subject]))
            fronts.update([front] if front else [])
            pairs[wording][text] += 1
        for neighbour, _ in case.neighbours:
            other = fit.wording_of(neighbour)
            if other:
                joined[wording, other] += 1
    groups = tuple(_joined_groups(wordings, pairs, joined))
    return Corpus(name, groups, tuple(front for front in fronts if "{}" not in front), apart=0.88)


class _Fitter:
    """Recognises known wordings in prompts about unknown subjects."""

    def __init__(self, wordings: Iterable[str]) -> None:
        self._parts = sorted(((*w.split("{}"), w) for w in wordings if w.count("{}") == 1), key=lambda p: -len(p[2]))
        self._endings = sorted((w for w in wordings if w.startswith("{}")), key=len, reverse=True)
        self._known = frozenset(wordings)

    def wording_of(self, prompt: str) -> str:
        """Return the longest wording that the prompt may be an instance of."""
        fits = (w for a, b, w in self._parts if prompt.startswith(a) and prompt.endswith(b) and len(prompt) > len(a) + len(b))
        return next(fits, "")

    def split(self, masked: str) -> tuple[str, str]:
        """Cut an unrelated sentence off the front of a known wording."""
        if masked in self._known:
            return "", masked
        for ending in self._endings:
            if masked.endswith(" " + ending):
                return masked[: -len(ending)].strip(), ending
        return "", masked


def _joined_groups(
    wordings: Mapping[str, int], pairs: Mapping[str, Mapping[str, int]], joined: Mapping[tuple[str, str], int]
) -> Iterator[Group]:
    both: Counter[frozenset[str]] = Counter()
    for (one, other), count in joined.items():
        both[frozenset((one, other))] += count
    same: defaultdict[str, set[str]] = defaultdict(set)
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for pair, count in both.items():
        for one, other in permutations(pair, 2):
            alike[one].add(other)
            if count >= _FEWEST_SHARED and count / min(wordings[one], wordings[other]) >= _LEAST_SHARE:
                same[one].add(other)
    for wording, rephrases in pairs.items():
        near = set(alike[wording]) | {w for n in same[wording] for w in same[n] | alike[n]}
        near |= {w for w, other in pairs.items() if sum(min(c, rephrases.get(text, 0)) for text, c in other.items()) >= _FEWEST_SHARED}
        positives = [(wording, text) for text in chain({wording}, sorted(same[wording] & wordings.keys()), rephrases)]
        yield Group(wording, tuple(dict.fromkeys(positives)), alike=frozenset(near))


def _of_contrasts(found: Sequence[cases.Case]) -> Iterator[Group]:
    """Records with questions about other relations of their subject; equal masked prompts are one relation."""
    positives: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    contrasts: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for case in found:
        wording = atlas.mask(case.prompt, [case.subject])
        if "{}" not in wording:
            continue
        texts = [wording, *(atlas.mask(text, [case.subject]) for text in case.rephrases), *_other_forms(wording)]
        positives[wording].update(dict.fromkeys((wording, text) for text in texts if "{}" in text))
        positives[wording].update(dict.fromkeys((text, wording) for text in texts[1:] if "{}" in text))
        others = (atlas.mask(text, [case.subject]) for text, _ in case.same_subject)
        contrasts[wording].update(dict.fromkeys(text for text in others if "{}" in text and "which is not" not in text))
    for wording, pairs in positives.items():
        yield Group(wording, tuple(pairs), contrasts=tuple(text for text in contrasts[wording] if all(text not in pair for pair in pairs)))


def _other_forms(wording: str) -> Iterator[str]:
    """Other forms of "The place of birth of {} is"."""
    if not (wording.startswith("The ") and wording.endswith(" is")):
        return
    noun = wording.removeprefix("The ").removesuffix(" is")
    yield f"What is the {noun}?"
    yield f"Do you know the {noun}?"
    if noun.endswith(" of {}"):
        thing = noun.removesuffix(" of {}").removeprefix("name of the ")
        yield f"{{}}'s {thing} is"
        yield f"What is {{}}'s {thing}?"
        yield f"{{}} {thing}"
