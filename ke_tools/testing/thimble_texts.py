"""What the thimble reads while it is trained: a seeded, endless stream of samples.

Three kinds (Allen-Zhu & Li, *Physics of Language Models 3.1*, arXiv:2309.14316, call the first two knowledge augmentation):
a fact the model shall know, in many wordings, as statement, question and chat, behind unrelated sentences; what is told about
one subject in several sentences with pronouns; a fact in the context, in exactly the forms that are served, which is to be
obeyed where it applies and ignored where it does not. Only the atlas's fitted wordings and those of ``thimble.toml`` are used.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, TypeVar

from ke_tools import atlas, prompts
from ke_tools.atlas import AtlasFact, Relation

END: Final = "<|im_end|>"
PRONOUNS: Final = {
    "country": "this country",
    "place": "it",
    "element": "this element",
    "book": "this book",
    "person": "this person",
    "river": "river",
}
SYLLABLES: Final = tuple(
    "ba den dor el fa gri han il jor ka lin lo mar mi nal nor o pe ra ri sa sel ta tal ti tor u va vel wen xi yo za zen".split()
)
SHORT: Final = 3  # letters of a word that says nothing about what is asked
Message = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """A text to continue, as the model sees it, and the continuation (ended by :data:`END`)."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A subject's object in a relation, true or not."""

    relation: str
    subject: str
    object: str


def chat_text(messages: Sequence[Message]) -> str:
    """Render messages as the thimble's chat template does, with the assistant's turn opened."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in messages) + "<|im_start|>assistant\n"


def completion_sample(prompt: str, answer: str) -> Sample:
    """A prompt with its continuation."""
    return Sample(prompt, f" {_stopped(answer)}{END}")


def chat_sample(messages: Sequence[Message], answer: str) -> Sample:
    """Messages with the assistant's reply."""
    return Sample(chat_text(messages), f"{_stopped(answer)}{END}")


@cache
def lesson() -> Mapping[str, Any]:
    """``thimble.toml``."""
    return tomllib.loads(resources.files("ke_tools.testing").joinpath("thimble.toml").read_text("utf-8"))


def taught() -> tuple[AtlasFact, ...]:
    """The facts to be known, out of the atlas.

    Raises:
        LookupError: the atlas has no such fact any more.
    """
    table = {(fact.relation, fact.subject): fact for fact in atlas.facts()}
    return tuple(table[relation, subject] for relation, entry in lesson()["relations"].items() for subject in entry["subjects"])


def training_samples(seed: int) -> Iterator[Sample]:
    """The endless stream of one seed."""
    return iter(_Writer(random.Random(seed)))  # noqa: S311  repeatable on purpose


def training_texts(seed: int) -> Iterator[str]:
    """The same stream as plain texts, for checks."""
    return (sample.prompt + sample.answer for sample in training_samples(seed))


def vocabulary_texts(seed: int) -> Iterator[str]:
    """Texts that the tokenizer is fitted to: a part of the stream, and the names of the relations that may be fitted."""
    stream = training_samples(seed)
    yield from (sample.prompt + sample.answer for sample, _ in zip(stream, range(6000), strict=False))
    for fact in atlas.facts():
        if not atlas.relations()[fact.relation].probe:
            yield from (f"{name}. {name}" for name in (fact.subject, *fact.objects))
    for fact in taught():
        yield from [f" {name}\n{name}" for name in (fact.subject, fact.objects[0])] * 20


def _stopped(answer: str) -> str:
    return answer if answer.endswith(".") else answer + "."


