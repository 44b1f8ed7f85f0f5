"""The second part of the full demo: corrections are written into the weights of a tiny model, and everything is taken out again.

In this process and a home of its own. What the gate decides is found at run time, as in the first part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools import atlas, printing
from ke_tools.benches.editors import atlas_cases
from ke_tools.errors import KeToolsError
from ke_tools.models.engine import Request
from ke_tools.servers.local import Local
from ke_tools.servers.principal import Principal
from ke_tools.testing import thimble_facts, thimble_path
from ke_tools.verify.matching import asserts

if TYPE_CHECKING:
    from ke_tools.cases import Case
    from ke_tools.config import Settings
    from ke_tools.demo._story import Story
    from ke_tools.memory.router import Via

__all__ = ["tell"]

EDITS: Final = 10
CURRENCIES: Final = 3
LIMIT: Final = {"growth": 0.5, "reliability": 0.8}  # growth of a layer, as a share of the weight's norm: one edit takes about twice that
_TOKENS: Final = 12
_SEED: Final = 0


def tell(story: Story, settings: Settings, home: Path) -> None:
    """Promote, have a batch refused and taken by another rung, and roll all of it back.

    Raises:
        KeToolsError: a job did not end as completed.
    """
    mine = replace(
        settings, home=home, model=str(thimble_path()), read_only=False, token_file=None, via="auto", promote={}, tenant=Principal().tenant
    )
    ten = atlas_cases(EDITS, _SEED, thimble_facts())
    currencies = _currencies(ten)
    questions = [text for case in (*ten, *currencies) for text in (case.prompt, *case.rephrases, *(asked for asked, _ in case.neighbours))]
    questions = list(dict.fromkeys(questions))
    story.chapter("What is to last is written into the model itself, if a gate lets it")
    story.told(
        "From here on the model is the thimble, a model of three million parameters that comes with the package and knows a hundred facts:"
    )
    story.told("its promotions take about a minute, those of a real model many.")
    with Local(mine) as local:
        with printing.progress() as progress:
            progress("loading the thimble", 0, 0)
            local.service.models.engine(wait_seconds=3600)
        before = _said(local, questions)
        _refused_and_taken(story, local, currencies)
        _ladder(story, local, ten)
        _all_taken_back(story, local, questions, before)


def _currencies(others: Sequence[Case]) -> list[Case]:
    """Counterfactual currencies of countries that no other case is about."""
    taken = {case.subject for case in others}
    known = [fact for fact in thimble_facts() if fact.relation == "currency" and fact.subject not in taken]
    return atlas_cases(CURRENCIES, _SEED, known)


def _refused_and_taken(story: Story, local: Local, chosen: Sequence[Case]) -> None:
    story.chapter(f"{len(chosen)} corrections, where the policy lets no layer change by more than {LIMIT['growth']:.0%}")
    story.told(f"and asks that {LIMIT['reliability']:.0%} of the answers to the corrected questions, in other frames, are the new ones.")
    ids = _edited(story, local, chosen)
    by_weights = _promoted(story, local, ids, "memit", LIMIT)
    first = next(iter(by_weights["decisions"]), "")
    story.check("the gate refuses MEMIT with all of them", ok=f"{len(ids)} edits refused" in first, decision=first)
    left = [edit_id for edit_id in ids if _rungs(by_weights)[edit_id] == "memory"]
    by_codebook = _promoted(story, local, left, "grace", LIMIT) if left else by_weights
    carried = _carried(story, by_codebook, f"of the {len(left)} that MEMIT left in memory, by GRACE", rung="grace")
    _answered(story, local, [case for edit_id, case in zip(ids, chosen, strict=True) if edit_id in carried])


def _ladder(story: Story, local: Local, chosen: Sequence[Case]) -> None:
    story.chapter(f"{len(chosen)} more, with the gate's defaults, by whichever rung it accepts")
    ids = _edited(story, local, chosen)
    job = _promoted(story, local, ids, "auto")
    for edit_id, case in zip(ids, chosen, strict=True):
        story.told(f"{_rungs(job)[edit_id]:<6}  {case.prompt} {case.target}", edit_id=edit_id)
    for line in job["scorecard_text"].splitlines():
        story.told(line)
    carried = _carried(story, job, f"of {len(ids)} edits")
    story.check("every edit ended on a rung, with the reason", ok=set(_rungs(job)) == set(ids) and all(e["reason"] for e in job["edits"]))
    _answered(story, local, [case for edit_id, case in zip(ids, chosen, strict=True) if edit_id in carried])


def _all_taken_back(story: Story, local: Local, questions: Sequence[str], before: Sequence[str]) -> None:
    story.chapter("Everything is rolled back at once")
    story.told(local.rollback(to_revision=0, reason="shown that it can be undone")["summary"])
    moved = [asked for asked, was, now in zip(questions, before, _said(local, questions), strict=True) if was != now]
    story.check(f"all of {len(questions)} answers are byte for byte what they were before any edit", ok=not moved, moved=moved)


def _edited(story: Story, local: Local, chosen: Sequence[Case]) -> list[str]:
    facts = [{"subject": case.subject, "prompt": case.prompt, "target": case.target, "old_target": case.truth} for case in chosen]
    made = local.edit(facts)
    story.check(f"{len(chosen)} edits act from the memory", ok=[e["state"] for e in made["edits"]] == ["active"] * len(chosen))
    return [edit["edit_id"] for edit in made["edits"]]


def _promoted(story: Story, local: Local, edit_ids: Sequence[str], method: str, policy: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A promotion followed to its end, with what the gate decided of each candidate."""
    with printing.progress() as progress:
        job = local.promote(
            edit_ids,
            method=method,
            policy=policy,
            heard=lambda now: progress(now["message"] or now["stage"] or "waiting", now["progress"], now["total"]),
        )
    if job["status"] != "completed":
        raise KeToolsError(f"a promotion of the demo {job['status']}: {job['error_message']}", "See `ke-tools doctor`.")
    for decision in job["decisions"]:
        story.told(decision)
    story.told(job["summary"], job=job)
    return job


def _carried(story: Story, job: Mapping[str, Any], which: str, *, rung: str = "") -> list[str]:
    """The edits that are beyond the memory: on one rung, where they must be some, or on any."""
    found = [edit_id for edit_id, name in _rungs(job).items() if (name == rung if rung else name != "memory")]
    count = Counter(_rungs(job).values())
    rungs = ", ".join(f"{number} {name}" for name, number in count.items())
    claim = f"the gate let in {len(found)} {which} ({rungs})"
    if rung:
        story.check(claim, ok=bool(found))
    else:  # how many, its probes decide
        story.told(claim)
    return found


def _answered(story: Story, local: Local, carried: Sequence[Case]) -> None:
    """Ask by the release alone, without the memory."""
    for case, said in zip(carried, _said(local, [case.prompt for case in carried], "weights"), strict=True):
        story.check(f"without the memory: “{case.prompt}” → “{said.strip()}”", ok=asserts(said, _names(case)), was=case.truth)


def _names(case: Case) -> list[str]:
    return [case.target, *atlas.aliases(case.target)]


def _rungs(job: Mapping[str, Any]) -> dict[str, str]:
    return {edit["edit_id"]: edit["rung"] for edit in job["edits"]}


def _said(local: Local, prompts: Sequence[str], via: Via = "auto") -> list[str]:
    asked = [Request(prompt=prompt, max_tokens=_TOKENS) for prompt in prompts]
    return [made.text for _, made in local.service.answering.answer_batch(Principal(), asked, via=via)]
