"""``ke-tools bench answers``: published edits, imported at once, answered through the serving path.

Free generation, greedy, to the natural stop or ``max_tokens``; "right" means that the answer *starts with* the new object as a
whole name. What must not change is generated in both views and compared byte by byte. Subjects that occur in our own training
data are left out.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas, cases
from ke_tools.benches._report import Bar, Progress, Stages, at_least, at_most, report
from ke_tools.benches._serving import TENANT, answers, completion, serving
from ke_tools.cases import Case
from ke_tools.errors import InvalidInput
from ke_tools.facts import Edit, Fact, squash
from ke_tools.models.engine import Engine, Request
from ke_tools.verify import Rate, bytes_kept, mentions, rate, same_answer, starts_with

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.memory.router import Routed, Router

__all__ = ["run"]

Via = Literal["auto", "ike", "reader", "weights"]

STATEMENT_BAR: Final = 0.97
PARAPHRASE_BAR: Final = 0.85
NEIGHBOUR_BAR: Final = 0.97
UNRELATED_BAR: Final = 1.0
SECONDS_BAR: Final = 360.0
UNRELATED_QUESTIONS: Final = 200
MISSES_SHOWN: Final = 10
IMPORT_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question, the edit it belongs to and what it must give (nothing: the base's answer)."""

    case: str
    prompt: str
    wanted: tuple[str, ...] = ()
    target: str = ""


@dataclass(slots=True)
class _Bench:
    """What all stages share."""

    engine: Engine
    router: Router
    stages: Stages
    via: Via
    max_tokens: int
    refs: dict[str, str] = field(default_factory=dict)  # edit id → case id
    misses: list[dict[str, str]] = field(default_factory=list)


