"""Asking the model, with and without corrections, and correcting what it says.

A correction is first shown: how the sentence was read, what the model says now, what would be superseded. Only the form on that page
records it, once.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.facts import State, squash
from ke_tools.memory.corrections import SUPERSEDES
from ke_tools.servers.console.pages import Asked, Moved, Page, Part, Row, seen
from ke_tools.servers.explaining import ZONES, present_answer, why
from ke_tools.servers.rows import fact_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ke_tools.facts import Edit
    from ke_tools.memory.scope import Decision
    from ke_tools.servers.principal import Principal

__all__ = ["KEPT_BACK", "Asking"]

_ANSWER_TOKENS: Final = 96
_LOAD_SECONDS: Final = 60.0
_PARTS: Final = ("subject", "prompt", "target")
_FIELDS: Final = ("statement", *_PARTS, "source", "aliases", "expires")
_REASON: Final = "corrected on the console"
KEPT_BACK: Final = "(kept back here; it is to be forgotten)"


class Asking(Part):
    """The first page, and the way from a wrong answer to a correction."""

    def routes(self) -> list[Row]:
        """Give method, path and page, but for the first page's."""
        return [
            ("POST", "/console/ask", self.ask),
            ("GET", "/console/correct", self.correct),
            ("POST", "/console/correct", self.preview),
            ("POST", "/console/edits", self.record),
        ]

    def page(self, asked: Asked) -> Page | Moved:
        """The empty question; who may only propose is led to the form for that."""
        if not asked.who.may("read") and asked.who.may("propose"):
            return Moved("/console/correct")
        asked.who.require("read")
        return Page("ask.html", {"question": "", "answers": None})

    async def ask(self, asked: Asked) -> Page:
        """Answer a question without corrections and with them."""
        question = asked.said("question").strip()
        found, decision = await self._service.answering.queried(
            asked.who, question, view="both", max_tokens=_ANSWER_TOKENS, wait_seconds=_LOAD_SECONDS
        )
        texts = {answer["view"]: answer for answer in found["answers"]}
        context = {
            "question": question,
            "before": KEPT_BACK if texts["edited"]["route"] == "forget" else texts["base"]["text"],
            "after": texts["edited"]["text"],
            "route": texts["edited"]["route"],
            "truncated": found["truncated"],
            "answers": True,
            **_decided(decision),
        }
        return Page("_answers.html" if asked.is_part else "ask.html", context)

    def correct(self, asked: Asked) -> Page:
        """The form for a correction."""
        asked.who.require("propose")
        self._pages.check_writable()
        return Page("correct.html", _form(dict.fromkeys(_FIELDS, "")))

    async def preview(self, asked: Asked) -> Page:
        """Show what a correction would record and change, or ask back where a sentence is not certain."""
        self._pages.check_writable()
        given = {name: asked.said(name).strip() for name in _FIELDS}
        if not given["statement"] and not all(given[name] for name in _PARTS):
            raise InvalidInput("the correction says nothing.", "Say what is right in a sentence, or give subject, prompt and target.")
        try:
            facts = await asyncio.to_thread(self._facts, asked.who, given)
            would = await asyncio.to_thread(self._service.edit, asked.who, facts, reason=_REASON, dry_run=True)
        except InvalidInput as error:
            if "question" not in error.data:  # what was typed stays
                return Page("correct.html", _form(given, question=f"{error.message} {error.hint}".strip()), error.http_status)
            return Page("correct.html", _form(given, question=error.data["question"], candidates=error.data["candidates"]))
        rows = [await self._row(asked.who, fact, edit) for fact, edit in zip(facts, would["edits"], strict=True)]
        context = {
            "rows": rows,
            "waits": any(edit["state"] == State.PROPOSED for edit in would["edits"]),
            "given": given,
            "key": f"console:{secrets.token_hex(12)}",
            "seen": seen(*(one.id for row in rows if not row["is_so"] for one in row["gone"])),
        }
        return Page("preview.html", context)

    def _facts(self, who: Principal, given: Mapping[str, str]) -> list[dict[str, Any]]:
        """The parts of what a form says; a sentence may hold several."""
        beside: dict[str, Any] = {name: given[name] for name in ("source", "expires") if given[name]}
        if aliases := [alias.strip() for alias in given["aliases"].split(",") if alias.strip()]:
            beside["aliases"] = aliases
        if given["statement"]:
            stated = [{"statement": given["statement"], **beside}]
            return self._service.statements.expanded(who.tenant, stated, self._service.models.peek())
        return [{name: given[name] for name in _PARTS} | beside]

    async def _row(self, who: Principal, fact: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, Any]:
        """One fact of a preview, with what gives way, and for who may read it what the model says now."""
        gone = await asyncio.to_thread(self._giving_way, who, [fact])
        said = await present_answer(self._service, who, str(fact["prompt"])) if who.may("read") else ""
        target = squash(str(fact["target"]))
        so = [one for one in gone if squash(one.fact.target) == target]
        told = f"It is corrected so already, by {so[0].id}." if so else "The model says that already." if squash(said) == target else ""
        adds = any(fact.get(name) for name in ("aliases", "expires")) or any(one.fact.expires for one in so)
        warnings = [one for one in edit["warnings"] if not one.startswith(SUPERSEDES)]
        beside = {"aliases": list(fact.get("aliases", ())), "expires": fact.get("expires", "")}
        return {"fact": fact, "now": said, "gone": gone, "is_so": "" if adds else told, "warnings": warnings, **beside}

    def _giving_way(self, who: Principal, facts: Sequence[Mapping[str, Any]]) -> list[Edit]:
        """The edits that these would supersede, whoever approves them."""
        ledger = self._service.ledger
        made = ledger.edit(who.tenant, [fact_of(fact) for fact in facts], actor=who.name, dry_run=True, over_protection=who.may("admin"))
        return [*ledger.several(who.tenant, [edit_id for edit in made for edit_id in edit.supersedes]).values()]

    def record(self, asked: Asked) -> Moved:
        """Record what a preview showed, once however often it is sent."""
        self._pages.check_writable()
        form = asked.form
        columns = [form.get(name, ()) for name in (*_PARTS, "relation")]
        if not columns[0] or len({len(column) for column in columns}) > 1:
            raise InvalidInput("the form is incomplete.", "Go back, and look at the correction once more.")
        beside: dict[str, Any] = {name: asked.said(name) for name in ("source", "expires") if asked.said(name)}
        if aliases := form.get("alias", ()):
            beside["aliases"] = list(aliases)
        facts = [{**dict(zip((*_PARTS, "relation"), row, strict=True)), **beside} for row in zip(*columns, strict=True)]
        asked.who.require("propose")
        key, reason = asked.said("key"), asked.said("reason").strip() or _REASON
        with self._pages.deciding:
            if not self._service.ledger.has_heard(asked.who.tenant, key):
                self._pages.check_seen(asked, *(one.id for fact in facts for one in self._giving_way(asked.who, [fact])))
            made = self._service.edit(asked.who, facts, reason=reason, idempotency_key=key)
        if not asked.who.may("read"):
            return Moved("/console/correct", made["summary"])
        to = f"/console/edits/{made['edits'][0]['edit_id']}" if len(made["edits"]) == 1 else "/console/edits?state=any"
        return Moved(to, made["summary"])


def _form(given: Mapping[str, str], *, question: str = "", candidates: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {"given": given, "question": question, "candidates": candidates}


def _decided(decision: Decision | None) -> dict[str, Any]:
    if decision is None:
        return {"reason": "", "zone_in_words": "", "hits": []}
    return {
        "reason": decision.reason,
        "zone_in_words": ZONES[decision.zone],
        "hits": [{"edit": hit.edit, "why": why(hit, decision)} for hit in decision.hits],
    }
