"""Long work, on pages: the list, and one job, which is followed while it works."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response, StreamingResponse

from ke_tools.errors import KeToolsError
from ke_tools.servers.console.pages import HEADERS, Asked, Moved, Page, Part, Row
from ke_tools.servers.console.releases import gate
from ke_tools.servers.promotions import shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from ke_tools.memory.joblog import Job

__all__ = ["Jobs"]

log = logging.getLogger(__name__)

_A_PAGE: Final = 25
_MOST: Final = 100  # edits on the page of a job
_LOOK_SECONDS: Final = 0.5
_HEARTBEAT_SECONDS: Final = 15.0  # of silence, after which something between here and the browser may take the line for dead
_AGAIN_MS: Final = 2000  # until a browser that lost the line connects again
_KINDS: Final = {"promote": "Promotion into the weights", "rebuild": "Making the live release again", "verify": "Verification"}
_STATES: Final = {
    "queued": "It waits for its turn.",
    "working": "It is at work.",
    "completed": "It has ended.",
    "failed": "It came to nothing.",
    "cancelled": "It was cancelled; nothing was changed.",
}
_RUNGS: Final = {"memit": "in the weights", "grace": "in the codebook", "memory": "stays in the memory", "": "as it was"}


class Jobs(Part):
    """The pages about jobs."""

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/jobs", self.all),
            ("GET", "/console/jobs/{id}", self.one),
            ("GET", "/console/jobs/{id}/events", self.events),
            ("POST", "/console/jobs/{id}/cancel", self.cancel),
        ]

    def all(self, asked: Asked) -> Page:
        """List jobs, newest first."""
        asked.who.require("read")
        cursor = asked.said("cursor")
        with self._service.damage.watching("jobs", asked.who.tenant, cursor):
            page = self._service.ledger.jobs.list(asked.who.tenant, _A_PAGE, cursor)
        context = {
            "jobs": [{"job": job, "kind": _kind(job), "summary": shown(job)["summary"]} for job in page.items],
            "total": page.total,
            "next_cursor": page.next_cursor,
            "is_first": not cursor,
        }
        return Page("jobs.html", context)

    def one(self, asked: Asked) -> Page:
        """Show a job."""
        context = self._told(asked)
        named = [row["edit_id"] for row in context["rows"][:_MOST]] or context["edit_ids"][:_MOST]
        edits = self._service.ledger.several(asked.who.tenant, named)
        return Page("job.html", {**context, "most": _MOST, "edits": edits})

    async def events(self, asked: Asked) -> Response:
        """Tell how a job goes on for as long as it does, and somebody listens."""
        await asyncio.to_thread(self._told, asked)  # who may not see it gets no stream
        return StreamingResponse(self._stream(asked), media_type="text/event-stream", headers={**HEADERS, "x-accel-buffering": "no"})

    async def _stream(self, asked: Asked) -> AsyncIterator[str]:
        told, spoke = "", time.monotonic()
        yield f"retry: {_AGAIN_MS}\n\n"
        while asked.holder() == asked.who:
            try:
                context = await asyncio.to_thread(self._told, asked)
            except KeToolsError as error:  # the browser asks again, and gets a page that says why
                log.warning("a job is not followed any more: %s", error)
                return
            now = self._pages.rendered(asked, "_job.html", context)
            if now != told:
                yield _event("now", now)
            elif time.monotonic() - spoke >= _HEARTBEAT_SECONDS:
                yield ": still at work\n\n"
            else:
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            told, spoke = now, time.monotonic()
            if context["job"].has_ended:
                yield _event("end", context["job"].status)
                return

    def cancel(self, asked: Asked) -> Moved:
        """Stop a job."""
        self._pages.check_writable()
        done = self._service.job_cancel(asked.who, asked.path["id"])
        return Moved(f"/console/jobs/{asked.path['id']}", done["summary"])

    def _told(self, asked: Asked) -> dict[str, Any]:
        who = asked.who
        who.require("read")
        job = self._service.promotions.job(who, asked.path["id"])
        told, decisions = shown(job), gate(job.result)
        return {
            "job": job,
            "kind": _kind(job),
            "meaning": "It was asked to stop, and does before its next step." if job.is_cancelling else _STATES[job.status],
            "shown": told,
            "decisions": decisions,
            "rows": [_row(row, {one["in_words"] for one in decisions}) for row in told["edits"]],
            "edit_ids": job.arguments.get("edit_ids", ()),
            "share": min(100, 100 * job.done // job.total) if job.total else None,
            "may_cancel": self._pages.is_open
            and not job.has_ended
            and not job.is_cancelling
            and who.may("read" if job.kind == "verify" else "write"),
        }


def _kind(job: Job) -> str:
    return _KINDS.get(job.kind, job.kind)


def _row(row: Mapping[str, str], decisions: Collection[str]) -> dict[str, str]:
    """What became of an edit; a decision of the gate that stands on the page is only named."""
    why = row["reason"].partition(":")[0] if row["reason"] in decisions else row["reason"]
    return {"edit_id": row["edit_id"], "rung": _RUNGS.get(row["rung"], row["rung"]), "reason": why}


def _event(name: str, text: str) -> str:
    """A server-sent event; a line of it is a field of its own, or what follows a line break would be taken for another event."""
    lines = "".join(f"data: {line}\n" for line in text.splitlines() or [""])
    return f"event: {name}\n{lines}\n"
