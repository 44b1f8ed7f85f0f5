"""Measures edits through a serving path: makes their probes, has both views answered, and counts what it cost.

Free generation by the engine that serves is what decides; where that engine scores (:class:`~ke_tools.models.engine.Scores`), the
target's probability is told beside.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.models.engine import Engine, Generation, Request, Scores, tells_weights

if TYPE_CHECKING:
    from ke_tools.facts import Edit, Probe
    from ke_tools.memory.router import Routed
    from ke_tools.verify.beside import Answered
    from ke_tools.verify.forgotten import Keeper
    from ke_tools.verify.probes import Suite
    from ke_tools.verify.scorecard import Scorecard

__all__ = ["BaseAnswers", "Measuring", "Tell", "answered_by"]

log = logging.getLogger(__name__)

Tell = Callable[[str, int, int, str], None]

AT_ONCE: Final = 32  # probes a batch, as many as the in-process engine answers together; between batches a caller may leave
_BASE_ANSWERS_KEPT: Final = 4096


class BaseAnswers:
    """The base model's greedy answers to probes; they never change while its weights do not, so they are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, bool], str] = OrderedDict()

    def of(self, engine: Engine, probes: Sequence[Probe]) -> list[str]:
        """Give them, asking for those that are missing."""
        from ke_tools.verify.asking import request_of

        if not tells_weights(engine):
            return [one.text for one in engine.generate([request_of(probe, engine) for probe in probes])]
        keys = [(engine.fingerprint, probe.prompt, probe.chat) for probe in probes]
        missing = {key: probe for key, probe in zip(keys, probes, strict=True) if key not in self._kept}
        made = engine.generate([request_of(probe, engine) for probe in missing.values()])
        self._kept.update({key: one.text for key, one in zip(missing, made, strict=True)})
        answers = [self._kept[key] for key in keys]
        while len(self._kept) > _BASE_ANSWERS_KEPT:
            self._kept.popitem(last=False)
        return answers


def answered_by(engine: Engine, ways: Mapping[str, Callable[[Request], Routed]], tell: Tell) -> Callable[[str, list[Probe]], Answered]:
    """Give what answers probes by one of these ways, and says what each took."""
    from ke_tools.verify.asking import request_of
    from ke_tools.verify.beside import Answered

    def by(way: str, probes: list[Probe]) -> Answered:
        texts: list[str] = []
        seconds, tokens = 0.0, 0
        for start in range(0, len(probes), AT_ONCE):
            tell("beside the memory", start, len(probes), f"the same probes by {way}")
            began = time.monotonic()
            routed = [ways[way](request_of(probe, engine)).request for probe in probes[start : start + AT_ONCE]]
            texts += [one.text for one in engine.generate(routed)]
            seconds += time.monotonic() - began
            tokens += sum(engine.count_tokens(request) for request in routed)
        count = max(1, len(probes))
        return Answered(texts, tokens / count, 1000 * seconds / count)

    return by


@dataclass(slots=True)
class _Costs:
    """Of the memory's way to an answer, summed up."""

    probes: int = 0
    seconds: float = 0.0
    routed: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Measuring:
    """One verification under way; what ``tell`` raises ends it between two batches."""

    engine: Engine
    route: Callable[[Request], Routed]  # the edited view
    base: BaseAnswers
    live: Sequence[Edit]  # what they change is no neighbour
    generate: Callable[[Sequence[Routed]], list[tuple[Routed, Generation]]]
    keeper: Keeper | None = None  # tells what edits that forget give away
    cache: Path | None = None
    tell: Tell = lambda *_: None
    _costs: _Costs = field(default_factory=_Costs)
    _ways: dict[Probe, Routed] = field(default_factory=dict)  # of what was asked, for its scores

    def scorecard(self, edits: Sequence[Edit], suite: Suite, given: Sequence[Mapping[str, Any]] = ()) -> Scorecard:
        """Measure.

        Raises:
            InvalidInput: a probe of the caller's cannot be read.
        """
        from ke_tools.verify import known, peak
        from ke_tools.verify import probes as making
        from ke_tools.verify.efficiency import Efficiency
        from ke_tools.verify.likelihood import with_likelihoods
        from ke_tools.verify.run import outcomes_of, summarise

        began = time.monotonic()
        near = dict.fromkeys(fact for edit in edits for fact in making.candidates(edit, live=self.live, suite=suite))
        facts = known.knows(self.engine, list(near), cache=self.cache, progress=self._asking_what_it_knows)
        probes = [probe for edit in edits for probe in making.probes_for(edit, known=facts, live=self.live, suite=suite)]
        probes += [making.given(probe, edits) for probe in given]
        asks = self._in_batches(self._edited, "as edited"), self._in_batches(self._unedited, "as the base model")
        outcomes = outcomes_of(edits, probes, *asks, keeper=self.keeper)
        if isinstance(self.engine, Scores):
            try:
                outcomes = with_likelihoods(outcomes, self._scored)
            except InvalidInput as error:  # a prompt that leaves no room for a target, or a release that has gone since
                log.warning("the targets' probabilities were not measured: %s", error)
        costs = self._costs
        efficiency = Efficiency(
            seconds=time.monotonic() - began,
            peak_mib=peak.peak(),
            routed=costs.routed,
            tokens=costs.tokens / max(1, costs.routed),
            milliseconds=1000 * costs.seconds / max(1, costs.probes),
        )
        return replace(summarise(edits, outcomes), efficiency=efficiency)

    def _asking_what_it_knows(self, stage: str, done: int, total: int) -> None:
        self.tell(stage, done, total, "what the model knows")

    def _routed(self, probe: Probe) -> Routed:
        from ke_tools.verify.asking import request_of

        if probe not in self._ways:
            began = time.monotonic()
            self._ways[probe] = self.route(request_of(probe, self.engine))
            self._costs.seconds += time.monotonic() - began
            self._costs.probes += 1
        return self._ways[probe]

    def _edited(self, probes: Sequence[Probe]) -> list[str]:
        from ke_tools.verify.asking import request_of

        costs, routed = self._costs, [self._routed(probe) for probe in probes]
        for probe, one in zip(probes, routed, strict=True):
            if one.hits:
                costs.routed += 1
                costs.tokens += self.engine.count_tokens(one.request) - self.engine.count_tokens(request_of(probe, self.engine))
        return [made.text for _, made in self.generate(routed)]

    def _unedited(self, probes: Sequence[Probe]) -> list[str]:
        return self.base.of(self.engine, probes)

    def _in_batches(self, ask: Callable[[Sequence[Probe]], list[str]], view: str) -> Callable[[Sequence[Probe]], list[str]]:
        def ask_all(probes: Sequence[Probe]) -> list[str]:
            answers: list[str] = []
            for start in range(0, len(probes), AT_ONCE):
                self.tell("probes", start, len(probes), f"probes {view}")
                answers += ask(probes[start : start + AT_ONCE])
            return answers

        return ask_all

    def _scored(self, probes: Sequence[Probe], texts: Sequence[str]) -> list[float | None]:
        assert isinstance(self.engine, Scores)
        scores: list[float | None] = []
        for start in range(0, len(probes), AT_ONCE):
            self.tell("scores", start, len(probes), "the targets' probabilities")
            part = slice(start, start + AT_ONCE)
            scores += self.engine.score([self._routed(probe).request for probe in probes[part]], texts[part])
        return scores
