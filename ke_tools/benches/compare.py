"""``ke-tools bench compare``: many methods on the same edits, a row each, scored on the final state.

The methods are the model as it is (``none``), all the edits' statements before each question (``prompt``), the memory with its scope
(``ike``, ``reader``: the real path from the question to the answer), and the editors of weights. What is asked, and what the columns mean,
says :mod:`ke_tools.benches._quiz`. Subjects that occur in our own training data are left out, for every method alike.

A finished row is kept in the cache, by all that it depends on, and not computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ke_tools import __version__, cases
from ke_tools.benches import _kept
from ke_tools.benches._kept import resolved
from ke_tools.benches._quiz import FLUENT_TOKENS, LOCAL, Quiz, Said, ask, quiz, scores
from ke_tools.benches._report import Progress, Stages, report
from ke_tools.benches._sample import imported, trained
from ke_tools.benches._sample import sample as sampled
from ke_tools.benches._scoring import Read, fits, read
from ke_tools.benches._serving import serving
from ke_tools.benches._speakers import Memory, Speaker, Weights
from ke_tools.benches._table import as_csv, as_markdown, cells, notes
from ke_tools.benches.editors import Mode, told
from ke_tools.cases import Case
from ke_tools.editors import METHODS, make
from ke_tools.editors.update import Update
from ke_tools.errors import InvalidInput, Unsupported
from ke_tools.models.causal import CausalModel, load
from ke_tools.models.engine import Engine
from ke_tools.verify import peak

if TYPE_CHECKING:
    from ke_tools.config import Settings

__all__ = ["DEFAULT", "as_csv", "as_markdown", "cells", "notes", "run"]

Via = Literal["ike", "reader"]

IN_CONTEXT: Final = ("none", "prompt", "ike", "reader")
DEFAULT: Final = (*IN_CONTEXT, "ft-m", "rome", "memit", "alphaedit", "grace")
KEPT_IN: Final = "compare"  # folder of the cache
PROMPT_TOKENS: Final = 1024  # of statements before a question, where the model can read so many
_UNREADABLE: Final = "the path sends questions to an adapter that is not there as a file: with these, nothing was teacher-forced."


def run(
    settings: Settings,
    *,
    data: Path,
    kind: cases.Format = "auto",
    methods: Sequence[str] = DEFAULT,
    how: Mapping[str, Mapping[str, str]] | None = None,
    edits: int = 100,
    mode: Mode = "batch",
    batch: int = 20,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress | None = None,
    model: CausalModel | None = None,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Make the table.

    Args:
        settings: which model, where caches lie; the user's own ledger is not touched.
        data: a file that :func:`ke_tools.cases.load` reads.
        kind: its format.
        methods: names of :data:`IN_CONTEXT` and :data:`ke_tools.editors.METHODS`.
        how: fields of the editors, as text, by method.
        edits: how many, one a subject.
        mode: all edits at once, or one batch after another; the final state is scored either way.
        batch: edits of a batch in sequential mode.
        seed: of the sample.
        fresh: compute rows again that are kept.
        progress: told (stage, done, total).
        model: a loaded model instead of the settings'.
        engine: a loaded engine for the memory's rows instead of the settings' model.

    Raises:
        InvalidInput: a method or a field of one is unknown; the file is unreadable or holds too few usable edits.
    """
    stages, how = Stages(progress), how or {}
    _check(methods, how)
    at_once = batch if mode == "sequential" else edits
    table = _Table(settings, data, kind, methods, how, edits, at_once, seed, stages, model, engine)
    rows: dict[str, Any] = {}
    for name in methods:
        rows[name] = table.row(name, fresh=fresh)
        stages.tell("methods", len(rows), len(methods))
    results = {"data": data.name, "edits": edits, "mode": mode, "batch": at_once, "rows": rows, "seconds": stages.as_dict()}
    return report("compare", settings.edited, seed, results)


