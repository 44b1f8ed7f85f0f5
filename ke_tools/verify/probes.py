"""The questions that show whether an edit took and whether anything else moved.

Generated wordings come from the atlas's probe wordings alone, which nothing is ever fitted on; each probe says where it is
from. Where the relation is not recognised and the caller gives no wordings, there are no generalisation probes, and the rate is
"not measured".
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from ke_tools import atlas
from ke_tools.atlas import AtlasFact, Relation
from ke_tools.errors import InvalidInput
from ke_tools.facts import LONGEST, Edit, Origin, Probe, squash

__all__ = ["DIMENSIONS", "Suite", "fill", "given", "neighbour_candidates", "probes_for"]

Suite = Literal["quick", "full"]

_THE_SUBJECT: Final = re.compile(r"\b[Tt]he \{\}")
_ENDS_WITH_THE: Final = re.compile(r"\bthe\s+$", re.IGNORECASE)
_DETERMINERS: Final = frozenset({"the", "a", "an", "our", "my", "your", "his", "her", "its", "their", "this", "that"})

DIMENSIONS: Final = ("reliability", "generalisation", "locality_same_subject", "locality_other_subject")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """How many probes an edit gets; the caller's own paraphrases come on top of ``generated``, up to ``given``."""

    generated: int
    given: int
    same_subject: int
    other_subject: int


_SIZES: Final[Mapping[Suite, _Size]] = {
    "quick": _Size(generated=4, given=4, same_subject=3, other_subject=3),
    "full": _Size(generated=7, given=64, same_subject=8, other_subject=8),
}


def probes_for(
    edit: Edit,
    *,
    known: Collection[AtlasFact] | None = None,
    live: Iterable[Edit] = (),
    suite: Suite = "quick",
) -> list[Probe]:
    """All probes of an edit; the same edit always gets the same ones.

    Args:
        edit: what was corrected.
        known: atlas facts that the served model knows; neighbours and same-subject questions are chosen among them as far as they
            go. None: not known which.
        live: the tenant's live edits; what they change is no neighbour.
        suite: how many (quick: about a dozen).
    """
    size = _SIZES[suite]
    others = [other for other in live if other.id != edit.id]
    return [
        *_reliability(edit),
        *_generalisation(edit, size),
        *_same_subject(edit, known, others, size),
        *_other_subject(edit, _neighbours(edit, known, others)[: size.other_subject]),
    ]


