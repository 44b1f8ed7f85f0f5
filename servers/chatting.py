"""Corrections where people make them: ``/correct``, ``/why``, ``/undo`` and a plain "no, it is …" in a chat.

No transport, and no state: everything is read from the conversation that the client sends. What is to be recorded is first shown, and
recorded only when the next message is a yes. That yes means what our own reply before it shows, which carries a mark that only this
home can make (:mod:`ke_tools.servers.seals`) over tenant, token, split, revision and what would be superseded; so a quoted or made-up reply
confirms nothing, and neither does a true one after something has changed. Only the last message is ever obeyed, and only as a whole.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.errors import InvalidInput, NotFound, Refused
from ke_tools.facts import Fact, State, squash
from ke_tools.memory.corrections import SUPERSEDES
from ke_tools.memory.router import reading_of, text_of
from ke_tools.memory.slots import slot_of
from ke_tools.memory.statement import Doubt, Split
from ke_tools.models.engine import Request
from ke_tools.servers.explaining import MOST_SHOWN, ZONES, present_answer, says, why
from ke_tools.servers.principal import shows_only
from ke_tools.servers.seals import Seal

if TYPE_CHECKING:
    from ke_tools.facts import Edit
    from ke_tools.memory.scope import Decision
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["Chatting", "Mode"]

log = logging.getLogger(__name__)

Mode = Literal["propose", "apply"]

REASON: Final = "said in a chat"

_COMMAND: Final = re.compile(r"/(?P<name>correct|why|undo)\b[ \t]*(?P<rest>.*)", re.DOTALL)
_YES: Final = re.compile(r"(?:yes|yep|yeah|y)(?:,? (?:please|do it|do so|record it|that is right|that's right))?[.! ]*", re.IGNORECASE)
_NO: Final = re.compile(r"(?:no|nope|n|cancel|stop|leave it)(?:,? (?:thanks|thank you|don't|leave it))?[.! ]*", re.IGNORECASE)
_ASKED: Final = re.compile(r"\(reference (?P<revision>\d{1,12})-(?P<mark>[0-9a-f]{32})\)\s*$")
_DONE: Final = re.compile(r"\(recorded (?P<ids>ed_[0-9a-f]+(?: ed_[0-9a-f]+)*), (?P<mark>[0-9a-f]{32})\)\s*$")


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str


@dataclass(frozen=True, slots=True)
class _Outlook:
    """What a correction would meet."""

    said: Sequence[str]  # what the model answers now, for each split
    replaced: Sequence[Edit]
    so: Sequence[Edit]  # that say already what else was stated
    warnings: Sequence[str]


class Chatting:
    """The commands of one service's chats."""

    def __init__(self, service: Service, mode: Mode, *, remarks: bool = True, read_only: bool = False) -> None:
        """Take the service; without ``remarks`` only the commands are obeyed, and ``read_only`` refuses what would write."""
        self._read_only = read_only
        self._service = service
        self._mode = mode
        self._remarks = remarks
        self._recording = threading.Lock()

    async def reply(self, who: Principal, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """Answer the last message where it is a command, a yes to our own question, or a remark that corrects; else ``None``.

        Raises:
            KeToolsError: what is no refusal, such as a ledger that cannot be read.
        """
        turns = [_Turn(str(turn.get("role", "")), text_of(turn)) for turn in messages]
        if not turns or turns[-1].role != "user":
            return None
        try:
            return await self._replied(who, turns)
        except (Refused, InvalidInput, NotFound) as error:
            return " ".join(part for part in (_sentence(error.message), error.hint, "Nothing was changed.") if part)

    async def _replied(self, who: Principal, turns: Sequence[_Turn]) -> str | None:
        said = turns[-1].text.strip()
        command = _COMMAND.fullmatch(said)
        if command is not None:
            if command["name"] == "why":
                return await asyncio.to_thread(self._why, who, turns[:-1])
            if command["name"] == "undo":
                return await asyncio.to_thread(self._undo, who, turns[:-1])
            return await self._asked(who, turns)
        asked = _ASKED.search(turns[-2].text) if len(turns) > 1 and turns[-2].role == "assistant" else None
        if asked is not None and _YES.fullmatch(said):
            return await self._confirmed(who, turns[:-2], asked)
        if asked is not None and _NO.fullmatch(said):
            return "Nothing was changed."
        if not self._remarks or not self._may(who):
            return None
        try:
            return await self._asked(who, turns)
        except (Refused, InvalidInput, NotFound):
            raise
        except Exception:  # a remark may be no correction at all: the model answers it, whatever broke here
            log.exception("a message was not looked at for a correction")
            return None

    def _may(self, who: Principal) -> bool:
        return who.may("propose") and not (self._read_only or self._service.settings.read_only or self._service.unwritable)

    def _check_open(self) -> None:
        self._service.check_open()
        if self._read_only:
            raise shows_only()

    def _state(self, who: Principal) -> State:
        """How a correction of this speaker is recorded."""
        if self._mode == "apply" and self._service.settings.edits == "active" and who.may("write"):
            return State.ACTIVE
        who.require("propose")
        return State.PROPOSED

    # What is meant

    def _meant(self, who: Principal, turns: Sequence[_Turn]) -> list[Split | Doubt] | None:
        """What the last message states; ``None`` where it corrects nothing."""
        said = turns[-1].text.strip()
        if command := _COMMAND.fullmatch(said):
            if command["name"] != "correct":
                return None
            if not command["rest"].strip():
                raise InvalidInput("/correct says nothing.", "Say what is right: /correct The capital of Australia is Canberra.")
            if (remark := self._remark(who, turns, command["rest"])) is not None:
                return [remark]
            return self._service.statements.split(who.tenant, command["rest"], self._service.models.peek())
        remark = self._remark(who, turns, said)
        return None if remark is None else [remark]

    def _remark(self, who: Principal, turns: Sequence[_Turn], said: str) -> Split | None:
        """A remark about the answer directly before it; our own replies are no answers."""
        if _last_answered(turns[:-1]) != len(turns) - 2:
            return None
        question, answer = turns[-3].text, turns[-2].text
        return self._service.statements.corrected(who.tenant, said, question, answer)

    async def _asked(self, who: Principal, turns: Sequence[_Turn]) -> str | None:
        """Show what would be recorded, and ask."""
        if _COMMAND.fullmatch(turns[-1].text.strip()):  # who may not is told before anything is read
            self._state(who)
            self._check_open()
        found = await asyncio.to_thread(self._meant, who, turns)
        if found is None:
            return None
        state = self._state(who)
        self._check_open()
        if doubts := [one for one in found if isinstance(one, Doubt)]:
            return "\n".join(_doubtful(doubt) for doubt in doubts)
        splits, so, replaced = await asyncio.to_thread(self._not_so, who, [one for one in found if isinstance(one, Split)])
        if not splits:
            return f"It is corrected so already ({', '.join(edit.id for edit in so)}). Nothing was changed."
        said = [await present_answer(self._service, who, split.prompt) for split in splits]
        is_said = all(says(answer, split.target) for answer, split in zip(said, splits, strict=True))
        if is_said and not replaced and not any(_is_denied(turns, split) for split in splits):
            return "That is what the model says already. Nothing was changed."
        warnings = await asyncio.to_thread(self._warnings, who, splits, state)
        revision = self._service.revision
        mark = self._seal.mark(*self._confirms(who, splits, revision, replaced, state))
        return self._proposal(who, splits, _Outlook(said, replaced, so, warnings), state) + f"\n\n(reference {revision}-{mark})"

    def _confirms(
        self, who: Principal, splits: Sequence[Split], revision: int, replaced: Sequence[Edit], state: State
    ) -> tuple[object, ...]:
        """What a yes stands for."""
        return (
            "correct",
            who.tenant,
            who.name,
            state.value,
            [[split.subject, split.prompt, split.target, split.relation] for split in splits],
            revision,
            sorted(edit.id for edit in replaced),
        )

    async def _confirmed(self, who: Principal, turns: Sequence[_Turn], asked: re.Match[str]) -> str:
        """Record what our reply before the yes showed."""
        found = await asyncio.to_thread(self._meant, who, turns) if turns and turns[-1].role == "user" else None
        splits = [one for one in found or [] if isinstance(one, Split)]
        if splits:
            splits, *_ = await asyncio.to_thread(self._not_so, who, splits, f"chat:{asked['mark']}")
        if not splits or any(isinstance(one, Doubt) for one in found or []):
            return "There is nothing of mine here to say yes to. Nothing was changed."
        state = self._state(who)
        self._check_open()
        made = await asyncio.to_thread(self._recorded, who, splits, asked, state)
        if made is None:
            return "What this would change is not what it was, or that question was not mine. Nothing was changed; say /correct once more."
        ids = [one["edit_id"] for one in made["edits"]]
        if any(one["state"] == State.RETIRED for one in made["edits"]):  # the same yes once more, and /undo in between
            return f"That was recorded and taken back since ({', '.join(ids)}). Nothing was changed; say /correct once more."
        told = "It acts from the next answer on" if state is State.ACTIVE else "It waits for an approval, and changes nothing until then"
        undo = "; /undo takes it back" if who.may("write") else ""
        mark = self._seal.mark("recorded", who.tenant, who.name, ids)
        return f"Recorded. {told}{undo}.\n\n(recorded {' '.join(ids)}, {mark})"

    def _recorded(self, who: Principal, splits: Sequence[Split], asked: re.Match[str], state: State) -> dict[str, Any] | None:
        """Record what was shown, if that is still what it would change; one at a time, as another yes may change that."""
        key = f"chat:{asked['mark']}"
        with self._recording:
            replaced = self._replaced(who, splits, key)
            if not self._seal.fits(asked["mark"], *self._confirms(who, splits, int(asked["revision"]), replaced, state)):
                return None
            facts = [{**split.as_fact(), "ref": key} for split in splits]
            return self._service.edit(who, facts, reason=REASON, idempotency_key=key, proposes=state is State.PROPOSED)

    # What is shown

    def _proposal(self, who: Principal, splits: Sequence[Split], outlook: _Outlook, state: State) -> str:
        lines: list[str] = []
        for split, answer in zip(splits, outlook.said, strict=True):
            lines += [
                f"**{split.subject}**",
                f"- asked: {split.prompt}",
                f"- answer from now on: **{split.target}**",
                f"- the model says now: {answer or '(it did not answer)'}",
            ]
        for edit in outlook.replaced:
            lines.append(f"- supersedes {edit.id}: {edit.fact.prompt} {edit.fact.target}")
        if not outlook.replaced:
            lines.append("- supersedes: nothing")
        lines += [
            f"- left as it is, as it is corrected so already: {edit.fact.prompt} {edit.fact.target} ({edit.id})" for edit in outlook.so
        ]
        lines += [f"- note: {warning}" for warning in outlook.warnings]
        lines.append(f"- concerns: everybody who asks {self._service.model_id} here as “{who.tenant}”")
        verb = "record" if state is State.ACTIVE else "propose"
        return "\n".join([*lines, "", f"Shall I {verb} it? Say **yes**; anything else leaves all as it is."])

    def _not_so(self, who: Principal, splits: Sequence[Split], key: str = "") -> tuple[list[Split], list[Edit], list[Edit]]:
        """The splits that no live edit says already, the edits that say the others, and those that give way; see :meth:`_replaced`."""
        standing = self._replaced(who, splits, key)
        so = [edit for edit in standing if any(_is_so(edit, split) for split in splits)]
        left = [split for split in splits if not any(_is_so(edit, split) for edit in so)]
        return left, so, self._replaced(who, left, key) if so and left else standing

    def _warnings(self, who: Principal, splits: Sequence[Split], state: State) -> list[str]:
        """What else there is to know before it is recorded; what gives way is told by itself."""
        facts = [split.as_fact() for split in splits]
        made = self._service.edit(who, facts, reason=REASON, dry_run=True, proposes=state is State.PROPOSED)
        told = dict.fromkeys(warning for edit in made["edits"] for warning in edit["warnings"])
        return [warning for warning in told if not warning.startswith(SUPERSEDES)]

    def _replaced(self, who: Principal, splits: Sequence[Split], key: str = "") -> list[Edit]:
        """The live edits that these would supersede, whoever approves them; of what was recorded under ``key``, what that superseded."""
        facts = [Fact(**split.as_fact()) for split in splits]
        ledger, may_all = self._service.ledger, who.may("admin")
        made = ledger.edit(who.tenant, facts, actor=who.name, reason=REASON, dry_run=True, over_protection=may_all)
        ids = dict.fromkeys(earlier for edit in made for earlier in edit.supersedes)
        found = [ledger.get(who.tenant, edit_id) for edit_id in ids]
        before = dict.fromkeys(earlier for edit in found if key and edit.ref == key for earlier in edit.supersedes)
        return [edit for edit in found if not key or edit.ref != key] + [ledger.get(who.tenant, edit_id) for edit_id in before]

    # Looking and taking back

    def _why(self, who: Principal, turns: Sequence[_Turn]) -> str:
        who.require("read")
        place = _last_answered(turns)
        if place is None:
            return "There is no answer here yet."
        asked = tuple({"role": turn.role, "content": turn.text} for turn in turns[:place])
        decision = self._service.scope.decide(who.tenant, reading_of(Request(messages=asked)))
        question = " ".join(turns[place - 1].text.split())[:MOST_SHOWN]
        return _in_words(question, decision)

    def _undo(self, who: Principal, turns: Sequence[_Turn]) -> str:
        self._check_open()
        is_taken = False
        for turn in reversed(turns):
            found = _DONE.search(turn.text) if turn.role == "assistant" else None
            ids = found["ids"].split() if found else []
            if found is None or not self._seal.fits(found["mark"], "recorded", who.tenant, who.name, ids):
                continue
            live = [edit_id for edit_id in ids if self._service.ledger.get(who.tenant, edit_id).state is not State.RETIRED]
            if live:
                done = self._service.rollback(who, edit_ids=live, reason=f"{REASON}: /undo")
                return f"Taken back: {', '.join(live)}. {done['summary']}"
            is_taken = True
        if is_taken:
            return "What this conversation corrected is taken back already. Nothing was changed."
        return "This conversation has corrected nothing. Nothing was changed."

    @cached_property
    def _seal(self) -> Seal:
        return Seal.made(self._service.settings.home)


def _last_answered(turns: Sequence[_Turn]) -> int | None:
    """The place of the last answer of the model's; commands and our own replies are left out."""
    for place in range(len(turns) - 1, 0, -1):
        question, answer = turns[place - 1], turns[place]
        asked = question.text.strip()
        if answer.role != "assistant" or question.role != "user" or _COMMAND.fullmatch(asked):
            continue
        is_decided = place > 1 and _ASKED.search(turns[place - 2].text) and (_YES.fullmatch(asked) or _NO.fullmatch(asked))
        if is_decided or _ASKED.search(answer.text) or _DONE.search(answer.text):
            continue
        return place
    return None


def _in_words(question: str, decision: Decision) -> str:
    about = f"Asked “{question}”:"
    if not decision.hits:
        return f"{about} no correction is about this; the model answered by itself. ({_sentence(decision.reason)})"
    lines = [
        f"- {hit.edit.id} ({hit.edit.fact.prompt} {hit.edit.fact.target}): {why(hit, decision)};"
        f" said by {hit.edit.actor} on {hit.edit.created_at[:10]}."
        for hit in decision.hits
    ]
    return "\n".join([about, *lines, ZONES[decision.zone]])


def _doubtful(doubt: Doubt) -> str:
    readings = "".join(f"\n- {one.in_words}" for one in doubt.candidates[:4])
    return f"I am not sure what to correct. {doubt.question}" + (f"\nIt may be:{readings}" if readings else "") + "\nNothing was changed."


def _is_denied(turns: Sequence[_Turn], split: Split) -> bool:
    """Whether the model's last answer in the conversation is about the subject, and says something else."""
    place = _last_answered(turns)
    if place is None:
        return False
    about = squash(f"{turns[place - 1].text} {turns[place].text}")
    return squash(split.subject) in about and not says(turns[place].text, split.target)


def _is_so(edit: Edit, split: Split) -> bool:
    return squash(edit.fact.target) == squash(split.target) and edit.slot == slot_of(Fact(**split.as_fact())).key


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
