"""The ladder: who climbs, who is left behind, and that every step is judged anew (issue 6 §2), with a maker that holds no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, Probe, State
from ke_tools.promotion import Candidate, climb, shrunk
from ke_tools.releases import Release
from ke_tools.verify.gate import Verdict, decide
from ke_tools.verify.policy import Policy
from ke_tools.verify.scorecard import Outcome


def edit(number: int) -> Edit:
    """An edit that acts."""
    fact = Fact(subject=f"Subject {number}", prompt=f"Subject {number} lies in", target=f"Place {number}")
    return Edit(
        id=f"ed_{number:016x}",
        tenant="acme",
        fact=fact,
        state=State.ACTIVE,
        slot=f"s{number}",
        relation="",
        functional=True,
        revision=number,
        created_at="2026-01-01T00:00:00Z",
        actor="test",
    )


def outcomes(of: Edit, dimension: str, passed: int, asked: int) -> list[Outcome]:
    """Answers to probes of an edit."""
    probe = Probe(edit_id=of.id, dimension=dimension, prompt="p", expect="target", origin="edit", accept=(of.fact.target,))
    return [Outcome(probe, "", "", n < passed, False) for n in range(asked)]


CONTRADICTING = {"Place 101", "Place 102"}


class FakeMaker:
    """Edits in ``bad`` fail in the weights, in ``worse`` in a codebook too; ``broken`` ones cannot be planned, ``wrecking`` ones cost."""

    def __init__(
        self, *, bad: Sequence[Edit] = (), worse: Sequence[Edit] = (), broken: Sequence[Edit] = (), wrecking: Sequence[Edit] = ()
    ) -> None:
        self.wrecking = set(map(id, wrecking))
        self.bad, self.worse, self.broken = set(map(id, bad)), set(map(id, worse)), set(map(id, broken))
        self.numbers: list[int] = []
        self.made: list[tuple[int, int]] = []

    def make(self, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]) -> Candidate:
        if any(id(one) in self.broken for one in (*in_weights, *in_codebook)):
            raise InvalidInput("no name of the subject stands in the prompt.")
        if len({one.fact.target for one in (*in_weights, *in_codebook)} & CONTRADICTING) > 1:
            raise InvalidInput("two facts contradict.")
        self.made.append((len(in_weights), len(in_codebook)))
        ids = tuple(one.id for one in (*in_weights, *in_codebook))
        how: Mapping[str, object] = {}
        release = Release(
            name=f"rel_{len(self.made):024x}",
            folder=Path(),
            edit_ids=ids,
            fingerprint="sha256:0",
            how=how,
            has_adapter=bool(in_weights),
            has_codebook=bool(in_codebook),
        )
        wrecks = any(id(one) in self.wrecking for one in in_weights)
        return Candidate(release, tuple(in_weights), tuple(in_codebook), 1.5 if wrecks else 1.0, 0.1)

    def judge(
        self, candidate: Candidate, edits: Sequence[Edit], earlier: Sequence[Edit], policy: Policy, number: int
    ) -> tuple[Verdict, Sequence[Outcome]]:
        del earlier
        self.numbers.append(number)
        in_codebook = {id(one) for one in candidate.in_codebook}
        each = -(-300 // len(edits))
        found: list[Outcome] = []
        for one in edits if candidate.perplexity <= policy.perplexity else ():
            fails = id(one) in (self.worse if id(one) in in_codebook else self.bad | self.worse)
            found += outcomes(one, "reliability", 0 if fails else each, each)
        return decide(found, policy, candidate=number, perplexity=candidate.perplexity, growth=candidate.growth), found


def rungs(edits: Sequence[Edit], maker: FakeMaker, **how: object) -> list[str]:
    """Where each edit ended."""
    found = climb(edits, maker, policy=Policy(), **how)  # type: ignore[arg-type]
    return [found.rungs[one.id][0] for one in edits]


def test_a_batch_that_passes_is_in_the_weights_after_one_candidate() -> None:
    """Issue 6 §2: MEMIT is the first rung."""
    maker = FakeMaker()
    assert rungs([edit(n) for n in range(8)], maker) == ["memit"] * 8
    assert maker.numbers == [1]


def test_what_fails_by_itself_leaves_and_the_rest_is_judged_by_another_candidate() -> None:
    """Issue 6, bars: a poisoned batch is isolated, the good rest promoted; the poison falls to GRACE."""
    edits = [edit(n) for n in range(8)]
    maker = FakeMaker(bad=edits[2:4])
    assert rungs(edits, maker) == ["memit", "memit", "grace", "grace", *["memit"] * 4]
    assert maker.numbers == [1, 2, 3]  # each with a number of its own, by which the gate shares out its risk


def test_what_no_rung_takes_stays_in_memory_with_the_reason() -> None:
    """Issue 6 §2: else the edit stays in memory; the decision is in words."""
    edits = [edit(n) for n in range(4)]
    found = climb(edits, FakeMaker(worse=edits[:1]), policy=Policy())
    rung, reason = found.rungs[edits[0].id]
    assert rung == "memory"
    assert "GRACE with 1 edit refused: reliability" in reason
    assert found.candidate is not None
    assert [one.id for one in found.candidate.edits] == [one.id for one in edits[1:]]


def test_where_nothing_is_accepted_there_is_no_candidate() -> None:
    """Issue 6 §2: nothing is published that the gate did not accept."""
    edits = [edit(n) for n in range(4)]
    found = climb(edits, FakeMaker(worse=edits), policy=Policy())
    assert found.candidate is None
    assert {rung for rung, _ in found.rungs.values()} == {"memory"}


def test_an_edit_that_cannot_be_planned_keeps_nobody_else_out() -> None:
    """Issue 6, bad input: refused or isolated, the good rest promoted."""
    edits = [edit(n) for n in range(4)]
    found = climb(edits, FakeMaker(broken=edits[:1]), policy=Policy())
    assert [found.rungs[one.id][0] for one in edits] == ["memory", "memit", "memit", "memit"]
    assert "could not be planned" in found.rungs[edits[0].id][1]


def test_an_edit_that_costs_perplexity_is_found_though_no_probe_was_asked() -> None:
    """Issue 6, bars: a subject whose edit wrecks everything is isolated by bisection, wherever it stands; the good rest is promoted."""
    edits = [edit(n) for n in range(16)]
    for wrecks in ([edits[0]], [edits[11]], [edits[3], edits[15]]):
        maker = FakeMaker(wrecking=wrecks)
        found = climb(edits, maker, policy=Policy())
        assert [found.rungs[one.id][0] for one in edits] == ["grace" if one in wrecks else "memit" for one in edits]
        assert maker.numbers == [1, 2, 3]  # probes were spent on no candidate in between
    [trial, *_] = climb(edits[:1], FakeMaker(wrecking=edits[:1]), policy=Policy(), method="memit").trials
    assert "perplexity 1.5" in trial.in_words


def test_of_two_that_contradict_one_stays_out() -> None:
    """Issue 6, bars: two edits that contradict in wordings whose relation was not recognised."""
    edits = [edit(n) for n in (1, 101, 2, 3, 102, 4)]
    found = climb(edits, FakeMaker(), policy=Policy(), method="memit")
    assert [found.rungs[one.id][0] for one in edits] == ["memit", "memit", "memit", "memit", "memory", "memit"]
    assert found.rungs[edits[4].id][1] == "MEMIT with it could not be planned: two facts contradict."


def test_what_was_promoted_before_is_in_every_candidate() -> None:
    """Issue 6 §4: batches are planned from the base weights with all promoted edits together."""
    maker = FakeMaker()
    found = climb([edit(1)], maker, policy=Policy(), in_weights=[edit(2), edit(3)], in_codebook=[edit(4)])
    assert maker.made == [(3, 1)]
    assert found.candidate is not None
    assert len(found.candidate.edits) == 4


def test_a_method_alone_walks_one_rung() -> None:
    """Issue 6 §5: ``method: auto|memit|grace``."""
    edits = [edit(n) for n in range(4)]
    assert rungs(edits, FakeMaker(), method="grace") == ["grace"] * 4
    assert rungs(edits, FakeMaker(bad=edits), method="memit") == ["memory"] * 4
    with pytest.raises(InvalidInput, match="rome"):
        rungs(edits, FakeMaker(), method="rome")


def test_those_leave_by_whom_one_dimension_falls_short_though_the_rest_of_their_probes_passed() -> None:
    """Issue 6 §2: drop the facts that fail; one that wrecks its subject's other facts is none of the better half."""
    edits = [edit(n) for n in range(6)]
    found = [made for one in edits for made in outcomes(one, "reliability", 20, 20)]
    found += [made for one in edits[:5] for made in outcomes(one, "locality_same_subject", 4, 4)]
    found += outcomes(edits[5], "locality_same_subject", 1, 4)
    assert shrunk(edits, found, Policy(), 2) == edits[:5]


