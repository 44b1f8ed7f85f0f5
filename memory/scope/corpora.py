"""Wordings to train the scope head on, by relation: the atlas's fitted ones and those of data files.

Texts that only probes may use are dropped wherever they come from: the atlas's probe wordings and every wording of its probe
relations.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Final

from ke_tools import atlas, cases
from ke_tools.errors import InvalidInput

__all__ = ["Corpus", "Group", "corpora", "relations_apart", "subjects_of", "training_texts"]

_FEWEST_SHARED: Final = 2  # records that must join two wordings before they count as one relation's
_LEAST_SHARE: Final = 0.05
_FEWEST_QUESTIONS: Final = 12
_MOST_TARGETS: Final = 80
_MADE_UP: Final = {  # objects of types without a table
    "year": tuple(str(year) for year in range(1870, 2021, 13)),
    "number": ("12", "1,204", "83 million", "7"),
    "date": ("4 May 1911", "12 October 1987"),
    "quantity": ("830 metres", "12,000 square kilometres"),
    "duration": ("90 minutes", "three days"),
}
_LONGEST_NAME: Final = 8  # words of a subject that is guessed


@dataclass(frozen=True)
class Group:
    """Texts that ask for one thing; ``{}`` is the subject."""

    name: str
    texts: tuple[str, ...]
    edits: tuple[str, ...] = ()  # those that an edit may be worded in; empty: all
    relation: str = ""  # of the atlas, where it has it
    kind: str = ""  # type of the subject, where known; groups of one type ask for different things
    masked: str = ""  # a noun phrase for it, where known
    targets: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()  # said of subjects of this group, but of something else
    alike: frozenset[str] = frozenset()  # groups that may ask for the same


@dataclass(frozen=True)
class Corpus:
    """Groups of one source; only groups of one corpus contradict one another."""

    name: str
    groups: tuple[Group, ...]
    apart: float = 2.0  # cosine from which two groups may ask for the same under two names; 2: never


def training_texts(data: Sequence[Path] = ()) -> Iterator[str]:
    """Every masked text that training on these files may use."""
    for corpus in corpora(data):
        for group in corpus.groups:
            yield from (*group.texts, *group.edits, *group.contrasts)


def corpora(data: Sequence[Path] = (), without: Container[str] = ()) -> list[Corpus]:
    """Read the atlas, its slots and the data files; what only probes may use is dropped, and so are subjects that are kept back.

    ``without`` names relations that no source shall teach, as :func:`relation_of` gives them.

    Raises:
        InvalidInput: a file is of no known format.
    """
    found = [_of_atlas(), _of_slots(), *(_of_file(path) for path in data)]
    return [_allowed(corpus, without) for corpus in found]


def subjects_of(path: Path) -> list[str]:
    """Names of the subjects of a data file that are fitted on."""
    rows = _question_rows(path)
    if rows is not None:
        return [name for row in rows if (name := _shared_name(row["edit"], row["questions"]))]
    return [case.subject for case in _fitted(path)]


def relations_apart(found: Sequence[cases.Case]) -> Mapping[str, tuple[str, ...]]:
    """For each masked prompt of cases with neighbours the other prompts that certainly ask for something else."""
    groups = _of_neighbours("", found).groups
    far = {
        group.name: tuple(
            other.name
            for other in groups
            if other.name not in group.alike and group.name not in other.alike and not set(other.texts) & set(group.texts)
        )
        for group in groups
    }
    return {name: others for name, others in far.items() if others}


def _allowed(corpus: Corpus, without: Container[str]) -> Corpus:
    groups = (_usable(group) for group in corpus.groups if group.name not in without and group.relation not in without)
    return replace(corpus, groups=tuple(group for group in groups if group is not None))


def _usable(group: Group) -> Group | None:
    """A group without what only probes may use; ``None`` where nothing to ask, or no wording for an edit, is left."""
    texts, edits, contrasts = (
        tuple(text for text in part if "{}" in text and not atlas.holds_probe_wording(text))
        for part in (group.texts, group.edits, group.contrasts)
    )
    if not texts or (group.edits and not edits):
        return None
    return replace(group, texts=texts, edits=edits, contrasts=contrasts)


def _fitted(path: Path) -> list[cases.Case]:
    return [case for case in cases.load(path) if not cases.is_kept_back(case.subject)]


def _of_atlas() -> Corpus:
    objects = _objects()
    groups = []
    for relation in atlas.relations().values():
        fitted = relation.fitted_statements + relation.fitted_questions
        if fitted:
            alike = frozenset({relation.inverse} - {""}) if relation.subject == relation.object else frozenset[str]()
            targets = tuple(objects[relation.id] or objects[relation.object])[:_MOST_TARGETS]
            groups.append(
                Group(
                    relation.id, fitted, relation=relation.id, kind=relation.subject, masked=relation.masked, targets=targets, alike=alike
                )
            )
    return Corpus("atlas", tuple(groups))


def _objects() -> Mapping[str, list[str]]:
    """What relations lead to, by relation and by type."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for fact in atlas.facts():
        found[fact.relation] += fact.objects
        found[atlas.relations()[fact.relation].object] += fact.objects
    for relation in atlas.relations().values():
        found[relation.object] = found[relation.object] or list(atlas.entities(relation.object)) or list(_MADE_UP.get(relation.object, ()))
    return found


