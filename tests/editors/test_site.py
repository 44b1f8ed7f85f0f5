"""Where to edit, found by the model itself: the rule on made-up heat maps, what is asked, the cache, and the methods' "auto"."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ke_tools.config import Settings
from ke_tools.editing import edit
from ke_tools.editors import _site, make
from ke_tools.editors._site import Averaged, Choice, SiteKey, averaged, by_role, choose, resolve, window
from ke_tools.editors._targets import Objective
from ke_tools.editors.codebook import Codebook
from ke_tools.editors.finetune import FT, LoRA
from ke_tools.editors.grace import GRACE
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.rome import ROME
from ke_tools.editors.tracing import Heat, trace
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel
from ke_tools.testing import thimble_path
from tests.editors.conftest import FACTS

Make = Callable[[str], CausalModel]
# Measured: a dozen atlas facts each, six samples of the noise, shares of what the noise takes.
EMBEDDED_SUBJECT = [
    *(0.69, 0.73, 0.75, 0.76, 0.8, 0.81, 0.84, 0.84, 0.85, 0.89, 0.88, 0.82, 0.78, 0.75, 0.66),
    *(0.64, 0.49, 0.47, 0.45, 0.41, 0.41, 0.3, 0.32, 0.02, 0.01, 0.01, 0.01, 0.01, 0.0, 0.0),
]
EMBEDDED_LAST = [
    *([0.0] * 10),
    *(0.01, 0.02, 0.03, 0.03, 0.05, 0.06, 0.08, 0.08, 0.09, 0.09),
    *(0.1, 0.19, 0.22, 1.1, 0.92, 0.91, 0.91, 0.94, 0.95, 1.0),
]
THIMBLE_SUBJECT, THIMBLE_LAST = [0.87, 0.78, 0.63, 0.53, 0.29, 0.0], [0.04, 0.6, 0.81, 0.84, 0.94, 1.0]


def chosen(subject: Sequence[float], last: Sequence[float], site: Any = "auto") -> Choice:
    """The rule's choice from two curves."""
    return choose({"last of subject": subject, "last of prompt": last}, site)


def test_the_rule_chooses_what_is_known_to_work() -> None:
    """Issue: the subject's last token in the embedded model, where layers 4-8 to 8-12 work; the prompt's last in the thimble, at 2-3."""
    assert chosen(EMBEDDED_SUBJECT, EMBEDDED_LAST) == ("subject", (5, 6, 7, 8, 9))
    assert chosen(THIMBLE_SUBJECT, THIMBLE_LAST) == ("last", (2, 3))


def test_a_given_site_is_kept_and_has_its_own_layers() -> None:
    """Where the prompt's last token carries the answer, above where the subject's does."""
    site, layers = chosen(EMBEDDED_SUBJECT, EMBEDDED_LAST, "last")

    assert site == "last"
    assert layers == (22, 23, 24, 25, 26)
    assert chosen(THIMBLE_SUBJECT, THIMBLE_LAST, "subject") == ("subject", (0, 1))


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0.01, 1), min_size=n, max_size=n)] * 2)), st.integers(-3, 20))
def test_layers_are_a_window_of_the_model_whatever_the_scale(curves: tuple[list[float], list[float]], doublings: int) -> None:
    """A sixth of the layers, at least two, inside; shares and probabilities choose alike."""
    count = len(curves[0])
    site, layers = chosen(*curves)

    assert layers == tuple(range(layers[0], layers[0] + len(layers)))
    assert 0 <= layers[0] <= layers[-1] < count
    assert len(layers) == min(count, max(2, round(count / 6)))
    assert chosen(*curves, site) == (site, layers)
    assert chosen(*([value * 2.0**doublings for value in curve] for curve in curves)) == (site, layers)


def test_noise_that_takes_nothing_leaves_nothing_to_choose_from() -> None:
    """What was found, and what to give instead."""
    with pytest.raises(InvalidInput, match="Give layers and site"):
        chosen([0.0] * 6, [-0.1] * 6)


def heat(subject: range, tokens: int, *, traced: Sequence[int] | None = None) -> Heat:
    """A heat map in which each token's effect is its position."""
    effect = torch.arange(float(tokens))[:, None].repeat(1, 2)
    for token in set(range(tokens)) - set(traced if traced is not None else range(tokens)):
        effect[token] = float("nan")
    return Heat(("t",) * tokens, subject, "a", 0.5, 0.1, effect, "hidden")


