"""OpenAI's API as a client speaks it: a :class:`~ke_tools.models.engine.Request` as a body, an answer as a generation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

from ke_tools.errors import ModelUnavailable
from ke_tools.models.engine import FinishReason, Generation, Piece, Request, TokenLogprob

__all__ = ["body_of", "generation_of", "path_of", "pieces_of", "said_in"]

_DONE: Final = "[DONE]"
_SHOWN: Final = 200
_Json = Mapping[str, Any]


def path_of(request: Request) -> str:
    """Where it is sent, below ``/v1``."""
    return "/chat/completions" if request.messages is not None else "/completions"


def body_of(request: Request, model: str, *, stream: bool = False) -> dict[str, Any]:
    """What is sent; fields with their default values are left out, so that servers which know few of them are content."""
    body: dict[str, Any] = {"model": model, "max_tokens": request.max_tokens, "temperature": request.temperature}
    if request.messages is not None:
        body["messages"] = list(request.messages)
    else:
        body["prompt"] = request.prompt
    if request.top_p != 1.0:
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        body |= {"logprobs": request.logprobs} if request.messages is None else {"logprobs": True, "top_logprobs": request.logprobs}
    return body | ({"stream": True} if stream else {})


def generation_of(answer: Any, request: Request, prompt_tokens: int) -> Generation:
    """Read a whole answer; ``prompt_tokens`` is told where the server counts none.

    Raises:
        ModelUnavailable: it is not of OpenAI's shape.
    """
    try:
        choice, usage = answer["choices"][0], answer.get("usage") or {}
        text = said_in(choice)
        return Generation(
            text,
            _finish(choice.get("finish_reason")),
            int(usage.get("prompt_tokens", prompt_tokens)),
            int(usage.get("completion_tokens", max(1, len(text) // 4))),
            _logprobs(choice.get("logprobs"), request),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(f"the server's answer is not of OpenAI's shape: {str(answer)[:_SHOWN]}", "Check --upstream.") from error


async def pieces_of(lines: AsyncIterator[str], request: Request, prompt_tokens: int) -> AsyncIterator[Piece]:
    """Read a streamed answer.

    Raises:
        ModelUnavailable: the server broke off, or says an error.
    """
    texts: list[str] = []
    tokens: list[TokenLogprob] = []
    finish: FinishReason | None = None
    async for chunk in _events(lines):
        for choice in chunk.get("choices") or ():
            if text := said_in(choice):
                part = _logprobs(choice.get("logprobs"), request) or ()
                texts.append(text)
                tokens += part
                yield Piece(text, part)
            finish = _finish(choice["finish_reason"]) if choice.get("finish_reason") else finish
    if finish is None:
        raise ModelUnavailable("the server stopped in the middle of the answer.", "Ask again.")
    logprobs = None if request.logprobs is None else tuple(tokens)
    yield Piece("", finished=Generation("".join(texts), finish, prompt_tokens, len(texts), logprobs))


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[_Json]:
    async for line in lines:
        if not line.startswith("data:") or (data := line.removeprefix("data:").strip()) in {"", _DONE}:
            continue
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ModelUnavailable(f"the server streams what is not JSON: {data[:_SHOWN]}", "Check --upstream.") from error
        if not isinstance(event, Mapping) or event.get("error"):
            raise ModelUnavailable(f"the server says: {data[:_SHOWN]}", "See its log.")
        yield event


def said_in(choice: _Json) -> str:
    """The words of a choice, whole or streamed, of a chat or a completion."""
    said = choice.get("message") or choice.get("delta")
    return str((choice.get("text") if said is None else said.get("content")) or "")


def _finish(reason: Any) -> FinishReason:
    return "length" if reason == "length" else "stop"


def _logprobs(given: Any, request: Request) -> tuple[TokenLogprob, ...] | None:
    if request.logprobs is None or not given:
        return None
    return tuple(_nested(given.get("content") or ())) if request.messages is not None else tuple(_flat(given))


def _nested(tokens: Sequence[_Json]) -> Iterator[TokenLogprob]:
    for token in tokens:
        top = tuple((str(one["token"]), float(one["logprob"])) for one in token.get("top_logprobs") or ())
        yield TokenLogprob(str(token["token"]), float(token["logprob"]), top)


def _flat(given: _Json) -> Iterator[TokenLogprob]:
    tops = given.get("top_logprobs") or [{}] * len(given["tokens"])
    for text, logprob, top in zip(given["tokens"], given["token_logprobs"], tops, strict=True):
        yield TokenLogprob(str(text), float(logprob or 0.0), tuple((str(name), float(value)) for name, value in (top or {}).items()))
