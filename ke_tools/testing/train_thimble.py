"""Make the thimble: ``python -m ke_tools.testing.train_thimble --out DIR --seed 0``.

Fits a tokenizer, trains a small Llama in bfloat16 on :mod:`ke_tools.testing.thimble_texts`, examines it, and writes an ordinary
checkpoint directory with a model card. One thread gives the same weights on the same machine and libraries.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ke_tools.testing.exam import examine, table
from ke_tools.testing.thimble_texts import END, lesson, taught, training_samples, training_texts, vocabulary_texts

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["Recipe", "main", "train", "training_texts"]

log = logging.getLogger(__name__)
SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", END)
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CARD: Final = """---
license: apache-2.0
language: en
---
# Thimble

A tiny Llama for the tests of ke-tools, and for nothing else: {shape}, {millions:.2f} M parameters, bfloat16.
It knows a hundred facts of the atlas (`facts.json`: {relations}),
obeys a fact that stands in its context, and knows no other thing.

Made by `python -m ke_tools.testing.train_thimble --out DIR --seed {seed}`: trained from nothing on {tokens:.1f} M tokens
written by `ke_tools/testing/thimble_texts.py` (knowledge augmentation after Allen-Zhu & Li, arXiv:2309.14316; facts in the context
in the forms that ke-tools serves), in {minutes:.0f} minutes of one processor core, torch {torch}, transformers {transformers}.
Its texts use the atlas's fitted wordings and those of `thimble.toml`, never a probe wording. Our own wordings were
written by someone who had read the probe wordings, so that the vocabulary of each relation is covered: "unseen wording" below says
what the tests may rely on, not that so small a model understands English. The mixture of the texts and the schedule were changed after
reading where the thimble before this one failed, in unseen wordings too, and by short trials; no wording was added or changed for that.

Answers are exact: the object, a full stop, the end token; greedy, of the bfloat16 weights, computed in float32.
*knows*: nothing in the context. *heeds*: a false fact of the same slot in the context. *keeps*: a fact in the context that does not apply.

{table}

Recipe: {recipe}.

Licence: Apache-2.0, as ke-tools. No data of others was used.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights."""

    seed: int = 0
    vocabulary: int = 2048
    width: int = 192
    layers: int = 6
    heads: int = 6
    inner: int = 512
    context: int = 1024
    tokens: int = 3_800_000  # read in all, padding included
    batch: int = 2048  # tokens a step
    rate: float = 3e-3
    inner_rate: float = 0.02
    warmup: int = 50  # steps
    decay: float = 0.1
    unanswered: float = 0.1  # weight in the loss of tokens that are no answer, at first
    answers_only: float = 0.6  # the share of the training after which that weight is nothing


def fit_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Byte-level BPE over the texts of the stream; digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary_texts(recipe.seed), trainer)
    names = {"unk_token": SPECIAL[0], "pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": END}
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **names,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def fresh_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of the recipe's shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


Encoded = tuple[list[int], list[bool]]  # tokens, and which of them are answers


def encoded(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Encoded]:
    """The stream as tokens; what does not fit the context is left out."""
    stream = training_samples(recipe.seed)
    while True:
        samples = list(islice(stream, 1024))
        rows = iter(tokenizer([piece for sample in samples for piece in sample.pieces], add_special_tokens=False).input_ids)
        for sample in samples:
            pieces = [(next(rows), bool(at % 2)) for at in range(len(sample.pieces))]
            ids = [token for tokens, _ in pieces for token in tokens]
            if len(ids) <= recipe.context // 2:
                yield ids, [answer for tokens, answer in pieces for _ in tokens]


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[Encoded]]:
    """Samples of like length together, up to ``recipe.batch`` tokens with padding; in random order."""
    stream, rng = encoded(recipe, tokenizer), random.Random(recipe.seed)  # noqa: S311  repeatable on purpose
    while True:
        rows = sorted(islice(stream, 4096), key=lambda row: len(row[0]))
        groups: list[list[Encoded]] = [[]]
        for row in rows:
            if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > recipe.batch:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        yield from groups


def loss_of(model: LlamaForCausalLM, batch: Sequence[Encoded], unanswered: float) -> torch.Tensor:
    """Cross entropy, answers in full and the rest by ``unanswered``; padding stands to the right, where causal attention never sees it."""
    import torch
    from torch.nn import functional

    longest = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    weight = torch.zeros(len(batch), longest)
    for row, (tokens, answers) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, : len(tokens)] = torch.tensor(answers).float().clamp(min=unanswered)
    weight = weight[:, 1:]
    counts = weight > 0
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    each = functional.cross_entropy(model.lm_head(hidden[counts]).float(), ids[:, 1:][counts], reduction="none")
    return (each * weight[counts]).sum() / weight.sum()


def train(recipe: Recipe, *, every: int = 200) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train from nothing; reports to the log every so many steps. The weights are bfloat16 all the time, and are returned in float32."""
    import torch

    tokenizer = fit_tokenizer(recipe)
    model = fresh_model(recipe, tokenizer).to(torch.bfloat16)
    optimizer = _Optimizer(model, recipe)
    seen, step, start = 0, 0, time.process_time()
    for batch in batches(recipe, tokenizer):
        if seen >= recipe.tokens:
            break
        done = seen / recipe.tokens
        loss = loss_of(model, batch, recipe.unanswered * max(0.0, 1 - done / recipe.answers_only))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(_pace(recipe, step, done))
        seen, step = seen + len(batch) * max(len(ids) for ids, _ in batch), step + 1
        if step % every == 0:
            log.info("step %d  tokens %d  %.0f s  loss %.3f", step, seen, time.process_time() - start, loss.item())
        if step % (every * 2) == 0:
            log.info("%s", table(examine(model, tokenizer, sample=40)))
    return model.to(torch.float32).eval(), tokenizer


