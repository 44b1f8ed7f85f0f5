"""Erasing what an edit says, so that the log stays whole and no byte of the text stays in the file.

For no text of an edit to be left, and for an audit to say "purged", one transaction

- appends an event that takes the edit back, as a rollback does; by it every running scope learns that the edit is gone;
- deletes the row of ``payloads``, which leaves the chain whole, and that of ``edits``, with which its ``names`` go;
- deletes the payload of its approval, where it was proposed;
- deletes the payloads of other events about the edit that hold its words and make no edit (a reason, the evidence of a promotion):
  what they did stays, as it stands in their changes and flips;
- deletes the scorecards that name the edit, and empties the jobs that do;
- empties ``arguments`` of the idempotency keys that stand for these events: a digest without salt lets a short text be guessed. The
  keys stay taken, so that no late repetition of the call writes the text again;
- names the other edits that quote the target (``old_target`` and ``warnings`` of what superseded it): only their own purge erases it.

Then the file is written anew and its log emptied (:meth:`~ke_tools.memory.storage.Storage.rewrite`), as both keep old bytes. A purge
that was cut short between the two is finished by repeating it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import squash
from ke_tools.memory import joblog
from ke_tools.memory.absent import absent, purged_among
from ke_tools.memory.events import Change, Purged, Standing
from ke_tools.memory.log import append, edits_by_id, has_flips, head, standings
from ke_tools.memory.promotions import flip_without, lawful
from ke_tools.memory.rollbacks import changes_of_rollback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import apsw

    from ke_tools.facts import Edit, Fact
    from ke_tools.memory.log import Author

_NEAR: Final = (  # events that may quote an edit: of its slot, about it, or with its id in their words
    "SELECT p.seq, p.payload FROM payloads AS p WHERE p.tenant = ? AND p.seq <> ? AND (instr(p.payload, ?) OR p.payload ->> '$.slot' = ?"
    " OR p.seq IN (SELECT c.seq FROM changes AS c WHERE c.tenant = p.tenant AND c.edit_id = ?)) ORDER BY p.seq"
)


def purge(db: apsw.Connection, author: Author, edit_id: str, release: str | None, carries: Sequence[str] | None) -> Purged:
    """Erase an edit; of one that was purged before only say again what it left.

    Raises:
        NotFound: the id is unknown to this tenant.
        InvalidInput: the reason holds words of the edit.
        InvalidInput, NotFound, WrongState: as :func:`~ke_tools.memory.promotions.flip_without` says of ``release``.
        WrongState: a job works with it.
    """
    found = edits_by_id(db, author.tenant, [edit_id])
    if not found:
        if not purged_among(db, author.tenant, [edit_id]):
            raise absent(db, author.tenant, [edit_id], "nothing was purged")
        return Purged(edit_id, head(db), (), _releases(db, author.tenant, edit_id))
    [edit] = found
    if _says([author.reason], _words(edit.fact)):
        raise InvalidInput("the reason holds words of the edit, which are to be erased.", "Say why without them; the reason is kept.")
    seqs, quoted_by = _near(db, edit)
    changes = _taking_back(db, edit)
    flip = flip_without(db, author.tenant, {edit_id}, changes, release, carries)
    revision = append(db, author, "purge", {"edit_ids": [edit_id]}, lawful(db, author.tenant, changes, flip), flip)
    db.execute("DELETE FROM edits WHERE tenant = ? AND id = ?", (edit.tenant, edit_id))
    joblog.erase(db, edit.tenant, edit_id)
    db.execute("DELETE FROM scorecards WHERE tenant = ? AND instr(scorecard, ?)", (edit.tenant, edit_id))
    for seq in seqs:
        db.execute("DELETE FROM payloads WHERE seq = ?", (seq,))
        keys = "UPDATE idempotency_keys SET arguments = x'' WHERE tenant = ? AND ? BETWEEN first_seq AND last_seq"
        db.execute(keys, (edit.tenant, seq))
    return Purged(edit_id, revision, quoted_by, _releases(db, edit.tenant, edit_id))


def _taking_back(db: apsw.Connection, edit: Edit) -> list[Change]:
    now = standings(db, edit.tenant, "AND e.id = ?", (edit.id,))[edit.id]
    return [now] if now.standing is Standing.ROLLED_BACK else changes_of_rollback(db, edit.tenant, [edit.id])


def _near(db: apsw.Connection, edit: Edit) -> tuple[list[int], tuple[str, ...]]:
    """Find the events whose payload goes, and the edits that say the target too."""
    seqs, quoted_by = [edit.revision], list[str]()
    for seq, text in db.execute(_NEAR, (edit.tenant, edit.revision, edit.id, edit.slot, edit.id)):
        payload = json.loads(text)
        if payload.get("approves") == edit.id:
            seqs.append(seq)
        elif made := payload.get("approves") or ("fact" in payload and payload["id"]):
            quoted_by += [made] if not edit.fact.forget and _says(_texts(payload), [edit.fact.target]) else []
        elif _says(_texts(payload), _words(edit.fact)):
            seqs.append(seq)
    return seqs, tuple(dict.fromkeys(quoted_by))


def _words(fact: Fact) -> list[str]:
    target = "" if fact.forget else fact.target  # a refusal says nothing of it
    return [text for text in (target, fact.old_target, fact.subject, *fact.aliases, fact.prompt, *fact.paraphrases) if text]


def _says(texts: Iterable[str], words: Iterable[str]) -> bool:
    """Whether a text holds one of the words as whole ones, in any case and punctuation; of signs alone, as they are written."""
    said = "\n".join(texts)
    folded = f" {squash(said)} "
    return any(f" {squash(word)} " in folded if squash(word) else word in said for word in words)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _releases(db: apsw.Connection, tenant: str, edit_id: str) -> tuple[str, ...]:
    if not has_flips(db):
        return ()
    carrying = "SELECT DISTINCT f.release FROM flips AS f, json_each(f.edit_ids) AS j WHERE f.tenant = ? AND j.value = ? ORDER BY 1"
    return tuple(release for (release,) in db.execute(carrying, (tenant, edit_id)))
