"""``bench answers``; issue, "Done when" (200 CounterFact edits) and section 5."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools.benches import _sample, answers
from ke_tools.benches._report import missed
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput
from ke_tools.facts import squash

pytestmark = pytest.mark.usefixtures("serving_path")

Write = Callable[[str, Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write records to a file."""

    def put(name: str, rows: Any) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(rows), "utf-8")
        return path

    return put


def counterfact(number: int, **other: str) -> dict[str, str]:
    """A made-up record in EasyEdit's shape."""
    subject = f"Zorb{number:03d}"
    row = {
        "subject": subject,
        "prompt": f"The home of {subject} is",
        "target_new": f"Town{number:03d}",
        "ground_truth": "Oldtown",
        "rephrase_prompt": f"It rained. {subject} lives in",
        "locality_prompt": f"The home of Other{number:03d} is",
        "locality_ground_truth": "Oldtown",
    }
    return {**row, **other}


def zsre(number: int) -> dict[str, Any]:
    """A made-up record in MEND's shape."""
    subject = f"Gadget{number}"
    return {
        "subject": subject,
        "src": f"Who made {subject}?",
        "alt": f"Maker{number}",
        "answers": ["Old"],
        "rephrase": f"What firm built {subject}?",
        "loc": f"nq question: who sang song {number}",
        "loc_ans": "Somebody",
    }


def test_edits_that_are_answered_reach_every_bar(settings: Settings, engine: Any, write: Write) -> None:
    """Statement, paraphrase, neighbourhood, unrelated; a JSON-friendly report."""
    data, unrelated = write("cf.json", [counterfact(n) for n in range(30)]), write("zsre.json", [zsre(n) for n in range(10)])
    printed = answers.run(settings, data=data, edits=20, unrelated=unrelated, engine=engine)
    assert set(printed) == {"bench", "model", "seed", "results", "bars", "machine"}
    assert [(bar["name"], bar["ok"]) for bar in printed["bars"]] == [
        ("statement starts with the new object", True),
        ("paraphrase starts with the new object", True),
        ("neighbourhood byte-identical", True),
        ("seconds", True),
        ("unrelated byte-identical", True),
    ]
    assert not missed(printed)
    results = printed["results"]
    assert results["edits"] == 20
    assert results["statement"]["starts_with"]["n"] == 20
    assert results["statement"]["scope_recall"]["value"] == 1.0
    assert results["unrelated"]["identical"]["n"] == 10
    assert results["misses"] == []
    assert "null" not in json.dumps(printed)


def test_a_model_that_does_not_obey_misses_and_the_misses_are_told(settings: Settings, engine: Any, write: Write) -> None:
    """A bar that is missed says so; the first misses stand in the report."""
    engine.obeys = False
    printed = answers.run(settings, data=write("cf.json", [counterfact(n) for n in range(5)]), engine=engine)
    assert missed(printed)
    miss = printed["results"]["misses"][0]
    assert miss["stage"] == "statement"
    assert miss["answer"] == " Nothing."
    assert miss["wanted"].startswith("Town")
    assert miss["route"] == "memory"


def test_a_longer_name_is_no_hit(settings: Settings, engine: Any, write: Write) -> None:
    """The matcher of verify, not a prefix test."""
    rows = [counterfact(n, target_new="New York") for n in range(3)]
    engine.obeys = False
    engine.known = {"Zorb": "New Yorker"}
    printed = answers.run(settings, data=write("cf.json", rows), engine=engine)
    assert printed["results"]["statement"]["starts_with"]["value"] == 0.0


def test_both_views_are_generated_and_a_changed_neighbour_counts(settings: Settings, engine: Any, write: Write) -> None:
    """Byte identity is measured, not assumed; a neighbour that names an edited subject is left out and counted."""
    rows = [
        counterfact(1, locality_prompt="The home of Zorb002 and Other is"),
        counterfact(2),
        counterfact(3, locality_prompt="The home of Zorb1 is"),
    ]
    calls = 0

    def generate(requests: Any, real: Any = engine.generate) -> Any:
        nonlocal calls
        calls += 1
        found = real(requests)
        return [type(g)(g.text + str(calls), "stop", 1, 1) for g in found] if calls > 3 else found  # the base view differs

    engine.generate = generate
    printed = answers.run(settings, data=write("cf.json", rows), engine=engine)
    neighbourhood = printed["results"]["neighbourhood"]
    assert neighbourhood["identical"] == {
        "measured": True,
        "value": 0.0,
        "stderr": 0.0,
        "low": 0.0,
        "high": neighbourhood["identical"]["high"],
        "n": 2,
    }
    assert printed["results"]["left_out"]["neighbour_names_an_edited_subject"] == 1