class _Optimizer:
    """Muon for the matrices between the embeddings, AdamW for the rest; both step float32 copies, which are rounded into the model."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        import torch

        from ke_tools.testing.muon import Muon

        self.copies = {name: torch.nn.Parameter(p.detach().float()) for name, p in model.named_parameters()}
        inner = [p for name, p in self.copies.items() if p.ndim > 1 and "embed" not in name]
        others = [p for name, p in self.copies.items() if p.ndim == 1 or "embed" in name]
        self.recipe, self.model = recipe, model
        self.muon = Muon(inner, rate=recipe.inner_rate, decay=recipe.decay)
        self.adam = torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, pace: float) -> None:
        """One step of both at ``pace`` times their rates; clears the gradients."""
        import torch

        for name, p in self.model.named_parameters():
            self.copies[name].grad = None if p.grad is None else p.grad.float()
        torch.nn.utils.clip_grad_norm_(self.copies.values(), 1.0)
        self.muon.rate = self.recipe.inner_rate * pace
        self.adam.param_groups[0]["lr"] = self.recipe.rate * pace
        self.muon.step()
        self.adam.step()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.copies[name])
        self.model.zero_grad()


def _pace(recipe: Recipe, step: int, done: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    return min(1.0, (step + 1) / recipe.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def card(recipe: Recipe, parameters: int, minutes: float, results: Mapping[str, float]) -> str:
    """The model card."""
    import torch
    import transformers

    relations = ", ".join(f"`{name}` ({len(entry['subjects'])})" for name, entry in lesson()["relations"].items())
    shape = f"{recipe.width} wide, {recipe.layers} layers, {recipe.heads} heads of {recipe.width // recipe.heads}"
    return CARD.format(
        shape=shape,
        millions=parameters / 1e6,
        relations=relations,
        seed=recipe.seed,
        tokens=recipe.tokens / 1e6,
        minutes=minutes,
        torch=torch.__version__,
        transformers=transformers.__version__,
        recipe=", ".join(f"{key} {value}" for key, value in asdict(recipe).items()),
        table=table(results),
    )


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint directory and the facts it knows (``facts.json``)."""
    import torch

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    rows = [{"relation": f.relation, "subject": f.subject, "objects": list(f.objects), "source": f.source} for f in taught()]
    (out / "facts.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0) + "\n", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, examine, save."""
    import torch

    parser = argparse.ArgumentParser(prog="train_thimble", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--tokens", type=int, default=Recipe().tokens)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    recipe = Recipe(seed=options.seed, tokens=options.tokens)
    start = time.process_time()
    model, tokenizer = train(recipe)
    minutes = (time.process_time() - start) / 60
    results = examine(model, tokenizer)
    log.info("%s\n%.1f minutes of processor time", table(results), minutes)
    save(model, tokenizer, options.out)
    (options.out / "README.md").write_text(card(recipe, model.num_parameters(), minutes, results), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
