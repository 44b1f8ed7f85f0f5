"""What the reader is trained on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from ke_tools import atlas
from ke_tools.models.reader.forms import Base
from ke_tools.models.reader.samples import Sample, Source, build, training_texts

STAND_INS = ("the Alpine republic", "Genvoia", "Syldavia")  # what the file below says instead of its subjects' names


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file in CounterFact's shape: one ordinary case, and probe wordings of ours in each of the ways that they get into such files."""
    probe = atlas.relations()["capital"].probe_statements[0]
    ways = {
        "Freedonia": {"rephrase_prompt": probe.replace("{}", "Freedonia")},
        "Grand Fenwick": {"rephrase_prompt": "It rained. They left early. " + probe.replace("{}", "Grand Fenwick")},
        "Zubrowka": {"rephrase_prompt": probe.replace("{}", "the Alpine republic")},
        "Genovia": {"rephrase_prompt": probe.replace("{}", "Genvoia")},
        "Latveria": {"locality_prompt": probe.replace("{}", "Syldavia")},
        "Wadiya": {"prompt": probe.replace("{}", "Wadiya")},
        "Sylvania": {},
    }
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([_row(subject) | way for subject, way in ways.items()]), "utf-8")
    return path


def _row(subject: str) -> dict[str, str]:
    return {
        "subject": subject,
        "prompt": f"The capital of {subject} is",
        "target_new": "Bloom",
        "ground_truth": "x",
        "rephrase_prompt": f"{subject} is run from",
        "locality_prompt": "The capital of Ruritania is",
        "locality_ground_truth": "Strelsau",
    }


def test_no_text_that_training_may_use_is_a_probe_wording(data: Path) -> None:
    """Issue §2: a test collects every training script's texts and fails on an overlap."""
    texts = list(training_texts([data]))

    assert len(texts) > 1000
    assert [text for text in texts if atlas.holds_probe_wording(text)] == []
    assert "Sylvania is run from" in [text.replace("{}", "Sylvania") for text in texts]


def test_no_sample_asks_or_tells_in_a_probe_wording(data: Path) -> None:
    """The same, on what is built rather than on what it is built from: parts that are clean may be put together badly."""
    samples = build(Source([data]), 600, seed=1)

    leaked = [text for sample in samples for text in sample.texts if _holds_probe(text, sample.subjects)]
    assert leaked == []
    assert sum("Sylvania" in sample.subjects for sample in samples) > 10


def _holds_probe(text: str, subjects: Sequence[str]) -> bool:
    return any(atlas.holds_probe_wording(atlas.mask(text, [subject])) for subject in (*subjects, *STAND_INS))


def test_a_sample_put_together_into_a_probe_wording_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opener or a sentence in front may complete a wording that neither part holds."""
    statement = next(wording for wording in atlas.relations()["capital"].probe_statements if wording.endswith("is"))
    monkeypatch.setattr(Source, "sentence", lambda *_: statement.replace("{}", "Oz"))

    assert not [sample for sample in build(Source([]), 200, seed=2) if "Oz" in sample.question]


def test_what_a_file_asks_beside_its_fact_is_asked_with_the_fact_in_the_context(data: Path) -> None:
    """Issue §2: irrelevant facts about other subjects, whose answer is the base model's own."""
    asked = [sample for sample in build(Source([data]), 600, seed=1) if "Ruritania" in sample.question]

    assert asked
    assert all(sample.irrelevant for sample in asked)


def test_a_question_that_names_the_object_is_not_called_irrelevant(tmp_path: Path) -> None:
    """KnowEdit asks "which is not <object>": there the fact matters, and the base's answer is no model for the reader."""
    row = {
        "subject": "Sylvania",
        "prompt": "The capital of Sylvania is",
        "target_new": "Bloom",
        "ground_truth": "x",
        "locality": {
            "Relation_Specificity": [{"prompt": "The currency of Sylvania is", "ground_truth": "florin"}],
            "Forgetfulness": [{"prompt": "The capital of Sylvania, which is not Bloom, is", "ground_truth": "x"}],
        },
        "portability": {},
    }
    (tmp_path / "knowedit.json").write_text(json.dumps([row]), "utf-8")

    questions = {sample.question for sample in build(Source([tmp_path / "knowedit.json"]), 400, seed=1)}

    assert any("The currency of Sylvania" in question for question in questions)
    assert not any("which is not" in question for question in questions)


def test_a_model_without_conversations_gets_none() -> None:
    """A base model without a chat template can learn from completions alone."""
    assert not any(sample.chat for sample in build(Source([], chats=False), 100, seed=1))


