"""How things stand, on a page: the model, the ledger and what follows from it, and how long answers take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import KeToolsError
from ke_tools.facts import State
from ke_tools.servers.console import plots
from ke_tools.servers.console.pages import Asked, Page, Part, Row
from ke_tools.servers.doctor import LITTLE, examine, free_gigabytes, versions
from ke_tools.servers.latencies import Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ke_tools.models.engine import Engine
    from ke_tools.servers.latencies import Kind

__all__ = ["Health"]

_MOST_FINDINGS: Final = 20
_EDGES: Final[dict[str, tuple[float, ...]]] = {  # milliseconds
    "routing": (1, 2, 5, 10, 20, 50, 100, 200),
    "answer": (50, 100, 200, 500, 1000, 2000, 5000, 10_000),
}
_TITLES: Final[dict[str, str]] = {"routing": "How long the router took", "answer": "How long answers took"}


class Health(Part):
    """The page about the server itself; whoever is no admin sees of it what is their tenant's."""

    def routes(self) -> list[Row]:
        """Give method, path and page."""
        return [
            ("GET", "/console/health", self.page),
            ("POST", "/console/health/audit", self.audited),
            ("GET", "/console/health/replicas", self.replicas),
            ("GET", "/console/health/checks", self.checks),
        ]

    def page(self, asked: Asked) -> Page:
        """Show how things stand; nothing on it waits for a model or another server."""
        asked.who.require("read")
        return Page("health.html", {**self._told(asked), "audit": None, "checked": None})

    def audited(self, asked: Asked) -> Page:
        """Check file, hash chain and what follows from the log; what is found of other tenants only an admin is told."""
        asked.who.require("read")
        damage = [finding for finding in self._service.ledger.audit() if finding.is_damage]
        audit = {
            "is_well": not damage,
            "count": len(damage),
            "findings": damage[:_MOST_FINDINGS] if asked.who.may("admin") else [],
            "left": max(0, len(damage) - _MOST_FINDINGS) if asked.who.may("admin") else len(damage),
        }
        if asked.is_part:
            return Page("_audit.html", {"audit": audit})
        return Page("health.html", {**self._told(asked), "audit": audit, "checked": None})

    def replicas(self, asked: Asked) -> Page:
        """Ask the servers that run the model how they are; their addresses are for admins."""
        asked.who.require("read")
        engine: Any = self._service.models.peek()
        told: Sequence[tuple[bool, str]] = engine.told() if hasattr(engine, "told") else ()
        rows = [{"is_well": is_well, "said": said if asked.who.may("admin") else ""} for is_well, said in told]
        context = {"replicas": rows, "well": sum(is_well for is_well, _ in told)}
        return Page("_replicas.html" if asked.is_part else "replicas.html", context)

    def checks(self, asked: Asked) -> Page:
        """What ``doctor`` finds, for admins: it names all tenants."""
        asked.who.require("admin")
        checked = examine(self._service, deep=False)
        if asked.is_part:
            return Page("_checks.html", {"checked": checked})
        return Page("health.html", {**self._told(asked), "audit": None, "checked": checked})

    def _told(self, asked: Asked) -> dict[str, Any]:
        service, who = self._service, asked.who
        is_admin = who.may("admin")
        engine, whose, free = service.models.peek(), None if is_admin else who.tenant, free_gigabytes(service.settings.home)
        return {
            "state": service.state(),
            "engine": service.settings.engine,
            "upstream": service.settings.upstream if is_admin else "",
            "adapters": self._adapters(asked, engine),
            "has_replicas": hasattr(engine, "told"),
            "ledger": self._ledger(asked),
            "is_admin": is_admin,
            "since": service.answering.hourly.since.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "fired": self._fired(whose),
            "latencies": [self._latencies("routing", whose), self._latencies("answer", whose)],
            "free": free,
            "is_short": free < LITTLE,
            "versions": versions(),
        }

    def _adapters(self, asked: Asked, engine: Engine | None) -> list[str]:
        """What is loaded beside the model; of other tenants' releases only an admin is told."""
        if engine is None:
            return []
        names = sorted(engine.adapters)
        if asked.who.may("admin"):
            return names
        try:
            mine = self._service.ledger.live_release(asked.who.tenant)
        except KeToolsError:
            mine = ""
        return [name for name in names if name == mine or not name.startswith("rel_")]

    def _ledger(self, asked: Asked) -> dict[str, Any]:
        """Of the tenant's ledger; where it cannot be read, why."""
        service, tenant = self._service, asked.who.tenant
        try:
            ledger = service.ledger
            return {
                "error": "",
                "revision": ledger.head(),
                "behind": service.scope.behind(tenant),
                "live": ledger.edits(tenant, states=(State.ACTIVE, State.PROMOTED), limit=1).total,
                "waiting": ledger.edits(tenant, states=(State.PROPOSED,), limit=1).total,
                "working": len(ledger.jobs.under_way(tenant)),
            }
        except KeToolsError as error:
            return {"error": str(error)}

    def _fired(self, whose: str | None) -> plots.Plot:
        counted = [(f"{hour:%H}", count) for hour, count in self._service.answering.hourly.of(whose)]
        return plots.columns("fired", "Edits that fired, by hour", counted, names=("hour (UTC)", "edits"), every=4)

    def _latencies(self, kind: Kind, whose: str | None) -> dict[str, Any]:
        taken = self._service.answering.latencies.of(kind, whose)
        edges, spread = _EDGES[kind], Spread.of(taken)
        milliseconds = [1000 * seconds for seconds in taken]
        labels = [f"<{_brief(edge)}" for edge in edges] + [f"{_brief(edges[-1])}+"]
        marks: dict[int, str] = {}
        for name, value in (("p50", spread.p50), ("p99", spread.p99)) if spread else ():
            position = plots.within(edges, 1000 * value)
            marks[position] = f"{marks[position]}, {name}" if position in marks else name
        counted = list(zip(labels, plots.spans(edges, milliseconds), strict=True))
        plot = plots.columns(kind, _TITLES[kind], counted, names=("time", "times"), marks=marks)
        return {
            "kind": kind,
            "plot": plot,
            "spread": spread,
            "p50": _time(spread.p50) if spread else "",
            "p99": _time(spread.p99) if spread else "",
        }


def _brief(milliseconds: float) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:g}"  # noqa: PLR2004


def _time(seconds: float) -> str:
    """A duration with three digits or so: "4.1 ms", "320 ms", "2.4 s"."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"  # noqa: PLR2004