def neighbour_candidates(edit: Edit, *, live: Iterable[Edit] = (), most: int = 24) -> list[AtlasFact]:
    """Atlas facts that may become the edit's neighbours or same-subject questions: ask the model which of them it knows."""
    others = [other for other in live if other.id != edit.id]
    names = _names(edit)
    same = [fact for fact in atlas.facts() if squash(fact.subject) in names and fact.relation != edit.relation]
    _shuffle(same, edit, "candidates")
    return same[: most // 3] + _neighbours(edit, None, others)[: most - len(same[: most // 3])]


def given(probe: Mapping[str, Any], edits: Sequence[Edit]) -> Probe:
    """Read a caller's probe: ``{"prompt", "expect": "target" | "unchanged"}``, with ``edit_id`` where it is not clear whose it is.

    A question is asked in chat, anything else is completed.

    Raises:
        InvalidInput: a field is missing or unknown, or nobody can tell which edit's target is expected.
    """
    prompt, expect = probe.get("prompt"), probe.get("expect", "target")
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > LONGEST["prompt"]:
        raise InvalidInput(f"a probe's prompt is {prompt!r:.80}.", f"Give a text of 1 to {LONGEST['prompt']} characters.")
    if expect not in {"target", "unchanged"}:
        raise InvalidInput(f"a probe expects {expect!r}.", "Use 'target' or 'unchanged'.")
    edit, is_named = _meant(prompt, str(probe.get("edit_id") or ""), expect, edits)
    chat = prompt.rstrip().endswith("?")
    if expect == "target":
        return _wanted(edit, "generalisation", prompt, "caller", chat=chat)
    return _unchanged(edit, "locality_same_subject" if is_named else "locality_other_subject", prompt, chat=chat, origin="caller")


def _meant(prompt: str, edit_id: str, expect: str, edits: Sequence[Edit]) -> tuple[Edit, bool]:
    """The edit that a caller's probe is about, and whether the prompt names its subject."""
    named = [edit for edit in edits if atlas.mask(prompt, [edit.fact.subject, *edit.fact.aliases]) != prompt]
    chosen = [edit for edit in edits if edit.id == edit_id] if edit_id else named or (list(edits) if expect == "unchanged" else edits[:2])
    if not chosen or (expect == "target" and len(chosen) > 1):
        raise InvalidInput(f"it is not clear which edit the probe {prompt!r:.80} is about.", "Give its edit_id, one of those verified.")
    return chosen[0], chosen[0] in named


def fill(wording: str, subject: str) -> str:
    """Put a subject into a wording; its own article or owner replaces the wording's "the", and a sentence begins with a capital."""
    if subject.partition(" ")[0].casefold() in _DETERMINERS:
        wording = _THE_SUBJECT.sub("{}", wording)
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


def _reliability(edit: Edit) -> Iterator[Probe]:
    for chat in (False, True):
        yield _wanted(edit, "reliability", edit.fact.prompt, "edit", chat=chat)


def _generalisation(edit: Edit, size: _Size) -> Iterator[Probe]:
    seen = {squash(edit.fact.prompt)}
    for wording in edit.fact.paraphrases[: size.given]:
        if squash(wording) not in seen:
            seen.add(squash(wording))
            yield _wanted(edit, "generalisation", wording, "caller", chat=wording.rstrip().endswith("?"))
    relation = _relation(edit)
    if relation is None:
        return
    subject = _as_written(edit)
    asked = [(wording, False) for wording in relation.probe_statements]
    questions = [(wording, chat) for chat in (True, False) for wording in relation.probe_questions]
    # Statement, chat, statement, plain question, …: whatever the size, every form is among them.
    mixed = [pair for both in zip(asked, _alternating(questions), strict=False) for pair in both]
    rest = [pair for pair in (*asked, *questions) if pair not in mixed]
    fresh = [(fill(wording, subject), chat) for wording, chat in (*mixed, *rest) if squash(fill(wording, subject)) not in seen]
    for prompt, chat in fresh[: size.generated]:
        yield _wanted(edit, "generalisation", prompt, "probe wording", chat=chat)


def _same_subject(edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit], size: _Size) -> Iterator[Probe]:
    names = _names(edit)
    kinds = _kinds(edit)
    taken = {other.relation or squash(other.fact.relation) for other in others if _names(other) & names}
    known_here = {fact.relation for fact in (atlas.facts() if known is None else known) if squash(fact.subject) in names}
    same_slot = squash(edit.fact.prompt)
    found = [
        relation
        for relation in atlas.relations().values()
        if relation.subject in kinds and relation.id not in taken | {edit.relation} and relation.probe_questions
    ]
    _shuffle(found, edit, "same subject")
    found.sort(key=lambda relation: relation.id not in known_here)
    for number, relation in enumerate(found[: size.same_subject]):
        prompt, chat = _one_wording(relation, _as_written(edit), number)
        if squash(prompt) != same_slot:
            yield _unchanged(edit, "locality_same_subject", prompt, chat=chat)


def _other_subject(edit: Edit, facts: Sequence[AtlasFact]) -> Iterator[Probe]:
    for number, fact in enumerate(facts):
        prompt, chat = _one_wording(atlas.relations()[fact.relation], fact.subject, number)
        yield _unchanged(edit, "locality_other_subject", prompt, chat=chat)


def _neighbours(edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit]) -> list[AtlasFact]:
    """Facts about other subjects, what the model knows first: of the same relation where it is recognised, else of any."""
    relation = _relation(edit)
    edited = _names(edit).union(*(_names(other) for other in others))
    found = [
        fact
        for fact in atlas.facts()
        if (relation is None or fact.relation == relation.id)
        and atlas.relations()[fact.relation].probe_questions
        and not _all_names(fact.subject) & edited
    ]
    _shuffle(found, edit, "other subject")
    familiar = frozenset(known or ())
    return [*_spread([fact for fact in found if fact in familiar]), *_spread([fact for fact in found if fact not in familiar])]


