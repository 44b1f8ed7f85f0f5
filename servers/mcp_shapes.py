"""What goes into the MCP tools and what comes out, as types; hosts and models read the schemas made of them.

Two rules hold for every schema: no references and no unions (several hosts reject a tool that has one, or the whole
session), and nothing is ever null: an empty text, 0, false or an empty list stands for "none".
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ke_tools.facts import LONGEST, MOST_WORDINGS

MOST_EDITS: Final = 50
MOST_VERIFIED: Final = 1000
MOST_PROBES: Final = 100
LONGEST_WAIT_SECONDS: Final = 25.0

# Arguments ------------------------------------------------------------------------------------------------------------

Mode = Annotated[
    Literal["auto", "replace", "add"],
    Field(description="whether an earlier edit of the same subject and relation is superseded; auto: if only one can hold; add: never"),
]
Reason = Annotated[str, Field(max_length=2000, description="why; kept in the history")]
Key = Annotated[str, Field(max_length=128, description="a call repeated under its key returns the first result")]
VerifiedIds = Annotated[
    list[str], Field(max_length=MOST_VERIFIED, description="edit ids, as edit and list_edits give them; none: all live")
]
AsOf = Annotated[int, Field(ge=-1, description="instead: what was live at this revision, as it was answered then. -1: not used")]
Release = Annotated[str, Field(max_length=100, description="instead: what this release carries, by its weights alone (rel_…)")]
PromotedIds = Annotated[list[str], Field(min_length=1, max_length=200, description="edits to write into the weights")]
Method = Annotated[Literal["auto", "memit", "grace"], Field(description="auto: weights, else a codebook, else memory")]
Confirmed = Annotated[bool, Field(description="true only after your user said yes to exactly these edits")]
JobId = Annotated[str, Field(min_length=1, max_length=100, description="as promote or verify gave it")]
WaitForEnd = Annotated[float, Field(ge=0, le=LONGEST_WAIT_SECONDS, description="seconds to wait for the end; the call answers anyway")]
To = Annotated[Literal["base", "memory"], Field(description="memory: only out of the weights; the memory goes on to act")]
SomeEditIds = Annotated[list[str], Field(max_length=100, description="edits to take back")]
Revision = Annotated[int, Field(ge=-1, description="or: bring back what was live at this revision; 0: nothing. -1: not used")]
Question = Annotated[str, Field(min_length=1, max_length=8000, description="asked as one chat message")]
View = Annotated[Literal["edited", "base", "both"], Field(description="with the edits, without them, or both to compare")]
MaxTokens = Annotated[int, Field(ge=1, le=1024, description="longest answer")]
Explain = Annotated[bool, Field(description="also say why edits were used or not")]
Via = Annotated[Literal["auto", "ike", "reader", "weights"], Field(description="how an edit reaches the model; leave at auto")]
Wait = Annotated[float, Field(ge=0, le=LONGEST_WAIT_SECONDS, description="seconds to wait while the model is still loading")]
WaitForBoth = Annotated[
    float, Field(ge=0, le=LONGEST_WAIT_SECONDS, description="seconds to wait for a model that is loading, and for the end of a job")
]
Suite = Annotated[Literal["quick", "full"], Field(description="quick: seconds; full: more probes and dimensions")]
ListedState = Annotated[Literal["any", "live", "proposed", "active", "promoted", "retired"], Field(description="live: active or promoted")]
Contains = Annotated[str, Field(max_length=400, description="text in subject, prompt or target; case does not matter")]
Limit = Annotated[int, Field(ge=1, le=100, description="page size")]
Cursor = Annotated[str, Field(max_length=400, description="next_cursor of the page before; empty: the first page")]
OneEdit = Annotated[str, Field(max_length=100, description="only this edit; empty: all")]

_Wording = Annotated[str, Field(max_length=LONGEST["prompt"])]
_Alias = Annotated[str, Field(max_length=LONGEST["subject"])]


class FactIn(BaseModel):
    """One correction."""

    model_config = ConfigDict(extra="forbid")

    statement: str = Field(
        default="",
        max_length=LONGEST["prompt"],
        description="a sentence for subject, prompt, target",
    )
    subject: str = Field(default="", max_length=LONGEST["subject"], description="what it is about, e.g. 'Australia'")
    prompt: str = Field(
        default="",
        max_length=LONGEST["prompt"],
        description="statement that the target completes ('The capital of Australia is') or question, with the subject",
    )
    target: str = Field(default="", max_length=LONGEST["target"], description="the answer from now on, e.g. 'Sydney'")
    forget: bool = Field(default=False, description="instead of a target: decline to answer from now on")
    old_target: str = Field(
        default="",
        max_length=LONGEST["old_target"],
        description="the answer believed live; E_CONFLICT if another edit is live; with forget: kept as a hash",
    )
    relation: str = Field(default="", max_length=LONGEST["relation"], description="name of the relation; empty: found from the prompt")
    paraphrases: list[_Wording] = Field(default=[], max_length=MOST_WORDINGS, description="other wordings of the prompt")
    aliases: list[_Alias] = Field(default=[], max_length=MOST_WORDINGS, description="other names of the subject")
    source: str = Field(default="", max_length=LONGEST["source"], description="where the fact comes from; kept, never opened")
    expires: str = Field(default="", max_length=40, description="until when, e.g. 2027-03-01 or 7d")
    ref: str = Field(default="", max_length=200, description="your own name for this edit; given back")

    @model_validator(mode="after")
    def _has_target_or_forgets(self) -> Self:
        if self.statement:
            if self.subject or self.prompt or self.target or self.forget:
                raise ValueError("give a statement, or subject, prompt and target")
            return self
        if not (self.subject and self.prompt):
            raise ValueError("give subject and prompt, or a statement")
        if self.forget == bool(self.target):
            raise ValueError("give a target, or forget=true and no target")
        return self


class ProbeIn(BaseModel):
    """A question of the caller's own."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=LONGEST["prompt"])
    expect: Literal["target", "unchanged"] = Field(description="target: the new answer; unchanged: as the unedited model answers")


