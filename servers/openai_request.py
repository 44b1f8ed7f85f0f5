"""What a client may ask of ``/v1/completions`` and ``/v1/chat/completions``, checked.

A field is honoured, or neutral where it stands (``presence_penalty: 0``), or a label without effect on an answer
(``user``), or refused by name; none is ignored. ``null`` is the same as leaving a field out.

Departures from OpenAI: ``temperature`` is 0 (greedy) unless given, so that answers can be compared; a chat answer is at most
:data:`CHAT_TOKENS` tokens unless ``max_tokens`` says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from ke_tools.errors import InvalidInput, KeToolsError, Unsupported
from ke_tools.models.engine import Request

MOST_CHOICES: Final = 128  # prompts times n
COMPLETION_TOKENS: Final = 16  # OpenAI's default for /v1/completions
CHAT_TOKENS: Final = 1024
MOST_MESSAGES: Final = 2048
_SHOWN: Final = 60

_LABELS: Final = {"user": str, "safety_identifier": str, "prompt_cache_key": str, "metadata": dict}
_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
}
_MESSAGE_NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {"tool_calls": ([],), "refusal": ("",)}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _Body(_Strict):
    model: str
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: list[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default=[], max_length=16)
    stream: bool = False
    stream_options: _StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class _Completion(_Body):
    prompt: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=MOST_CHOICES)
    logprobs: int | None = Field(None, ge=0, le=20)

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    tool_call_id: str = ""  # names which call a tool's result answers; a template that wants it reads it


class _Chat(_Body):
    messages: list[_Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What was asked for: ``n`` answers to each of ``requests``.

    ``max_tokens`` is ``None`` where the caller left it open; the requests carry :data:`CHAT_TOKENS` or
    :data:`COMPLETION_TOKENS` then.
    """

    model: str
    requests: tuple[Request, ...]
    n: int
    max_tokens: int | None
    stream: bool
    include_usage: bool


def parse_json(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInput: it is none (no number of ours is NaN, no text half a surrogate pair).
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidInput(f"the body is not JSON: {error}.", "Send one JSON object.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body is a JSON {type(value).__name__}.", "Send one JSON object.")
    return value


def read_completion(raw: Mapping[str, Any]) -> Ask:
    """Read the body of ``/v1/completions``.

    Raises:
        InvalidInput, Unsupported: naming the field; ``data["param"]`` is its path.
    """
    fields = _without_neutral(raw)
    _refuse_token_ids(fields.get("prompt"))
    body = _validated(_Completion, fields)
    return _ask(body, [{"prompt": prompt} for prompt in body.prompt], body.max_tokens, COMPLETION_TOKENS, body.logprobs)


def read_chat(raw: Mapping[str, Any]) -> Ask:
    """Read the body of ``/v1/chat/completions``; ``developer`` messages become ``system`` ones.

    Raises:
        InvalidInput, Unsupported: naming the field; ``data["param"]`` is its path.
    """
    fields = _without_neutral(raw)
    if isinstance(fields.get("messages"), list):
        fields["messages"] = [_plain(message, f"messages[{at}]") for at, message in enumerate(fields["messages"])]
    body = _validated(_Chat, fields)
    if body.top_logprobs is not None and not body.logprobs:
        raise _invalid("top_logprobs", "is given without logprobs", "Set logprobs to true.")
    limits = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(limits) > 1:
        raise _invalid("max_tokens", f"is {body.max_tokens}, but max_completion_tokens is {body.max_completion_tokens}", "Give one.")
    messages = tuple(_as_message(message) for message in body.messages)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _ask(body, [{"messages": messages}], limits.pop() if limits else None, CHAT_TOKENS, logprobs)


def _ask(body: _Body, asked: list[dict[str, Any]], max_tokens: int | None, default_tokens: int, logprobs: int | None) -> Ask:
    if len(asked) * body.n > MOST_CHOICES:
        raise _invalid("n", f"asks for {len(asked)} x {body.n} answers; at most {MOST_CHOICES} are given at once", "Ask for fewer.")
    if body.stream_options is not None and not body.stream:
        raise _invalid("stream_options", "is given without stream", "Set stream to true.")
    requests = tuple(
        Request(
            **what,
            max_tokens=max_tokens or default_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=body.seed,
            stop=tuple(body.stop),
            logprobs=logprobs,
        )
        for what in asked
    )
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return Ask(model=body.model, requests=requests, n=body.n, max_tokens=max_tokens, stream=body.stream, include_usage=include_usage)


def _as_message(message: _Message) -> dict[str, str]:
    role = "system" if message.role == "developer" else message.role
    plain = {"role": role, "content": message.content}
    return plain | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})


