r"""Causal tracing: which states of a model carry a fact (Meng et al. 2022, §2).

Three runs of a prompt that the model completes correctly with $o$: *clean*; *corrupted*, with noise on the embeddings of the subject's
tokens; and *corrupted with restoration*, in which some states of one token take their clean values again. The indirect effect of those
states is

$$\mathrm{IE} = p_{*,\,\mathrm{clean}\ h_i^l}(o) - p_*(o),$$

its mean over samples of the noise. Restored are the residual stream behind one block, or the outputs of the MLPs or of the attentions in a
window of blocks.

Differs from the reference (rome at 0874014): 1. every token of one layer is restored in one batch, under the same noise; 2. a restored
run begins at the first block that it changes, with what the corrupted run brings there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.editors._locate import place
from ke_tools.editors._trace import adding, run_until
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Heat", "Kind", "Where", "trace"]

Kind = Literal["hidden", "mlp", "attention"]
Where = Literal["all", "sites"]  # every token, or only those that an editor can edit: the subject's last and the prompt's
_NOISE: Final = 3.0  # standard deviations of the embeddings; the reference's
_WINDOW: Final = 10  # blocks of a model of 48; the reference's


@dataclass(frozen=True, slots=True)
class Heat:
    """Indirect effects of a prompt, [tokens, layers]; NaN where a token was not restored."""

    tokens: tuple[str, ...]
    subject: range  # positions of its tokens
    answer: str  # o
    clean: float  # p(o)
    corrupted: float
    effect: torch.Tensor
    kind: Kind

    def best(self) -> tuple[int, int]:
        """The token and the layer of the greatest effect."""
        token, layer = divmod(int(self.effect.nan_to_num(-1.0).argmax()), self.effect.shape[1])
        return token, layer


def trace(
    model: CausalModel,
    prompt: str,
    subject: str,
    *,
    kind: Kind = "hidden",
    where: Where = "all",
    samples: int = 10,
    window: int = 0,
    seed: int = 0,
    tell: Callable[[int, int], None] | None = None,
) -> Heat:
    """Trace the model's own next token behind a prompt.

    Args:
        model: stays as it is.
        prompt: with the subject in it.
        subject: whose embeddings are corrupted.
        kind: what is restored.
        where: in which tokens.
        samples: of the noise.
        window: blocks whose outputs are restored together; 0: a fifth of the model's, one for ``hidden``.
        seed: of the noise.
        tell: hears after each layer.

    Raises:
        InvalidInput: the subject is not in the prompt.
    """
    import torch

    placed = place(model.tokenizer, prompt, [subject])
    spans = model.tokenizer(prompt.rstrip(), return_offsets_mapping=True)["offset_mapping"]
    begin = prompt.casefold().find(subject.casefold())
    inside = range(next(n for n, (_, end) in enumerate(spans) if end > begin), placed.site + 1)
    ids = torch.tensor([placed.ids], device=model.device)
    wide = window or max(1, len(model.blocks) * _WINDOW // 48) if kind != "hidden" else 1
    tokens = list(range(len(placed.ids))) if where == "all" else sorted({placed.site, len(placed.ids) - 1})
    with torch.no_grad():
        clean = _Clean.of(model, ids)
        answer = int(clean.logits.argmax())
        corrupted = _Corrupted.of(model, ids, _noise(model, ids, inside, samples, seed), len(tokens))
        least = float(corrupted.logits.softmax(-1)[:, answer].mean())
        effect = torch.full((ids.shape[1], len(model.blocks)), float("nan"))
        for layer in range(len(model.blocks)):
            effect[tokens, layer] = _restored(model, clean, corrupted, tokens, kind, layer, wide)[:, answer].cpu() - least
            if tell:
                tell(layer + 1, len(model.blocks))
    texts = tuple(model.tokenizer.decode([token]) for token in placed.ids)
    return Heat(texts, inside, model.tokenizer.decode([answer]), float(clean.logits.softmax(-1)[answer]), least, effect, kind)


@dataclass(slots=True)
class _Clean:
    """States of the clean run: behind each block, and what its parts put out."""

    logits: torch.Tensor  # behind the last token, [vocabulary]
    states: dict[tuple[str, int], torch.Tensor]  # (kind, layer) → [tokens, width]

    @classmethod
    def of(cls, model: CausalModel, ids: torch.Tensor) -> _Clean:
        states: dict[tuple[str, int], torch.Tensor] = {}

        def noting(key: tuple[str, int]) -> Callable[[Any, Any], Any]:
            def note(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
                states[key] = output.reshape(ids.shape[1], -1)
                return output

            return note

        watched = [(part, noting((kind, n))) for n in range(len(model.blocks)) for kind, part in _parts(model, n).items()]
        with adding(watched):
            top = run_until(model.model, model.norm, input_ids=ids, use_cache=False)
        return cls(_head(model, top)[0], states)


@dataclass(slots=True)
class _Corrupted:
    """The corrupted run, and how the model called its blocks for a batch of so many tokens that are restored, each under all the noise."""

    logits: torch.Tensor  # [samples, vocabulary]
    streams: list[torch.Tensor]  # what enters each block, [samples, tokens, width]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # the other arguments of each block

    @classmethod
    def of(cls, model: CausalModel, ids: torch.Tensor, noise: torch.Tensor, restored: int) -> _Corrupted:
        streams: list[torch.Tensor] = []
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        samples = len(noise)

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            streams.append(args[0][:samples].clone())
            calls.append((args[1:], kwargs))

        with ExitStack() as stack:
            for block in model.blocks:
                stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
            rows = noise.repeat(restored, 1, 1)
            stack.enter_context(adding([(model.model.get_input_embeddings(), lambda _entered, output: output + rows)]))
            top = run_until(model.model, model.norm, input_ids=ids.expand(len(rows), -1), use_cache=False)
        return cls(_head(model, top[:samples]), streams, calls)


def _head(model: CausalModel, top: torch.Tensor) -> torch.Tensor:
    """Logits behind the last token, [rows, vocabulary]."""
    logits: torch.Tensor = model.model.get_output_embeddings()(top[:, -1]).float()
    return logits


def _parts(model: CausalModel, layer: int) -> dict[str, nn.Module]:
    return {"hidden": model.blocks[layer], "mlp": model.projection(layer), "attention": model.attention_out(layer)}


def _noise(model: CausalModel, ids: torch.Tensor, inside: range, samples: int, seed: int) -> torch.Tensor:
    """Noise on the subject's tokens, the same for every restoration, [samples, tokens, width]."""
    import torch

    table = model.model.get_input_embeddings().weight
    spread = _NOISE * float(table.detach().float().std())
    drawn = torch.randn(samples, len(inside), table.shape[1], generator=torch.Generator().manual_seed(seed))
    noise = torch.zeros(samples, ids.shape[1], table.shape[1])
    noise[:, list(inside)] = spread * drawn
    return noise.to(model.device, table.dtype)


