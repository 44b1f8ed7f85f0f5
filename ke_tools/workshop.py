"""Where candidates are made and asked: an editing copy of the model, an engine that serves them, and a folder of releases.

A fact's value (z) does not depend on the facts beside it, so it is found once and serves every candidate of a ladder; so are the unedited
model's answers to the probes. Its last bits do depend on them, as they share a batch. So a release says which values were found together
(``how["together"]``, of a codebook ``how["coded_together"]``), and is planned in the order of the edits' ids: :meth:`Workshop.remake` gives
the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from ke_tools import atlas, releases
from ke_tools.editors._spread import described
from ke_tools.editors.grace import GRACE
from ke_tools.editors.memit import MEMIT
from ke_tools.errors import KeToolsError, NotFound
from ke_tools.facts import Edit, Fact, Probe
from ke_tools.models.causal import CausalModel
from ke_tools.models.engine import Engine
from ke_tools.promotion import Candidate
from ke_tools.verify.asking import fill, request_of
from ke_tools.verify.gate import Verdict, look_until_clear
from ke_tools.verify.known import knows
from ke_tools.verify.perplexity import plain_perplexity
from ke_tools.verify.policy import Policy
from ke_tools.verify.probes import candidates
from ke_tools.verify.run import answer
from ke_tools.verify.scorecard import Outcome
from ke_tools.verify.supply import Supply

if TYPE_CHECKING:
    from ke_tools.editors._spread import Prepared
    from ke_tools.editors._targets import Targets
    from ke_tools.editors.codebook import Codebook
    from ke_tools.editors.update import Update
    from ke_tools.releases import Release

__all__ = ["Serving", "Workshop", "needed", "worded"]

Tell = Callable[[str, int, int, str], None]

_WORDINGS: Final = 2  # statements of the relation, and as many questions, that a fact is planned with beside its own
_KEYED: Final = 6  # the same of a codebook, where each costs a key and little of the search
_DRAWN: Final = 2  # times the most that the policy asks: so many are drawn to find those that can tell
_AT_ONCE: Final = 96  # probes, between which a walk may be left; rows of the engine that are done make room for the next


class Serving(Engine, Protocol):
    """An engine that takes releases."""

    def load_adapter(self, name: str, path: Path) -> None:
        """Serve a release under its name."""

    def unload_adapter(self, name: str) -> None:
        """Forget it."""


@dataclass(slots=True)
class _Values:
    """Values that were found with the same weights, and with which others."""

    wanted: Sequence[Sequence[Edit]] = ()  # groups that are to be found together
    _found: dict[str, Targets] = field(default_factory=dict)
    _with: dict[str, list[str]] = field(default_factory=dict)

    def of(self, edits: Sequence[Edit], find: Callable[[Sequence[Edit]], Targets]) -> Targets:
        """Those of some edits; what is missing is found now."""
        for group in (*self.wanted, edits):
            if missing := [edit for edit in group if edit.id not in self._found]:
                fresh, ids = find(missing), [edit.id for edit in missing]
                self._found |= {edit_id: fresh.only([n]) for n, edit_id in enumerate(ids)}
                self._with |= dict.fromkeys(ids, ids)
        first, *others = (self._found[edit.id] for edit in edits)
        return first.plus(*others)

    def together(self, edits: Sequence[Edit]) -> list[list[str]]:
        """The groups that some edits' values were found in."""
        return sorted({tuple(self._with[edit.id]): self._with[edit.id] for edit in edits}.values())


