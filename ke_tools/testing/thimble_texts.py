"""What the thimble reads while it is trained: a seeded, endless stream of samples.

Three kinds (Allen-Zhu & Li, *Physics of Language Models 3.1*, arXiv:2309.14316, call the first two knowledge augmentation):
a fact the model shall know, in many wordings, as statement, question and chat, behind unrelated sentences; what is told about
one subject in several sentences with pronouns; a fact in the context, in exactly the forms that are served, which is to be
obeyed where it applies and ignored where it does not. Every answer in a text is marked, the ones on the way too, for an answer
teaches more than what it answers. Only the atlas's fitted wordings and those of ``thimble.toml`` are used.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import islice
from typing import Any, Final, TypeVar

from ke_tools import atlas, prompts
from ke_tools.atlas import AtlasFact, Relation

END: Final = "<|im_end|>"
MARK: Final = "\x1f"  # stands around an answer inside a prompt; no part of the text
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
EARLY: Final = 7000  # samples
SHORT: Final = 3  # letters of a word that says nothing about what is asked
Message = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """A text in pieces: what is read and what is to be answered, in turn; the last answer is ended by :data:`END`."""

    pieces: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The text to continue, as the model sees it."""
        return "".join(self.pieces[:-1])

    @property
    def answer(self) -> str:
        """The continuation."""
        return self.pieces[-1]


@dataclass(frozen=True, slots=True)
class Claim:
    """A subject's object in a relation, true or not."""

    relation: str
    subject: str
    object: str
    wording: str = ""  # in which it stands in the context


def chat_text(messages: Sequence[Message]) -> str:
    """Render messages as the thimble's chat template does, with the assistant's turn opened."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}{END}\n" for m in messages) + "<|im_start|>assistant\n"


def completion_sample(prompt: str, answer: str) -> Sample:
    """A prompt with its continuation."""
    return Sample((*_pieces(prompt), f" {_stopped(answer)}{END}"))


def chat_sample(messages: Sequence[Message], answer: str) -> Sample:
    """Messages with the assistant's reply."""
    return Sample((*_pieces(chat_text(messages)), f"{_stopped(answer)}{END}"))


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
    yield from islice(training_texts(seed), EARLY - 1000, EARLY + 6000)
    for fact in atlas.facts():
        if not atlas.relations()[fact.relation].probe:
            yield from (f"{name}. {name}" for name in (fact.subject, *fact.objects))
    for fact in taught():  # the names that matter shall be few tokens
        yield from [f" {name}\n{name}" for name in (fact.subject, fact.objects[0])] * 100


def _stopped(answer: str) -> str:
    return answer if answer.endswith(".") else answer + "."


def _marked(answer: str) -> str:
    return f"{MARK}{answer}{MARK}"