def _one_wording(relation: Relation, subject: str, number: int) -> tuple[str, bool]:
    """Chat question, statement, plain question in turn, so that each kind of asking is covered."""
    if number % 3 == 1 and relation.probe_statements:
        return fill(relation.probe_statements[number % len(relation.probe_statements)], subject), False
    return fill(relation.probe_questions[number % len(relation.probe_questions)], subject), number % 3 == 0


def _wanted(edit: Edit, dimension: str, prompt: str, origin: Origin, *, chat: bool) -> Probe:
    accept = _accepted(edit)
    right = {squash(name) for name in accept}
    reject = [name for name in (edit.fact.old_target, *_truth(edit)) if name.strip() and squash(name) not in right]
    return Probe(
        edit_id=edit.id,
        dimension=dimension,
        prompt=prompt,
        expect="target",
        origin=origin,
        chat=chat,
        accept=accept,
        reject=tuple(dict.fromkeys(reject)),
    )


def _unchanged(edit: Edit, dimension: str, prompt: str, *, chat: bool, origin: Origin = "probe wording") -> Probe:
    return Probe(
        edit_id=edit.id,
        dimension=dimension,
        prompt=prompt,
        expect="unchanged",
        origin=origin,
        chat=chat,
        reject=_accepted(edit),
    )


def _accepted(edit: Edit) -> tuple[str, ...]:
    return (edit.fact.target, *atlas.aliases(edit.fact.target))


def _truth(edit: Edit) -> tuple[str, ...]:
    """What the atlas says in place of the target; of a relation that takes several objects, nothing is contradicted."""
    relation = _relation(edit)
    if relation is None or not relation.functional:
        return ()
    names = _names(edit)
    said = (fact.objects for fact in atlas.facts() if fact.relation == relation.id and squash(fact.subject) in names)
    return tuple(name for objects in said for name in objects)


def _relation(edit: Edit) -> Relation | None:
    return atlas.relations().get(edit.relation)


def _names(edit: Edit) -> frozenset[str]:
    """The subject and all its names, folded."""
    return frozenset(squash(name) for name in (edit.fact.subject, *edit.fact.aliases, *atlas.aliases(edit.fact.subject)))


@cache
def _all_names(subject: str) -> frozenset[str]:
    return frozenset(squash(name) for name in (subject, *atlas.aliases(subject)))


def _kinds(edit: Edit) -> frozenset[str]:
    """Types of the subject: the relation's, and those whose tables list one of its names."""
    relation = _relation(edit)
    if relation is not None:
        return frozenset({relation.subject})
    names = _names(edit)
    kinds = {relation.subject for relation in atlas.relations().values()}
    return frozenset(kind for kind in kinds if any(squash(name) in names for name in atlas.entities(kind)))


def _as_written(edit: Edit) -> str:
    """The subject with the article that the edit's prompt gives it ("the Netherlands")."""
    before, found, _ = edit.fact.prompt.partition(edit.fact.subject)
    return f"the {edit.fact.subject}" if found and _ENDS_WITH_THE.search(before) else edit.fact.subject


def _alternating(pairs: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Chat questions and plain ones in turn, each wording first seen in another form."""
    chat = [pair for pair in pairs if pair[1]]
    plain = [pair for pair in pairs if not pair[1]]
    return [pair for both in zip(chat, plain[1:] + plain[:1], strict=True) for pair in both]


def _spread(facts: Sequence[AtlasFact]) -> list[AtlasFact]:
    """One fact of each relation, then the second of each …; the order within a relation is kept."""
    rounds: dict[str, int] = {}
    ranked: list[tuple[int, int, AtlasFact]] = []
    for position, fact in enumerate(facts):
        turn = rounds.get(fact.relation, 0)
        rounds[fact.relation] = turn + 1
        ranked.append((turn, position, fact))
    return [fact for _, _, fact in sorted(ranked, key=lambda item: item[:2])]


def _shuffle(items: list[AtlasFact] | list[Relation], edit: Edit, purpose: str) -> None:
    seed = int.from_bytes(hashlib.sha256(f"{edit.id}\x1f{purpose}".encode()).digest()[:8])
    random.Random(seed).shuffle(items)  # noqa: S311  reproducible choice, no secret
