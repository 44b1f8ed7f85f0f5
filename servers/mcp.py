"""The MCP server: nine tools, four resources and two prompts over a :class:`~ke_tools.servers.service.Service`.

One object serves both protocol eras (the handshake up to 2025-11-25, stateless since 2026-07-28) over stdio, the home's
socket and HTTP. Who asks is taken from the authentication alone, never from an argument. A failure is a result with
``isError``, a sentence for the model and its parts under ``_meta["ke-tools/error"]`` for programs; it carries no
``structuredContent``, since clients check that against the output schema even then and throw the whole result away.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import anyio
import anyio.to_thread
from mcp.server import MCPServer
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import AcceptedElicitation, Context, Elicit, ElicitationResult, Resolve
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, ValidationError

from ke_tools import __version__, prompts
from ke_tools.errors import ConfirmRequired, Declined, Forbidden, InvalidInput, KeToolsError, NotFound
from ke_tools.servers import mcp_shapes as shapes
from ke_tools.servers.principal import Principal, shows_only

if TYPE_CHECKING:
    from ke_tools.servers.service import Service

log = logging.getLogger(__name__)

ERROR_KEY: Final = "ke-tools/error"
HEARTBEAT_SECONDS: Final = 5.0  # hosts give up on a silent call after 30 s or more
WRITERS: Final = frozenset({"edit", "promote", "rollback", "job_cancel"})
_MOST_PROBLEMS: Final = 5
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{0,32}")

T = TypeVar("T")
Ctx = Context[Any, Any]


def _hints(title: str, *, reads: bool, destroys: bool = False, again: bool = True) -> ToolAnnotations:
    return ToolAnnotations(title=title, read_only_hint=reads, destructive_hint=destroys, idempotent_hint=again, open_world_hint=False)


# Hosts that ask before a write believe these; an edit only adds and can be taken back, a rollback takes effect away.
_ANNOTATIONS: Final = {
    "edit": _hints("Correct facts", reads=False, again=False),
    "query": _hints("Ask the served model", reads=True),
    "verify": _hints("Verify corrections", reads=True),
    "list_edits": _hints("List corrections", reads=True),
    "history": _hints("Show the history", reads=True),
    "rollback": _hints("Take corrections back", reads=False, destroys=True),
    "promote": _hints("Write corrections into the weights", reads=False, destroys=True),
    "job_status": _hints("See how a job stands", reads=True),
    "job_cancel": _hints("Stop a job", reads=False),
}

_DESCRIPTIONS: Final = {
    "edit": (
        "Correct one or more facts in the served language model. Use it when the user says that the model is wrong or must "
        "know something new. The correction acts on the next answer of every client of the model's endpoint; the weights are "
        "not touched, and it does not change your own knowledge. All facts of a call are recorded or none. A later edit of the "
        "same subject and relation supersedes the earlier one; the result names it. forget=true without target: the model declines from "
        "then on. If it asks back, ask the user. Not for instructions or style: one fact each. "
        "Next: {p}verify with the edit_ids; {p}rollback undoes."
    ),
    "query": (
        "Ask the served model a question and get its answer, with the edits that it rests on. Use it before an edit to see what "
        "the model says, and after it to see the effect; view 'both' gives the answers without and with the edits. Changes "
        "nothing. It is a small model: do not take its answers for true. While the model loads the answer is E_MODEL_LOADING "
        "with poll_after_ms."
    ),
    "verify": (
        "Measure whether edits hold: the fact itself, other wordings, other facts about the same subject, neighbouring subjects (those "
        "must not move). Returns rates with standard errors and the worst case in words; give probes for questions that matter to the "
        "user. Give edit_ids, or a revision (what was live then), or a release (its weights alone); none of them: all live edits. "
        "Changes no edit. On a CPU it takes about ten seconds an edit at first, less when repeated; progress is reported meanwhile. More "
        "than 10 edits, the suite full, a revision or a release are a job: if status is working, call {p}job_status until it has ended, "
        "then read ke://scorecards/ and the scorecard's hash. If an edit did not pass, show the worst case and offer {p}rollback."
    ),
    "list_edits": (
        "List the corrections, newest first, a page at a time: their ids, state and warnings. Use it to find an edit_id or to "
        "see what is live. Changes nothing. For who changed what and why see {p}history."
    ),
    "history": (
        "Show what changed when, by whom and why, newest first. Use it before {p}rollback with to_revision, or to explain why a "
        "correction is gone. Changes nothing; nothing is ever removed from it."
    ),
    "rollback": (
        "Take corrections back: give edit_ids, or to_revision to bring back exactly what was live then (0: nothing). Not both. "
        "An edit that the one taken back had superseded is live again; the result names it. Acts on the next answer. Ask the "
        "user before taking back what others recorded. Nothing is erased: {p}history keeps it. A promoted edit leaves the weights "
        "at once; with to='memory' it only leaves the weights. What else was written with it acts from the memory until "
        "the job in job_id has promoted it anew."
    ),
    "promote": (
        "Write corrections that should last into the model's weights (MEMIT), or into a codebook (GRACE) where a gate refuses that; "
        "what it refuses there too stays in memory, as it is. Use it for corrections that have held for a while, several at once. "
        "Each candidate is asked through the serving path, and accepted only if lower confidence bounds say that it is reliable and "
        "moves nothing else. Takes minutes and returns a job: call {p}job_status until it has ended. Asks the user first, or needs "
        "confirm=true after you did. {p}rollback undoes it."
    ),
    "job_status": (
        "Say how a job of {p}promote or {p}verify stands, and when it has ended where each edit ended and why. Waits up to "
        "wait_seconds for the end, with progress. Leaving never stops the job; only {p}job_cancel does. Changes nothing."
    ),
    "job_cancel": (
        "Stop a job before it takes effect; nothing is changed then. One that has ended or is publishing goes its way: {p}rollback "
        "undoes what it did."
    ),
}


class Confirmation(BaseModel):
    """What the user is asked before weights change."""

    ok: bool = Field(description="write them into the weights")


async def confirmed(edit_ids: list[str], ctx: Ctx, *, confirm: bool = False) -> Confirmation | Elicit[Confirmation]:
    """Have the user asked, unless the caller says that it did.

    Raises:
        ConfirmRequired: the client cannot ask.
    """
    if confirm:
        return Confirmation(ok=True)
    capabilities = ctx.client_capabilities
    if capabilities is None or capabilities.elicitation is None:
        raise ConfirmRequired(
            "promote changes what the model's weights do, and this client cannot ask its user.",
            "Show the user the edits, and call again with confirm=true if they agree.",
        )
    count = f"{len(edit_ids)} correction{'' if len(edit_ids) == 1 else 's'}"
    return Elicit(f"Write {count} into the model's weights, if the checks allow it? It can be taken back.", Confirmation)


def build_server(
    service: Service,
    *,
    read_only: bool = False,
    tool_prefix: str = "",
    admits_local: bool = True,
) -> MCPServer[Any]:
    """Make the server object; it can serve any number of connections, but one HTTP application only.

    Args:
        service: what answers.
        read_only: leave the writing tools out (``service`` refuses them as well if it was opened read-only).
        tool_prefix: put before every tool's name.
        admits_local: a caller whom no transport has authenticated is the user of this machine; else it is refused.

    Raises:
        InvalidInput: the prefix cannot be part of a tool's name.
    """
    if not _PREFIX.fullmatch(tool_prefix):
        raise InvalidInput(f"the tool prefix {tool_prefix[:80]!r} is not valid.", "Use up to 32 letters, digits, _ and -.")
    tools = Tools(service, service.local if admits_local else None)
    names = [name for name in _DESCRIPTIONS if not (read_only and name in WRITERS)]
    server = Server(
        "ke-tools",
        title="Knowledge editing",
        version=__version__,
        instructions=prompts.render("mcp_instructions", model=service.model_id, prefix=tool_prefix, read_only=read_only),
        tools=[_tool(name, getattr(tools, name), tool_prefix) for name in names],
    )
    server.left_out = {tool_prefix + name for name in WRITERS if read_only}
    _add_resources(server, tools)
    _add_prompts(server, service, tool_prefix)
    return server


class Tools:
    """The nine tools; each method is one."""

    def __init__(self, service: Service, anonymous: Principal | None) -> None:
        self._service = service
        self._anonymous = anonymous

    def who(self) -> Principal:
        """Say who asks.

        Raises:
            Forbidden: nobody was authenticated where that is needed.
        """
        token = get_access_token()
        if token is not None:
            limit = (token.claims or {}).get("edits_per_minute")
            return Principal(token.client_id, token.subject or "", frozenset(token.scopes), limit)
        if self._anonymous is None:
            raise Forbidden("this request carries no token.", "Send 'Authorization: Bearer TOKEN'.")
        return self._anonymous

    async def edit(
        self,
        edits: Annotated[list[shapes.FactIn], Field(min_length=1, max_length=shapes.MOST_EDITS)],
        *,
        mode: shapes.Mode = "auto",
        reason: shapes.Reason = "",
        idempotency_key: shapes.Key = "",
        dry_run: Annotated[bool, Field(description="check and show what would happen; record nothing")] = False,
    ) -> Annotated[CallToolResult, shapes.EditOut]:
        """Record corrections."""
        facts = [fact.model_dump() for fact in edits]
        write = partial(self._service.edit, self.who(), facts, mode=mode, reason=reason, idempotency_key=idempotency_key, dry_run=dry_run)
        return _done(await _unstoppable(write))

    async def query(
        self,
        ctx: Ctx,
        question: shapes.Question,
        *,
        view: shapes.View = "edited",
        max_tokens: shapes.MaxTokens = 128,
        explain: shapes.Explain = False,
        via: shapes.Via = "auto",
        wait_seconds: shapes.Wait = 1.5,
    ) -> Annotated[CallToolResult, shapes.QueryOut]:
        """Ask the model."""
        asked = self._service.answering.query(
            self.who(), question, view=view, max_tokens=max_tokens, explain=explain, via=via, wait_seconds=wait_seconds
        )
        return _done(await _with_heartbeat(_Progress(ctx), asked, "the model answers"))

    async def verify(
        self,
        ctx: Ctx,
        edit_ids: shapes.VerifiedIds = [],  # noqa: B006  read only
        *,
        revision: shapes.AsOf = -1,
        release: shapes.Release = "",
        suite: shapes.Suite = "quick",
        probes: Annotated[list[shapes.ProbeIn], Field(max_length=shapes.MOST_PROBES, description="questions of your own")] = [],  # noqa: B006  read only
        wait_seconds: shapes.WaitForBoth = 1.5,
    ) -> Annotated[CallToolResult, shapes.VerifyOut]:
        """Measure corrections."""
        progress = _Progress(ctx)
        measured = self._service.verifying.verify(
            self.who(),
            edit_ids,
            revision=None if revision < 0 else revision,
            release=release,
            suite=suite,
            probes=[probe.model_dump() for probe in probes],
            wait_seconds=wait_seconds,
            heard=progress.heard,
        )
        return _done(await _with_heartbeat(progress, measured, "the model answers the probes"))

    async def list_edits(
        self, *, state: shapes.ListedState = "any", contains: shapes.Contains = "", limit: shapes.Limit = 20, cursor: shapes.Cursor = ""
    ) -> Annotated[CallToolResult, shapes.ListOut]:
        """List corrections."""
        return _done(await _read(partial(self._service.list_edits, self.who(), state=state, contains=contains, limit=limit, cursor=cursor)))

    async def history(
        self, *, edit_id: shapes.OneEdit = "", limit: shapes.Limit = 20, cursor: shapes.Cursor = ""
    ) -> Annotated[CallToolResult, shapes.HistoryOut]:
        """Show the log."""
        return _done(await _read(partial(self._service.history, self.who(), edit_id=edit_id, limit=limit, cursor=cursor)))

    async def rollback(
        self,
        *,
        edit_ids: shapes.SomeEditIds = [],  # noqa: B006  read only
        to_revision: shapes.Revision = -1,
        to: shapes.To = "base",
        reason: shapes.Reason = "",
    ) -> Annotated[CallToolResult, shapes.RollbackOut]:
        """Take corrections back."""
        revision = None if to_revision < 0 else to_revision
        write = partial(self._service.rollback, self.who(), edit_ids=edit_ids, to_revision=revision, to=to, reason=reason)
        return _done(await _unstoppable(write))

    async def promote(
        self,
        ctx: Ctx,
        edit_ids: shapes.PromotedIds,
        answer: Annotated[ElicitationResult[Confirmation], Resolve(confirmed)],
        *,
        method: shapes.Method = "auto",
        policy: shapes.PolicyIn = shapes.PolicyIn(),  # noqa: B008  read only
        confirm: shapes.Confirmed = False,  # noqa: ARG002  read by ``confirmed``
        reason: shapes.Reason = "",
        idempotency_key: shapes.Key = "",
        wait_seconds: shapes.WaitForEnd = 20.0,
    ) -> Annotated[CallToolResult, shapes.JobOut]:
        """Write corrections into the weights."""
        if not (isinstance(answer, AcceptedElicitation) and answer.data.ok):
            raise Declined("the user did not agree; nothing was begun.", "Leave the corrections in memory; they act there.")
        begun = self._service.promote(
            self.who(),
            edit_ids,
            method=method,
            policy=policy.given(),
            reason=reason,
            idempotency_key=idempotency_key,
            wait_seconds=wait_seconds,
            heard=_Progress(ctx).heard,
        )
        return _done(await begun)

    async def job_status(
        self, ctx: Ctx, job_id: shapes.JobId, *, wait_seconds: shapes.WaitForEnd = 20.0
    ) -> Annotated[CallToolResult, shapes.JobOut]:
        """See how a job stands."""
        asked = self._service.job_status(self.who(), job_id, wait_seconds=wait_seconds, heard=_Progress(ctx).heard)
        return _done(await asked)

    async def job_cancel(self, job_id: shapes.JobId) -> Annotated[CallToolResult, shapes.JobOut]:
        """Stop a job."""
        return _done(await _unstoppable(partial(self._service.job_cancel, self.who(), job_id)))

    async def one_job(self, job_id: str) -> dict[str, Any]:
        """Give one job."""
        return await self._service.job_status(self.who(), job_id)

    async def state(self) -> dict[str, Any]:
        """Say how the server stands."""
        self.who().require("read")
        return await _read(self._service.state)

    async def one_scorecard(self, name: str) -> dict[str, Any]:
        """Give one scorecard."""
        return await _read(partial(self._service.get_scorecard, self.who(), name))

    async def one_edit(self, edit_id: str) -> dict[str, Any]:
        """Give one edit."""
        return await _read(partial(self._service.get_edit, self.who(), edit_id))


class Server(MCPServer[Any]):
    """An MCP server whose failures all have one shape."""

    left_out: Collection[str] = ()  # tools that exist elsewhere, but not on a read-only server

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; whatever it raises becomes a result."""
        try:
            if name in self.left_out:
                raise shows_only()
            self._check_names(name, arguments)
            return await super().call_tool(name, arguments, context)
        except KeToolsError as error:
            return failed(error)
        except ToolError as error:
            return failed(_known(name, error))

    def _check_names(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that the tool does not have; the SDK would drop them unseen."""
        if (tool := self._tool_manager.get_tool(name)) is None:
            raise NotFound(f"there is no tool {name[:80]!r}.", "Call tools/list.")
        known = tool.parameters["properties"]
        if unknown := [_short(key) for key in arguments if key not in known]:
            raise InvalidInput(f"{name} has no argument {', '.join(unknown[:_MOST_PROBLEMS])}.", f"It has {', '.join(known)}.")


def failed(error: KeToolsError) -> CallToolResult:
    """Make the result of a failed call."""
    return CallToolResult(is_error=True, content=[TextContent(type="text", text=str(error))], _meta={ERROR_KEY: error.as_dict()})


def _done(result: Mapping[str, Any]) -> CallToolResult:
    # Some hosts show the model only one of the two, so both say all of it.
    ordered = {"summary": result["summary"], **result}
    text = json.dumps(ordered, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=ordered)


def _known(name: str, error: ToolError) -> KeToolsError:
    """Give the error of ours that explains what the SDK caught; what nobody foresaw goes to the log, not to the caller."""
    cause = error.__cause__
    if isinstance(cause, KeToolsError):
        return cause
    if isinstance(cause, ValidationError) and _is_about_arguments(error):
        return _invalid(cause)
    log_id = uuid.uuid4().hex[:8]
    log.error("tool %s failed, log id %s", name, log_id, exc_info=error)
    return KeToolsError("something broke inside ke-tools.", f"The server's log has it under {log_id}.", log_id=log_id)


def _is_about_arguments(error: ToolError) -> bool:
    # The SDK raises a plain ToolError for arguments; for a result that breaks its schema, a subclass that means "a crash".
    return type(error) is ToolError


def _invalid(error: ValidationError) -> InvalidInput:
    """Say what is wrong with the arguments, without repeating them: they may be megabytes."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    told = [f"{'.'.join(_short(part) for part in p['loc']) or 'arguments'}: {p['msg'][:200]}" for p in problems[:_MOST_PROBLEMS]]
    more = f" (and {len(problems) - _MOST_PROBLEMS} more)" if len(problems) > _MOST_PROBLEMS else ""
    return InvalidInput("; ".join(told) + more + ".", "See the tool's input schema.")


def _short(part: object) -> str:
    text = str(part)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004


def _tool(name: str, function: Callable[..., Any], prefix: str) -> Tool:
    annotations = _ANNOTATIONS[name]
    tool = Tool.from_function(
        function,
        name=prefix + name,
        title=annotations.title,
        description=_DESCRIPTIONS[name].format(p=prefix),
        annotations=annotations,
    )
    tool.parameters = {**shapes.flat(tool.parameters), "additionalProperties": False}
    if (schema := tool.fn_metadata.output_schema) is not None:
        tool.fn_metadata.output_schema = shapes.flat(schema)
    return tool


def _add_resources(server: MCPServer[Any], tools: Tools) -> None:
    @server.resource("ke://state", name="state", title="State of the server", mime_type="application/json")
    async def state() -> dict[str, Any]:
        """The model, whether it is loaded, the ledger's revision, where the endpoint listens."""
        return await _as_resource(tools.state())

    @server.resource("ke://edits/{edit_id}", name="edit", title="One correction", mime_type="application/json")
    async def one_edit(edit_id: str) -> dict[str, Any]:
        """A correction as it stands now, with its history and its newest scorecards."""
        return await _as_resource(tools.one_edit(edit_id))

    @server.resource("ke://scorecards/{sha256}", name="scorecard", title="One scorecard", mime_type="application/json")
    async def one_scorecard(sha256: str) -> dict[str, Any]:
        """All that a verification found: rates, questions, answers, costs."""
        return await _as_resource(tools.one_scorecard(sha256))

    @server.resource("ke://jobs/{job_id}", name="job", title="One job", mime_type="application/json")
    async def one_job(job_id: str) -> dict[str, Any]:
        """A job as it stands now."""
        return await _as_resource(tools.one_job(job_id))


async def _as_resource(reading: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    try:
        return await reading
    except NotFound as error:
        raise ResourceNotFoundError(str(error)) from error
    except KeToolsError as error:
        raise ResourceError(str(error)) from error


def _add_prompts(server: MCPServer[Any], service: Service, prefix: str) -> None:
    @server.prompt(title="Correct a fact")
    def correct_a_fact(correction: Annotated[str, Field(description="what the model must believe from now on, in your words")]) -> str:
        """See what the model says, correct it, verify, report."""
        return prompts.render("correct_a_fact", model=service.model_id, prefix=prefix, correction=correction)

    @server.prompt(title="Review and promote")
    def review_and_promote() -> str:
        """Look at what is corrected, verify it, and write what has held into the weights."""
        return prompts.render("review_and_promote", model=service.model_id, prefix=prefix)


class _Progress:
    """What the host of a call is told of its progress: whoever tells, each number is larger than the one before, as MCP wants it."""

    def __init__(self, ctx: Ctx) -> None:
        self._ctx = ctx
        self._last = 0.0

    async def tell(self, said: str, seconds: float = 0.0) -> None:
        """Say where it is."""
        self._last = max(seconds, self._last + 1e-3)
        await self._ctx.report_progress(self._last, None, said)

    async def heard(self, job: Any) -> None:
        """Pass on what a job tells."""
        where = f" {job.done}/{job.total}" if job.total else ""
        await self.tell(": ".join(part for part in (f"{job.stage or 'queued'}{where}", job.message) if part))


async def _read(call: Callable[[], T]) -> T:
    """Run a blocking call beside the event loop; whoever waits may leave."""
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)


async def _unstoppable(call: Callable[[], T]) -> T:
    """Run a blocking write to its end: a caller that leaves must not leave half of it, or none where it saw a beginning."""
    with anyio.CancelScope(shield=True):
        result = await anyio.to_thread.run_sync(call)
    return result  # noqa: RET504  type checkers hold that a cancel scope may swallow a return


async def _with_heartbeat(progress: _Progress, work: Awaitable[T], doing: str) -> T:
    """Await ``work`` and report progress meanwhile, for clients that would else take silence for death."""

    async def beat() -> None:
        seconds = 0.0
        while True:
            await anyio.sleep(HEARTBEAT_SECONDS)
            seconds += HEARTBEAT_SECONDS
            await progress.tell(f"{doing} ({seconds:.0f} s)", seconds)

    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(beat)
        try:
            result = await work
        except Exception as error:  # noqa: BLE001  raised again below: leaving the group with it would wrap it
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return result
