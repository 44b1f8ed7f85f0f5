"""What checks of edits found, each kept under the hash of its text, by which the evidence of a promotion names it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import LedgerDamaged, NotFound, WrongState
from ke_tools.memory.absent import purged_among
from ke_tools.memory.log import has_flips

if TYPE_CHECKING:
    import apsw

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_IDS: Final = re.compile(r"ed_[0-9a-f]{16}")


def keep(db: apsw.Connection, tenant: str, text: str) -> str:
    """Keep a scorecard, once; return the sha256 of its text. It names the edits it is about by their ids, so that a purge finds it.

    Raises:
        WrongState: it is about an edit that was purged.
    """
    if gone := purged_among(db, tenant, set(_IDS.findall(text))):
        raise WrongState(f"{gone[0]} was purged; its scorecard was not kept.", "Check the edits that are left.")
    name = hashlib.sha256(text.encode()).hexdigest()
    db.execute("INSERT OR IGNORE INTO scorecards VALUES (?, ?, ?)", (tenant, name, text))
    return name


def read(db: apsw.Connection, tenant: str, name: str) -> dict[str, Any]:
    """Return a scorecard.

    Raises:
        NotFound: there is none of this hash for this tenant, or it was purged.
        LedgerDamaged: it was altered.
    """
    query = "SELECT scorecard FROM scorecards WHERE tenant = ? AND sha256 = ?"
    found = db.execute(query, (tenant, name)).fetchone() if _SHA256.fullmatch(name) and has_flips(db) else None
    if found is None:
        raise NotFound(f"there is no scorecard {name!r}.", "history names those that were kept; a purge erases those of its edit.")
    if hashlib.sha256(found[0].encode()).hexdigest() != name:
        raise LedgerDamaged(f"the scorecard {name} was altered.", "Verify the edits again.")
    scorecard: dict[str, Any] = json.loads(found[0])
    return scorecard


def about(db: apsw.Connection, tenant: str, edit_id: str, limit: int) -> list[dict[str, Any]]:
    """Name the newest scorecards that check an edit, newest first."""
    if not _IDS.fullmatch(edit_id) or not has_flips(db):
        return []
    found = db.execute(
        "SELECT sha256, scorecard ->> '$.made_at', scorecard ->> '$.suite', scorecard ->> '$.revision', scorecard ->> '$.release',"
        " (SELECT c.value ->> '$.passed' FROM json_each(scorecard, '$.checks') AS c WHERE c.value ->> '$.edit_id' = ?2) AS passed"
        " FROM scorecards WHERE tenant = ?1 AND instr(scorecard, ?2) AND passed IS NOT NULL ORDER BY rowid DESC LIMIT ?3",
        (tenant, edit_id, limit),
    )
    return [
        {
            "scorecard": name,
            "made_at": made_at or "",
            "suite": suite or "",
            "revision": revision or 0,
            "release": release or "",
            "passed": bool(passed),
        }
        for name, made_at, suite, revision, release, passed in found
    ]
