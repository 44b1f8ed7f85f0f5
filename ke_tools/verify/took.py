"""Reliability and generalisation: the edit's own prompt, and other wordings of it.

Generated wordings come from the atlas's probe wordings alone, which nothing is ever fitted on. Where the relation is not recognised and
the caller gives no wordings, there are no generalisation probes, and the rate is "not measured".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ke_tools.facts import Edit, Probe, squash
from ke_tools.verify.about import as_written, relation_of
from ke_tools.verify.asking import Asked, fill, wanted
from ke_tools.verify.unrelated import frames

__all__ = ["framed", "generalisation", "reliability"]


def reliability(edit: Edit) -> Iterator[Probe]:
    """The edit's own prompt, completed and as a chat turn."""
    for chat in (False, True):
        yield wanted(edit, "reliability", (edit.fact.prompt, chat), "edit")


def framed(edit: Edit) -> Iterator[Probe]:
    """The same in small frames ("Complete the sentence: …"): so many that the gate can decide on one edit."""
    kind = "question" if edit.fact.prompt.rstrip().endswith("?") else "statement"
    single = frames()[kind]
    double = [outer.replace("{}", inner) for outer in single for inner in single if outer != inner]
    for frame in (*single, *double):
        for chat in (False, True):
            yield wanted(edit, "reliability", (frame.replace("{}", edit.fact.prompt), chat), "data file")


def generalisation(edit: Edit, generated: int, given: int) -> Iterator[Probe]:
    """Up to ``given`` of the caller's paraphrases, then up to ``generated`` probe wordings as statements, questions and chat turns."""
    seen = {squash(edit.fact.prompt)}
    for wording in edit.fact.paraphrases[:given]:
        if squash(wording) not in seen:
            seen.add(squash(wording))
            yield wanted(edit, "generalisation", (wording, wording.rstrip().endswith("?")), "caller")
    relation = relation_of(edit)
    if relation is None:
        return
    subject = as_written(edit)
    asked = [(wording, False) for wording in relation.probe_statements]
    questions = [(wording, chat) for chat in (True, False) for wording in relation.probe_questions]
    # Statement, chat, statement, plain question, …: whatever the size, every form is among them.
    mixed = [pair for both in zip(asked, _alternating(questions), strict=False) for pair in both]
    rest = [pair for pair in (*asked, *questions) if pair not in mixed]
    fresh = [(fill(wording, subject), chat) for wording, chat in (*mixed, *rest) if squash(fill(wording, subject)) not in seen]
    for pair in fresh[:generated]:
        yield wanted(edit, "generalisation", pair)


def _alternating(pairs: Sequence[Asked]) -> list[Asked]:
    """Chat questions and plain ones in turn, each wording first seen in another form."""
    chat = [pair for pair in pairs if pair[1]]
    plain = [pair for pair in pairs if not pair[1]]
    return [pair for both in zip(chat, plain[1:] + plain[:1], strict=True) for pair in both]
