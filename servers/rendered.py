"""Answers that are finished before any of them is sent: words of our own as OpenAI's objects, and what another server's say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse, Response

from ke_tools.models.engine import Piece
from ke_tools.servers.openai_shapes import event, head_of, usage_of

if TYPE_CHECKING:
    from ke_tools.models.engine import Generation
    from ke_tools.servers.openai_shapes import Shape

__all__ = ["response", "strings_in", "texts_of"]

_NOT_SAID: Final = frozenset({"role", "finish_reason", "stop_reason", "id", "type", "logprobs"})  # of a choice, however deep


def response(
    made: Sequence[Generation], shape: Shape, *, model: str, n: int = 1, stream: bool, usage: bool, headers: Mapping[str, str]
) -> Response:
    """Render finished answers, whole or streamed.

    Args:
        made: one a prompt.
        shape: of the endpoint.
        model: its name.
        n: how often each is given.
        stream: whether in pieces.
        usage: whether a stream ends with the tokens that were used.
        headers: to send along.
    """
    answers = [one for one in made for _ in range(n)]
    head, used = head_of(shape, model, stream=stream), usage_of(answers, n)
    if not stream:
        choices = [shape.choice(index, one) for index, one in enumerate(answers)]
        return JSONResponse(head | {"choices": choices, "usage": used}, headers=dict(headers))
    parts = [event(head | {"choices": [choice]}) for index, one in enumerate(answers) for choice in _pieces(shape, index, one)]
    parts += [event(head | {"choices": [], "usage": used})] if usage else []
    return Response(b"".join([*parts, b"data: [DONE]\n\n"]), media_type="text/event-stream", headers=dict(headers))


def _pieces(shape: Shape, index: int, made: Generation) -> Iterator[dict[str, Any]]:
    choice = shape.start(index)
    if choice.opening is not None:
        yield choice.opening
    yield from choice.render(Piece(made.text, finished=made))


def texts_of(whole: bytes, *, is_stream: bool) -> list[str] | None:
    """All that each choice of an answer says: its text, its reasoning, and what it calls tools with; ``None`` where it cannot be read."""
    text = whole.decode("utf-8", "replace")
    lines = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")] if is_stream else [text]
    said: dict[int, list[str]] = defaultdict(list)
    for line in lines:
        if line in {"", "[DONE]"}:
            continue
        try:
            for choice in json.loads(line)["choices"]:
                said[choice.get("index", 0)] += strings_in(choice, but=_NOT_SAID)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    return ["".join(parts) for parts in said.values()]


def strings_in(value: Any, *, but: Collection[str] = ()) -> Iterator[str]:
    """Every text in what JSON holds, in its order, without the names of fields, and without the fields named."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            if name not in but:
                yield from strings_in(part, but=but)
    elif isinstance(value, list):
        for part in value:
            yield from strings_in(part, but=but)
