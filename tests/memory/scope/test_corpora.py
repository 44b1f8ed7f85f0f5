"""What the head is trained on, and what it must never see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.errors import InvalidInput
from ke_tools.memory.scope.corpora import Corpus, Group, corpora, subjects_of, training_texts

BOOKS = ("Paradiso", "Emma", "Dune", "Lolita Two", "Ulysses", "Phaedo")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A data file."""
    path.write_text(json.dumps(rows), "utf-8")
    return path


def neighbour_rows(*told: tuple[str, str, str, str], times: int = 3) -> list[dict[str, Any]]:
    """Records in CounterFact's flat shape: subject, prompt, rephrase, neighbour."""
    return [
        {
            "subject": subject,
            "prompt": prompt,
            "target_new": "b",
            "ground_truth": "a",
            "rephrase_prompt": rephrase,
            "locality_prompt": neighbour,
            "locality_ground_truth": "a",
        }
        for subject, prompt, rephrase, neighbour in told
        for _ in range(times)
    ]


def groups_of(corpus: Corpus) -> dict[str, Group]:
    """Groups by name."""
    return {group.name: group for group in corpus.groups}


def test_the_atlas_gives_its_fitted_wordings_and_nothing_else() -> None:
    """Design §4 no. 4: some wordings and whole relations are for probes only."""
    corpus, _ = corpora()

    assert {group.name for group in corpus.groups} == {r.id for r in atlas.relations().values() if not r.probe}
    capital = atlas.relations()["capital"]
    assert set(groups_of(corpus)["capital"].texts) == {*capital.fitted_statements, *capital.fitted_questions}


def test_no_training_text_is_a_probe_wording(tmp_path: Path) -> None:
    """Issue §2: nothing that is fitted may use them, wherever they stand."""
    probe = atlas.relations()["capital"].probe_statements[0]
    held_out = next(r for r in atlas.relations().values() if r.probe).statements[0]
    rows = neighbour_rows(
        ("Zembla", "The ruler of Zembla is", probe.replace("{}", "Zembla"), "The ruler of Freedonia is"),
        ("Zembla", held_out.replace("{}", "Zembla"), "Zembla is led by", "The ruler of Freedonia is"),
    )

    texts = list(training_texts([written(tmp_path / "data.json", rows)]))

    assert "The ruler of {} is" in texts
    assert not [text for text in texts if atlas.holds_probe_wording(text)]


def test_a_probe_wording_behind_an_unrelated_sentence_is_dropped_too(tmp_path: Path) -> None:
    """CounterFact's rephrases have sentences in front; what is graded on must not be fitted on in that disguise either."""
    relation = atlas.relations()["capital"]
    probe, question = relation.probe_statements[0], relation.probe_questions[0]
    rows = neighbour_rows(
        ("Zembla", "The ruler of Zembla is", f"Rain fell all day. {probe.replace('{}', 'Zembla')}", "The ruler of Freedonia is"),
        ("Syldavia", "The ruler of Syldavia is", "Rain fell all day. Syldavia is ruled by", "The ruler of Freedonia is"),
        ("Borduria", f"Good day! {question.replace('{}', 'Borduria')}", "Borduria is led by", "The ruler of Freedonia is"),
    )

    (group,) = corpora([written(tmp_path / "data.json", rows)])[2].groups

    assert set(group.texts) == {"The ruler of {} is", "Rain fell all day. {} is ruled by"}


def test_a_prompt_its_rephrase_and_its_neighbours_wording_are_one_relation(tmp_path: Path) -> None:
    """CounterFact: the locality prompt is another wording of the prompt's relation; an unrelated sentence stands before some rephrases."""
    rows = neighbour_rows(
        ("Ada", "The mother tongue of Ada is", "Where Ada is from, people speak", "Bob is a native speaker of"),
        ("Bob", "Bob is a native speaker of", "Rain fell. The mother tongue of Bob is", "The mother tongue of Ada is"),
        ("Cid", "Cid is a native speaker of", "Rain fell on Sunday. Cid is a native speaker of", "The mother tongue of Ada is"),
        ("Dan", "Dan died in", "Dan passed away in", "Eve died in"),
    )

    corpus = corpora([written(tmp_path / "data.json", rows)])[2]
    groups = groups_of(corpus)

    assert set(groups) == {"The mother tongue of {} is", "{} is a native speaker of", "{} died in"}
    assert groups["The mother tongue of {} is"].edits == ("The mother tongue of {} is",)
    assert {"Where {} is from, people speak", "{} is a native speaker of"} <= set(groups["The mother tongue of {} is"].texts)
    assert "{} is a native speaker of" in groups["The mother tongue of {} is"].alike
    assert "{} died in" not in groups["The mother tongue of {} is"].alike
    assert not [text for group in corpus.groups for text in group.texts if "on Sunday" in text], "cut off in front of a known wording"


def test_questions_about_other_relations_of_the_subject_are_contrasts(tmp_path: Path) -> None:
    """KnowEdit: Relation_Specificity."""
    rows = [
        {
            "subject": "Ada",
            "prompt": "The gender of Ada is",
            "target_new": "b",
            "locality": {"Relation_Specificity": [{"prompt": "The shoe size of Ada is", "ground_truth": "a"}]},
        }
    ]

    (group,) = corpora([written(tmp_path / "data.json", rows)])[2].groups

    assert group.contrasts == ("The shoe size of {} is",)
    assert {"The gender of {} is", "What is {}'s gender?"} <= set(group.texts)
    assert group.targets == ("b",)


def test_questions_in_the_scope_of_a_statement_are_masked_by_what_they_share(tmp_path: Path) -> None:
    """PokeMQA's file names no subject."""
    rows = [
        {"edit": f"The author of {book} is Jean Giraudoux", "questions": [f"Who wrote {book}?", f"Who penned {book}?"] * 2}
        for book in BOOKS
    ]
    path = written(tmp_path / "data.json", rows)

    (group,) = corpora([path])[2].groups

    assert set(group.texts) == {"The author of {} is", "Who wrote {}?", "Who penned {}?"}
    assert set(subjects_of(path)) == set(BOOKS)


@pytest.mark.parametrize("text", ["no json", "{}", "[]", '[{"what": 1}]'])
def test_a_file_of_no_known_format_is_refused(tmp_path: Path, text: str) -> None:
    """Failure paths are real."""
    path = tmp_path / "data.json"
    path.write_text(text, "utf-8")

    with pytest.raises(InvalidInput):
        corpora([path])
