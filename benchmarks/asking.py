"""What does the scope read in requests as people and programs write them: retrieval prompts, tasks about texts, chats?

    python benchmarks/asking.py --data counterfact/val.json --sentences me_ppl_1k.json [--each N] [--decide] [--show]

The templates of ``house/requests.toml`` are filled with facts of the data file (those worded "The … of SUBJECT is"). Printed is for
each kind and half the share of requests with a view of the subject, and of those of retrieval the share whose view is the bare question;
with ``--decide`` the share that the whole scope lets in (zone *in*, and *grey*). ``--show`` prints each template that is not as expected.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ke_tools import cases
from ke_tools.facts import Fact
from ke_tools.memory.names import names_of
from ke_tools.memory.scope import Reading, Scope
from ke_tools.memory.scope.asking import views
from ke_tools.memory.subjects import SubjectIndex
from ke_tools.testing import memory_ledger

TEMPLATES = Path(__file__).parent / "house" / "requests.toml"
WANTED = {"retrieval: asked": True, "retrieval: elsewhere": False, "task": False, "chat": True, "lookalike": True}
_PLACE = re.compile(r"\{([a-z]+\d?|lower_statement|other_question)\}")
_WORDED = re.compile(r"The (?P<part>[a-z][a-z ]+) of \{\} (?P<verb>is|was)")
_PARAGRAPHS = ("p1", "p2", "p3", "p4")


@dataclass(frozen=True)
class Known:
    """A fact of the data file in words that can be asked."""

    case: cases.Case
    part: str
    verb: str

    @property
    def question(self) -> str:
        """What asks for it."""
        return f"What {self.verb} the {self.part} of {self.case.subject}?"

    @property
    def bare(self) -> str:
        """The old fact."""
        return f"{self.case.prompt} {self.case.truth}"


class Request(NamedTuple):
    """A filled template; ``number`` tells which."""

    kind: str
    held_out: bool
    number: int
    text: str
    fact: Known


def known_of(found: Sequence[cases.Case]) -> list[Known]:
    """Those facts that are worded as "The … of SUBJECT is"."""
    masked = ((case, _WORDED.fullmatch(case.prompt.replace(case.subject, "{}"))) for case in found)
    return [Known(case, worded["part"], worded["verb"]) for case, worded in masked if worded and case.truth]


class Filler:
    """Fills templates; the same seed fills them the same."""

    def __init__(self, found: Sequence[cases.Case], sentences: Sequence[str]) -> None:
        """Take facts and sentences of other texts."""
        self.rng = random.Random(7)  # noqa: S311  no secret
        self.known = known_of(found)
        self.statements = [f"{case.prompt} {case.truth}." for case in found if case.truth]
        self.sentences = sentences

    def requests(self, groups: Sequence[Mapping[str, object]], each: int) -> Iterator[Request]:
        """Fill every template ``each`` times, a retrieval layout with both questions."""
        for group in groups:
            kind, texts = str(group["kind"]), group["texts"]
            assert isinstance(texts, list)
            for number, text in enumerate(texts):
                for _ in range(each):
                    fact, other = self._two()
                    values = self._values(fact, other)
                    for asked, question in _questions(kind, fact, other):
                        filled = _fill(text.removeprefix("\n"), values | {"question": question})
                        yield Request(asked, bool(group["held_out"]), number, filled, fact)

    def _two(self) -> tuple[Known, Known]:
        while True:
            fact, other = self.rng.sample(self.known, 2)
            if other.case.subject not in fact.case.subject and fact.case.subject not in other.case.subject:
                return fact, other

    def _values(self, fact: Known, other: Known) -> dict[str, str]:
        sentences = [sentence for sentence in self.rng.sample(self.sentences, 12) if fact.case.subject not in sentence]
        paragraphs = dict(zip(_PARAGRAPHS, (self._paragraph(fact) for _ in _PARAGRAPHS), strict=True))
        holder = self.rng.choice(_PARAGRAPHS[:2])
        paragraphs[holder] = self._paragraph(fact, f"{fact.bare}.")
        return paragraphs | {
            "subject": fact.case.subject,
            "part": fact.part,
            "lower": fact.question.lower().rstrip("?"),
            "prompt": fact.case.prompt,
            "statement": f"{fact.bare}.",
            "lower_statement": fact.bare.lower(),
            "bare": fact.bare,
            "old": fact.case.truth,
            "new": fact.case.target,
            "other": other.case.subject,
            "other_question": other.question,
            "s1": f"{sentences[0]}.",
            "s2": f"{sentences[1]}.",
        }

    def _paragraph(self, fact: Known, holds: str = "") -> str:
        """Sentences and statements of others, half to two kB, with one about the fact's subject anywhere in it."""
        size = self.rng.randint(500, 2000)
        parts: list[str] = []
        while sum(map(len, parts)) < size:
            part = self.rng.choice(self.statements) if self.rng.random() < 0.5 else f"{self.rng.choice(self.sentences)}."  # noqa: PLR2004
            if fact.case.subject not in part:
                parts.append(part)
        if holds:
            parts.insert(self.rng.randint(0, len(parts)), holds)
        return " ".join(parts)