def _restored(
    model: CausalModel, clean: _Clean, corrupted: _Corrupted, tokens: list[int], kind: Kind, layer: int, wide: int
) -> torch.Tensor:
    """Probabilities behind the prompt with the states of each of the tokens restored in turn, over samples the mean; [tokens, all]."""
    import torch

    first = max(0, layer - wide // 2)
    stream = corrupted.streams[first].repeat(len(tokens), 1, 1)
    which = torch.tensor(tokens, device=stream.device).repeat_interleave(len(corrupted.logits))  # row → the token that is restored

    def restoring(number: int) -> Callable[[Any, Any], Any]:
        true = clean.states[kind, number]

        def restore(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            states = output.reshape(*stream.shape[:2], -1).clone()
            states[torch.arange(len(which)), which] = true[which]
            return states.reshape(output.shape)

        return restore

    last = min(len(model.blocks), layer - wide // 2 + wide)
    with adding([(_parts(model, number)[kind], restoring(number)) for number in range(first, last)]):
        for block, (args, kwargs) in zip(model.blocks[first:], corrupted.calls[first:], strict=True):
            output = block(stream, *args, **kwargs)
            stream = output[0] if isinstance(output, tuple) else output
    found = _head(model, model.norm(stream)).softmax(-1)
    mean: torch.Tensor = found.reshape(len(tokens), len(corrupted.logits), -1).mean(1)
    return mean
