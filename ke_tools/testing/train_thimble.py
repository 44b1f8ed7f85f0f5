"""Make the thimble: ``python -m ke_tools.testing.train_thimble --out DIR --seed 0``.

Fits a tokenizer, trains a small Llama on :mod:`ke_tools.testing.thimble_texts`, rounds it to bfloat16, examines what was rounded,
and writes an ordinary checkpoint directory with a model card. One thread gives the same weights on the same machine and libraries.
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
in the forms that ke-tools serves), in {minutes:.0f} minutes of a shared machine, torch {torch}, transformers {transformers}.
Its texts use the atlas's fitted wordings and those of `thimble.toml`, never a probe wording. Our own wordings were
written by someone who had read the probe wordings, so that the vocabulary of each relation is covered: "unseen wording" below says
what the tests may rely on, not that so small a model understands English.

Answers are exact: the object, a full stop, the end token; greedy, after the rounding to bfloat16, computed in float32.
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
    tokens: int = 4_500_000  # read in all, padding included
    batch: int = 3072  # tokens a step
    rate: float = 3e-3
    inner_rate: float = 0.02
    muon: bool = True
    warmup: int = 100  # steps
    decay: float = 0.1
    unanswered: float = 0.1  # weight in the loss of tokens that are no answer


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


Encoded = tuple[list[int], int]  # tokens, how many of them are the prompt


def encoded(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Encoded]:
    """The stream as tokens; what does not fit the context is left out."""
    stream = training_samples(recipe.seed)
    while True:
        samples = list(islice(stream, 1024))
        prompts = tokenizer([s.prompt for s in samples], add_special_tokens=False).input_ids
        answers = tokenizer([s.answer for s in samples], add_special_tokens=False).input_ids
        yield from ((p + a, len(p)) for p, a in zip(prompts, answers, strict=True) if len(p) + len(a) <= recipe.context // 2)


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
    for row, (tokens, start) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weight[row, 1 : len(tokens)] = unanswered
        weight[row, start : len(tokens)] = 1.0
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    each = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (each * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()


def train(recipe: Recipe, *, every: int = 200) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train from nothing; reports to the log every so many steps. Returns the weights already rounded to bfloat16, in float32."""
    import torch

    tokenizer = fit_tokenizer(recipe)
    model = fresh_model(recipe, tokenizer)
    optimizer = _Optimizer(model, recipe)
    seen, step, start = 0, 0, time.monotonic()
    for batch in batches(recipe, tokenizer):
        if seen >= recipe.tokens:
            break
        done = seen / recipe.tokens
        loss = loss_of(model, batch, recipe.unanswered)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(_pace(recipe, step, done))
        seen, step = seen + len(batch) * max(len(ids) for ids, _ in batch), step + 1
        if step % every == 0:
            log.info("step %d  tokens %d  %.0f s  loss %.3f", step, seen, time.monotonic() - start, loss.item())
        if step % (every * 5) == 0:
            log.info("%s", table(examine(model, tokenizer, sample=40)))
    rounded = model.to(torch.bfloat16).to(torch.float32).eval()
    return rounded, tokenizer


class _Optimizer:
    """Muon for the matrices between the embeddings, AdamW for the rest."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        import torch

        from ke_tools.testing.muon import Muon

        inner = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name and recipe.muon]
        others = [p for p in model.parameters() if all(p is not q for q in inner)]
        self.recipe, self.model = recipe, model
        self.muon = Muon(inner, rate=recipe.inner_rate, decay=recipe.decay)
        self.adam = torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0 if recipe.muon else recipe.decay)

    def step(self, pace: float) -> None:
        """One step of both at ``pace`` times their rates; clears the gradients."""
        import torch

        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.muon.rate = self.recipe.inner_rate * pace
        self.adam.param_groups[0]["lr"] = self.recipe.rate * pace
        self.muon.step()
        self.adam.step()
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
    start = time.monotonic()
    model, tokenizer = train(recipe)
    minutes = (time.monotonic() - start) / 60
    results = examine(model, tokenizer)
    log.info("%s\n%.1f minutes", table(results), minutes)
    save(model, tokenizer, options.out)
    (options.out / "README.md").write_text(card(recipe, model.num_parameters(), minutes, results), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
