"""Promoting and demoting: which release a tenant's answers come from, and which edits are in it.

A *flip* says that from an event on another release is live. It stands in the log beside the event's changes and is chained with them;
what is live is the last flip, so there is nothing that could differ from the log, and no purge of a payload touches it.

One law ties the flips to how the edits stand: **an edit is promoted if and only if it acts on answers and the live release carries
it.** So what comes back from under a newer edit comes back promoted where the live release carries it still, and what a new live
release does not carry is answered from the memory again. An edit that supersedes one in the live release flips in the same event to a
release without it, as the weights would go on to say the old thing where no scope sees the question.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import Conflict, InvalidInput, WrongState
from ke_tools.memory.absent import absent
from ke_tools.memory.events import LIVE, Change, Flip, Standing
from ke_tools.memory.log import carried_by, flip_at, has_flips, standings

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import apsw

_RELEASE: Final = re.compile(r"rel_[0-9a-f]{24}")
_AMONG: Final = "AND e.id IN (SELECT value FROM json_each(?))"
_PROMOTED: Final = "AND e.standing = 'promoted'"


def is_release(name: str) -> bool:
    """Whether a release can have this name."""
    return bool(_RELEASE.fullmatch(name))


def largest_without(db: apsw.Connection, tenant: str, edit_ids: Sequence[str]) -> str:
    """Of the releases that were live, the one that carries most of the live one's edits but these, and no others; "" for none."""
    left = set(flip_at(db, tenant).edit_ids) - set(edit_ids)
    found: tuple[int, str] = (0, "")
    for release, text in db.execute("SELECT release, edit_ids FROM flips WHERE tenant = ? ORDER BY seq", (tenant,)):
        carried = set(json.loads(text))
        if carried <= left and len(carried) > found[0]:
            found = len(carried), release
    return found[1]


def flip_of_promotion(db: apsw.Connection, tenant: str, edit_ids: Sequence[str], release: str, old_release: str | None) -> Flip | None:
    """Plan to make a release live that carries these edits and no others; ``None`` where that is so already.

    Raises:
        InvalidInput: the release is no name of one, or is known to carry other edits.
        NotFound: an id is unknown to this tenant.
        WrongState: an edit does not act on answers.
        Conflict: not ``old_release`` is live.
    """
    live = flip_at(db, tenant)
    if old_release is not None and old_release != live.release:
        raise Conflict(
            f"{old_release or 'no release'} was to be replaced, but {live.release or 'no release'} is live; nothing was promoted.",
            "Plan again from what is live now.",
            live_release=live.release,
        )
    if not release:
        raise InvalidInput("promote was given no release.", "Name the release that carries the edits, or use demote.")
    now = _known(db, tenant, edit_ids)
    if idle := [edit_id for edit_id in edit_ids if now[edit_id].standing not in LIVE]:
        raise WrongState(
            f"{idle[0]} is {now[idle[0]].standing.value}; nothing was promoted.", "Only edits that act on answers can be promoted."
        )
    flip = _checked(db, tenant, release, edit_ids)
    return None if flip == live else flip


def changes_of_demotion(db: apsw.Connection, tenant: str, edit_ids: Sequence[str]) -> list[Change]:
    """Plan to take these edits out of the live release; those that it carries under a newer edit stay under it.

    Raises:
        NotFound: an id is unknown to this tenant.
        WrongState: the live release does not carry an edit.
    """
    now, live = _known(db, tenant, edit_ids), flip_at(db, tenant)
    if strange := [edit_id for edit_id in edit_ids if edit_id not in live.edit_ids]:
        raise WrongState(
            f"{strange[0]} is {now[strange[0]].standing.value} and not in a live release; nothing was demoted.",
            "list_edits shows which edits are promoted.",
        )
    return [Change(edit_id, Standing.ACTIVE) if now[edit_id].standing in LIVE else now[edit_id] for edit_id in edit_ids]


def flip_without(
    db: apsw.Connection, tenant: str, gone: AbstractSet[str], changes: Sequence[Change], release: str | None, carries: Sequence[str] | None
) -> Flip | None:
    """Plan the flip that goes with ``changes``, by which the edits ``gone`` leave the weights; ``None`` where none is needed.

    Args:
        db: the ledger, in a transaction.
        tenant: whose.
        gone: the edits that no release may carry afterwards.
        changes: how edits stand afterwards.
        release: what is to be live then; "" for none, ``None`` to leave it as it is.
        carries: the edits that it carries; ``None`` for those that it is known to carry, else those that stay promoted.

    Raises:
        InvalidInput: the release is no name of one, carries other edits than said, or one of those ``gone``.
        NotFound: an edit that it carries is unknown to this tenant.
        WrongState: ``release`` is left open though the live one carries an edit that goes; or it carries one that is taken back.
    """
    live = flip_at(db, tenant)
    if release is None:
        if held := sorted(gone & set(live.edit_ids)):
            raise WrongState(
                f"{held[0]} is in the live release {live.release}; nothing was changed.",
                "Name a release without it that shall be live, or none to answer from the memory alone.",
            )
        return None
    _refuse_unless_release(release)
    after = standings(db, tenant, _PROMOTED) | {change.edit_id: change for change in changes}
    if carries is None:
        carries = carried_by(db, tenant, release) if release else ()
    if carries is None:
        carries = [change.edit_id for change in after.values() if change.standing is Standing.PROMOTED and change.edit_id not in gone]
    flip = _checked(db, tenant, release, carries)
    if held := sorted(gone & set(carries)):
        raise InvalidInput(f"{release} carries {held[0]}, which is to leave the weights.", "Name a release without it.")
    _refuse_retired(_known(db, tenant, flip.edit_ids) | after, flip)
    return None if flip == live else flip


