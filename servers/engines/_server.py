"""A server that speaks OpenAI's API, and what is asked of it over HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import httpx

from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, NotFound
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._aside import Aside
from ke_tools.servers.engines._circuit import Circuit
from ke_tools.servers.engines._direct import Direct
from ke_tools.servers.engines._watch import Hanging, Watch
from ke_tools.servers.engines._wire import body_of, generation_of, path_of, pieces_of

__all__ = ["IDLE_SECONDS", "Server", "address_of", "key_of", "limits"]

TIMEOUT: Final = httpx.Timeout(600.0, connect=5.0, write=60.0)  # seconds; a long answer's first byte may take minutes
_ASKING_SECONDS: Final = 10.0  # for what is answered without a generation
_MOST_CONNECTIONS: Final = 2048
IDLE_SECONDS: Final = 2.0  # that an idle connection is kept: less than the 5 after which uvicorn, by which vLLM answers, closes it
_HERE: Final = ("127.0.0.1", "localhost", "[::1]")  # no proxy of the environment leads back here
_VERSION: Final = re.compile(r"/v\d+[a-z0-9]*$")
_SHOWN: Final = 300
_ANSWERED: Final = ("/completions", "/tokenize", "/embeddings")  # ends of paths that are posted to for an answer


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


class Server:
    """One server. Thread safe.

    Attributes:
        is_watched: whether who waits for an answer is told when the server is found to hang; of use where one says what models it has
            also while it generates.
    """

    def __init__(self, url: str, *, key: str = "", timeout: httpx.Timeout = TIMEOUT, is_watched: bool = False) -> None:
        """Remember where it is; nothing is asked yet.

        Args:
            url: of the server, with or without ``/v1``.
            key: sent as bearer token; nobody else's is.
            timeout: of every request.
            is_watched: the attribute.

        Raises:
            InvalidInput: the address is none.
        """
        self.address = address_of(url)
        self.circuit = Circuit(f"the server at {self.address}")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._timeout = timeout
        self.is_watched = is_watched
        self._watch = Watch(self._is_there)
        self._client = self.new_client()  # of the loop aside
        self._aside = Aside("ke-ask", self._client.aclose)

    def card(self, model: str = "") -> Mapping[str, Any]:
        """What it tells of one of its models, which may be left unnamed where it serves one.

        Raises:
            ModelUnavailable: nobody answers, or the key is refused.
            InvalidInput: there are several models. NotFound: there is no such model.
        """
        return _chosen(self.cards(), model, self.address)

    def cards(self) -> list[Mapping[str, Any]]:
        """What the server lists as its models.

        Raises:
            ModelUnavailable: it does not answer, or not with a list.
        """
        answer = self._asked("GET", "/models", seconds=_ASKING_SECONDS)
        if answer.status_code != httpx.codes.OK:
            refuse(answer, self.address)
        try:
            return [card for card in answer.json()["data"] if isinstance(card, dict) and card.get("id")]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelUnavailable(
                f"{self.address}/models answers {answer.text[:_SHOWN]!r}, which is no list of models.", "Check --upstream."
            ) from error

    def ask(self, request: Request, model: str, prompt_tokens: int) -> Generation:
        """Have a model of it answer.

        Args:
            request: in a form that it takes.
            model: its name there.
            prompt_tokens: told where the server counts none.

        Raises:
            ModelUnavailable, InvalidInput: it does not answer, or refuses.
        """
        return generation_of(self.post(path_of(request), body_of(request, model)), request, prompt_tokens)

    def takes(self, request: Request, model: str) -> bool:
        """Whether it answers requests of this form.

        Raises:
            ModelUnavailable: it does not answer at all, or refuses the key.
        """
        answer = self._asked("POST", path_of(request), json=body_of(request, model))
        if answer.status_code in {401, 403, 429, 502, 503, 504}:
            refuse(answer, self.address)
        return answer.status_code == httpx.codes.OK

    def told(self, path: str) -> Mapping[str, Any] | None:
        """What there is to get at a path; ``None`` where there is nothing, or nobody answers."""
        try:
            answer = self._asked("GET", path, seconds=_ASKING_SECONDS)
            said = answer.json() if answer.status_code == httpx.codes.OK else None
        except (ModelUnavailable, ValueError):
            return None
        return said if isinstance(said, dict) else None

    def post(self, path: str, body: Mapping[str, Any], *, is_json: bool = True, seconds: float | None = None) -> Any:
        """Ask for something, and give the answer read, or the text where it ``is_json`` not; waits ``seconds`` where that is told.

        Raises:
            ModelUnavailable, InvalidInput: it does not answer, or refuses.
        """
        answer = self._asked("POST", path, seconds=seconds, json=body)
        if answer.status_code != httpx.codes.OK:
            refuse(answer, self.address)
        if not is_json:
            return answer.text
        try:
            return answer.json()
        except ValueError as error:
            raise ModelUnavailable(f"the server answers what is not JSON: {answer.text[:_SHOWN]!r}", "Check its address.") from error

    async def stream(self, request: Request, model: str, prompt_tokens: int) -> AsyncIterator[Piece]:
        """As :meth:`ask`, piece by piece."""
        self.circuit.check()
        body = body_of(request, model, stream=True)
        try:
            async with self.new_client() as client, aclosing(await self._open(client, self._post(client, request, body))) as answer:
                self.circuit.worked()
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    refuse(answer, self.address)
                async for piece in pieces_of(answer.aiter_lines(), request, prompt_tokens):
                    yield piece
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error

    async def send(
        self, client: httpx.AsyncClient, method: str, path: str, *, headers: Sequence[tuple[bytes, bytes]] = (), content: bytes = b""
    ) -> httpx.Response:
        """Pass something on; gives the answer with its body unread, whatever its status, for the caller to close.

        Args:
            client: one of :meth:`new_client`.
            method: of HTTP.
            path: with a slash in front; escaped.
            headers: their names in lower case; take the place of the client's.
            content: the body.

        Raises:
            ModelUnavailable: nobody answers, or nobody is asked as nobody answered just before.
        """
        self.circuit.check()
        try:
            url = httpx.URL(self.address + path) if "?" in path else _url(self.address + path)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"the path cannot be passed on: {error}.", "Shorten it.") from error
        given = {name for name, _ in headers}
        told = [*(pair for pair in client.headers.raw if pair[0].lower() not in given), *headers]
        patience = {"timeout": client.timeout.as_dict()}
        request = httpx.Request(method, url, headers=told, content=content, extensions=patience)  # what a client builds, in half the time
        try:
            answer = await self._open(client, request)
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error
        self.circuit.worked()
        return answer

    def close(self) -> None:
        """Let the connections go, and break off who waits."""
        self._watch.close()
        self._aside.close()

    def _post(self, client: httpx.AsyncClient, request: Request, body: Mapping[str, Any]) -> httpx.Request:
        return client.build_request("POST", self.address + path_of(request), json=body)

    def _asked(self, method: str, path: str, *, seconds: float | None = None, **content: Any) -> httpx.Response:
        self.circuit.check()
        patience = self._timeout if seconds is None else httpx.Timeout(seconds, connect=self._timeout.connect)
        request = self._client.build_request(method, self.address + path, timeout=patience, **content)
        try:
            answer = self._aside.run(self._read(request))
        except httpx.HTTPError as error:
            raise self.circuit.failed(_in_words(error)) from error
        except CancelledError as error:
            raise ModelUnavailable(f"{self.address} is asked no more.", "Ask again when ke-tools is back.") from error
        self.circuit.worked()
        return answer

    async def _read(self, request: httpx.Request) -> httpx.Response:
        async with aclosing(await self._open(self._client, request)) as answer:
            await answer.aread()
        return answer

    async def _open(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Send a request, and once more where :func:`_is_worth_repeating` says so."""
        timeout = request.extensions["timeout"]
        request.extensions["timeout"] = {**timeout, "read": None}
        send = partial(self._watch.send, client, request, timeout["read"], looks=self.is_watched)
        try:
            return await send()
        except httpx.TransportError as error:
            if not _is_worth_repeating(error, request):
                raise
            return await send()

    def _is_there(self) -> bool:
        try:
            self.cards()
        except KeToolsError:
            return not self.circuit.told  # an error is an answer too
        return True

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""
        here = Direct(limits())
        mounts = {f"{scheme}://{name}": here if scheme == "http" else None for scheme in ("http", "https") for name in _HERE}
        return _Client(headers=self._headers, timeout=self._timeout, limits=limits(), mounts=mounts)


