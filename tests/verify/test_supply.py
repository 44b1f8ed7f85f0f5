"""As many probes as the gate wants; issue 6 §2: at least 40 a dimension, a test promotes a single edit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from ke_tools import atlas
from ke_tools.facts import Edit, Probe
from ke_tools.verify import DIMENSIONS, EARLIER, FURTHER, Policy, Supply, accepted

MakeEdit = Callable[..., Edit]
EVERY = (*DIMENSIONS, *FURTHER)


def test_a_single_edit_has_as_many_probes_of_each_dimension_as_the_gate_may_want(capital: Edit) -> None:
    """Issue 6 §2: at least 40 a dimension for a batch of one, and up to the policy's most."""
    most = Policy().most
    probes = Supply([capital]).more(dict.fromkeys(EVERY, most))
    assert Counter(probe.dimension for probe in probes) == {name: most for name in EVERY if name != "forgetfulness"}
    assert len({(probe.dimension, probe.prompt, probe.chat) for probe in probes}) == len(probes), "none is asked twice"


def test_an_edit_that_no_inventory_has_heard_of_has_those_that_can_be_asked(house_rule: Edit) -> None:
    """Issue 6 §1: elsewhere, "not measured"."""
    found = Counter(probe.dimension for probe in Supply([house_rule]).more(dict.fromkeys(EVERY, 40)))
    assert found == dict.fromkeys(("reliability", "locality_other_subject", "distracting_prefix", "other_tasks", "fluency"), 40)


def test_more_gives_what_was_not_given_before(capital: Edit) -> None:
    """The gate's looks are at growing numbers."""
    supply = Supply([capital])
    first, second = supply.more({"reliability": 10}), supply.more({"reliability": 10, "generalisation": 5})
    assert Counter(probe.dimension for probe in second) == {"reliability": 10, "generalisation": 5}
    assert not {(p.prompt, p.chat) for p in first} & {(p.prompt, p.chat) for p in second}
    assert supply.more({"no such dimension": 3}) == []


def test_telling_gives_only_probes_by_which_harm_can_be_seen(capital: Edit) -> None:
    """What the unedited model has wrong drifts with any change and shows nothing; asking the candidate about it is a waste."""
    supply, asked = Supply([capital]), 0

    def before(probes: list[Probe]) -> list[str]:
        nonlocal asked
        asked += len(probes)
        return [probe.accept[0] if number % 4 == 0 and probe.accept else "Nonsense." for number, probe in enumerate(probes)]

    found = supply.telling({"locality_same_subject": 30, "reliability": 10}, before, 500)
    assert Counter(probe.dimension for probe in found) == {"locality_same_subject": 30, "reliability": 10}
    assert len(set(found)) == 40
    assert asked < 10 + 30 * 8, "drawn by the share that told so far"
    more = supply.telling({"locality_same_subject": 30}, before, 500)
    assert not set(more) & set(found)


def test_telling_draws_no_more_than_it_may(capital: Edit) -> None:
    """A subject of which the model knows nothing else ends the asking."""
    drawn: list[Probe] = []

    def before(probes: list[Probe]) -> list[str]:
        drawn.extend(probes)
        return ["Nonsense."] * len(probes)

    supply = Supply([capital])
    assert supply.telling({"locality_same_subject": 40}, before, 100) == []
    assert len(drawn) == 100
    assert supply.telling({"locality_same_subject": 40}, before, 100) == []
    assert len(drawn) == 100


def test_the_edits_of_a_batch_take_turns(capital: Edit, house_rule: Edit) -> None:
    """Each fact of the batch is judged."""
    probes = Supply([capital, house_rule]).more({"reliability": 10, "other_tasks": 10})
    assert Counter((probe.dimension, probe.edit_id) for probe in probes) == {
        (name, edit.id): 5 for name in ("reliability", "other_tasks") for edit in (capital, house_rule)
    }
    assert not any(probe.behind for probe in probes[:4]), "every edit's own prompt comes before any sentence stands in front of it"
    tasks = [probe.prompt for probe in probes if probe.dimension == "other_tasks"]
    assert len(set(tasks)) == 10, "a task is no edit's, so none is asked twice"


def test_the_same_draw_is_the_same_and_another_one_is_fresh(capital: Edit) -> None:
    """The gate's condition: a candidate that earlier probes chose is judged by fresh ones."""
    wanted = dict.fromkeys(("reliability", "locality_other_subject", "locality_same_subject"), 40)
    assert Supply([capital]).more(wanted) == Supply([capital]).more(wanted)
    first = {(p.prompt, p.chat) for p in Supply([capital]).more(wanted)}
    other = {(p.prompt, p.chat) for p in Supply([capital], draw=1).more(wanted)}
    assert len(first & other) < len(first) / 2


def test_only_what_the_model_knows_is_asked_where_it_knows_anything(capital: Edit) -> None:
    """A neighbour about which the model knew nothing cannot show harm."""
    known = [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject in {"France", "Japan"}]
    probes = Supply([capital], known=known).more({"locality_other_subject": 40})
    assert len(probes) == 40
    assert all("France" in probe.prompt or "Japan" in probe.prompt for probe in probes)


def test_of_the_same_subject_it_is_asked_what_can_be_judged(capital: Edit, make_edit: MakeEdit) -> None:
    """What nobody knows drifts; it is asked only where there is nothing else."""
    wanted = {"locality_same_subject": 40}
    assert all(probe.accept for probe in Supply([capital], known=[]).more(wanted))
    unlisted = make_edit("Zembla", "The capital of Zembla is", "Onhava")
    probes = Supply([unlisted], known=[]).more(wanted)
    assert len(probes) == 40
    assert not any(probe.accept for probe in probes)


def test_where_it_knows_few_of_the_relation_it_is_asked_what_it_knows_of_others(capital: Edit) -> None:
    """Otherwise nothing could be shown of other subjects."""
    known = [fact for fact in atlas.facts() if fact.relation == "author"][:10]
    probes = Supply([capital], known=known).more({"locality_other_subject": 30})
    assert len(probes) == 30
    assert all(any(fact.subject in probe.prompt and probe.accept == accepted(fact) for fact in known) for probe in probes)


def test_what_the_batch_itself_changes_is_no_neighbour(capital: Edit, make_edit: MakeEdit) -> None:
    """Another fact of the batch, or one promoted earlier, that moves is no side effect."""
    other, third = (make_edit(name, f"The capital of {name} is", "Lyon") for name in ("France", "Japan"))
    probes = Supply([capital, other], earlier=[third]).more({"locality_other_subject": 600})
    assert not any(name in probe.prompt for probe in probes for name in ("France", "Japan", "Australia"))


@pytest.mark.parametrize("n", [1, 40])
def test_edits_promoted_earlier_are_asked_again(capital: Edit, house_rule: Edit, n: int) -> None:
    """Issue 6 §2: no regression of edits promoted earlier."""
    probes = Supply([capital], earlier=[house_rule]).more({EARLIER: n})
    assert [(probe.dimension, probe.edit_id, probe.expect) for probe in probes] == [(EARLIER, house_rule.id, "target")] * n
    assert Supply([capital]).more({EARLIER: n}) == []
