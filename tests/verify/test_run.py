"""Verification end to end against models that memorise, obey or lie; issue section 4, design section 4 no. 6."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence

import pytest

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Probe
from ke_tools.verify import Scorecard, asserts, probes_for, summarise, verify, with_likelihoods

Ask = Callable[[list[Probe]], list[str]]


def memorising(wrong: Mapping[str, str] | None = None, *, targets: Mapping[str, str] | None = None) -> Ask:
    """A model that answers target probes by ``targets`` and everything else by rote, but for prompts with a key of ``wrong``."""

    def ask(probes: list[Probe]) -> list[str]:
        return [_said(probe) for probe in probes]

    def _said(probe: Probe) -> str:
        if probe.expect == "target":
            return (targets or {}).get(probe.edit_id, "Canberra") + "."
        lie = next((said for part, said in (wrong or {}).items() if part in probe.prompt), None)
        return lie or f"Answer{len(probe.prompt)}."

    return ask


def _verified(edit: Edit, edited: Ask) -> Scorecard:
    known = [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject in {"France", "Japan", "Peru"}]
    return verify([edit], probes_for(edit, known=known), edited, memorising())


def test_an_edit_that_took_and_moved_nothing_passes(capital: Edit) -> None:
    """All four dimensions measured, all 1.0, nothing to complain of."""
    card = _verified(capital, memorising(targets={capital.id: "Sydney"}))
    assert card.passed
    assert card.worst_case == ""
    assert [rate.value for rate in (card.overall.reliability, card.overall.generalisation, card.overall.bytes_kept)] == [1.0, 1.0, 1.0]
    assert "nothing went wrong" in card.text()


def test_a_model_that_lies_on_a_neighbour_is_the_worst_case_in_words(capital: Edit) -> None:
    """The harm to a neighbour outweighs every other failure."""
    card = _verified(capital, memorising({"Japan": "Sydney."}, targets={capital.id: "Sydney"}))
    assert not card.passed
    assert card.overall.locality_other_subject.value == pytest.approx(2 / 3)
    assert "Japan" in card.worst_case
    assert "it said 'Sydney.' (before: 'Answer" in card.worst_case
    assert card.checks[0].worst_case == card.worst_case
    assert card.worst_case in card.text()
    assert card.worst_case in card.sentence()


def test_an_edit_that_did_not_take_says_what_was_wanted(capital: Edit) -> None:
    """The base model's answer is still given."""
    card = _verified(capital, memorising())
    assert card.overall.reliability.value == 0.0
    assert card.worst_case == "asked 'The capital of Australia is' it said 'Canberra.' (wanted: 'Sydney')"


def test_a_neighbour_in_other_words_keeps_its_answer_but_not_its_bytes(capital: Edit) -> None:
    """Locality has two numbers."""

    def edited(probes: list[Probe]) -> list[str]:
        plain = memorising(targets={capital.id: "Sydney"})(probes)
        return [f"It is {text}" if probe.expect == "unchanged" else text for probe, text in zip(probes, plain, strict=True)]

    card = _verified(capital, edited)
    assert card.passed
    assert card.overall.locality_other_subject.value == 1.0
    assert card.overall.bytes_kept.value == 0.0


def test_a_leak_beside_the_kept_answer_still_counts(capital: Edit) -> None:
    """No kept answer: "Tokyo and Sydney"."""

    def edited(probes: list[Probe]) -> list[str]:
        plain = memorising(targets={capital.id: "Sydney"})(probes)
        return [
            text.replace(".", " and Sydney.") if probe.expect == "unchanged" else text for probe, text in zip(probes, plain, strict=True)
        ]

    assert _verified(capital, edited).overall.locality_other_subject.value == 0.0


def test_generalisation_without_wordings_is_not_measured(house_rule: Edit) -> None:
    """Issue section 2: never 1.0; and it does not fail the edit."""
    card = verify([house_rule], probes_for(house_rule), memorising(targets={house_rule.id: "Ada Byron"}), memorising())
    found = card.as_dict()["checks"][0]
    assert found["generalisation"] == {"measured": False, "value": 0.0, "stderr": 0.0, "low": 0.0, "high": 1.0, "n": 0}
    assert card.passed


def test_an_edit_without_probes_does_not_pass(capital: Edit) -> None:
    """Nothing measured proves nothing."""
    card = verify([capital], [], memorising(), memorising())
    assert not card.passed
    assert not card.overall.reliability.measured