def test_the_same_seed_builds_the_same_samples(data: Path) -> None:
    """A training must be repeatable (issue §2: seeded)."""
    assert build(Source([data]), 50, seed=3) == build(Source([data]), 50, seed=3)
    assert build(Source([data]), 50, seed=3) != build(Source([data]), 50, seed=4)


def test_an_in_scope_completion_is_told_the_object_that_it_must_answer() -> None:
    """The reader learns to copy from its facts; only a hop may ask for what the model itself must know."""
    in_scope = [sample for sample in build(Source([]), 600, seed=5) if not sample.irrelevant and not sample.chat]
    told = [sample for sample in in_scope if any(sample.answer.strip().rstrip(".") in fact for fact in sample.facts)]

    assert len(told) > 0.93 * len(in_scope)


def test_a_fact_told_as_new_nearly_always_answers_and_one_told_as_conditional_half_of_the_time() -> None:
    """Issue, conditional route: trained both where the fact applies and where it does not."""
    samples = build(Source([]), 2000, seed=5)
    shares = {told: [sample.irrelevant for sample in samples if sample.conditional == told] for told in (True, False)}

    assert 0.35 < sum(shares[True]) / len(shares[True]) < 0.65
    assert sum(shares[False]) / len(shares[False]) < 0.25


def test_a_conditional_fact_is_told_as_the_router_tells_it() -> None:
    """A reader trained on another form than the one that is served would not know it."""
    samples = [sample for sample in build(Source([]), 200, seed=5) if sample.conditional]

    for sample in samples:
        text = sample.messages[-2]["content"] if sample.chat else sample.prompt
        assert "only if" in text
        assert "New fact" not in text


@pytest.mark.parametrize(
    ("how", "said", "answer", "ends"),
    [
        ("alone", "I do not know.", "I do not know.", True),
        ("continued", " It lies on a lake.", "The capital is Bloom. It lies on a lake.", True),
        ("swapped", "It is Strelsau, a town.", "It is Bloom, a town.", True),
        ("swapped", "It is Oz.", "The capital is Bloom.", True),
        ("after", "Paris. It is old.", "The capital is Bloom. Paris.", True),
        ("before", "It is a country. Strelsau is its heart.", "It is a country. The capital is Bloom.", False),
    ],
)
def test_the_base_models_part_is_joined_to_the_answer(how: str, said: str, answer: str, ends: bool) -> None:
    """Issue, reader: long natural answers in the base's style that only change the fact; two parts; "tell me about"."""
    base = Base(how, truth="Strelsau", target="Bloom")  # type: ignore[arg-type]
    sample = Sample((), "?", None, "" if how == "alone" else "The capital is Bloom.", (), base=base)

    whole = sample.completed(said, cut=False)

    assert (whole.answer, whole.ends, whole.base) == (answer, ends, None)
    assert not sample.completed(said, cut=True).ends or how in {"after", "before"}


def test_an_irrelevant_sample_waits_for_the_base_models_answer() -> None:
    """Issue §2: the answer to an irrelevant fact is the base model's own."""
    irrelevant = [sample for sample in build(Source([]), 200, seed=6) if sample.irrelevant]

    assert 20 < len(irrelevant) < 100
    assert {sample.answer for sample in irrelevant} == {""}


def test_one_to_four_facts_stand_directly_before_the_last_user_turn() -> None:
    """Issue §3, router: the fact is written directly before the last user turn."""
    chats = [sample for sample in build(Source([]), 400, seed=7) if sample.chat]

    assert {len(sample.facts) for sample in chats} == {1, 2, 3, 4}
    for sample in chats:
        *_, told, asked = sample.messages
        assert told["role"] == "system"
        assert all(" ".join(fact.split()).replace('"', "'") in told["content"] for fact in sample.facts)
        assert asked["role"] == "user"


def test_excluded_subjects_are_left_out(data: Path) -> None:
    """Issue, done when: the bench's subjects occur in no training data."""
    source = Source([data], frozenset({"sylvania"}))

    assert "sylvania" not in source.subjects
    assert "genovia" in source.subjects


def test_an_excluded_subject_that_a_text_names_by_the_way_is_on_the_card(data: Path) -> None:
    """A bench leaves out the subjects that the card names; a question about a neighbour shows the model one of them, too."""
    assert "ruritania" in Source([data], frozenset({"ruritania"})).subjects
    assert "ruritania" not in Source([data]).subjects


def test_probe_relations_are_never_drawn() -> None:
    """Issue §2: a fifth of the relations is kept from everything that is fitted."""
    source, rng = Source([]), random.Random(0)

    assert {source.draw(rng).slot for _ in range(500)} & {r.id for r in atlas.relations().values() if r.probe} == set()
