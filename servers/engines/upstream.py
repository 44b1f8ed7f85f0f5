"""A model behind any server that speaks OpenAI's API: asked over HTTP, with none of its weights at hand.

Facts go into the context (IKE); nothing can be promoted. Such a server tells neither its tokens nor its template, so tokens are
estimated, and facts stand in the last user turn, which every template takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx

from ke_tools.errors import ModelUnavailable, Unsupported
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._server import TIMEOUT, Server, is_same

__all__ = ["UNKNOWN_LENGTH", "Upstream"]

AT_ONCE: Final = 16  # requests of one batch under way
UNKNOWN_LENGTH: Final = 1_000_000  # tokens, where the server tells none: it refuses what is too long, and the facts are left out
_BYTES_A_TOKEN: Final = 3
_TOKENS_A_TURN: Final = 8
_LENGTHS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
_WATCHED: Final = "vllm"  # says what models it has while it generates; of other servers nobody here knows
_CHAT: Final = Request(messages=({"role": "user", "content": "Hi"},), max_tokens=1)
_TEXT: Final = Request(prompt="Hi", max_tokens=1)


class Upstream:
    """An engine that asks a server. Thread safe."""

    def __init__(self, url: str, *, model: str = "", key: str = "", timeout: httpx.Timeout = TIMEOUT) -> None:
        """Connect.

        Args:
            url: of the server, with or without ``/v1``.
            model: which of its models; may be left out where it serves one.
            key: of the server.
            timeout: of every request.

        Raises:
            ModelUnavailable, InvalidInput, NotFound: as :class:`Server` and :meth:`Server.card`.
        """
        self._server = Server(url, key=key, timeout=timeout)
        self._pool = ThreadPoolExecutor(AT_ONCE, "ke-upstream")
        try:
            card = self._server.card(model)
            self._id, self._server.is_watched = str(card["id"]), card.get("owned_by") == _WATCHED
            self._chats, self._completes = self._server.takes(_CHAT, self._id), self._server.takes(_TEXT, self._id)
        except BaseException:
            self.close()
            raise
        if not self._chats and not self._completes:
            self.close()
            raise ModelUnavailable(
                f"{self._id!r} at {self.address} answers neither /chat/completions nor /completions.", "Check --upstream and --model."
            )
        self._length = next((int(card[name]) for name in _LENGTHS if isinstance(card.get(name), int)), UNKNOWN_LENGTH)
        told = f"{self.address}\n{self._id}\n{card.get('root', '')}"
        self._fingerprint = f"upstream:{hashlib.sha256(told.encode()).hexdigest()}"

    @property
    def address(self) -> str:
        """Of the server."""
        return self._server.address

    @property
    def model_id(self) -> str:
        """As the server names it."""
        return self._id

    @property
    def fingerprint(self) -> str:
        """A hash over address and name: what weights lie behind these, nobody here can say."""
        return self._fingerprint

    @property
    def context_length(self) -> int:
        """As the server tells, else very large."""
        return self._length

    @property
    def adapters(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def chat_roles(self) -> frozenset[str]:
        """Those that any template takes before the last user turn."""
        return frozenset({"user", "assistant"}) if self._chats else frozenset()

    def load_adapter(self, name: str, folder: Path) -> NoReturn:  # noqa: ARG002  as engines have it
        """Refuse.

        Raises:
            Unsupported: always.
        """
        raise Unsupported(
            f"{name} is in no answer: the server at {self.address} is asked over its API, and takes no adapter from here.",
            "Serve the model with --engine hf for promoted edits to act by its weights.",
        )

    def count_tokens(self, request: Request) -> int:
        """Estimate, rather too many than too few for most languages."""
        if request.prompt is not None:
            return _estimate(request.prompt)
        return sum(_TOKENS_A_TURN + sum(_estimate(text) for text in _texts(turn)) for turn in request.messages or ())

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Ask for all, some at a time.

        Raises:
            ModelUnavailable, InvalidInput: of the first that fails.
        """
        return list(self._pool.map(self._whole, requests))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Ask, and give the pieces as they come.

        Raises:
            ModelUnavailable, InvalidInput: as :meth:`generate`.
        """
        async for piece in self._server.stream(self._posed(request), self._id, self.count_tokens(request)):
            yield piece

    def served_as(self, adapter: str) -> str:  # noqa: ARG002  as engines that pass on have it
        """The name that the server knows the model by."""
        return self._id

    def is_adapter(self, model: str) -> bool:  # noqa: ARG002  as engines that pass on have it
        """Whether a name is that of an adapter of the user's own on the model; here nobody can say."""
        return False

    def is_same(self, model: str) -> bool:
        """See :class:`~ke_tools.servers.engines.remote.Remote`."""
        return is_same(self._server.cards(), model, self._id)

    def is_ours(self, model: str) -> bool:  # noqa: ARG002  as engines that pass on have it
        """Whether a name is one that only we may ask for; none is."""
        return False

    async def send(self, client: httpx.AsyncClient, method: str, path: str, *, adapter: str = "", **content: Any) -> httpx.Response:  # noqa: ARG002
        """See :class:`~ke_tools.servers.engines.remote.Remote`."""
        return await self._server.send(client, method, path, **content)

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""
        return self._server.new_client()

    def cards(self) -> list[Mapping[str, Any]]:
        """See :meth:`Server.cards`."""
        return self._server.cards()

    def close(self) -> None:
        """Let the connections go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._server.close()

    def _posed(self, request: Request) -> Request:
        """What is asked for in a form that the server takes: a text to be completed as a chat turn, where it completes none.

        Raises:
            Unsupported: it chats with nobody, or an adapter is named.
        """
        if request.adapter:
            raise Unsupported(f"the server at {self.address} has no adapter {request.adapter!r} of ours.", "Leave it out.")
        if request.messages is not None and not self._chats:
            raise Unsupported(f"{self._id} completes texts, and answers no conversations.", "Use /v1/completions.")
        if request.prompt is not None and not self._completes:
            return replace(request, prompt=None, messages=({"role": "user", "content": request.prompt},))
        return request

    def _whole(self, request: Request) -> Generation:
        return self._server.ask(self._posed(request), self._id, self.count_tokens(request))


def _estimate(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN + 1


def _texts(turn: Mapping[str, Any]) -> list[str]:
    content = turn.get("content")
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
