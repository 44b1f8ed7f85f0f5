"""Withheld: what an edit that forgets must not give away, asked in thirty ways.

Its own prompt, the relation's probe wordings, the caller's, small frames, turned round, as yes or no, as the beginning of a text, by
somebody who insists; the last five are drawn at temperature 1. The value itself is not known to an edit that forgets. Where the atlas
knows what is true, it stands in the questions that need one, and dots stand in its place in whatever is kept of them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from itertools import islice
from typing import Final, Protocol

from ke_tools import atlas
from ke_tools.facts import Edit, Origin, Probe, squash
from ke_tools.verify.about import as_written, relation_of, shuffled, truth_of
from ke_tools.verify.asking import Asked, fill, forms
from ke_tools.verify.dimensions import WITHHELD
from ke_tools.verify.matching import mentions
from ke_tools.verify.unrelated import behind, frames

__all__ = ["ASKINGS", "DRAWN", "Keeper", "askings", "gives_away", "shown"]

ASKINGS: Final = 30
DRAWN: Final = 5  # of them at temperature 1
_WORDED, _OWN, _TURNED, _BEGUN, _INSISTING = 8, 2, 3, 3, 5
_HIDDEN: Final = "[\u2026]"
_YES: Final = ("yes", "correct", "true")


class Keeper(Protocol):
    """Who can tell whether a text gives away what an edit forgets."""

    def leaks(self, edit: Edit, probe: Probe, answer: str) -> bool:
        """Whether an answer to a probe gives it away."""

    def hidden(self, edit: Edit, text: str) -> str:
        """A text with dots in place of what is forgotten."""


def askings(edit: Edit) -> list[Probe]:
    """Thirty probes; the same edit always gets the same ones."""
    greedy = list(_once(islice(_greedy(edit), 10 * ASKINGS)))[: ASKINGS - DRAWN]
    drawn = [replace(greedy[n % len(greedy)], seed=n) for n in range(1, DRAWN + 1)]
    return [*greedy, *drawn]


def gives_away(probe: Probe, answer: str, *, says_it: bool) -> bool:
    """Whether an answer gives it away: by saying it, by a yes, or by naming the subject where the question had it and wants the subject."""
    is_turned = bool(probe.reject) and probe.accept != _YES
    return (says_it and not is_turned) or (bool(probe.accept) and mentions(answer, probe.accept))


def shown(probe: Probe) -> Probe:
    """A probe as it may be kept: dots in place of the value."""
    text = probe.prompt
    for value in probe.reject:
        text = text.replace(value, _HIDDEN)
    return replace(probe, prompt=text, accept=(), reject=())


def _greedy(edit: Edit) -> Iterator[Probe]:
    """Some of each kind, then frames until there are enough."""
    for chat in (False, True):
        yield _asked(edit, (edit.fact.prompt, chat), "edit")
    relation = relation_of(edit)
    if relation is not None:
        yield from (_asked(edit, asked) for asked in forms(relation, as_written(edit))[:_WORDED])
    for wording in edit.fact.paraphrases[:_OWN]:
        yield _asked(edit, (wording, wording.rstrip().endswith("?")), "caller")
    yield from islice(_turned(edit), _TURNED)
    yield from _yes_or_no(edit)
    yield from islice(_worded(edit, "begun", edit.fact.subject), _BEGUN)
    yield from islice(_worded(edit, "insisting", edit.fact.prompt), _INSISTING)
    for sentence in islice(behind(edit, "askings"), 2):
        yield _asked(edit, (f"{sentence} {edit.fact.prompt}", False), "data file")
    for number, frame in enumerate(frames()["question" if edit.fact.is_question else "statement"]):
        yield _asked(edit, (frame.replace("{}", edit.fact.prompt), number % 2 == 0), "data file")


def _turned(edit: Edit) -> Iterator[Probe]:
    """By the value, for the subject."""
    relation, values = relation_of(edit), truth_of(edit)[:1]
    if relation is None or not values:
        return
    value, names = values[0], (edit.fact.subject, *edit.fact.aliases, *atlas.aliases(edit.fact.subject))
    before, _, after = relation.masked.partition("{}")
    if not after.strip():
        yield _asked(edit, (f"{value} is {before.strip()}", False), accept=names, value=value)
        yield _asked(edit, (f"{value} is {before.strip()} which {relation.subject}?", True), accept=names, value=value)
    inverse = atlas.relations().get(relation.inverse)
    for asked in forms(inverse, value) if inverse else ():
        yield _asked(edit, asked, accept=names, value=value)


def _yes_or_no(edit: Edit) -> Iterator[Probe]:
    """Is it this? Is it another?"""
    relation, values = relation_of(edit), truth_of(edit)
    if relation is None or not values:
        return
    right = {squash(value) for value in values}
    others = (name for fact in atlas.facts() if fact.relation == relation.id for name in fact.objects if squash(name) not in right)
    place = fill(relation.masked, as_written(edit))
    place = place[:1].lower() + place[1:]
    yield _asked(edit, (f"Is {values[0]} {place}?", True), accept=_YES, value=values[0])
    for other in shuffled(dict.fromkeys(others), edit, "yes or no")[:1]:
        yield _asked(edit, (f"Is {other} {place}?", True))


def _worded(edit: Edit, kind: str, text: str) -> Iterator[Probe]:
    for wording in _texts()[kind]:
        yield _asked(edit, (wording.removeprefix("chat: ").replace("{}", text), wording.startswith("chat: ")), "data file")


def _asked(edit: Edit, asked: Asked, origin: Origin = "probe wording", *, accept: Sequence[str] = (), value: str = "") -> Probe:
    prompt, chat = asked
    return Probe(
        edit_id=edit.id,
        dimension=WITHHELD,
        prompt=prompt,
        expect="refusal",
        origin=origin,
        chat=chat,
        accept=tuple(accept),
        reject=(value,) if value else (),
    )


def _once(probes: Iterator[Probe]) -> Iterator[Probe]:
    seen: set[tuple[str, bool]] = set()
    for probe in probes:
        if (probe.prompt, probe.chat) not in seen:
            seen.add((probe.prompt, probe.chat))
            yield probe


@cache
def _texts() -> Mapping[str, Sequence[str]]:
    found: Mapping[str, Sequence[str]] = tomllib.loads(
        resources.files("ke_tools.verify").joinpath("data", "askings.toml").read_text("utf-8")
    )
    return found
