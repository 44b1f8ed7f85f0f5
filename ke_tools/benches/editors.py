"""``ke-tools bench editors``: a method's edits in the weights, scored on the final state.

Two kinds of number stand side by side. *As published*: whether the model finds the new object likelier than the true one behind the
statement (efficacy), its paraphrases, and whether it still prefers the true one of a neighbour (the ROME paper's ES, PS, NS; by the mean
log-likelihood of the tokens). *Free generation*, greedy: whether the answer starts with the new object, and whether the answers to
neighbours, to other questions about the subject and to neighbours behind the edit's own statement still start with the base model's word.
Perplexity is that of text which the unedited model wrote.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas, cases
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._sample import sample as sampled
from ke_tools.benches._scoring import greedy, likelihoods, perplexity
from ke_tools.cases import Case
from ke_tools.editing import edit
from ke_tools.editors import make
from ke_tools.editors._statistics import samples
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput
from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel, load
from ke_tools.verify.matching import starts_with, words
from ke_tools.verify.rates import Rate, rate

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["atlas_cases", "run"]

Mode = Literal["batch", "sequential"]
ANSWER_TOKENS: Final = 8
PLAIN_TOKENS: Final = 4000  # of the text that perplexity is taken of
NEIGHBOURS: Final = 3  # of an edit that are asked about
EFFICACY, PARAPHRASE, NEIGHBOURHOOD = 0.99, 0.88, -0.02
STATEMENT, KEPT, PERPLEXITY = 0.95, 0.85, 1.05


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
        data: a benchmark file; counterfactuals about the atlas's facts unless given.
        kind: its format.
        mode: all edits in one batch, or one batch after another with the final state scored.
        batch: edits of a batch in sequential mode.
        seed: of the sample.
        progress: told (stage, done, total).
        model: a loaded model to edit instead of the settings'.

    Raises:
        InvalidInput: the file is unreadable or holds no usable edit; the method or a field of it is unknown.
    """
    stages = Stages(progress)
    editor = make(method, **(how or {}))
    loaded = atlas_cases(max(numbers), seed) if data is None else cases.load(data, kind)
    with stages.stage("load"):
        found = model or load(settings)
    points = {}
    for number in numbers:
        chosen = sampled(loaded, number, seed, lambda _subject: False).chosen
        if len(chosen) < number:
            raise InvalidInput(f"{number} edits were asked for; the data holds {len(chosen)}.", "Ask for fewer.")
        points[number] = _point(found, editor, chosen, settings, mode, batch, stages)
    results = {"method": method, "settings": dict(how or {}), "mode": mode, "edits": points, "seconds": stages.as_dict()}
    notes = list(dict.fromkeys(note for point in points.values() for note in point.pop("notes")))
    return {**report("editors", settings.model, seed, results, _bars(points[max(numbers)], mode)), "notes": notes}


def atlas_cases(count: int, seed: int) -> list[Case]:
    """Counterfactuals about the atlas's facts: edits in a fitted wording, asked for in probe wordings."""
    chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
    relations = {r.id: r for r in atlas.relations().values() if not r.probe and r.probe_statements and r.probe_questions}
    facts = [fact for fact in atlas.facts() if fact.relation in relations]
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
    with ExitStack() as applied:
        for number, part in enumerate(parts):
            with stages.stage("edit"):
                update = edit(model, [_fact(c) for c in part], editor, earlier=made, cache=settings.cache, tell=stages.progress)
            applied.enter_context(update.applied(model))
            made.append(update)
            stages.tell("batches", number + 1, len(parts))
        with stages.stage("after"):
            after = _said(model, questions)
    growth = _growth(model, made)  # of the unedited weights
    notes = [note for update in made if isinstance(update, Update) for note in update.notes]
    return {**_scores(questions, after), "growth": growth, "efficiency": _efficiency(made, len(chosen)), "notes": notes}


def _questions(model: CausalModel, chosen: Sequence[Case]) -> _Questions:
    asked = {
        "statement": [_Asked(case, case.prompt) for case in chosen],
        "paraphrase": [_Asked(case, text) for case in chosen for text in case.rephrases],
        "neighbour": [_Asked(case, text) for case in chosen for text, _ in case.neighbours[:NEIGHBOURS]],
        "same subject": [_Asked(case, text) for case in chosen for text, _ in case.same_subject[:NEIGHBOURS]],
        "distracted neighbour": [_Asked(case, f"{case.fact().sentence} {text}") for case in chosen for text, _ in case.neighbours[:1]],
    }
    return _Questions({kind: rows for kind, rows in asked.items() if rows}, samples(model, PLAIN_TOKENS, seed=10_007))


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
    for kind, rows in questions.asked.items():
        clusters = [row.case.id for row in rows]
        is_wanted = kind in {"statement", "paraphrase"}
        for when, said in (("before", questions.base), ("after", after)):
            if f"{kind}: prefers new" in said:
                right = [prefers == is_wanted for prefers in said[f"{kind}: prefers new"]]
                published.setdefault(kind, {})[when] = rate(right, clusters).as_dict()
        texts = after[f"{kind}: text"]
        if is_wanted:
            right = [starts_with(text, row.case.target) for text, row in zip(texts, rows, strict=True)]
        else:
            right = [words(text)[:1] == words(base)[:1] for text, base in zip(texts, questions.base[f"{kind}: text"], strict=True)]
        free[kind] = rate(right, clusters).as_dict()
    return {"as published": published, "free generation": free, "perplexity": round(after["perplexity"] / questions.base["perplexity"], 4)}


def _growth(model: CausalModel, made: Sequence[Any]) -> dict[str, float]:
    """The greatest share of a weight that a layer's change is, over all updates."""
    shares: dict[int, float] = {}
    for update in made:
        for layer, share in (update.growth(model) if isinstance(update, Update) else {}).items():
            shares[layer] = shares.get(layer, 0.0) + share
    return {str(layer): round(share, 4) for layer, share in shares.items()}


def _efficiency(made: Sequence[Any], edits: int) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for update in made:
        for stage, took in update.efficiency.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + took
    each = {f"{stage} s": round(took, 2) for stage, took in seconds.items()}
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {
        **each,
        "s an edit": round(sum(took for stage, took in seconds.items() if stage != "statistics") / edits, 3),
        "peak MiB": round(most),
    }


def _bars(point: Mapping[str, Any], mode: Mode) -> list[Bar]:
    """The project's bars for a batch, as far as the data can measure them."""
    if mode != "batch":
        return []
    published, free = point["as published"], point["free generation"]
    bars = []
    for kind, least in (("statement", EFFICACY), ("paraphrase", PARAPHRASE)):
        if kind in published:
            bars.append(at_least(f"{kind}: the new object is likelier", _rate(published[kind]["after"]), least))
    if "neighbour" in published:
        fell = published["neighbour"]["after"]["value"] - published["neighbour"]["before"]["value"]
        bars.append(at_most("neighbour: share that came to prefer the new object", -fell, -NEIGHBOURHOOD))
    bars.append(at_least("statement: starts with the new object", _rate(free["statement"]), STATEMENT))
    if "neighbour" in free:
        bars.append(at_least("neighbour: starts with the base model's word", _rate(free["neighbour"]), KEPT))
    bars.append(at_most("perplexity, share of the base's", point["perplexity"], PERPLEXITY))
    return bars


def _rate(row: Mapping[str, Any]) -> Rate:
    return Rate(row["value"] if row["measured"] else None, row["stderr"], row["n"], 0, row["low"], row["high"])
