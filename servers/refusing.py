"""Refusals in the place of a server's answer, and what such an answer says."""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from ke_tools.models.engine import Piece
from ke_tools.servers.openai import event, usage_of

if TYPE_CHECKING:
    from ke_tools.models.engine import Engine, Generation
    from ke_tools.servers.openai_shapes import Shape

__all__ = ["response", "texts_of"]


def response(raw: Mapping[str, Any], made: Sequence[Generation], shape: Shape, engine: Engine, headers: Mapping[str, str]) -> Response:
    """Render one answer a prompt, each as often as the request ``raw`` wants it, whole or streamed."""
    wanted, is_stream = raw.get("n"), raw.get("stream") is True
    n = wanted if isinstance(wanted, int) and wanted > 1 else 1
    answers = [one for one in made for _ in range(n)]
    head = {
        "id": f"{shape.prefix}-{uuid.uuid4().hex}",
        "object": shape.streamed if is_stream else shape.whole,
        "created": int(time.time()),
        "model": raw.get("model") or engine.model_id,
    }
    usage = usage_of(answers, n)
    if not is_stream:
        choices = [shape.choice(index, one) for index, one in enumerate(answers)]
        return JSONResponse(head | {"choices": choices, "usage": usage}, headers=dict(headers))
    options = raw.get("stream_options")
    tells_usage = isinstance(options, Mapping) and options.get("include_usage") is True
    parts = [event(head | {"choices": [choice]}) for index, one in enumerate(answers) for choice in _pieces(shape, index, one)]
    parts += [event(head | {"choices": [], "usage": usage})] if tells_usage else []
    return Response(b"".join([*parts, b"data: [DONE]\n\n"]), media_type="text/event-stream", headers=dict(headers))


def _pieces(shape: Shape, index: int, made: Generation) -> Iterator[dict[str, Any]]:
    choice = shape.start(index)
    if choice.opening is not None:
        yield choice.opening
    yield from choice.render(Piece(made.text, finished=made))


def texts_of(whole: bytes, *, is_stream: bool) -> list[str]:
    """All that each choice of an answer says: its text, its reasoning, and what it calls tools with.

    What is no answer of OpenAI's shape is one text, as it stands.
    """
    text = whole.decode("utf-8", "replace")
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")] if is_stream else [text]
    said: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        if line in {"", "[DONE]"}:
            continue
        try:
            for choice in json.loads(line)["choices"]:
                said[choice.get("index", 0)] += _strings(choice)
        except (ValueError, KeyError, TypeError, AttributeError):
            return [text]
    return ["".join(parts) for parts in said.values()] or [text]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a choice, in its order, whatever the field is called."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in {"role", "finish_reason", "stop_reason", "id", "type", "logprobs"}:
                yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
