"""Ever more probes for a batch of edits, as the gate wants them: at least forty a dimension for a single edit, where there are any at all.

Each dimension of an edit has a pool, drawn from at random: every probe wording in every form of every fact that comes into question. When
it is used up it is asked again behind unrelated sentences, so that only what cannot be asked at all runs dry. Edits take turns.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Final

from ke_tools.atlas import AtlasFact
from ke_tools.facts import Edit, Probe
from ke_tools.verify.about import shuffled
from ke_tools.verify.dimensions import EARLIER
from ke_tools.verify.fluency import fluency
from ke_tools.verify.kept import distracting_prefix, every_other_subject, every_same_subject, forgetfulness, neighbours
from ke_tools.verify.portability import alias, hop, reversed_
from ke_tools.verify.scorecard import can_tell
from ke_tools.verify.took import framed, generalisation, reliability
from ke_tools.verify.unrelated import behind, other_tasks

__all__ = ["Supply"]

_ALL: Final = 1_000
_NEIGHBOURS: Final = 48  # that an edit's probes are made of
_ENOUGH: Final = 6  # that the model knows


class Supply:
    """Probes not asked yet. Not thread safe."""

    def __init__(
        self,
        edits: Sequence[Edit],
        *,
        known: Collection[AtlasFact] | None = None,
        live: Iterable[Edit] = (),
        earlier: Sequence[Edit] = (),
        draw: int = 0,
    ) -> None:
        """Prepare; nothing is made before it is wanted.

        Args:
            edits: the batch.
            known: atlas facts that the served model knows; where it knows any of those that come into question, only these are asked.
                None: not known which.
            live: the tenant's live edits; what they change is no neighbour.
            earlier: edits in the weights before, whose reliability is asked about as :data:`~ke_tools.verify.dimensions.EARLIER`.
            draw: another number draws anew. A candidate that earlier probes have chosen must be judged by such a draw.
        """
        self._edits, self._earlier, self._draw = tuple(edits), tuple(earlier), draw
        self._known = None if known is None else frozenset(known)
        self._live = {edit.id: edit for edit in (*live, *edits, *earlier)}
        self._streams: dict[str, Iterator[Probe]] = {}
        self._drawn: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._spare: dict[str, list[Probe]] = defaultdict(list)

    def more(self, wanted: Mapping[str, int]) -> list[Probe]:
        """As many more probes of each dimension as are wanted, or as there are."""
        return [probe for dimension, number in wanted.items() for probe in islice(self._stream(dimension), number)]

    def telling(self, wanted: Mapping[str, int], before: Callable[[list[Probe]], Sequence[str]], most: int) -> list[Probe]:
        """As many more probes of each dimension as are wanted and can show harm.

        Args:
            wanted: how many, by dimension.
            before: what the unedited model answers, which says whether a probe can.
            most: how many of a dimension may be drawn in all to find them.
        """
        while draw := {name: number for name in wanted if (number := self._to_draw(name, wanted[name], most)) > 0}:
            fresh = self.more(draw)
            self._drawn.update(draw)  # of what has run dry too
            telling = [probe for probe, base in zip(fresh, before(fresh), strict=True) if can_tell(probe, base)]
            self._told.update(probe.dimension for probe in telling)
            for probe in telling:
                self._spare[probe.dimension].append(probe)
        return [self._spare[name].pop(0) for name, number in wanted.items() for _ in range(min(number, len(self._spare[name])))]

    def _to_draw(self, dimension: str, wanted: int, most: int) -> int:
        """How many draws should give what is missing, by what they gave so far."""
        missing = max(0, wanted - len(self._spare[dimension]))
        a_draw = (self._told[dimension] + 1) / (self._drawn[dimension] + 1)
        return min(math.ceil(missing / a_draw), most - self._drawn[dimension])

    def _stream(self, dimension: str) -> Iterator[Probe]:
        if dimension not in self._streams:
            self._streams[dimension] = self._made(dimension)
        return self._streams[dimension]

    def _made(self, dimension: str) -> Iterator[Probe]:
        if dimension == EARLIER:
            return (replace(probe, dimension=EARLIER) for probe in self._of_each(self._earlier, "reliability"))
        if dimension == "other_tasks":  # about no edit: each is asked once, and put down to the edits in turn
            asked = self._of_each(self._edits[:1], dimension)
            return (replace(probe, edit_id=edit.id) for probe, edit in zip(asked, cycle(self._edits), strict=False))
        return self._of_each(self._edits, dimension)

    def _of_each(self, edits: Sequence[Edit], dimension: str) -> Iterator[Probe]:
        """One of each edit, then another of each, until all have run dry."""
        left = [_endless(edit, list(self._pool(edit, dimension)), f"{dimension}, draw {self._draw}") for edit in edits]
        while left:
            for stream in tuple(left):
                if (probe := next(stream, None)) is None:
                    left.remove(stream)
                else:
                    yield probe

    def _pool(self, edit: Edit, dimension: str) -> Iterable[Probe]:
        others = [other for other in self._live.values() if other.id != edit.id]
        pools: Mapping[str, Callable[[], Iterable[Probe]]] = {
            "reliability": lambda: (*reliability(edit), *framed(edit)),
            "generalisation": lambda: generalisation(edit, generated=_ALL, given=_ALL),
            "locality_same_subject": lambda: every_same_subject(edit, self._known, others),
            "locality_other_subject": lambda: every_other_subject(edit, self._near(edit, others)),
            "forgetfulness": lambda: forgetfulness(edit),
            "distracting_prefix": lambda: distracting_prefix(edit, self._near(edit, others)),
            "other_tasks": lambda: other_tasks(edit),
            "portability_alias": lambda: alias(edit),
            "portability_reversed": lambda: reversed_(edit),
            "portability_hop": lambda: hop(edit, self._known),
            "fluency": lambda: fluency(edit),
        }
        return pools[dimension]() if dimension in pools else ()

    def _near(self, edit: Edit, others: Sequence[Edit]) -> list[AtlasFact]:
        """Neighbours that the model knows; where it knows few of the relation, also what it knows of other subjects in any."""
        near, known = neighbours(edit, self._known, others), self._known or frozenset()
        familiar = [fact for fact in near if fact in known]
        if known and len(familiar) < _ENOUGH:
            familiar += [fact for fact in neighbours(replace(edit, relation=""), known, others) if fact in known and fact not in familiar]
        return (familiar or near)[:_NEIGHBOURS]


def _endless(edit: Edit, pool: Sequence[Probe], purpose: str) -> Iterator[Probe]:
    """The pool in a random order, then again and again, each time behind another unrelated sentence."""
    mixed = shuffled(pool, edit, purpose)
    yield from mixed
    for probe, sentence in zip(cycle(mixed), behind(edit, purpose), strict=False):
        yield replace(probe, prompt=f"{sentence} {probe.prompt}", behind=True)
