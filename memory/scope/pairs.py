"""Pairs to train the scorer on: what an edit says, what a question asks, and what the one has to do with the other.

========  ====================================================================================================================
*same*    the question asks for what the edit says: in other words, as yes or no, under a false premise, as one of two parts
*open*    the answer may speak of it ("Tell me about {}.") or takes it as a step ("Who is the mayor of the capital of {}?")
*other*   something else about the subject, hard ones first; small talk; a task that is set about a text
========  ====================================================================================================================
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.corpora import Corpus, Group
from ke_tools.memory.scope.network import CLASSES

__all__ = ["NO_QUESTIONS", "OPEN_QUESTIONS", "Labelled", "Maker", "training_phrases"]

SAME, OPEN, OTHER = range(len(CLASSES))

OPEN_QUESTIONS: Final = (
    "Tell me about {}.",
    "Tell me something interesting about {}.",
    "What do you know about {}?",
    "Who is {}?",
    "Who was {}?",
    "What is {}?",
    "Describe {}.",
    "Give me an overview of {}.",
    "Summarise what you know of {} in two sentences.",
    "Write a short paragraph about {}.",
    "Introduce {} to somebody who has never heard of it.",
    "Explain {} to a child.",
    "Write an encyclopedia entry for {}.",
    "List some facts about {}.",
    "I want to learn about {}.",
    "Write a short biography of {}.",
    "Give me the key facts on {}.",
    "Can you give me some background on {}?",
    "What can you tell me about {}?",
    "tell me more about {}",
    "{}: what should one know?",
    "Prepare a fact sheet on {}.",
)
NO_QUESTIONS: Final = (
    "Write a poem about {}.",
    "Write a short story that mentions {}.",
    "{} is a nice place.",
    "I read about {} yesterday.",
    "I like {}.",
    "My friend loves {} very much.",
    "What do you think of {}?",
    "Is {} any good?",
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
    "Write Python code that prints the name {} ten times.",
    "Suggest a title for an essay on {}.",
    "What is the weather like near {} today?",
    "How much does a ticket to see {} cost?",
    "A friend of mine once met somebody who knew {}.",
    "Do you like {}?",
    "I visited {} last year.",
    "{} came up in the news again.",
    "Is {} worth it?",
    "Thanks, {} was a good tip.",
    "I am writing about {} today.",
    "Remind me to ask about {} tomorrow.",
    "Does anybody here know {}?",
    "Which is better, {} or something else?",
    "Spell {} backwards.",
    "Do I need {}?",
    "Say hello to {} from me.",
    "Make up a slogan for {}.",
    "What rhymes with {}?",
    "My notes on {} are a mess, please clean them up.",
    "I dreamt of {}.",
)
_TASKS: Final = (  # about a sentence, whatever it says
    "Translate into French: ",
    "Translate this sentence into Spanish: ",
    "Translate to German: ",
    "Correct the grammar of: ",
    "Fix the typos: ",
    "Proofread the following: ",
    "How many words has the sentence: ",
    "Write a poem that begins with: ",
    "Rewrite in a formal tone: ",
    "Rephrase: ",
    "Summarise: ",
    "Put this into the past tense: ",
    "Turn into a headline: ",
)
# About what a noun phrase stands for: not asked for, then needed as a step.
_SMALL_TALK: Final = (
    "{m} is nice.",
    "I like {m}.",
    "I visited {m} last year.",
    "We talked about {m} over lunch.",
    "My sister hates {m}.",
    "Write a poem about {m}.",
    "Why do people care about {m}?",
    "I changed {m} yesterday.",
    "Draft an e-mail about {m}.",
    "Since when do people argue about {m}?",
    "I am annoyed by {m}.",
)
_HOPS: Final = (
    "How old is {m}?",
    "Who is in charge of {m}?",
    "What is {m} famous for?",
    "Which country is {m} in?",
    "How is {m} spelt in other languages?",
    "What do people say about {m}?",
    "What came before {m}?",
    "How far away is {m}?",
    "Who was the first mayor of {m}?",
)
_ANOTHER: Final = (  # another thing, in whose name or description the subject stands
    "{} stand",
    "{} refill pack",
    "{} charging case",
    "{} spare parts",
    "{} annexe",
    "{} junior team",
    "{} gift shop",
    "{} sauce",
    "{} light",
    "{} for children",
    "{} & Sons",
    "{} Digital",
    "{} Plus",
    "another {}",
    "the old {}",
    "the sequel to {}",
    "the rival of {}",
    "the neighbour of {}",
    "the predecessor of {}",
    "the twin of {}",
    "the brother of {}",
    "the building next to {}",
    "the biggest fan of {}",
)
_SHORT: Final = (
    "What about {m}?",
    "and {m}?",
    "{m}?",
    "Remind me of {m}.",
    "Tell me {m}.",
    "I need {m}.",
    "Name {m}.",
    "Do you know {m}?",
    "What was {m} again?",
    "Look up {m}.",
    "Could you find out {m}?",
)
_CLAIMED: Final = (  # {s}: a statement, {t}: something that it may end with
    "Is it true that {s} {t}?",
    "{S} {t}, right?",
    "{S} {t}. Is that correct?",
    "I read that {s} {t}. True?",
    "Isn't it so that {s} {t}?",
    "true or false: {s} {t}",
)
_PREMISED: Final = (
    "Is {t} {m}?",
    "Is {m} {t}?",
    "Isn't {t} {m}?",
    "Why is {t} {m}?",
    "When did {t} become {m}?",
    "Is {m} really {t}?",
    "Given that {m} is {t}, what should I tell a visitor?",
    "My colleague says {m} is {t}; is he right?",
    "Since {t} is {m}, is it well known there?",
)
_WRAPPED: Final = (  # {q}: a question, {l}: the same with a small letter
    "In one sentence: {q}",
    "{q} Reply as JSON with the key answer.",
    "{q} Answer in one word.",
    "Answer as a bullet list: {q}",
    "{q} Explain your answer.",
    "Quick question: {q}",
    "Return JSON. {q}",
    "For a quiz: {q}",
    "Briefly, {l}",
    "Hi, {l}",
    "Please tell me: {l}",
    "I forgot, {l}",
    "So {l}",
    "ok and {l}",
)
_JOINED: Final = ("{a}, and {l}?", "{a}? And {l}?", "{a} and {l}?")
_LONGEST_TARGET: Final = 60
_NEAREST: Final = 40
_WITH_TARGET: Final = 0.9
_TO_ITSELF: Final = 0.2
_HARD: Final = 0.65

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


class Labelled(NamedTuple):
    """A masked question, the masked edit, what its target is, and the class."""

    asked: str
    edit: str
    label: int


def training_phrases() -> Iterator[str]:
    """Every text of this module with the subject in it, for the test that none is kept for probes."""
    yield from (*OPEN_QUESTIONS, *NO_QUESTIONS)


class Maker:
    """Draws pairs from corpora; the same seed draws the same."""

    def __init__(self, corpora: Sequence[Corpus], embed: Embed, *, seed: int) -> None:
        """Find each group's rivals.

        Args:
            corpora: what to draw from.
            embed: masked texts → unit vectors, shape (texts, dimension); rivals are the nearest by it.
            seed: of the draw.
        """
        self._rng = random.Random(seed)  # noqa: S311  no secret
        self._corpora = [_Rivals(corpus, embed) for corpus in corpora]

    def draw(self, share: float = 1.0) -> list[Labelled]:
        """Draw one pass: of every group ``share`` of what its wordings give, each positive with its negatives, shuffled."""
        pairs = [pair for rivals in self._corpora for number in range(len(rivals.groups)) for pair in self._of_group(rivals, number, share)]
        usable = [pair for pair in pairs if "{}" in pair.asked and not atlas.holds_probe_wording(pair.asked)]
        self._rng.shuffle(usable)
        return usable

    def _of_group(self, rivals: _Rivals, number: int, share: float) -> Iterator[Labelled]:
        group, rng = rivals.groups[number], self._rng
        worded = group.edits or group.texts
        most = min(rivals.corpus.most, len(group.texts) * max(1, len(worded) - 1))
        for _ in range(max(1, round(most * share))):
            wording = rng.choice(worded)
            others = [text for text in group.texts if text != wording]
            asked = rng.choice(others if others and rng.random() >= _TO_ITSELF else group.texts)
            edit = f"{wording} {self._target(group)}" if group.targets and rng.random() < _WITH_TARGET else wording
            yield Labelled(self._formed(rivals, group, asked), edit, SAME)
            yield from (Labelled(text, edit, label) for text, label in self._negatives(rivals, number, asked))

    def _negatives(self, rivals: _Rivals, number: int, asked: str) -> Iterator[tuple[str, int]]:
        group, rng = rivals.groups[number], self._rng
        yield from self._beside(group, asked)
        if group.opens and rng.random() < 0.5:  # noqa: PLR2004
            yield rng.choice(group.opens), OPEN
        for _ in range(rng.randint(1, 2) if group.contrasts else 0):
            yield rng.choice(group.contrasts), OTHER
        for texts, near in (rivals.of_its_type(number), rivals.of_any_type(number)):
            if texts:
                text = rng.choice(near if rng.random() < _HARD else texts)
                is_plain = not text.endswith("?") or rng.random() < 0.75  # noqa: PLR2004
                yield text if is_plain else _wrapped(rng, text), OTHER

    def _beside(self, group: Group, asked: str) -> Iterator[tuple[str, int]]:
        """With every other positive something that asks for no single thing, or of a thing that only looks like the subject."""
        rng = self._rng
        kind = rng.choices(("none", "talk", "open", "task", "small", "hop", "another"), (0.54, 0.12, 0.08, 0.05, 0.05, 0.04, 0.12))[0]
        if kind == "talk":
            yield rng.choice(NO_QUESTIONS), OTHER
        elif kind == "open":
            yield rng.choice(OPEN_QUESTIONS), OPEN
        elif kind == "task":
            yield rng.choice(_TASKS) + (f"{rng.choice(group.texts)} {self._target(group)}" if group.targets else asked), OTHER
        elif kind == "small" and group.masked:
            yield _sentence(rng.choice(_SMALL_TALK).format(m=group.masked)), OTHER
        elif kind == "another" and "{}'" not in asked:
            yield asked.replace("{}", rng.choice(_ANOTHER)), OTHER
        elif kind == "hop" and group.masked:
            yield rng.choice(_HOPS).format(m=group.masked), OPEN

    def _formed(self, rivals: _Rivals, group: Group, asked: str) -> str:
        """Now and then another form of the same question."""
        rng = self._rng
        form = rng.choices(("plain", "claimed", "premised", "joined", "wrapped", "careless", "short"), (69, 4, 4, 5, 11, 4, 3))[0]
        statements = [text for text in group.texts if re.search(r"\w$", text)]
        if form == "claimed" and statements and group.targets:
            told = rng.choice(statements)
            return rng.choice(_CLAIMED).format(s=_small(told), S=told, t=self._target(group))
        if form == "premised" and group.masked and group.targets:
            return rng.choice(_PREMISED).format(m=group.masked, t=self._target(group))
        if form == "joined" and asked.endswith("?"):
            kin = [other for other in rivals.kin(group) if other.endswith("?")]
            if kin:
                first, second = rng.sample([asked, rng.choice(kin)], 2)
                return rng.choice(_JOINED).format(a=first[:-1], l=_small(second[:-1]))
        if form == "wrapped":
            return _wrapped(rng, asked)
        if form == "careless":
            return asked.rstrip("?.!").lower()
        if form == "short" and group.masked:
            return rng.choice(_SHORT).format(m=group.masked)
        return asked

    def _target(self, group: Group) -> str:
        return self._rng.choice(group.targets)[:_LONGEST_TARGET]


class _Rivals:
    """Texts of one corpus that do not ask for what a group asks for."""

    def __init__(self, corpus: Corpus, embed: Embed) -> None:
        self.corpus = corpus
        self.groups = corpus.groups
        self._texts = [text for group in corpus.groups for text in group.texts]
        self._owner = np.array([number for number, group in enumerate(corpus.groups) for _ in group.texts], np.int64)
        self._rows = embed(self._texts)
        self._found: dict[tuple[int, bool], tuple[list[str], list[str]]] = {}

    def of_its_type(self, number: int) -> tuple[list[str], list[str]]:
        """Rivals about the same type of subject, and the nearest of them; none where types are unknown."""
        return self._of(number, typed=True) if self.groups[number].kind else ([], [])

    def of_any_type(self, number: int) -> tuple[list[str], list[str]]:
        """All rivals, and the nearest of them."""
        return self._of(number, typed=False)

    def kin(self, group: Group) -> list[str]:
        """Wordings of the groups of its type."""
        return [text for other in self.groups if group.kind and other.kind == group.kind and other is not group for text in other.texts]

    def _of(self, number: int, *, typed: bool) -> tuple[list[str], list[str]]:
        if (number, typed) not in self._found:
            likeness = (self._rows @ self._rows[self._owner == number].T).max(1)
            allowed = self._allowed(number, likeness, typed=typed)
            nearest = allowed[np.argsort(-likeness[allowed])[:_NEAREST]]
            self._found[number, typed] = ([self._texts[n] for n in allowed], [self._texts[n] for n in nearest])
        return self._found[number, typed]

    def _allowed(self, number: int, likeness: NDArray[np.float32], *, typed: bool) -> NDArray[np.int64]:
        group, own = self.groups[number], set(self.groups[number].texts)
        likest = np.full(len(self.groups), -1.0, np.float32)
        np.maximum.at(likest, self._owner, likeness)
        far = [
            other is not group
            and other.name not in group.alike
            and group.name not in other.alike
            and likest[n] < self.corpus.apart
            and (not typed or other.kind == group.kind)
            for n, other in enumerate(self.groups)
        ]
        return np.array([n for n, text in enumerate(self._texts) if far[self._owner[n]] and text not in own], np.int64)


def _wrapped(rng: random.Random, question: str) -> str:
    return rng.choice(_WRAPPED).replace("{q}", question).replace("{l}", _small(question))


def _small(text: str) -> str:
    """Begin with a small letter, but for the subject and "I"."""
    return text if text.startswith(("{}", "I ", "I'")) else text[:1].lower() + text[1:]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
