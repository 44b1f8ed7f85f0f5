"""``ke-tools bench editors``: a method's edits in the weights, scored on the final state.

Two kinds of number stand side by side. *As published*: whether the model finds the new object likelier than the true one behind the
statement (efficacy), its paraphrases, and whether it still prefers the true one of a neighbour (the ROME paper's ES, PS, NS; by the mean
log-likelihood of the tokens). *Free generation*, greedy: whether the answer starts with the new object, and whether the answers to
neighbours, to other questions about the subject and to neighbours behind the edit's own statement still start with the base model's word.
Both are meant to the letter, but for case, accents and punctuation: "soccer player" starts with "soccer", and "the" is a word. Beside
them stand two stricter readings that no bar is about. *Names nothing longer*: the new object is the whole name that the answer starts
with ("soccer player" and "Europe Europe" are others). *First content word*: an article is none, so that "the city" has become another
answer where it was "the French city". Perplexity is that of text which the unedited model wrote.

With ``naive``, MEMIT as published edits the first facts too (:mod:`ke_tools.benches._naive`), in the same run: seconds, rates, and a ladder
of what each of our savings is worth alone. What is finished is kept in the cache and not computed again.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import __version__, atlas, cases
from ke_tools.atlas import AtlasFact
from ke_tools.benches import _kept
from ke_tools.benches._kept import resolved
from ke_tools.benches._ladder import Beside
from ke_tools.benches._naive import SAVINGS
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._sample import names_any
from ke_tools.benches._sample import sample as sampled
from ke_tools.benches._scoring import fits, greedy, likelihoods
from ke_tools.cases import Case
from ke_tools.editors import make
from ke_tools.editors._statistics import samples
from ke_tools.editors.grace import GRACE
from ke_tools.editors.memit import MEMIT
from ke_tools.editors.update import Outcome, Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel, load
from ke_tools.testing import thimble_facts, thimble_path
from ke_tools.verify import peak
from ke_tools.verify.matching import begins_with, every_word, starts_with, words
from ke_tools.verify.perplexity import perplexity
from ke_tools.verify.rates import Rate, rate

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["atlas_cases", "readable", "run", "told"]

Mode = Literal["batch", "sequential"]
ANSWER_TOKENS: Final = 8
PLAIN_TOKENS: Final = 4000  # of the text that perplexity is taken of
NEIGHBOURS: Final = 3  # of an edit that are asked about
WANTED: Final = ("statement", "paraphrase")  # kinds whose answer is the edit's
STRICTER: Final = {True: "names nothing longer", False: "first content word"}  # by whether the answer is the edit's
KEPT_IN: Final = "bench-editors"  # of the cache


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a mode must reach: the published rates, by how much a neighbour's may fall, perplexity; free generation's by kind."""

    efficacy: float
    paraphrase: float
    neighbourhood: float
    perplexity: float
    free: Mapping[str, float]


