"""``bench scope --synthetic N``: time and memory of the scope with very many edits.

A ledger in a temporary folder is filled with made-up subjects and relations of the atlas; what is measured is measured in processes of
their own (:mod:`ke_tools.benches._scale_probe`), so that nothing of the filling counts.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools import atlas
from ke_tools.benches._report import Bar, Progress, Stages, at_most, report
from ke_tools.benches._serving import TENANT
from ke_tools.errors import KeToolsError
from ke_tools.facts import Edit, Fact

if TYPE_CHECKING:
    from ke_tools.config import Settings
    from ke_tools.memory.ledger import Ledger

MEMORY_BAR: Final = 1024.0  # MiB, scope and ledger, before a model is loaded
COLD_BAR: Final = 10.0  # seconds, with the index file
EDIT_BAR: Final = 50.0  # milliseconds, p99
OUT_BAR: Final = 1.0  # milliseconds, p99
IN_BAR: Final = 10.0  # milliseconds, p99
RISKY_BAR: Final = 15.0  # milliseconds, p99

IMPORT_BATCH: Final = 1000
EVENT_BATCH: Final = 20_000
ONE_SUBJECT: Final = "Alma Ketteridge"
ONE_SUBJECTS_TENANT: Final = "bench-one-subject"
RISKY_TENANT: Final = "bench-risky"

_SYLLABLES: Final = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
_THINGS: Final = tuple("policy budget password schedule menu handbook parking invoice meeting server backup contract badge printer".split())
_KINDS: Final = tuple("refund travel wifi holiday lunch staff visitor monthly weekly staging nightly rental entry colour".split())
_OF: Final = tuple("sales support finance legal design research kitchen garden night board summer winter north south".split())

EmbedderName = Literal["minilm", "hashing"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process of its own is to measure."""

    ledger: str
    cache: str
    embedder: str
    questions: tuple[str, ...]  # that name no edited subject
    named: tuple[str, ...]  # that ask for an edited fact, in other words
    own: tuple[str, ...]  # in its own
    new: tuple[tuple[str, str, str], ...]  # subject, prompt, target of edits to be made
    risky: tuple[str, ...]  # that use the words of a description
    one_subject: tuple[str, ...]


