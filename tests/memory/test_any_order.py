"""Edits, proposals, decisions, expiries, promotions and all ways back in any order: what holds after each step."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import pytest

from ke_tools.errors import Conflict, NotFound, WrongState
from ke_tools.facts import Fact, State
from ke_tools.memory import moments
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.slots import Slot
from tests.memory.conftest import Clock

STEPS = 40
ACTORS = "abc"


def slot_of(fact: Fact) -> Slot:
    """Subjects in capitals have one object."""
    return Slot(f"{fact.subject}\x1fis", "", functional=fact.subject.isupper())


class Chance:
    """Does things to a ledger, as chance will have it."""

    def __init__(self, ledger: Ledger, clock: Clock, seed: int) -> None:
        self.ledger, self.clock, self.random = ledger, clock, random.Random(seed)
        self.ids: list[str] = []
        self.moments = [clock()]

    def step(self) -> None:
        """Let some time pass, and do one thing; what is refused changes nothing."""
        self.clock.forward(minutes=self.random.choice([0, 1, 30]))
        self.moments.append(self.clock())
        before = self.ledger.head()
        does: list[Callable[[str], object]] = [
            self.edit, self.edit, self.propose, self.propose, self.approve, self.approve, self.approve, self.reject,
            self.rollback, self.rollback_to, self.undo, self.promote, lambda _: self.ledger.expiries.sweep(),
        ]  # fmt: skip
        try:
            self.random.choice(does)(self.random.choice(ACTORS))
        except (WrongState, NotFound, Conflict):
            assert self.ledger.head() == before

    def edit(self, actor: str, state: State = State.ACTIVE) -> None:
        """Record something, or propose it."""
        subject = self.random.choice("ABc")
        expires = moments.ahead("40min") if self.random.random() < 0.25 else ""
        fact = Fact(subject=subject, prompt=f"{subject} is", target=self.random.choice("xyz"), expires=expires)
        self.ids += [edit.id for edit in self.ledger.edit("t", [fact], actor=actor, slot_of=slot_of, state=state)]

    def propose(self, actor: str) -> None:
        """Propose something."""
        self.edit(actor, State.PROPOSED)

    def approve(self, actor: str) -> None:
        """Approve some of what waits, or something that does not."""
        waiting = [edit.id for edit in self.ledger.edits("t", states=[State.PROPOSED]).items]
        self.ledger.proposals.approve("t", self._some(waiting if self.random.random() < 0.8 else self.ids), actor=actor)

    def reject(self, actor: str) -> None:
        """Reject something."""
        self.ledger.proposals.reject("t", self._some(self.ids)[:1], actor=actor, reason="no")

    def rollback(self, actor: str) -> None:
        """Take something back."""
        ids = self._some(self.ids)
        self.ledger.rollback("t", ids, actor=actor, release=self._without(ids))

    def rollback_to(self, actor: str) -> None:
        """Return to a revision."""
        self.ledger.rollback_to("t", self.random.randint(0, self.ledger.head()), actor=actor)

    def undo(self, actor: str) -> None:
        """Undo what somebody did."""
        by, since = self.random.choice(ACTORS), self.random.choice(self.moments)
        ids = [edit.id for edit in self.ledger.undoing.made_by("t", by, since)]
        self.ledger.undoing.undo("t", by, since, actor=actor, release=self._without(ids))

    def promote(self, actor: str) -> None:
        """Make a release live with some of what is live."""
        ids = sorted(self._some([edit.id for edit in self.ledger.live("t")]))
        self.ledger.promote("t", ids, release="rel_" + hashlib.sha256(str(ids).encode()).hexdigest()[:24], actor=actor)

    def _some(self, ids: list[str]) -> list[str]:
        if not ids:
            raise NotFound("there is nothing yet.")
        return self.random.sample(ids, min(len(ids), self.random.choice([1, 1, 2])))

    def _without(self, ids: list[str]) -> str | None:
        carried = self.ledger.carried_by("t", self.ledger.live_release("t"))
        return self.ledger.release_without("t", ids) if set(ids) & set(carried) else None


@pytest.mark.parametrize("seed", range(8))
def test_in_any_order_the_log_tells_all_and_nothing_proposed_acts_without_an_approval(clock: Clock, seed: int) -> None:
    """Issue 8, §2, and issue 3, §3: the log is the only truth, one live edit a functional slot, nothing hangs under what is gone."""
    with Ledger(":memory:") as ledger:
        chance = Chance(ledger, clock, seed)
        for _ in range(STEPS):
            chance.step()
            assert ledger.audit() == []
            edits = {edit.id: edit for edit in ledger.edits("t", limit=1000).items}
            proposed = {event.payload["id"] for event in ledger.history("t", limit=1000).items if event.action == "propose"}
            live = ledger.live("t")
            assert all(edit.approved_by for edit in live if edit.id in proposed)
            successors = [edits[edit.superseded_by] for edit in edits.values() if edit.superseded_by]
            assert all(edit.is_live or edit.superseded_by for edit in successors)
            assert max(Counter(edit.slot for edit in live if edit.functional).values(), default=0) <= 1
        assert {"edit", "propose", "approve"} <= {event.action for event in ledger.history("t", limit=1000).items}