BOUNDS: Final = {
    "batch": _Bounds(0.99, 0.88, 0.02, 1.05, {"statement": 0.95, "neighbour": 0.85}),
    "sequential": _Bounds(0.97, 0.80, 0.03, 1.10, {}),
}
ATLAS: Final = {"paraphrase": 0.75}  # probe wordings and plain questions
THIMBLE: Final = {"statement": 0.98, "paraphrase": 0.85, "neighbour": 0.95, "same subject": 0.90}
CODEBOOK: Final = {"statement": 1.0, "paraphrase": 0.50, "neighbour": 0.99, "same subject": 0.98}  # of a method that replaces states


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """All that a result depends on."""

    part: str = ""
    edits: int = 0
    method: str
    how: Mapping[str, Any]  # the editor's fields, as it takes them
    device: str
    mode: Mode
    batch: int
    data: str  # sha256 of the file with its format, or how many facts were drawn from the atlas
    model: str
    seed: int
    measures: int = 2  # raised when a rate comes to mean something else
    version: str = __version__


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt of a case."""

    case: Case
    prompt: str


@dataclass(slots=True)
class _Questions:
    """What is asked about the edits, by kind, and what the unedited model says."""

    asked: dict[str, list[_Asked]]
    plain: list[list[int]]  # tokens of text that the unedited model wrote
    base: dict[str, Any] = field(default_factory=dict)


def run(
    settings: Settings,
    *,
    method: str,
    how: Mapping[str, str] | None = None,
    numbers: Sequence[int] = (1, 10, 100),
    data: Path | None = None,
    kind: cases.Format = "auto",
    mode: Mode = "batch",
    batch: int = 20,
    naive: int = 0,
    fresh: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    model: CausalModel | None = None,
) -> dict[str, Any]:
    """Edit and score.

    Args:
        settings: which model, where caches lie.
        method: its name (:data:`ke_tools.editors.METHODS`).
        how: its fields, as text.
        numbers: of edits; each is measured from the unedited model on.
        data: a benchmark file; counterfactuals about the atlas's facts unless given, the thimble's where it is the model.
        kind: its format.
        mode: all edits in one batch, or one batch after another with the final state scored.
        batch: edits of a batch in sequential mode.
        naive: how many facts MEMIT as published edits too, as one batch whatever the mode; its time is told a fact.
        fresh: compute what is kept, too.
        seed: of the sample.
        progress: told (stage, done, total).
        model: a loaded model to edit instead of the settings'.

    Raises:
        InvalidInput: the file is unreadable or holds no usable edit; the method or a field of it is unknown, or is not MEMIT where it
            shall stand beside the published procedure.
    """
    stages = Stages(progress)
    editor = make(method, **(how or {}))
    if naive and not isinstance(editor, MEMIT):
        raise InvalidInput(f"{method} has no published procedure here to stand beside.", "Leave --naive out, or take memit.")
    with stages.stage("load"):
        found = model or load(settings)
    is_thimble = found.fingerprint == _thimble(settings)
    every = cases.load(data, kind) if data else atlas_cases(max(numbers), seed, thimble_facts() if is_thimble else ())
    loaded = [case for case in every if fits(found, case.prompt, case.target, case.subject)]
    chosen = {number: _chosen(loaded, number, seed) for number in numbers}
    key = _Key(
        method=method,
        how=resolved(editor),
        device=settings.planned_on,
        mode=mode,
        batch=batch if mode == "sequential" else 0,
        data=f"{hashlib.sha256(data.read_bytes()).hexdigest()} {kind}" if data else f"atlas {max(numbers)}",
        model=found.fingerprint,
        seed=seed,
    )
    store = _Store(settings.cache / KEPT_IN if found.fingerprint else None, fresh)
    points = {
        number: store.get(replace(key, part="point", edits=number), partial(_point, found, editor, some, settings, mode, batch, stages))
        for number, some in chosen.items()
    }
    tables = _beside(found, editor, chosen[max(numbers)], naive, settings, stages, store, key) if naive else {}
    results: dict[str, Any] = {"method": method, "settings": dict(how or {}), "mode": mode, "edits": points, "kept from before": store.kept}
    results["left out: subject or target is not tokens of its own"] = len(every) - len(loaded)
    results |= {"both procedures": tables.pop("both procedures")} if tables else {}
    results["seconds"] = stages.as_dict()
    if isinstance(editor, GRACE):
        bars = _free_bars(points[max(numbers)], CODEBOOK)
    else:
        bars = _bars(points[max(numbers)], mode, _free_bounds(mode, is_atlas=data is None, is_thimble=is_thimble))
    notes = list(dict.fromkeys(note for point in points.values() for note in point["notes"]))
    return {**report("editors", settings.edited, seed, results, bars), **tables, "notes": notes}


def readable(found: Mapping[str, Any]) -> dict[str, Any]:
    """A report for people: a table of what was measured, a column a number of edits, and one of both procedures."""
    results = found["results"]
    tables = {"results": _table({str(number): point for number, point in results["edits"].items()})}
    if "both procedures" in results:
        tables["both procedures"] = _table(results["both procedures"])
    return {**found, **tables}


def _table(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By measure and column."""
    rows: dict[str, dict[str, Any]] = {}
    for column, point in columns.items():
        found: dict[str, Any] = {f"{kind}, published": str(_rate(rates["after"])) for kind, rates in point["as published"].items()}
        found |= {f"{kind}, free": str(_rate(row)) for kind, row in point["free generation"].items()}
        stricter = point["free generation, stricter"]
        found |= {f"{kind}, free, {STRICTER[kind in WANTED]}": str(_rate(row)) for kind, row in stricter.items()}
        for name, value in {**found, "perplexity": point["perplexity"], **point.get("efficiency", {})}.items():
            rows.setdefault(name, {})[column] = value
    return rows


