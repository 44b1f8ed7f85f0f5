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
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx

from ke_tools import releases
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, Unsupported
from ke_tools.memory.router import READER
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._fleet import Fleet, Own
from ke_tools.servers.engines._probing import TOO_HIGH, asked_about, forced, tokens
from ke_tools.servers.engines._served import NAME, Served, by_module, folder_of, is_whole, self_test, serve
from ke_tools.servers.engines._server import TIMEOUT, Server, is_same
from ke_tools.servers.engines._template import Template

__all__ = ["VLLM"]

log = logging.getLogger(__name__)

AT_ONCE: Final = 64  # requests of one batch under way: vLLM batches them itself
_TEXT: Final = "The capital of Australia is Canberra; 12,345 + 678 = ? Ünïcödé."


class VLLM:
    """An engine over servers of vLLM that serve one model. Thread safe.

    Args:
        urls: of the servers.
        path: the folder of the checkpoint that edits are planned with, for its tokenizer and its configuration.
        fingerprint: of the checkpoint.
        root: below it adapters for the servers are written, in a folder of the owner's; they must see it under the same path.
        key: of the servers.
        owner: as :func:`~ke_tools.servers.engines._served.serve` has it; no two engines of one owner are open at once.
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
        servers = [Server(url, key=key, timeout=timeout, is_watched=True) for url in urls]
        self._root, self._owner = folder_of(root, owner), owner
        left = [folder.name for folder in self._root.glob("ke-*") if NAME.fullmatch(folder.name)]
        self._fleet = Fleet(servers, check=self._refuse_another_tokenizer, mend=self._write_again, own=own, left=left)
        self._made: dict[str, tuple[Sequence[Path], int]] = {}  # of what, and up to which rank, by what is wanted
        self._pool = ThreadPoolExecutor(AT_ONCE, "ke-vllm")
        self._readers = [reader] if reader is not None else []  # one or none
        self._config = json.loads((path / "config.json").read_text("utf-8"))
        try:
            card = self._fleet.meet()
            self.model_id, self.context_length = str(card["id"]), int(card.get("max_model_len") or 2048)
            self._template = Template(path, model_id=self.model_id)
            self._fleet.check()
            self._add_reader()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Of the first server, and how many more there are."""
        return self._fleet.address

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the loaded adapters."""
        return frozenset(name for key in self._fleet.wanted for name in key.split("+"))

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
            model = self.served_as(request.adapter)
            return self._fleet.by_any(model, lambda server: server.ask(fitted, model, count))

        return list(self._pool.map(whole, requests))

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Answer piece by piece; closing the iterator cancels the generation.

        Raises:
            ModelUnavailable, InvalidInput, Unsupported: as :meth:`generate`.
        """
        fitted, count = self._fitted(request)
        model, has_begun = self.served_as(request.adapter), False
        failed: KeToolsError = self._fleet.nobody()
        async for replica in self._fleet.current():
            for _ in range(2):
                try:
                    async for piece in replica.server.stream(fitted, model, count):
                        has_begun = True
                        yield piece
                except ModelUnavailable as error:
                    failed = error
                else:
                    return
                if has_begun or not await asyncio.to_thread(self._fleet.has_come_back, replica, model):
                    break
            if has_begun:
                break
        raise self._fleet.nobody() if self.trouble else failed

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[float | None]:
        """Give the log-probability of each target behind its request (:class:`~ke_tools.models.engine.Scores`)."""

        def one(pair: tuple[Request, str]) -> float | None:
            request, target = pair
            placed = self._template.placed(request, target)
            if placed is None:
                return None
            text = [*placed.ids[: placed.prompt_length], *placed.target]
            model = self.served_as(request.adapter)
            [scores] = self._fleet.by_any(model, lambda server: forced(server, model, [text], seconds=None))
            return sum(scores[placed.prompt_length - 1 :])

        return list(self._pool.map(one, zip(requests, targets, strict=True)))

    def served_as(self, adapter: str) -> str:
        """The name that the servers know the model by, with an adapter.

        Raises:
            Unsupported: nothing of that name is loaded.
        """
        if not adapter:
            return self.model_id
        if (served := self._fleet.wanted.get(_key(adapter))) is not None:
            return served.name
        parts = adapter.split("+")
        if len(parts) == 1 and not NAME.fullmatch(adapter) and not releases.is_name(adapter) and adapter != READER:
            return adapter  # the user's own
        raise Unsupported(f"{adapter!r} is not loaded into the servers.", f"Loaded are: {', '.join(sorted(self._fleet.wanted)) or 'none'}.")

    def is_adapter(self, model: str) -> bool:
        """Whether a name is that of an adapter of the user's own on the model; asks a server."""
        if NAME.fullmatch(model):
            return False
        return any(card["id"] == model and card.get("parent") for card in self.cards())

    def is_same(self, model: str) -> bool:
        """Whether the servers list the model under this name, too; asks one."""
        cards = self.cards()
        return any(card["id"] == model for card in cards) and is_same(cards, model, self.model_id)

    def is_ours(self, model: str) -> bool:
        """Whether a name is one that we gave."""
        return bool(NAME.fullmatch(model))

    def cards(self) -> list[Mapping[str, Any]]:
        """What a server lists as its models.

        Raises:
            ModelUnavailable: none answers.
        """
        return self._fleet.by_any(self.model_id, lambda server: server.cards())

    def new_client(self) -> httpx.AsyncClient:
        """What connections of one event loop are kept in."""
        return self._fleet.first.new_client()

    async def send(self, client: httpx.AsyncClient, method: str, path: str, *, adapter: str = "", **content: Any) -> httpx.Response:
        """See :class:`~ke_tools.servers.engines.remote.Remote`; a server that does not answer is passed over for the next."""
        model = self.served_as(adapter)
        async for replica in self._fleet.current():
            for _ in range(2):
                try:
                    answer = await replica.server.send(client, method, path, **content)
                except ModelUnavailable:
                    self._fleet.lost(replica)
                    break
                if not NAME.fullmatch(model) or answer.status_code != httpx.codes.NOT_FOUND:
                    return answer
                await answer.aclose()
                if not await asyncio.to_thread(self._fleet.has_come_back, replica, model):
                    break
        raise self._fleet.nobody()

    # -- adapters ------------------------------------------------------------------------------------------------------------------

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a release into every server, alone and with the reader, and ask each about it; requests may use it when this returns.

        Raises:
            InvalidInput: the name is taken.
            ModelUnavailable: it is damaged, or a server does not take it; then none has it.
            Unsupported: it was made for another model, or a server cannot serve it; then none has it.
        """
        with self._fleet.changing:
            if name in self._fleet.wanted:
                raise InvalidInput(f"an adapter {name!r} is loaded already.", "Unload it first, or take another name.")
            release = releases.read(path)
            if release.fingerprint != self.fingerprint:
                raise Unsupported(
                    f"{name} was made for the model {release.fingerprint}; this is {self.fingerprint}.", "Promote its edits again."
                )
            parts = {name: [path]}
            if READER in self._fleet.wanted:  # what acts for questions in scope
                parts[_key(f"{READER}+{name}")] = [path, *self._readers]
            self._publish(parts, asked_about(self._template, path))

    def unload_adapter(self, name: str) -> None:
        """Take a release out of every server, and its folders off the disk; what is under way goes on.

        Raises:
            InvalidInput: no adapter of this name is loaded.
        """
        with self._fleet.changing:
            gone = [key for key in self._fleet.wanted if name in key.split("+")]
            if not gone:
                raise InvalidInput(f"no adapter {name!r} is loaded.", f"Loaded are: {', '.join(sorted(self._fleet.wanted)) or 'none'}.")
            self._fleet.withdraw(gone)

    def close(self) -> None:
        """Take what is this owner's out of the servers, as far as they answer at once, and off the disk. A server of our own ends."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._fleet.close()
        shutil.rmtree(self._root, ignore_errors=True)  # nobody asks by its names any more, so no server reads there

    @property
    def trouble(self) -> str:
        """Why a server of our own does not answer just now; empty where it does, or where others run it."""
        return self._fleet.trouble

    @property
    def has_reader(self) -> bool:
        """Whether there is a reader for the model, served or not."""
        return bool(self._readers)

    def told(self) -> list[tuple[bool, str]]:
        """How each server stands: whether it is asked, and what it has, in words."""
        return self._fleet.told()

    def tried(self) -> list[tuple[bool, str]]:
        """Whether a codebook acts in each server with the plugin: by one that changes all that is said, which is taken out again."""
        middle = int(self._config.get("num_hidden_layers", 0)) // 2

        def book(block: str | None) -> Served:
            return self_test(self._root, middle if block is None else int(block), config=self._config, owner=self._owner)

        return self._fleet.tried(self._template.encode(Request(prompt=_TEXT)), book)

    # -- inside --------------------------------------------------------------------------------------------------------------------

    def _refuse_another_tokenizer(self, server: Server) -> None:
        """Refuse a server that reads a text as other tokens than the checkpoint.

        Raises:
            Unsupported: it does.
        """
        mine = self._template.encode(Request(prompt=_TEXT))
        if tokens(server, self.model_id, _TEXT) not in (None, mine):
            raise Unsupported(
                f"{server.address} reads a text as other tokens than the checkpoint that edits are planned with: it serves another model.",
                "Give the checkpoint that it serves by --model, or by --edit-model the one that it was quantised from.",
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
        """Have all servers serve what folders add together, at a lower rank where theirs is."""
        served = {key: serve(self._root, of, config=self._config, most_rank=most_rank, owner=self._owner) for key, of in parts.items()}
        reader = served.get(READER)
        pieces = by_module(self._root, parts[READER][0], most_rank=reader.rank, owner=self._owner) if reader else None
        still = {key: of for key, of in self._made.items() if key in self._fleet.wanted}
        self._made = still | {key: (of, most_rank) for key, of in parts.items()}
        try:
            self._fleet.publish(served, texts, pieces)
        except Unsupported as error:
            match = TOO_HIGH.search(str(error))
            if match is None or most_rank:
                raise
            self._publish(parts, texts, int(match[1]))
            return
        for key, one in served.items():
            if one.loss:
                log.warning("%s is served at rank %d, which costs %.2g of what it adds", key, one.rank, one.loss)

    def _write_again(self, key: str, known: Sequence[Served]) -> None:
        """Write folders again that were damaged since they were loaded.

        Raises:
            ModelUnavailable: what they were made of is damaged too, or another by now.
            ResourceExhausted, ReadOnly: the folder cannot be written.
        """
        parts, most_rank = self._made[key]
        for part in parts:
            if part not in self._readers:
                releases.read(part)
        if all(is_whole(one, self._owner) for one in known):
            return
        again = [serve(self._root, parts, config=self._config, most_rank=most_rank, owner=self._owner)]
        if key == READER:
            again += by_module(self._root, parts[0], most_rank=again[0].rank, owner=self._owner).values()
        if [one.name for one in again] != [one.name for one in known]:
            raise ModelUnavailable(f"{known[0].folder} is damaged, and what it was made of is another by now.", "Start ke-tools again.")

    def _fitted(self, request: Request) -> tuple[Request, int]:
        """The request with room for its answer in the context; gives its tokens too."""
        count = self.count_tokens(request)
        if count >= self.context_length:
            raise InvalidInput(f"the prompt has {count} tokens; the model reads {self.context_length}, its answer included.", "Shorten it.")
        return replace(request, adapter="", max_tokens=min(request.max_tokens, self.context_length - count)), count


def _key(adapter: str) -> str:
    return "+".join(sorted(adapter.split("+")))
