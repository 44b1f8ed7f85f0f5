"""The dimensions of the full suite: what they ask and how they are judged; issue 6 §1."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from ke_tools import atlas
from ke_tools.facts import Edit, Probe, squash
from ke_tools.memory.ledger import Ledger
from ke_tools.verify import FURTHER, Scorecard, drawn, judge, probes_for, verify
from ke_tools.verify.fluency import entropy, fluency
from ke_tools.verify.kept import distracting_prefix, forgetfulness
from ke_tools.verify.portability import alias, hop, hop_facts, reversed_
from ke_tools.verify.unrelated import behind, paragraphs, sentences, tasks

MakeEdit = Callable[..., Edit]


@pytest.fixture
def language(make_edit: MakeEdit) -> Edit:
    """A relation that takes several objects."""
    return make_edit("Switzerland", "The official language of Switzerland is", "Spanish")


def test_forgetfulness_asks_for_the_other_objects_of_a_relation_that_has_several(language: Edit) -> None:
    """KnowEdit: other objects of a one-to-many relation stay."""
    probes = list(forgetfulness(language))
    assert probes
    assert all(probe.prompt.startswith("Besides Spanish, ") and "Switzerland" in probe.prompt for probe in probes)
    assert all("German" in probe.accept for probe in probes)
    kept = "German and French are official."
    assert judge(probes[0], kept, kept).passed
    assert not judge(probes[0], kept, "Only Spanish.").passed


def test_there_is_nothing_to_forget_where_one_object_is_all(capital: Edit, house_rule: Edit, make_edit: MakeEdit) -> None:
    """Then it is "not measured"; so it is where the atlas lists only what the edit is about."""
    unlisted = make_edit("Zembla", "The official language of Zembla is", "Zemblan")
    assert [list(forgetfulness(edit)) for edit in (capital, house_rule, unlisted)] == [[], [], []]


def test_a_distracting_prefix_stands_before_a_neighbours_question_in_both_views(capital: Edit) -> None:
    """Yao et al. 2023: the edit's statement in front of an unrelated question must not sway it."""
    facts = [fact for fact in atlas.facts() if fact.relation == "capital" and fact.subject == "Japan"]
    probe = next(distracting_prefix(capital, facts))
    assert probe.prompt.startswith("The capital of Australia is Sydney. ")
    assert "Japan" in probe.prompt
    assert judge(probe, "Tokyo.", "It is Tokyo.").passed
    assert not judge(probe, "Tokyo.", "Sydney.").passed


def test_under_an_alias_the_subject_is_not_named_otherwise(capital: Edit, make_edit: MakeEdit) -> None:
    """Portability; an article makes no other name."""
    assert all("Commonwealth of Australia" in probe.prompt for probe in alias(capital))
    dutch = list(alias(make_edit("Netherlands", "The capital of the Netherlands is", "Utrecht")))
    assert dutch
    assert not [probe for probe in dutch if "netherlands" in probe.prompt.casefold()]


def test_reversed_the_answer_is_the_subject(capital: Edit, language: Edit) -> None:
    """Portability, where the relation has an inverse."""
    probes = list(reversed_(capital))
    assert probes
    assert all("Sydney" in probe.prompt and "Australia" in probe.accept and probe.reject == () for probe in probes)
    assert list(reversed_(language)) == []


def test_one_hop_goes_through_a_fact_about_the_target_that_the_model_knows(make_edit: MakeEdit) -> None:
    """Portability: "the river on which the capital of … lies"; no question whose answer stands in it."""
    edit = make_edit("Australia", "The capital of Australia is", "Paris")
    facts = hop_facts(edit)
    assert {squash(fact.subject) for fact in facts} == {"paris"}
    river = next(fact for fact in facts if fact.relation == "on_river")
    probes = list(hop(edit, [river]))
    assert probes
    assert all("the capital of Australia" in probe.prompt and "Paris" not in probe.prompt and "Seine" in probe.accept for probe in probes)
    assert list(hop(edit, [])) == []
    assert not [fact for fact in hop_facts(make_edit("France", "The capital of France is", "Paris")) if fact.relation == "capital_of"]


def test_a_text_is_fluent_when_it_repeats_itself_no_more_than_before(capital: Edit) -> None:
    """KnowEdit: n-gram entropy; the words may all be others."""
    probe = next(fluency(capital))
    base = "Australia is a large country between two oceans, known for its deserts, reefs and animals."
    other = "Sydney governs a wide land whose coast is green, whose middle is red, and whose towns are far apart."
    assert judge(probe, base, other).passed
    assert not judge(probe, base, "Sydney Sydney Sydney Sydney Sydney Sydney Sydney Sydney Sydney Sydney.").passed