# Results --------------------------------------------------------------------------------------------------------------


class _Result(BaseModel):
    summary: str = Field(description="what happened, in words")


class EditRow(BaseModel):
    """One edit."""

    edit_id: str
    ref: str
    subject: str
    prompt: str
    target: str
    forget: bool = False  # the target is a refusal
    relation: str
    state: Literal["proposed", "active", "promoted", "retired"]
    created_at: str
    revision: int
    superseded: list[str] = Field(description="edits that this one retired")
    alias_risky: bool = Field(description="the subject is likely to be meant without being named")
    warnings: list[str]


class EditOut(_Result):
    """What ``edit`` gives."""

    edits: list[EditRow]
    revision: int
    model: str
    url: str
    dry_run: bool


class UsedEdit(BaseModel):
    """An edit that an answer rests on."""

    edit_id: str
    score: float


class Answer(BaseModel):
    """One answer of the model."""

    view: Literal["edited", "base"]
    text: str
    route: str
    used_edits: list[UsedEdit]
    finish_reason: str
    reason: str


class Explanation(BaseModel):
    """Why edits were used or not; empty unless asked for."""

    zone: str = ""
    reason: str = ""
    stages: str = ""


class QueryOut(_Result):
    """What ``query`` gives."""

    answers: list[Answer]
    model: str
    revision: int
    truncated: bool
    explain: Explanation


class Rate(BaseModel):
    """A share of probes, with its standard error and bounds; all 0 where not measured."""

    measured: bool
    value: float
    stderr: float
    n: int
    low: float
    high: float


class _Rates(BaseModel):
    reliability: Rate
    generalisation: Rate
    locality_same_subject: Rate
    locality_other_subject: Rate
    bytes_kept: Rate


class Check(_Rates):
    """How one edit fares."""

    edit_id: str
    subject: str
    passed: bool
    worst_case: str


