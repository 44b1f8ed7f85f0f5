"""Which questions verify an edit; issue section 2 (atlas) and section 4 (verify)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Probe, squash
from ke_tools.verify import DIMENSIONS, FURTHER, Outcome, Suite, given, neighbour_candidates, probes_for

MakeEdit = Callable[..., Edit]


def _of(probes: list[Probe], dimension: str) -> list[Probe]:
    return [probe for probe in probes if probe.dimension == dimension]


def test_quick_is_about_a_dozen_with_every_dimension(capital: Edit) -> None:
    """Issue section 4: rewrites, paraphrases, same-subject and neighbour probes."""
    probes = probes_for(capital)
    assert {probe.dimension for probe in probes} == set(DIMENSIONS)
    assert 10 <= len(probes) <= 14
    assert len(probes_for(capital, suite="full")) > len(probes)


def test_full_has_the_surveys_further_dimensions(capital: Edit, make_edit: MakeEdit) -> None:
    """Issue 6 §1: forgetfulness, distracting prefix, other tasks, portability, fluency; where the atlas knows enough."""
    language = make_edit("Switzerland", "The official language of Switzerland is", "Spanish")
    probes = [*probes_for(capital, suite="full"), *probes_for(language, suite="full")]
    assert {probe.dimension for probe in probes} == {*DIMENSIONS, *FURTHER}
    assert {probe.form for probe in _outcomes(_of(probes, "generalisation"))} == {"statement", "question", "chat", "behind a sentence"}
    assert not _of(probes_for(capital, suite="full"), "forgetfulness"), "a country has one capital"


def _outcomes(probes: list[Probe]) -> list[Outcome]:
    return [Outcome(probe, "", "", passed=True, bytes_kept=True) for probe in probes]


def test_the_same_edit_gets_the_same_probes(capital: Edit, make_edit: MakeEdit) -> None:
    """Deterministic, seeded by the edit's id."""
    assert probes_for(capital) == probes_for(capital)
    other = make_edit("Australia", "The capital of Australia is", "Sydney", id="ed_other")
    assert {p.prompt for p in _of(probes_for(other), "locality_other_subject")} != {
        p.prompt for p in _of(probes_for(capital), "locality_other_subject")
    }


@pytest.mark.parametrize("suite", ["quick", "full"])
def test_generated_probes_use_probe_wordings_and_no_fitted_one(make_edit: MakeEdit, suite: Suite) -> None:
    """Issue section 2: verify draws its generated probes from held-out wordings only."""
    fitted = {
        atlas.wording_key(wording)
        for relation in atlas.relations().values()
        for wording in (*relation.fitted_statements, *relation.fitted_questions)
    }
    for number, fact in enumerate(atlas.facts()[::197]):
        subjects = {other.subject for other in atlas.facts() if other.relation == fact.relation}
        relation = atlas.relations()[fact.relation]
        prompt = relation.statements[0].replace("{}", fact.subject)
        edit = make_edit(fact.subject, prompt, "Nowhere", id=f"ed_{number}")
        generated = [probe for probe in probes_for(edit, suite=suite) if probe.origin == "probe wording"]
        assert generated
        for probe in generated:
            description = atlas.mask(probe.prompt, [relation.masked.replace("{}", fact.subject)])  # one hop
            names = {*subjects, *(name for subject in subjects for name in atlas.aliases(subject))}
            masked = [description, *(atlas.mask(probe.prompt, [name]) for name in names if name in probe.prompt)]
            assert any(atlas.holds_probe_wording(text) for text in masked), probe
            assert not any(atlas.wording_key(text) in fitted for text in masked), probe


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        ("the Zembla", "The length of the Zembla is"),
        ("Zembla", "The length of the Zembla is"),
        ("The Zembla", "The Zembla's length is"),
        ("our river", "The length of our river is"),
    ],
)
def test_a_subject_has_one_article_or_owner(make_edit: MakeEdit, subject: str, prompt: str) -> None:
    """A question that nobody would ask measures nothing."""
    edit = replace(make_edit(subject, prompt, "ten miles"), relation="river_length")
    texts = [
        probe.prompt.casefold() for probe in probes_for(edit, suite="full") if "zembla" in probe.prompt.casefold() or "our" in probe.prompt
    ]
    assert len(texts) > 5
    assert [text for text in texts if "the the" in text or "the our" in text] == []


def test_an_article_is_a_word_of_its_own(make_edit: MakeEdit) -> None:
    """To bathe Rex gives Rex no article."""
    edit = replace(make_edit("Rex", "Whoever wants to bathe Rex needs", "soap"), relation="employer")
    assert [probe.prompt for probe in probes_for(edit) if "the Rex" in probe.prompt and probe.origin == "probe wording"] == []


def test_generalisation_of_a_description_is_not_measured(make_edit: MakeEdit) -> None:
    """Issue section 2: where the relation is not recognised and the caller gives no wordings, "not measured"."""
    assert _of(probes_for(make_edit("our refund policy", "The length of our refund policy is", "two pages")), "generalisation") == []


def test_reliability_asks_the_edits_own_prompt_as_statement_and_chat(capital: Edit) -> None:
    """Each probe carries its origin."""
    probes = _of(probes_for(capital), "reliability")
    assert [(p.prompt, p.chat, p.origin) for p in probes] == [
        ("The capital of Australia is", False, "edit"),
        ("The capital of Australia is", True, "edit"),
    ]


