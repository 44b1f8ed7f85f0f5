"""Why the scope decided as it did, in words; and what the model answers now, for whoever is about to correct it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ke_tools.errors import KeToolsError
from ke_tools.facts import squash
from ke_tools.models.engine import Request, one_turn
from ke_tools.verify import asserts

if TYPE_CHECKING:
    from ke_tools.memory.scope import Decision, Hit
    from ke_tools.servers.principal import Principal
    from ke_tools.servers.service import Service

__all__ = ["MOST_SHOWN", "ZONES", "present_answer", "says", "why"]

MOST_SHOWN: Final = 300  # characters of an answer
ZONES: Final = {"in": "So it went in.", "grey": "That was not enough to use it.", "out": "It was not used."}

_LIKELY: Final = ((0.95, "almost certainly"), (0.8, "very likely"), (0.6, "likely"), (0.0, "perhaps"))
_FOUND: Final = {
    "named": "your question names its subject",
    "carried": "the question goes on about the subject named before",
    "alike": "the question is worded like it",
}
_ANSWER_TOKENS: Final = 32
_ANSWER_SECONDS: Final = 30.0
_PATIENCE: Final = 120.0  # seconds for a model that is still loading


def why(hit: Hit, decision: Decision) -> str:
    """Say how likely an edit is what is asked, how much is needed, and by what it was found."""
    likely = next(word for least, word in _LIKELY if hit.score >= least)
    needed = decision.stages.get("thresholds", {}).get(hit.edit.id)
    beside = f", of {needed:.2f} needed" if isinstance(needed, float) else ""
    return f"{likely} what is asked ({hit.score:.2f}{beside}); {_FOUND.get(hit.how, hit.how)}"


async def present_answer(service: Service, who: Principal, prompt: str) -> str:
    """What the model answers a prompt now; not counted as a question of somebody's."""
    try:
        engine = await service.models.engine_async(_PATIENCE)
        is_asked = prompt.rstrip().endswith("?")
        request = one_turn(prompt, engine, _ANSWER_TOKENS) if is_asked else Request(prompt=prompt, max_tokens=_ANSWER_TOKENS)
        routed = await asyncio.to_thread(service.answering.path(who, engine), request)
        async with asyncio.timeout(_ANSWER_SECONDS):
            made = await service.answering.answered(who, routed, engine)
    except TimeoutError:
        return "(it did not answer in time)"
    except KeToolsError as error:
        return f"(it did not answer: {error.message})"
    text = " ".join(made.text.split())
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "…"


def says(answer: str, target: str) -> bool:
    """Whether an answer is the target, or asserts it."""
    said, wanted = squash(answer), squash(target)
    return bool(wanted) and (said == wanted or said.startswith(wanted + " ") or asserts(answer, (target,)))
