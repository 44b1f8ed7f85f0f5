"""The atlas keeps its promises (issue: "The atlas (data, no model), project-written, checked by tests")."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from unicodedata import combining, normalize

import pytest

from ke_tools import atlas
from ke_tools.facts import Fact, squash

RELATIONS = sorted(atlas.relations().values(), key=lambda relation: relation.id)
KINDS = sorted(kind for kind in {kind for r in RELATIONS for kind in (r.subject, r.object)} if atlas.entities(kind))
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


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("The capital city of Freedonia is", "Freedonia", "capital"),
        ("Freedonia's capital is", "Freedonia", "capital"),
        ("What's Freedonia's capital?", "Freedonia", "capital"),
        ("What is the capital city of Freedonia?", "Freedonia", "capital"),
        ("capital of Freedonia", "Freedonia", "capital"),
        ("The headquarters of Acme are in", "Acme", "headquarters"),
        ("Acme\u2019s headquarters are located in", "Acme", "headquarters"),
        ("Where is the head office of Acme?", "Acme", "headquarters"),
        ("Who is Acme's current CEO?", "Acme", "ceo"),
        ("Mira Holm's wife is", "Mira Holm", "spouse"),
        ("Where was Mira Holm born?", "Mira Holm", "birthplace"),
        ("Who wrote The Last Ferry?", "The Last Ferry", "author"),
        ("Where is Acme headquartered?", "Acme", "headquarters"),
        ("The height of Burj Khalifa is", "Burj Khalifa", "building_height"),
    ],
)
def test_a_relation_is_recognised_by_its_name_in_plain_words(prompt: str, subject: str, relation: str) -> None:
    """Issue §3: a later edit of the same subject and relation supersedes, whichever plain words it comes in."""
    found = atlas.recognise(prompt, subject)

    assert found is not None
    assert found.id == relation


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of Freedonia is in", "Freedonia"),  # where it lies
        ("Where is the capital of Freedonia?", "Freedonia"),
        ("The CEO of Acme was", "Acme"),  # another one than now
        ("The height of Fenwick is", "Fenwick"),  # a person's, a mountain's, a building's
        ("Fenwick was founded in the spring of", "Fenwick"),
    ],
)
def test_what_may_mean_something_else_is_not_recognised(prompt: str, subject: str) -> None:
    """Issue §3: the inventory's relation only when the prompt is recognised with confidence; a false one retires another fact."""
    assert atlas.recognise(prompt, subject) is None


def _forms(words: str) -> list[str]:
    if "{}" in words:
        return [words.replace("{}", "Zq")]
    return [f"The {words} of Zq is", f"What is the {words} of Zq?", f"Zq's {words} is", f"What's Zq's {words}?"]


def test_plain_words_of_a_relation_name_no_other() -> None:
    """What two relations are called names neither, and a listed wording always names its own."""
    named = {relation.id: {relation.masked.removeprefix("the ").removesuffix(" of {}"), *relation.plain} for relation in RELATIONS}
    for relation in RELATIONS:
        for words in relation.plain:
            is_shared = any(words in named[other.id] for other in RELATIONS if other is not relation)

            assert {atlas.worded(form, "Zq") for form in _forms(words)} == {None if is_shared else relation}, words
        assert all(atlas.worded(wording.replace("{}", "Zq"), "Zq") is relation for wording in relation.wordings)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The length of our refund policy is", "our refund policy"),
        ("The author of our API is", "our API"),
        ("The owner of our API is", "API"),
        ("The director of payroll is", "payroll"),
        ("The height of the head of sales is", "the head of sales"),
        ("The cause of the outage is", "the outage"),
        ("The cause of the outage is", "outage"),
    ],
)
def test_a_description_is_not_recognised_as_a_thing_with_a_name(prompt: str, subject: str) -> None:
    """Issue §2: a relation has a type signature; probes about the length of a river say nothing about a policy."""
    assert atlas.recognise(prompt, subject) is None


@pytest.mark.parametrize(
    ("prompt", "subject", "relation"),
    [
        ("The capital of Freedonia is", "Freedonia", "capital"),
        ("The headquarters of Brightwater Coffee are in", "Brightwater Coffee", "headquarters"),
        ("The capital of the netherlands is", "the netherlands", "capital"),
        ("The owner of iPhone is", "iPhone", "owner"),
        ("The author of My Fair Village is", "My Fair Village", "author"),
        ("The boiling point of unobtainium is", "unobtainium", "boiling_point"),
        ("The developer of leftpad is", "leftpad", "developer"),
        ("The lifespan of the snark is", "the snark", "lifespan"),
    ],
)
def test_an_invented_name_is_recognised_as_well_as_a_known_one(prompt: str, subject: str, relation: str) -> None:
    """Users correct what no table lists: a company's own products, an invented country."""
    found = atlas.recognise(prompt, subject)

    assert found is not None
    assert found.id == relation


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


def test_a_functional_relation_has_one_object_a_subject() -> None:
    """Issue §2: no two rows contradict each other."""
    assert [fact for fact in atlas.facts() if atlas.relations()[fact.relation].functional and len(fact.objects) != 1] == []


def test_inverse_relations_agree() -> None:
    """Issue §2: no two rows contradict each other; where a relation's inverse lists the object, it lists the subject with it."""
    objects = {(fact.relation, fact.subject): fact.objects for fact in atlas.facts()}
    pairs = {(relation.id, relation.inverse) for relation in RELATIONS if relation.inverse}
    with_facts = {(one, other) for one, other in pairs if {one, other} <= {fact.relation for fact in atlas.facts()}}
    against = [
        (relation, subject, named)
        for (relation, subject), listed in objects.items()
        for named in listed
        if subject not in objects.get((atlas.relations()[relation].inverse, named), (subject,))
    ]

    assert against == []
    assert {("capital", "capital_of"), ("borders", "borders"), ("spouse", "spouse")} <= with_facts


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_one_entity_is_no_name_of_another_of_its_type(kind: str) -> None:
    """An edit under another name is about the entity that has it, so that two may not share one."""
    owners: dict[str, set[str]] = defaultdict(set)
    for entity, other in atlas.entities(kind).items():
        for name in (entity, *other):
            owners[squash(name)].add(entity)

    assert {name: sharing for name, sharing in owners.items() if len(sharing) > 1} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_another_name_differs_in_more_than_case_and_diacritics(kind: str) -> None:
    """Names are compared folded; one that is another of the same entity but for these adds nothing.

    One that differs in a dash or a stroke ("Lodz") adds nothing to what a text is searched for, but to what the ledger compares.
    """
    for entity, other in atlas.entities(kind).items():
        folded = ["".join(c for c in normalize("NFKD", name.casefold()) if not combining(c)).strip() for name in (entity, *other)]

        assert all(folded)
        assert len(set(folded)) == len(folded), (entity, other)


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