def _questions(kind: str, fact: Known, other: Known) -> list[tuple[str, str]]:
    if kind != "retrieval":
        return [(kind, fact.question)]
    return [("retrieval: asked", fact.question), ("retrieval: elsewhere", other.question)]


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), template)


def views_of(request: Request) -> tuple[str, ...]:
    """The views of the subject in a request."""
    index = SubjectIndex()
    index.add(names_of(request.fact.case.subject, ()), "it")
    spans = [(mention.start, mention.end) for mention in index.find(request.text)]
    return views(request.text, spans) if spans else ()


def decide(requests: Sequence[Request]) -> Iterator[str]:
    """The zone of each request, where the fact that it is about is the only edit."""
    with memory_ledger() as ledger:
        scope = Scope(ledger)
        for number, request in enumerate(requests):
            case = request.fact.case
            ledger.edit(f"t{number}", [Fact(subject=case.subject, prompt=case.prompt, target=case.target)], actor="bench")
            yield scope.decide(f"t{number}", Reading(request.text)).zone


def report(requests: Sequence[Request], *, show: bool) -> None:
    """Print the share with a view by kind and half."""
    found: defaultdict[tuple[str, bool], list[tuple[bool, bool]]] = defaultdict(list)
    for request in requests:
        seen = views_of(request)
        is_bare = request.fact.question.replace(request.fact.case.subject, "{}") in seen
        found[request.kind, request.held_out].append((bool(seen), is_bare))
        if show and bool(seen) is not WANTED[request.kind]:
            shown = request.text if len(request.text) < 400 else f"{request.text[:200]} … {request.text[-200:]}"  # noqa: PLR2004
            print(f"-- {request.kind} {request.number}: {shown!r} → {seen}")
    for (kind, held_out), rows in sorted(found.items()):
        share, bare = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        exact = f"  bare question {bare:.3f}" if kind == "retrieval: asked" else ""
        print(f"{kind:21} {'held out' if held_out else 'fitted':9} view {share:.3f}{exact}  n {len(rows)}")


def main() -> None:
    """Fill, look, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, required=True, help="a JSON list of records with a Text")
    parser.add_argument("--each", type=int, default=8, help="facts a template")
    parser.add_argument("--decide", action="store_true")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    sentences = [row["Text"].strip().rstrip(".") for row in json.loads(given.sentences.read_text("utf-8"))]
    filler = Filler(cases.load(given.data), sentences)
    requests = list(filler.requests(tomllib.loads(TEMPLATES.read_text("utf-8"))["group"], given.each))
    report(requests, show=given.show)
    if given.decide:
        zones: defaultdict[tuple[str, bool], list[str]] = defaultdict(list)
        for request, zone in zip(requests, decide(requests), strict=True):
            zones[request.kind, request.held_out].append(zone)
        for (kind, held_out), found in sorted(zones.items()):
            shares = (f"{zone} {found.count(zone) / len(found):.3f}" for zone in ("in", "grey"))
            print(f"{kind:21} {'held out' if held_out else 'fitted':9}", *shares)


if __name__ == "__main__":
    main()