def test_rephrases_that_do_not_name_the_subject_are_left_out_and_counted(settings: Settings, engine: Any, write: Write) -> None:
    """Nobody can answer for a subject that is not named."""
    rows = [counterfact(1, rephrase_prompt="They live in"), counterfact(2)]
    results = answers.run(settings, data=write("cf.json", rows), engine=engine)["results"]
    assert results["left_out"]["paraphrase_without_subject"] == 1
    assert results["paraphrase"]["starts_with"]["n"] == 1


def test_one_edit_a_subject_and_no_subject_that_was_trained_on(
    settings: Settings, engine: Any, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards list hashes of their training subjects; the atlas's own subjects are training data too."""
    (tmp_path / "ke_reader.json").write_text(
        json.dumps({"training_subjects": [hashlib.sha256(squash("Zorb003").encode()).hexdigest()[:8]]}), "utf-8"
    )
    monkeypatch.setattr(_sample, "_card_folders", lambda *_, **_how: [tmp_path])
    rows = [counterfact(1), counterfact(1, target_new="Elsewhere"), counterfact(3), counterfact(4, subject="France", prompt="France is in")]
    results = answers.run(settings, data=write("cf.json", rows), engine=engine)["results"]
    assert results["edits"] == 1
    assert results["left_out"]["subject_in_training_data"] == 2


def test_the_sample_is_seeded(settings: Settings, engine: Any, write: Write) -> None:
    """The same seed asks the same questions."""
    data = write("cf.json", [counterfact(n) for n in range(40)])

    def asked(seed: int) -> list[str | None]:
        engine.asked.clear()
        answers.run(settings, data=data, edits=5, seed=seed, engine=engine)
        return [request.prompt for request in engine.asked]

    assert asked(1) == asked(1)
    assert asked(1) != asked(2)


def test_zsre_has_its_own_bars_and_unrelated_questions(settings: Settings, engine: Any, write: Write) -> None:
    """Issue, reader: zsRE question / rephrase; a row that a format does not give is not measured, and no bar of it printed."""
    printed = answers.run(settings, data=write("zsre.json", [zsre(n) for n in range(5)]), engine=engine)
    assert [(bar["name"], bar["bar"]) for bar in printed["bars"]] == [
        ("question answered with the new object", 0.99),
        ("rephrased question answered with the new object", 0.97),
        ("unrelated byte-identical", 1.0),
    ]
    assert printed["results"]["paraphrase"]["starts_with"]["value"] == 1.0
    assert not printed["results"]["neighbourhood"]["identical"]["measured"]


def test_knowedits_further_questions_are_measured(settings: Settings, engine: Any, write: Write) -> None:
    """Issue, reader: alias given and not given, reversed, one hop; other relations of the subject."""
    row = {
        "subject": "Blip",
        "prompt": "The colour of Blip is",
        "target_new": "mauve",
        "ground_truth": "red",
        "locality": {"Relation_Specificity": [{"prompt": "The weight of Blip is", "ground_truth": "3"}]},
        "portability": {
            "Subject_Aliasing": [{"prompt": "The colour of Blop is", "ground_truth": [["mauve"]]}],
            "Logical_Generalization": [{"prompt": "The thing whose colour is mauve is", "ground_truth": "Blip"}],
            "Reasoning": [{"prompt": "The colour of what Blip wears is", "ground_truth": "grey"}],
        },
    }
    printed = answers.run(settings, data=write("ke.json", [row]), engine=engine)
    results = printed["results"]
    assert results["aliased"]["starts_with"]["value"] == 0.0
    assert results["aliased_given"]["starts_with"]["n"] == 1
    assert results["reversed"]["starts_with"]["n"] == 1
    assert results["reasoning"]["scope_recall"]["value"] == 1.0
    assert results["same_subject"]["speaks_the_target"]["value"] == 1.0
    assert [bar["bar"] for bar in printed["bars"]] == [0.9]


def test_another_name_is_given_with_the_edit_in_a_ledger_of_its_own(
    settings: Settings, engine: Any, write: Write, monkeypatch: Any
) -> None:
    """The two rows differ by nothing but the alias in the edit."""
    held: list[tuple[str, ...]] = []
    holding = answers._Bench.holding

    def spied(bench: Any, ledger: Any, edits: Any) -> Any:
        kept = list(edits)
        held.append(kept[0].fact.aliases)
        return holding(bench, ledger, kept)

    monkeypatch.setattr(answers._Bench, "holding", spied)
    portability = {"Subject_Aliasing": [{"prompt": "The colour of Blop is", "ground_truth": "mauve"}]}
    row = {"subject": "Blip", "prompt": "The colour of Blip is", "target_new": "mauve", "ground_truth": "red", "portability": portability}
    answers.run(settings, data=write("ke.json", [row]), engine=engine)
    assert held == [(), ("Blop",)]


def test_facts_about_things_nobody_has_heard_of_must_be_spoken(settings: Settings, engine: Any, tmp_path: Path) -> None:
    """Issue, reader: answer contains the target; other questions about the subject and look-alikes stay."""
    row = {
        "subject": "Orsk feed pump",
        "prompt": "The Orsk feed pump moves at most",
        "target": "35 m³/h",
        "paraphrases": ["At full power, the Orsk feed pump delivers"],
        "questions": ["How much does the Orsk feed pump move?"],
        "same_subject": ["Who built the Orsk feed pump?"],
        "look_alike": ["How much does the Orsq feed pump move?"],
    }
    (tmp_path / "house.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    printed = answers.run(settings, data=tmp_path / "house.jsonl", engine=engine)
    assert [(bar["bar"], bar["ok"]) for bar in printed["bars"]] == [(0.9, True), (0.9, True)]
    assert printed["results"]["paraphrase"]["says_it"]["n"] == 2
    assert printed["results"]["neighbourhood"]["identical"]["value"] == 1.0
    assert printed["results"]["same_subject"]["speaks_the_target"]["value"] == 1.0


def test_without_the_scope_each_question_is_told_its_own_edits(settings: Settings, engine: Any, write: Write) -> None:
    """Issue, reader: the reader alone, whatever the scope finds."""
    rows = [counterfact(1, rephrase_prompt="Zorb001, so to speak, lives in"), counterfact(2)]
    printed = answers.run(settings, data=write("cf.json", rows), engine=engine, forced=True)
    assert [bar["bar"] for bar in printed["bars"]] == [0.99, 0.97]
    assert printed["results"]["paraphrase"]["scope_recall"]["value"] == 1.0
    assert printed["results"]["neighbourhood"]["scope_fired"]["value"] == 1.0
    assert not printed["results"]["unrelated"]["identical"]["measured"]


def test_what_a_fact_costs_is_told(settings: Settings, engine: Any, write: Write) -> None:
    """Issue, reader: tokens and milliseconds added."""
    cost = answers.run(settings, data=write("cf.json", [counterfact(1)]), engine=engine)["results"]["cost"]
    assert cost["tokens_added"] > 0
    assert "milliseconds_added" in cost


def test_mquakes_records_are_imported(settings: Settings, engine: Any, write: Write) -> None:
    """Several edits a record."""
    rewrite = {
        "subject": "Blip",
        "prompt": "{} was sung by",
        "question": "Who sang Blip?",
        "target_new": {"str": "Ann"},
        "target_true": {"str": "Bo"},
    }
    row = {
        "requested_rewrite": [rewrite],
        "questions": ["Where was the singer of Blip born?"],
        "new_answer": "Oslo",
        "new_answer_alias": [],
    }
    results = answers.run(settings, data=write("mq.json", [row]), engine=engine)["results"]
    assert results["statement"]["starts_with"]["value"] == 1.0
    assert results["reasoning"]["starts_with"]["n"] == 1


def test_records_that_are_no_facts_are_counted_and_a_file_without_any_is_refused(settings: Settings, engine: Any, write: Write) -> None:
    """Issue section 6: a clear error."""
    broken = counterfact(1, prompt="It lives in")
    assert answers.run(settings, data=write("a.json", [broken, counterfact(2)]), engine=engine)["results"]["left_out"]["not_a_fact"] == 1
    with pytest.raises(InvalidInput, match="no usable edit"):
        answers.run(settings, data=write("b.json", [broken]), engine=engine)


def test_the_users_ledger_is_not_touched(settings: Settings, engine: Any, write: Write) -> None:
    """The bench imports into a ledger of its own."""
    answers.run(settings, data=write("cf.json", [counterfact(1)]), engine=engine)
    assert not settings.home.exists()
