"""Numbers for Prometheus, in a registry of their own; those of the ledger and the model are read when asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ke_tools.errors import KeToolsError
from ke_tools.facts import State
from ke_tools.servers.slot import SlotState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ke_tools.memory.router import Routed
    from ke_tools.models.engine import Generation
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PATHS: Final = frozenset({"/", "/healthz", "/metrics", "/mcp", "/v1/models", "/v1/completions", "/v1/chat/completions"})
_STARTS: Final = ("/v1/models", "/console")
_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counts what the HTTP side does."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("ke_http_requests", "HTTP requests.", ("path", "status", "route"), registry=self._registry)
        self._tokens = Counter("ke_tokens", "Tokens read and generated.", ("kind",), registry=self._registry)
        self._zones = Counter("ke_scope_decisions", "Questions by what the scope decided.", ("zone",), registry=self._registry)
        self._seconds = Histogram(
            "ke_generation_seconds", "Time from a question to its last token.", ("route",), registry=self._registry, buckets=_SECONDS
        )
        self._service = service

    def request(self, path: str, status: int, route: str) -> None:
        """Count one HTTP request; paths that do not exist are one."""
        first = next((start for start in _STARTS if path.startswith(f"{start}/")), "other")
        known = path if path in _PATHS else first
        self._requests.labels(known, str(status), route).inc()

    def routed(self, routed: Routed) -> None:
        """Count one decision of the scope."""
        self._zones.labels(routed.decision.zone).inc()

    def generated(self, routed: Routed, generation: Generation, seconds: float) -> None:
        """Count one answer."""
        self._tokens.labels("prompt").inc(generation.prompt_tokens)
        self._tokens.labels("completion").inc(generation.completion_tokens)
        self._seconds.labels(routed.route).observe(seconds)

    def answered(self, route: str, seconds: float) -> None:
        """Count one answer whose tokens another server counts."""
        self._seconds.labels(route).observe(seconds)

    def text(self, who: Principal) -> bytes:
        """Render in Prometheus' text format what ``who`` may see: of the edits of other tenants only an admin."""
        now = CollectorRegistry()
        now.register(_Live(self._service, who))
        return generate_latest(self._registry) + generate_latest(now)


class Counted:
    """ASGI middleware that counts each HTTP request when its response begins."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, counting."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.request(scope["path"], message["status"], scope.get("ke.route", ""))
            await send(message)

        await self._app(scope, receive, counting)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long ago that was."""
        return time.perf_counter() - self._start


class _Live(Collector):
    """What is so at this moment: a damaged ledger leaves its numbers out and says ``ke_ledger_up 0``."""

    def __init__(self, service: Service, who: Principal) -> None:
        self._service = service
        self._who = who

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read when the collector is registered

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("ke_model_state", "1 for the state in which the model is.", labels=("state",))
        for name in get_args(SlotState):
            state.add_metric((name,), float(name == self._service.models.state))
        yield state
        is_up = True
        try:
            with self._service.damage.watching("metrics", self._who.name):
                yield from self._ledger()
        except KeToolsError:
            is_up = False
        is_up = is_up and not self._service.damage.told
        yield GaugeMetricFamily("ke_ledger_up", "Whether all that was read of the ledger could be read.", value=is_up)

    def _ledger(self) -> list[Metric]:
        ledger = self._service.ledger
        live = GaugeMetricFamily("ke_live_edits", "Edits that act on answers.", labels=("tenant",))
        for tenant in ledger.tenants() if self._who.may("admin") else [self._who.tenant]:
            total = ledger.edits(tenant, states=(State.ACTIVE, State.PROMOTED), limit=1).total
            live.add_metric((tenant,), float(total))
        return [GaugeMetricFamily("ke_ledger_revision", "Sequence number of the last event.", value=ledger.head()), live]
