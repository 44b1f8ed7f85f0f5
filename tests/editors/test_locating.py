"""``ke-tools locate``: what it tells, and the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from ke_tools import cli
from ke_tools.editors import _site
from ke_tools.editors.locating import KINDS, locate, picture
from ke_tools.errors import InvalidInput
from ke_tools.models import causal
from ke_tools.models.causal import CausalModel

PROMPT, SUBJECT = "The capital of Norway is", "Norway"
SVG = "{http://www.w3.org/2000/svg}"
Make = Callable[[str], CausalModel]


@pytest.fixture
def served(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> CausalModel:
    """A tiny model in the place of the settings' model, of whose atlas facts three count as known."""
    from ke_tools.models import checkpoint

    model = tiny("llama")
    monkeypatch.setattr(causal, "load", lambda _settings: model)
    monkeypatch.setattr(checkpoint, "resolve", lambda _settings, **_: Path())
    monkeypatch.setattr(_site, "known", lambda _model, asked, **_: list(asked)[:3])
    return model


@pytest.mark.usefixtures("served")
def test_a_prompt_is_traced_and_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Issue: JSON with the data: a row a token, a column a layer, and the choice."""
    assert cli.run(["locate", "--prompt", PROMPT, "--subject", SUBJECT, "--samples", "2", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["site"] in {"subject", "last"}
    assert len(told["layers"]) == 2
    assert told["effect"].keys() == {"hidden"}
    assert len(told["rows"]) == len(told["effect"]["hidden"])
    assert {len(row) for row in told["effect"]["hidden"]} == {4}
    assert sum("*" in row for row in told["rows"]) >= 1, "the subject's tokens are marked"


@pytest.mark.usefixtures("served")
def test_without_a_prompt_the_mean_over_known_facts_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue: a table for people; the three kinds beside one another in one picture; progress is shown."""
    assert cli.run(["locate", "--samples", "1", "--plot", str(tmp_path / "heat.svg")]) == 0

    shown, noted = capsys.readouterr()
    assert "3 facts that the model knows" in shown
    assert "site=" in shown
    assert all(f"{kind}: what restoring recovers" in shown for kind in KINDS)
    assert "tracing" in noted
    root = ET.parse(tmp_path / "heat.svg").getroot()  # noqa: S314  our own
    texts = " ".join(node.text or "" for node in root.iter(f"{SVG}text"))
    assert all(kind in texts for kind in KINDS)
    assert len([node for node in root.iter(f"{SVG}rect") if node.get("class") == "choice"]) == 1


def test_one_kind_alone_is_told_without_a_choice(tiny: Make) -> None:
    """The rule is one of hidden states."""
    found = locate(tiny("llama"), prompt=PROMPT, subject=SUBJECT, kinds=("mlp",), samples=2)

    assert found.choice is None
    assert found.as_dict()["site"] is None
    assert "Edit" not in found.as_tables()["summary"]
    assert 'class="choice"' not in picture(found)


def test_what_a_token_holds_cannot_break_the_picture(tiny: Make) -> None:
    """Tokens are anybody's text."""
    prompt = 'In <b>Norway</b> & "Peru"\nthey pay with'

    root = ET.fromstring(picture(locate(tiny("llama"), prompt=prompt, subject="Norway", samples=1)))  # noqa: S314  our own

    assert any("&" in (node.text or "") for node in root.iter(f"{SVG}text"))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", PROMPT], "belong together"),
        (["--subject", SUBJECT], "belong together"),
        (["--prompt", PROMPT, "--subject", "Sweden"], "Sweden"),
        (["--plot", "/no/such/folder/a.svg"], "nothing can be drawn"),
    ],
)
def test_what_cannot_be_traced_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue, bad input; exit code 2."""
    assert cli.run(["locate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_too_few_known_facts_are_told(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows nothing cannot say where it keeps it."""
    monkeypatch.setattr(_site, "_ASKED", 40)

    with pytest.raises(InvalidInput, match="of 40 facts"):
        locate(tiny("llama"))