@lru_cache(maxsize=64)
def _url(address: str) -> httpx.URL:
    """Read an address, kept for the next request; none with a query, which is its caller's."""
    return httpx.URL(address)


def _is_worth_repeating(error: httpx.TransportError, request: httpx.Request) -> bool:
    """Whether a request that got no byte of an answer may be sent once more.

    It may where no connection came about in time: it may be this process that was held up, not the server. And it may where the server
    closed the connection, if only an answer comes of it: vLLM under load closes an idle one also when it was just asked by it.
    """
    if isinstance(error, httpx.ConnectTimeout):
        return True
    was_closed = isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    return was_closed and (request.method == "GET" or request.url.path.endswith(_ANSWERED))


class _Client(httpx.AsyncClient):
    """A client without cookies: one that a server sets for one caller must not go with the next one's request."""

    @property
    def cookies(self) -> httpx.Cookies:
        """None, whatever comes."""
        return _NO_COOKIES

    @cookies.setter
    def cookies(self, _: object) -> None:
        """Take none."""


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Look at none, which would take longer than to refuse it."""


_NO_COOKIES: Final = _NoCookies()


def limits() -> httpx.Limits:
    """How many connections are held to a server, and how long."""
    return httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=256, keepalive_expiry=IDLE_SECONDS)


def _chosen(cards: Sequence[Mapping[str, Any]], model: str, address: str) -> Mapping[str, Any]:
    names = [str(card["id"]) for card in cards]
    listed = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")  # noqa: PLR2004
    if model:
        if model not in names:
            raise NotFound(f"the server at {address} has no model {model!r}.", f"It has: {listed or 'none'}.")
        return cards[names.index(model)]
    bases = [card for card in cards if not card.get("parent")]  # vLLM lists adapters with the model that they are of,
    is_one = len({str(card.get("root") or card["id"]) for card in bases}) == 1  # and a model under each of its names
    if not is_one:
        raise InvalidInput(f"the server at {address} has {len(bases)} models: {listed or 'none'}.", "Name one by --model.")
    return bases[0]


def is_same(cards: Sequence[Mapping[str, Any]], model: str, known: str) -> bool:
    """Whether a server answers by the model ``known`` under another name, too: one that it lists so, or any where it has no other model."""
    roots = {str(card["id"]): str(card.get("root") or card["id"]) for card in cards if not card.get("parent")}
    return roots[model] == roots.get(known) if model in roots else set(roots) == {known}


def refuse(answer: httpx.Response, address: str) -> NoReturn:
    """Turn a status into our terms: what the caller asked for wrongly is theirs, all else is the server's.

    Raises:
        InvalidInput, ModelUnavailable: always one of them.
    """
    said = " ".join(without_key(answer.content, answer.request).decode("utf-8", "replace").split())[:_SHOWN] or answer.reason_phrase
    if answer.status_code == httpx.codes.UNAUTHORIZED:  # what it says may quote a part of the key
        raise ModelUnavailable(
            f"the server at {address} refuses the key it was given.",
            "Give its own by --upstream-key-file or KE_UPSTREAM_KEY.",
        )
    if answer.status_code in {400, 413, 422}:
        raise InvalidInput(f"the server at {address} refuses the request ({answer.status_code}): {said}", "Correct it.")
    raise ModelUnavailable(f"the server at {address} answers {answer.status_code}: {said}", "See its log.")


def without_key(content: bytes, request: httpx.Request) -> bytes:
    """What a server says against a request, without the key that it was asked with: that is never the caller's."""
    key = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    return content.replace(key, b"[key]") if key else content


def _in_words(error: httpx.HTTPError) -> str:
    if isinstance(error, Hanging):
        return "it hangs"
    if isinstance(error, httpx.TimeoutException):
        return "it took too long" if not isinstance(error, httpx.ConnectTimeout) else "no connection came about in time"
    if isinstance(error, httpx.LocalProtocolError):  # its text may quote a header
        return type(error).__name__
    return f"{type(error).__name__}: {error}".rstrip(" :.")


def key_of(file: Path | None, environment: Mapping[str, str]) -> str:
    """The server's key: the file's one line, else ``KE_UPSTREAM_KEY``, else none.

    Raises:
        InvalidInput: the file cannot be read, or holds no key.
    """
    where = "KE_UPSTREAM_KEY" if file is None else f"the key file {file}"
    try:
        key = environment.get("KE_UPSTREAM_KEY", "").strip() if file is None else file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{where} cannot be read: {error}.", "Check --upstream-key-file.") from error
    if (file is not None and not key) or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidInput(f"{where} holds no key.", "Put the key in it, on one line.")
    return key
