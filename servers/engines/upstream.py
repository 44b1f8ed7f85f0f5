"""A model behind any server that speaks OpenAI's API: asked over HTTP, with none of its weights at hand.

Facts go into the context (IKE); nothing can be promoted. Such a server tells neither its tokens nor its template, so tokens are
estimated, and facts stand in the last user turn, which every template takes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import httpx

from ke_tools.errors import InvalidInput, ModelUnavailable, NotFound, Unsupported
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._circuit import Circuit
from ke_tools.servers.engines._wire import body_of, generation_of, path_of, pieces_of

__all__ = ["UNKNOWN_LENGTH", "Upstream", "address_of", "key_of"]

TIMEOUT: Final = httpx.Timeout(600.0, connect=5.0, write=60.0)  # seconds; a long answer's first byte may take minutes
AT_ONCE: Final = 16  # requests of one batch under way
_MOST_CONNECTIONS: Final = 2048
UNKNOWN_LENGTH: Final = 1_000_000  # tokens, where the server tells none: it refuses what is too long, and the facts are left out
_BYTES_A_TOKEN: Final = 3
_TOKENS_A_TURN: Final = 8
_VERSION: Final = re.compile(r"/v\d+[a-z0-9]*$")
_LENGTHS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
_SHOWN: Final = 300


def address_of(url: str) -> str:
    """The address below which the API lies, without a slash at the end: ``http://host:8000`` becomes ``http://host:8000/v1``.

    Raises:
        InvalidInput: it is no http address, or carries a name or password.
    """
    try:
        parts = urlsplit(url.strip())
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_right = urlsplit(""), False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_right or parts.query or parts.fragment:
        raise InvalidInput(f"{url[:_SHOWN]!r} is not the address of a server.", "Give e.g. http://127.0.0.1:8000.")
    if parts.username or parts.password:
        raise InvalidInput("the address of the server carries a key.", "Put it in a file and give --upstream-key-file.")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}" + ("" if _VERSION.search(path) else "/v1")


class Upstream:
    """An engine that asks a server. Thread safe."""

    def __init__(self, url: str, *, model: str = "", key: str = "", timeout: httpx.Timeout = TIMEOUT) -> None:
        """Connect.

        Args:
            url: of the server, with or without ``/v1``.
            model: which of its models; may be left out where it serves one.
            key: sent as bearer token; nobody else's is.
            timeout: of every request.

        Raises:
            ModelUnavailable: nobody answers, or the key is refused.
            InvalidInput: the address is none, or there are several models. NotFound: there is no such model.
        """
        self.address = address_of(url)
        self.circuit = Circuit(f"the server at {self.address}")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        self._client = httpx.Client(headers=self._headers, timeout=timeout, limits=_limits())
        self._pool = ThreadPoolExecutor(AT_ONCE, "ke-upstream")
        try:
            self._meet(model)
        except BaseException:
            self.close()
            raise

    def _meet(self, model: str) -> None:
        """Find out what the server has and takes."""
        card = _chosen(self.cards(), model, self.address)
        self._id = str(card["id"])
        self._length = next((int(card[name]) for name in _LENGTHS if isinstance(card.get(name), int)), UNKNOWN_LENGTH)
        told = f"{self.address}\n{self._id}\n{card.get('root', '')}"
        self._fingerprint = f"upstream:{hashlib.sha256(told.encode()).hexdigest()}"
        self._chats = self._takes(Request(messages=({"role": "user", "content": "Hi"},), max_tokens=1))
        self._completes = self._takes(Request(prompt="Hi", max_tokens=1))
        if not self._chats and not self._completes:
            raise ModelUnavailable(
                f"{self._id!r} at {self.address} answers neither /chat/completions nor /completions.", "Check --upstream and --model."
            )

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
        asked = self._posed(request)
        self.circuit.check()
        body = body_of(asked, self._id, stream=True)
        try:
            async with self.new_client() as client, client.stream("POST", self.address + path_of(asked), json=body) as answer:
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    _refuse(answer, self.address)
                async for piece in pieces_of(answer.aiter_lines(), asked, self.count_tokens(request)):
                    yield piece
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error
        self.circuit.worked()

    async def send(self, client: httpx.AsyncClient, method: str, path: str, **content: Any) -> httpx.Response:
        """Pass something on; gives the answer with its body unread, whatever its status, for the caller to close.

        Args:
            client: one of :meth:`new_client`.
            method: of HTTP.
            path: with a slash in front; escaped.
            content: as :meth:`httpx.AsyncClient.build_request` takes it.

        Raises:
            ModelUnavailable: nobody answers, or nobody is asked as nobody answered just before.
        """
        self.circuit.check()
        try:
            answer = await client.send(client.build_request(method, self.address + path, **content), stream=True)
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error
        self.circuit.worked()
        return answer

    def cards(self) -> list[Mapping[str, Any]]:
        """What the server lists as its models.

        Raises:
            ModelUnavailable: it does not answer, or not with a list.
        """
        answer = self._asked("GET", "/models")
        if answer.status_code != httpx.codes.OK:
            _refuse(answer, self.address)
        try:
            return [card for card in answer.json()["data"] if isinstance(card, dict) and card.get("id")]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelUnavailable(
                f"{self.address}/models answers {answer.text[:_SHOWN]!r}, which is no list of models.", "Check --upstream."
            ) from error

    def close(self) -> None:
        """Let the connections go."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

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
            return Request(
                messages=({"role": "user", "content": request.prompt},),
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop=request.stop,
                logprobs=request.logprobs,
            )
        return request

    def _whole(self, request: Request) -> Generation:
        asked = self._posed(request)
        answer = self._asked("POST", path_of(asked), json=body_of(asked, self._id))
        if answer.status_code != httpx.codes.OK:
            _refuse(answer, self.address)
        return generation_of(_json(answer), asked, self.count_tokens(request))

    def _takes(self, request: Request) -> bool:
        """Whether the server answers requests of this form.

        Raises:
            ModelUnavailable: it does not answer at all, or refuses the key.
        """
        answer = self._asked("POST", path_of(request), json=body_of(request, self._id))
        if answer.status_code in {401, 403, 429, 502, 503, 504}:
            _refuse(answer, self.address)
        return answer.status_code == httpx.codes.OK

    def _asked(self, method: str, path: str, **content: Any) -> httpx.Response:
        self.circuit.check()
        try:
            answer = self._client.request(method, self.address + path, **content)
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error
        self.circuit.worked()
        return answer

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""
        return httpx.AsyncClient(headers=self._headers, timeout=self._timeout, limits=_limits())