def test_tokens_are_aligned_by_their_role() -> None:
    """Meng et al. 2022, fig. 2: first, middle and last token of the subject, those behind it, the prompt's last."""
    assert by_role(heat(range(1, 5), 8)) == {
        "first of subject": (1, 1),
        "middle of subject": (2.5, 2.5),
        "last of subject": (4, 4),
        "further": (5.5, 5.5),
        "last of prompt": (7, 7),
    }
    assert by_role(heat(range(1, 2), 3)) == {"last of subject": (1, 1), "last of prompt": (2, 2)}
    assert by_role(heat(range(1, 4), 9, traced=[3, 8])).keys() == {"last of subject", "last of prompt"}


def test_tracing_the_sites_alone_finds_the_same_there(tiny: Make) -> None:
    """A seventh of the work, the same numbers."""
    model = tiny("llama")
    whole, part = (trace(model, FACTS[2].prompt, "Peru", samples=2, where=where) for where in ("all", "sites"))
    rows = [whole.subject[-1], -1]

    assert torch.allclose(whole.effect[rows], part.effect[rows])
    assert int((~part.effect.isnan()).any(1).sum()) == 2
    assert part.best()[0] in {whole.subject[-1], len(whole.tokens) - 1}


@pytest.fixture
def facts(monkeypatch: pytest.MonkeyPatch) -> tuple[Fact, ...]:
    """Three facts that count as known: what a random model says is nobody's fact."""
    monkeypatch.setattr(_site, "known", lambda _model, asked, **_: list(asked)[:3])
    return FACTS


def test_only_what_the_model_says_is_traced() -> None:
    """Tracing needs a fact that the model knows (Meng et al. 2022, §2)."""
    model = thimble()
    right = [Fact(subject="Thailand", prompt="The capital of Thailand is", target="Bangkok")]
    right += [Fact(subject="Norway", prompt="The largest city in Norway is", target="Oslo")]
    right += [Fact(subject="oxygen", prompt="The chemical symbol of oxygen is", target="O")]
    wrong = replace(right[0], target="Paris")

    found = averaged(model, [wrong, *right, wrong], samples=2)

    assert found.prompts == 3
    assert found.clean > 0.9 > found.corrupted
    assert found.effect.keys() == {"last of subject", "last of prompt"}
    with pytest.raises(InvalidInput, match=r"of 3 facts the model says 2"):
        averaged(model, [wrong, *right[:2]])


def test_it_is_traced_once(tiny: Make, facts: tuple[Fact, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue: cached under all that it depends on; other facts, samples, seeds or another model are another file."""
    model, traced = tiny("llama"), list[str]()

    def counting(*args: Any, **how: Any) -> Heat:
        traced.append(args[1])
        return trace(*args, **how)

    monkeypatch.setattr(_site, "trace", counting)

    def taken(**how: Any) -> tuple[Averaged, int]:
        before = len(traced)
        made = averaged(model, **{"facts": facts, "samples": 2, "cache": tmp_path, **how})
        return made, len(traced) - before

    first, again = taken(), taken()
    others = [taken(samples=3), taken(seed=1), taken(kind="mlp"), taken(where="all"), taken(facts=facts[::-1])]
    model.fingerprint = "sha256:other"
    others.append(taken())
    model.fingerprint = ""
    others += [taken(), taken()]

    assert (first[1], again[1], [count for _, count in others]) == (3, 0, [3] * 8)
    assert first[0] == again[0]


@pytest.mark.parametrize("name", [field.name for field in fields(SiteKey)])
def test_the_key_depends_on_everything(name: str) -> None:
    """As the statistics' key."""
    key = SiteKey(model="m", facts="f", prompts=12, kind="hidden", where="sites", samples=6, seed=0, dtype="float32")
    changed: Any = {name: 7 if isinstance(getattr(key, name), int) else "other"}

    assert key.name != replace(key, **changed).name


@pytest.mark.parametrize("damage", ["", "{", "[]", "no curve", "other layers"])
def test_a_damaged_file_is_traced_again(tiny: Make, facts: tuple[Fact, ...], tmp_path: Path, damage: str) -> None:
    """A cache is a cache."""
    model = tiny("llama")
    first = averaged(model, facts, samples=2, cache=tmp_path)
    (file,) = (tmp_path / "sites").iterdir()
    whole = file.read_text("utf-8")
    kept = json.loads(whole)
    if damage == "no curve":
        del kept["effect"]["last of prompt"]
    if damage == "other layers":
        kept["effect"]["last of prompt"] = [0.5]
    file.write_text(json.dumps(kept) if " " in damage else damage, "utf-8")

    assert averaged(model, facts, samples=2, cache=tmp_path) == first
    assert file.read_text("utf-8") == whole


def test_a_cache_that_cannot_be_written_costs_nothing_else(tiny: Make, facts: tuple[Fact, ...], tmp_path: Path) -> None:
    """A full or read-only disk."""
    (tmp_path / "sites").write_text("a file in the folder's place", "utf-8")

    assert averaged(tiny("llama"), facts, samples=1, cache=tmp_path).prompts == 3


LAST = Averaged(3, 0.9, 0.1, {"last of subject": (0.5, 0.1, 0, 0), "last of prompt": (0.1, 0.6, 0.7, 0.8)})  # layers 1-2
QUICK: dict[str, Any] = {"contexts": 1, "tokens": 300, "objective": Objective(steps=2, kl=0)}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Puts a made-up mean in the traces' place; the caches that it was asked with."""
    asked: list[Path | None] = []

    def mean(_model: CausalModel, *, cache: Path | None, **_: Any) -> Averaged:
        asked.append(cache)
        return LAST

    monkeypatch.setattr(_site, "averaged", mean)
    return asked


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (MEMIT(**QUICK), {"layers": (1, 2), "site": "last"}),
        (MEMIT(layers=(3,), **QUICK), {"layers": (3,), "site": "last"}),
        (MEMIT(site="subject", **QUICK), {"layers": (0, 1), "site": "subject"}),
        (ROME(**QUICK), {"layer": 2, "site": "last"}),
        (FT(steps=1), {"layers": (1, 2)}),
        (LoRA(steps=1), {"layers": (1, 2)}),
    ],
)
def test_an_update_says_where_it_edited(tiny: Make, measured: list[Path | None], tmp_path: Path, method: Any, told: dict[str, Any]) -> None:
    """Issue: "auto" is the default; the resolved numbers stand in the update's method, and its changes are of these layers."""
    update = edit(tiny("llama"), FACTS, method, cache=tmp_path)

    assert told.items() <= update.method.items()
    assert "auto" not in update.method.values()
    assert tuple(update.changes) == (told["layers"] if "layers" in told else (told["layer"],))
    assert measured == [tmp_path]


