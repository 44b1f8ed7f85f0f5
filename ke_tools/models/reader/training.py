r"""Fit a reader: minimise the negative log-likelihood of the right answer, given facts and question, over a LoRA's weights.

$$\min_{A,B} -\sum_{t} \log p_{W + \frac{\alpha}{r} B A}(y_t \mid \mathrm{facts}, \mathrm{question}, y_{<t})$$

with $W$ the frozen q, k, v and o projections (Hu et al. 2021, eq. 3). For in-scope samples $y$ states the new object; for
irrelevant ones it is the base model's own greedy answer without the facts, so that the reader learns to leave it alone
(the counterfactual model of SERAC, Mitchell et al. 2022, with the locality term as ordinary samples).

Differs from SERAC in: 1. the counterfactual model is the served model with an adapter, not a second model; 2. one training
serves all edits; 3. locality is taught by the base model's answers, not by a KL term.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import InvalidInput
from ke_tools.models import checkpoint
from ke_tools.models.autocast import autocast, has_bfloat16
from ke_tools.models.reader import card
from ke_tools.models.reader.samples import Sample, Source, build

if TYPE_CHECKING:
    import torch

Progress = Callable[[str, int, int, float], None]  # phase, done, total, last loss
_TARGETS: Final = ["q_proj", "k_proj", "v_proj", "o_proj"]
_BASE_ANSWER_TOKENS: Final = 24
_ANSWERED_AT_ONCE: Final = 96
_SAVE_EVERY: Final = 20
_KEY: Final = "key.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Hyper-parameters of a training; the shipped reader's steps were 390, in two parts (benchmarks/LOG.md)."""

    steps: int = 600
    batch: int = 16
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 6e-4
    longest: int = 320  # tokens of prompt and answer; longer samples are cut from the left
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Encoded:
    ids: list[int]
    answer_from: int


def train(
    model_path: Path,
    out: Path,
    *,
    data: Sequence[Path] = (),
    excluded: Sequence[Path] = (),
    start: Path | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    fingerprint: str,
) -> Path:
    """Train a reader for the checkpoint at ``model_path`` and install it at ``out``.

    ``data`` are benchmark files to learn from; cases whose subject occurs in a file of ``excluded`` are left out. ``start`` is the
    folder of a reader of the same rank to go on from, else the adapter begins as nothing. Interrupted,
    it goes on where it was when called again with the same arguments; with others it begins anew. On a processor or GPU that
    multiplies in bfloat16 the frozen weights are held so during the training (1.9 times as fast); all else is float32.

    Raises:
        InvalidInput: a data file cannot be read, or the model has no attention projections by the usual names.
        Unsupported: its weights are quantised.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint.refuse_quantised(model_path)
    recipe = recipe or Recipe()
    say = progress or (lambda *_: None)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    source = Source(data, _subjects(excluded), chats=bool(tokenizer.chat_template))
    samples = build(source, recipe.steps * recipe.batch, recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Written out, attention over short rows is faster on a CPU than the fused kernel.
    attention = "sdpa" if device.type == "cuda" else "eager"
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation=attention)
    _check_projections(model)
    quick = _quicken(model, device)
    model.to(device)
    read = tuple(card.DataFile.of(path) for path in data)
    partial = out.with_name(out.name + ".partial")
    begun = card.DataFile.of(start / card.WEIGHTS).sha256 if start else ""
    _begin(partial, _key(recipe, read, excluded, samples, fingerprint) | {"start": begun}, say)
    with quick:
        samples = _with_base_answers(model, tokenizer, samples, partial / "answers.json", say)
    encoded = [_encode(tokenizer, sample, recipe.longest) for sample in samples]
    tuned = _adapted(model, recipe, start)
    losses = _fit(tuned, encoded, recipe, partial, quick, say)
    made = card.Card(
        base_fingerprint=fingerprint,
        base_model=model_path.name,
        recipe=recipe,
        data=read,
        samples=len(samples),
        final_loss=round(sum(losses[-20:]) / max(1, len(losses[-20:])), 4),
        started_from=begun,
        training_subjects=card.hashes(source.subjects),
    )
    card.install(tuned, made, partial, out)
    shutil.rmtree(partial, ignore_errors=True)
    return out


def _subjects(paths: Sequence[Path]) -> frozenset[str]:
    from ke_tools import cases
    from ke_tools.facts import squash

    return frozenset(squash(case.subject) for path in paths for case in cases.load(path))


def _check_projections(model: Any) -> None:
    """Say at once, not after the base model's answers, that there is nothing to adapt."""
    if not {name.rpartition(".")[2] for name, _ in model.named_modules()} & set(_TARGETS):
        raise InvalidInput(
            f"{type(model).__name__} has no attention projections named {', '.join(_TARGETS)}.", "A reader needs them; take another model."
        )


