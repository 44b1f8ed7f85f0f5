"""Locality: what must stay as it is. Each probe's answer is compared with the unedited model's, right or wrong.

*Other subject*: neighbours of the same relation. *Same subject*: its other relations. *Forgetfulness*: the other objects of a relation
that takes several, asked for "besides" the target. *Distracting prefix*: the edit's sentence stands before a neighbour's question; the
unedited model reads it too, so that what is measured is the edit and not the text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TypeVar

from ke_tools import atlas
from ke_tools.atlas import AtlasFact, Relation
from ke_tools.facts import Edit, Probe, squash
from ke_tools.verify.about import accepted, all_names, as_written, facts_about, kinds_of, names_of, relation_of, shuffled
from ke_tools.verify.asking import forms, one_wording, unchanged

__all__ = [
    "distracting_prefix",
    "every_other_subject",
    "every_same_subject",
    "forgetfulness",
    "neighbour_candidates",
    "neighbours",
    "other_subject",
    "same_subject",
]

T = TypeVar("T")


def neighbour_candidates(edit: Edit, *, live: Iterable[Edit] = (), most: int = 24) -> list[AtlasFact]:
    """Atlas facts that may become the edit's neighbours or same-subject questions: ask the model which of them it knows."""
    others = [other for other in live if other.id != edit.id]
    same = [fact for fact in facts_about(edit) if fact.relation != edit.relation]
    same = shuffled(same, edit, "candidates")[: most // 3]
    return same + neighbours(edit, None, others)[: most - len(same)]


def neighbours(edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit]) -> list[AtlasFact]:
    """Facts about other subjects, what the model knows first: of the same relation where it is recognised, else of any."""
    relation = relation_of(edit)
    edited = names_of(edit).union(*(names_of(other) for other in others))
    found = [
        fact
        for fact in atlas.facts()
        if (relation is None or fact.relation == relation.id)
        and atlas.relations()[fact.relation].probe_questions
        and not all_names(fact.subject) & edited
    ]
    found = shuffled(found, edit, "other subject")
    familiar = frozenset(known or ())
    return [*_spread([fact for fact in found if fact in familiar]), *_spread([fact for fact in found if fact not in familiar])]


def other_subject(edit: Edit, facts: Sequence[AtlasFact]) -> Iterator[Probe]:
    """One wording of each fact."""
    for number, fact in enumerate(facts):
        asked = one_wording(atlas.relations()[fact.relation], fact.subject, number)
        yield unchanged(edit, "locality_other_subject", asked, right=accepted(fact))


def every_other_subject(edit: Edit, facts: Sequence[AtlasFact]) -> Iterator[Probe]:
    """Every wording of each fact."""
    for fact in facts:
        for asked in forms(atlas.relations()[fact.relation], fact.subject):
            yield unchanged(edit, "locality_other_subject", asked, right=accepted(fact))


def same_subject(edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit], most: int) -> Iterator[Probe]:
    """One wording of each of the subject's other relations, those that the model knows first."""
    familiar, strange = _same_subject_relations(edit, known, others)
    for number, relation in enumerate((*familiar, *strange)[:most]):
        asked = one_wording(relation, as_written(edit), number)
        if squash(asked[0]) != squash(edit.fact.prompt):
            yield unchanged(edit, "locality_same_subject", asked, right=_right(edit, relation))


def every_same_subject(edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit]) -> Iterator[Probe]:
    """Every wording of the subject's other relations that the model knows; else of all.

    Where it is not known what the model knows, of those that the atlas knows; where the model has all of these wrong, none: what it gets
    wrong shows nothing.
    """
    familiar, strange = _same_subject_relations(edit, known, others)
    told = [relation for relation in strange if _right(edit, relation)]
    if told and not familiar and known is not None:
        return
    for relation in familiar or told or strange:
        for asked in forms(relation, as_written(edit)):
            if squash(asked[0]) != squash(edit.fact.prompt):
                yield unchanged(edit, "locality_same_subject", asked, right=_right(edit, relation))


def forgetfulness(edit: Edit) -> Iterator[Probe]:
    """Where the atlas lists more objects of the subject: what else is there "besides" the target?"""
    relation = relation_of(edit)
    if relation is None or relation.functional:
        return
    edited = all_names(edit.fact.target) | all_names(edit.fact.old_target)
    rest = [name for name in _right(edit, relation) if squash(name) not in edited]
    if not rest:
        return
    subject = as_written(edit)
    for text, chat in forms(relation, subject):
        is_name = text.casefold().startswith(subject.casefold()) and not subject.startswith("the ")
        asked = (f"Besides {edit.fact.target}, {text if is_name else text[:1].lower() + text[1:]}", chat)
        yield unchanged(edit, "forgetfulness", asked, right=rest)


def distracting_prefix(edit: Edit, facts: Sequence[AtlasFact]) -> Iterator[Probe]:
    """The edit's sentence, then a neighbour's question."""
    rounds = [[(fact, asked) for asked in forms(atlas.relations()[fact.relation], fact.subject)] for fact in facts]
    for fact, (prompt, chat) in _in_turn(rounds):
        yield unchanged(edit, "distracting_prefix", (f"{edit.fact.sentence} {prompt}", chat), right=accepted(fact))


def _right(edit: Edit, relation: Relation) -> list[str]:
    """What the atlas says of the subject in a relation, under every name."""
    return [name for fact in facts_about(edit) if fact.relation == relation.id for name in accepted(fact)]


def _same_subject_relations(
    edit: Edit, known: Collection[AtlasFact] | None, others: Sequence[Edit]
) -> tuple[list[Relation], list[Relation]]:
    """The subject's other relations: those of which the model knows its object, and the rest."""
    names = names_of(edit)
    kinds = kinds_of(edit)
    taken = {other.relation or squash(other.fact.relation) for other in others if names_of(other) & names}
    known_here = {fact.relation for fact in facts_about(edit) if known is None or fact in known}
    found = [
        relation
        for relation in atlas.relations().values()
        if relation.subject in kinds and relation.id not in taken | {edit.relation} and relation.probe_questions
    ]
    found = shuffled(found, edit, "same subject")
    return [relation for relation in found if relation.id in known_here], [relation for relation in found if relation.id not in known_here]


def _in_turn(rounds: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each, the second of each …; beginning in each at another place, so that every form is among the first."""
    turned = [[*row[n % len(row) :], *row[: n % len(row)]] for n, row in enumerate(rounds) if row]
    for turn in zip_longest(*turned):
        yield from (asked for asked in turn if asked is not None)


def _spread(facts: Sequence[AtlasFact]) -> list[AtlasFact]:
    """One fact of each relation, then the second of each …; the order within a relation is kept."""
    rounds: dict[str, int] = {}
    ranked: list[tuple[int, int, AtlasFact]] = []
    for position, fact in enumerate(facts):
        turn = rounds.get(fact.relation, 0)
        rounds[fact.relation] = turn + 1
        ranked.append((turn, position, fact))
    return [fact for _, _, fact in sorted(ranked, key=lambda item: item[:2])]
