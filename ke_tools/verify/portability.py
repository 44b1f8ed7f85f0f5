"""Portability: what follows from an edit without being said in it, where the atlas knows enough to ask.

*Alias*: the subject under another name. *Reversed*: the inverse relation, asked of the target. *One hop*: another fact about the target,
asked about "the capital of …" in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.facts import Edit, Probe, squash
from ke_tools.verify.about import accepted, all_names, as_written, names_of, relation_of, shuffled
from ke_tools.verify.asking import fill, forms, wanted

__all__ = ["alias", "hop", "hop_facts", "reversed_"]

_PLACES: Final = frozenset({"city", "country", "island"})


def alias(edit: Edit) -> Iterator[Probe]:
    """Every wording with every other name of the subject that the atlas or the edit gives."""
    relation = relation_of(edit)
    same = squash(edit.fact.subject).removeprefix("the ")
    names = [name for name in (*edit.fact.aliases, *atlas.aliases(edit.fact.subject)) if squash(name).removeprefix("the ") != same]
    found = [asked for name in dict.fromkeys(names) for asked in (forms(relation, name) if relation else ())]
    for asked in shuffled(found, edit, "alias"):
        yield wanted(edit, "portability_alias", asked)


def reversed_(edit: Edit) -> Iterator[Probe]:
    """Every wording of the inverse relation; the answer is the subject."""
    relation = relation_of(edit)
    inverse = atlas.relations().get(relation.inverse) if relation else None
    if inverse is None:
        return
    accept = (edit.fact.subject, *edit.fact.aliases, *atlas.aliases(edit.fact.subject))
    for asked in forms(inverse, edit.fact.target):
        yield wanted(edit, "portability_reversed", asked, accept=accept)


def hop_facts(edit: Edit) -> list[AtlasFact]:
    """The atlas's facts about the target, without those whose answer the question would name; ask the model which of them it knows."""
    relation = relation_of(edit)
    if relation is None or not relation.masked.startswith("the "):
        return []
    targets = all_names(edit.fact.target)
    kinds = {relation.object, "place"} if relation.object in _PLACES else {relation.object}
    return [
        fact
        for fact in atlas.facts()
        if squash(fact.subject) in targets
        and atlas.relations()[fact.relation].subject in kinds
        and fact.relation not in {relation.inverse, relation.id}
        and not any(squash(name) in names_of(edit) for name in fact.objects)
    ]


def hop(edit: Edit, known: Collection[AtlasFact] | None) -> Iterator[Probe]:
    """Every wording of the facts about the target that the model knows, with a description in the target's place."""
    relation = relation_of(edit)
    facts = [fact for fact in hop_facts(edit) if known is None or fact in known]
    if relation is None or not facts:
        return
    place = fill(relation.masked, as_written(edit))
    place = place[:1].lower() + place[1:]
    found = [(fact, asked) for fact in facts for asked in forms(atlas.relations()[fact.relation], place)]
    for fact, asked in shuffled(found, edit, "hop"):
        yield wanted(edit, "portability_hop", asked, accept=accepted(fact))
