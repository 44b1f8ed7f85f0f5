"""What the surveys of knowledge editing ask about an edit, and how the answers are scored.

*Reliability*: the edit's own prompt. *Generalisation*: its rewordings. *Locality*: a neighbour (another subject, same relation), another
relation of the same subject, something unrelated, a neighbour behind the edit's own statement (distracted). *Portability*: the subject
under another name (aliased), the fact turned round (reversed), what follows from it (reasoning). *Fluency*: text behind the subject.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ke_tools.benches._sample import hops, names_any
from ke_tools.benches._scoring import Forced
from ke_tools.benches._speakers import ANSWER_TOKENS, Speaker
from ke_tools.cases import Answered, Case
from ke_tools.facts import squash
from ke_tools.verify.fluency import entropy
from ke_tools.verify.matching import bytes_kept, mentions, starts_with, words
from ke_tools.verify.rates import rate

__all__ = ["FLUENT_TOKENS", "LOCAL", "Question", "Quiz", "Said", "ask", "quiz", "scores"]

TOLD: Final = ("reliability", "generalisation")  # must start with the target
LOCAL: Final = ("neighbour", "same subject", "unrelated", "distracted")  # must stay
CARRIED: Final = ("aliased", "reversed", "reasoning")  # must contain what follows
LETTERS: Final = {"reliability": "ES", "generalisation": "PS", "neighbour": "NS"}  # the ROME paper's, of a preference
FLUENT_TOKENS: Final = 60
MOST: Final = 3  # questions of a kind and an edit

Tell = Callable[[str, int, int], None]
Fits = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, what may be said to it, and the object that must be less likely than the first of these."""

    case: str
    prompt: str
    wanted: tuple[str, ...] = ()
    rival: str = ""


@dataclass(frozen=True, slots=True)
class Quiz:
    """All questions about some edits, by kind; only kinds that the data has."""

    questions: Mapping[str, Sequence[Question]]
    subjects: Sequence[str]
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Said:
    """A speaker's answers, by kind; of questions that have no target, or whose speaker cannot be read, nothing is forced."""

    texts: Mapping[str, Sequence[str]]
    stories: Sequence[str] = ()
    own: Mapping[str, Mapping[int, Forced]] = field(default_factory=dict)  # question → what is made of the first of what is wanted
    rival: Mapping[str, Mapping[int, Forced]] = field(default_factory=dict)


def quiz(chosen: Sequence[Case]) -> Quiz:
    """Collect the questions; left out is a rewording that does not name its subject, and a neighbour that names an edited one."""
    left_out: Counter[str] = Counter()
    made: dict[str, list[Question]] = {kind: [] for kind in (*TOLD, *LOCAL, *CARRIED)}
    for case in chosen:
        made["reliability"].append(Question(case.id, case.prompt, (case.target,), case.truth))
        for text in case.rephrases[:MOST]:
            if f" {squash(case.subject)} " in f" {squash(text)} ":
                made["generalisation"].append(Question(case.id, text, (case.target,), case.truth))
            else:
                left_out["rewording without subject"] += 1
        neighbours = [row for row in case.neighbours[:MOST] if not names_any(row[0], chosen)]
        left_out["neighbour names an edited subject"] += len(case.neighbours[:MOST]) - len(neighbours)
        made["neighbour"] += [Question(case.id, text, right or _only(case.truth), case.target) for text, right in neighbours]
        made["distracted"] += [Question(case.id, f"{case.fact().sentence} {text}", right) for text, right in neighbours[:1]]
        made["same subject"] += _questions(case, case.same_subject)
        made["unrelated"] += _questions(case, case.unrelated)
        made["aliased"] += [Question(case.id, text, (case.target, *right)) for text, right in case.aliased[:MOST]]
        made["reversed"] += [one for one in _questions(case, case.reversed) if one.wanted]
        made["reasoning"] += [one for one in _questions(case, hops(case)) if one.wanted]
    return Quiz({kind: rows for kind, rows in made.items() if rows}, [case.subject for case in chosen], dict(left_out))


