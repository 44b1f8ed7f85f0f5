"""``model prepare``: what is made once, one trial, and what is said of a model that cannot do all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ke_tools import cli
from ke_tools.benches import readiness
from ke_tools.config import Settings
from ke_tools.errors import Unsupported
from ke_tools.models import causal
from ke_tools.testing import thimble_facts, thimble_path


@pytest.fixture
def thimble(settings: Settings) -> Settings:
    """The thimble's settings."""
    return replace(settings, model=str(thimble_path()), device="cpu")


@pytest.fixture
def knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the thimble what it knows, as of all else it knows nothing."""
    monkeypatch.setattr("ke_tools.atlas.facts", thimble_facts)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long: the statistics, and the questions of the bench."""
    monkeypatch.setattr(readiness, "_weights", lambda *_: ("edited somewhere", ("model", "prepared")))
    monkeypatch.setattr(readiness, "_knowledge", lambda *_: ("knows .5 of 4 facts", {}))


def ended(found: dict[str, Any]) -> dict[str, bool]:
    """How each step did."""
    return {step["step"]: step["ok"] for step in found["steps"]}


@pytest.mark.usefixtures("quick")
def test_a_model_that_takes_the_trial_is_ready(thimble: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, §5: a readiness card."""
    monkeypatch.setattr(readiness, "_trial", lambda *_: ("it took", True))
    found = readiness.run(thimble, reader=False)
    assert found["ready"]
    assert found["summary"] == "thimble: corrections act from the memory with demonstrations, and may climb into the weights."
    assert ended(found) == {"weights": True, "reader": False, "knowledge": True, "trial": True}
    assert "reader train" in next(step["detail"] for step in found["steps"] if step["step"] == "reader")


@pytest.mark.usefixtures("quick")
def test_a_step_that_fails_leaves_the_others_but_those_that_need_it(thimble: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, §5: a model that is not edited is served all the same."""

    def fails(*_: object) -> Any:
        raise Unsupported("nobody knows where its parts lie.", "")

    monkeypatch.setattr(readiness, "_weights", fails)
    found = readiness.run(thimble, reader=False)
    assert not found["ready"]
    assert ended(found) == {"weights": False, "reader": False, "knowledge": True, "trial": False}
    assert found["summary"].endswith("of the weights: not tried, as the weights are not prepared")


@pytest.mark.usefixtures("quick")
def test_a_reader_is_trained_where_there_is_none_and_that_is_wanted(
    thimble: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Issue 7, §5: runs … reader."""
    asked: list[Path] = []

    def train(_path: Path, out: Path, **_: Any) -> Path:
        asked.append(out)
        return out

    monkeypatch.setattr("ke_tools.models.reader.training.train", train)
    monkeypatch.setattr(readiness, "_trial", lambda *_: ("it took", True))
    found = readiness.run(thimble)
    assert asked == [thimble.home / "readers" / "thimble"]
    assert "with the reader" in found["summary"]


def test_weights_that_are_elsewhere_cannot_be_prepared(thimble: Settings) -> None:
    """Bad input: a server of somebody else's."""
    with pytest.raises(Unsupported, match="--upstream"):
        readiness.run(replace(thimble, upstream="http://127.0.0.1:9"))


@pytest.mark.usefixtures("knows_it")
def test_a_model_that_knows_nothing_that_it_is_asked_has_no_trial(thimble: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: a model of another language, or none."""
    monkeypatch.setattr(readiness, "knows", lambda *_args, **_more: [])
    monkeypatch.setattr(readiness, "_weights", lambda *_: ("", (causal.load(thimble), None)))
    monkeypatch.setattr(readiness, "_knowledge", lambda *_: ("", {}))
    found = readiness.run(thimble, reader=False)
    assert not found["ready"]
    assert "knows none of 100 facts" in found["summary"]


@pytest.mark.slow
@pytest.mark.usefixtures("knows_it")
def test_the_thimble_is_prepared_and_takes_an_edit(
    thimble: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 7, §5: all of it, but the reader, which takes long."""
    monkeypatch.setenv("KE_CACHE", str(thimble.cache))
    words = ["model", "prepare", "--model", thimble.model, "--home", str(thimble.home), "--device", "cpu"]
    words += ["--limit", "12", "--no-reader", "--json"]
    code = cli.run(words)
    found = json.loads(capsys.readouterr().out)
    assert code == cli.DONE, found
    assert ended(found) == {"weights": True, "reader": False, "knowledge": True, "trial": True}
    assert list((thimble.cache / "statistics").iterdir())


def test_an_unknown_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input: no such folder."""
    monkeypatch.setenv("KE_HOME", str(tmp_path))
    assert cli.run(["model", "prepare", "--model", "/no/such/model"]) == cli.FAILED
