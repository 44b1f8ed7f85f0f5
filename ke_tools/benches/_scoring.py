"""What a model in memory says: of targets with teacher forcing, and greedily; in padded batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ke_tools.editors._locate import padded, place
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from ke_tools.verify.perplexity import in_parts

if TYPE_CHECKING:
    import torch

__all__ = ["Forced", "Read", "fits", "forced", "greedy", "likelihoods", "read"]

_ANSWERED_AT_ONCE = 64
_CACHED = 32768  # tokens whose keys and values a batch of answers may hold


@dataclass(frozen=True, slots=True)
class Forced:
    """What a model makes of a target whose tokens it is given one after another."""

    likelihood: float  # mean log-likelihood of a token
    target: tuple[int, ...]
    likeliest: tuple[int, ...]  # the model's own choice at each place

    @property
    def matched(self) -> float:
        """The share of the target's tokens that the model would have chosen."""
        return _agreement(self.likeliest, self.target)

    def unchanged(self, base: Forced) -> float:
        """The share of places at which the model chooses as another one does."""
        return _agreement(self.likeliest, base.likeliest)


@dataclass(frozen=True, slots=True)
class Read:
    """Text that stands before every prompt, read once."""

    ids: tuple[int, ...]
    cache: Any  # keys and values, of one row

    def copies(self, rows: int) -> Any:
        """Keys and values for a batch; going on from them leaves these as they are."""
        copied = copy.deepcopy(self.cache)
        copied.batch_repeat_interleave(rows)
        return copied


def read(model: CausalModel, text: str) -> Read:
    """Read a text that prompts will stand behind."""
    import torch

    ids = model.tokenizer(text)["input_ids"]
    with torch.inference_mode():
        seen = model.model.base_model(input_ids=torch.tensor([ids], device=model.device), use_cache=True)
    return Read(tuple(ids), seen.past_key_values)


def forced(model: CausalModel, asked: Sequence[tuple[str, str]], *, behind: Read | None = None) -> list[Forced]:
    """Read each prompt with its target, behind a text if there is one."""
    import torch

    placed = [place(model.tokenizer, prompt, (), target, site="last") for prompt, target in asked]
    rows = [_without_start(model, one.ids, behind) for one in placed]
    found: dict[int, Forced] = {}
    for part in in_parts([len(row) for row in rows]):
        ids, mask = padded([rows[n] for n in part], model.pad, model.device)
        with torch.inference_mode():
            hidden = _hidden(model, ids, mask, behind)
            for row, n in enumerate(part):
                target, end = placed[n].target, len(rows[n])
                logits = model.model.get_output_embeddings()(hidden[row, end - len(target) : end]).float().log_softmax(-1)
                likelihood = float(logits[range(len(target)), list(target)].mean())
                found[n] = Forced(likelihood, target, tuple(logits.argmax(-1).tolist()))
    return [found[n] for n in range(len(rows))]


def fits(model: CausalModel, prompt: str, target: str, subject: str = "") -> bool:
    """Whether a target can stand behind a prompt, and a subject in it, as tokens of their own."""
    try:
        place(model.tokenizer, prompt, (subject,), target, site="subject" if subject else "last")
    except InvalidInput:
        return False
    return True


def likelihoods(model: CausalModel, asked: Sequence[tuple[str, str]]) -> list[float]:
    """The mean log-likelihood of each target's tokens behind its prompt."""
    return [one.likelihood for one in forced(model, asked)]


def greedy(model: CausalModel, prompts: Sequence[str], tokens: int, *, behind: Read | None = None) -> list[str]:
    """Greedy continuations, to the natural stop or ``tokens``; behind a text if there is one."""
    import torch

    rows = [_without_start(model, model.tokenizer(prompt.rstrip())["input_ids"], behind) for prompt in prompts]
    before = behind.ids if behind else ()
    longest = max(map(len, rows), default=0) + len(before) + tokens
    at_once = max(1, min(_ANSWERED_AT_ONCE, _CACHED // longest))
    found: dict[int, str] = {}
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    for start in range(0, len(order), at_once):
        part = order[start : start + at_once]
        ids, mask = _joined(before, *padded([rows[n] for n in part], model.pad, model.device, left=True))
        with torch.inference_mode():
            out = model.model.generate(
                ids,
                attention_mask=mask,
                past_key_values=behind.copies(len(part)) if behind else None,
                do_sample=False,
                max_new_tokens=tokens,
                pad_token_id=model.pad,
            )
        found |= {n: model.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for n, row in zip(part, out, strict=True)}
    return [found[n] for n in range(len(prompts))]


def _agreement(one: Sequence[int], other: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(other)


def _without_start(model: CausalModel, ids: Sequence[int], behind: Read | None) -> Sequence[int]:
    """A row without its beginning-of-text token, where a text stands before it."""
    return ids[1:] if behind and len(ids) > 1 and ids[0] == model.tokenizer.bos_token_id else ids


def _joined(before: Sequence[int], ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and mask with the same tokens before each."""
    import torch

    same = torch.tensor(before, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
    return torch.cat([same, ids], 1), torch.cat([torch.ones_like(same), mask], 1)


def _hidden(model: CausalModel, ids: torch.Tensor, mask: torch.Tensor, behind: Read | None = None) -> torch.Tensor:
    cached = {"past_key_values": behind.copies(len(ids)), "use_cache": True} if behind else {"use_cache": False}
    _, mask = _joined(behind.ids if behind else (), ids, mask)
    hidden: torch.Tensor = model.model.base_model(input_ids=ids, attention_mask=mask, **cached).last_hidden_state
    return hidden
