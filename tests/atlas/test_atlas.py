"""The atlas keeps its promises (issue: "The atlas (data, no model), project-written, checked by tests")."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import pytest

from ke_tools import atlas
from ke_tools.facts import Fact, squash

RELATIONS = sorted(atlas.relations().values(), key=lambda relation: relation.id)
STOP = frozenset(
    "the a an of is was in to by for on at as with that which who it its be are were has had have and from whose this s".split()
)


def content_words(wording: str) -> frozenset[str]:
    """Give what a wording is made of, less its stop words."""
    return frozenset(squash(wording.replace("{}", " ")).split()) - STOP


def test_there_are_at_least_150_relations_and_a_fifth_is_kept_for_probing() -> None:
    """Issue §2: at least 150 relations, a fifth of them entirely for probes."""
    kept = sum(relation.probe for relation in RELATIONS)

    assert len(RELATIONS) >= 150
    assert 0.2 <= kept / len(RELATIONS) <= 0.3


def test_a_relation_has_enough_wordings_and_marks_three_and_two_for_probing() -> None:
    """Issue §2: at least 8 statements and 4 questions each, of which 3 and 2 are marked probe."""
    for relation in RELATIONS:
        assert len(relation.statements + relation.probe_statements) >= 8
        assert len(relation.questions + relation.probe_questions) >= 4
        assert (len(relation.probe_statements), len(relation.probe_questions)) == (3, 2)
        assert all(wording.count("{}") == 1 for wording in (*relation.wordings, relation.masked))
        assert all(wording.endswith("?") for wording in relation.questions + relation.probe_questions)


def test_no_two_statements_of_a_relation_have_the_same_content_words() -> None:
    """Issue §2: wordings are genuinely different."""
    for relation in RELATIONS:
        statements = relation.statements + relation.probe_statements

        assert [pair for pair in combinations(statements, 2) if content_words(pair[0]) == content_words(pair[1])] == []


def test_statements_vary_their_beginning() -> None:
    """Issue §2: at least four head words, at most a third with the subject in front."""
    for relation in RELATIONS:
        statements = relation.statements + relation.probe_statements
        in_front = [statement for statement in statements if statement.startswith("{}")]

        assert len({statement.split()[0].casefold() for statement in statements}) >= 4
        assert len(in_front) * 3 <= len(statements)


def test_no_wording_stands_in_two_relations() -> None:
    """A wording that two relations share could not name its relation."""
    keys = Counter(atlas.wording_key(wording) for relation in RELATIONS for wording in relation.wordings)

    assert [key for key, times in keys.items() if times > 1] == []


def test_an_inverse_exists_and_points_back() -> None:
    """Issue §2: inverse where one exists; child has two inverses (father, mother), so it names none."""
    for relation in RELATIONS:
        if relation.inverse and relation.inverse != "child":
            assert atlas.relations()[relation.inverse].inverse == relation.id


def test_every_wording_of_a_relation_is_recognised_as_it() -> None:
    """Ledger: the relation of an edit is the inventory's when its prompt is recognised."""
    for relation in RELATIONS:
        for wording in relation.wordings:
            found = atlas.recognise(wording.replace("{}", "Freedonia"), "Freedonia")

            assert found is not None
            assert found.id == relation.id


def test_there_are_a_thousand_facts_over_forty_relations_and_ten_types() -> None:
    """Issue §2: at least 1,000 true facts over at least 40 relations and 10 types, each table with its source."""
    facts = atlas.facts()

    assert len(facts) >= 1000
    assert len({fact.relation for fact in facts}) >= 40
    assert len({atlas.relations()[fact.relation].subject for fact in facts}) >= 10
    assert all(fact.source.strip() for fact in facts)


def test_many_subjects_have_several_relations() -> None:
    """Issue §2: several relations per subject, for same-subject probes."""
    by_subject = defaultdict(set)
    for fact in atlas.facts():
        by_subject[fact.subject].add(fact.relation)

    assert sum(len(relations) >= 3 for relations in by_subject.values()) >= 100


def test_no_two_rows_contradict_each_other() -> None:
    """Issue §2: a functional relation has one object a subject, and an inverse pair agrees."""
    objects = {(fact.relation, fact.subject): fact.objects for fact in atlas.facts()}
    twice = [fact for fact in atlas.facts() if atlas.relations()[fact.relation].functional and len(fact.objects) != 1]
    against = [
        (subject, country)
        for (relation, subject), (country, *_) in objects.items()
        if relation == "capital_of" and objects.get(("capital", country), (subject,)) != (subject,)
    ]

    assert twice == []
    assert against == []


def test_every_subject_is_an_entity_of_the_relations_type() -> None:
    """A fact's subject fits the relation's signature."""
    strangers = [fact for fact in atlas.facts() if fact.subject not in atlas.entities(atlas.relations()[fact.relation].subject)]

    assert strangers == []


def test_every_fact_can_be_edited_in_every_wording_of_its_relation() -> None:
    """The tables pass the checks that a user's fact must pass."""
    for fact in atlas.facts():
        for wording in atlas.relations()[fact.relation].wordings[:2]:
            Fact(subject=fact.subject, prompt=wording.replace("{}", fact.subject), target=fact.objects[0])


@pytest.mark.parametrize(
    ("text", "names", "masked"),
    [
        ("What is Australia's capital?", ["Australia"], "What is {}'s capital?"),
        ("Côte d'Ivoire is governed from", ["cote d'ivoire"], "{} is governed from"),
        ("The Australian coast", ["Australia"], "The Australian coast"),
        ("New York City lies in", ["York", "New York City"], "{} lies in"),
        ("nobody is named", ["Australia"], "nobody is named"),
    ],
)
def test_masking_replaces_the_longest_whole_name(text: str, names: list[str], masked: str) -> None:
    """Design §4: the scorer sees the question with the subject masked."""
    assert atlas.mask(text, names) == masked


def test_a_probe_wording_is_told_from_a_fitted_one() -> None:
    """Design §4 no. 4: we never grade ourselves on what we trained on."""
    relation = atlas.relations()["capital"]

    assert all(atlas.holds_probe_wording(wording) for wording in relation.probe_statements + relation.probe_questions)
    assert not any(atlas.holds_probe_wording(wording) for wording in relation.fitted_statements + relation.fitted_questions)


@pytest.mark.parametrize("frame", ["Methods and issues. {}", "{} well known.", "As everybody says, {}"])
def test_a_probe_wording_among_other_words_is_found(frame: str) -> None:
    """Design §4 no. 4: benchmark files put unrelated sentences in front of a wording; it is fitted on all the same."""
    for wording in atlas.relations()["capital"].probe_statements:
        assert atlas.holds_probe_wording(frame.replace("{}", wording))


@pytest.mark.parametrize("subject", ["Freedonia", "the Land of the Free", "São Tomé's"])
def test_a_probe_wording_is_found_whatever_the_subject(subject: str) -> None:
    """Benchmark files name their subject by an alias or misspelt; the wording is fitted on all the same."""
    relation = atlas.relations()["capital"]

    for wording in relation.probe_statements + relation.probe_questions:
        assert atlas.may_hold_probe_wording("It rained. " + wording.replace("{}", subject)), wording
    for wording in relation.fitted_statements + relation.fitted_questions:
        assert not atlas.may_hold_probe_wording("It rained. " + wording.replace("{}", subject)), wording
