"""One request on its way through the engine: its tokens become text, its text is watched for stop strings."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from ke_tools.errors import KeToolsError
from ke_tools.models.engine import FinishReason, Generation, Piece, Request, TokenLogprob

_CONTEXT: Final = 6  # tokens before the answer that are decoded with it: some tokenizers drop a text's first space
_BROKEN: Final = "\ufffd"  # what the unfinished bytes of a character decode to


class Sink(Protocol):
    """Where an answer goes. Called by the engine's thread; must not block."""

    def piece(self, piece: Piece) -> None:
        """Take a part of the answer; the last one has ``finished`` set."""

    def fail(self, error: KeToolsError) -> None:
        """Take the reason why there will be no answer."""


class Detokeniser:
    """Turns tokens into text as they come; holds back the bytes of an unfinished character."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._from = 0  # where decoding begins
        self._read = len(self._ids)  # up to where the text was given out

    def push(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        self._ids.append(token)
        new = self._new()
        if not new or new.endswith(_BROKEN):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return new

    def flush(self) -> str:
        """Return what is left at the end, unfinished characters included."""
        new = self._new()
        self._from = self._read = len(self._ids)
        return new

    def _new(self) -> str:
        before = self._decode(self._ids[self._from : self._read])
        return self._decode(self._ids[self._from :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)) if ids else ""


class StopWatch:
    """The text so far, cut before the first stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self.text = ""

    def push(self, piece: str) -> bool:
        """Add text; say whether a stop string was met (the text then ends before it)."""
        search_from = max(0, len(self.text) - self._longest + 1)
        self.text += piece
        places = [place for stop in self._stops if (place := self.text.find(stop, search_from)) >= 0]
        if not places:
            return False
        self.text = self.text[: min(places)]
        return True

    @property
    def certain(self) -> int:
        """How many characters cannot turn out to be the beginning of a stop string."""
        for place in range(max(0, len(self.text) - self._longest + 1), len(self.text)):
            if any(stop.startswith(self.text[place:]) for stop in self._stops):
                return place
        return len(self.text)


@dataclass(slots=True)
class Choice:
    """A chosen token with its log-probabilities, if they are wanted."""

    token: int
    logprob: TokenLogprob | None = None


class Row:
    """A request, its state, and where its answer goes. Everything but :meth:`cancel` belongs to the engine's thread."""

    def __init__(
        self, request: Request, prompt_ids: Sequence[int], *, budget: int, tokenizer: Any, sink: Sink, streams: bool, is_urgent: bool
    ) -> None:
        self.request = request
        self.prompt_ids = tuple(prompt_ids)
        self.budget = budget  # most tokens that may be generated
        self.is_urgent = is_urgent  # somebody waits for this one; else it is one of many
        self._streams = streams
        self._sink = sink
        self._tokenizer = tokenizer
        self._detokeniser = Detokeniser(tokenizer, prompt_ids)
        self._watch = StopWatch(request.stop)
        self._logprobs: list[TokenLogprob] = []
        self._starts: list[int] = []  # where in the text each of them begins
        self._tokens = 0
        self._sent = 0  # characters given out
        self._sent_logprobs = 0
        self._cancelled = threading.Event()
        self._is_done = False
        self._generator: torch.Generator | None = None

    @property
    def width(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_ids)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Have the row leave its batch before the next step; may be called from any thread."""
        self._cancelled.set()

    def choose(self, logits: torch.Tensor, greedy: int) -> Choice:
        """Pick the next token from its logits (vocabulary,); ``greedy`` is where they are largest."""
        request = self.request
        token = greedy if request.temperature == 0 else sample(logits, request.temperature, request.top_p, self._own_generator())
        return Choice(token, self._logprob(logits, token) if request.logprobs is not None else None)

    def accept(self, choice: Choice, ends: frozenset[int]) -> bool:
        """Take a token; say whether the answer is complete (and was delivered)."""
        self._tokens += 1
        if choice.token in ends:
            return self._complete("stop")
        if choice.logprob is not None:
            self._logprobs.append(choice.logprob)
            self._starts.append(len(self._watch.text))
        if self._watch.push(self._detokeniser.push(choice.token)):
            return self.finish("stop")
        if self._tokens >= self.budget:
            return self._complete("length")
        if self._streams:
            self._send(self._watch.certain)
        return False

    def _complete(self, reason: FinishReason) -> bool:
        """Let the last bytes out; they too may complete a stop string."""
        return self.finish("stop" if self._watch.push(self._detokeniser.flush()) else reason)

    def finish(self, reason: FinishReason) -> bool:
        """Deliver the rest and the whole; once."""
        if self._is_done:
            return True
        self._is_done = True
        text = self._watch.text
        logprobs = tuple(self._logprobs[: bisect_left(self._starts, len(text))])  # without those of the text that was cut off
        whole = Generation(text, reason, self.width, self._tokens, logprobs if self.request.logprobs is not None else None)
        self._sink.piece(Piece(text[self._sent :], logprobs[self._sent_logprobs :], whole))
        return True

    def fail(self, error: KeToolsError) -> None:
        """Deliver the reason why there is no answer, unless there was one."""
        if not self._is_done:
            self._is_done = True
            self._sink.fail(error)

    def _send(self, upto: int) -> None:
        if upto <= self._sent:
            return
        count = bisect_left(self._starts, upto)
        self._sink.piece(Piece(self._watch.text[self._sent : upto], tuple(self._logprobs[self._sent_logprobs : count])))
        self._sent, self._sent_logprobs = upto, count

    def _own_generator(self) -> torch.Generator:
        """One stream of random numbers a row, so that its neighbours in the batch cannot change its answer."""
        if self._generator is None:
            self._generator = torch.Generator()
            if self.request.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(self.request.seed % 2**63)
        return self._generator

    def _logprob(self, logits: torch.Tensor, token: int) -> TokenLogprob:
        scores = torch.log_softmax(logits.float(), dim=-1)
        count = min(self.request.logprobs or 0, scores.numel())
        values, ids = scores.topk(count) if count else (scores[:0], scores[:0].long())
        top = tuple((self._name(i), value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogprob(self._name(token), float(scores[token]), top)

    def _name(self, token: int) -> str:
        return str(self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))


def sample(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw a token: softmax(logits / T), cut to the likeliest ones that hold ``top_p`` of the probability.

    One random number a token is inverted through the distribution function, in float64 on the CPU: the same seed gives
    the same token on every device as long as the logits are the same to rounding.
    """
    scores = logits.detach().to("cpu", torch.float64)
    probabilities = torch.softmax((scores - scores.max()) / temperature, dim=-1)
    order: torch.Tensor | None = None
    if top_p < 1:
        probabilities, order = probabilities.sort(descending=True, stable=True)
        probabilities = probabilities[: int((probabilities.cumsum(0) - probabilities < top_p).sum())]
    cumulated = probabilities.cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulated[-1]
    place = min(int(torch.searchsorted(cumulated, point, right=True)), len(cumulated) - 1)
    return place if order is None else int(order[place])
