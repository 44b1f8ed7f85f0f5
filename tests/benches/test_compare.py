"""``bench compare``: the surveys' table, on a tiny model."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools import cli
from ke_tools.benches import _quiz, _speakers, compare
from ke_tools.benches._scoring import forced, likelihoods
from ke_tools.cases import Case
from ke_tools.config import Settings
from ke_tools.editors import METHODS
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import tiny, tokenizer

pytestmark = pytest.mark.slow  # real models or processes; minutes on a slow machine

__all__ = ["tiny", "tokenizer"]

QUICK = {"ft-m": {"layers": "3", "steps": "60", "learning_rate": "0.02"}}
IDLE = {"ft-m": {"layers": "3", "reached": "1e9"}}  # content with what the model says already
Make = Callable[[str], CausalModel]


def counterfact(subject: str, target: str, truth: str) -> dict[str, str]:
    """A record in EasyEdit's shape."""
    return {
        "subject": subject,
        "prompt": f"The capital of {subject} is",
        "target_new": target,
        "ground_truth": truth,
        "rephrase_prompt": f"It is cold. {subject} is governed from",
        "locality_prompt": "The capital of Italy is",
        "locality_ground_truth": "Rome",
    }


ROWS = [counterfact("Zorbia", "Oslo", "Paris"), counterfact("Quendor", "Lima", "Madrid"), counterfact("Vexland", "Cairo", "Berlin")]
KNOWEDIT = {
    "subject": "Zorbia",
    "prompt": "The capital of Zorbia is",
    "target_new": "Oslo",
    "ground_truth": "Paris",
    "locality": {"Relation_Specificity": [{"prompt": "The currency of Zorbia is", "ground_truth": "yen"}]},
    "portability": {
        "Subject_Aliasing": [{"prompt": "The capital of Zorb is", "ground_truth": "Oslo"}],
        "Logical_Generalization": [{"prompt": "Oslo is the capital of", "ground_truth": [["Zorbia", "Zorb"]]}],
        "Reasoning": [{"prompt": "The country of the capital of Zorbia is", "ground_truth": "Norway"}],
    },
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of three edits."""
    path = tmp_path / "cf.json"
    path.write_text(json.dumps(ROWS), "utf-8")
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts: a name is a token of the tiny model's, which goes on with anything."""
    monkeypatch.setattr("ke_tools.benches._quiz.FLUENT_TOKENS", 8)
    monkeypatch.setattr("ke_tools.benches._quiz.ANSWER_TOKENS", 1)
    monkeypatch.setattr(compare, "FLUENT_TOKENS", 8)


def rows_of(settings: Settings, data: Path, model: CausalModel, methods: str, **more: Any) -> dict[str, Any]:
    """The rows of a comparison."""
    usual = {"edits": 3, "how": QUICK if "ft-m" in methods else {}}
    report = compare.run(settings, data=data, methods=methods.split(","), model=model, **{**usual, **more})
    assert "null" not in json.dumps(report)
    rows: dict[str, Any] = report["results"]["rows"]
    return rows


def values(row: dict[str, Any]) -> dict[str, Any]:
    """A row's measures."""
    return {group: row[group] for group in ("free generation", "as published")}


def test_a_row_a_method_and_only_columns_that_the_data_measures(tiny: Make, settings: Settings, data: Path) -> None:
    """Both surveys' measures side by side: free generation and as published, with fluency, time and memory."""
    rows = rows_of(settings, data, tiny("llama"), "none,prompt,ft-m")

    assert list(rows) == ["none", "prompt", "ft-m"]
    assert set(rows["ft-m"]["free generation"]) == {
        "reliability", "generalisation", "neighbour, first word", "neighbour, whole text",
        "distracted, first word", "distracted, whole text", "fluency",
    }  # fmt: skip
    assert list(rows["ft-m"]["as published"]) == [
        "ES", "PS", "NS", "reliability, tokens", "generalisation, tokens", "neighbour, tokens", "distracted, tokens",
    ]  # fmt: skip
    assert rows["none"]["free generation"]["neighbour, whole text"]["value"] == 1
    assert rows["none"]["as published"]["neighbour, tokens"]["value"] == 1
    assert rows["ft-m"]["free generation"]["reliability"] | {"high": 0, "low": 0} == {
        "measured": True, "value": 1.0, "stderr": 0.0, "low": 0, "high": 0, "n": 3,
    }  # fmt: skip
    assert rows["ft-m"]["as published"]["ES"]["value"] == rows["ft-m"]["as published"]["reliability, tokens"]["value"] == 1
    assert rows["ft-m"]["free generation"]["neighbour, whole text"]["value"] < 1
    assert rows["ft-m"]["cost"]["seconds an edit"] > 0
    assert "seconds an edit" not in rows["none"]["cost"]
    assert rows["prompt"]["settings"]["tokens"] < 128
    assert "of 3 statements" in rows["prompt"]["notes"][0]
    assert values(rows["prompt"]) != values(rows["none"])


def test_what_is_left_out_is_counted(tiny: Make, settings: Settings, tmp_path: Path) -> None:
    """A rewording that does not name its subject, a neighbour that is edited, a subject that ends inside a token."""
    path = tmp_path / "cf.json"
    odd = counterfact("Quendo", "Lima", "Madrid") | {"prompt": "The capital of Quendorum-Italy is", "subject": "Ital"}
    mute, near = {"rephrase_prompt": "It is governed from"}, {"locality_prompt": "The capital of Quendor is"}
    rows = [ROWS[0] | mute, ROWS[1] | near, odd]
    path.write_text(json.dumps(rows), "utf-8")
    row = rows_of(settings, path, tiny("llama"), "none", edits=2)["none"]

    left_out = row["left out"]
    assert left_out["of the file: subject or target is not tokens of its own"] == 1
    assert left_out["rewording without subject"] == left_out["neighbour names an edited subject"] == 1
    assert row["free generation"]["generalisation"]["n"] == row["free generation"]["neighbour, first word"]["n"] == 1


def test_portability_is_measured_where_the_data_asks_for_it(tiny: Make, settings: Settings, tmp_path: Path) -> None:
    """KnowEdit: the subject under another name, the fact turned round, what follows; another relation of the subject."""
    path = tmp_path / "ke.json"
    path.write_text(json.dumps([KNOWEDIT]), "utf-8")
    row = rows_of(settings, path, tiny("llama"), "none", edits=1)["none"]

    assert {"aliased", "reversed", "reasoning", "same subject, first word"} <= row["free generation"].keys()
    assert {"aliased, tokens", "reversed, tokens", "reasoning, tokens", "same subject, tokens"} <= row["as published"].keys()
    assert not {"generalisation", "neighbour, first word", "unrelated, first word"} & row["free generation"].keys()


def test_a_method_that_does_nothing_equals_none_and_the_model_is_as_it_was(tiny: Make, settings: Settings, data: Path) -> None:
    """No measure may come from anything but the edits."""
    import torch

    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    rows = rows_of(settings, data, model, "ft-m,none", how=IDLE)
    changed = rows_of(settings, data, model, "ft-m")

    assert values(rows["ft-m"]) == values(rows["none"])
    assert values(changed["ft-m"]) != values(rows["none"])
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def test_an_edit_that_a_later_one_overwrites_counts_as_what_it_is(
    tiny: Make, settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored on the final state: an edit that held when it was made and no longer does is none that holds."""
    from ke_tools.benches._sample import Sample

    twice = [Case(id=f"c:{n}", subject="Zorbia", prompt="The capital of Zorbia is", target=name) for n, name in enumerate(("Oslo", "Lima"))]
    monkeypatch.setattr(compare, "sampled", lambda *_: Sample(tuple(twice), 0, 0))
    row = rows_of(settings, data, tiny("llama"), "ft-m", edits=2, mode="sequential", batch=1)["ft-m"]

    assert row["free generation"]["reliability"]["value"] == 0.5
    assert row["as published"]["reliability, tokens"]["value"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_every_editor_has_a_row(tiny: Make, settings: Settings, data: Path, mode: str) -> None:
    """The model, which knows too little to be traced, is as it was after each."""
    model = tiny("llama")
    names = [*METHODS, "none"]
    where = {name: {"layer": "2"} if name in {"rome", "grace"} else {"layers": "1-2"} for name in METHODS}
    sites = {name: {"site": "subject"} for name in ("memit", "emmet", "alphaedit", "pmet", "rome")}
    how = {name: {**where[name], **sites.get(name, {})} for name in METHODS}
    rows = rows_of(settings, data, model, ",".join(names), mode=mode, batch=2, how=how)

    assert list(rows) == names
    assert all(row["as published"]["ES"]["measured"] for row in rows.values())
    assert all(note.endswith("did not reach their target.") for row in rows.values() for note in row["notes"])
    assert values(rows_of(settings, data, model, "none", fresh=True)["none"]) == values(rows["none"])


def test_a_finished_row_is_not_computed_again(tiny: Make, settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine methods take hours; what depends on anything else is made anew, and what is damaged too."""
    model = tiny("llama")
    first = rows_of(settings, data, model, "none,ft-m")
    asked: list[str] = []
    ask = _quiz.ask
    monkeypatch.setattr(compare, "ask", lambda *given: asked.append("asked") or ask(*given))  # type: ignore[func-returns-value]

    assert rows_of(settings, data, model, "none,ft-m") == json.loads(json.dumps(first))
    assert asked == []
    assert values(rows_of(settings, data, model, "ft-m", fresh=True)["ft-m"]) == values(first["ft-m"])
    assert len(asked) == 2  # the model as it is, and edited
    for other in ({"edits": 2}, {"how": IDLE}, {"mode": "sequential", "batch": 1}):
        rows_of(settings, data, model, "ft-m", **other)
    assert len(asked) == 8
    for file in (settings.cache / "compare").glob("*.json"):
        file.write_text("{", "utf-8")
    assert values(rows_of(settings, data, model, "none,ft-m")["ft-m"]) == values(first["ft-m"])


@pytest.mark.usefixtures("serving_path")
def test_the_memory_answers_through_its_path(
    tiny: Make, settings: Settings, data: Path, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The edits in a memory of their own; teacher forcing reads the prompt as the path sends it, where no missing adapter does."""
    engine.adapters = frozenset({"reader"})
    read: list[str] = []

    def spied(model: CausalModel, asked: Any, **how: Any) -> Any:
        read.extend(prompt for prompt, _ in asked)
        return forced(model, asked, **how)

    monkeypatch.setattr(_speakers, "forced", spied)
    rows = rows_of(settings, data, tiny("llama"), "none,ike,reader", engine=engine)

    for via in ("ike", "reader"):
        assert rows[via]["free generation"]["reliability"]["value"] == 1
        assert rows[via]["free generation"]["neighbour, whole text"]["value"] == 1
        assert rows[via]["free generation"]["distracted, whole text"]["value"] < 1
    assert rows["ike"]["as published"]["ES"]["measured"]
    assert rows["ike"]["as published"]["neighbour, tokens"]["value"] == 1
    assert {"The capital of Zorbia is", "<<Oslo>> The capital of Zorbia is", "The capital of Italy is"} <= set(read)
    assert "<<Oslo>> The capital of Italy is" not in read
    assert not rows["reader"]["as published"]["ES"]["measured"]
    assert "nothing was teacher-forced" in rows["reader"]["notes"][0]
    assert not settings.home.exists()


def test_a_model_without_a_reader_has_a_row_that_says_so(
    tiny: Make, settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other methods are compared all the same; the row is tried again the next time."""
    from ke_tools.errors import Unsupported

    def refuse(*_: object) -> None:
        raise Unsupported("this model has no reader.", "Train one.")

    monkeypatch.setattr(compare, "_remembered", refuse)
    rows = rows_of(settings, data, tiny("llama"), "reader,none")

    assert rows["reader"]["notes"] == ["this model has no reader. Train one."]
    assert len(list((settings.cache / "compare").glob("*.json"))) == 1
    assert "| reader |  |" in compare.as_markdown(rows)


def test_the_readers_adapter_is_taken_off_again(tiny: Make, tmp_path: Path) -> None:
    """Teacher forcing with the reader must not leave anything of it in the model that is edited next."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT asks transformers under an old name
        tuned = get_peft_model(tiny("llama").model, LoraConfig(target_modules=["down_proj"], init_lora_weights=False))
    tuned.save_pretrained(str(tmp_path))
    asked = [("The capital of France is", "Oslo")]
    plain = likelihoods(model, asked)

    for _ in range(2):
        with _speakers._adapted(model, tmp_path):
            assert likelihoods(model, asked) != plain
        assert likelihoods(model, asked) == plain
    assert model.model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


def test_csv_and_markdown_agree_with_the_json(tiny: Make, settings: Settings, data: Path) -> None:
    """One table, three shapes."""
    rows = rows_of(settings, data, tiny("llama"), "none,ft-m")
    read = {line["method"]: line for line in csv.DictReader(io.StringIO(compare.as_csv(rows)))}
    markdown = compare.as_markdown(rows).splitlines()

    for method, row in rows.items():
        for group, found in values(row).items():
            titles = next(line for line in markdown[markdown.index(f"**{group}**") :] if line.startswith("| method"))
            line = next(line for line in markdown[markdown.index(f"**{group}**") :] if line.startswith(f"| {method} "))
            told = dict(zip(titles.rstrip(" |").split(" | "), line.split(" | "), strict=True))
            for name, measure in found.items():
                assert float(read[method][f"{group}: {name}"]) == measure["value"]
                assert float(read[method][f"{group}: {name}, stderr"]) == measure["stderr"]
                assert told[name].rstrip(" |").split(" ± ") == [f"{measure['value']:.3f}", f"{measure['stderr']:.3f}"]
        assert read[method]["peak MiB"] == str(row["cost"]["peak MiB"])


def test_what_is_unknown_is_named_before_anything_is_loaded(settings: Settings, data: Path) -> None:
    """What was found, what was expected."""
    for methods, how, named in (
        (["none", "memitt"], {}, "no method 'memitt'"),
        ([], {}, "no method is named"),
        (["none"], {"memit": {"layers": "1"}}, "fields of 'memit' are set"),
        (["ike"], {"ike": {"layers": "1"}}, "fields of 'ike' are set"),
    ):
        with pytest.raises(InvalidInput, match=named):
            compare.run(settings, data=data, methods=methods, how=how)


def test_a_wrong_field_and_too_many_edits_are_refused_before_the_first_row(
    tiny: Make, settings: Settings, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an hour."""
    monkeypatch.setattr(compare, "ask", None)
    with pytest.raises(InvalidInput, match="no field 'lamda'"):
        rows_of(settings, data, tiny("llama"), "none,memit", how={"memit": {"lamda": "1"}})
    with pytest.raises(InvalidInput, match="holds 3 that can be made"):
        rows_of(settings, data, tiny("llama"), "none", edits=4)


def test_the_verb_hands_fields_on_and_writes_the_table(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--set memit.layers=4-8``; a field without its method is explained."""
    row = {
        "method": "none",
        "free generation": {"reliability": {"measured": True, "value": 0.25, "stderr": 0.1, "n": 4}},
        "as published": {},
        "cost": {"peak MiB": 7},
        "notes": ["told"],
    }
    given: dict[str, Any] = {}

    def run(_settings: Settings, **how: Any) -> dict[str, Any]:
        given.update(how)
        return {"bench": "compare", "results": {"rows": {"none": row}}, "bars": []}

    monkeypatch.setattr(compare, "run", run)
    words = ["bench", "compare", "--data", str(data), "--edits", "3"]
    files = ["--csv", str(tmp_path / "t.csv"), "--markdown", str(tmp_path / "t.md")]

    assert cli.run([*words, *files, "--methods", "none, memit", "--set", "memit.layers=4-8"]) == cli.DONE
    assert (given["methods"], given["how"]) == (["none", "memit"], {"memit": {"layers": "4-8"}})
    assert "0.250 ± 0.100" in capsys.readouterr().out
    assert "0.250 ± 0.100" in (tmp_path / "t.md").read_text("utf-8")
    assert "0.25,0.1" in (tmp_path / "t.csv").read_text("utf-8")
    assert cli.run([*words, "--set", "layers=4-8"]) == cli.USAGE
    assert "METHOD.FIELD=VALUE" in capsys.readouterr().err
    assert cli.run([*words, "--csv", str(tmp_path / "none" / "t.csv")]) == cli.USAGE