class Workshop:
    """Makes and asks candidates (:class:`~ke_tools.promotion.Maker`)."""

    def __init__(
        self,
        model: CausalModel,
        engine: Serving,
        *,
        root: Path,
        cache: Path | None = None,
        live: Iterable[Edit] = (),
        seed: int = 0,
        tell: Tell = lambda *_: None,
    ) -> None:
        """Take what there is; nothing is computed yet.

        Args:
            model: the editing copy; as it was whenever no method of this runs.
            engine: serves the same weights.
            root: where releases lie.
            cache: where what follows from the model alone is kept.
            live: the tenant's live edits; what they change is no neighbour.
            seed: of all that is sampled.
            tell: hears (stage, done, total, message); what it raises ends the work.
        """
        self._model, self._engine, self._root, self._cache = model, engine, root, cache
        self._live, self._tell = tuple(live), tell
        self._chats = bool(model.tokenizer.chat_template)
        self._memit = MEMIT(contexts=2, chat=self._chats, seed=seed)
        self._grace = GRACE(contexts=2, chat=self._chats, seed=seed)
        self._in_weights = _Values()
        self._in_codebook: dict[tuple[str, ...], _Values] = defaultdict(_Values)  # by the edits in the weights meanwhile
        self._base: dict[tuple[str, bool], str] = {}

    def make(self, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]) -> Candidate:
        """Plan from the base weights, and write a release.

        Raises:
            InvalidInput: an edit cannot be planned, or two contradict each other.
            ResourceExhausted, ReadOnly: the release cannot be written.
        """
        in_weights, in_codebook = _in_order(in_weights), _in_order(in_codebook)
        update = self._planned(in_weights) if in_weights else None
        beside = self._in_codebook[tuple(edit.id for edit in in_weights)]
        plain, elsewhere = self._plain, self._for_codebook if in_codebook else None  # before anything is applied
        with ExitStack() as applied:
            if update is not None:
                applied.enter_context(update.applied(self._model))
            codebook = self._coded(elsewhere, in_codebook, beside) if in_codebook else None
            if codebook is not None:
                applied.enter_context(codebook.applied(self._model))
            perplexity = plain_perplexity(self._model) / plain
        growth = max(update.growth(self._model).values(), default=0.0) if update is not None else 0.0
        how = self._how(update, codebook, in_weights, in_codebook)
        release = releases.build(self._root, self._model, update=update, codebook=codebook, edits=[*in_weights, *in_codebook], how=how)
        return Candidate(release, tuple(in_weights), tuple(in_codebook), perplexity, growth)

    def remake(self, how: Mapping[str, Any], edits: Mapping[str, Edit]) -> Release:
        """Make a release again from what its manifest says of how it was made, and write it.

        Raises:
            NotFound: an edit is missing that it needs, if only for what was found beside it.
            InvalidInput, ResourceExhausted, ReadOnly: as :meth:`make` says.
        """
        if lost := sorted(needed(how) - set(edits)):
            raise NotFound(f"{lost[0]} is needed to make the release again, and is not there.", "Promote the others again.")
        self._in_weights.wanted = [[edits[edit_id] for edit_id in group] for group in how.get("together", ())]
        beside = self._in_codebook[tuple(how["in_weights"])]
        beside.wanted = [[edits[edit_id] for edit_id in group] for group in how.get("coded_together", ())]
        return self.make(*([edits[edit_id] for edit_id in how[part]] for part in ("in_weights", "in_codebook"))).release

    def judge(
        self, candidate: Candidate, edits: Sequence[Edit], earlier: Sequence[Edit], policy: Policy, number: int
    ) -> tuple[Verdict, Sequence[Outcome]]:
        """Ask a candidate about edits, by free generation through the engine, until the gate decides."""
        supply = Supply(edits, known=self._known(edits), live=self._live, earlier=earlier, draw=number)
        outcomes: list[Outcome] = []
        release = candidate.release

        def measure(wanted: Mapping[str, int]) -> Sequence[Outcome]:
            probes = supply.telling(wanted, self._before, _DRAWN * policy.most)
            fresh = answer(probes, lambda asked: self._ask(asked, release.name), self._before)
            outcomes.extend(fresh)
            return fresh

        self._engine.load_adapter(release.name, release.folder)
        try:
            limits = {"perplexity": candidate.perplexity, "growth": candidate.growth}
            verdict = look_until_clear(measure, policy, candidate=number, edits=len(edits), **limits)
        finally:
            with suppress(KeToolsError):  # an engine that was closed has forgotten it
                self._engine.unload_adapter(release.name)
        return verdict, outcomes

    # Inside

    @cached_property
    def _plain(self) -> float:
        return plain_perplexity(self._model)

    @cached_property
    def _for_weights(self) -> Prepared:
        return self._memit.prepare(self._model, cache=self._cache, tell=self._stage)

    @cached_property
    def _for_codebook(self) -> Any:
        return self._grace.prepare(self._model, cache=self._cache, tell=self._stage)

    def _planned(self, edits: Sequence[Edit]) -> Update:
        def find(some: Sequence[Edit]) -> Targets:
            return self._memit.targets(self._for_weights, [worded(edit) for edit in some], tell=self._stage)

        found = self._in_weights.of(edits, find)
        return self._memit.plan(self._for_weights, [worded(edit) for edit in edits], found=found, tell=self._stage)

    def _coded(self, elsewhere: Any, edits: Sequence[Edit], known: _Values) -> Codebook:
        def find(some: Sequence[Edit]) -> Targets:
            return self._grace.targets(elsewhere, [worded(edit, _KEYED) for edit in some], tell=self._stage)

        found = known.of(edits, find)
        return self._grace.plan(elsewhere, [worded(edit, _KEYED) for edit in edits], found=found, tell=self._stage)

    def _how(
        self, update: Update | None, codebook: Codebook | None, in_weights: Sequence[Edit], in_codebook: Sequence[Edit]
    ) -> dict[str, Any]:
        ids = tuple(edit.id for edit in in_weights)
        how: dict[str, Any] = {"in_weights": list(ids), "in_codebook": [edit.id for edit in in_codebook]}
        if update is not None:
            how |= {"memit": dict(update.method), "together": self._in_weights.together(in_weights)}
        if codebook is not None:
            how["grace"] = dict(described(self._grace, layer=codebook.layer))
            how["coded_together"] = self._in_codebook[ids].together(in_codebook)
        return how

    def _known(self, edits: Sequence[Edit]) -> list[atlas.AtlasFact]:
        near = [fact for edit in edits for fact in candidates(edit, live=self._live, suite="full")]
        return knows(self._engine, list(dict.fromkeys(near)), cache=self._cache, progress=self._stage)

    def _before(self, probes: Sequence[Probe]) -> list[str]:
        """What the unedited model says where that counts; of what shall change it is not asked."""
        said = dict(zip(kept := [probe for probe in probes if probe.expect == "unchanged"], self._unedited(kept), strict=True))
        return [said.get(probe, "") for probe in probes]

    def _unedited(self, probes: Sequence[Probe]) -> list[str]:
        missing = list({(probe.prompt, probe.chat): probe for probe in probes if (probe.prompt, probe.chat) not in self._base}.values())
        self._base |= {(probe.prompt, probe.chat): text for probe, text in zip(missing, self._ask(missing, ""), strict=True)}
        return [self._base[probe.prompt, probe.chat] for probe in probes]

    def _ask(self, probes: Sequence[Probe], adapter: str) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(probes), _AT_ONCE):
            self._tell("probes", start, len(probes), f"asking {adapter or 'the unedited model'}")
            part = [replace(request_of(probe, self._engine), adapter=adapter) for probe in probes[start : start + _AT_ONCE]]
            texts += [made.text for made in self._engine.generate(part)]
        return texts

    def _stage(self, stage: str, done: int, total: int) -> None:
        self._tell(stage, done, total, "")


def _in_order(edits: Sequence[Edit]) -> list[Edit]:
    return sorted(edits, key=lambda edit: edit.id)


def needed(how: Mapping[str, Any]) -> set[str]:
    """The edits that it takes to make a release again."""
    groups = (*how.get("together", ()), *how.get("coded_together", ()), how["in_weights"], how["in_codebook"])
    return {edit_id for group in groups for edit_id in group}


def worded(edit: Edit, most: int = _WORDINGS) -> Fact:
    """The edit's fact with up to ``most`` fitted statements and questions of its relation; probes are never made of these."""
    relation = atlas.relations().get(edit.relation)
    if relation is None:
        return edit.fact
    texts = [*relation.fitted_questions[:most], *relation.fitted_statements[:most]]
    own = [fill(text, edit.fact.subject) for text in texts]
    known = {edit.fact.prompt, *edit.fact.paraphrases}
    return replace(edit.fact, paraphrases=(*edit.fact.paraphrases, *(text for text in own if text not in known)))