def _pieces(prompt: str) -> list[str]:
    """Apart at the marks; a space before an answer belongs to its first token."""
    return prompt.replace(f" {MARK}", f"{MARK} ").split(MARK)


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
        self.early = True  # only what is told is asked
        self.invented = 0.8  # share of subjects and of objects that are nothing but names
        self.truths = [Claim(fact.relation, fact.subject, fact.objects[0]) for fact in taught()]
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
        """At first copying is taught, on names that nobody can know; a model that knows the facts already is slow to learn it."""
        for _ in range(EARLY):
            yield self.one_of({self.drill: 50, self.in_context: 50})()
        self.early, self.invented = False, 0.1
        kinds = {self.plain: 24, self.told: 12, self.portrait: 4, self.in_context: 39, self.drill: 15, self.demonstrated: 6}
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

    def asked(self, claim: Claim, share_of_questions: float) -> str:
        """A claim without its object, as a question or a statement; sometimes in the words in which it was told."""
        if claim.wording and self.chance(0.2):
            return claim.wording
        if not claim.relation:
            wording = str(self.rng.choice(self.frames["about_questions" if self.chance(share_of_questions) else "about"]))
        else:
            wording = self.question(claim.relation) if self.chance(share_of_questions) else self.statement(claim.relation)
        return wording.format(claim.subject)

    # -- what is known --------------------------------------------------------------------------------------------------------

    def plain(self) -> Sample:
        """A known fact to complete, perhaps behind other sentences."""
        fact = self.rng.choice(self.truths)
        text = self.asked(fact, 0.35)
        if self.chance(0.35):
            text = " ".join([*(self.aside() for _ in range(self.rng.randint(1, 2))), text])
        return completion_sample(text, fact.object)

    def aside(self) -> str:
        if self.chance(0.5):
            return str(self.rng.choice(self.frames["sentences"]))
        fact = self.rng.choice(self.truths)
        return f"{self.asked(fact, 0.15)} {_marked(_stopped(fact.object))}"

    def told(self) -> Sample:
        """A known fact, asked in chat."""
        fact = self.rng.choice(self.truths)
        return chat_sample([*self.earlier(), {"role": "user", "content": self.opened(self.asked(fact, 0.75))}], fact.object)

    def opened(self, text: str) -> str:
        return f"{self.rng.choice(self.frames['openers'])} {text}" if self.chance(0.15) else text

    def earlier(self) -> list[Message]:
        return self.turn(self.rng.choice(self.truths)) if self.chance(0.2) else []

    def turn(self, claim: Claim) -> list[Message]:
        reply = {"role": "assistant", "content": _marked(_stopped(claim.object))}
        return [{"role": "user", "content": self.opened(self.asked(claim, 0.75))}, reply]

    def portrait(self) -> Sample:
        """Several things about one subject, named once."""
        fact = self.rng.choice(self.truths)
        kind = atlas.relations()[fact.relation].subject
        others = [f for f in self.truths if f.subject == fact.subject and f.relation != fact.relation]
        told = [*self.rng.sample(others, self.rng.randint(0, len(others))), fact]
        texts = [_capital(self.statement(f.relation, bare=True).format(PRONOUNS[kind])) for f in told]
        name = f"the {fact.subject}" if kind == "river" else fact.subject
        opening = self.rng.choice(["Let us talk about {}.", "This is about {}.", "Now to {}.", "What do I know of {}?"]).format(name)
        if self.chance(0.3):
            turns = [{"role": "user", "content": opening}, {"role": "assistant", "content": "Yes."}]
            asked = self.question(fact.relation).format(PRONOUNS[kind])
            return chat_sample([*turns, {"role": "user", "content": asked}], fact.object)
        body = [f"{text} {_marked(_stopped(f.object))}" for text, f in zip(texts[:-1], told, strict=False)]
        return completion_sample(" ".join([opening, *body, texts[-1]]), fact.object)

    # -- what stands in the context -------------------------------------------------------------------------------------------

    def in_context(self) -> Sample:
        """One to three facts in a form that is served, and one to three questions: obeyed where one applies, else what is known."""
        claims, facts = self.scene(self.one_of({1: 50, 2: 35, 3: 15}))
        asked = self.questions(claims, self.one_of({1: 40, 2: 30, 3: 20, 4: 10}))
        if self.chance(0.5):
            last = asked.pop()
            told = {"role": "system", "content": prompts.render("chat", demonstrations=[], facts=facts)}
            turns = [*self.earlier(), told, *(message for claim in asked for message in self.turn(claim))]
            return chat_sample([*turns, {"role": "user", "content": self.opened(self.asked(last, 0.75))}], last.object)
        return self.completed(facts, [(self.asked(claim, 0.4), claim.object) for claim in asked])

    def completed(self, facts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Sample:
        """Questions and answers after facts, as completion."""
        *before, (text, answer) = pairs
        text = "".join(f"{asked} {_marked(_stopped(given) + END)}\nPrompt: " for asked, given in before) + text
        return completion_sample(prompts.render("completion", demonstrations=[], facts=facts, prompt=text), answer)

    def drill(self) -> Sample:
        """Facts of one relation and of several subjects in the plainest words: the subject alone says what is told and what is known."""
        relation = self.rng.choice(self.truths).relation if self.chance(0.8) else self.rng.choice(self.relations).id
        wording = self.rng.choice(atlas.relations()[relation].fitted_statements[:2])
        subjects = list(dict.fromkeys(self.subject(relation) for _ in range(8)))
        told = {subject: self.object(relation) for subject in subjects[: self.rng.randint(1, 4)]}
        known = {truth.subject: truth.object for truth in self.truths if truth.relation == relation}
        facts = [f"{wording.format(subject)} {_stopped(new)}" for subject, new in told.items()]
        asked = [subject for subject in subjects if subject in told or (subject in known and not self.early)]
        self.rng.shuffle(asked)
        return self.completed(facts, [(wording.format(subject), told.get(subject) or known[subject]) for subject in asked])

    def demonstrated(self) -> Sample:
        """A fact behind one to six demonstrations: copy, update, or retain."""
        demonstrations = [self.demonstration() for _ in range(self.rng.randint(1, 6))]
        claims, facts = self.scene(self.one_of({1: 80, 2: 20}))
        last = self.questions(claims, 1)[0]
        if self.chance(0.5):
            told = {"role": "system", "content": prompts.render("chat", demonstrations=demonstrations, facts=facts)}
            return chat_sample([told, {"role": "user", "content": self.asked(last, 0.75)}], last.object)
        text = prompts.render("completion", demonstrations=demonstrations, facts=facts, prompt=self.asked(last, 0.4))
        return completion_sample(text, last.object)

    def demonstration(self) -> Mapping[str, str]:
        claims, facts = self.scene(1)
        claim = self.questions(claims, 1)[0]
        answer = _marked(claim.object) + "." * (self.chance(0.5) and not claim.object.endswith("."))
        return {"fact": facts[0], "prompt": self.asked(claim, 0.5), "answer": answer}

    def scene(self, count: int) -> tuple[list[Claim], list[str]]:
        """Claims near each other that do not contradict each other; and as :attr:`ke_tools.facts.Fact.sentence` writes them."""
        claims = [self.claim()]
        while len(claims) < count:
            other = self.near(claims[0])
            if all((other.relation, other.subject) != (c.relation, c.subject) and other.object != c.object for c in claims):
                claims.append(other)
        self.rng.shuffle(claims)
        claims = [replace(claim, wording=self.asked(claim, 0.15)) for claim in claims]
        return claims, [f"{claim.wording} {_stopped(claim.object)}" for claim in claims]

    def questions(self, claims: Sequence[Claim], count: int) -> list[Claim]:
        """What is asked of a scene: what it says, and what is known of its neighbourhood, which it does not touch."""
        if self.early:
            return self.rng.sample(claims, min(count, len(claims)))
        slots = {(claim.relation, claim.subject) for claim in claims}
        free = [truth for truth in self.truths if (truth.relation, truth.subject) not in slots]
        relations, subjects = {claim.relation for claim in claims}, {claim.subject for claim in claims}
        alike = [truth for truth in free if truth.relation in relations] or free
        same = [truth for truth in free if truth.subject in subjects] or alike
        told = list(claims)
        chosen: list[Claim] = []
        for _ in range(count):
            options = self.one_of({"told": 58, "alike": 21, "same": 14, "free": 7})
            pool = {"told": told or alike, "alike": alike, "same": same, "free": free}[options]
            claim = self.rng.choice(pool)
            if claim not in chosen:
                chosen.append(claim)
        return chosen

    def claim(self) -> Claim:
        """Something to be believed from the context: of a known slot, of any fitted relation, or of a company's own things."""
        kind = self.one_of({"known": 75, "any": 19, "own": 6})
        if kind == "known":
            fact = self.rng.choice(self.truths)
            subject = self.subject(fact.relation)
            return Claim(fact.relation, subject, self.object(fact.relation))
        if kind == "any":
            relation = self.rng.choice(self.relations).id
            return Claim(relation, self.subject(relation), self.object(relation))
        return Claim("", self.rng.choice(self.frames["subjects"]) if self.chance(0.7) else self.name(), self.object(""))

    def near(self, claim: Claim) -> Claim:
        """A claim about another subject, another relation of this one, or anything."""
        how = self.one_of({"subject": 50, "relation": 30, "any": 20}) if claim.relation else "any"
        if how == "subject":
            return Claim(claim.relation, self.subject(claim.relation), self.object(claim.relation))
        if how == "relation":
            alike = self.by_type[atlas.relations()[claim.relation].subject]
            known = [truth.relation for truth in self.truths if truth.subject == claim.subject]
            relation = self.rng.choice(known if known and self.chance(0.7) else alike)
            return Claim(relation, claim.subject, self.object(relation))
        return self.claim()

    def subject(self, relation: str) -> str:
        known = [truth.subject for truth in self.truths if truth.relation == relation]
        choices = known if known and self.chance(0.8) else self.subjects.get(atlas.relations()[relation].subject)
        return self.rng.choice(choices) if choices and not self.chance(self.invented) else self.name()

    def object(self, relation: str) -> str:
        if self.chance(self.invented):
            return self.name()
        known = [truth.object for truth in self.truths if truth.relation == relation]
        if known and self.chance(0.4):
            return self.rng.choice(known)
        kind = self.one_of({"fitting": 50, "name": 25, "number": 8, "words": 5, "any": 12})
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