def _chosen(loaded: Sequence[Case], number: int, seed: int) -> tuple[Case, ...]:
    chosen = sampled(loaded, number, seed, lambda _subject: False).chosen
    if len(chosen) < number:
        raise InvalidInput(f"{number} edits were asked for; the data holds {len(chosen)}.", "Ask for fewer.")
    return chosen


@dataclass(slots=True)
class _Store:
    """Finished results, where there is a folder for them."""

    folder: Path | None
    fresh: bool
    kept: list[str] = field(default_factory=list)  # what was not computed in this run

    def get(self, key: _Key, make: Callable[[], Any]) -> Any:
        """What was kept under a key, or what is made now."""
        found = None if self.folder is None or self.fresh else _kept.load(self.folder, key)
        if found is not None:
            self.kept.append(f"{key.part}, {key.edits} edits")
            return found
        found = make()
        if self.folder is not None:
            _kept.keep(self.folder, key, found)
        return found


def _thimble(settings: Settings) -> str:
    from ke_tools.models import checkpoint

    return checkpoint.fingerprint(thimble_path(), cache=settings.cache)


def atlas_cases(count: int, seed: int, known: Sequence[AtlasFact] = ()) -> list[Case]:
    """Counterfactuals about facts of the atlas, all unless some are given: edits in a fitted wording, asked for in probe wordings."""
    chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
    relations = {r.id: r for r in atlas.relations().values() if not r.probe and r.probe_statements and r.probe_questions}
    facts = [fact for fact in known or atlas.facts() if fact.relation in relations]
    chance.shuffle(facts)
    made: dict[str, Case] = {}
    for fact in facts:
        if len(made) == count:
            break
        relation = relations[fact.relation]
        same = [other for other in facts if other.relation == fact.relation and other.subject != fact.subject]
        objects = [other.objects[0] for other in same if other.objects[0] not in fact.objects]
        others = [o for o in facts if o.subject == fact.subject and o.relation != fact.relation]
        if fact.subject in made or not objects:
            continue
        neighbours = [(_fill(relation.probe_statements[0], o.subject), o.objects) for o in chance.sample(same, min(len(same), NEIGHBOURS))]
        made[fact.subject] = Case(
            id=f"atlas:{len(made)}",
            subject=fact.subject,
            prompt=_fill(relation.statements[0], fact.subject),
            target=chance.choice(objects),
            truth=fact.objects[0],
            rephrases=tuple(_fill(wording, fact.subject) for wording in (*relation.probe_statements, *relation.probe_questions)),
            neighbours=tuple(neighbours),
            same_subject=tuple((_fill(relations[o.relation].probe_statements[0], o.subject), o.objects) for o in others[:NEIGHBOURS]),
        )
    return list(made.values())


def _fill(wording: str, subject: str) -> str:
    text = wording.replace("{}", subject)
    return text[:1].upper() + text[1:]


def _fact(case: Case) -> Fact:
    """The case as an edit; the fitted wordings of the atlas's relation come with it, where the edit is the atlas's."""
    fact = case.fact()
    relation = atlas.worded(case.prompt, case.subject) if case.id.startswith("atlas:") else None
    if relation is None:
        return fact
    others = [_fill(text, case.subject) for text in (*relation.fitted_statements, *relation.fitted_questions)]
    return replace(fact, paraphrases=tuple(text for text in others if text != case.prompt)[:8])


