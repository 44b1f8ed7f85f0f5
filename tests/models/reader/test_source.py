"""Where samples come from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ke_tools import atlas, cases
from ke_tools.facts import squash
from ke_tools.models.reader.source import Source


def names(*, kept_back: bool) -> list[str]:
    """Names of made up places that belong to the measured ones, or do not."""
    return [name for number in range(60) if cases.is_kept_back(name := f"Zorbia {number}") == kept_back]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write records to a file."""
    path.write_text(json.dumps(rows), "utf-8")
    return path


def knowedit(subject: str) -> dict[str, Any]:
    """A made up record."""
    return {
        "subject": subject,
        "prompt": f"The capital of {subject} is",
        "target_new": "Bloom",
        "ground_truth": "Strelsau",
        "portability": {
            "Subject_Aliasing": [{"prompt": f"The capital of Old {subject} is", "ground_truth": "Bloom"}],
            "Logical_Generalization": [{"prompt": "Bloom is the capital of", "ground_truth": subject}],
        },
        "locality": {},
    }


def test_what_is_kept_back_for_measuring_is_never_drawn(tmp_path: Path) -> None:
    """Issue: subjects that are only measured on, in every file and in the atlas alike."""
    rows = [knowedit(name) for name in (*names(kept_back=True), *names(kept_back=False)[:20])]
    source, rng = Source([write(tmp_path / "ke.json", rows)]), random.Random(0)

    drawn = [source.draw(rng) for _ in range(800)]

    assert any(item.fact.subject.startswith("Zorbia") for item in drawn)
    listed = {squash(fact.subject) for fact in atlas.facts()} | {squash(name) for name in names(kept_back=True)}
    assert [item for item in drawn if squash(item.fact.subject) in listed and cases.is_kept_back(item.fact.subject)] == []
    assert not any(cases.is_kept_back(item.fact.subject) for item in source.cases)


def test_a_question_under_another_name_says_whose_name_it_is(tmp_path: Path) -> None:
    """Issue, reader: aliases; the question names the subject by another name than the fact."""
    row = knowedit(names(kept_back=False)[0])
    source, rng = Source([write(tmp_path / "ke.json", [row])]), random.Random(0)

    drawn = [item for _ in range(60) if (item := source.draw_aliased(rng))]

    assert any(one.name == f"Old {row['subject']}" for item in drawn for one in item.aliased)
    for item in drawn:
        assert all(one.name.casefold() in one.wording.text.casefold() for one in item.aliased)


def test_a_fact_is_also_asked_for_its_subject_and_for_what_follows_from_it() -> None:
    """Issue, reader: reversed relation, one hop (the fact plus another that stands beside it)."""
    source, rng = Source([]), random.Random(0)
    drawn = [item for _ in range(300) if (item := source.draw_hop(rng))]

    assert any(hop.answer == item.fact.subject for item in drawn for hop in item.hops)
    hops = [(item, hop) for item in drawn for hop in item.hops if hop.beside]
    assert hops
    for item, hop in hops:
        assert item.fact.target in hop.beside[0]
        assert hop.answer in hop.beside[0]
        assert item.masked.casefold() in hop.wording.text.casefold()


def test_the_edits_of_one_record_stand_beside_each_other(tmp_path: Path) -> None:
    """MQuAKE's questions need all of a record's edits; with a subject that is kept back none of the record is used."""
    used, kept = names(kept_back=False)[:2], names(kept_back=True)[0]
    source = Source([write(tmp_path / "mq.json", [mquake(used[0], used[1]), mquake(used[0], kept)])])

    assert [item.fact.subject for item in source.cases] == used
    assert source.cases[0].hops[0].beside == (source.cases[1].fact.sentence,)


def mquake(first: str, second: str) -> dict[str, Any]:
    """A record of two edits."""
    rewrites = [
        {"subject": name, "prompt": "{} lies in", "question": f"Where is {name}?", "target_new": {"str": to}, "target_true": {"str": "Oz"}}
        for name, to in ((first, second), (second, "Bloom"))
    ]
    return {"requested_rewrite": rewrites, "questions": [f"Where does the place lie that {first} lies in?"], "new_answer": "Bloom"}


def test_things_that_no_table_lists_are_asked_about() -> None:
    """Issue, reader: facts about invented things, out of the atlas's slots."""
    source, rng = Source([]), random.Random(0)
    slots = {slot.id for slot in atlas.slots()}

    drawn = {source.draw(rng).slot for _ in range(300)}

    assert len(drawn & slots) > 20 or not slots


def test_a_large_file_does_not_drown_a_small_one(tmp_path: Path) -> None:
    """Issue, reader: do not lose paraphrases of one benchmark for those of a larger one."""
    free = [name for number in range(400) if not cases.is_kept_back(name := f"Blip {number}")]
    large, small = [knowedit(name) for name in free[4:]], [knowedit(name) for name in free[:4]]
    source, rng = Source([write(tmp_path / "large.json", large), write(tmp_path / "small.json", small)]), random.Random(0)

    drawn = [item.slot.partition(":")[0] for _ in range(1500) if (item := source.draw(rng)).slot.startswith(("large:", "small:"))]

    assert drawn.count("small") > 0.05 * len(drawn)
