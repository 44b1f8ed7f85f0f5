"""A conversation at the terminal: each message is a command, or is answered piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from ke_tools.models.engine import Request

if TYPE_CHECKING:
    from types import TracebackType

    from ke_tools.servers.chatting import Chatting
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["Conversation"]


class Conversation:
    """Keeps the turns; use as a context manager."""

    def __init__(
        self,
        service: Service,
        who: Principal,
        chatting: Chatting | None,
        *,
        view: Literal["edited", "base"],
        max_tokens: int,
        patience: float,
    ) -> None:
        self._service = service
        self._who = who
        self._chatting = chatting
        self._view: Literal["edited", "base"] = view
        self._max_tokens = max_tokens
        self._patience = patience
        self._loop = asyncio.new_event_loop()
        self.messages: list[dict[str, str]] = []
        self.last: dict[str, Any] = {}  # how the last message was answered

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.close()

    def say(self, text: str) -> Iterator[str]:
        """Say something; gives the reply as it comes.

        Raises:
            KeToolsError: there is no answer; the message is not kept.
        """
        pieces = self._replied(text)
        said: list[str] = []
        try:
            while (piece := self._loop.run_until_complete(anext(pieces, None))) is not None:
                said.append(piece)
                yield piece
        finally:
            self._loop.run_until_complete(pieces.aclose())
        whole = "".join(said)
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": whole}]
        self.last = {"text": whole, **self.last}

    async def _replied(self, text: str) -> AsyncGenerator[str, None]:
        messages = [*self.messages, {"role": "user", "content": text}]
        said = await self._chatting.reply(self._who, messages) if self._chatting is not None else None
        if said is not None:
            self.last = {"route": "chat", "edits": [], "revision": self._service.revision}
            yield said
            return
        request = Request(messages=tuple(messages), max_tokens=self._max_tokens)
        routed, pieces = await self._service.answering.open_stream(self._who, request, view=self._view, wait_seconds=self._patience)
        self.last = {"route": routed.route, "edits": [hit.edit.id for hit in routed.hits], "revision": routed.decision.revision}
        try:
            async for piece in pieces:
                if piece.text:
                    yield piece.text
        finally:
            if (close := getattr(pieces, "aclose", None)) is not None:
                await close()
