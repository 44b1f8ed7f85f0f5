"""The in-process engine: a causal model of transformers, answered for by one thread.

Requests that wait go through the model together; rows leave their batch when they are done, and new ones join. Adapters
are chosen for each request. See :mod:`ke_tools.servers.engines._worker` for who owns what.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import os
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, Unsupported
from ke_tools.models import checkpoint
from ke_tools.models.engine import Generation, Piece, Request
from ke_tools.servers.engines._adapters import Adapters, check_adapter, names_in
from ke_tools.servers.engines._batch import Forward
from ke_tools.servers.engines._forced import ForcedRow
from ke_tools.servers.engines._row import Row
from ke_tools.servers.engines._template import Template, brief, quiet
from ke_tools.servers.engines._worker import Worker

MOST_LOGPROBS: Final = 20
_STEP_TOKENS: Final = {"cpu": 512}  # of prompts a step, so that others do not wait long; on an accelerator:
_STEP_TOKENS_FAST: Final = 8192
_FEW: Final = 4  # requests given at once that are answered as if each was waited for
_OTHER_CONTEXTS: Final = ("n_positions", "max_sequence_length", "seq_length")


class HFEngine:
    """A loaded model that answers (:class:`~ke_tools.models.engine.Engine`); every method may be called from any thread.

    Args:
        path: a checkpoint folder in safetensors.
        model_id: the name under which it is served.
        dtype: ``auto`` (float32 on a CPU, bfloat16 elsewhere), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto`` (the first accelerator, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        adapters: folders of adapters (see :meth:`load_adapter`) to load at once, by name.
        trust_remote_code: run the checkpoint's own code if it has some.
        cache: where the fingerprint is kept; by default the settings' cache folder.

    Raises:
        ModelUnavailable: the model or an adapter cannot be loaded.
        Unsupported: the device is not there, or the model keeps another state than keys and values.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        model_id: str,
        dtype: str = "auto",
        device: str = "auto",
        adapters: Mapping[str, Path] | None = None,
        trust_remote_code: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.path, self.model_id, self._cache = Path(path), model_id, cache
        checkpoint.check(self.path, trust_remote_code=trust_remote_code)
        self._device = _device(device)
        self._template = Template(self.path, model_id=model_id, trust_remote_code=trust_remote_code)
        self._tokenizer = self._template.tokenizer
        with quiet():
            model = _load_model(self.path, _dtype(dtype, self._device), self._device, trust_remote_code=trust_remote_code)
        self.weights: dict[str, torch.Tensor] = dict(model.named_parameters())  # of the base, before any adapter; to be read only
        self.context_length = _context_length(model.config, self._tokenizer)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.chat_roles = self._template.roles
        self._names: set[str] = set()
        self._changing = threading.Lock()
        self._worker = Worker(
            _forward(model),
            Adapters(model, self._tokenizer),
            ends=_ends(model, self._tokenizer),
            pad_id=_pad_id(self._tokenizer),
            device=self._device,
            step_tokens=_STEP_TOKENS.get(self._device.type, _STEP_TOKENS_FAST),
            threads=_threads(),
        )
        self._finalizer = weakref.finalize(self, self._worker.close)  # also when the interpreter ends
        for name, folder in (adapters or {}).items():
            self.load_adapter(name, folder)

    @cached_property
    def fingerprint(self) -> str:
        """Hash over the base weights (``sha256:…``)."""
        return checkpoint.fingerprint(self.path, cache=self._cache)

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the loaded adapters."""
        return frozenset(self._names)

    def load_adapter(self, name: str, path: Path) -> None:
        """Load a LoRA adapter from a PEFT folder, or a release from its folder; requests may use it when this returns.

        Raises:
            InvalidInput: the name is taken or cannot be one.
            ModelUnavailable: its files are missing, damaged (any byte of a release) or do not fit.
            Unsupported: it was made for another base, or would change the base.
        """
        with self._changing:
            if name in self._names:
                raise InvalidInput(f"an adapter {name!r} is loaded already.", "Unload it first, or take another name.")
            made_for = check_adapter(name, Path(path))
            if made_for and made_for != self.fingerprint:
                raise Unsupported(
                    f"the adapter in {path} was made for the base model {made_for}; {self.model_id} is {self.fingerprint}.",
                    "Make the adapter again for this model.",
                )
            self._worker.perform(lambda adapters: adapters.add(name, Path(path))).result()
            self._names = self._names | {name}

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter: no new request may use it, those under way end first.

        Raises:
            InvalidInput: no adapter of this name is loaded.
        """
        with self._changing:
            if name not in self._names:
                raise self._no_adapter(name)
            self._names = self._names - {name}
            self._worker.perform(lambda adapters: adapters.remove(name), free_of=name).result()

    def count_tokens(self, request: Request) -> int:
        """Count the prompt's tokens, the chat template included."""
        return len(self._template.encode(request))

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Answer all, in order; blocks the calling thread.

        Raises:
            InvalidInput: one of the requests cannot be answered; ``data["index"]`` says which. None is.
            KeToolsError: the model failed on one of them.
        """
        answers = [_Answer() for _ in requests]
        is_urgent = len(requests) <= _FEW
        rows = [self._row(request, answers[i], index=i, is_urgent=is_urgent) for i, request in enumerate(requests)]
        # Neighbours of one length waste no padding.
        self._worker.submit(rows if is_urgent else sorted(rows, key=lambda row: (row.request.adapter, row.width)))
        try:
            return [answer.result() for answer in answers]
        except BaseException:
            for row in rows:
                row.cancel()
            raise

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[float | None]:
        """Give the log-probability of each target behind its request (:class:`~ke_tools.models.engine.Scores`).

        Raises:
            InvalidInput: as :meth:`generate`.
        """
        sums = [_Answer() for _ in requests]
        rows = [self._forced(request, target, sums[i], i) for i, (request, target) in enumerate(zip(requests, targets, strict=True))]
        self._worker.submit(sorted((row for row in rows if row is not None), key=lambda row: (row.request.adapter, row.width)))
        made = [answer.result() if row is not None else None for row, answer in zip(rows, sums, strict=True)]
        return [None if one is None else sum(token.logprob for token in one.logprobs or ()) for one in made]

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """Answer piece by piece; closing the iterator cancels the generation.

        Raises:
            InvalidInput: the request cannot be answered (raised by the first step).
        """
        pieces = _Pieces(asyncio.get_running_loop())
        row = self._row(request, pieces, streams=True)
        self._worker.submit([row])
        try:
            while True:
                piece = await pieces.next()
                yield piece
                if piece.finished is not None:
                    return
        finally:
            row.cancel()

    def close(self) -> None:
        """Free the model; what is under way fails."""
        self.weights = {}
        self._finalizer()

    def _forced(self, request: Request, target: str, sink: _Answer, index: int) -> ForcedRow | None:
        """A row that says ``target``; ``None`` where that cannot stand behind the request as tokens of its own."""
        self._check(request)
        placed = self._template.placed(request, target)
        if placed is None:
            return None
        if len(placed.ids) >= self.context_length:
            raise InvalidInput(f"prompt and target have {len(placed.ids)} tokens; the model reads {self.context_length}.", index=index)
        request = dataclasses.replace(request, adapter="+".join(sorted(names_in(request.adapter))), logprobs=0, stop=())
        return ForcedRow(request, placed.ids[: placed.prompt_length], placed.target, tokenizer=self._tokenizer, sink=sink)

    def _row(self, request: Request, sink: _Answer | _Pieces, *, index: int = 0, streams: bool = False, is_urgent: bool = True) -> Row:
        try:
            self._check(request)
            request = dataclasses.replace(request, adapter="+".join(sorted(names_in(request.adapter))))  # one order, one batch
            ids = self._fitting(request)
        except InvalidInput as error:
            raise InvalidInput(error.message, error.hint, **{**error.data, "index": index}) from error
        budget = min(request.max_tokens, self.context_length - len(ids))
        return Row(request, ids, budget=budget, tokenizer=self._tokenizer, sink=sink, streams=streams, is_urgent=is_urgent)

    def _check(self, request: Request) -> None:
        wrong = [
            what
            for what, is_wrong in (
                ("either prompt or messages must be given, not both", (request.prompt is None) == (request.messages is None)),
                (f"max_tokens is {request.max_tokens}; at least 1 is needed", request.max_tokens < 1),
                (f"temperature is {request.temperature}; it goes from 0 to 2", not 0 <= request.temperature <= 2),  # noqa: PLR2004
                (f"top_p is {request.top_p}; it goes from above 0 to 1", not 0 < request.top_p <= 1),
                ("a stop string is empty", "" in request.stop),
                (f"logprobs is {request.logprobs}; it goes from 0 to {MOST_LOGPROBS}", not 0 <= (request.logprobs or 0) <= MOST_LOGPROBS),
            )
            if is_wrong
        ]
        if wrong:
            raise InvalidInput("; ".join(wrong) + ".", "Correct the request.")
        names = names_in(request.adapter)
        for name in names:
            if name not in self._names:
                raise self._no_adapter(name)
        if len(set(names)) < len(names):
            raise InvalidInput(f"the adapter {request.adapter!r} names one twice.", "Name each once.")

    def _no_adapter(self, name: str) -> InvalidInput:
        return InvalidInput(f"no adapter {name!r} is loaded.", f"Loaded are: {', '.join(sorted(self._names)) or 'none'}.")

    def _fitting(self, request: Request) -> list[int]:
        ids = self._template.encode(request)
        if len(ids) >= self.context_length:
            raise InvalidInput(
                f"the prompt has {len(ids)} tokens; the model reads {self.context_length}, its answer included.", "Shorten the prompt."
            )
        return ids


class _Answer:
    """Where one answer of a list goes."""

    def __init__(self) -> None:
        self._future: Future[Generation] = Future()

    def piece(self, piece: Piece) -> None:
        if piece.finished is not None:
            self._future.set_result(piece.finished)

    def fail(self, error: KeToolsError) -> None:
        self._future.set_exception(error)

    def result(self) -> Generation:
        return self._future.result()


class _Pieces:
    """Carries a streamed answer from the engine's thread to an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[Piece | KeToolsError] = asyncio.Queue()

    def piece(self, piece: Piece) -> None:
        self._put(piece)

    def fail(self, error: KeToolsError) -> None:
        self._put(error)

    async def next(self) -> Piece:
        found = await self._queue.get()
        if isinstance(found, KeToolsError):
            raise found
        return found

    def _put(self, item: Piece | KeToolsError) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Unsupported(f"the device {wanted!r} cannot be used: {error}", "Say --device auto, or cpu.") from error
    return device


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if wanted not in known:
        raise InvalidInput(f"the dtype {wanted!r} is not known.", f"Known are: auto, {', '.join(known)}.")
    return known[wanted]


def _threads() -> int | None:
    """As many as there are cores for us, unless the environment says otherwise."""
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _load_model(path: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=trust_remote_code
        )
        model = model.to(device).eval().requires_grad_(requires_grad=False)
    except Exception as error:
        raise ModelUnavailable(f"the model in {path} cannot be loaded: {brief(error)}", "See `ke-tools doctor`.") from error
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(model, "_is_stateful", False):
        raise Unsupported(
            f"{path} keeps more than keys and values between tokens ({', '.join(sorted(kinds)) or model.config.model_type}).",
            "The in-process engine serves plain attention models; serve this one by vLLM.",
        )
    if device.type == "cpu" and dtype == torch.float32:
        _lay_out_for_cpu(model)
    return model


def _lay_out_for_cpu(model: torch.nn.Module) -> None:
    """Store linear weights column by column: the same numbers, but products with few rows take about two thirds of the time."""
    weights = {id(module.weight): module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)}

    def lay_out(weight: torch.nn.Parameter) -> None:
        weight.data = weight.data.t().contiguous().t()

    with ThreadPoolExecutor(_threads()) as pool:  # the copies take longer than reading the file
        list(pool.map(lay_out, weights.values()))


def _forward(model: Any) -> Forward:
    """Return (ids, mask, positions, cache) → logits (B, V) of the last column."""
    known = inspect.signature(model.forward).parameters

    def forward(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        optional = {"position_ids": positions, "logits_to_keep": 1}
        output = model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **{name: value for name, value in optional.items() if name in known},
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    return forward


def _context_length(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    for name in ("max_position_embeddings", *_OTHER_CONTEXTS):
        if isinstance(found := getattr(text, name, None), int) and found > 0:
            return found
    stated = int(min(tokenizer.model_max_length, 1 << 30))
    return stated if stated < 1 << 30 else 2048


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """Collect the tokens that end an answer: those of the generation config and the tokenizer's own."""
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = [stated] if isinstance(stated, int) else list(stated or ())
    return frozenset(i for i in (*ids, tokenizer.eos_token_id) if i is not None)


def _pad_id(tokenizer: Any) -> int:
    return next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