def _questions(case: Case, asked: Sequence[Answered]) -> list[Question]:
    return [Question(case.id, text, right) for text, right in asked[:MOST]]


def _only(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def ask(speaker: Speaker, asked: Quiz, fits: Fits, tell: Tell) -> Said:
    """Ask everything.

    Args:
        speaker: who answers.
        asked: what.
        fits: whether a target can stand behind a prompt as tokens of its own; where not, nothing is forced.
        tell: hears (stage, done, total).
    """
    total, done = 2 * sum(map(len, asked.questions.values())) + len(asked.subjects), 0
    texts: dict[str, Sequence[str]] = {}
    own: dict[str, dict[int, Forced]] = {}
    rival: dict[str, dict[int, Forced]] = {}
    for kind, rows in asked.questions.items():
        texts[kind] = speaker.say([row.prompt for row in rows], ANSWER_TOKENS)
        tell("free generation", done := done + len(rows), total)
        own[kind] = _forced(speaker, rows, [row.wanted[0] if row.wanted else "" for row in rows], fits)
        rival[kind] = _forced(speaker, rows, [row.rival for row in rows], fits)
        tell("teacher forcing", done := done + len(rows), total)
    stories = speaker.say(asked.subjects, FLUENT_TOKENS)
    tell("fluency", total, total)
    return Said(texts, stories, own, rival)


def _forced(speaker: Speaker, rows: Sequence[Question], targets: Sequence[str], fits: Fits) -> dict[int, Forced]:
    which = [n for n, target in enumerate(targets) if target and fits(rows[n].prompt, target)]
    found = speaker.forced([(rows[n].prompt, targets[n]) for n in which]) if which else []
    return dict(zip(which, found, strict=True)) if found is not None else {}


def scores(asked: Quiz, base: Said, said: Said) -> dict[str, dict[str, Any]]:
    """Every measure with its standard error, clustered by edit, in the two groups; what the data cannot measure says so.

    *Free generation*: the answer starts with the target; what must stay begins with the base model's first word, and is its whole text;
    what follows from the edit is in the answer. *As published*: the mean log-likelihood of what is wanted is above its rival's (ES, PS,
    NS); the share of the target's tokens that the model would have chosen, and, of what must stay, that it chooses as the base does.
    """
    free: dict[str, Any] = {}
    published: dict[str, Any] = {}
    for kind, rows in asked.questions.items():
        clusters = [row.case for row in rows]
        free |= {name: rate(right, clusters).as_dict() for name, right in _free(kind, rows, base, said).items()}
        own, rival = said.own[kind], said.rival[kind]
        if kind in LETTERS:
            both = [n for n in own if n in rival]
            right = [own[n].likelihood > rival[n].likelihood for n in both]
            published[LETTERS[kind]] = rate(right, [clusters[n] for n in both]).as_dict()
        shares = [one.unchanged(base.own[kind][n]) if kind in LOCAL else one.matched for n, one in own.items()]
        published[f"{kind}, tokens"] = rate(shares, [clusters[n] for n in own]).as_dict()
    free["fluency"] = _mean([entropy(story) for story in said.stories])
    order = [*LETTERS.values(), *(name for name in published if name not in LETTERS.values())]
    return {"free generation": free, "as published": {name: published[name] for name in order if name in published}}


def _free(kind: str, rows: Sequence[Question], base: Said, said: Said) -> dict[str, list[bool]]:
    texts = said.texts[kind]
    if kind in TOLD:
        return {kind: [starts_with(text, row.wanted[0]) for text, row in zip(texts, rows, strict=True)]}
    if kind in CARRIED:
        return {kind: [mentions(text, row.wanted) for text, row in zip(texts, rows, strict=True)]}
    pairs = list(zip(base.texts[kind], texts, strict=True))
    return {
        f"{kind}, first word": [words(before)[:1] == words(text)[:1] for before, text in pairs],
        f"{kind}, whole text": [bytes_kept(before, text) for before, text in pairs],
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean in the shape of a rate."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"measured": True, "value": round(statistics.fmean(values), 4), "stderr": round(spread, 4), "n": len(values)}
