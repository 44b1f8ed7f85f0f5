"""Ours beside MEMIT as published, on the same facts in the same run; and what each of our savings is worth alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ke_tools.benches import _naive
from ke_tools.editors._goals import goals
from ke_tools.editors._spread import Prepared
from ke_tools.editors._targets import Goal, optimise
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.update import Update
from ke_tools.facts import Fact

__all__ = ["Beside"]

Score = Callable[[Update], Mapping[str, Any]]
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Beside:
    """The facts of a batch, the first of which are edited as published too."""

    editor: MEMIT
    prepared: Prepared
    facts: Sequence[Fact]
    few: int  # facts that the published procedure edits; its time is told a fact
    tell: Tell

    def procedures(self, score: Score) -> dict[str, Any]:
        """Seconds an edit of both, with ours on all facts and on the few; rates of both on the few.

        Args:
            score: what the bench finds of an update of the few facts.
        """
        few = self.facts[: self.few]
        as_is = self._ours(self.facts, "ours")
        same = self._ours(few, "ours, the few")
        naive = _naive.plan(self.editor, self.prepared, self._published(), _naive.PUBLISHED, tell=partial(self.tell, "as published"))
        rows = [_row("ours", as_is, len(self.facts), as_is, len(self.facts))]
        rows.append(_row("ours", same, len(few), as_is, len(self.facts)))
        rows.append(_row("as published", naive, len(few), as_is, len(self.facts)))
        return {"rows": [*rows, *self._equal()], "scores": {"ours": score(same), "as published": score(naive)}}

    def saving(self, saving: _naive.Saving) -> float:
        """Seconds that the published search for z takes a fact, with one saving of ours."""
        wanted = self._wanted(self.facts[: self.few]) if saving == "our contexts" else self._published()
        began = time.monotonic()
        _naive.values(
            self.prepared.model,
            wanted,
            self.prepared.where.layers[-1],
            _naive.PUBLISHED,
            saving,
            partial(self.tell, f"as published, {saving}"),
        )
        return (time.monotonic() - began) / self.few

    def _equal(self) -> list[dict[str, Any]]:
        """The search for z with equal contexts and steps: ours, and nobody stops early."""
        last, objective = self.prepared.where.layers[-1], replace(self.editor.objective, reached=0.0)
        everything, wanted = self._wanted(self.facts), self._wanted(self.facts[: self.few])
        began = time.monotonic()
        optimise(self.prepared.model, everything, last, objective, inverse=self.prepared.inverse)
        between = time.monotonic()
        _naive.values(self.prepared.model, wanted, last, objective, tell=partial(self.tell, "as published, all steps"))
        ours, naive = (between - began) / len(everything), (time.monotonic() - between) / len(wanted)
        return [
            {"procedure": "ours, all steps", "facts": len(everything), "z s": round(ours, 4), "times ours": 1.0},
            {"procedure": "as published, our contexts, all steps", "facts": len(wanted), "z s": round(naive, 4)}
            | {"times ours": round(naive / ours, 2)},
        ]

    def _ours(self, facts: Sequence[Fact], name: str) -> Update:
        return self.editor.plan(self.prepared, facts, tell=lambda _stage, done, total: self.tell(name, done, total))

    def _wanted(self, facts: Sequence[Fact]) -> list[Goal]:
        return goals(self.prepared.model, facts, self.prepared.contexts, site=self.prepared.where.site)

    def _published(self) -> list[Goal]:
        return _naive.wants(self.prepared, self.facts[: self.few], self.editor.seed)


def _row(name: str, update: Update, facts: int, ours: Update, all_facts: int) -> dict[str, Any]:
    """Seconds an edit, and how many times ours on all facts that is."""
    each = {stage: update.efficiency.seconds[stage] / facts for stage in ("z", "solve")}
    least = sum(ours.efficiency.seconds[stage] for stage in ("z", "solve")) / all_facts
    return {
        "procedure": name,
        "facts": facts,
        "z s": round(each["z"], 4),
        "keys and solve s": round(each["solve"], 4),
        "s an edit": round(sum(each.values()), 4),
        "times ours": round(sum(each.values()) / least, 2),
    }