def test_each_view_is_asked_once_with_all_probes(capital: Edit, house_rule: Edit) -> None:
    """Batched through the serving path."""
    calls: list[int] = []

    def counting(probes: list[Probe]) -> list[str]:
        calls.append(len(probes))
        return ["x"] * len(probes)

    probes = [*probes_for(capital), *probes_for(house_rule)]
    card = verify([capital, house_rule], probes, counting, counting)
    assert calls == [len(probes)] * 2
    assert [check.edit_id for check in card.checks] == [capital.id, house_rule.id]
    assert card.overall.reliability.clusters == 2


def test_probes_of_unknown_edits_are_refused(capital: Edit, house_rule: Edit) -> None:
    """A mix-up must not be counted for somebody."""
    with pytest.raises(InvalidInput, match="belongs to"):
        verify([capital], probes_for(house_rule), memorising(), memorising())


def test_the_dict_has_no_nulls_and_the_fields_of_the_tool(capital: Edit) -> None:
    """MCP schemas without unions; the shape that the servers hand out."""
    found = _verified(capital, memorising()).as_dict()
    text = json.dumps(found)
    assert "null" not in text
    assert set(found) == {
        "passed",
        "checks",
        "overall",
        "worst_case",
        "further",
        "forced",
        "forced_over_old",
        "efficiency",
        "scorecard_text",
    }
    rates = {"reliability", "generalisation", "locality_same_subject", "locality_other_subject", "bytes_kept"}
    assert set(found["checks"][0]) == {"edit_id", "subject", "passed", "worst_case"} | rates
    assert set(found["overall"]) == rates
    assert set(found["overall"]["bytes_kept"]) == {"measured", "value", "stderr", "n", "low", "high"}


def test_the_text_is_short_and_aligned(capital: Edit) -> None:
    """For a terminal: a heading, a row an edit, the rates of all, the worst case."""
    lines = _verified(capital, memorising(targets={capital.id: "Sydney"})).text().splitlines()
    assert len(lines) == 5
    assert lines[-2] == "teacher-forced, probability of the target: not measured"
    assert max(map(len, lines)) <= 110
    assert lines[1].startswith("✓ Australia")
    assert lines[0].index("reliability") == lines[1].index("2/2")


def test_outcomes_carry_both_answers_and_the_origin(capital: Edit) -> None:
    """What was asked, what was said before and after, where the probe is from."""
    outcome = _verified(capital, memorising(targets={capital.id: "Sydney"})).outcomes[0]
    row = outcome.as_dict()
    assert (row["origin"], row["base"], row["edited"], row["passed"]) == ("edit", "Canberra.", "Sydney.", True)
    assert asserts(outcome.edited, outcome.probe.accept)


def test_the_second_column_is_labelled_and_decides_nothing(capital: Edit) -> None:
    """Issue 6 §1: teacher-forced probability is a second, labelled column, new against old where there is an old one."""
    card = _verified(capital, memorising(targets={capital.id: "Sydney"}))
    asked: list[str] = []

    def score(probes: Sequence[Probe], texts: Sequence[str]) -> list[float | None]:
        asked.extend(texts)
        return [None if probe.chat else math.log(0.8 if text == "Sydney" else 0.1) for probe, text in zip(probes, texts, strict=True)]

    scored = summarise([capital], with_likelihoods(card.outcomes, score))
    rows = {row["dimension"]: row for row in scored.document()["forced"]}
    over = {row["dimension"]: row for row in scored.document()["forced_over_old"]}

    assert set(asked) == {"Sydney", "Canberra"}
    assert rows["reliability"]["value"] == pytest.approx(0.8)
    assert over["reliability"]["value"] == 1.0
    assert rows["reliability"]["n"] < card.overall.reliability.n, "what could not be scored is not counted"
    assert set(rows) == {"reliability", "generalisation"}
    assert "teacher-forced, probability of the target: reliability 0.80" in scored.text()
    assert scored.passed == card.passed
    assert scored.overall == card.overall
    first = next(row for row in scored.document()["outcomes"] if "probability" in row)
    assert (first["probability"], first["probability_old"]) == pytest.approx((0.8, 0.1))


def test_a_text_of_many_edits_shows_first_what_failed(make_edit: Callable[..., Edit]) -> None:
    """A whole release has hundreds of edits: what needs a look must be seen."""
    edits = [make_edit(f"Zembla {n}", f"The capital of Zembla {n} is", "Onhava") for n in range(60)]
    probes = [probe for edit in edits for probe in probes_for(edit) if probe.dimension == "reliability"]
    fine = memorising(targets={edit.id: "Onhava" for edit in edits[:-1]})
    lines = verify(edits, probes, fine, memorising()).text().splitlines()

    assert lines[1].startswith("✗ Zembla 59")
    assert any(line.strip().startswith("and 30 more, 30 passed") for line in lines)
