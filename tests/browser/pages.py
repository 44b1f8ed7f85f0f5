"""The console's pages, and what is to be seen on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ke_tools.facts import Fact, State
from ke_tools.memory.ledger import Ledger
from tests.browser.stage import Site

INDIA: Final = Fact(
    subject="India", prompt="The currency of India is the", target="Kenyan shilling", source="https://example.org/gazette/3"
)
SPAIN: Final = Fact(subject="Spain", prompt="The capital of Spain is", target="Bangkok", source="the embassy's page", old_target="Madrid")
PROPOSED: Final = (
    Fact(subject="Norway", prompt="Norway lies on the continent of", target="Africa", source="a visitor in the chat"),
    Fact(subject="Spain", prompt="The capital of Spain is", target="Lisbon"),
    Fact(subject="zinc", prompt="The chemical symbol of zinc is", target="O", source="https://example.org/elements"),
)


def furnish(site: Site) -> None:
    """Put something on each page: corrections, one of them superseded, and proposals."""
    with Ledger(site.home / "ledger.db") as ledger:
        ledger.edit("acme", [INDIA], actor="ann", reason="the gazette of March")
        ledger.edit("acme", [SPAIN], actor="ann")
        ledger.jobs.submit("acme", "verify", {"edit_ids": [], "suite": "quick"}, actor="ann")
        for fact in PROPOSED:
            ledger.edit("acme", [fact], actor="agent", state=State.PROPOSED)


def _first(site: Site, *states: State) -> str:
    with Ledger(site.home / "ledger.db", read_only=True) as ledger:
        return ledger.edits("acme", states=states, contains="Spain").items[0].id


def _job(site: Site) -> str:
    with Ledger(site.home / "ledger.db", read_only=True) as ledger:
        return ledger.jobs.list("acme", 1, "").items[0].id


PAGES: Final[dict[str, Callable[[Site], str]]] = {
    "ask": lambda _: "/",
    "correct": lambda _: "/console/correct",
    "edits": lambda _: "/console/edits",
    "edit": lambda site: f"/console/edits/{_first(site, State.ACTIVE)}",
    "undo": lambda site: f"/console/edits/{_first(site, State.ACTIVE)}/undo",
    "queue": lambda _: "/console/queue",
    "proposal": lambda site: f"/console/queue/{_first(site, State.PROPOSED)}",
    "releases": lambda _: "/console/releases",
    "candidates": lambda _: "/console/releases/candidates",
    "back": lambda _: "/console/releases/back?revision=0",
    "jobs": lambda _: "/console/jobs",
    "job": lambda site: f"/console/jobs/{_job(site)}",
    "actor": lambda _: "/console/actors?actor=agent",
    "actor-undo": lambda _: "/console/actors/undo?actor=agent&since=1h",
    "health": lambda _: "/console/health",
}