def run(
    settings: Settings,
    *,
    synthetic: int,
    logged: int = 0,
    risky: int = 1000,
    one_subject: int = 1000,
    asked: int = 1000,
    embedder: EmbedderName = "minilm",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a scope of ``synthetic`` live edits.

    Args:
        settings: unused but for the shape of a bench; neither the user's ledger nor their cache is touched.
        synthetic: how many live edits.
        logged: how many events the ledger shall have at least; what is more than the edits are corrections that were taken back.
        risky: how many edits of things without a name, in a tenant of their own.
        one_subject: how many edits of one subject, in a tenant of their own.
        asked: how many questions of each kind.
        embedder: all-MiniLM-L6-v2, or the one without a model.
        seed: of the names and the choice of questions.
        progress: told (stage, done, total).

    Raises:
        KeToolsError: a measuring process broke.
    """
    _ = settings
    stages = Stages(progress)
    chance = random.Random(seed)  # noqa: S311  reproducible choice, no secret
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "ledger.db", Path(folder) / "cache"
        with _ledger(path) as ledger:
            facts = list(_facts(chance, synthetic))
            with stages.stage("import"):
                edits = _import(ledger, facts, stages)
            with stages.stage("further events"):
                _log(path, edits, logged - synthetic, stages)
            _import(ledger, list(_of_one_subject(chance, one_subject)), stages, ONE_SUBJECTS_TENANT)
            described = list(_described(risky))
            _import(ledger, described, stages, RISKY_TENANT)
            events = ledger.head()
        plan = _plan(path, cache, embedder, chance, facts, described, asked)
        with stages.stage("without index file"):
            without = _probe(plan, "cold")
        with stages.stage("with index file"):
            measured = _probe(plan, "all")
        size = path.stat().st_size
    results = {
        "edits": len(facts),
        "events": events,
        "embedder": embedder,
        "ledger_mib": round(size / 2**20, 1),
        "cold_without_file": without["cold"],
        "cold_with_file": measured.pop("cold"),
        **measured,
        "seconds": stages.as_dict(),
    }
    return report("scope-scale", embedder, seed, results, _bars(results))


def _bars(results: dict[str, Any]) -> list[Bar]:
    bars = [
        at_most("memory of scope and ledger, MiB", results["memory_mib"]["scope"], MEMORY_BAR),
        at_most("cold start with index file, seconds", results["cold_with_file"]["seconds"], COLD_BAR),
        at_most("one more edit effective, p99 ms", results["one_more_edit"]["effective"]["p99"], EDIT_BAR),
        at_most("question that names no edited subject, p99 ms", results["question"]["out"]["p99"], OUT_BAR),
    ]
    if results["question"]["in"]["n"]:
        bars.append(at_most("question in scope, p99 ms", results["question"]["in"]["p99"], IN_BAR))
    if results["question"]["risky"]["n"]:
        bars.append(at_most("question among risky edits, p99 ms", results["question"]["risky"]["p99"], RISKY_BAR))
    return bars


# The edits


def _ledger(path: Path) -> closing[Ledger]:
    from ke_tools.memory.ledger import Ledger

    return closing(Ledger(path))


def _name(chance: random.Random) -> str:
    return " ".join("".join(chance.choices(_SYLLABLES, k=chance.randint(2, 4))).capitalize() for _ in range(2))


def _names(chance: random.Random, count: int) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names[_name(chance)] = None
    return list(names)


def _facts(chance: random.Random, count: int) -> Iterator[Fact]:
    statements = [r.fitted_statements[0] for r in atlas.relations().values() if r.fitted_statements and r.functional]
    for number, name in enumerate(_names(chance, count)):
        aliases = (f"{name.split()[0]} {number} Group",) if number % 5 == 0 else ()
        yield Fact(subject=name, prompt=chance.choice(statements).replace("{}", name), target=_name(chance), aliases=aliases)


def _of_one_subject(chance: random.Random, count: int) -> Iterator[Fact]:
    for name in _names(chance, count):
        yield Fact(subject=ONE_SUBJECT, prompt=f"The {name.lower()} of {ONE_SUBJECT} is", target=_name(chance))


def _described(count: int) -> Iterator[Fact]:
    every = [f"{kind} {thing} of the {team} team" for team in _OF for thing in _THINGS for kind in _KINDS]
    for number in range(count):
        what = f"our {every[number % len(every)]}"
        yield Fact(subject=what, prompt=f"The person who looks after {what} is", target=f"Person {number}")


def _import(ledger: Ledger, facts: Sequence[Fact], stages: Stages, tenant: str = TENANT) -> list[Edit]:
    from ke_tools.memory.corrections import Correction
    from ke_tools.memory.slots import slot_of

    made: list[Edit] = []
    for start in range(0, len(facts), IMPORT_BATCH):
        corrections = [Correction.of(fact, slot_of) for fact in facts[start : start + IMPORT_BATCH]]
        made += [edit for edit in ledger.edit_each(tenant, corrections, actor="bench") if isinstance(edit, Edit)]
        stages.tell(f"import {tenant}", len(made), len(facts))
    return made


def _log(path: Path, edits: Sequence[Edit], count: int, stages: Stages) -> None:
    """Log further events as the ledger itself writes them: an edit is superseded, and the new one rolled back again.

    They are appended without the checks of :meth:`Ledger.edit`, which find slots and warnings and would take minutes.
    """
    from ke_tools.memory.events import Change, Standing, record_of
    from ke_tools.memory.log import Author, append
    from ke_tools.memory.storage import Storage

    author = Author(TENANT, "bench")
    storage = Storage(path, read_only=False, busy_timeout_ms=10_000)
    with closing(storage):
        for start in range(0, count, EVENT_BATCH):
            with storage.writing() as db:
                for number in range(start, min(count, start + EVENT_BATCH), 2):
                    old = edits[number // 2 % len(edits)]
                    new = f"ed_{secrets.token_hex(8)}"
                    payload = {
                        "id": new,
                        "fact": record_of(old.fact),
                        "slot": old.slot,
                        "relation": old.relation,
                        "functional": old.functional,
                        "ref": "",
                        "mode": "auto",
                        "supersedes": [old.id],
                        "warnings": [],
                        "alias_risky": old.alias_risky,
                    }
                    append(db, author, "edit", payload, [Change(new, Standing.ACTIVE), Change(old.id, Standing.SUPERSEDED, new)])
                    back = [Change(old.id, Standing.ACTIVE), Change(new, Standing.ROLLED_BACK)]
                    append(db, author, "rollback", {"edit_ids": [new]}, back)
            stages.tell("further events", min(count, start + EVENT_BATCH), count)


# What is asked


def _plan(
    path: Path, cache: Path, embedder: str, chance: random.Random, facts: Sequence[Fact], described: Sequence[Fact], asked: int
) -> Plan:
    questions = [question for r in atlas.relations().values() for question in r.fitted_questions]
    strangers = [f"{_name(chance)}son" for _ in range(asked)]  # no made-up name ends so
    fronts = ("", "I am writing an essay for school and it is due on Friday. ", "Thanks, that helps a lot! Now something else. ")
    new = [f"{_name(chance)}burg" for _ in range(min(asked, 200))]
    some = [chance.choice(facts) for _ in range(asked)]
    return Plan(
        ledger=str(path),
        cache=str(cache),
        embedder=embedder,
        questions=tuple(chance.choice(fronts) + chance.choice(questions).replace("{}", name) for name in strangers),
        named=tuple(chance.choice(fronts) + _in_other_words(fact, chance) for fact in some),
        own=tuple(chance.choice(fronts) + fact.prompt for fact in some),
        new=tuple((name, f"The capital of {name} is", _name(chance)) for name in new),
        risky=tuple(f"Who looks after {chance.choice(described).subject.replace('our', 'the')}?" for _ in range(asked))
        if described
        else (),
        one_subject=tuple(f"What is the {_name(chance).lower()} of {ONE_SUBJECT}?" for _ in range(min(asked, 100))),
    )


def _in_other_words(fact: Fact, chance: random.Random) -> str:
    """Another fitted wording of the fact's relation."""
    masked = fact.prompt.replace(fact.subject, "{}")
    relation = next(r for r in atlas.relations().values() if r.functional and masked == next(iter(r.fitted_statements), ""))
    others = [text for text in relation.fitted_statements + relation.fitted_questions if text != masked]
    return chance.choice(others or [masked]).replace("{}", fact.subject)


def _probe(plan: Plan, what: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "ke_tools.benches._scale_probe", what]
    surroundings = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}  # as the command line's
    done = subprocess.run(
        command, input=json.dumps(asdict(plan)), capture_output=True, text=True, check=False, env={**os.environ, **surroundings}
    )
    if done.returncode:
        raise KeToolsError(f"the measuring process broke: {done.stderr.strip()[-2000:]}", "Run it again; if it persists, report it.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