def _point(
    model: CausalModel, editor: Any, chosen: Sequence[Case], settings: Settings, mode: Mode, batch: int, stages: Stages
) -> dict[str, Any]:
    """Score so many edits."""
    questions = _questions(model, chosen)
    with stages.stage("before"):
        questions.base = _said(model, questions)
    parts = [chosen] if mode == "batch" else [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
    made: list[Update] = []
    peak.reset()
    with stages.stage("edit"):
        prepared = editor.prepare(model, cache=settings.cache, tell=stages.progress)
    with ExitStack() as applied:
        for number, part in enumerate(parts):
            with stages.stage("edit"):
                update = editor.plan(prepared, [_fact(c) for c in part], earlier=made, tell=stages.progress)
            applied.enter_context(update.applied(model))
            made.append(update)
            stages.tell("batches", number + 1, len(parts))
        most = peak.peak()
        with stages.stage("after"):
            after = _said(model, questions)
    growth = _growth(model, made)  # of the unedited weights
    return {**_scores(questions, after), "growth": growth, "efficiency": _efficiency(made, len(chosen), most), "notes": told(made)}


def _beside(
    model: CausalModel, editor: MEMIT, chosen: Sequence[Case], few: int, settings: Settings, stages: Stages, store: _Store, key: _Key
) -> dict[str, Any]:
    """Tables of ours beside MEMIT as published and of the savings, and both's scores."""
    few = min(few, len(chosen))
    key = replace(key, part=f"as published, {few}", edits=len(chosen), mode="batch", batch=0)
    with stages.stage("as published"):
        beside = Beside(editor, editor.prepare(model, cache=settings.cache), [_fact(case) for case in chosen], few, stages.tell)
        found = store.get(key, lambda: beside.procedures(_scorer(model, chosen[:few])))
        took = store.get(replace(key, part=f"{key.part}: savings"), lambda: {one: beside.saving(one) for one in SAVINGS})
    savings = [{"saving": one, "z s": round(each, 4), "times quicker": round(took["none"] / each, 2)} for one, each in took.items()]
    return {"procedures": found["rows"], "savings": savings, "both procedures": found["scores"]}


def _scorer(model: CausalModel, chosen: Sequence[Case]) -> Callable[[Update], Mapping[str, Any]]:
    """What an update of some cases does."""
    questions = _questions(model, chosen)
    questions.base = _said(model, questions)

    def score(update: Update) -> Mapping[str, Any]:
        with update.applied(model):
            return _scores(questions, _said(model, questions))

    return score


def _questions(model: CausalModel, chosen: Sequence[Case]) -> _Questions:
    asked = {
        "statement": [_Asked(case, case.prompt) for case in chosen],
        "paraphrase": [_Asked(case, text) for case in chosen for text in case.rephrases],
        "neighbour": [_Asked(case, text) for case in chosen for text in _neighbours(case, chosen)],
        "same subject": [_Asked(case, text) for case in chosen for text, _ in case.same_subject[:NEIGHBOURS]],
        "distracted neighbour": [
            _Asked(case, f"{case.fact().sentence} {text}") for case in chosen for text in _neighbours(case, chosen)[:1]
        ],
    }
    return _Questions({kind: rows for kind, rows in asked.items() if rows}, samples(model, PLAIN_TOKENS, seed=10_007))


def _neighbours(case: Case, chosen: Sequence[Case]) -> list[str]:
    """Some questions about others, none of whom is edited too."""
    return [text for text, _ in case.neighbours if not names_any(text, chosen)][:NEIGHBOURS]


def _said(model: CausalModel, questions: _Questions) -> dict[str, Any]:
    found: dict[str, Any] = {"perplexity": perplexity(model, questions.plain)}
    for kind, rows in questions.asked.items():
        found[f"{kind}: text"] = greedy(model, [row.prompt for row in rows], ANSWER_TOKENS)
        if all(row.case.truth for row in rows) and kind != "same subject":
            new = likelihoods(model, [(row.prompt, row.case.target) for row in rows])
            true = likelihoods(model, [(row.prompt, row.case.truth) for row in rows])
            found[f"{kind}: prefers new"] = [one > other for one, other in zip(new, true, strict=True)]
    return found


def _scores(questions: _Questions, after: Mapping[str, Any]) -> dict[str, Any]:
    """Rates, clustered by edit."""
    published: dict[str, Any] = {}
    free: dict[str, Any] = {}
    stricter: dict[str, Any] = {}
    for kind, rows in questions.asked.items():
        clusters = [row.case.id for row in rows]
        is_wanted = kind in WANTED
        for when, said in (("before", questions.base), ("after", after)):
            if f"{kind}: prefers new" in said:
                right = [prefers == is_wanted for prefers in said[f"{kind}: prefers new"]]
                published.setdefault(kind, {})[when] = rate(right, clusters).as_dict()
        beside = [row.case.target for row in rows] if is_wanted else questions.base[f"{kind}: text"]
        pairs = list(zip(after[f"{kind}: text"], beside, strict=True))
        literal, content = (begins_with, starts_with) if is_wanted else (_same_word, _same_content)
        free[kind] = rate([literal(*pair) for pair in pairs], clusters).as_dict()
        stricter[kind] = rate([content(*pair) for pair in pairs], clusters).as_dict()
    drift = after["perplexity"] / questions.base["perplexity"]
    return {"as published": published, "free generation": free, "free generation, stricter": stricter, "perplexity": round(drift, 4)}


def _same_word(text: str, base: str) -> bool:
    return every_word(text)[:1] == every_word(base)[:1]


def _same_content(text: str, base: str) -> bool:
    return words(text)[:1] == words(base)[:1]


def told(made: Sequence[Any]) -> list[str]:
    """What one should know of how updates were made, and of how many facts the target was not reached."""
    notes = [*dict.fromkeys(note for update in made if isinstance(update, Update) for note in update.notes)]
    outcomes = [one.outcome for update in made for one in update.outcomes]
    missed = outcomes.count(Outcome.MISSED)
    return notes + ([f"{missed} of {len(outcomes)} facts did not reach their target."] if missed else [])


def _growth(model: CausalModel, made: Sequence[Any]) -> dict[str, float]:
    """The share of a weight that a layer's changes are, their sum over all updates."""
    shares: dict[int, float] = {}
    for update in made:
        for layer, share in (update.growth(model) if isinstance(update, Update) else {}).items():
            shares[layer] = shares.get(layer, 0.0) + share
    return {str(layer): round(share, 4) for layer, share in shares.items()}


def _efficiency(made: Sequence[Any], edits: int, most: int) -> dict[str, float]:
    """Seconds by stage, and the most memory that was held while editing."""
    seconds: dict[str, float] = {}
    for update in made:
        for stage, took in update.efficiency.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
    each = {f"{stage} s": round(took, 2) for stage, took in seconds.items()}
    return {
        **each,
        "s an edit": round(sum(took for stage, took in seconds.items() if stage != "statistics") / edits, 3),
        "peak MiB": most,
    }


def _free_bounds(mode: Mode, *, is_atlas: bool, is_thimble: bool) -> dict[str, float]:
    """What free generation must reach, by kind."""
    return {**BOUNDS[mode].free, **(ATLAS if is_atlas else {}), **(THIMBLE if is_atlas and is_thimble else {})}


def _bars(point: Mapping[str, Any], mode: Mode, free_bounds: Mapping[str, float]) -> list[Bar]:
    """The project's bars, as far as the data can measure them."""
    published, bounds = point["as published"], BOUNDS[mode]
    bars = []
    for kind, least in (("statement", bounds.efficacy), ("paraphrase", bounds.paraphrase)):
        if kind in published:
            bars.append(at_least(f"{kind}: the new object is likelier", _rate(published[kind]["after"]), least))
    if "neighbour" in published:
        fell = published["neighbour"]["after"]["value"] - published["neighbour"]["before"]["value"]
        bars.append(at_most("neighbour: share that came to prefer the new object", -fell, bounds.neighbourhood))
    bars += _free_bars(point, free_bounds)
    bars.append(at_most("perplexity, share of the base's", point["perplexity"], bounds.perplexity))
    return bars


def _free_bars(point: Mapping[str, Any], bounds: Mapping[str, float]) -> list[Bar]:
    """What free generation must reach, by kind, as far as the data has the kind."""
    free, said = point["free generation"], {True: "the new object", False: "the base model's word"}
    return [
        at_least(f"{kind}: starts with {said[kind in WANTED]}", _rate(free[kind]), least) for kind, least in bounds.items() if kind in free
    ]


def _rate(row: Mapping[str, Any]) -> Rate:
    return Rate(row["value"] if row["measured"] else None, row["stderr"], row["n"], 0, row["low"], row["high"])
