"""The ledger on pages: all edits, and one with its history, its scorecard, and what taking it back would change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import State
from ke_tools.servers.console.pages import Asked, Moved, Page, Part, Row, seen
from ke_tools.servers.console.wording import STATES
from ke_tools.servers.rows import state_of

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["Edits", "change"]

_A_PAGE: Final = 25
_MOST_PROBES: Final = 60  # of a scorecard, those that failed first
_LIVE: Final = (State.ACTIVE, State.PROMOTED)
_CHOICES: Final[dict[str, str]] = {"live": "those that act", "any": "all"} | {state.value: told for state, told in STATES.items()}
_MOST_SECONDS: Final = 20.0  # a page waits for a verification


class Edits(Part):
    """The pages about edits."""

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/edits", self.all),
            ("POST", "/console/edits/chosen", self.chosen),
            ("GET", "/console/edits/{id}", self.one),
            ("GET", "/console/edits/{id}/undo", self.undo_preview),
            ("POST", "/console/edits/{id}/undo", self.undo),
            ("POST", "/console/edits/{id}/verify", self.verify),
        ]

    def all(self, asked: Asked) -> Page:
        """List edits, newest first, as searched for."""
        asked.who.require("read")
        contains, state = asked.said("words").strip(), asked.said("state", "live")
        states = _states(state)
        ledger, tenant = self._service.ledger, asked.who.tenant
        cursor = asked.said("cursor")
        with self._service.damage.watching("list", tenant, state, contains, cursor):
            page = ledger.edits(tenant, states=states, contains=contains, limit=_A_PAGE, cursor=cursor)
            fired = ledger.fired(tenant)
        context = {
            "edits": [{"edit": edit, "state": state_of(edit), "fired": fired.get(edit.id, 0)} for edit in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
            "is_first": not cursor,
            "contains": contains,
            "state": state,
            "states": _CHOICES,
        }
        return Page("_edits.html" if asked.is_part else "edits.html", context)

    async def chosen(self, asked: Asked) -> Moved:
        """Promote the edits that were chosen in the list, or take them back."""
        self._pages.check_writable()
        ids = asked.chosen()
        if asked.said("do") == "promote":
            job = await self._service.promote(asked.who, ids, reason=asked.said("reason").strip())
            return Moved(f"/console/jobs/{job['job_id']}")
        if asked.said("do") != "undo":
            raise InvalidInput("there is nothing chosen to do with the edits.", "Press one of the buttons below the list.")
        done = await asyncio.to_thread(self._service.rollback, asked.who, edit_ids=ids, reason=asked.said("reason").strip())
        return Moved("/console/edits", done["summary"])

    def one(self, asked: Asked) -> Page:
        """Show an edit."""
        asked.who.require("read")
        service, tenant, edit_id = self._service, asked.who.tenant, asked.path["id"]
        with service.damage.watching("get", tenant, edit_id):
            edit = service.ledger.get(tenant, edit_id)
            context: dict[str, Any] = {
                "edit": edit,
                "state": state_of(edit),
                "meaning": STATES[state_of(edit)],
                "fired": service.ledger.fired(tenant).get(edit_id, 0),
                "events": service.ledger.history(tenant, edit_id=edit_id, limit=50).items,
                "card": None,
            }
            newest = service.ledger.scorecards_of(tenant, edit_id, 1)
        if newest:
            context["card"] = self._card(asked, newest[0]["scorecard"])
        return Page("edit.html", context)

    def _card(self, asked: Asked, name: str) -> dict[str, Any]:
        """The newest scorecard, as far as it is about the edit: its rates, and its probes with both answers, failures first."""
        card, edit_id = self._service.get_scorecard(asked.who, name), asked.path["id"]
        [check] = [check for check in card["checks"] if check["edit_id"] == edit_id]
        probes = [one for one in card.get("outcomes", ()) if one["edit_id"] == edit_id]
        probes.sort(key=lambda one: bool(one["passed"]))
        return {
            "name": name,
            "made_at": card["made_at"],
            "suite": card.get("suite", "of a promotion's gate"),
            "revision": card["revision"],
            "check": check,
            "probes": probes[:_MOST_PROBES],
            "left": max(0, len(probes) - _MOST_PROBES),
        }

    def undo_preview(self, asked: Asked) -> Page:
        """Say what taking an edit back would change, before it is done."""
        self._pages.check_writable()
        would = self._service.rollback(asked.who, edit_ids=[asked.path["id"]], dry_run=True)
        release = self._service.ledger.live_release(asked.who.tenant)
        context = {"id": asked.path["id"], "would": would, "live_release": release, "most": _A_PAGE, "seen": seen(*change(would))}
        return Page("_undo.html" if asked.is_part else "undo.html", context)

    def undo(self, asked: Asked) -> Moved:
        """Take an edit back."""
        self._pages.check_writable()
        edit_id = asked.path["id"]
        with self._pages.deciding:
            self._pages.check_seen(asked, *change(self._service.rollback(asked.who, edit_ids=[edit_id], dry_run=True)))
            done = self._service.rollback(asked.who, edit_ids=[edit_id], reason=asked.said("reason").strip())
        return Moved(f"/console/edits/{edit_id}", done["summary"])

    async def verify(self, asked: Asked) -> Moved:
        """Measure an edit; what takes long becomes a job."""
        edit_id = asked.path["id"]
        found = await self._service.verifying.verify(asked.who, [edit_id], wait_seconds=_MOST_SECONDS)
        if found["status"] == "working":
            return Moved(f"/console/jobs/{found['job_id']}")
        return Moved(f"/console/edits/{edit_id}", found["summary"])


def change(would: Mapping[str, Any]) -> list[Any]:
    """What a dry run of taking back says, by which a page is told from a later one."""
    return [[one["edit_id"] for one in would[part]] for part in ("retired", "restored", "waiting") if part in would] + [would["release"]]


def _states(name: str) -> tuple[State, ...]:
    if name == "any":
        return ()
    if name == "live":
        return _LIVE
    if name not in set(State):
        raise InvalidInput(f"there is no state {name[:40]!r}.", f"Choose live, any, {', '.join(State)}.")
    return (State(name),)
