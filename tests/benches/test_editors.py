"""The bench of the editors, on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ke_tools.benches import _ladder, _naive, editors
from ke_tools.benches._naive import PUBLISHED, SAVINGS
from ke_tools.benches._sample import names_any
from ke_tools.config import Settings
from ke_tools.editors.update import Outcome, Reached, Update
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from tests.editors.conftest import tiny, tokenizer

pytestmark = pytest.mark.slow  # real models or processes; minutes on a slow machine

__all__ = ["tiny", "tokenizer"]

HOW = {
    "layers": "2-3",
    "site": "last",
    "contexts": "1",
    "tokens": "300",
    "regularisation": "0.001",
    "steps": "30",
    "clamp": "50",
    "kl": "0",
}
Make = Callable[[str], CausalModel]
RATE = {"measured": True, "value": 0.9, "stderr": 0.01, "low": 0.8, "high": 0.95, "n": 10}
POINT = {
    "as published": {kind: {"before": RATE, "after": RATE} for kind in ("statement", "paraphrase", "neighbour")},
    "free generation": dict.fromkeys(("statement", "paraphrase", "neighbour", "same subject", "distracted neighbour"), RATE),
    "free generation, stricter": dict.fromkeys(("statement", "paraphrase", "neighbour", "same subject", "distracted neighbour"), RATE),
    "perplexity": 1.07,
    "notes": [],
}


def measured(settings: Settings, model: CausalModel, **how: Any) -> dict[str, Any]:
    """Run it."""
    return editors.run(settings, model=model, **{"method": "memit", "how": HOW, "numbers": [2], **how})


def test_both_kinds_of_number_stand_side_by_side(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue §8: efficacy, paraphrase, neighbour as published, and free generation; perplexity, growth, seconds, memory."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    point = measured(settings, tiny("llama"))["results"]["edits"][2]

    assert {"statement", "paraphrase", "neighbour"} <= point["as published"].keys()
    assert {"before", "after"} == point["as published"]["statement"].keys()
    assert {"statement", "paraphrase", "neighbour", "distracted neighbour"} <= point["free generation"].keys()
    assert point["free generation"]["statement"]["n"] == 2
    assert point["free generation, stricter"].keys() == point["free generation"].keys()
    assert all(point["free generation, stricter"][kind]["value"] <= row["value"] for kind, row in point["free generation"].items())
    assert point["as published"]["statement"]["after"]["value"] >= point["as published"]["statement"]["before"]["value"]
    assert point["perplexity"] > 0
    assert point["growth"].keys() == {"2", "3"}
    assert point["efficiency"]["s an edit"] > 0


@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_the_model_is_taken_back_whatever_the_mode(tiny: Make, settings: Settings, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of edits is measured from the unedited model on."""
    import torch

    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    report = measured(settings, model, mode=mode, batch=1, numbers=[1, 3])

    assert report["results"]["edits"].keys() == {1, 3}
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.state_dict().items())


