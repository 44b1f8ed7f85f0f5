"""The servers of one model, and what each of them was given to serve: all have all that is wanted, or get no requests.

What is given is loaded into every server that is there at once and asked for there, before anything may use it; where one fails, all are as
they were. A server that was away is brought up to date before it is asked again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from ke_tools.errors import KeToolsError, ModelUnavailable, Unsupported
from ke_tools.memory.router import READER
from ke_tools.models.engine import Request
from ke_tools.servers.engines._leaving import take_out
from ke_tools.servers.engines._probing import Scores, codebooks, differs, forced, load, plugin_of, refuse_other_weights
from ke_tools.servers.engines._served import NAME, Served
from ke_tools.servers.engines._server import Server

__all__ = ["Fleet", "Own", "Replica"]

log = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 1.0  # until a server that was away is looked at again
_UNLOADING_SECONDS: Final = 10.0
_GENERATED: Final = 4  # tokens
_LOOKS: Final = 3  # at a base model that seems to have moved, each of which tells more of what it differs by anyway
_T = TypeVar("_T")


class Own(Protocol):
    """Who runs a server of our own (:class:`~ke_tools.servers.engines._supervised.Supervised`)."""

    @property
    def is_ours(self) -> bool:
        """Whether it ends with this process; else another one of the home runs it."""

    def error(self) -> ModelUnavailable | None:
        """Why it does not answer; ``None`` where it does."""

    def close(self) -> None:
        """End it."""


@dataclass(slots=True)
class Replica:
    """One server, and what is known of it."""

    server: Server
    is_current: bool = False  # it has all that is wanted
    again: float = 0.0  # before that it is not looked at, where it is not
    why: str = ""  # it could not be brought up to date when it was looked at
    given: set[str] = field(default_factory=set)  # names that it may have of us


class Fleet:
    """Servers of one model. Thread safe. What is given to them is this process's alone: its owner is part of each name.

    Args:
        servers: that serve it.
        check: refuses a server that serves another model under the same name, by Unsupported.
        mend: writes the folders of what is wanted under a key again, where one was damaged; raises ModelUnavailable where it cannot.
        own: who runs the server, where that is ke-tools.
        left: names that the servers may have from a process of the same owner that was killed.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        check: Callable[[Server], None],
        mend: Callable[[str, Sequence[Served]], None],
        own: Own | None = None,
        left: Collection[str] = (),
    ) -> None:
        self.wanted: Mapping[str, Served] = {}  # by the adapters in it, joined by +; replaced as a whole, never changed
        self.changing = threading.RLock()  # held by who changes what is wanted
        self.model_id = ""
        self.replicas = tuple(Replica(server, given=set(left)) for server in servers)
        self._check, self._mend, self._own = check, mend, own
        self._turn = 0
        self._pieces: Mapping[str, Served] = {}  # of the reader, by kind of module
        self._probes: dict[str, list[list[int]]] = {}  # texts that a release changes the likelihood of, by the same
        self._said: dict[str, Scores] = {}  # how likely they were to the base model, by the same

    def meet(self) -> Mapping[str, Any]:
        """Give the card of the model; servers that are away are met when they come.

        Raises:
            ModelUnavailable: none answers. Unsupported: they serve different models.
        """
        cards: list[Mapping[str, Any]] = []
        away: list[ModelUnavailable] = []
        for replica in self.replicas:
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
        self.model_id = str(cards[0]["id"])
        return cards[0]

    def check(self) -> None:
        """Refuse servers that are there and serve another model.

        Raises:
            Unsupported: one does.
        """
        for replica in self.replicas:
            if replica.is_current:
                self._check(replica.server)

    @property
    def first(self) -> Server:
        """The server that was named first."""
        return self.replicas[0].server

    @property
    def address(self) -> str:
        """Of the first server, and how many more there are."""
        more = f" and {len(self.replicas) - 1} more" if len(self.replicas) > 1 else ""
        return self.first.address + more

    @property
    def trouble(self) -> str:
        """Why a server of our own does not answer just now; empty where it does, or where others run it."""
        error = self._own.error() if self._own is not None else None
        return str(error) if error is not None else ""

    def told(self) -> list[tuple[bool, str]]:
        """How each server stands: whether it is asked, and what it has, in words."""
        said = []
        for replica in self.replicas:
            address, is_well = replica.server.address, self._bring_up(replica)
            if is_well:
                said.append((True, f"{address} answers, {codebooks(replica.server)}"))
            else:
                why = replica.server.circuit.told or replica.why or "it lacks what is wanted"
                said.append((False, f"{address} gets no requests: {why}"))
        return said

    def tried(self, text: list[int], book: Callable[[str | None], Served]) -> list[tuple[bool, str]]:
        """Have every server where codebooks act serve one that changes all that is said, and take it out again: whether it does.

        Args:
            text: to ask about, as tokens.
            book: makes the codebook behind a block that is named, or any.
        """
        with self.changing:
            found = [(replica, plugin_of(replica.server) or {"form": "none"}) for replica in self._current()]
            return [self._tried(replica, text, book, said.get("room") or {}) for replica, said in found if said.get("form") != "none"]

    def _tried(self, replica: Replica, text: list[int], book: Callable[[str | None], Served], room: Collection[str]) -> tuple[bool, str]:
        server, made = replica.server, list[Served]()
        try:
            made.append(one := book(next(iter(room), None)))
            self._load(replica, one)
            acts = differs([forced(server, one.name, [text])], [forced(server, self.model_id, [text]) for _ in range(2)])
        except KeToolsError as error:
            return False, f"{server.address} does not serve a codebook for a test: {error}"
        finally:
            self._drop(made, [replica])
        if acts:
            return True, f"a codebook for a test acted in {server.address}"
        return False, f"{server.address} serves a codebook for a test, and answers as without: the plugin does not act in its workers"

    def nobody(self) -> ModelUnavailable:
        """Give the error for when no server answers."""
        if self._own is not None and (error := self._own.error()) is not None:
            return error
        said = "; ".join(f"{one.server.address}: {one.server.circuit.told or one.why or 'it is not ready'}" for one in self.replicas)
        return ModelUnavailable(f"no server of the model answers ({said}).", "Start one, or see `ke-tools doctor`.", poll_after_ms=2000)

    def close(self) -> None:
        """Take out of the servers what they were given, as far as they answer at once, and let them go. One of our own ends."""
        if self._own is None or not self._own.is_ours:
            take_out((replica.server, replica.given) for replica in self.replicas)
        for replica in self.replicas:
            replica.server.close()
        if self._own is not None:
            self._own.close()

    # -- asking --------------------------------------------------------------------------------------------------------------------

    def by_any(self, model: str, ask: Callable[[Server], _T]) -> _T:
        """Ask one server after the other, for what it knows by the name ``model``, until one answers.

        Raises:
            ModelUnavailable: none does.
        """
        failed = self.nobody()
        for replica in self._current():
            for _ in range(2):
                try:
                    return ask(replica.server)
                except ModelUnavailable as error:
                    failed = error
                if not self.has_come_back(replica, model):
                    break
        raise self.nobody() if self.trouble else failed

    async def current(self) -> AsyncIterator[Replica]:
        """The servers that may be asked, each at most once, another one first each time; where all are away, one that comes back.

        The event loop is not kept waiting for a server that is away.
        """
        has_given = False
        for replica in self._in_turn():
            if replica.is_current or await asyncio.to_thread(self._bring_up, replica):
                has_given = True
                yield replica
        for replica in self._in_turn() if not has_given else ():
            if await asyncio.to_thread(self._bring_up, replica, waits=True):
                yield replica

    def _current(self) -> Iterator[Replica]:
        """The same for who may block."""
        has_given = False
        for replica in self._in_turn():
            if self._bring_up(replica):
                has_given = True
                yield replica
        if not has_given:
            yield from (replica for replica in self._in_turn() if self._bring_up(replica, waits=True))

    def lost(self, replica: Replica) -> None:
        """Ask a server for nothing before it was looked at again."""
        replica.is_current = False

    def has_come_back(self, replica: Replica, model: str) -> bool:
        """Whether a server that failed is there after all, and had only lost what is ours: it was started again since it was looked at."""
        self.lost(replica)
        if not NAME.fullmatch(model) or replica.server.circuit.told:
            return False
        replica.again = 0.0
        return self._bring_up(replica, waits=True)

    def _in_turn(self) -> tuple[Replica, ...]:
        self._turn = (self._turn + 1) % len(self.replicas)
        return self.replicas[self._turn :] + self.replicas[: self._turn]

    # -- giving and taking ---------------------------------------------------------------------------------------------------------

    def publish(self, served: Mapping[str, Served], texts: list[list[int]], pieces: Mapping[str, Served] | None = None) -> None:
        """Give all servers that are there what is to be served, at once, and ask them; where one fails, all are as before.

        Args:
            served: by the adapters in it; wanted from now on.
            texts: whose likelihood it changes, as tokens.
            pieces: of the reader, where it is among them.

        Raises:
            Unsupported: a server cannot serve it.
            ModelUnavailable: one answers nonsense, or none answers.
        """
        with self.changing:
            replicas = list(self._current())
            if not replicas:
                raise self.nobody()
            try:
                said = self._give_all(replicas, served, texts, pieces or {})
            except KeToolsError:
                self._drop([*served.values(), *(pieces or {}).values()], replicas)
                raise
            self._pieces = pieces or self._pieces
            self._probes.update(dict.fromkeys(served, texts))
            self._said.update(dict.fromkeys(served, said))
            self.wanted = {**self.wanted, **served}

    def withdraw(self, keys: Collection[str]) -> None:
        """Take out of every server what is wanted no more, and its folders off the disk; what is under way goes on."""
        with self.changing:
            out = {key: self.wanted[key] for key in keys}
            self.wanted = {key: served for key, served in self.wanted.items() if key not in out}
            for key in out:
                self._probes.pop(key, None)
                self._said.pop(key, None)
            pieces, self._pieces = (self._pieces, {}) if READER in out else ({}, self._pieces)
            self._drop([*out.values(), *pieces.values()], self.replicas)

    def _give_all(
        self, replicas: Sequence[Replica], served: Mapping[str, Served], texts: list[list[int]], pieces: Mapping[str, Served]
    ) -> Scores:
        """Give each server the same at once; gives how likely the texts are to the base model."""
        with ThreadPoolExecutor(len(replicas), "ke-vllm-give") as at_once:
            given = [at_once.submit(self._give, replica, served, texts, pieces) for replica in replicas]
        failed = next((error for done in given if (error := done.exception()) is not None), None)
        if failed is not None:
            raise failed
        said = given[0].result()
        for replica, one in zip(replicas[1:], given[1:], strict=True):
            refuse_other_weights(replica.server, one.result(), said, f"{replicas[0].server.address} does")
        return said

    def _drop(self, gone: Sequence[Served], replicas: Sequence[Replica]) -> None:
        """Take folders' content out of servers, and off the disk where no server may read it again: vLLM reads a registered one so."""
        stay = {served.name for served in self.wanted.values()}  # what is the same by its content has one name
        for served in gone:
            if served.name in stay:
                continue
            is_out = [self._take_out(replica, served.name) for replica in replicas]
            if all(is_out):
                shutil.rmtree(served.folder, ignore_errors=True)

    def _give(
        self,
        replica: Replica,
        served: Mapping[str, Served],
        texts: list[list[int]],
        pieces: Mapping[str, Served],
        said: Scores | None = None,
    ) -> Scores:
        """Load what one server lacks and ask it about all; where this fails, it is as it was.

        Args:
            replica: the server.
            served: by the adapters in it.
            texts: whose likelihood that changes.
            pieces: of the reader.
            said: how likely the texts were to the base model when it was given first.

        Returns:
            How likely the texts are to its base model.

        Raises:
            Unsupported: it cannot serve it, or has other weights. ModelUnavailable: it does not answer, or answers nonsense.
        """
        server, fresh = replica.server, list[str]()
        try:
            before = [forced(server, self.model_id, texts) for _ in range(2)]
            if said is not None:
                refuse_other_weights(server, before[0], said, "those that this was made for")
            listed = {str(card["id"]) for card in server.cards()}
            for one in served.values():
                replica.given.add(one.name)  # also what a process of this owner left there that was killed
                if one.name not in listed:
                    self._load(replica, one)
                    fresh.append(one.name)
            base = self._refuse_idle(server, list(served.values()), texts, before)
            if READER in served and served[READER].name in fresh:
                others = {kind: piece for kind, piece in pieces.items() if piece.name != served[READER].name}
                self._refuse_ignoring(replica, texts, base, others)
        except KeToolsError:
            if server.circuit.told and any(other.is_current for other in self.replicas if other is not replica):
                self.lost(replica)  # it is gone, hangs, or is too busy: the next try does without it, where there is another
            for name in fresh:
                self._take_out(replica, name)
            raise
        return before[0]

    def _refuse_idle(self, server: Server, served: Sequence[Served], texts: list[list[int]], before: list[Scores]) -> list[Scores]:
        """Refuse what does nothing, or what is nonsense, or moves the base model; gives what the base model answered so far.

        Raises:
            Unsupported: it does nothing. ModelUnavailable: the others.
        """
        afters = [forced(server, one.name, texts) for one in served]
        base = [forced(server, self.model_id, texts)]
        while differs(base, before):
            if len(base) == _LOOKS:
                raise ModelUnavailable(
                    f"{server.address} answers differently as the base model since it was loaded.", "Restart that server."
                )
            base.append(forced(server, self.model_id, texts))
        asked = [*before, *base]
        for one, after in zip(served, afters, strict=True):
            if not all(math.isfinite(value) for row in after for value in row):
                raise ModelUnavailable(f"{server.address} answers with numbers that are none.", "Promote its edits again.")
            if not differs([after], asked):
                what = "the plugin of ke-tools is missing there" if one.has_codebook else "it was started without these modules"
                raise Unsupported(f"{server.address} loads it, and answers as without: {what}.", "docs/vllm.md says how to start it.")
            server.ask(Request(prompt="The", max_tokens=_GENERATED), one.name, 1)
        return asked

    def _refuse_ignoring(self, replica: Replica, texts: list[list[int]], base: list[Scores], pieces: Mapping[str, Served]) -> None:
        """Refuse a server that ignores some of the modules that the reader changes; those of a release are all of one kind.

        Raises:
            Unsupported: it does.
        """
        ignored = []
        for kind, piece in pieces.items():
            self._load(replica, piece)
            try:
                after = forced(replica.server, piece.name, texts)
            finally:
                self._take_out(replica, piece.name)
            if not differs([after], base):
                ignored.append(kind)
        if ignored:
            raise Unsupported(
                f"{replica.server.address} ignores the reader's {', '.join(ignored)}: it was started without.",
                "Name all modules by --lora-target-modules, as docs/vllm.md says.",
            )

    def _load(self, replica: Replica, one: Served) -> None:
        replica.given.add(one.name)  # before, as nobody knows what a server has that gives no answer
        load(replica.server, one)

    def _take_out(self, replica: Replica, name: str) -> bool:
        """Whether the server has it no more; one that is away may have it when it is back, under a name that is not asked for again."""
        server = replica.server
        try:
            server.post("/unload_lora_adapter", {"lora_name": name}, is_json=False, seconds=_UNLOADING_SECONDS)
        except KeToolsError as error:
            with suppress(KeToolsError):
                if all(card["id"] != name for card in server.cards()):
                    replica.given.discard(name)
                    return True
            log.info("%s may still have %s: %s", server.address, name, error)
            return False
        replica.given.discard(name)
        return True

    # -- coming back ---------------------------------------------------------------------------------------------------------------

    def _bring_up(self, replica: Replica, *, waits: bool = False) -> bool:
        """Give a server that was away what it lacks, and say whether it has all; ``waits`` for who is at that already."""
        if replica.is_current:
            return True
        if not self.changing.acquire(timeout=_PATIENCE_SECONDS if waits else 0):
            return False
        if replica.is_current or time.monotonic() < replica.again:
            self.changing.release()
            return replica.is_current
        try:
            replica.again = time.monotonic() + _AGAIN_SECONDS
            self._catch_up(replica)
        except KeToolsError as error:
            replica.why = error.message
            log.warning("%s gets no requests: %s", replica.server.address, error)
            return False
        finally:
            self.changing.release()
        log.info("%s has all that is wanted, and gets requests", replica.server.address)
        return True

    def _catch_up(self, replica: Replica) -> None:
        listed = {str(card["id"]) for card in replica.server.cards()}
        if self.model_id not in listed:
            raise Unsupported(f"{replica.server.address} serves {', '.join(sorted(listed))}.", "Start it with the model again.")
        self._check(replica.server)
        for key, served in self.wanted.items():
            if served.name not in listed and self._is_whole(key):
                self._give(replica, {key: served}, self._probes[key], self._pieces, self._said[key])
        replica.is_current, replica.why = True, ""

    def _is_whole(self, key: str) -> bool:
        """Whether it can be loaded again; what cannot is wanted no more, so that it keeps no server from all else."""
        try:
            self._mend(key, [self.wanted[key], *(self._pieces.values() if key == READER else ())])
        except KeToolsError as error:
            log.warning("%s is not served any more: %s", key, error)
            self.withdraw([key])
            return False
        return True
