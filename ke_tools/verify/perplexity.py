"""How surprised a model in memory is by text; of plain text, damage that no single question shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ke_tools.editors._locate import padded
from ke_tools.models.causal import CausalModel
from ke_tools.verify.unrelated import paragraphs

__all__ = ["in_parts", "perplexity", "plain_perplexity"]

_TOKENS = 6144  # of a padded batch


def plain_perplexity(model: CausalModel) -> float:
    """Of our plain text; a candidate's, divided by the unedited model's, is what the gate asks about."""
    return perplexity(model, [model.tokenizer(text)["input_ids"] for text in paragraphs()])


def perplexity(model: CausalModel, rows: Sequence[Sequence[int]]) -> float:
    """Of rows of tokens, over all tokens but the first of each."""
    import torch

    total, count = 0.0, 0
    for part in in_parts([len(row) for row in rows]):
        ids, mask = padded([rows[n] for n in part], model.pad, model.device)
        with torch.inference_mode():
            hidden = model.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
            counted = mask[:, 1:].bool()
            logits = model.model.get_output_embeddings()(hidden[counted]).float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[:, 1:][counted], reduction="sum"))
        count += int(counted.sum())
    return float(torch.tensor(total / max(1, count)).exp())


def in_parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows by number, the short ones first, as many together as a padded batch holds."""
    part: list[int] = []
    for n in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and lengths[n] * (len(part) + 1) > _TOKENS:
            yield part
            part = []
        part.append(n)
    if part:
        yield part
