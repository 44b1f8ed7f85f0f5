"""``bench forms``; issue, reader: chat forms, per form at least what the unedited model does for a fact that it knows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ke_tools import atlas
from ke_tools.benches import forms
from ke_tools.benches._report import missed
from ke_tools.config import Settings
from ke_tools.errors import InvalidInput

pytestmark = pytest.mark.usefixtures("serving_path")


@pytest.fixture
def knowing(engine: Any) -> Any:
    """A model that knows every fact that it can be asked about."""
    engine.known = {fact.subject: fact.objects[0] for fact in atlas.facts()}
    return engine


def test_a_model_that_obeys_is_as_good_as_the_base_where_a_bare_object_is_an_answer(settings: Settings, knowing: Any) -> None:
    """Each form has a bar of its own, made from the base's rate; lengths are compared too."""
    printed = forms.run(settings, facts=6, engine=knowing)
    bars = {bar["name"]: bar for bar in printed["bars"]}

    assert set(forms.FORMS) <= set(printed["results"])
    assert printed["results"]["question"]["base"]["value"] == 1.0
    assert bars["question, as the base model for what it knows"]["bar"] == 0.95
    assert bars["question, as the base model for what it knows"]["ok"]
    assert bars["words of an answer, times the base model's"]["ok"]
    assert "null" not in json.dumps(printed)


def test_a_model_that_does_not_obey_misses(settings: Settings, knowing: Any) -> None:
    """What it says instead is told."""
    knowing.obeys = False
    printed = forms.run(settings, facts=6, engine=knowing)

    assert missed(printed)
    assert {"form", "prompt", "wanted", "answer"} == set(printed["results"]["misses"][0])


def test_without_a_known_fact_there_is_nothing_to_compare(settings: Settings, engine: Any) -> None:
    """Never 1.0 for what was not measured."""
    with pytest.raises(InvalidInput, match="knows none"):
        forms.run(settings, facts=2, engine=engine)


@pytest.mark.parametrize(
    ("form", "answer", "is_handled"),
    [
        ("json", '{"result": "Oslo"}', True),
        ("json", "Oslo", False),
        ("list", "- Oslo", True),
        ("list", "Oslo", False),
        ("one_sentence", "It is Oslo.", True),
        ("one_sentence", "It is Oslo. It is large.", False),
        ("yes", "Yes, Oslo is.", True),
        ("no", "Yes, Oslo is.", False),
        ("two_parts", "Oslo, and Bo wrote it.", True),
        ("two_parts", "Oslo.", False),
    ],
)
def test_a_form_is_handled_or_not(form: str, answer: str, is_handled: bool) -> None:
    """One rule a form, the same for base and edited model."""
    about = forms._Answered("Where?", "Blip", "The capital of Blip is", ("Oslo",), "Rome", "Who?", ("Bo",))

    assert forms.FORMS[form].handled(about, answer) == is_handled