def run(
    settings: Settings,
    *,
    data: Path,
    kind: cases.Format = "auto",
    edits: int = 200,
    unrelated: Path | None = None,
    seed: int = 0,
    max_tokens: int = 24,
    via: Via = "auto",
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Import a sample of a benchmark's edits and measure the answers.

    Args:
        settings: which model, how many demonstrations; the user's own ledger is not touched.
        data: a file that :func:`ke_tools.cases.load` reads.
        kind: its format.
        edits: how many edits, one a subject.
        unrelated: a file whose unrelated questions (zsRE's ``loc``) must keep their answers; without it, the data's own.
        seed: of the sample.
        max_tokens: longest answer.
        via: how facts reach the model.
        progress: told (stage, done, total).
        engine: a loaded engine to measure instead of the settings' model.

    Raises:
        InvalidInput: a file is unreadable, or holds no usable edit.
    """
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.router import Router
    from ke_tools.memory.scope import Scope

    stages = Stages(progress)
    loaded = cases.load(data, kind)
    others = _unrelated_questions(loaded if unrelated is None else cases.load(unrelated), seed)
    with serving(settings, engine, stages) as served, closing(Ledger(":memory:")) as ledger:
        sample = _sample(loaded, edits, seed, _trained(served, settings))
        bench = _Bench(served, Router(Scope(ledger), demonstrations=settings.demonstrations), stages, via, max_tokens)
        with stages.stage("import"):
            bench.refs = {edit.id: edit.ref for edit in _imported(ledger.edit, sample.chosen)}
        results, bars = _measure(bench, sample, others)
        return report("answers", served.model_id, seed, results, bars)


# The sample


@dataclass(frozen=True, slots=True)
class _Sample:
    chosen: tuple[Case, ...]
    trained: int  # left out: the subject occurs in our training data
    refused: int  # left out: not a valid fact (subject not in the prompt …)


def _sample(loaded: Sequence[Case], most: int, seed: int, is_trained: Callable[[str], bool]) -> _Sample:
    """A seeded sample, one edit a subject, in random order."""
    order = list(loaded)
    random.Random(seed).shuffle(order)  # noqa: S311  reproducible choice, no secret
    chosen: dict[str, Case] = {}
    trained = refused = 0
    for case in order:
        if len(chosen) == most:
            break
        if squash(case.subject) in chosen:
            continue
        if is_trained(case.subject):
            trained += 1
        elif not _is_fact(case):
            refused += 1
        else:
            chosen[squash(case.subject)] = case
    if not chosen:
        raise InvalidInput("no usable edit in the file.", "Each record needs a subject that stands in its prompt, and a target.")
    return _Sample(tuple(chosen.values()), trained, refused)


def _is_fact(case: Case) -> bool:
    try:
        case.fact()
    except InvalidInput:
        return False
    return True


def _trained(engine: Engine, settings: Settings) -> Callable[[str], bool]:
    """A test whether a subject occurs in training data of ours: the atlas's facts, and what the cards of reader and scope list."""
    prefixes = set(_listed(_card_folders(engine, settings)))
    ours = {squash(fact.subject) for fact in atlas.facts()}
    return lambda subject: squash(subject) in ours or hashlib.sha256(squash(subject).encode()).hexdigest()[:8] in prefixes


def _card_folders(engine: Engine, settings: Settings) -> Iterator[Path]:
    """Where cards lie: the reader's folder, and the scope's."""
    from ke_tools.models.reader import card

    folder = card.find(engine.fingerprint, settings.home)
    if folder is not None:
        yield folder
    with resources.as_file(resources.files("ke_tools.memory.scope")) as folder:
        yield folder


def _listed(folders: Iterable[Path]) -> Iterator[str]:
    """First 8 hexadecimal digits of sha256(squash(subject)) for each subject of the training data."""
    for folder in folders:
        for path in sorted(folder.rglob("*.json")):
            try:
                card = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(card, dict):
                yield from card.get("training_subjects") or ()


def _imported(edit: Callable[..., list[Edit]], chosen: Sequence[Case]) -> Iterator[Edit]:
    for start in range(0, len(chosen), IMPORT_BATCH):
        part = chosen[start : start + IMPORT_BATCH]
        facts: list[Fact] = [case.fact() for case in part]
        yield from edit(TENANT, facts, actor="bench", refs=[case.id for case in part])


def _unrelated_questions(loaded: Sequence[Case], seed: int) -> list[_Asked]:
    prompts = list(dict.fromkeys(prompt for case in loaded for prompt, _ in case.unrelated))
    random.Random(seed).shuffle(prompts)  # noqa: S311  reproducible choice, no secret
    return [_Asked(case=f"unrelated:{number}", prompt=prompt) for number, prompt in enumerate(prompts[:UNRELATED_QUESTIONS])]


# The measures


def _measure(bench: _Bench, sample: _Sample, unrelated: Sequence[_Asked]) -> tuple[dict[str, Any], list[Bar]]:
    chosen = sample.chosen
    rephrased = [(case, text) for case in chosen for text in case.rephrases]
    naming = [(case, text) for case, text in rephrased if f" {squash(case.subject)} " in f" {squash(text)} "]
    neighbours = [_Asked(case.id, prompt, target=case.target) for case in chosen for prompt, _ in case.neighbours]
    clear = [asked for asked in neighbours if not _names_any(asked.prompt, chosen)]
    statement = _must_say(bench, "statement", [_Asked(case.id, case.prompt, (case.target,)) for case in chosen])
    paraphrase = _must_say(bench, "paraphrase", [_Asked(case.id, text, (case.target,)) for case, text in naming])
    kept = _must_stay(bench, "neighbourhood", clear)
    untouched = _must_stay(bench, "unrelated", unrelated)
    results = {
        "edits": len(chosen),
        "left_out": {
            "subject_in_training_data": sample.trained,
            "not_a_fact": sample.refused,
            "paraphrase_without_subject": len(rephrased) - len(naming),
            "neighbour_names_an_edited_subject": len(neighbours) - len(clear),
        },
        "statement": statement,
        "paraphrase": paraphrase,
        "neighbourhood": kept,
        "unrelated": untouched,
        **_further(bench, chosen),
        "via": bench.via,
        "misses": bench.misses,
        "seconds": bench.stages.as_dict(),
    }
    return results, _bars(results, is_counterfact=any(case.neighbours for case in chosen), seconds=bench.stages.as_dict()["total"])


def _further(bench: _Bench, chosen: Sequence[Case]) -> dict[str, Any]:
    """What only some formats ask: the subject under another name, another relation of the subject, one hop."""
    found: dict[str, Any] = {}
    aliased = [_Asked(case.id, prompt, (case.target, *right)) for case in chosen for prompt, right in case.aliased[:1]]
    hops = [_Asked(case.id, prompt, right) for case in chosen for prompt, right in case.reasoning[:1] if right]
    same = [_Asked(case.id, prompt, target=case.target) for case in chosen for prompt, _ in case.same_subject[:1]]
    if aliased:
        found["aliased"] = _must_say(bench, "aliased", aliased)
    if hops:
        found["reasoning"] = _must_say(bench, "reasoning", hops)
    if same:
        found["same_subject"] = _must_stay(bench, "same_subject", same)
    return found


def _bars(results: dict[str, Any], *, is_counterfact: bool, seconds: float) -> list[Bar]:
    """The bars that the data defines: CounterFact's, and unrelated questions wherever there are any."""
    bars = []
    if is_counterfact:
        bars += [
            _bar("statement starts with the new object", results["statement"]["starts_with"], STATEMENT_BAR),
            _bar("paraphrase starts with the new object", results["paraphrase"]["starts_with"], PARAPHRASE_BAR),
            _bar("neighbourhood byte-identical", results["neighbourhood"]["identical"], NEIGHBOUR_BAR),
            at_most("seconds", seconds, SECONDS_BAR),
        ]
    if results["unrelated"]["identical"]["measured"]:
        bars.append(_bar("unrelated byte-identical", results["unrelated"]["identical"], UNRELATED_BAR))
    return bars


def _bar(name: str, found: dict[str, Any], bar: float) -> Bar:
    value = found["value"] if found["measured"] else None
    return at_least(name, Rate(value, found["stderr"], found["n"], 0, found["low"], found["high"]), bar)


def _must_say(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> dict[str, Any]:
    """Share of answers that start with what is wanted, and of questions for which the right edit fired."""
    routed = _routed(bench, stage, asked)
    said = answers(bench.engine, [one.request for one in routed], bench.stages, stage)
    right = [any(starts_with(answer, name) for name in one.wanted) for one, answer in zip(asked, said, strict=True)]
    fired = [any(bench.refs.get(hit.edit.id) == one.case for hit in way.hits) for one, way in zip(asked, routed, strict=True)]
    _note(bench, stage, zip(asked, said, routed, right, strict=True))
    clusters = [one.case for one in asked]
    return {"starts_with": rate(right, clusters).as_dict(), "scope_recall": rate(fired, clusters).as_dict()}


def _must_stay(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> dict[str, Any]:
    """Share of answers that stay: byte for byte, in substance; how often an edit fired, how often its target is spoken."""
    routed = _routed(bench, stage, asked)
    edited = answers(bench.engine, [one.request for one in routed], bench.stages, stage)
    base = answers(bench.engine, [completion(one.prompt, bench.max_tokens) for one in asked], bench.stages, f"{stage}, base")
    pairs = list(zip(asked, base, edited, strict=True))
    same = [bytes_kept(before, after) for _, before, after in pairs]
    _note(bench, stage, zip(asked, edited, routed, same, strict=True))
    clusters = [one.case for one in asked]
    spoken = [bool(one.target) and mentions(after, [one.target]) and not mentions(before, [one.target]) for one, before, after in pairs]
    return {
        "identical": rate(same, clusters).as_dict(),
        "answer_kept": rate([same_answer(before, after, one.prompt) for one, before, after in pairs], clusters).as_dict(),
        "speaks_the_target": rate(spoken, clusters).as_dict(),
        "scope_fired": rate([way.route != "base" for way in routed], clusters).as_dict(),
    }


def _routed(bench: _Bench, stage: str, asked: Sequence[_Asked]) -> list[Routed]:
    found: list[Routed] = []
    with bench.stages.stage("route"):
        for number, one in enumerate(asked, 1):
            request: Request = completion(one.prompt, bench.max_tokens)
            found.append(bench.router.route(TENANT, request, engine=bench.engine, via=bench.via))
            bench.stages.tell(f"route {stage}", number, len(asked))
    return found


def _note(bench: _Bench, stage: str, rows: Iterable[tuple[_Asked, str, Routed, bool]]) -> None:
    """Keep the first misses of a stage in words."""
    missed = [row for row in rows if not row[3]]
    for one, answer, way, _ in missed[:MISSES_SHOWN]:
        wanted = one.wanted[0] if one.wanted else "the base's answer"
        bench.misses.append({"stage": stage, "prompt": one.prompt, "answer": answer, "wanted": wanted, "route": way.route})


def _names_any(prompt: str, chosen: Sequence[Case]) -> bool:
    text = f" {squash(prompt)} "
    return any(f" {squash(case.subject)} " in text for case in chosen)