def test_grace_looks_where_the_prompts_last_token_carries_the_answer(tiny: Make, measured: list[Path | None]) -> None:
    """Its keys are states of that token, whatever the site of other methods; before, they say nothing of the subject."""
    book: Codebook = edit(tiny("llama"), FACTS, GRACE(contexts=1, tokens=300, objective=Objective(steps=2, kl=0)))

    assert book.layer == 2
    assert measured == [None]


def test_what_is_given_needs_no_tracing(tiny: Make, measured: list[Path | None]) -> None:
    """Tracing takes a minute; nor is it begun for a layer that the model has not."""
    model = tiny("llama")

    assert resolve(model, (1, 3), "subject") == ("subject", (1, 3))
    assert window(model, (2,)) == (2,)
    for layers in ((), (4,), (-1,)):
        with pytest.raises(InvalidInput, match="4 layers"):
            resolve(model, layers, "auto")
    assert not measured


def test_text_says_auto_as_well_as_numbers() -> None:
    """Issue: --set layers=auto and layers=4-8."""
    assert make("memit") == make("memit", layers="auto", site="auto")
    assert make("memit", layers="4-8", site="last").layers == (4, 5, 6, 7, 8)
    assert make("memit", layers="4,6", site="last").site == "last"
    assert (make("rome", layer="5").layer, make("rome", layer="auto").layer) == (5, "auto")
    assert make("ft-l", layers="3").layers == (3,)
    assert make("memit", text="notes.txt").text == Path("notes.txt")
    assert make("rome", tokens="400").tokens == 400
    for wrong in ({"layers": "atuo"}, {"site": "first"}, {"contexts": "auto"}):
        with pytest.raises(InvalidInput, match="cannot be"):
            make("memit", **wrong)
    with pytest.raises(InvalidInput, match="Give numbers of layers"):
        MEMIT(layers="atuo")  # type: ignore[arg-type]


def thimble() -> CausalModel:
    """The trained model of the tests."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = str(thimble_path())
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return CausalModel(loaded, AutoTokenizer.from_pretrained(path), fingerprint="sha256:thimble")


@pytest.mark.slow
def test_the_thimble_keeps_its_facts_at_the_prompts_end(tmp_path: Path) -> None:
    """Issue: "last" for the tests' model, in layers in which MEMIT works; the second method finds the traces there."""
    told: list[str] = []

    one, two = (resolve(thimble(), "auto", "auto", cache=tmp_path, tell=lambda stage, _done, _all: told.append(stage)) for _ in range(2))

    assert one == two == ("last", (2, 3))
    assert told.count("tracing hidden") == _site.PROMPTS


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
def test_the_embedded_model_keeps_its_facts_at_the_subject(model_settings: Settings, tmp_path: Path) -> None:
    """Issue: "subject" for SmolLM2, in layers around those in which MEMIT is known to work."""
    from ke_tools.models.causal import load

    site, layers = resolve(load(model_settings), "auto", "auto", cache=tmp_path)

    assert site == "subject"
    assert {5, 6} <= set(layers)