def _without_neutral(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Drop nulls, labels and neutral values; refuse a field that asks for something this engine does not do."""
    fields = {name: value for name, value in raw.items() if value is not None}
    for name, kind in _LABELS.items():
        if name in fields and not isinstance(fields.pop(name), kind):
            raise _invalid(name, f"is not a {'text' if kind is str else 'JSON object'}", "Correct it or leave it out.")
    kept = {name: value for name, value in fields.items() if not _is_neutral(name, value, _NEUTRAL)}
    known = {*_Completion.model_fields, *_Chat.model_fields}
    _refuse([name for name in kept if name not in known])
    return kept


def _plain(message: object, where: str) -> object:
    """Join a message's text parts to one text, by line breaks; refuse parts that are not text."""
    if not isinstance(message, Mapping):
        return message
    given = {name: value for name, value in message.items() if value is not None}
    fields = {name: value for name, value in given.items() if not _is_neutral(name, value, _MESSAGE_NEUTRAL)}
    _refuse([f"{where}.{name}" for name in fields if name not in _Message.model_fields])
    if isinstance(fields.get("content"), list):
        fields["content"] = "\n".join(_text_of(part, f"{where}.content[{at}]") for at, part in enumerate(fields["content"]))
    return fields


def _text_of(part: object, where: str) -> str:
    if not isinstance(part, Mapping):
        raise _invalid(where, f"is {_show(part)}", 'Write {"type": "text", "text": …}.')
    if part.get("type") != "text":
        raise Unsupported(f"{where} is of type {_show(part.get('type'))}; this engine reads text only.", "Leave it out.", param=where)
    _refuse([f"{where}.{name}" for name in part if name not in {"type", "text"}])
    if not isinstance(part.get("text"), str):
        raise _invalid(f"{where}.text", f"is {_show(part.get('text'))}", "Write a text.")
    return str(part["text"])


def _refuse_token_ids(prompt: object) -> None:
    items = prompt if isinstance(prompt, list) else []
    if items and all(isinstance(item, int) or (isinstance(item, list) and item) for item in items):
        raise Unsupported("'prompt' holds token ids; this engine reads text.", "Send the text.", param="prompt")


def _refuse(names: list[str]) -> None:
    if names:
        listed = ", ".join(f"'{name[:_SHOWN]}'" for name in sorted(names)[:8])
        raise Unsupported(f"this engine cannot honour {listed}.", "Leave it out; nothing is ignored here.", param=min(names)[:_SHOWN])


def _is_neutral(name: str, value: object, table: Mapping[str, tuple[object, ...]]) -> bool:
    return any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in table.get(name, ()))


_M = TypeVar("_M", bound=BaseModel)


def _validated(kind: type[_M], fields: Mapping[str, Any]) -> _M:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _first(error) from None


def _first(error: ValidationError) -> KeToolsError:
    """Turn pydantic's first complaint into ours; the others would mostly repeat it."""
    first = error.errors(include_url=False)[0]
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"]).lstrip(".")
    if first["type"] == "extra_forbidden":
        return Unsupported(f"this engine cannot honour '{where}'.", "Leave it out; nothing is ignored here.", param=where)
    if first["type"] == "missing":
        return _invalid(where, "is missing", "Give it.")
    return _invalid(where, f"is {_show(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}", "Correct it.")


def _invalid(where: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput(f"'{where}' {what}.", hint, param=where)


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=True, default=repr)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