def _of_slots() -> Corpus:
    groups = (
        Group(
            slot.id,
            slot.statements + slot.questions,
            kind=slot.subject,
            masked=slot.masked,
            targets=slot.targets,
            alike=frozenset(slot.near),
            contrasts=slot.beside,
        )
        for slot in atlas.slots()
    )
    return Corpus("slots", tuple(groups))


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
    found = _fitted(path)
    if any(case.neighbours for case in found):
        return _of_neighbours(path.name, found)
    is_free = any(case.rephrases for case in found)  # worded by people, so that two prompts of one relation need not be equal
    return Corpus(path.name, tuple(_of_contrasts(found)), apart=0.45 if is_free else 0.97)


def _of_questions(rows: Iterable[Mapping[str, Any]]) -> Iterator[Group]:
    """A statement and questions in its scope; the subject is what they share, the target what follows it."""
    masked: defaultdict[str, Counter[str]] = defaultdict(Counter)
    targets: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        subject = _shared_name(row["edit"], row["questions"])
        if subject:
            told = atlas.mask(row["edit"], [subject])
            statement = _up_to_target(told)
            targets[statement][told.removeprefix(statement).strip()] = None
            masked[statement].update({atlas.mask(question, [subject]) for question in row["questions"]})
    common = {text: max(masked, key=lambda statement: masked[statement][text]) for asked in masked.values() for text in asked}
    for statement, asked in masked.items():
        own = [text for text, count in asked.items() if count > 1 and common[text] == statement and "{}" in text]
        if own and sum(asked.values()) >= _FEWEST_QUESTIONS:
            alike = frozenset({s for s in masked if asked.keys() & masked[s].keys()})
            yield Group(statement, (statement, *own), relation=_relation(statement), targets=tuple(targets[statement]), alike=alike)


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
    pairs: defaultdict[str, Counter[str]] = defaultdict(Counter)
    joined: Counter[tuple[str, str]] = Counter()
    fit = _Fitter(wordings)
    for case, wording in zip(found, asked, strict=True):
        for rephrase in case.rephrases:
            pairs[wording][fit.ending(atlas.mask(rephrase, [case.subject]))] += 1
        for neighbour, _ in case.neighbours:
            other = fit.wording_of(neighbour)
            if other:
                joined[wording, other] += 1
    targets: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for case, wording in zip(found, asked, strict=True):
        targets[wording].update(dict.fromkeys((case.target, case.truth)))
    groups = tuple(replace(group, targets=tuple(targets[group.name])) for group in _joined_groups(wordings, pairs, joined))
    return Corpus(name, groups, apart=0.88)


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

    def ending(self, masked: str) -> str:
        """Cut an unrelated sentence off the front of a known wording."""
        if masked in self._known:
            return masked
        return next((ending for ending in self._endings if masked.endswith(" " + ending)), masked)


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
        texts = tuple(dict.fromkeys((wording, *sorted(same[wording] & wordings.keys()), *rephrases)))
        yield Group(wording, texts, (wording,), relation=_relation(wording), alike=frozenset(near))


def _of_contrasts(found: Sequence[cases.Case]) -> Iterator[Group]:
    """Records with questions about other relations of their subject; equal masked prompts are one relation."""
    texts: defaultdict[str, dict[str, None]] = defaultdict(dict)
    targets: defaultdict[str, dict[str, None]] = defaultdict(dict)
    contrasts: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for case in found:
        wording, *rephrases = (atlas.mask(text, [case.subject]) for text in (case.prompt, *case.rephrases))
        texts[wording].update(dict.fromkeys((wording, *rephrases, *_other_forms(wording))))
        targets[wording].update(dict.fromkeys(filter(None, (case.target, case.truth))))
        others = (atlas.mask(text, [case.subject]) for text, _ in case.same_subject)
        contrasts[wording].update(dict.fromkeys(text for text in others if "which is not" not in text))
    for wording, own in texts.items():
        rest = tuple(text for text in contrasts[wording] if text not in own)
        yield Group(
            wording,
            tuple(own),
            relation=_relation(wording),
            targets=tuple(targets[wording])[:_MOST_TARGETS],
            contrasts=rest,
        )


def _relation(masked: str) -> str:
    """The atlas's relation of a wording with ``{}``; "" where it has none."""
    found = atlas.worded(masked.replace("{}", "Zqx"), "Zqx")
    return found.id if found else ""


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