def _key(recipe: Recipe, data: Sequence[card.DataFile], excluded: Sequence[Path], samples: list[Sample], base: str) -> dict[str, Any]:
    """All that decides what a training makes of its samples; an unfinished one goes on only where it is the same."""
    return {
        "recipe": asdict(recipe),
        "data": [asdict(file) for file in data],
        "excluded": [asdict(card.DataFile.of(path)) for path in excluded],
        "samples": hashlib.sha256(repr(samples).encode()).hexdigest(),
        "base_fingerprint": base,
    }


def _begin(partial: Path, key: dict[str, Any], say: Progress) -> None:
    """Make the folder of an unfinished training; one of another recipe, other data or another model is thrown away."""
    held = partial / _KEY
    if partial.exists() and not (held.exists() and json.loads(held.read_text("utf-8")) == key):
        say("an unfinished training lay here, of another recipe, other data or another model: begun anew", 0, key["recipe"]["steps"], 0.0)
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    _write(held, json.dumps(key))


def _write(path: Path, text: str) -> None:
    """Replace a file in one step, so that a killed training leaves no half of it."""
    path.with_suffix(".tmp").write_text(text, "utf-8")
    path.with_suffix(".tmp").replace(path)


def _adapted(model: Any, recipe: Recipe, start: Path | None) -> Any:
    """The model with an adapter: a fresh one, or as ``start`` has it."""
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=_TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
    torch.manual_seed(recipe.seed)
    tuned = get_peft_model(model, config)
    if start is not None:
        set_peft_model_state_dict(tuned, {name: w.float() for name, w in load_file(start / card.WEIGHTS).items()})
    return tuned