def test_generalisation_mixes_the_callers_wordings_with_statements_questions_and_chat(capital: Edit) -> None:
    """The caller's are marked as theirs."""
    probes = _of(probes_for(capital), "generalisation")
    assert [p.prompt for p in probes if p.origin == "caller"] == ["Australia is ruled from"]
    generated = [p for p in probes if p.origin == "probe wording"]
    assert {p.chat for p in generated} == {True, False}
    assert all("Australia" in p.prompt and not p.prompt[0].islower() for p in generated)
    assert all("Sydney" in p.accept and "Canberra" in p.reject for p in probes)


def test_an_unrecognised_relation_without_wordings_has_no_generalisation_probes(house_rule: Edit) -> None:
    """Issue section 2: then it is "not measured"."""
    probes = probes_for(house_rule)
    assert not _of(probes, "generalisation")
    assert len(_of(probes, "reliability")) == 2
    assert _of(probes, "locality_other_subject"), "other subjects must stay as they are, whatever the edit is about"


def test_neighbours_are_other_subjects_of_the_relation_that_the_model_knows(capital: Edit) -> None:
    """Issue section 2: verification chooses its neighbours among what the model knows."""
    known = [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject in {"France", "Japan", "Peru", "Australia"}]
    probes = _of(probes_for(capital, known=known), "locality_other_subject")
    assert len(probes) == 3
    assert {name for p in probes for name in ("France", "Japan", "Peru") if name in p.prompt} == {"France", "Japan", "Peru"}
    assert all(p.expect == "unchanged" and "Sydney" in p.reject and "Australia" not in p.prompt for p in probes)


def test_same_subject_questions_prefer_what_the_model_knows_and_leave_the_edited_slot_out(capital: Edit) -> None:
    """The subject's other relations stay."""
    known = [fact for fact in atlas.facts() if fact.subject == "Australia" and fact.relation in {"currency", "demonym", "capital"}]
    probes = _of(probes_for(capital, known=known), "locality_same_subject")
    wordings = {
        squash(wording.replace("{}", "Australia"))
        for name in ("currency", "demonym")
        for wording in (*atlas.relations()[name].probe_statements, *atlas.relations()[name].probe_questions)
    }
    assert len(probes) == 3
    assert sum(squash(p.prompt) in wordings for p in probes) == 2
    assert all("Australia" in p.prompt for p in probes)
    capital_wordings = {squash(w.replace("{}", "Australia")) for w in atlas.relations()["capital"].wordings}
    assert not any(squash(p.prompt) in capital_wordings for p in probes)


def test_what_another_live_edit_changes_is_no_neighbour(capital: Edit, make_edit: MakeEdit) -> None:
    """A neighbour that was corrected itself must not be called a side effect."""
    known = [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject in {"France", "Japan", "Peru", "Chile"}]
    other = make_edit("France", "The capital of France is", "Lyon")
    currency = make_edit("Australia", atlas.relations()["currency"].statements[0].replace("{}", "Australia"), "yen")
    probes = probes_for(capital, known=known, live=[capital, other, currency])
    assert not any("France" in p.prompt for p in probes)
    wordings = {squash(w.replace("{}", "Australia")) for w in atlas.relations()["currency"].wordings}
    assert not any(squash(p.prompt) in wordings for p in probes)


def test_the_subject_keeps_the_article_of_its_prompt(make_edit: MakeEdit) -> None:
    """Read as English in every wording: "the Netherlands"."""
    edit = make_edit("Netherlands", "The capital of the Netherlands is", "Utrecht")
    generated = [p for p in _of(probes_for(edit), "generalisation") if p.origin == "probe wording"]
    assert all("the netherlands" in p.prompt.casefold() for p in generated)


def test_a_callers_probe_is_read_with_the_edit_it_is_about(capital: Edit, house_rule: Edit) -> None:
    """Issue section 4: probes[{prompt, expect: target|unchanged}]."""
    edits = [capital, house_rule]
    wanted = given({"prompt": "Which city governs Australia?", "expect": "target"}, edits)
    assert (wanted.edit_id, wanted.dimension, wanted.origin, wanted.chat) == (capital.id, "generalisation", "caller", True)
    kept = given({"prompt": "The capital of France is", "expect": "unchanged"}, edits)
    assert (kept.dimension, kept.chat) == ("locality_other_subject", False)
    assert given({"prompt": "Where is Zembla Ltd?", "expect": "unchanged"}, edits).dimension == "locality_same_subject"
    assert given({"prompt": "Who signs?", "expect": "target", "edit_id": house_rule.id}, edits).edit_id == house_rule.id


@pytest.mark.parametrize(
    "probe",
    [
        {},
        {"prompt": ""},
        {"prompt": 3},
        {"prompt": "x" * 3000},
        {"prompt": "Who?", "expect": "maybe"},
        {"prompt": "Who?"},
        {"prompt": "Who?", "edit_id": "no"},
    ],
)
def test_a_callers_probe_that_cannot_be_read_is_refused(probe: dict[str, object], capital: Edit, house_rule: Edit) -> None:
    """Issue section 6: bad input gets a clear error."""
    with pytest.raises(InvalidInput):
        given(probe, [capital, house_rule])


def test_candidates_are_the_facts_worth_asking_about(capital: Edit) -> None:
    """A few dozen questions tell which neighbours the model knows, instead of the whole atlas."""
    candidates = neighbour_candidates(capital, most=24)
    assert 12 <= len(candidates) <= 24
    assert all((fact.relation == "capital") != (fact.subject == "Australia") for fact in candidates)