def flip_to_revision(db: apsw.Connection, tenant: str, revision: int) -> Flip | None:
    """Plan to make live what was live after the event ``revision``; ``None`` where it is so already.

    A release that carries an edit that was purged since never comes back: what it carried besides acts from the memory.
    """
    then = flip_at(db, tenant, revision)
    if len(standings(db, tenant, _AMONG, (json.dumps(then.edit_ids),))) < len(then.edit_ids):
        then = Flip()
    return None if then == flip_at(db, tenant) else then


def flip_of_succession(db: apsw.Connection, tenant: str, superseded: Collection[str]) -> Flip | None:
    """Plan the flip that goes with a new edit: away from a live release that carries what it supersedes; ``None`` where none does."""
    carried = flip_at(db, tenant).edit_ids
    if not set(superseded) & set(carried):
        return None
    stands = standings(db, tenant, _AMONG, (json.dumps(carried),))
    retired = {edit_id for edit_id in carried if edit_id not in stands or stands[edit_id].standing not in LIVE}
    release = largest_without(db, tenant, [*superseded, *retired])
    return Flip(release, carried_by(db, tenant, release) or ()) if release else Flip()


def evidence_of(db: apsw.Connection, tenant: str, release: str) -> dict[str, Any]:
    """What spoke for a release when it was last promoted; empty where it never was, or what was said then was purged."""
    if not has_flips(db):
        return {}
    found = db.execute(
        "SELECT p.payload ->> '$.evidence' FROM flips AS f JOIN events AS v USING (seq) JOIN payloads AS p USING (seq)"
        " WHERE f.tenant = ? AND f.release = ? AND v.kind = 'promote' ORDER BY f.seq DESC LIMIT 1",
        (tenant, release),
    ).fetchone()
    evidence: dict[str, Any] = json.loads(found[0]) if found and found[0] else {}
    return evidence


def lawful(db: apsw.Connection, tenant: str, changes: Sequence[Change], flip: Flip | None) -> list[Change]:
    """Complete changes, so that after them and the flip the promoted edits are those that act and that the live release carries."""
    moved = {change.edit_id: change for change in changes}
    carried = frozenset((flip or flip_at(db, tenant)).edit_ids)
    stands = dict(moved)
    if flip is not None:
        stands = standings(db, tenant, _PROMOTED) | standings(db, tenant, _AMONG, (json.dumps(flip.edit_ids),)) | moved
    for edit_id, change in stands.items():
        wanted = Standing.PROMOTED if edit_id in carried else Standing.ACTIVE
        if change.standing in LIVE and change.standing is not wanted:
            moved[edit_id] = Change(edit_id, wanted)
    return list(moved.values())


def _checked(db: apsw.Connection, tenant: str, release: str, edit_ids: Sequence[str]) -> Flip:
    """Make a flip of a release that may be one: its name stands for what it carries."""
    _refuse_unless_release(release)
    flip = Flip(release, tuple(sorted(set(edit_ids))))
    if bool(release) != bool(flip.edit_ids):
        raise InvalidInput(
            f"{release or 'no release'} was to carry {len(flip.edit_ids)} edits.", "Name a release with edits, or no release and none."
        )
    known = carried_by(db, tenant, release) if release else ()
    if known is not None and known != flip.edit_ids:
        raise InvalidInput(f"{release} carries other edits: {', '.join(known)}.", "Another set of edits is another release.")
    return flip


def _refuse_unless_release(name: str) -> None:
    if name and not is_release(name):
        raise InvalidInput(f"{name!r} is no name of a release.", "It is rel_ and 24 hexadecimal digits.")


def _known(db: apsw.Connection, tenant: str, edit_ids: Sequence[str]) -> dict[str, Change]:
    now = standings(db, tenant, _AMONG, (json.dumps(list(edit_ids)),))
    if unknown := [edit_id for edit_id in edit_ids if edit_id not in now]:
        raise absent(db, tenant, unknown, "nothing was changed")
    return now


def _refuse_retired(after: Mapping[str, Change], flip: Flip) -> None:
    """A release may carry what a newer edit covers, but nothing that was refused or taken back."""
    for edit_id in flip.edit_ids:
        if after[edit_id].standing not in {*LIVE, Standing.SUPERSEDED}:
            raise WrongState(
                f"{flip.release} carries {edit_id}, which is {after[edit_id].standing.value}; nothing was changed.",
                "Name a release without it.",
            )