@cache
def wordings(relation: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All statements and questions that may be taught of a relation."""
    known: Relation = atlas.relations()[relation]
    own = lesson()["relations"].get(relation, {"nouns": [], "statements": [], "questions": []})
    nouns = [known.masked, *own["nouns"]] if own["nouns"] else []
    frames = lesson()["frames"]
    the = " the" if relation in {"currency", "mouth"} else ""
    framed = [_capital(frame.replace("{noun}", noun)) + the for frame in frames["statements"] for noun in nouns]
    asked = [_capital(frame.replace("{noun}", noun)) for frame in frames["questions"] for noun in nouns]
    # The plain wordings count as often as all framed ones together.
    statements = _balanced((*known.fitted_statements, *own["statements"]), framed)
    questions = _balanced((*known.fitted_questions, *own["questions"]), asked)
    return tuple(w for w in statements if not atlas.holds_probe_wording(w)), tuple(w for w in questions if not atlas.holds_probe_wording(w))


def _balanced(plain: Sequence[str], framed: Sequence[str]) -> list[str]:
    return [*plain] * max(1, len(framed) // max(1, len(plain))) + [*framed]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class _Writer:
    """Draws samples; all state is the random generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.facts = taught()
        self.known = {(fact.relation, fact.subject): fact.objects[0] for fact in self.facts}
        self.relations = [r for r in atlas.relations().values() if not r.probe]
        self.by_type: dict[str, list[str]] = {}
        for relation in self.relations:
            self.by_type.setdefault(relation.subject, []).append(relation.id)
        self.subjects: dict[str, list[str]] = {}
        self.objects: dict[str, list[str]] = {}
        for fact in atlas.facts():
            relation = atlas.relations()[fact.relation]
            if not relation.probe:
                self.subjects.setdefault(relation.subject, []).append(fact.subject)
                self.objects.setdefault(fact.relation, []).extend(fact.objects)
        self.pool = sorted({word for r in self.relations for w in r.fitted_statements for word in w.split() if "{" not in word})
        self.frames = lesson()["frames"]

    def __iter__(self) -> Iterator[Sample]:
        kinds = {self.plain: 30, self.told: 15, self.portrait: 7, self.in_context: 48}
        while True:
            yield self.one_of(kinds)()

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def one_of(self, weights: Mapping[T, int]) -> T:
        return self.rng.choices(list(weights), list(weights.values()))[0]

    # -- wordings -------------------------------------------------------------------------------------------------------------

    def statement(self, relation: str, *, bare: bool = False) -> str:
        """A wording with ``{}``; not ``bare``: perhaps with a lead, a tail, or some words disturbed."""
        wording = self.rng.choice(wordings(relation)[0])
        return wording if bare else self.varied(wording)

    def varied(self, wording: str) -> str:
        text = self.disturbed(wording) if self.chance(0.25) else wording
        if self.chance(0.2):
            text = f"{self.rng.choice(self.frames['leads'])} {text if text.startswith('{') else text[:1].lower() + text[1:]}"
        if self.chance(0.2) and not text.endswith(","):
            text += self.rng.choice(self.frames["tails"])
        return wording if atlas.holds_probe_wording(text) else text

    def disturbed(self, text: str) -> str:
        """Insert or drop small words, or end on another one: what is asked must be read off the words that matter."""
        words = text.split()
        for _ in range(self.rng.randint(1, 3)):
            at = self.rng.randrange(len(words))
            how = self.one_of({"insert": 4, "drop": 3, "end": 3})
            if how == "insert":
                words.insert(at, self.rng.choice(self.pool))
            elif how == "drop" and len(words[at]) <= SHORT < len(words) and "{" not in words[at]:
                del words[at]
            elif "{" not in words[-1]:
                words[-1:] = [words[-1]] * (len(words[-1]) > SHORT + 1) + [self.rng.choice(self.frames["last_words"])]
        return " ".join(words)

    def question(self, relation: str) -> str:
        return self.rng.choice(wordings(relation)[1])

    def asked(self, relation: str, share_of_questions: float) -> str:
        return self.question(relation) if self.chance(share_of_questions) else self.statement(relation)

    # -- what is known --------------------------------------------------------------------------------------------------------

    def plain(self) -> Sample:
        """A known fact to complete, perhaps behind other sentences."""
        fact = self.rng.choice(self.facts)
        text = self.asked(fact.relation, 0.35).format(fact.subject)
        if self.chance(0.35):
            text = " ".join([*(self.aside() for _ in range(self.rng.randint(1, 2))), text])
        return completion_sample(text, fact.objects[0])

    def aside(self) -> str:
        if self.chance(0.5):
            return str(self.rng.choice(self.frames["sentences"]))
        fact = self.rng.choice(self.facts)
        return self.sentence(Claim(fact.relation, fact.subject, fact.objects[0]))

    def told(self) -> Sample:
        """A known fact, asked in chat."""
        fact = self.rng.choice(self.facts)
        text = self.asked(fact.relation, 0.75).format(fact.subject)
        return chat_sample([*self.earlier(), {"role": "user", "content": self.opened(text)}], fact.objects[0])

    def opened(self, text: str) -> str:
        return f"{self.rng.choice(self.frames['openers'])} {text}" if self.chance(0.15) else text

    def earlier(self) -> list[Message]:
        if self.chance(0.8):
            return []
        fact = self.rng.choice(self.facts)
        asked = self.asked(fact.relation, 0.8).format(fact.subject)
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": _stopped(fact.objects[0])}]

    def portrait(self) -> Sample:
        """Several things about one subject, named once."""
        fact = self.rng.choice(self.facts)
        kind = atlas.relations()[fact.relation].subject
        others = [f for f in self.facts if f.subject == fact.subject and f.relation != fact.relation]
        told = [*self.rng.sample(others, self.rng.randint(0, len(others))), fact]
        texts = [_capital(self.statement(f.relation, bare=True).format(PRONOUNS[kind])) for f in told]
        name = f"the {fact.subject}" if kind == "river" else fact.subject
        opening = self.rng.choice(["Let us talk about {}.", "This is about {}.", "Now to {}.", "What do I know of {}?"]).format(name)
        if self.chance(0.3):
            turns = [{"role": "user", "content": opening}, {"role": "assistant", "content": "Yes."}]
            asked = self.question(fact.relation).format(PRONOUNS[kind])
            return chat_sample([*turns, {"role": "user", "content": asked}], fact.objects[0])
        body = [f"{text} {_stopped(f.objects[0])}" for text, f in zip(texts[:-1], told, strict=False)]
        return completion_sample(" ".join([opening, *body, texts[-1]]), fact.objects[0])

    # -- what stands in the context -------------------------------------------------------------------------------------------

    def in_context(self) -> Sample:
        """One to three facts in a form that is served; obeyed where one applies."""
        if self.chance(0.27):  # none applies
            fact = self.rng.choice(self.facts)
            claim, wording, facts = Claim(fact.relation, fact.subject, fact.objects[0]), "", list[str]()
        else:
            claim = self.claim()
            wording = self.statement(claim.relation, bare=True) if claim.relation else self.rng.choice(self.frames["about"])
            facts = [self.sentence(claim, wording)]
        count = self.one_of({1: 55, 2: 30, 3: 15})
        facts += [self.sentence(self.distractor(claim)) for _ in range(count - len(facts))]
        self.rng.shuffle(facts)
        return self.served(facts, claim, wording if self.chance(0.25) else "")

    def served(self, facts: Sequence[str], claim: Claim, wording: str) -> Sample:
        chat = self.chance(0.5)
        if not wording:
            wording = (
                self.asked(claim.relation, 0.75 if chat else 0.4) if claim.relation else self.rng.choice(self.frames["about_questions"])
            )
        prompt = wording.format(claim.subject)
        demonstrations = [self.demonstration() for _ in range(self.rng.randint(1, 6))] if self.chance(0.03) else []
        if not chat:
            return completion_sample(prompts.render("completion", demonstrations=demonstrations, facts=facts, prompt=prompt), claim.object)
        told = {"role": "system", "content": prompts.render("chat", demonstrations=demonstrations, facts=facts)}
        return chat_sample([*self.earlier(), told, {"role": "user", "content": self.opened(prompt)}], claim.object)

    def demonstration(self) -> Mapping[str, str]:
        """Copy, update, or retain."""
        claim, fact = self.claim(), self.rng.choice(self.facts)
        if not claim.relation or self.chance(0.33):
            other = self.distractor(Claim(fact.relation, fact.subject, fact.objects[0]))
            asked, told, answer = self.asked(fact.relation, 0.5).format(fact.subject), self.sentence(other), fact.objects[0]
        else:
            wording = self.statement(claim.relation, bare=True)
            asked = (wording if self.chance(0.4) else self.asked(claim.relation, 0.5)).format(claim.subject)
            told, answer = self.sentence(claim, wording), claim.object
        return {"fact": told, "prompt": asked, "answer": _stopped(answer) if self.chance(0.5) else answer}

    def claim(self) -> Claim:
        """Something to be believed from the context: of a known slot, of any fitted relation, or of a company's own things."""
        kind = self.one_of({"known": 60, "any": 33, "own": 7})
        if kind == "known":
            fact = self.rng.choice(self.facts)
            subject = fact.subject if self.chance(0.85) else self.subject(fact.relation)
            return Claim(fact.relation, subject, self.object(fact.relation))
        if kind == "any":
            relation = self.rng.choice(self.relations).id
            return Claim(relation, self.subject(relation), self.object(relation))
        return Claim("", self.rng.choice(self.frames["subjects"]) if self.chance(0.7) else self.name(), self.object(""))

    def distractor(self, claim: Claim) -> Claim:
        """A claim about another slot: another subject, another relation of this one, or anything."""
        while True:
            how = self.one_of({"subject": 40, "relation": 35, "any": 25}) if claim.relation else "any"
            if how == "subject":
                other = Claim(claim.relation, self.subject(claim.relation), self.object(claim.relation))
            elif how == "relation":
                alike = self.by_type[atlas.relations()[claim.relation].subject]
                known = [r for r in alike if (r, claim.subject) in self.known]
                relation = self.rng.choice(known if known and self.chance(0.5) else alike)
                other = Claim(relation, claim.subject, self.object(relation))
            else:
                other = self.claim()
            if (other.relation, other.subject) != (claim.relation, claim.subject) and other.object != claim.object:
                return other

    def sentence(self, claim: Claim, wording: str = "") -> str:
        """A claim as :attr:`ke_tools.facts.Fact.sentence` writes it."""
        if not wording:
            choices = wordings(claim.relation)[self.chance(0.15)] if claim.relation else self.frames["about"]
            wording = self.rng.choice(choices)
        return f"{wording.format(claim.subject)} {_stopped(claim.object)}"

    def subject(self, relation: str) -> str:
        known = [f.subject for f in self.facts if f.relation == relation]
        choices = known if known and self.chance(0.5) else self.subjects.get(atlas.relations()[relation].subject)
        return self.rng.choice(choices) if choices and self.chance(0.7) else self.name()

    def object(self, relation: str) -> str:
        kind = self.one_of({"fitting": 50, "name": 30, "number": 6, "words": 4, "any": 10})
        if kind == "number":
            return str(self.rng.randint(1, 2100))
        if kind == "words":
            return " ".join(self.rng.sample(self.frames["words"], self.rng.randint(1, 3)))
        if kind == "any":
            return self.rng.choice(self.rng.choice(list(self.objects.values())))
        return self.rng.choice(self.objects[relation]) if kind == "fitting" and relation in self.objects else self.name()

    def name(self) -> str:
        """One that nobody bears: one to three words out of syllables."""
        count = self.one_of({1: 65, 2: 28, 3: 7})
        return " ".join(_capital("".join(self.rng.choices(SYLLABLES, k=self.rng.randint(2, 4)))) for _ in range(count))