def test_a_text_that_repeats_itself_has_less_entropy() -> None:
    """The ROME paper's GE; by hand: four different bigrams have two bits, three trigrams log2 3."""
    assert entropy("one two three four five") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    assert entropy("no no no no no") == 0
    assert entropy("word") == entropy("") == 0


def test_the_plain_text_and_the_tasks_name_no_subject_of_an_atlas_fact() -> None:
    """What is unrelated must be so for every edit."""
    names = {squash(fact.subject) for fact in atlas.facts() if fact.subject[:1].isupper()}
    assert len(sentences()) >= 60
    assert len(tasks()) >= 60
    assert len(set(tasks())) == len(tasks())
    assert sum(len(text.split()) for text in paragraphs()) >= 700
    for text in (*sentences(), *tasks()):
        words = [word.strip(".,:?!") for word in text.split()][1:]
        assert not {squash(word) for word in words if word[:1].isupper()} & names, text


def test_no_two_sentences_before_a_prompt_are_the_same(capital: Edit) -> None:
    """Asked twice, a greedy model says the same, which counts twice."""
    found = list(islice(behind(capital, "test"), 1_000))
    assert len(set(found)) == 1_000
    assert found == list(islice(behind(capital, "test"), 1_000))


def _verified(edit: Edit, edited: str = "") -> Scorecard:
    def base(probes: list[Probe]) -> list[str]:
        return [f"Answer {len(probe.prompt)}." for probe in probes]

    def after(probes: list[Probe]) -> list[str]:
        return [edited or (f"{probe.accept[0]}." if probe.expect == "target" else f"Answer {len(probe.prompt)}.") for probe in probes]

    return verify([edit], probes_for(edit, suite="full"), after, base)


def test_a_full_scorecard_has_the_further_rates_and_shows_them(language: Edit) -> None:
    """Issue 6 §1: suites quick and full."""
    card = _verified(language)
    assert set(card.further) == {*FURTHER} - {"portability_reversed", "portability_hop"}
    assert all(rate.value == 1 for rate in card.further.values())
    rows = card.as_dict()["further"]
    assert [row["dimension"] for row in rows] == list(card.further)
    assert set(rows[0]) == {"dimension", "measured", "value", "stderr", "n", "low", "high"}
    assert "distracting prefix 1.00 ± 0.00" in card.text()


def test_bytes_kept_is_of_the_two_localities_alone(language: Edit) -> None:
    """A text about the subject is meant to change."""
    card = _verified(language)
    assert card.overall.bytes_kept.n == card.overall.locality_same_subject.n + card.overall.locality_other_subject.n


def test_a_scorecard_is_stored_by_the_hash_of_all_it_says(language: Edit, tmp_path: Path) -> None:
    """Issue 6 §1: by content hash, seeds and revision recorded."""
    document = _verified(language).document(revision=7, model="thimble", seed=0)
    again = _verified(language).document(seed=0, model="thimble", revision=7)
    other = _verified(language, "Spanish.").document(revision=7, model="thimble", seed=0)
    same, different = (document, again, json.loads(json.dumps(document))), (other, document | {"revision": 8})
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        assert len({ledger.keep_scorecard("acme", one) for one in same}) == 1
        assert len({ledger.keep_scorecard("acme", one) for one in (document, *different)}) == 3
    assert "null" not in json.dumps(document)
    assert [row["form"] for row in document["forms"]] == ["behind a sentence", "chat", "question", "statement"]
    assert {"prompt", "base", "edited", "form", "origin"} < set(document["outcomes"][0])


def test_the_card_is_well_formed_whatever_a_model_said(language: Edit) -> None:
    """Issue 6 §1: an SVG card with the rates and the worst case."""
    card = _verified(language, "<b>&\x07 'Spanish'")
    picture = drawn(card.document(), "Switzerland <1>", notes=["refused: other subjects"])
    texts = [element.text or "" for element in ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]  # noqa: S314  ours
    assert texts[0] == "Switzerland <1>"
    assert {"reliability", "same subject", "forgetfulness", "refused: other subjects"} <= set(texts)
    assert any(text.startswith("Worst case: asked ") for text in texts)
    assert picture == drawn(card.document(), "Switzerland <1>", notes=["refused: other subjects"])
    assert "not measured" in drawn(verify([language], [], lambda _: [], lambda _: []).document(), "Nothing")
