"""What is in the weights, on pages: the live release and those before it, the gate's decisions, and the ways in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput, NotFound
from ke_tools.servers.console.edits import change
from ke_tools.servers.console.pages import Asked, Moved, Page, Part, Row, seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


__all__ = ["Releases", "gate"]

_A_PAGE: Final = 25
_EARLIER: Final = 10
_SHOWN: Final = 30  # edits of each kind in a preview
_MOST_CANDIDATES: Final = 100


class Releases(Part):
    """The pages about releases."""

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/releases", self.all),
            ("GET", "/console/releases/back", self.back_preview),
            ("POST", "/console/releases/back", self.back),
            ("POST", "/console/releases/memory", self.to_memory),
            ("POST", "/console/releases/rebuild", self.rebuild),
            ("GET", "/console/releases/candidates", self.candidates),
        ]

    def all(self, asked: Asked) -> Page:
        """Show what is live, and what was."""
        asked.who.require("read")
        ledger, tenant, cursor, first = self._service.ledger, asked.who.tenant, asked.said("cursor"), _number(asked, "from")
        with self._service.damage.watching("releases", tenant, cursor):
            name = ledger.live_release(tenant)
            carried = ledger.carried_by(tenant, name)
            flips = ledger.history(tenant, flips=True, limit=_EARLIER, cursor=cursor)
            latest = ledger.history(tenant, flips=True, limit=1).items if cursor else flips.items[:1]
            evidence = ledger.evidence_of(tenant, name)
            context = {
                "name": name,
                "since": latest[0] if latest else None,
                "count": len(carried),
                "carried": [*ledger.several(tenant, carried[first : first + _A_PAGE]).values()],
                "first": first,
                "more": first + _A_PAGE if first + _A_PAGE < len(carried) else 0,
                "in_codebook": set(evidence.get("how", {}).get("in_codebook", ())),
                "job_id": evidence.get("job", ""),
                "scorecard": evidence.get("scorecard", ""),
                "decisions": self._decisions(tenant, evidence),
                "flips": flips.items,
                "total": flips.total,
                "next_cursor": flips.next_cursor,
                "is_first": not cursor,
                "working": ledger.jobs.under_way(tenant),
                "revision": ledger.head(),
            }
        engine = self._service.models.peek()
        context["is_loaded"] = bool(engine and name in engine.adapters)
        return Page("releases.html", context)

    def _decisions(self, tenant: str, evidence: Mapping[str, Any]) -> Sequence[Mapping[str, str]]:
        """What the gate said of the candidates from which the live release came; nothing where that is not known any more."""
        ledger = self._service.ledger
        try:
            return gate(ledger.jobs.get(tenant, str(evidence.get("job", ""))).result)
        except NotFound:
            pass
        try:
            return gate(ledger.scorecard(tenant, str(evidence.get("scorecard", ""))))
        except NotFound:
            return ()

    def back_preview(self, asked: Asked) -> Page:
        """Say what going back to a revision would change."""
        self._pages.check_writable()
        self._service.check_writable(asked.who)
        revision = _number(asked, "revision")
        if asked.later:
            return Page("back.html", {"revision": revision})
        would = self._service.rollback(asked.who, to_revision=revision, dry_run=True)
        live = self._service.ledger.live_release(asked.who.tenant)
        is_so = not would["retired"] and not would["restored"] and would["release"] == live
        context = {"revision": revision, "would": would, "live_release": live, "most": _SHOWN, "is_so": is_so, "seen": seen(*change(would))}
        return Page("_back.html" if asked.is_part else "back.html", context)

    def back(self, asked: Asked) -> Moved:
        """Go back to it."""
        self._pages.check_writable()
        revision = _number(asked, "revision")
        with self._pages.deciding:
            self._pages.check_seen(asked, *change(self._service.rollback(asked.who, to_revision=revision, dry_run=True)))
            done = self._service.rollback(asked.who, to_revision=revision, reason=asked.said("reason").strip())
        return Moved("/console/releases", done["summary"])

    def to_memory(self, asked: Asked) -> Moved:
        """Take the chosen edits out of the weights; they act from the memory."""
        self._pages.check_writable()
        done = self._service.rollback(asked.who, edit_ids=asked.chosen(), to="memory", reason=asked.said("reason").strip())
        return Moved("/console/releases", done["summary"])

    async def rebuild(self, asked: Asked) -> Moved:
        """Begin to make the live release again."""
        self._pages.check_writable()
        job = await self._service.rebuild(asked.who)
        return Moved(f"/console/jobs/{job['job_id']}")

    def candidates(self, asked: Asked) -> Page:
        """Name what is worth a promotion."""
        given = {name: _number(asked, name) for name in ("older_than_days", "fired") if asked.said(name).strip()}
        asked.who.require("read")
        if asked.later:
            return Page("candidates.html")
        found = self._service.candidates(asked.who, given)
        rows = found["candidates"]
        context = {
            "summary": found["summary"],
            "rows": rows[:_MOST_CANDIDATES],
            "left": max(0, len(rows) - _MOST_CANDIDATES),
            "given": {name: asked.said(name).strip() for name in ("older_than_days", "fired")},
        }
        return Page("_candidates.html" if asked.is_part else "candidates.html", context)


def gate(made: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The decisions in what came of a promotion, each with the word for it and the sentence."""
    return [{"decision": trial["verdict"]["decision"], "in_words": trial["in_words"]} for trial in made.get("trials", ())]


def _number(asked: Asked, name: str) -> int:
    """A whole number from 0 on that was asked with; 0 where none was."""
    text = asked.said(name).strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 16):  # noqa: PLR2004  what SQLite can hold
        raise InvalidInput(f"{text[:40]!r} is no whole number.", "Give one from 0 on.")
    return int(text)
