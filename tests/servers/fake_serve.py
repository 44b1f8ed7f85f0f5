"""A service without a model, and `ke-tools serve` over it: the processes of the tests.

python fake_serve.py window|http|hold … ; a service that follows the real one's outputs, kept in memory.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ke_tools.config import Settings
from ke_tools.errors import Conflict, KeToolsError, LedgerDamaged, ModelLoading, NotFound
from ke_tools.servers.damage import Damage
from ke_tools.servers.latencies import Latencies
from ke_tools.servers.principal import Principal

RATE = {"measured": True, "value": 1.0, "stderr": 0.0, "n": 4, "low": 0.5, "high": 1.0}
RATES = dict.fromkeys(("reliability", "generalisation", "locality_same_subject", "locality_other_subject", "bytes_kept"), RATE)


class Slot:
    """A model that is ready once it has been started."""

    def __init__(self) -> None:
        self.state = "empty"
        self.detail = ""

    def start(self) -> None:
        """Be ready."""
        self.state = "ready"

    async def engine_async(self, wait_seconds: float = 0) -> Any:
        """Give something."""
        assert wait_seconds >= 0
        return SimpleNamespace(fingerprint="sha256:0", context_length=100, chat_roles=frozenset({"system"}), count_tokens=lambda _: 3)


class FakeService:
    """Edits in a list; an answer is the newest target whose subject the question names."""

    model_id = "fake"
    trouble = ""

    def __init__(self, settings: Settings) -> None:
        if (settings.home / "broken").exists():
            raise LedgerDamaged("page 3 is damaged.", "Restore a copy.")
        self.settings = settings
        self.local = Principal(tenant=settings.tenant)
        self.models = Slot()
        self.damage = Damage()
        self.latencies = Latencies()
        self.answering = self.verifying = self
        self.url = ""
        self.rows: list[dict[str, Any]] = []
        self.ledger = SimpleNamespace(head=lambda: len(self.rows), tenants=list)
        self.calls: list[tuple[str, Principal]] = []
        self.may_write = threading.Event()  # a write waits for it
        self.may_write.set()
        self.writing = threading.Event()
        self.failure: Exception | None = None

    @property
    def revision(self) -> int:
        """Count the edits."""
        return len(self.rows)

    def _called(self, name: str, who: Principal, scope: str) -> None:
        self.calls.append((name, who))
        who.require(scope)
        if self.failure is not None:
            raise self.failure

    def edit(self, who: Principal, facts: Sequence[Mapping[str, Any]], *, dry_run: bool = False, **others: Any) -> dict[str, Any]:
        """Record."""
        assert set(others) <= {"mode", "reason", "idempotency_key"}
        self.writing.set()
        assert self.may_write.wait(20)
        self._called("edit", who, "write")
        made = [self._row(fact, len(self.rows) + number) for number, fact in enumerate(facts)]
        if not dry_run:
            self.rows += made
        return {
            "summary": f"{len(made)} edits. Changed: model fake at {self.url}; your own model is not changed.",
            "edits": made,
            "revision": self.revision,
            "model": self.model_id,
            "url": self.url,
            "dry_run": dry_run,
        }

    def _row(self, fact: Mapping[str, Any], number: int) -> dict[str, Any]:
        return {
            "edit_id": f"ed_{number}",
            **{name: fact.get(name, "") for name in ("ref", "subject", "prompt", "target", "relation")},
            "state": "active",
            "created_at": "2026-01-01T00:00:00Z",
            "revision": number,
            "superseded": [],
            "superseded_by": "",
            "alias_risky": False,
            "warnings": [],
        }

    def rollback(
        self, who: Principal, *, edit_ids: Sequence[str] = (), to_revision: int | None = None, to: str = "base", reason: str = ""
    ) -> dict[str, Any]:
        """Forget edits."""
        assert to == "base"
        self._called("rollback", who, "write")
        assert reason == reason.strip()
        gone = [row for row in self.rows if row["edit_id"] in edit_ids or (to_revision is not None and row["revision"] >= to_revision)]
        if not gone:
            raise Conflict("nothing to roll back.")
        self.rows = [row for row in self.rows if row not in gone]
        retired = [{**row, "state": "retired"} for row in gone]
        return {"summary": "rolled back", "retired": retired, "restored": [], "revision": self.revision, "model": self.model_id}

    async def query(self, who: Principal, question: str, *, view: str, wait_seconds: float, **others: Any) -> dict[str, Any]:
        """Answer."""
        assert set(others) == {"max_tokens", "explain", "via"}
        self._called("query", who, "read")
        if question == "loading?":
            raise ModelLoading("the model is not ready.", "Ask again.", poll_after_ms=2000, waited=wait_seconds)
        views = ("base", "edited") if view == "both" else (view,)
        return {
            "summary": "answered",
            "answers": [self._answer(question, one) for one in views],
            "model": self.model_id,
            "revision": self.revision,
            "truncated": False,
            "explain": {"zone": "", "reason": "", "stages": ""},
        }

    def _answer(self, question: str, view: str) -> dict[str, Any]:
        used = [row for row in self.rows if row["subject"] in question and view == "edited"][-1:]
        return {
            "view": view,
            "text": used[0]["target"] if used else "I do not know.",
            "route": "memory" if used else "base",
            "used_edits": [{"edit_id": row["edit_id"], "score": 0.9} for row in used],
            "finish_reason": "stop",
            "reason": "",
        }

    async def verify(
        self, who: Principal, edit_ids: Sequence[str], *, suite: str, probes: Sequence[Any], wait_seconds: float, **others: Any
    ) -> dict[str, Any]:
        """Pass."""
        assert (wait_seconds, suite) == (1.5, "quick")
        assert set(others) == {"revision", "release", "heard"}
        self._called("verify", who, "read")
        checks = [{"edit_id": one, "subject": "s", "passed": True, "worst_case": "", **RATES} for one in edit_ids]
        return {
            "summary": f"passed with {len(probes)} probes of yours",
            "suite": suite,
            "passed": True,
            "checks": checks,
            "overall": RATES,
            "worst_case": "",
            "scorecard_text": "",
            "revision": self.revision,
            "model": self.model_id,
        }

    def list_edits(self, who: Principal, *, state: str, contains: str, limit: int, cursor: str) -> dict[str, Any]:
        """List."""
        assert (state, cursor) == ("any", "")
        self._called("list_edits", who, "read")
        rows = [row for row in self.rows if contains in row["subject"]][:limit]
        return {"summary": "listed", "edits": rows, "total": len(self.rows), "next_cursor": "", "truncated": False}

    def history(self, who: Principal, *, edit_id: str, limit: int, cursor: str) -> dict[str, Any]:
        """Tell of one event."""
        assert (limit, cursor) == (20, "")
        self._called("history", who, "read")
        event = {"at": "2026-01-01", "revision": 1, "actor": who.name, "action": "edit", "edit_ids": [edit_id], "note": ""}
        return {"summary": "told", "events": [event], "total": 1, "next_cursor": ""}

    def get_edit(self, who: Principal, edit_id: str) -> dict[str, Any]:
        """Give one."""
        self._called("get_edit", who, "read")
        for row in self.rows:
            if row["edit_id"] == edit_id:
                return row
        raise NotFound(f"there is no edit {edit_id!r}.", "Call list_edits.")

    def get_scorecard(self, who: Principal, name: str) -> dict[str, Any]:
        """Give the only one."""
        self._called("get_scorecard", who, "read")
        if name != "ab12":
            raise NotFound(f"there is no scorecard {name!r}.", "Call verify.")
        return {"scorecard": name, "passed": True}

    async def open_stream(self, who: Principal, request: Any, *, view: str, **others: Any) -> tuple[Any, Any]:
        """Answer the endpoint in one piece."""
        from ke_tools.models.engine import Generation, Piece

        assert set(others) == {"via", "wait_seconds"}
        self._called("open_stream", who, "chat")
        answer = self._answer(str(request.messages[-1]["content"]), view)
        hits = tuple(SimpleNamespace(edit=SimpleNamespace(id=used["edit_id"])) for used in answer["used_edits"])
        decision = SimpleNamespace(zone="in" if hits else "out", revision=self.revision)

        async def pieces() -> Any:
            yield Piece(answer["text"], finished=Generation(answer["text"], "stop", 3, 3))

        return SimpleNamespace(request=request, route=answer["route"], hits=hits, decision=decision, reason=""), pieces()

    def state(self) -> dict[str, Any]:
        """Say where it runs, so that a test can count the processes."""
        return {"model": self.model_id, "pid": os.getpid(), "revision": self.revision, "url": self.url}

    def close(self) -> None:
        """Leave a trace."""
        self.settings.home.joinpath("closed").write_text(str(os.getpid()))


def settings_of(home: str, **more: Any) -> Settings:
    """Give the settings that the tests' processes share."""
    more = {"sources": {}, **more}
    sources = dict.fromkeys(("model", "engine", "dtype", "device", "demonstrations", "via", "trust_remote_code"), "default")
    return Settings(home=Path(home), cache=Path(home) / "cache", **{**more, "sources": {**sources, **more["sources"]}})


def main() -> int:
    """Be one of the processes."""
    what, *arguments = sys.argv[1:]
    if what == "hold":
        from ke_tools.servers import home_server

        home_server.main([__file__, *arguments], open_service=FakeService)  # type: ignore[arg-type]
        return 0
    if what == "connect":
        from ke_tools.servers import serve

        return serve.run(settings_of("/nowhere"), connect=arguments[0])
    home, *rest = arguments
    given: dict[str, Any] = {"read_only": "--read-only" in rest}
    for name in ("model", "tenant"):
        if f"--{name}" in rest:
            given |= {name: rest[rest.index(f"--{name}") + 1], "sources": {name: f"--{name}"}}
    settings = settings_of(home, **given)
    if what == "window":
        from ke_tools.servers import front

        try:
            return front.run(settings, idle_seconds=float(rest[0]), command=[sys.executable, __file__, "hold"])
        except KeToolsError as error:
            return front.fail(error)
    from ke_tools.servers import front, home_server, serve

    home_server.open_default = FakeService  # type: ignore[assignment]
    try:
        return serve.run(settings, http=rest[0])
    except KeToolsError as error:  # as the command line does
        return front.fail(error)


if __name__ == "__main__":
    sys.exit(main())