@pytest.mark.parametrize("mode", ["batch", "sequential"])
def test_growth_is_a_share_of_the_unedited_weight(tiny: Make, settings: Settings, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the edited one, a change a hundred times the weight would be a share of 1."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    model, seen = tiny("llama"), list[float]()
    honest, base = Update.growth, float(model.weight(3).detach().norm())

    def noting(self: Update, model: CausalModel) -> dict[int, float]:
        seen.append(float(model.weight(3).detach().norm()))
        return honest(self, model)

    monkeypatch.setattr(Update, "growth", noting)
    measured(settings, model, mode=mode, batch=1)

    assert seen == [base] * (1 if mode == "batch" else 2)


def of_statistics(report: dict[str, Any]) -> list[str]:
    """The notes but those on facts that random weights could not be brought to say."""
    return [note for note in report["notes"] if "did not reach their target" not in note]


def test_what_is_to_be_known_of_the_statistics_is_told_once(
    tiny: Make, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue, bad input: regularised, and said so."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)

    (tmp_path / "text").write_text("It rains in Oslo, and in Lima it does not.", "utf-8")

    few = measured(settings, tiny("llama"), how={**HOW, "text": str(tmp_path / "text")}, numbers=[1, 2])
    enough = measured(settings, tiny("llama"), numbers=[1])

    assert ["the ridge stands for the rest" in note for note in of_statistics(few)] == [True]
    assert of_statistics(enough) == []


def test_how_many_facts_missed_their_target_is_told_beside_the_notes() -> None:
    """Issue 5, §1: for each fact whether the target was reached; of a hundred, how many were not."""
    missed, met = (Reached("It rains in", outcome, 1.0, 25) for outcome in (Outcome.MISSED, Outcome.REACHED))
    updates = [
        Update({}, {}, outcomes=(missed, met, missed), notes=("few tokens",)),
        Update({}, {}, outcomes=(met,), notes=("few tokens",)),
    ]

    assert editors.told(updates) == ["few tokens", "2 of 4 facts did not reach their target."]
    assert editors.told(updates[1:]) == ["few tokens"]


def test_atlas_edits_are_asked_for_in_probe_wordings_and_worded_in_fitted_ones() -> None:
    """Design §4 no. 4: probe wordings are neither contexts of z nor keys."""
    from ke_tools import atlas

    for case in editors.atlas_cases(20, 0):
        fact = editors._fact(case)
        relation = atlas.worded(case.prompt, case.subject)
        assert relation is not None
        assert fact.paraphrases
        masked = {atlas.mask(text, [case.subject]) for text in (fact.prompt, *fact.paraphrases)}
        assert not any(map(atlas.holds_probe_wording, masked))
        assert case.target != case.truth


def test_no_prompt_that_z_or_keys_are_found_with_is_a_probe_wording(
    tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §4 no. 4, at the place where it counts: what an editor is given, ours and the published one, and what the bench asks."""
    from ke_tools import atlas
    from ke_tools.editors import _spread, _targets

    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    monkeypatch.setattr(_naive, "PUBLISHED", replace(PUBLISHED, steps=1))
    model, given, optimise, values = tiny("llama"), list[str](), _targets.optimise, _naive.values

    def spying(search: Any) -> Any:
        def spy(model: CausalModel, wanted: Any, *args: Any, **named: Any) -> Any:
            given.extend(model.tokenizer.decode(placed.ids) for goal in wanted for placed in (*goal.prompts, goal.essence))
            return search(model, wanted, *args, **named)

        return spy

    monkeypatch.setattr(_spread, "optimise", spying(optimise))
    monkeypatch.setattr(_naive, "values", spying(values))
    cases = editors.atlas_cases(4, 0)
    measured(settings, model, numbers=[4], naive=1, how={**HOW, "steps": "1"})

    def is_probe(text: str) -> bool:
        return any(atlas.holds_probe_wording(atlas.mask(text, [case.subject])) for case in cases if case.subject in text)

    fitted = {text for case in cases for text in editors._fact(case).paraphrases}
    assert all(any(row.startswith(text) for row in given) for text in fitted)
    assert not any(map(is_probe, given))
    assert all(is_probe(text) for case in cases for text in case.rephrases)


def test_ours_and_the_published_procedure_stand_side_by_side(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, cost: seconds of both and their ratio in one run, both rates, at equal contexts and steps too, and a ladder of savings."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)
    monkeypatch.setattr(_naive, "PUBLISHED", replace(PUBLISHED, steps=2))
    model = tiny("llama")
    before = {name: weight.clone() for name, weight in model.model.state_dict().items()}

    report = measured(settings, model, numbers=[2], naive=1, how={**HOW, "steps": "2"})

    ours, few, naive, all_steps, naive_all_steps = report["procedures"]
    assert [ours["facts"], few["facts"], naive["facts"], all_steps["facts"], naive_all_steps["facts"]] == [2, 1, 1, 2, 1]
    assert naive["s an edit"] == pytest.approx(naive["z s"] + naive["keys and solve s"], abs=2e-4)
    assert naive["times ours"] == pytest.approx(naive["s an edit"] / ours["s an edit"], rel=0.1)
    assert naive_all_steps["times ours"] > 0
    assert few.keys() == naive.keys()
    scores = report["results"]["both procedures"]
    assert {(name, score["free generation"]["statement"]["n"]) for name, score in scores.items()} == {("ours", 1), ("as published", 1)}
    assert [row["saving"] for row in report["savings"]] == list(SAVINGS)
    assert report["savings"][0]["times quicker"] == 1
    assert all(row["z s"] > 0 for row in report["savings"])
    assert all(weight.equal(before[name]) for name, weight in model.model.state_dict().items())


def test_a_person_reads_tables(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A column a number of edits, one for each procedure, and the ladder."""
    from ke_tools import printing

    monkeypatch.setattr(editors, "_point", lambda *_: {**POINT, "efficiency": {"s an edit": 0.25}})
    monkeypatch.setattr(
        _ladder.Beside, "procedures", lambda *_: {"rows": [{"procedure": "ours", "times ours": 1.0}], "scores": {"ours": POINT}}
    )
    monkeypatch.setattr(_ladder.Beside, "saving", lambda *_: 0.5)
    monkeypatch.setattr(editors, "_scorer", lambda *_: None)

    printing.show(editors.readable(measured(settings, tiny("llama"), numbers=[1, 3], naive=1)), as_json=False)

    said = capsys.readouterr().out
    for text in ("statement, published", ".90 ± .01 (n=10)", "s an edit", "0.25", "procedures", "times ours", "savings", "prefix once"):
        assert text in said
    for text in ("statement, free, names nothing longer", "neighbour, free, first content word"):
        assert text in said


def test_the_command_draws_where_it_is_told_to(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--plot: into a folder that exists, which is looked at before anything is computed."""
    from ke_tools import cli

    asked: dict[str, Any] = {}

    def run(_settings: Settings, **how: Any) -> dict[str, Any]:
        asked.update(how)
        return {"results": {"edits": {1: {**POINT, "efficiency": {"s an edit": 0.5}}}}, "bars": []}

    monkeypatch.setattr(editors, "run", run)
    command = ["bench", "editors", "--edits", "1", "--naive", "3", "--fresh", "--home", str(settings.home)]

    assert cli.run([*command, "--plot", str(tmp_path / "none" / "x.svg")]) == cli.USAGE
    assert not asked
    assert cli.run([*command, "--plot", str(tmp_path / "x.svg")]) == cli.DONE
    assert (asked["naive"], asked["fresh"]) == (3, True)
    assert (tmp_path / "x.svg").read_text("utf-8").startswith("<svg")


def test_only_memit_stands_beside_its_published_procedure(tiny: Make, settings: Settings) -> None:
    """Another method's ratio would say nothing."""
    with pytest.raises(InvalidInput, match="emmet"):
        measured(settings, tiny("llama"), method="emmet", how={"layers": "2"}, naive=1)


def test_what_is_finished_is_not_computed_again(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted goes on where it was: by number, settings, data, model and seed; --fresh begins anew."""
    made: list[int] = []

    def interrupted(_model: CausalModel, _editor: Any, chosen: Any, *_: Any) -> Any:
        if len(chosen) == 3:
            raise KeyboardInterrupt
        return whole(_model, _editor, chosen)

    def whole(_model: CausalModel, _editor: Any, chosen: Any, *_: Any) -> Any:
        made.append(len(chosen))
        return POINT

    monkeypatch.setattr(editors, "_point", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measured(settings, tiny("llama"), numbers=[2, 3])
    monkeypatch.setattr(editors, "_point", whole)
    found = measured(settings, tiny("llama"), numbers=[2, 3])["results"]
    assert made == [2, 3]
    assert found["kept from before"] == ["point, 2 edits"]
    assert found["edits"] == measured(settings, tiny("llama"), numbers=[2, 3])["results"]["edits"]
    assert made == [2, 3]

    for other in ({"fresh": True}, {"how": {**HOW, "kl": "0.1"}}, {"seed": 1}, {"mode": "sequential"}, {"numbers": [2, 3, 4]}):
        made.clear()
        measured(settings, tiny("llama"), **{"numbers": [2, 3], **other})
        assert made[:2] == [2, 3], other
    made.clear()
    measured(settings, tiny("gpt2"), numbers=[2, 3])
    assert made == [2, 3]


def test_nothing_is_kept_of_a_model_without_fingerprint(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models would share it."""
    monkeypatch.setattr(editors, "_point", lambda *_: POINT)
    model = tiny("llama")
    model.fingerprint = ""

    measured(settings, model)

    assert not (settings.cache / editors.KEPT_IN).exists()


def test_the_cost_of_each_number_of_edits_is_told_by_stage(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, cost against number of edits; memory is what was held while editing."""
    monkeypatch.setattr(editors, "PLAIN_TOKENS", 200)

    points = measured(settings, tiny("llama"), numbers=[1, 2])["results"]["edits"]

    for point in points.values():
        assert {"statistics s", "z s", "solve s", "s an edit"} <= point["efficiency"].keys()
    assert min(point["efficiency"]["peak MiB"] for point in points.values()) > 0


@pytest.mark.parametrize(
    ("kind", "base", "after", "literal", "content"),
    [
        ("statement", "", " soccer player, is", True, False),
        ("statement", "", " soccer.", True, True),
        ("statement", "", " soccerists", False, False),
        ("statement", "", " the soccer", False, True),
        ("neighbour", " the city of Dubai", " The French city", True, False),
        ("neighbour", " the city of Dubai", " city life", False, True),
        ("neighbour", " the city of Dubai", " a village", False, False),
    ],
)
def test_starting_with_a_word_is_meant_to_the_letter_and_the_stricter_readings_stand_beside(
    kind: str, base: str, after: str, literal: bool, content: bool
) -> None:
    """Issue, bars: "statement / neighbourhood answers still beginning with the base model's word"."""
    case = replace(editors.atlas_cases(1, 0)[0], target="soccer")
    questions = editors._Questions({kind: [editors._Asked(case, case.prompt)]}, [], {"perplexity": 1.0, f"{kind}: text": [base]})

    found = editors._scores(questions, {"perplexity": 1.0, f"{kind}: text": [after]})

    assert found["free generation"][kind]["value"] == literal
    assert found["free generation, stricter"][kind]["value"] == content


def bars(mode: editors.Mode, point: dict[str, Any] = POINT, *, is_atlas: bool = False, is_thimble: bool = False) -> dict[str, float]:
    """Bars by the beginning of their name."""
    found = editors._bars(point, mode, editors._free_bounds(mode, is_atlas=is_atlas, is_thimble=is_thimble))
    return {bar.name: bar.bar for bar in found}


def test_each_mode_and_kind_of_data_has_its_bars() -> None:
    """Issue, bars: a batch, ten batches in sequence, facts of the atlas, the thimble."""
    likelier, starts = "the new object is likelier", "starts with the new object"
    batch, sequential = bars("batch"), bars("sequential")

    assert (batch[f"statement: {likelier}"], batch[f"paraphrase: {likelier}"]) == (0.99, 0.88)
    assert (sequential[f"statement: {likelier}"], sequential[f"paraphrase: {likelier}"]) == (0.97, 0.80)
    assert {name for name in sequential if "starts with" in name} == set()
    assert [bound for name, bound in batch.items() if "came to prefer" in name or "perplexity" in name] == [0.02, 1.05]
    assert [bound for name, bound in sequential.items() if "came to prefer" in name or "perplexity" in name] == [0.03, 1.10]
    assert bars("sequential", is_atlas=True)[f"paraphrase: {starts}"] == 0.75
    thimble = bars("batch", is_atlas=True, is_thimble=True)
    assert [bound for name, bound in thimble.items() if "starts with" in name] == [0.98, 0.95, 0.85, 0.90]


def test_the_thimble_is_edited_in_what_it_knows_and_has_bars_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue, bars: the thimble knows a hundred facts of the atlas; of others it has nothing to forget."""
    from ke_tools.testing import thimble_facts, thimble_path

    edited: list[Any] = []

    def point(_model: CausalModel, _editor: Any, chosen: Any, *_: Any) -> Any:
        edited.extend(chosen)
        return POINT

    monkeypatch.setattr(editors, "_point", point)

    report = editors.run(replace(settings, model=str(thimble_path())), method="memit", how=HOW, numbers=[40])

    known = {(fact.subject, fact.objects[0]) for fact in thimble_facts()}
    assert {(case.subject, case.truth) for case in edited} <= known
    assert [bar["bar"] for bar in report["bars"] if bar["name"].startswith("same subject")] == [0.90]


def test_a_codebook_has_bars_of_its_own(tiny: Make, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 5, bars: GRACE, greedy: statement, wordings not used as keys, neighbours, same subject; none as published."""
    monkeypatch.setattr(editors, "_point", lambda *_: POINT)

    report = measured(settings, tiny("llama"), method="grace", how={"layer": "2"})

    assert {bar["name"].partition(":")[0]: bar["bar"] for bar in report["bars"]} == {
        "statement": 1.0,
        "paraphrase": 0.50,
        "neighbour": 0.99,
        "same subject": 0.98,
    }
    assert all("starts with" in bar["name"] for bar in report["bars"])


def test_bars_that_the_data_cannot_measure_are_not_printed() -> None:
    """A file without paraphrases, neighbours or true objects."""
    bare = {"as published": {}, "free generation": {"statement": RATE}, "perplexity": 1.0}

    assert list(bars("sequential", bare, is_atlas=True, is_thimble=True)) == [
        "statement: starts with the new object",
        "perplexity, share of the base's",
    ]


def test_more_edits_than_there_are_and_an_unknown_field_are_refused(tiny: Make, settings: Settings) -> None:
    """What was found, what was expected."""
    with pytest.raises(InvalidInput, match="no field 'lamda'"):
        measured(settings, tiny("llama"), how={"layers": "1", "lamda": "1"})
    with pytest.raises(InvalidInput, match="no method"):
        measured(settings, tiny("llama"), method="memmit")
    with pytest.raises(InvalidInput, match="cannot be"):
        measured(settings, tiny("llama"), how={"layers": "x"})


def test_a_neighbour_that_is_edited_too_is_not_asked_about() -> None:
    """Its answer shall change; it says nothing of locality."""
    cases = editors.atlas_cases(40, 0)

    kept = [text for case in cases for text in editors._neighbours(case, cases)]

    assert kept
    assert not [text for text in kept if names_any(text, cases)]
    assert sum(len(case.neighbours) for case in cases) > len(kept)