def _fit(tuned: Any, encoded: list[_Encoded], recipe: Recipe, partial: Path, quick: torch.autocast, say: Progress) -> list[float]:
    import torch

    weights = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.learning_rate, total_steps=recipe.steps, pct_start=0.1)
    losses = _resume(partial, weights, optimizer, schedule)
    tuned.train()
    started = time.monotonic()
    for step, batch in enumerate(_batches(encoded, recipe)):
        if step < len(losses):
            continue
        with quick:
            loss = _loss(tuned, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InvalidInput("the training diverged (loss is not finite).", "Lower the learning rate.")
        say("training", step + 1, recipe.steps, losses[-1])
        if (step + 1) % _SAVE_EVERY == 0:
            _save(partial, weights, optimizer, schedule, losses)
    say(f"trained in {time.monotonic() - started:.0f} s", recipe.steps, recipe.steps, losses[-1])
    return losses


def _quicken(model: Any, device: torch.device) -> torch.autocast:
    """Hold the matrices in bfloat16 where the device multiplies in it.

    Returns:
        The context to compute in; it changes nothing elsewhere.
    """
    import torch

    head = model.get_output_embeddings()  # often the same tensor as the embeddings, which stay as they are
    for module in model.modules() if has_bfloat16(device.type) else ():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.to(torch.bfloat16)
    return autocast(device.type)


def _loss(tuned: Any, batch: list[_Encoded]) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens; the vocabulary is projected at those positions only.

    A token of an answer of n tokens weighs 1/√n: else what the base model says at length drowns what the facts teach in a word.
    """
    import torch

    device = next(tuned.parameters()).device
    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        mask[row, : len(one.ids)] = 1
        weights[row, one.answer_from : len(one.ids)] = (len(one.ids) - one.answer_from) ** -0.5
    ids, mask, weights = ids.to(device), mask.to(device), weights.to(device)[:, 1:]
    graded = weights > 0
    causal = tuned.get_base_model()
    hidden = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (batch, longest, d_model)
    logits = causal.get_output_embeddings()(hidden[:, :-1][graded])  # (answer tokens, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][graded], reduction="none")
    return (losses * weights[graded]).sum() / weights.sum()


def _batches(encoded: list[_Encoded], recipe: Recipe) -> Iterator[list[_Encoded]]:
    """Batches of similar length, in random order; the same for the same seed."""
    rng = random.Random(recipe.seed)  # noqa: S311  not for secrets
    window = recipe.batch * 8
    batches = []
    for start in range(0, len(encoded), window):
        near = sorted(encoded[start : start + window], key=lambda one: len(one.ids))
        rows = [near[i : i + recipe.batch] for i in range(0, len(near), recipe.batch)]
        rng.shuffle(rows)
        batches += rows
    yield from batches


def _encode(tokenizer: Any, sample: Sample, longest: int) -> _Encoded:
    prompt = _prompt_ids(tokenizer, sample, with_facts=True)
    answer = tokenizer(sample.answer, add_special_tokens=False)["input_ids"]
    if sample.ends:
        answer = [*answer, tokenizer.eos_token_id]
    kept = prompt[-(longest - len(answer)) :]
    return _Encoded(kept + answer, len(kept))


def _prompt_ids(tokenizer: Any, sample: Sample, *, with_facts: bool) -> list[int]:
    if sample.chat is None:
        return list(tokenizer(sample.prompt if with_facts else sample.question)["input_ids"])
    messages = sample.messages if with_facts else [dict(turn) for turn in sample.chat]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _with_base_answers(model: Any, tokenizer: Any, samples: list[Sample], cache: Path, say: Progress) -> list[Sample]:
    """Fill in the base model's parts of the answers; kept in ``cache`` for a resumed training.

    It often ends a completion at once that is a question. Its answer to the same in a conversation is taken then: a reader that
    learns to be silent is silent where a fact is asked for in other words, too (benchmarks/LOG.md).
    """
    said: dict[str, tuple[str, bool]] = json.loads(cache.read_text("utf-8")) if cache.exists() else {}
    prompts = {i: _base_prompt_ids(tokenizer, one) for i, one in enumerate(samples) if one.base is not None and str(i) not in said}
    missing = sorted(prompts, key=lambda i: len(prompts[i]))
    for start in range(0, len(missing), _ANSWERED_AT_ONCE):
        rows = missing[start : start + _ANSWERED_AT_ONCE]
        texts = dict(zip(rows, _greedy(model, tokenizer, [prompts[i] for i in rows]), strict=True))
        silent = [i for i in rows if not texts[i][0].strip() and not samples[i].chat] if tokenizer.chat_template else []
        if silent:
            asked = [_prompt_ids(tokenizer, samples[i].as_chat, with_facts=False) for i in silent]
            spoken = zip(silent, _greedy(model, tokenizer, asked), strict=True)
            texts |= {i: (f" {text}" if text else text, cut) for i, (text, cut) in spoken}
        said |= {str(i): text for i, text in texts.items()}
        _write(cache, json.dumps(said))
        say("base answers", start + len(rows), len(missing), 0.0)
    return [one.completed(said[str(i)][0], cut=said[str(i)][1]) if one.base else one for i, one in enumerate(samples)]


def _base_prompt_ids(tokenizer: Any, sample: Sample) -> list[int]:
    """What the base model is asked for its part of an answer: the question without the facts, or what the sample says."""
    if sample.base and sample.base.asked:
        sample = replace(sample, chat=({"role": "user", "content": sample.base.asked},))
    begun = sample.answer if sample.base and sample.base.how == "continued" else ""
    return [*_prompt_ids(tokenizer, sample, with_facts=False), *tokenizer(begun, add_special_tokens=False)["input_ids"]]


def _greedy(model: Any, tokenizer: Any, prompts: list[list[int]]) -> list[tuple[str, bool]]:
    """Answer all; with each answer whether it was cut."""
    import torch

    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with torch.inference_mode():
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=_BASE_ANSWER_TOKENS, do_sample=False, pad_token_id=pad)
    rows = out[:, longest:]
    ended = ((rows == tokenizer.eos_token_id) | (rows == pad)).any(dim=1).tolist()
    return [(str(tokenizer.decode(row, skip_special_tokens=True)), not end) for row, end in zip(rows, ended, strict=True)]


def _save(partial: Path, weights: list[Any], optimizer: Any, schedule: Any, losses: list[float]) -> None:
    """Keep the state of a training; tensors as safetensors, the rest as JSON, both replaced atomically."""
    from safetensors.torch import save_file

    tensors = {f"w{i}": w.detach().cpu().contiguous() for i, w in enumerate(weights)}
    for i, w in enumerate(weights):
        tensors |= {f"{name}{i}": optimizer.state[w][name].cpu().contiguous() for name in ("exp_avg", "exp_avg_sq")}
    save_file(tensors, partial / "state.tmp")
    (partial / "state.tmp").replace(partial / f"state-{len(losses)}.safetensors")
    _write(partial / "losses.json", json.dumps({"losses": losses, "last_epoch": schedule.last_epoch}))
    for old in partial.glob("state-*.safetensors"):
        if old.name != f"state-{len(losses)}.safetensors":
            old.unlink()


def _resume(partial: Path, weights: list[Any], optimizer: Any, schedule: Any) -> list[float]:
    import torch
    from safetensors.torch import load_file

    if not (partial / "losses.json").exists():
        return []
    losses: list[float] = json.loads((partial / "losses.json").read_text())["losses"]
    state = partial / f"state-{len(losses)}.safetensors"
    if not state.exists():  # killed between the two renames: begin again rather than mix two states
        return []
    tensors = load_file(state)
    with torch.no_grad():
        for i, w in enumerate(weights):
            w.copy_(tensors[f"w{i}"])
            optimizer.state[w] = {
                "step": torch.tensor(float(len(losses))),
                "exp_avg": tensors[f"exp_avg{i}"].to(w.device),
                "exp_avg_sq": tensors[f"exp_avg_sq{i}"].to(w.device),
            }
    with warnings.catch_warnings():  # the optimizer's own steps were made before the interruption
        warnings.simplefilter("ignore", UserWarning)
        for _ in losses:
            schedule.step()
    return losses
