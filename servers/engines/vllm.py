"""A model that vLLM serves, in one server or several: releases are loaded into each and taken out again, without a restart.

What a tenant's release adds, alone and together with the reader, is written as a LoRA adapter under a name that follows from its content
(:mod:`ke_tools.servers.engines._served`), never changed in place: vLLM's prefix cache knows adapters by name and path. It is loaded into
every server, asked for there, and only then used; the base model's own name answers as ever. A server that was away gets no traffic
before it has all that is wanted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import httpx

from ke_tools import releases
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, Unsupported
from ke_tools.memory.router import READER
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._probing import TOO_HIGH, Scores, asked_about, codebooks, forced, furthest, load, noise_of, tokens
from ke_tools.servers.engines._served import NAME, Served, by_module, serve
from ke_tools.servers.engines._server import TIMEOUT, Server
from ke_tools.servers.engines._template import Template

__all__ = ["VLLM"]

log = logging.getLogger(__name__)

AT_ONCE: Final = 64  # requests of one batch under way: vLLM batches them itself
_PATIENCE_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 1.0  # until a server that was away is looked at again
_GENERATED: Final = 4  # tokens
_TEXT: Final = "The capital of Australia is Canberra; 12,345 + 678 = ? Ünïcödé."
_T = TypeVar("_T")


class Own(Protocol):
    """Who runs a server of our own (:class:`~ke_tools.servers.engines._supervised.Supervised`)."""

    def error(self) -> ModelUnavailable | None:
        """Why it does not answer; ``None`` where it does."""

    def close(self) -> None:
        """End it."""


@dataclass(slots=True)
class _Replica:
    """One server, and what is known of it."""

    server: Server
    is_current: bool = False  # it has all that is wanted
    again: float = 0.0  # before that it is not looked at, where it is not


class VLLM:
    """An engine over servers of vLLM that serve one model. Thread safe.

    Args:
        urls: of the servers.
        path: the checkpoint's folder, for its tokenizer and its configuration.
        fingerprint: of the checkpoint.
        root: where adapters for the servers are written; they must see it under the same path.
        key: of the servers.
        owner: as :func:`~ke_tools.servers.engines._served.serve` has it.
        reader: folder of the reader.
        own: who runs the server, where that is ke-tools; ended with this.
        timeout: of a request.

    Raises:
        ModelUnavailable: none of the servers answers.
        Unsupported: they serve another model, or take no adapters.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        path: Path,
        fingerprint: str,
        root: Path,
        key: str = "",
        owner: str = "",
        reader: Path | None = None,
        own: Own | None = None,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> None:
        self.fingerprint = fingerprint
        self._replicas = [_Replica(Server(url, key=key, timeout=timeout)) for url in urls]
        self._pool = ThreadPoolExecutor(AT_ONCE, "ke-vllm")
        self._changing = threading.RLock()
        self._turn = 0
        self._root, self._owner, self._own = root, owner, own
        self._readers = [reader] if reader is not None else []  # one or none
        self._wanted: dict[str, Served] = {}  # by the adapters in it, joined by +
        self._pieces: dict[str, Served] = {}  # of the reader, by kind of module
        self._probes: dict[str, list[list[int]]] = {}  # texts that a release changes the likelihood of, by the same
        self._config = json.loads((path / "config.json").read_text("utf-8"))
        try:
            card = self._first_card()
            self.model_id, self.context_length = str(card["id"]), int(card.get("max_model_len") or 2048)
            self._template = Template(path, model_id=self.model_id)
            for replica in self._replicas:
                if replica.is_current:
                    self._refuse_another_tokenizer(replica.server)
            self._add_reader()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of the first server, and how many more there are."""
        more = f" and {len(self._replicas) - 1} more" if len(self._replicas) > 1 else ""
        return self._replicas[0].server.address + more

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the loaded adapters."""
        return frozenset(name for key in self._wanted for name in key.split("+"))

    @property
    def chat_roles(self) -> frozenset[str]:
        """Those that the template takes before the last user turn."""
        return self._template.roles

    def count_tokens(self, request: Request) -> int:
        """Count the prompt's tokens, the chat template included."""
        return len(self._template.encode(request))

    # -- answering -----------------------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer all, in order; blocks.

        Raises:
            ModelUnavailable, InvalidInput, Unsupported: of the first that fails.
        """

        def whole(request: Request) -> Generation:
            fitted, count = self._fitted(request)
            return self._by_any(request.adapter, lambda server, model: server.ask(fitted, model, count))

        return list(self._pool.map(whole, requests))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Answer piece by piece; closing the iterator cancels the generation.

        Raises:
            ModelUnavailable, InvalidInput, Unsupported: as :meth:`generate`.
        """
        fitted, count = self._fitted(request)
        model, has_begun = self.served_as(request.adapter), False
        failed: KeToolsError = self._nobody()
        async for replica in self._current_soon():
            for _ in range(2):
                try:
                    async for piece in replica.server.stream(fitted, model, count):
                        has_begun = True
                        yield piece
                except ModelUnavailable as error:
                    failed = error
                else:
                    return
                if has_begun or not await asyncio.to_thread(self._has_come_back, replica, model):
                    break
            if has_begun:
                break
        raise self._nobody() if self.trouble else failed

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[float | None]:
        """Give the log-probability of each target behind its request (:class:`~ke_tools.models.engine.Scores`)."""

        def one(pair: tuple[Request, str]) -> float | None:
            request, target = pair
            placed = self._template.placed(request, target)
            if placed is None:
                return None
            text = [*placed.ids[: placed.prompt_length], *placed.target]
            [scores] = self._by_any(request.adapter, lambda server, model: forced(server, model, [text]))
            return sum(scores[placed.prompt_length - 1 :])

        return list(self._pool.map(one, zip(requests, targets, strict=True)))

    def served_as(self, adapter: str) -> str:
        """The name that the servers know the model by, with an adapter.

        Raises:
            Unsupported: nothing of that name is loaded.
        """
        if not adapter:
            return self.model_id
        if (served := self._wanted.get(_key(adapter))) is not None:
            return served.name
        parts = adapter.split("+")
        if len(parts) == 1 and not NAME.fullmatch(adapter) and not releases.is_name(adapter) and adapter != READER:
            return adapter  # the user's own
        raise Unsupported(f"{adapter!r} is not loaded into the servers.", f"Loaded are: {', '.join(sorted(self._wanted)) or 'none'}.")

    def is_adapter(self, model: str) -> bool:
        """Whether a name is that of an adapter of the user's own on the model; asks a server."""
        if NAME.fullmatch(model):
            return False
        return any(card["id"] == model and card.get("parent") for card in self.cards())

    def is_ours(self, model: str) -> bool:
        """Whether a name is one that we gave."""
        return bool(NAME.fullmatch(model))

    def cards(self) -> list[Mapping[str, Any]]:
        """What a server lists as its models.

        Raises:
            ModelUnavailable: none answers.
        """
        return self._by_any("", lambda server, _model: server.cards())

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""
        return self._replicas[0].server.new_client()

    async def send(self, client: httpx.AsyncClient, method: str, path: str, *, adapter: str = "", **content: Any) -> httpx.Response:
        """See :class:`~ke_tools.servers.engines.remote.Remote`; a server that does not answer is passed over for the next."""
        model = self.served_as(adapter)
        async for replica in self._current_soon():
            for _ in range(2):
                try:
                    answer = await replica.server.send(client, method, path, **content)
                except ModelUnavailable:
                    self._lost(replica)
                    break
                if not NAME.fullmatch(model) or answer.status_code != httpx.codes.NOT_FOUND:
                    return answer
                await answer.aclose()
                if not await asyncio.to_thread(self._has_come_back, replica, model):
                    break
        raise self._nobody()

    # -- adapters ------------------------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a release into every server, alone and with the reader, and ask each about it; requests may use it when this returns.

        Raises:
            InvalidInput: the name is taken.
            ModelUnavailable: it is damaged, or a server does not take it; then none has it.
            Unsupported: it was made for another model, or a server cannot serve it; then none has it.
        """
        with self._changing:
            if name in self._wanted:
                raise InvalidInput(f"an adapter {name!r} is loaded already.", "Unload it first, or take another name.")
            release = releases.read(path)
            if release.fingerprint != self.fingerprint:
                raise Unsupported(
                    f"{name} was made for the model {release.fingerprint}; this is {self.fingerprint}.", "Promote its edits again."
                )
            parts = {name: [path]}
            if READER in self._wanted:  # what acts for questions in scope
                parts[_key(f"{READER}+{name}")] = [path, *self._readers]
            self._publish(parts, asked_about(self._template, path))

    def unload_adapter(self, name: str) -> None:
        """Take a release out of every server, and its folders off the disk; what is under way goes on.

        Raises:
            InvalidInput: no adapter of this name is loaded.
        """
        with self._changing:
            gone = [key for key in self._wanted if name in key.split("+")]
            if not gone:
                raise InvalidInput(f"no adapter {name!r} is loaded.", f"Loaded are: {', '.join(sorted(self._wanted)) or 'none'}.")
            out = {key: self._wanted[key] for key in gone}
            self._wanted = {key: served for key, served in self._wanted.items() if key not in out}
            stay = {served.name for served in self._wanted.values()}  # what is the same by its content has one name
            for key, served in out.items():
                self._probes.pop(key, None)
                if served.name in stay:
                    continue
                is_gone = [self._take_out(replica, served.name) for replica in self._replicas]
                if all(is_gone):
                    shutil.rmtree(served.folder, ignore_errors=True)  # vLLM may read a registered one again, so never before
            for piece in self._pieces.values() if name == READER else ():
                shutil.rmtree(piece.folder, ignore_errors=True)

    def close(self) -> None:
        """Let the connections go; what is loaded stays in the servers, for whoever else asks them. One of our own ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for replica in self._replicas:
            replica.server.close()
        if self._own is not None:
            self._own.close()

    @property
    def trouble(self) -> str:
        """Why a server of our own does not answer just now; empty where it does, or where others run it."""
        error = self._own.error() if self._own is not None else None
        return str(error) if error is not None else ""

    @property
    def has_reader(self) -> bool:
        """Whether there is a reader for the model, served or not."""
        return bool(self._readers)

    def told(self) -> list[tuple[bool, str]]:
        """How each server stands: whether it is asked, and what it has, in words."""
        said = []
        for replica in self._replicas:
            address, is_well = replica.server.address, self._bring_up(replica)
            if is_well:
                said.append((True, f"{address} answers, {codebooks(replica.server)}"))
            else:
                said.append((False, f"{address} gets no requests: {replica.server.circuit.told or 'it lacks what is wanted'}"))
        return said

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _first_card(self) -> Mapping[str, Any]:
        """Meet the servers; those that are away are met when they come.

        Raises:
            ModelUnavailable: none answers. Unsupported: they serve different models.
        """
        cards: list[Mapping[str, Any]] = []
        away: list[ModelUnavailable] = []
        for replica in self._replicas:
            try:
                cards.append(replica.server.card())
            except ModelUnavailable as error:
                away.append(error)
            else:
                replica.is_current = True
        if not cards:
            raise away[0]
        if len({str(card["id"]) for card in cards}) > 1:
            raise Unsupported(f"the servers serve {', '.join(sorted({str(card['id']) for card in cards}))}.", "Give servers of one model.")
        return cards[0]

    def _refuse_another_tokenizer(self, server: Server) -> None:
        """Refuse a server that reads a text as other tokens than the checkpoint.

        Raises:
            Unsupported: it does.
        """
        mine = self._template.encode(Request(prompt=_TEXT))
        if tokens(server, self.model_id, _TEXT) not in (None, mine):
            raise Unsupported(
                f"{server.address} reads a text as other tokens than the checkpoint of --model: it serves another model.",
                "Give the checkpoint that it serves by --model.",
            )

    def _add_reader(self) -> None:
        """Load the reader where the servers take it; without, facts go in with demonstrations."""
        if not self._readers:
            return
        text = self._template.encode(Request(prompt="The capital of Australia is Canberra. What is the capital of Australia?"))
        try:
            self._publish({READER: self._readers}, [text])
        except KeToolsError as error:
            log.warning("the reader is not served, so facts go in with demonstrations: %s", error)

    def _publish(self, parts: Mapping[str, Sequence[Path]], texts: list[list[int]], most_rank: int = 0) -> None:
        """Give all servers that are there what is to be served, at once, and ask them; where one fails, all are as before."""
        served = {key: serve(self._root, of, config=self._config, most_rank=most_rank, owner=self._owner) for key, of in parts.items()}
        if READER in served:
            self._pieces = by_module(self._root, parts[READER][0], most_rank=served[READER].rank, owner=self._owner)
        replicas = list(self._current())
        if not replicas:
            raise self._nobody()
        with ThreadPoolExecutor(len(replicas), "ke-vllm-give") as at_once:
            given = [(replica, at_once.submit(self._give, replica, served, texts)) for replica in replicas]
        failed = next((error for _, done in given if (error := done.exception()) is not None), None)
        if failed is not None:
            for replica, done in given:
                for name in done.result() if done.exception() is None else ():
                    self._take_out(replica, name)
            match = TOO_HIGH.search(str(failed))
            if match is None or most_rank:
                raise failed
            self._publish(parts, texts, int(match[1]))
            return
        for key, one in served.items():
            if one.loss:
                log.warning("%s is served at rank %d, which costs %.2g of what it adds", key, one.rank, one.loss)
        self._probes.update(dict.fromkeys(served, texts))
        self._wanted = {**self._wanted, **served}

    def _give(self, replica: _Replica, served: Mapping[str, Served], texts: list[list[int]]) -> list[str]:
        """Load what one server lacks and ask it about all; gives the names of what it lacked. Where this fails, it is as it was.

        Raises:
            Unsupported: it cannot serve it. ModelUnavailable: it does not answer, or answers nonsense.
        """
        server, fresh = replica.server, list[str]()
        before = [forced(server, self.model_id, texts) for _ in range(2)]
        listed = {str(card["id"]) for card in server.cards()}
        try:
            for one in served.values():
                if one.name not in listed:
                    load(server, one)
                    fresh.append(one.name)
            self._refuse_idle(server, list(served.values()), texts, before)
            if READER in served and served[READER].name in fresh:
                self._refuse_ignoring(replica, texts, before)
        except KeToolsError:
            for name in fresh:
                self._take_out(replica, name)
            raise
        return fresh

    def _refuse_idle(self, server: Server, served: Sequence[Served], texts: list[list[int]], before: list[Scores]) -> None:
        """Refuse what does nothing, or what is nonsense, or moves the base model, by more than the same question asked twice differs."""
        afters = [forced(server, one.name, texts) for one in served]
        base, noise = forced(server, self.model_id, texts), noise_of(before)
        if furthest(base, before[1]) > noise:
            raise ModelUnavailable(f"{server.address} answers differently as the base model since it was loaded.", "Restart that server.")
        for one, after in zip(served, afters, strict=True):
            if not all(math.isfinite(value) for row in after for value in row):
                raise ModelUnavailable(f"{server.address} answers with numbers that are none.", "Promote its edits again.")
            if furthest(after, base) <= noise:
                what = "the plugin of ke-tools is missing there" if one.has_codebook else "it was started without these modules"
                raise Unsupported(f"{server.address} loads it, and answers as without: {what}.", "docs/vllm.md says how to start it.")
            server.ask(Request(prompt="The", max_tokens=_GENERATED), one.name, 1)

    def _refuse_ignoring(self, replica: _Replica, texts: list[list[int]], before: list[Scores]) -> None:
        """Refuse a server that ignores some of the modules that the reader changes; those of a release are all of one kind."""
        ignored, noise = [], noise_of(before)
        for kind, piece in self._pieces.items():
            load(replica.server, piece)
            try:
                moved = furthest(forced(replica.server, piece.name, texts), before[1])
            finally:
                self._take_out(replica, piece.name)
            if moved <= noise:
                ignored.append(kind)
        if ignored:
            raise Unsupported(
                f"{replica.server.address} ignores the reader's {', '.join(ignored)}: it was started without.",
                "Name all modules by --lora-target-modules, as docs/vllm.md says.",
            )

    def _take_out(self, replica: _Replica, name: str) -> bool:
        """Whether the server has it no more; one that is away may have it when it is back, under a name that is not asked for again."""
        try:
            replica.server.post("/unload_lora_adapter", {"lora_name": name}, is_json=False)
        except KeToolsError as error:
            log.info("%s may still have %s: %s", replica.server.address, name, error)
            return False
        return True

    def _current(self) -> Iterator[_Replica]:
        """The servers that may be asked, each at most once, another one first each time; where all are away, one that comes back."""
        has_given = False
        for replica in self._in_turn():
            if self._bring_up(replica):
                has_given = True
                yield replica
        if not has_given:
            yield from (replica for replica in self._in_turn() if self._bring_up(replica, waits=True))

    async def _current_soon(self) -> AsyncIterator[_Replica]:
        """The same without keeping the event loop waiting for a server that is away."""
        has_given = False
        for replica in self._in_turn():
            if replica.is_current or await asyncio.to_thread(self._bring_up, replica):
                has_given = True
                yield replica
        for replica in self._in_turn() if not has_given else ():
            if await asyncio.to_thread(self._bring_up, replica, waits=True):
                yield replica

    def _in_turn(self) -> list[_Replica]:
        self._turn = (self._turn + 1) % len(self._replicas)
        return self._replicas[self._turn :] + self._replicas[: self._turn]

    def _lost(self, replica: _Replica) -> None:
        replica.is_current = False

    def _bring_up(self, replica: _Replica, *, waits: bool = False) -> bool:
        """Give a server that was away what it lacks, and say whether it has all; ``waits`` for who is at that already."""
        if replica.is_current:
            return True
        if not self._changing.acquire(timeout=_PATIENCE_SECONDS if waits else 0):
            return False
        if replica.is_current or time.monotonic() < replica.again:
            self._changing.release()
            return replica.is_current
        try:
            replica.again = time.monotonic() + _AGAIN_SECONDS
            self._catch_up(replica)
        except KeToolsError as error:
            log.warning("%s gets no requests: %s", replica.server.address, error)
            return False
        finally:
            self._changing.release()
        log.info("%s has all that is wanted, and gets requests", replica.server.address)
        return True

    def _catch_up(self, replica: _Replica) -> None:
        listed = {str(card["id"]) for card in replica.server.cards()}
        if self.model_id not in listed:
            raise Unsupported(f"{replica.server.address} serves {', '.join(sorted(listed))}.", "Start it with the model again.")
        self._refuse_another_tokenizer(replica.server)
        for key, served in self._wanted.items():
            if served.name not in listed:
                self._give(replica, {key: served}, self._probes[key])
        replica.is_current = True

    def _by_any(self, adapter: str, ask: Callable[[Server, str], _T]) -> _T:
        """Ask one server after the other until one answers."""
        model, failed = self.served_as(adapter), self._nobody()
        for replica in self._current():
            for _ in range(2):
                try:
                    return ask(replica.server, model)
                except ModelUnavailable as error:
                    failed = error
                if not self._has_come_back(replica, model):
                    break
        raise self._nobody() if self.trouble else failed

    def _has_come_back(self, replica: _Replica, model: str) -> bool:
        """Whether a server that failed is there after all, and had only lost what is ours: it was started again since it was looked at."""
        self._lost(replica)
        if not NAME.fullmatch(model) or replica.server.circuit.told:
            return False
        replica.again = 0.0
        return self._bring_up(replica, waits=True)

    def _nobody(self) -> ModelUnavailable:
        if self._own is not None and (error := self._own.error()) is not None:
            return error
        said = "; ".join(f"{one.server.address}: {one.server.circuit.told or 'it is not ready'}" for one in self._replicas)
        return ModelUnavailable(f"no server of the model answers ({said}).", "Start one, or see `ke-tools doctor`.", poll_after_ms=2000)

    def _fitted(self, request: Request) -> tuple[Request, int]:
        """The request with room for its answer in the context; gives its tokens too."""
        count = self.count_tokens(request)
        if count >= self.context_length:
            raise InvalidInput(f"the prompt has {count} tokens; the model reads {self.context_length}, its answer included.", "Shorten it.")
        return replace(request, adapter="", max_tokens=min(request.max_tokens, self.context_length - count)), count


def _key(adapter: str) -> str:
    return "+".join(sorted(adapter.split("+")))
