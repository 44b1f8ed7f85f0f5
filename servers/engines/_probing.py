"""What a server of vLLM is asked about what it was given: whether it has it, and how likely it finds a text with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from ke_tools import releases
from ke_tools.errors import KeToolsError, ModelUnavailable, Unsupported
from ke_tools.models.engine import Request
from ke_tools.servers.engines._served import Served
from ke_tools.servers.engines._server import Server
from ke_tools.servers.engines._template import Template

__all__ = [
    "TOO_HIGH",
    "Scores",
    "asked_about",
    "codebooks",
    "differs",
    "forced",
    "furthest",
    "load",
    "plugin_of",
    "refuse_other_weights",
    "tokens",
]

TOO_HIGH: Final = re.compile(r"rank \d+ is greater than max_lora_rank (\d+)", re.IGNORECASE)
Scores = list[list[float]]
_PROBED: Final = 4  # edits of a release that a server is asked about before it is used
_SECONDS: Final = 60.0  # that a server may take for one of these answers; one that hangs must not hold up what others wait for
_FURTHEST: Final = 0.5  # nats a token that one model's weights may differ by from server to server: quantised here, not there
_SAME: Final = 1e-6  # in log-probability: an adapter that changes less does nothing
_NOISE: Final = 4.0  # times what answers to the same question differ by, on hardware whose batches count


def load(server: Server, served: Served) -> None:
    """Load an adapter.

    Raises:
        Unsupported: the server does not take it. ModelUnavailable: it does not answer.
    """
    said = _refusal(server, served)
    if said and not TOO_HIGH.search(said):
        said = _refusal(server, served)  # with several workers vLLM may answer with the failure of an earlier one
    if said:
        raise Unsupported(f"{server.address} does not load it: {said}", "See its log; docs/vllm.md says how to start it.")


def _refusal(server: Server, served: Served) -> str:
    """What the server says against an adapter; "" where it has it."""
    body = {"lora_name": served.name, "lora_path": str(served.folder.resolve())}
    try:
        server.post("/load_lora_adapter", body, is_json=False, seconds=_SECONDS)
    except KeToolsError as error:
        if server.circuit.told:  # nobody answered
            raise
        return "" if any(card["id"] == served.name for card in server.cards()) else error.message
    return ""


def forced(server: Server, model: str, texts: Sequence[Sequence[int]], *, seconds: float | None = _SECONDS) -> Scores:
    """The log-probability of each token of each text behind those before it, the first left out.

    ``seconds`` it may take, ``None`` as long as any answer: behind nobody's lock a server that is only busy is waited for.
    """
    if not texts:
        return []
    body = {"model": model, "prompt": [list(text) for text in texts], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    answer = server.post("/completions", body, seconds=seconds)
    try:
        return [
            [float(row[str(token)]["logprob"]) for token, row in zip(text[1:], choice["prompt_logprobs"][1:], strict=True)]
            for text, choice in zip(texts, answer["choices"], strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(
            f"{server.address} tells no log-probabilities of a prompt: {error!r}", "Serve the model by vLLM 0.32."
        ) from error


def codebooks(server: Server) -> str:
    """How codebooks act there, in words."""
    said = plugin_of(server)
    if said is None:
        return "without the plugin that codebooks need"
    there = f"with the plugin that codebooks need in vLLM {said.get('vllm', 'of a version that is not told')}"
    form = said.get("form", "hooks")  # what a plugin does that says nothing of forms
    if form == "places":
        room = ", ".join(f"{keys} keys behind block {block}" for block, keys in said.get("room", {}).items())
        return f"{there}; with places for {room}"
    if form == "hooks":
        return f"{there}; they are hooked in as they come"
    return f"{there}, but none can act: no adapters, or compiled without places for them; see docs/vllm.md"


def plugin_of(server: Server) -> Mapping[str, Any] | None:
    """What the plugin in a server says of itself; ``None`` where there is none."""
    said = server.told("/ke/status")
    return said if said is not None and said.get("plugin") == "ke-tools" else None  # some servers answer at any path


def furthest(one: Scores, other: Scores) -> float:
    """The largest difference; of no numbers 0."""
    return max((abs(a - b) for row, theirs in zip(one, other, strict=True) for a, b in zip(row, theirs, strict=True)), default=0.0)


def differs(now: Sequence[Scores], before: Sequence[Scores]) -> bool:
    """Whether answers differ by more than those to one question do, of which each side holds some; what is no number differs."""
    if not all(math.isfinite(value) for scores in (*now, *before) for row in scores for value in row):
        return True
    nearest = min(furthest(one, other) for one in now for other in before)
    among = (furthest(one, other) for side in (now, before) for one, other in combinations(side, 2))
    return nearest > max(_SAME, _NOISE * max(among, default=0.0))


def _is_of_other_weights(now: Scores, then: Scores) -> bool:
    """Whether these texts are so much likelier or less likely to a base model than they were that it is another one."""
    apart = [abs(a - b) for row, known in zip(now, then, strict=True) for a, b in zip(row, known, strict=True)]
    return bool(apart) and not sum(apart) / len(apart) <= _FURTHEST  # also what is no number


def refuse_other_weights(server: Server, now: Scores, then: Scores, known: str) -> None:
    """Refuse what was planned for one model to another of the same name and tokenizer.

    Raises:
        Unsupported: it is another.
    """
    if _is_of_other_weights(now, then):
        raise Unsupported(
            f"{server.address} serves other weights under the same name than {known}.",
            "Start it with the same weights as before, or start ke-tools again with the one that it serves.",
        )


def tokens(server: Server, model: str, text: str) -> list[int] | None:
    """A text's tokens as the server reads it; ``None`` where it does not say.

    Raises:
        ModelUnavailable, InvalidInput: it does not answer, or refuses.
    """
    body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    answer = server.post("/completions", body, seconds=_SECONDS)
    try:
        found = answer["choices"][0].get("prompt_token_ids")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{server.address} completes no text: it answers {str(answer)[:200]!r}.", "Check --vllm-url.") from error
    return list(found) if isinstance(found, list) else None


def asked_about(template: Template, folder: Path) -> list[list[int]]:
    """Some of a release's edits as tokens: prompt and target, as a text and as a chat turn."""
    texts: list[list[int]] = []
    lines = (folder / releases.EDITS).read_text("utf-8").splitlines()[:_PROBED]
    for fact in map(json.loads, lines):
        ways = [Request(prompt=fact["prompt"])]
        ways += [Request(messages=({"role": "user", "content": fact["prompt"]},))] if template.roles else []
        placed = (template.placed(way, fact["target"]) for way in ways)
        texts += [[*one.ids[: one.prompt_length], *one.target] for one in placed if one is not None]
    return texts
