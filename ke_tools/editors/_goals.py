"""Of facts, the prompts an editor works with: the fact's own behind text of the model's, its paraphrases, and chat turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ke_tools.editors._locate import Site, padded, place
from ke_tools.editors._targets import Goal
from ke_tools.errors import InvalidInput, Unsupported
from ke_tools.facts import Fact, squash
from ke_tools.models.causal import CausalModel

__all__ = ["chat_turn", "contexts", "goals", "refuse_contradictions"]

_BEGINNINGS: Final = ("The", "Therefore", "Because", "I", "You", "In", "When", "It")  # the first five are the reference's
_ESSENCE: Final = "{} is a"  # the reference's


def contexts(model: CausalModel, count: int, *, length: int = 10, seed: int = 0) -> tuple[str, ...]:
    """Text of the model's own to stand before a prompt: "" first, then ``count - 1`` sampled beginnings of ``length`` tokens."""
    import torch

    tokenizer = model.tokenizer
    starts = [_BEGINNINGS[n % len(_BEGINNINGS)] for n in range(count - 1)]
    if not starts:
        return ("",)
    rows = [tokenizer(start)["input_ids"] for start in starts]
    ids, mask = padded(rows, model.pad, model.device, left=True)
    generator = torch.Generator(model.device).manual_seed(seed)
    with torch.inference_mode():
        for _ in range(length):
            positions = (mask.cumsum(1) - 1).clamp_min(0)
            logits = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1].float()
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids, mask = torch.cat([ids, drawn], 1), torch.cat([mask, torch.ones_like(drawn)], 1)
    texts = [tokenizer.decode(row[keep.bool()], skip_special_tokens=True) for row, keep in zip(ids, mask, strict=True)]
    return ("", *(" ".join(text.split()).rstrip(". ") + ". " for text in texts))


def goals(model: CausalModel, facts: Sequence[Fact], before: Sequence[str], *, site: Site = "subject", chat: bool = False) -> list[Goal]:
    """What each fact wants: its prompt behind each of the texts ``before``, and each of its paraphrases as it is.

    With ``chat``, its prompt and its first question are asked as a chat turn too, which the target answers.

    Raises:
        InvalidInput: a prompt cannot be tokenised so that its subject stands out, or two facts contradict one another.
        Unsupported: ``chat`` of a model without a chat template.
    """
    refuse_contradictions(facts)
    return [_goal(model, fact, before, site, chat=chat) for fact in facts]


def _goal(model: CausalModel, fact: Fact, before: Sequence[str], site: Site, *, chat: bool) -> Goal:
    names = (fact.subject, *fact.aliases)
    worded = [*((text, fact.prompt) for text in before), *(("", text) for text in fact.paraphrases)]
    prompts = [place(model.tokenizer, text + own, names, fact.target, site=site, behind=len(text)) for text, own in worded]
    if chat:
        question = next((text for text in fact.paraphrases if text.rstrip().endswith("?")), fact.prompt)
        for text in dict.fromkeys((fact.prompt, question)):
            opened, turn = chat_turn(model, text)
            prompts.append(place(model.tokenizer, turn, names, fact.target, site=site, behind=opened, in_chat=True))
    return Goal(tuple(prompts), place(model.tokenizer, _ESSENCE.format(fact.subject), names, site=site))


def chat_turn(model: CausalModel, text: str) -> tuple[int, str]:
    """A chat whose last turn is the text, up to where the answer begins; and at which character the turn begins.

    Raises:
        Unsupported: the model has no chat template.
    """
    if not model.tokenizer.chat_template:
        raise Unsupported("the model has no chat template.", "Leave chat out.")
    whole = str(model.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True))
    return max(0, whole.rfind(text.strip())), whole


def refuse_contradictions(facts: Sequence[Fact]) -> None:
    """Refuse two targets for one prompt.

    Raises:
        InvalidInput: it names both.
    """
    known: dict[str, Fact] = {}
    for fact in facts:
        other = known.setdefault(squash(fact.prompt), fact)
        if squash(other.target) != squash(fact.target):
            raise InvalidInput(
                f"two facts say of {fact.prompt!r} both {other.target!r} and {fact.target!r}.", "Give each prompt one target in a batch."
            )
