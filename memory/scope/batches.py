"""Batches to tune the scorer's embedding on: wordings of some relations, and what asks for none of them.

In a batch wordings of one relation shall be near each other and far from everything else, hard cases first: relations of one type of
subject, relations whose wordings are alike, what a data file says of the same subject, small talk, tasks about a text, and things that only
look like the subject. Two relations that may be one under two names are kept apart from neither.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ke_tools import atlas
from ke_tools.memory.scope.corpora import Corpus, Group
from ke_tools.memory.scope.inventory import OPEN, OPEN_QUESTIONS
from ke_tools.memory.scope.scorer import LONGEST_TARGET

__all__ = ["NOBODY", "NO_QUESTIONS", "Batch", "Mixer"]

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
_RELATIONS: Final = 44  # of a batch
_OF_ONE_TYPE: Final = 20  # of these
_WORDINGS: Final = 4  # of a relation
_TALK: Final = 8  # texts that ask for nothing
_BESIDE: Final = 6  # relations beside which something else is put
_ALIKE: Final = 0.72  # cosine from which relations of two sources may be one
_NEAREST: Final = 25
_DAMPING: Final = 0.7  # a source or type n times as large is drawn n ** this times as often: a small one counts too
NOBODY: Final = -1  # owner of what asks for no relation

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(slots=True)
class Batch:
    """Masked texts with the relation that each asks for; ``against`` are negatives of one relation only."""

    texts: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    against: list[int] = field(default_factory=list)  # a relation, or NOBODY: counts as an owner says

    def add(self, text: str, owner: int, against: int = NOBODY) -> None:
        """Append a text, unless only probes may use it."""
        if "{}" in text and not atlas.holds_probe_wording(text):
            self.texts.append(text)
            self.owners.append(owner)
            self.against.append(against)


class Mixer:
    """Draws batches from corpora; the same seed draws the same."""

    def __init__(self, corpora: Sequence[Corpus], embed: Embed, *, seed: int) -> None:
        """Compare the relations.

        Args:
            corpora: what to draw from.
            embed: masked texts → unit vectors, shape (texts, dimension); tells which relations are alike.
            seed: of the draw.
        """
        self._rng = random.Random(seed)  # noqa: S311  no secret
        self.groups: list[Group] = [group for corpus in corpora for group in corpus.groups]
        self.groups.append(Group(OPEN, OPEN_QUESTIONS))
        sources = [corpus for corpus in corpora for _ in corpus.groups]
        self._likeness = _likeness(self.groups, embed)
        self.unsure = _unsure(self.groups, sources, self._likeness)  # (groups, groups): may be one relation
        self._by_type: defaultdict[str, list[int]] = defaultdict(list)
        for number, (group, source) in enumerate(zip(self.groups, sources, strict=False)):
            self._by_type[group.kind or source.name].append(number)
        shares = [len(source.groups) ** (_DAMPING - 1) for source in sources]
        self._reach = list(accumulate([*shares, 0.0]))  # the sum of the shares up to each group; open questions have none

    def begin(self, seed: int) -> None:
        """Draw from here on as a mixer of this seed does."""
        self._rng.seed(seed)

    def draw(self) -> Batch:
        """Draw one batch."""
        rng, batch = self._rng, Batch()
        chosen = self._chosen()
        for number in chosen:
            group = self.groups[number]
            some = rng.sample(group.texts, min(len(group.texts), _WORDINGS))
            for text in some if len(some) > 1 else some * 2:
                batch.add(self._formed(group, text), number)
            if group.contrasts and rng.random() < 0.7:  # noqa: PLR2004
                batch.add(rng.choice(group.contrasts), NOBODY, number)
        for text in rng.sample(NO_QUESTIONS, _TALK):
            batch.add(text, NOBODY)
        for number in rng.sample(chosen, min(_BESIDE, len(chosen))):
            batch.add(self._beside(self.groups[number]), NOBODY)
        for number in rng.sample(chosen, min(_BESIDE, len(chosen))):
            text = rng.choice(self.groups[number].texts)
            if "{}'" not in text and self.groups[number].name != OPEN:
                batch.add(text.replace("{}", rng.choice(_ANOTHER)), NOBODY, number)
        return batch

    def edit(self, number: int) -> tuple[str, str]:
        """Word an edit of a relation: its wording, and that with a target, as an edit mostly has one."""
        rng, group = self._rng, self.groups[number]
        wording = rng.choice(group.edits or group.texts)
        is_told = group.targets and rng.random() < 0.85  # noqa: PLR2004
        return wording, f"{wording} {rng.choice(group.targets)[:LONGEST_TARGET]}" if is_told else wording

    def _chosen(self) -> list[int]:
        """Relations of one type of subject, then others, every second of them like one that is there."""
        rng = self._rng
        kinds = list(self._by_type)
        kind = rng.choices(kinds, [len(self._by_type[kind]) ** _DAMPING for kind in kinds])[0]
        chosen = rng.sample(self._by_type[kind], min(_OF_ONE_TYPE, len(self._by_type[kind])))
        if rng.random() < 0.5:  # noqa: PLR2004
            chosen.append(len(self.groups) - 1)
        while len(chosen) < min(_RELATIONS, len(self.groups)):
            number = rng.choices(range(len(self.groups)), cum_weights=self._reach)[0]
            if rng.random() < 0.5:  # noqa: PLR2004
                like = rng.choice(chosen)
                number = int(rng.choice(np.argsort(-self._likeness[like] * ~self.unsure[like])[:_NEAREST].tolist()))
            if number not in chosen:
                chosen.append(number)
        return chosen

    def _formed(self, group: Group, text: str) -> str:
        """A wording as it is, as an edit has it (with a target), or asked in another form."""
        rng = self._rng
        if group.name == OPEN:
            return text
        form = rng.choices(
            ("plain", "told", "wrapped", "careless", "short", "premised", "claimed"), (0.48, 0.28, 0.08, 0.04, 0.05, 0.035, 0.035)
        )[0]
        target = rng.choice(group.targets)[:LONGEST_TARGET] if group.targets else ""
        if form == "told" and target:
            return f"{text} {target}"
        if form == "wrapped":
            return rng.choice(_WRAPPED).replace("{q}", text).replace("{l}", _small(text))
        if form == "careless":
            return text.rstrip("?.!").lower()
        if form == "short" and group.masked:
            return rng.choice(_SHORT).format(m=group.masked)
        if form == "premised" and group.masked and target:
            return rng.choice(_PREMISED).format(m=group.masked, t=target)
        if form == "claimed" and target:
            return self._claimed(group, target) or text
        return text

    def _claimed(self, group: Group, target: str) -> str:
        statements = [text for text in group.texts if re.search(r"\w$", text)]
        if not statements:
            return ""
        told = self._rng.choice(statements)
        noun = re.fullmatch(r"The (.*) is", told)
        if noun and self._rng.random() < 0.5:  # noqa: PLR2004
            return self._rng.choice((f"Is {target} the {noun[1]}?", f"Is the {noun[1]} {target}?"))
        return self._rng.choice(_CLAIMED).format(s=_small(told), S=told, t=target)

    def _beside(self, group: Group) -> str:
        """Something that has to do with a relation and does not ask for it."""
        if group.masked:
            return _sentence(self._rng.choice(_SMALL_TALK + _HOPS).format(m=group.masked))
        return self._rng.choice(_TASKS) + self._rng.choice(group.texts)


def _likeness(groups: Sequence[Group], embed: Embed) -> NDArray[np.float32]:
    """The highest cosine between wordings of each two groups, shape (groups, groups)."""
    rows = embed([text for group in groups for text in group.texts])
    starts = np.cumsum([0, *(len(group.texts) for group in groups)])
    found = np.zeros((len(groups), len(groups)), np.float32)
    for number in range(len(groups)):
        near = (rows @ rows[starts[number] : starts[number + 1]].T).max(1)
        found[number] = np.maximum.reduceat(near, starts[:-1])
    return found


def _unsure(groups: Sequence[Group], sources: Sequence[Corpus], likeness: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which groups may be one relation under two names: of two sources if alike, of one source if as alike as it says."""
    names = [source.name for source in sources]
    found = np.zeros(likeness.shape, np.bool_)
    for number, source in enumerate(sources):
        is_same = np.array([*(name == source.name for name in names), False])
        found[number] = np.where(is_same, likeness[number] >= source.apart, likeness[number] >= _ALIKE)
        alike = [n for n, group in enumerate(groups[:-1]) if names[n] == source.name and group.name in groups[number].alike]
        found[number, alike] = True
    found[:, -1] = found[-1, :] = False
    found |= found.T
    np.fill_diagonal(found, val=False)
    return found


def _small(text: str) -> str:
    """Begin with a small letter, but for the subject and "I"."""
    return text if text.startswith(("{}", "I ", "I'")) else text[:1].lower() + text[1:]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
