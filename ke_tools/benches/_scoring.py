"""What an edited model in memory says: likelihoods of targets, greedy answers, perplexity; in padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ke_tools.editors._locate import padded, place
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch

__all__ = ["greedy", "likelihoods", "perplexity"]

_TOKENS = 6144  # of a padded batch
_ANSWERED_AT_ONCE = 64


def likelihoods(model: CausalModel, asked: Sequence[tuple[str, str]]) -> list[float]:
    """The mean log-likelihood of each target's tokens behind its prompt."""
    import torch

    placed = [place(model.tokenizer, prompt, (), target, site="last") for prompt, target in asked]
    found = [0.0] * len(placed)
    for part in _parts([len(one.ids) for one in placed]):
        ids, mask = padded([placed[n].ids for n in part], _pad(model), model.device)
        with torch.inference_mode():
            hidden = _hidden(model, ids, mask)
            for row, n in enumerate(part):
                logits = model.model.get_output_embeddings()(hidden[row, list(placed[n].predicting)]).float().log_softmax(-1)
                found[n] = float(logits[range(len(placed[n].target)), list(placed[n].target)].mean())
    return found


def greedy(model: CausalModel, prompts: Sequence[str], tokens: int) -> list[str]:
    """Greedy continuations, to the natural stop or ``tokens``."""
    import torch

    found: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    for start in range(0, len(order), _ANSWERED_AT_ONCE):
        part = order[start : start + _ANSWERED_AT_ONCE]
        rows = [model.tokenizer(prompts[n].rstrip())["input_ids"] for n in part]
        ids, mask = padded(rows, _pad(model), model.device, left=True)
        with torch.inference_mode():
            out = model.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=_pad(model))
        found |= {n: model.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for n, row in zip(part, out, strict=True)}
    return [found[n] for n in range(len(prompts))]


def perplexity(model: CausalModel, rows: Sequence[Sequence[int]]) -> float:
    """Of rows of tokens, over all tokens but the first of each."""
    import torch

    total, count = 0.0, 0
    for part in _parts([len(row) for row in rows]):
        ids, mask = padded([rows[n] for n in part], _pad(model), model.device)
        with torch.inference_mode():
            hidden = _hidden(model, ids, mask)[:, :-1]
            counted = mask[:, 1:].bool()
            logits = model.model.get_output_embeddings()(hidden[counted]).float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="sum"))
        count += int(counted.sum())
    return float(torch.tensor(total / max(1, count)).exp())


def _hidden(model: CausalModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = model.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden


def _parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    part: list[int] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and lengths[n] * (len(part) + 1) > _TOKENS:
            yield part
            part = []
        part.append(n)
    if part:
        yield part


def _pad(model: CausalModel) -> int:
    pad = model.tokenizer.pad_token_id
    return int(pad if pad is not None else model.tokenizer.eos_token_id or 0)
