"""The command line's view of a service: the local user asks, and waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic_core import from_json

from ke_tools.errors import InvalidInput, KeToolsError
from ke_tools.memory import transfer
from ke_tools.models.engine import Request
from ke_tools.servers import approvals, protecting, undoing
from ke_tools.servers.answering import View
from ke_tools.servers.chatting import Chatting
from ke_tools.servers.conversation import Conversation
from ke_tools.servers.evidence import evidence
from ke_tools.servers.promotions import shown
from ke_tools.servers.rows import frozen_messages
from ke_tools.servers.service import Mode, Service, open_service

if TYPE_CHECKING:
    from types import TracebackType

    from ke_tools.config import Settings
    from ke_tools.memory.joblog import Job

_PATIENCE: Final = 3600.0  # seconds for a first download; a person at a terminal sees its progress and can stop it
_BATCH: Final = 256  # lines answered together


class Local:
    """Blocking calls in the name of the local user; use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self.service: Service = open_service(settings)
        self._who = self.service.local

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def edit(
        self, facts: Sequence[Mapping[str, Any]], *, mode: Mode = "auto", reason: str = "", idempotency_key: str = "", dry_run: bool = False
    ) -> dict[str, Any]:
        """See :meth:`Service.edit`."""
        return self.service.edit(
            self._who, facts, mode=mode, reason=reason, idempotency_key=idempotency_key, dry_run=dry_run, wait_seconds=_PATIENCE
        )

    def purge(self, edit_id: str, *, reason: str) -> dict[str, Any]:
        """See :meth:`Service.purge`."""
        return self.service.purge(self._who, edit_id, reason=reason)

    def rollback(
        self,
        *,
        edit_ids: Sequence[str] = (),
        to_revision: int | None = None,
        to: Literal["base", "memory"] = "base",
        reason: str = "",
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """See :meth:`Service.rollback`."""
        return self.service.rollback(self._who, edit_ids=edit_ids, to_revision=to_revision, to=to, reason=reason, dry_run=dry_run)

    def undo(self, actor: str, since: str, *, reason: str = "", dry_run: bool = False) -> dict[str, Any]:
        """See :func:`~ke_tools.servers.undoing.undo`."""
        return undoing.undo(self.service, self._who, actor, since, reason=reason, dry_run=dry_run)

    def approve(self, edit_ids: Sequence[str], *, reason: str = "") -> dict[str, Any]:
        """See :func:`~ke_tools.servers.approvals.approve`."""
        return approvals.approve(self.service, self._who, edit_ids, reason=reason)

    def reject(self, edit_ids: Sequence[str], *, reason: str) -> dict[str, Any]:
        """See :func:`~ke_tools.servers.approvals.reject`."""
        return approvals.reject(self.service, self._who, edit_ids, reason=reason)

    def proposals(self, *, limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """See :func:`~ke_tools.servers.approvals.queue`."""
        return approvals.queue(self.service, self._who, limit=limit, cursor=cursor)

    def evidence(self, edit_id: str, *, verify: bool = False) -> dict[str, Any]:
        """See :func:`~ke_tools.servers.evidence.evidence`."""
        return evidence(self.service, self._who, edit_id, verify=verify, wait_seconds=_PATIENCE)

    def protect(
        self, subject: str, *, aliases: Sequence[str] = (), relation: str = "", prompt: str = "", reason: str = ""
    ) -> dict[str, Any]:
        """See :func:`~ke_tools.servers.protecting.protect`."""
        return protecting.protect(self.service, self._who, subject, aliases=aliases, relation=relation, prompt=prompt, reason=reason)

    def unprotect(self, name: str, *, reason: str = "") -> dict[str, Any]:
        """See :func:`~ke_tools.servers.protecting.unprotect`."""
        return protecting.unprotect(self.service, self._who, name, reason=reason)

    def protections(self) -> dict[str, Any]:
        """See :func:`~ke_tools.servers.protecting.listed`."""
        return protecting.listed(self.service, self._who)

    def list_edits(self, *, state: str = "any", contains: str = "", limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """See :meth:`Service.list_edits`."""
        return self.service.list_edits(self._who, state=state, contains=contains, limit=limit, cursor=cursor)

    def history(self, *, edit_id: str = "", limit: int = 20, cursor: str = "") -> dict[str, Any]:
        """See :meth:`Service.history`."""
        return self.service.history(self._who, edit_id=edit_id, limit=limit, cursor=cursor)

    def query(
        self,
        question: str,
        *,
        view: View = "edited",
        max_tokens: int = 128,
        explain: bool = False,
        via: Literal["auto", "ike", "reader", "weights"] = "auto",
    ) -> dict[str, Any]:
        """See :meth:`Answering.query`."""
        return asyncio.run(
            self.service.answering.query(
                self._who, question, view=view, max_tokens=max_tokens, explain=explain, via=via, wait_seconds=_PATIENCE
            )
        )

    def conversation(self, *, view: Literal["edited", "base"] = "edited", max_tokens: int = 256) -> Conversation:
        """Begin a conversation; the commands are always obeyed, plain remarks where the settings switch corrections in chats on."""
        mode = self.service.settings.chat_corrections
        chatting = Chatting(self.service, "apply" if mode == "off" else mode, remarks=mode != "off") if view == "edited" else None
        return Conversation(self.service, self._who, chatting, view=view, max_tokens=max_tokens, patience=_PATIENCE)

    def verify(
        self,
        edit_ids: Sequence[str] = (),
        *,
        revision: int | None = None,
        release: str = "",
        suite: Literal["quick", "full"] = "quick",
        probes: Sequence[Mapping[str, Any]] = (),
        heard: Callable[[Mapping[str, Any]], None] = lambda _job: None,
    ) -> dict[str, Any]:
        """See :meth:`Verifying.verify`; waits for the end, however long that takes.

        Raises:
            KeToolsError: the job failed or was cancelled; the message says why.
        """

        async def tell(job: Job) -> None:
            heard(shown(job))

        asked = self.service.verifying.verify(
            self._who,
            edit_ids,
            revision=revision,
            release=release,
            suite=suite,
            probes=probes,
            wait_seconds=_PATIENCE,
            heard=tell,
            is_patient=True,
        )
        found = asyncio.run(asked)
        if not found["job_id"]:
            return found
        job = self._ended(self.job(found["job_id"]), heard)
        if job["status"] != "completed":
            raise KeToolsError(job["error_message"] or job["summary"], f"See `ke-tools job {job['job_id']}`.")
        return self.service.verifying.verified(self._who, job["job_id"])

    def scorecard(self, name: str) -> dict[str, Any]:
        """See :meth:`Service.get_scorecard`."""
        return self.service.get_scorecard(self._who, name)

    def promote(
        self,
        edit_ids: Sequence[str],
        *,
        method: str = "auto",
        policy: Mapping[str, Any] | None = None,
        reason: str = "",
        idempotency_key: str = "",
        heard: Callable[[Mapping[str, Any]], None] = lambda _job: None,
    ) -> dict[str, Any]:
        """See :meth:`Service.promote`; waits for the end, however long that takes."""
        job = asyncio.run(
            self.service.promote(self._who, edit_ids, method=method, policy=policy, reason=reason, idempotency_key=idempotency_key)
        )
        return self._ended(job, heard)

    def rebuild(self, *, idempotency_key: str = "", heard: Callable[[Mapping[str, Any]], None] = lambda _job: None) -> dict[str, Any]:
        """See :meth:`Service.rebuild`; waits as :meth:`promote`."""
        return self._ended(asyncio.run(self.service.rebuild(self._who, idempotency_key=idempotency_key)), heard)

    def _ended(self, job: dict[str, Any], heard: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        while job["poll_after_ms"]:
            heard(job)
            job = self.job(job["job_id"], wait_seconds=1.0)
        return job

    def candidates(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`Service.candidates`."""
        return self.service.candidates(self._who, given)

    def job(self, job_id: str, *, wait_seconds: float = 0.0) -> dict[str, Any]:
        """See :meth:`Service.job_status`."""
        return asyncio.run(self.service.job_status(self._who, job_id, wait_seconds=wait_seconds))

    def jobs(self) -> dict[str, Any]:
        """See :meth:`Service.jobs`."""
        return self.service.jobs(self._who)

    def job_cancel(self, job_id: str) -> dict[str, Any]:
        """See :meth:`Service.job_cancel`."""
        return self.service.job_cancel(self._who, job_id)

    def route_lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Explain the route of each line; one result for each, errors too."""
        for name, asked in _requests(lines, max_tokens=1):
            if isinstance(asked, KeToolsError):
                yield {"id": name, "error": asked.as_dict()}
            else:
                yield {"id": name, **self.service.answering.route(self._who, asked)}

    def answer_lines(
        self, lines: Iterable[str], *, view: Literal["edited", "base"] = "edited", max_tokens: int = 24
    ) -> Iterator[dict[str, Any]]:
        """Answer each line greedily; one result for each, in order, errors too."""
        asked = _requests(lines, max_tokens=max_tokens)
        while chunk := list(islice(asked, _BATCH)):
            good = [request for _, request in chunk if isinstance(request, Request)]
            answers = iter(self.service.answering.answer_batch(self._who, good, view=view))
            for name, request in chunk:
                if isinstance(request, KeToolsError):
                    yield {"id": name, "error": request.as_dict()}
                    continue
                routed, made = next(answers)
                yield {
                    "id": name,
                    "text": made.text,
                    "route": routed.route,
                    "reason": routed.reason,
                    "edits": [hit.edit.id for hit in routed.hits],
                    "revision": routed.decision.revision,
                }

    def export_lines(self, *, events: bool = False) -> Iterator[str]:
        """Write what :meth:`import_lines` reads."""
        return transfer.export_lines(self.service.ledger, self._who.tenant, events=events)

    def import_lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """Record a correction a line; one result for each, in order, errors too."""
        self.service.check_writable(self._who)
        return self._imported(lines)

    def _imported(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        old = self.service.ledger.live_release(self._who.tenant)
        yield from transfer.import_lines(
            self.service.ledger,
            self._who.tenant,
            lines,
            actor=self._who.name,
            as_proposals=self.service.settings.edits == "propose",
            over_protection=self._who.may("admin"),
        )
        self.service.promote_rest(self._who, old)

    def doctor(self, *, deep: bool = False, gpu_gib: float | None = None) -> dict[str, Any]:
        """Say how things stand, see :func:`~ke_tools.servers.doctor.examine`."""
        from ke_tools.servers.doctor import examine

        return examine(self.service, deep=deep, gpu_gib=gpu_gib)

    def close(self) -> None:
        """Free everything."""
        self.service.close()


def _requests(lines: Iterable[str], *, max_tokens: int) -> Iterator[tuple[Any, Request | KeToolsError]]:
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for place, (number, line) in enumerate(numbered):
        name: Any = place
        try:
            given = from_json(line.encode())  # neither takes half characters
            if not isinstance(given, dict):
                raise InvalidInput(f"line {number} is no JSON object.", 'Write {"id": …, "prompt": …}.')
            name = given.get("id", place)
            yield name, _request(given, max_tokens)
        except UnicodeError:
            yield name, InvalidInput(f"line {number} is not UTF-8.", "Write the file in UTF-8.")
        except ValueError as error:
            yield name, InvalidInput(f"line {number} is not JSON: {error}", 'Write {"id": …, "prompt": …}.')
        except KeToolsError as error:
            yield name, error


def _request(given: Mapping[str, Any], max_tokens: int) -> Request:
    prompt, messages = given.get("prompt"), given.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidInput("a line takes prompt or messages, and exactly one of them.", "See `ke-tools query --help`.")
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInput("prompt is not a text.", "Give the text that is to be completed.")
        return Request(prompt=prompt, max_tokens=max_tokens)
    return Request(messages=frozen_messages(messages), max_tokens=max_tokens)