class Further(Rate):
    """A rate of all edits in a dimension that only the full suite measures."""

    dimension: str


class VerifyOut(_Result):
    """What ``verify`` gives."""

    suite: str
    passed: bool
    checks: list[Check]
    overall: _Rates
    worst_case: str
    further: list[Further] = Field(default=[], description="more dimensions, of the full suite")
    efficiency: str = ""
    scorecard_text: str
    scorecard: str = Field(default="", description="its hash: ke://scorecards/HASH has all questions and answers")
    revision: int
    release: str = ""
    model: str
    job_id: str = Field(default="", description="of a job; else all is measured")
    status: Literal["working", "completed", "failed", "cancelled"] = "completed"
    poll_after_ms: int = 0
    error_code: str = ""


class RollbackOut(_Result):
    """What ``rollback`` gives."""

    retired: list[EditRow]
    restored: list[EditRow]
    revision: int
    model: str
    release: str = Field(default="", description="what is live now; empty: nothing is in the weights")
    job_id: str = Field(default="", description="a job that promotes anew what else the old release carried")


class PolicyIn(BaseModel):
    """What the gate asks; -1: the default."""

    model_config = ConfigDict(extra="forbid")

    reliability: float = Field(default=-1.0, ge=-1, lt=1, description="least share of the facts' own questions")
    generalisation: float = Field(default=-1.0, ge=-1, lt=1, description="least share of other wordings")
    locality_same_subject: float = Field(default=-1.0, ge=-1, lt=1, description="least share of kept answers about the same subjects")
    locality_other_subject: float = Field(default=-1.0, ge=-1, lt=1, description="least share of kept answers about others")
    perplexity: float = Field(default=-1.0, ge=-1, description="most that plain text may become less likely, e.g. 1.02")

    memory_after_promotion: Literal["", "fallback", "off"] = Field(
        default="", description="off: leave the memory out where it is not needed"
    )

    def given(self) -> dict[str, Any]:
        """What is not left at its default."""
        return {name: value for name, value in self.model_dump().items() if value not in {-1.0, ""}}


class Climbed(BaseModel):
    """Where an edit of a promotion ended, and why; of a verification, an edit that did not pass."""

    edit_id: str
    rung: str = Field(description="memit: in the weights; grace: in a codebook; memory: where it was; empty: verified")
    reason: str


class JobOut(_Result):
    """A job as it stands."""

    job_id: str
    kind: str
    status: Literal["working", "completed", "failed", "cancelled"]
    stage: str
    progress: int
    total: int
    message: str
    poll_after_ms: int = Field(description="call job_status again after so long; 0: it has ended")
    release: str
    revision: int
    edits: list[Climbed]
    decisions: list[str] = Field(description="what the gate said of each candidate")
    scorecard: str = Field(description="a hash: see ke://scorecards/HASH")
    scorecard_text: str = ""
    error_code: str
    error_message: str


class ListOut(_Result):
    """What ``list_edits`` gives."""

    edits: list[EditRow]
    total: int
    next_cursor: str
    truncated: bool


class EventRow(BaseModel):
    """One entry of the history."""

    at: str
    revision: int
    actor: str
    action: str
    edit_ids: list[str]
    note: str


class HistoryOut(_Result):
    """What ``history`` gives."""

    events: list[EventRow]
    total: int
    next_cursor: str


# Schemas --------------------------------------------------------------------------------------------------------------


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """Write a schema without references and without the titles that pydantic makes up."""
    definitions = schema.get("$defs", {})

    def walk(node: Any, *, names: bool = False) -> Any:  # names: the keys are properties' names, not keywords
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node and not names:
            node = {**definitions[node["$ref"].rpartition("/")[2]], **{key: value for key, value in node.items() if key != "$ref"}}
        kept = node if names else {key: value for key, value in node.items() if key not in {"$defs", "title"}}
        return {key: walk(value, names=key == "properties" and not names) for key, value in kept.items()}

    flattened: dict[str, Any] = walk(schema)
    return flattened
