"""Which atlas facts the served model knows: asked in chat (plain where the model has no chat template), greedily.

A neighbour about which the model knew nothing cannot show harm; verification and the demo choose among what comes out here.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from ke_tools import atlas
from ke_tools.atlas import AtlasFact
from ke_tools.models.engine import Engine, Request, one_turn, tells_weights
from ke_tools.verify.about import accepted
from ke_tools.verify.asking import fill
from ke_tools.verify.matching import asserts

__all__ = ["atlas_hash", "knows", "remembered"]

ANSWER_TOKENS: Final = 24
BATCH: Final = 32


def knows(
    engine: Engine, facts: Sequence[AtlasFact], *, cache: Path | None = None, progress: Callable[[str, int, int], None] | None = None
) -> list[AtlasFact]:
    """Those of ``facts`` that the model answers rightly, in their order.

    Args:
        engine: the model, without edits.
        facts: what to ask about.
        cache: folder in which the answers are kept, by the hash of the model's weights and the atlas's; None, or no such hash, asks anew.
        progress: told (stage, done, total) after each batch; what it raises ends the asking.
    """
    store = None if cache is None else _store(engine, cache)
    verdicts = _read(store)
    missing = [fact for fact in facts if _key(fact) not in verdicts]
    try:
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            answers = engine.generate([_question(engine, fact) for fact in batch])
            verdicts |= {_key(fact): asserts(answer.text, accepted(fact)) for fact, answer in zip(batch, answers, strict=True)}
            if progress is not None:
                progress("known facts", start + len(batch), len(missing))
    finally:  # what was answered is kept even when ``progress`` raises or the model fails
        if missing and store is not None:
            _write(store, verdicts)
    return [fact for fact in facts if verdicts[_key(fact)]]


def remembered(engine: Engine, cache: Path) -> list[AtlasFact] | None:
    """What earlier calls of :func:`knows` found, without asking; None where none was made for this model and atlas."""
    verdicts = _read(_store(engine, cache))
    return [fact for fact in atlas.facts() if verdicts.get(_key(fact))] if verdicts else None


@cache
def atlas_hash() -> str:
    """Hash over what is asked and what counts as right."""
    digest = hashlib.sha256()
    for relation in atlas.relations().values():
        digest.update(repr((relation.id, relation.probe_statements, relation.probe_questions)).encode())
    for fact in atlas.facts():
        digest.update(repr((fact.relation, fact.subject, accepted(fact))).encode())
    return digest.hexdigest()


def _question(engine: Engine, fact: AtlasFact) -> Request:
    return one_turn(fill(atlas.relations()[fact.relation].probe_questions[0], fact.subject), engine, ANSWER_TOKENS)


def _key(fact: AtlasFact) -> str:
    return f"{fact.relation}\x1f{fact.subject}"


def _store(engine: Engine, cache: Path) -> Path | None:
    """Where the answers of this model are kept; nowhere where nobody can say which weights answer."""
    if not tells_weights(engine):
        return None
    model = engine.fingerprint.rpartition(":")[2][:16]
    return cache / "known" / f"{model}-{atlas_hash()[:16]}.json"


def _read(store: Path | None) -> dict[str, bool]:
    """What was asked before; a damaged file is as good as none."""
    if store is None:
        return {}
    try:
        found = json.loads(store.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, bool)} if isinstance(found, dict) else {}


def _write(store: Path, verdicts: dict[str, bool]) -> None:
    """Replace the file at once. A full or read-only disk costs the cache, not the answer."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=store.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(verdicts, file, sort_keys=True)
        Path(name).replace(store)
    except OSError:
        return
