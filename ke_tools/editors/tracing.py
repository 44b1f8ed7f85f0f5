r"""Causal tracing: which states of a model carry a fact (Meng et al. 2022, §2).

Three runs of a prompt that the model completes correctly with $o$: *clean*; *corrupted*, with noise on the embeddings of the subject's
tokens; and *corrupted with restoration*, in which some states of one token take their clean values again. The indirect effect of those
states is

$$\mathrm{IE} = p_{*,\,\mathrm{clean}\ h_i^l}(o) - p_*(o),$$

its mean over samples of the noise. Restored are the residual stream behind one block, or the outputs of the MLPs or of the attentions in a
window of blocks.

Differs from the reference (rome at 0874014): every token of one layer is restored in one batch, under the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from ke_tools.editors._locate import place
from ke_tools.editors._trace import adding, run_until
from ke_tools.models.causal import CausalModel

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Heat", "Kind", "trace"]

Kind = Literal["hidden", "mlp", "attention"]
_NOISE: Final = 3.0  # standard deviations of the embeddings; the reference's
_WINDOW: Final = {"hidden": 1, "mlp": 10, "attention": 10}  # blocks of a model of 48; the reference's


@dataclass(frozen=True, slots=True)
class Heat:
    """Indirect effects of a prompt, [tokens, layers]."""

    tokens: tuple[str, ...]
    subject: range  # positions of its tokens
    clean: float  # p(o)
    corrupted: float
    effect: torch.Tensor
    kind: Kind

    def best(self) -> tuple[int, int]:
        """The token and the layer of the greatest effect."""
        token, layer = divmod(int(self.effect.argmax()), self.effect.shape[1])
        return token, layer


def trace(
    model: CausalModel,
    prompt: str,
    subject: str,
    *,
    kind: Kind = "hidden",
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
    wide = window or max(1, len(model.blocks) * _WINDOW[kind] // 48) if kind != "hidden" else 1
    with torch.no_grad():
        clean = _Run.of(model, ids, None)
        answer = int(clean.logits[0].argmax())
        noise = _noise(model, ids, inside, samples, seed)
        corrupted = _Run.of(model, ids.expand(samples, -1), noise)
        least = float(corrupted.logits.softmax(-1)[:, answer].mean())
        effect = torch.zeros(ids.shape[1], len(model.blocks))
        for layer in range(len(model.blocks)):
            effect[:, layer] = _restored(model, ids, noise, clean, kind, layer, wide, answer).cpu() - least
            if tell:
                tell(layer + 1, len(model.blocks))
    texts = tuple(model.tokenizer.decode([token]) for token in placed.ids)
    return Heat(texts, inside, float(clean.logits.softmax(-1)[0, answer]), least, effect, kind)


@dataclass(slots=True)
class _Run:
    """States of a run: behind each block, and what its parts put out."""

    logits: torch.Tensor  # behind the last token, [rows, vocabulary]
    states: dict[tuple[str, int], torch.Tensor]  # (kind, layer) → [rows, tokens, width]

    @classmethod
    def of(cls, model: CausalModel, ids: torch.Tensor, noise: torch.Tensor | None) -> _Run:
        states: dict[tuple[str, int], torch.Tensor] = {}

        def noting(key: tuple[str, int]) -> Callable[[Any, Any], Any]:
            def note(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
                states[key] = output.reshape(*ids.shape, -1)
                return output

            return note

        watched = [(part, noting((kind, n))) for n in range(len(model.blocks)) for kind, part in _parts(model, n).items()]
        with adding([*_noised(model, noise), *watched]):
            top = run_until(model.model, model.norm, input_ids=ids, use_cache=False)
        return cls(model.model.get_output_embeddings()(top[:, -1]).float(), states)


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


def _noised(model: CausalModel, noise: torch.Tensor | None) -> list[tuple[nn.Module, Callable[[Any, Any], Any]]]:
    return [] if noise is None else [(model.model.get_input_embeddings(), lambda _entered, output: output + noise)]


def _restored(
    model: CausalModel, ids: torch.Tensor, noise: torch.Tensor, clean: _Run, kind: Kind, layer: int, wide: int, answer: int
) -> torch.Tensor:
    """p(answer) with the states of each token restored in turn, the mean over samples; [tokens]."""
    import torch

    tokens, samples = ids.shape[1], len(noise)
    which = torch.arange(tokens, device=ids.device).repeat_interleave(samples)  # row → the token that is restored
    first = max(0, layer - wide // 2)
    layers: Sequence[int] = range(first, min(len(model.blocks), first + wide))

    def restoring(number: int) -> Callable[[Any, Any], Any]:
        true = clean.states[kind, number][0]

        def restore(_entered: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            states = output.reshape(len(which), tokens, -1).clone()
            states[torch.arange(len(which)), which] = true[which]
            return states.reshape(output.shape)

        return restore

    changes = [(_parts(model, number)[kind], restoring(number)) for number in layers]
    with adding([*_noised(model, noise.repeat(tokens, 1, 1)), *changes]):
        top = run_until(model.model, model.norm, input_ids=ids.expand(len(which), -1), use_cache=False)
    chosen = model.model.get_output_embeddings()(top[:, -1]).float().softmax(-1)[:, answer]
    mean: torch.Tensor = chosen.reshape(tokens, samples).mean(1)
    return mean