def _limits() -> httpx.Limits:
    return httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=256)


def _chosen(cards: Sequence[Mapping[str, Any]], model: str, address: str) -> Mapping[str, Any]:
    names = [str(card["id"]) for card in cards]
    listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")  # noqa: PLR2004
    if model:
        if model not in names:
            raise NotFound(f"the server at {address} has no model {model!r}.", f"It has: {listed or 'none'}.")
        return cards[names.index(model)]
    bases = [card for card in cards if not card.get("parent")]  # vLLM lists adapters with the model that they are of
    if len(bases) != 1:
        raise InvalidInput(f"the server at {address} has {len(bases)} models: {listed or 'none'}.", "Name one by --model.")
    return bases[0]


def _refuse(answer: httpx.Response, address: str) -> NoReturn:
    """Turn a status into our terms: what the caller asked for wrongly is theirs, all else is the server's.

    Raises:
        InvalidInput, ModelUnavailable: always one of them.
    """
    said = " ".join(answer.text.split())[:_SHOWN] or answer.reason_phrase
    if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise ModelUnavailable(
            f"the server at {address} refuses the key it was given ({answer.status_code}): {said}",
            "Give its own by --upstream-key-file or KE_UPSTREAM_KEY.",
        )
    if answer.status_code in {400, 413, 422}:
        raise InvalidInput(f"the server at {address} refuses the request ({answer.status_code}): {said}", "Correct it.")
    raise ModelUnavailable(f"the server at {address} answers {answer.status_code}: {said}", "See its log.")


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise ModelUnavailable(f"the server answers what is not JSON: {answer.text[:_SHOWN]!r}", "Check --upstream.") from error


def _in_words(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it took too long" if not isinstance(error, httpx.ConnectTimeout) else "no connection came about in time"
    return f"{type(error).__name__}: {error}".rstrip(" :.") or "unknown"


def _estimate(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass")) // _BYTES_A_TOKEN + 1


def _texts(turn: Mapping[str, Any]) -> list[str]:
    content = turn.get("content")
    if isinstance(content, str):
        return [content]
    return [str(part.get("text", "")) for part in content or () if isinstance(part, Mapping)]


def key_of(file: Path | None, environment: Mapping[str, str]) -> str:
    """The server's key: the file's one line, else ``KE_UPSTREAM_KEY``, else none.

    Raises:
        InvalidInput: the file cannot be read, or holds no key.
    """
    if file is None:
        return environment.get("KE_UPSTREAM_KEY", "").strip()
    try:
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the key file {file} cannot be read: {error}.", "Check --upstream-key-file.") from error
    if not key or not key.isascii() or any(ch.isspace() for ch in key):
        raise InvalidInput(f"the key file {file} holds no key.", "Put the key in it, on one line.")
    return key
