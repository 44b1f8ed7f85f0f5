"""The questions of a suite: they show whether an edit took and whether anything else moved.

Each probe says where it is from: the edit, the caller, a probe wording of the atlas, one of our data files. What the gate asks, and how
much of it, is :mod:`ke_tools.verify.supply`'s business.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Literal

from ke_tools.atlas import AtlasFact
from ke_tools.facts import Edit, Probe
from ke_tools.verify.asking import fill
from ke_tools.verify.callers import given
from ke_tools.verify.dimensions import DIMENSIONS
from ke_tools.verify.fluency import fluency
from ke_tools.verify.forgotten import askings
from ke_tools.verify.kept import distracting_prefix, forgetfulness, neighbour_candidates, neighbours, other_subject, same_subject
from ke_tools.verify.portability import alias, hop, hop_facts, reversed_
from ke_tools.verify.took import generalisation, reliability
from ke_tools.verify.unrelated import behind, other_tasks

__all__ = ["DIMENSIONS", "Suite", "candidates", "fill", "given", "neighbour_candidates", "probes_for"]

Suite = Literal["quick", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """How many probes an edit gets; the caller's own paraphrases come on top of ``generated``, up to ``given``."""

    generated: int
    given: int
    same_subject: int
    other_subject: int
    further: int  # of each further dimension
    facts: int  # that the model is asked about beforehand, to keep those that it knows


_SIZES: Final[Mapping[Suite, _Size]] = {
    "quick": _Size(generated=4, given=4, same_subject=3, other_subject=3, further=0, facts=10),
    "full": _Size(generated=7, given=64, same_subject=8, other_subject=8, further=4, facts=24),
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
        suite: how many (quick: about a dozen, of four dimensions; full: of all).
    """
    size = _SIZES[suite]
    others = [other for other in live if other.id != edit.id]
    near = neighbours(edit, known, others)
    if edit.fact.forget:
        kept = (*same_subject(edit, known, others, size.same_subject), *other_subject(edit, near[: size.other_subject]))
        return [*askings(edit), *kept]
    return [
        *reliability(edit),
        *generalisation(edit, size.generated, size.given),
        *same_subject(edit, known, others, size.same_subject),
        *other_subject(edit, near[: size.other_subject]),
        *(probe for kind in _further(edit, known, near) for probe in islice(kind, size.further)),
    ]


def candidates(edit: Edit, *, live: Iterable[Edit] = (), suite: Suite = "quick") -> list[AtlasFact]:
    """The facts to ask the model about before :func:`probes_for`."""
    return neighbour_candidates(edit, live=live, most=_SIZES[suite].facts) + (hop_facts(edit) if _SIZES[suite].further else [])


def _further(edit: Edit, known: Collection[AtlasFact] | None, near: Sequence[AtlasFact]) -> Iterator[Iterator[Probe]]:
    yield _behind_a_sentence(edit)
    yield forgetfulness(edit)
    yield distracting_prefix(edit, near[:12])
    yield other_tasks(edit)
    yield alias(edit)
    yield reversed_(edit)
    yield hop(edit, known)
    yield fluency(edit)


def _behind_a_sentence(edit: Edit) -> Iterator[Probe]:
    """Other wordings behind an unrelated sentence, a form of generalisation."""
    for probe, sentence in zip(generalisation(edit, generated=4, given=4), behind(edit, "full"), strict=False):
        yield replace(probe, prompt=f"{sentence} {probe.prompt}", behind=True)