def test_what_the_weights_have_just_taken_is_asked_again_beside_the_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 6 §2: no regression of what was promoted earlier; the codebook makes another release of it."""
    edits = [edit(n) for n in range(4)]
    maker = FakeMaker(bad=edits[2:])
    asked: list[int] = []
    judge = maker.judge

    def noting(candidate: Candidate, group: Sequence[Edit], earlier: Sequence[Edit], *rest: Any) -> Any:
        asked.append(len(earlier))
        return judge(candidate, group, earlier, *rest)

    monkeypatch.setattr(maker, "judge", noting)
    assert rungs(edits, maker) == ["memit", "memit", "grace", "grace"]
    assert asked[0] == 0
    assert asked[-1] == 2


def test_a_group_without_culprits_loses_its_worse_half() -> None:
    """Issue 6 §2: shrink by bisecting."""
    edits = [edit(n) for n in range(4)]
    found = [*outcomes(edits[0], "reliability", 3, 4), *outcomes(edits[1], "reliability", 4, 4), *outcomes(edits[2], "reliability", 2, 4)]
    assert shrunk(edits, found, Policy(), 2) == [edits[1], edits[3]]
    assert shrunk(edits[:1], found, Policy(), 2) == []


def test_cancellation_ends_the_walk() -> None:
    """Issue 6 §3: cancellation at any point before the flip."""

    class Left(Exception):
        """Whoever asked has left."""

    def leave(*_: object) -> None:
        raise Left

    with pytest.raises(Left):
        climb([edit(1)], FakeMaker(), policy=Policy(), tell=leave)