def _check(methods: Sequence[str], how: Mapping[str, Mapping[str, str]]) -> None:
    known = (*IN_CONTEXT, *METHODS)
    if unknown := [name for name in methods if name not in known]:
        raise InvalidInput(f"there is no method {unknown[0]!r}.", f"Known are {', '.join(known)}.")
    if not methods:
        raise InvalidInput("no method is named.", f"Name some of {', '.join(known)}.")
    if others := [name for name in how if name not in methods or name in IN_CONTEXT]:
        raise InvalidInput(f"fields of {others[0]!r} are set, which is none of the editors compared.", "Set METHOD.FIELD of one that is.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """All that a row depends on."""

    model: str
    data: str  # sha256 of the file, with its format
    method: str
    how: Mapping[str, Any]  # an editor's fields, as it takes them
    device: str
    edits: int
    batch: int
    seed: int
    path: tuple[int | str, ...]  # of the memory's rows: demonstrations, grey
    reader: str  # the subjects that it was trained on are left out, whatever the method
    version: str = __version__


@dataclass
class _Table:
    """What all rows depend on; model and questions are loaded when the first row has to be made."""

    settings: Settings
    data: Path
    kind: cases.Format
    methods: Sequence[str]
    how: Mapping[str, Mapping[str, str]]
    edits: int
    batch: int
    seed: int
    stages: Stages
    model: CausalModel | None
    engine: Engine | None

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's weights."""
        from ke_tools.models import checkpoint

        return (
            self.model.fingerprint if self.model else checkpoint.fingerprint(checkpoint.resolve(self.settings), cache=self.settings.cache)
        )

    def key(self, name: str) -> _Key:
        """All that a method's row depends on."""
        editor = make(name, **self.how.get(name, {})) if name in METHODS else None
        return _Key(
            model=self.fingerprint,
            data=f"{hashlib.sha256(self.data.read_bytes()).hexdigest()} {self.kind}",
            method=name,
            how=resolved(editor) if editor else {},
            device=f"{self.settings.planned_on} {self.settings.device}",
            edits=self.edits,
            batch=self.batch,
            seed=self.seed,
            path=(self.settings.demonstrations, self.settings.grey) if name in ("ike", "reader") else (),
            reader=_reader_mark(self.fingerprint, self.settings),
        )

    def row(self, name: str, *, fresh: bool) -> dict[str, Any]:
        """A method's row, as it was kept, or computed and kept; a row that this model cannot have says why, and is not kept."""
        folder = self.settings.cache / KEPT_IN if self.fingerprint else None
        if folder is not None and not fresh and (found := _kept.load(folder, self.key(name))):
            return dict(found)
        try:
            row = _made(self.bench, name)
        except Unsupported as error:
            return {"method": name, "free generation": {}, "as published": {}, "cost": {}, "notes": [f"{error.message} {error.hint}"]}
        if folder is not None:
            _kept.keep(folder, self.key(name), row)
        return row

    @cached_property
    def bench(self) -> _Bench:
        """Everything loaded, the edits chosen."""
        with self.stages.stage("load"):
            model = self.model or load(self.settings)
        editors = {name: make(name, **self.how.get(name, {})) for name in self.methods if name in METHODS}
        with self.stages.stage("sample"):
            every = cases.load(self.data, self.kind)
            loaded = [case for case in every if fits(model, case.prompt, case.target, case.subject)]
            found = sampled(loaded, self.edits, self.seed, trained(self.fingerprint, self.settings, with_scope=True))
            chosen = found.chosen
        if len(chosen) < self.edits:
            raise InvalidInput(f"{self.edits} edits were asked for; the data holds {len(chosen)} that can be made.", "Ask for fewer.")
        parts = [chosen[start : start + self.batch] for start in range(0, len(chosen), self.batch)]
        asked = quiz(chosen)
        left_out = {
            "of the file: subject or target is not tokens of its own": len(every) - len(loaded),
            "subject in training data": found.trained,
            "not a fact": found.refused,
            **asked.left_out,
        }
        return _Bench(self.settings, model, self.engine, editors, asked, left_out, parts, self.stages)


@dataclass
class _Bench:
    """The edits, the questions, and who is there to be asked."""

    settings: Settings
    model: CausalModel
    engine: Engine | None
    editors: Mapping[str, Any]
    quiz: Quiz
    left_out: Mapping[str, int]
    parts: Sequence[Sequence[Case]]  # the edits, as they are made one part after another
    stages: Stages

    @cached_property
    def unedited(self) -> tuple[Said, int]:
        """What the unedited model says, asked once, and the memory that it took."""
        peak.reset()
        said = self.ask("none", Weights(self.model))
        return said, peak.peak()

    @property
    def base(self) -> Said:
        """What the unedited model says."""
        return self.unedited[0]

    def ask(self, name: str, speaker: Speaker) -> Said:
        """Ask a method's speaker everything."""
        with self.stages.stage(f"{name}: asked"):
            return ask(speaker, self.quiz, lambda prompt, target: fits(self.model, prompt, target), self.teller(name))

    def teller(self, name: str) -> Callable[[str, int, int], None]:
        """Hears the stages of a method."""
        return lambda stage, done, total: self.stages.tell(f"{name}: {stage}", done, total)


@dataclass(slots=True)
class _Answered:
    """What a method's speaker said; of memory, what its engine says by itself of what must stay."""

    said: Said
    seconds: float | None = None  # an edit, of making it; of none where nothing is made
    base: Said | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _made(bench: _Bench, name: str) -> dict[str, Any]:
    """Compute a row."""
    base, memory = bench.unedited
    peak.reset()
    found = _row(bench, name)
    cost = {"peak MiB": memory if name == "none" else peak.peak()}
    return {
        "method": name,
        "settings": {key: value for key, value in found.settings.items() if value is not None},
        **scores(bench.quiz, found.base or base, found.said),
        "cost": cost if found.seconds is None else {"seconds an edit": found.seconds, **cost},
        "left out": bench.left_out,
        "notes": found.notes,
    }


def _row(bench: _Bench, name: str) -> _Answered:
    if name == "none":
        return _Answered(bench.base)
    if name == "prompt":
        return _prompted(bench)
    if name in IN_CONTEXT:
        return _remembered(bench, cast("Via", name))
    return _written(bench, name)


def _prompted(bench: _Bench) -> _Answered:
    """All statements before each question, the latest ones where there is no room for all."""
    sentences = [case.fact().sentence for part in bench.parts for case in part]
    asked = [*(row.prompt for rows in bench.quiz.questions.values() for row in rows), *bench.quiz.subjects]
    longest = max(len(ids) for ids in bench.model.tokenizer(asked)["input_ids"])
    context = int(getattr(bench.model.model.config, "max_position_embeddings", 0) or PROMPT_TOKENS)
    room = min(PROMPT_TOKENS, context - longest - FLUENT_TOKENS)
    behind, count = _fitting(bench.model, sentences, room)
    note = f"{count} of {len(sentences)} statements stand before each question, the latest ones; there was room for {room} tokens."
    return _Answered(bench.ask("prompt", Weights(bench.model, behind)), settings={"tokens": room}, notes=[note])


def _fitting(model: CausalModel, sentences: Sequence[str], room: int) -> tuple[Read | None, int]:
    """As many of the last sentences as ``room`` tokens hold, a line each, and how many those are."""
    sizes = [len(ids) for ids in model.tokenizer([f"{sentence}\n" for sentence in sentences])["input_ids"]]
    count = 0
    while count < len(sizes) and sum(sizes[-count - 1 :]) <= room:
        count += 1
    return (read(model, "".join(f"{sentence}\n" for sentence in sentences[-count:])) if count else None), count


def _remembered(bench: _Bench, via: Via) -> _Answered:
    """The edits in a memory of their own, the questions through the real path."""
    from ke_tools.memory.ledger import Ledger
    from ke_tools.memory.router import Router
    from ke_tools.memory.scope import Scope
    from ke_tools.models.reader import card

    settings, stages = bench.settings, bench.stages
    with serving(settings, bench.engine, stages) as engine, closing(Ledger(":memory:")) as ledger:
        with stages.stage(f"{via}: edit"):
            for part in bench.parts:
                list(imported(ledger.edit, part, Case.fact))
        router = Router(Scope(ledger), demonstrations=settings.demonstrations, grey=settings.grey)
        reader = card.find(engine.fingerprint, settings.home) if via == "reader" else None
        said = bench.ask(via, Memory(engine, router, via, bench.model, reader))
        own = {kind: Memory(engine).say([row.prompt for row in rows]) for kind, rows in bench.quiz.questions.items() if kind in LOCAL}
    return _Answered(
        said,
        round(stages.seconds[f"{via}: edit"] / sum(map(len, bench.parts)), 3),
        replace(bench.base, texts={**bench.base.texts, **own}),
        {"demonstrations": settings.demonstrations, "grey": settings.grey},
        [] if said.own["reliability"] else [_UNREADABLE],
    )


def _written(bench: _Bench, name: str) -> _Answered:
    """The edits in the weights, taken back after the questions."""
    from ke_tools.editors._spread import described

    editor = bench.editors[name]
    with _edited(bench, name, editor) as made:
        said = bench.ask(name, Weights(bench.model))
    seconds = sum(took for update in made for stage, took in update.efficiency.seconds.items() if stage != "statistics")
    settings = made[0].method if isinstance(made[0], Update) else described(editor, layer=made[0].layer)
    return _Answered(said, round(seconds / sum(map(len, bench.parts)), 3), settings=settings, notes=told(made))


@contextmanager
def _edited(bench: _Bench, name: str, editor: Any) -> Iterator[list[Any]]:
    """The model with all edits, as long as the block lasts."""
    made: list[Any] = []
    with bench.stages.stage(f"{name}: edit"):
        prepared = editor.prepare(bench.model, cache=bench.settings.cache, tell=bench.teller(name))
    with ExitStack() as applied:
        for part in bench.parts:
            with bench.stages.stage(f"{name}: edit"):
                update = editor.plan(prepared, [case.fact() for case in part], earlier=made, tell=bench.teller(name))
            applied.enter_context(update.applied(bench.model))
            made.append(update)
            bench.stages.tell(f"{name}: batches", len(made), len(bench.parts))
        yield made


def _reader_mark(fingerprint: str, settings: Settings) -> str:
    """A hash over the reader of a model, empty where it has none."""
    from ke_tools.models.reader import card

    folder = card.find(fingerprint, settings.home)
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16] if folder else ""
