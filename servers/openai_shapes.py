"""Answers in the shapes of OpenAI's objects: completions and chat, whole and in pieces."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ke_tools.models.engine import Generation, Piece, TokenLogprob

_UNLIKELY: Final = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot say
_Json = dict[str, Any]


class Choice(Protocol):
    """One streamed choice."""

    @property
    def opening(self) -> _Json | None:
        """What goes before its first piece."""

    def render(self, piece: Piece) -> Iterator[_Json]:
        """Render a piece; the last one ends the choice."""


class Shape(Protocol):
    """One kind of answer."""

    prefix: str
    whole: str  # ``object`` of a finished answer
    streamed: str  # and of a part of one

    def choice(self, index: int, generation: Generation) -> _Json:
        """Render a finished choice."""

    def start(self, index: int) -> Choice:
        """Begin a streamed choice."""


class CompletionShape:
    """``text_completion``: the same object whole and streamed."""

    prefix = "cmpl"
    whole = "text_completion"
    streamed = "text_completion"

    def choice(self, index: int, generation: Generation) -> _Json:
        """Render a finished choice."""
        logprobs = None if generation.logprobs is None else _flat(generation.logprobs, 0)
        return {"index": index, "text": generation.text, "logprobs": logprobs, "finish_reason": generation.finish_reason}

    def start(self, index: int) -> Choice:
        """Begin a streamed choice."""
        return _CompletionStream(index)


class ChatShape:
    """``chat.completion`` and ``chat.completion.chunk``."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    streamed = "chat.completion.chunk"

    def choice(self, index: int, generation: Generation) -> _Json:
        """Render a finished choice."""
        message = {"role": "assistant", "content": generation.text, "refusal": None}
        logprobs = None if generation.logprobs is None else _nested(generation.logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": generation.finish_reason}

    def start(self, index: int) -> Choice:
        """Begin a streamed choice."""
        return _ChatStream(index)


@dataclass(slots=True)
class _CompletionStream:
    index: int
    opening: None = None
    _offset: int = field(default=0)

    def render(self, piece: Piece) -> Iterator[_Json]:
        if piece.text or piece.logprobs:
            yield self._part(piece.text, piece.logprobs, None)
        if piece.finished is not None:
            yield self._part("", (), piece.finished.finish_reason)

    def _part(self, text: str, tokens: Sequence[TokenLogprob], finish: str | None) -> _Json:
        logprobs = _flat(tokens, self._offset) if tokens else None
        self._offset += sum(len(token.text) for token in tokens)
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": finish}


@dataclass(slots=True)
class _ChatStream:
    index: int

    @property
    def opening(self) -> _Json:
        return self._part({"role": "assistant", "content": "", "refusal": None}, (), None)

    def render(self, piece: Piece) -> Iterator[_Json]:
        if piece.text or piece.logprobs:
            yield self._part({"content": piece.text}, piece.logprobs, None)
        if piece.finished is not None:
            yield self._part({}, (), piece.finished.finish_reason)

    def _part(self, delta: _Json, tokens: Sequence[TokenLogprob], finish: str | None) -> _Json:
        return {"index": self.index, "delta": delta, "logprobs": _nested(tokens) if tokens else None, "finish_reason": finish}


def _flat(tokens: Sequence[TokenLogprob], offset: int) -> _Json:
    """Four lists of one length; offsets count characters of the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: _finite(value) for text, value in (*token.top, (token.text, token.logprob))} for token in tokens],
        "text_offset": offsets,
    }


def _nested(tokens: Sequence[TokenLogprob]) -> _Json:
    return {
        "content": [
            _token(token.text, token.logprob) | {"top_logprobs": [_token(text, value) for text, value in token.top]} for token in tokens
        ],
        "refusal": None,
    }


def _token(text: str, logprob: float) -> _Json:
    whole = "\ufffd" not in text  # a part of a character has no bytes that its text would show
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}


def _finite(logprob: float) -> float:
    return max(logprob, _UNLIKELY)


def head_of(shape: Shape, model: str, *, stream: bool) -> _Json:
    """What stands before the choices of an answer."""
    return {
        "id": f"{shape.prefix}-{uuid.uuid4().hex}",
        "object": shape.streamed if stream else shape.whole,
        "created": int(time.time()),
        "model": model,
    }


def event(payload: Mapping[str, Any]) -> bytes:
    """Render a server-sent event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def usage_of(done: Sequence[Generation], n: int) -> dict[str, int]:
    """Count the tokens of ``n`` answers to each prompt."""
    prompt = sum(generation.prompt_tokens for generation in done[::n])  # a prompt's n answers read it once
    completion = sum(generation.completion_tokens for generation in done)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
