"""What waits for an approval, on pages: the queue, and one proposal with what speaks for or against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import State
from ke_tools.servers import approvals
from ke_tools.servers.console.asking import KEPT_BACK
from ke_tools.servers.console.pages import Asked, Moved, Page, Part, Row, slow
from ke_tools.servers.evidence import evidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ke_tools.memory.proposals import Outlook

__all__ = ["Queue"]

_A_PAGE: Final = 20
_LOAD_SECONDS: Final = 25.0  # a page waits for the model
_WAYS: Final = {"base": "The model alone", "now": "As everybody gets it now", "approved": "If it is approved"}
_ROUTES: Final = {
    "base": "no correction is used",
    "memory": "a correction goes in",
    "weights": "a correction in the weights",
    "forget": "kept back: it is to be forgotten",
}


class Queue(Part):
    """The pages about proposals."""

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/queue", self.all),
            ("POST", "/console/queue", self.decide),
            ("GET", "/console/queue/{id}", self.one),
            ("GET", "/console/queue/{id}/evidence", self.evidence),
            ("POST", "/console/queue/{id}/evidence", self.measured),
        ]

    def all(self, asked: Asked) -> Page:
        """List what waits, newest first."""
        asked.who.require("read")
        ledger, tenant, cursor = self._service.ledger, asked.who.tenant, asked.said("cursor")
        with self._service.damage.watching("queue", tenant, cursor):
            page = ledger.edits(tenant, states=(State.PROPOSED,), limit=_A_PAGE, cursor=cursor)
            ids = [edit.id for edit in page.items]
            outlooks = ledger.proposals.outlooks(tenant, ids, over_protection=asked.who.may("admin"))
        context = {
            "rows": [_shown(outlook) for outlook in outlooks],
            "proposers": sorted({outlook.edit.actor for outlook in outlooks}),
            "total": page.total,
            "next_cursor": page.next_cursor,
            "is_first": not cursor,
            "takes_proposals": self._service.settings.edits == "propose",
        }
        return Page("queue.html", context)

    def decide(self, asked: Asked) -> Moved:
        """Approve or reject the proposals that were chosen, all or none."""
        self._pages.check_writable()
        asked.who.require("write")
        ids, reason = asked.chosen(), asked.said("reason").strip()
        if asked.said("do") == "approve":
            return Moved("/console/queue", approvals.approve(self._service, asked.who, ids, reason=reason)["summary"])
        if asked.said("do") != "reject":
            raise InvalidInput("there is nothing chosen to do with the proposals.", "Press one of the buttons below them.")
        if not reason:
            raise InvalidInput("a rejection needs a reason.", "Nothing was decided. Go back, and say in a few words why; it is kept.")
        return Moved("/console/queue", approvals.reject(self._service, asked.who, ids, reason=reason)["summary"])

    def one(self, asked: Asked) -> Page:
        """Show a proposal; its evidence, which waits for the model, comes after."""
        return Page("proposal.html", {**self._told(asked), "answers": None})

    @slow
    def evidence(self, asked: Asked) -> Page:
        """Ask the model with and without the proposal."""
        return self._with_evidence(asked, verify=False)

    @slow
    def measured(self, asked: Asked) -> Page:
        """Ask it also the probes of a verification, as if the proposal were approved; nothing is changed."""
        return self._with_evidence(asked, verify=True)

    def _with_evidence(self, asked: Asked, *, verify: bool) -> Page:
        found = evidence(self._service, asked.who, asked.path["id"], verify=verify, wait_seconds=_LOAD_SECONDS)
        if any(answer["route"] == "forget" for answer in found["answers"]):  # what is to be forgotten is not shown beside it
            found["answers"] = [{**one, "text": KEPT_BACK} if one["view"] == "base" else one for one in found["answers"]]
        texts = {answer["view"]: answer["text"] for answer in found["answers"]}
        pair = ("now", "approved") if "approved" in texts else ("base", "now")
        context = {
            "id": asked.path["id"],
            "answers": [_answer(answer, pair) for answer in found["answers"]],
            "before": texts[pair[0]],
            "after": texts[pair[1]],
            "pair": pair,
            "can_measure": not found["proposals"][0]["obstacle"],
            "verified": found["verified"],
            "passed": found["passed"],
            "scorecard_text": found["scorecard_text"],
        }
        return Page("_evidence.html", context) if asked.is_part else Page("proposal.html", {**self._told(asked), **context})

    def _told(self, asked: Asked) -> dict[str, Any]:
        asked.who.require("read")
        ledger, tenant, edit_id = self._service.ledger, asked.who.tenant, asked.path["id"]
        with self._service.damage.watching("proposal", tenant, edit_id):
            outlook = ledger.proposals.outlook(tenant, edit_id, over_protection=asked.who.may("admin"))
            events = ledger.history(tenant, edit_id=edit_id).items
            release = ledger.live_release(tenant)
        return {**_shown(outlook), "id": edit_id, "events": events, "live_release": release}


def _shown(outlook: Outlook) -> dict[str, Any]:
    """A proposal for the templates: what gives way and what waits beside it as edits, to be linked, and not told once more as a warning."""
    shown, gone = approvals.told(outlook), outlook.superseding
    warnings = [warning for warning in outlook.warnings if not any(warning.startswith(f"supersedes {edit.id}") for edit in gone)]
    return {"edit": outlook.edit, "shown": {**shown, "warnings": warnings}, "superseding": gone, "rivals": outlook.rivals}


def _answer(answer: Mapping[str, Any], pair: tuple[str, str]) -> dict[str, Any]:
    """An answer with what it is called, how it came about, and its side in the comparison: 1 before, 2 after, 0 beside it."""
    view = answer["view"]
    side = pair.index(view) + 1 if view in pair else 0
    return {**answer, "called": _WAYS[view], "by": _ROUTES.get(answer["route"], answer["route"]), "side": side}
