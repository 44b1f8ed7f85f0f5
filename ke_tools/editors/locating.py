"""What ``ke-tools locate`` tells: which states carry a fact, or facts on average, and where to edit; as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from ke_tools.editors._site import ROLES, SAMPLES, Averaged, Choice, Progress, averaged, by_role, choose
from ke_tools.editors.tracing import Heat, Kind, trace
from ke_tools.errors import InvalidInput
from ke_tools.models.causal import CausalModel
from ke_tools.printing import plain

__all__ = ["KINDS", "Located", "locate", "picture"]

KINDS: Final[tuple[Kind, ...]] = ("hidden", "mlp", "attention")
_CELL, _LINE, _NAMES, _MARGIN, _TOP = 14, 18, 130, 20, 66  # of the picture


@dataclass(frozen=True, slots=True)
class Located:
    """Indirect effects by kind, for each row (a token, or a role of tokens) and layer, and what follows from those of the hidden states."""

    title: str
    rows: tuple[str, ...]
    effect: Mapping[Kind, tuple[tuple[float, ...], ...]]  # kind → [rows][layers]
    sites: tuple[int, int]  # the rows of the subject's last token and of the prompt's
    clean: float
    corrupted: float
    prompts: int
    choice: Choice | None  # None where hidden states were not traced

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "site": self.choice.site if self.choice else None,
            "layers": list(self.choice.layers) if self.choice else None,
            "title": self.title,
            "prompts": self.prompts,
            "clean": round(self.clean, 4),
            "corrupted": round(self.corrupted, 4),
            "rows": list(self.rows),
            "effect": {kind: [[round(value, 4) for value in row] for row in rows] for kind, rows in self.effect.items()},
        }

    def as_tables(self) -> dict[str, Any]:
        """For people: what follows, and for each kind a table with a line for each layer."""
        said = f"{self.title}\np(answer) is {self.clean:.3f}, with the subject corrupted {self.corrupted:.3f}."
        if self.choice:
            site = {"subject": "the subject's last token", "last": "the prompt's last token"}[self.choice.site]
            said += f"\nEdit {site} (site={self.choice.site}) in layers {self.choice.layers[0]}-{self.choice.layers[-1]}."
        tables = {
            f"{kind}: what restoring recovers": [
                {"layer": str(layer), **dict(zip(self.rows, (f"{round(value, 2) + 0.0:.2f}" for value in column), strict=True))}
                for layer, column in enumerate(zip(*rows, strict=True))
            ]
            for kind, rows in self.effect.items()
        }
        return {"summary": said, **tables}


def locate(
    model: CausalModel,
    *,
    prompt: str = "",
    subject: str = "",
    kinds: Sequence[Kind] = ("hidden",),
    samples: int = SAMPLES,
    cache: Path | None = None,
    tell: Progress | None = None,
) -> Located:
    """Trace a prompt, or without one the atlas's facts that the model knows.

    Args:
        model: stays as it is.
        prompt: is completed by the model as it likes; with the subject in it.
        subject: whose embeddings are corrupted.
        kinds: what is restored.
        samples: of the noise.
        cache: folder in which means over facts are kept.
        tell: hears (stage, done, total).

    Raises:
        InvalidInput: one of prompt and subject is missing, or the subject is not in the prompt; the model knows too few facts.
    """
    if bool(prompt.strip()) != bool(subject.strip()):
        raise InvalidInput("a prompt and its subject belong together.", "Give both, or neither for the mean over facts.")
    if prompt:
        return _of_prompt([_traced(model, prompt, subject, kind, samples, tell) for kind in kinds])
    means = [averaged(model, kind=kind, where="all", samples=samples, cache=cache, tell=tell) for kind in kinds]
    return _of_means(dict(zip(kinds, means, strict=True)))


def _traced(model: CausalModel, prompt: str, subject: str, kind: Kind, samples: int, tell: Progress | None) -> Heat:
    def told(done: int, total: int) -> None:
        if tell:
            tell(f"tracing {kind}", done, total)

    return trace(model, prompt, subject, kind=kind, samples=samples, tell=told)


def _of_prompt(heats: Sequence[Heat]) -> Located:
    one = heats[0]
    hidden = next((heat for heat in heats if heat.kind == "hidden"), None)
    return Located(
        title=f"{''.join(one.tokens).strip()} → {one.answer.strip()}",
        rows=tuple(f"{number} {text.strip()}" + "*" * (number in one.subject) for number, text in enumerate(one.tokens)),
        effect={heat.kind: tuple(map(tuple, heat.effect.tolist())) for heat in heats},
        sites=(one.subject[-1], len(one.tokens) - 1),
        clean=one.clean,
        corrupted=one.corrupted,
        prompts=1,
        choice=choose(by_role(hidden)) if hidden else None,
    )


def _of_means(means: Mapping[Kind, Averaged]) -> Located:
    one = next(iter(means.values()))
    roles = [role for role in ROLES if role in one.effect]
    return Located(
        title=f"The mean over {one.prompts} facts that the model knows",
        rows=tuple(roles),
        effect={kind: tuple(mean.effect[role] for role in roles) for kind, mean in means.items()},
        sites=(roles.index("last of subject"), roles.index("last of prompt")),
        clean=one.clean,
        corrupted=one.corrupted,
        prompts=one.prompts,
        choice=choose(means["hidden"].effect) if "hidden" in means else None,
    )


def picture(found: Located) -> str:
    """Draw a heat map a kind as SVG, beside one another: rows downwards, layers to the right, the darker the more is recovered."""
    layers = len(next(iter(found.effect.values()))[0])
    wide = _NAMES + layers * _CELL + _MARGIN
    width, height = max(480, wide * len(found.effect) + _MARGIN), _TOP + len(found.rows) * _LINE + 44
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{_MARGIN}" y="24" font-size="15">{escape(plain(found.title))}</text>',
            *(line for n, kind in enumerate(found.effect) for line in _panel(found, kind, _MARGIN + n * wide + _NAMES)),
            "</svg>",
        ]
    )


def _panel(found: Located, kind: Kind, left: int) -> list[str]:
    rows = found.effect[kind]
    most = max(1e-6, *(value for row in rows for value in row))
    below = _TOP + len(rows) * _LINE
    lines = [f'<text x="{left}" y="{_TOP - 12}" font-weight="bold">{kind}, darkest {most:.2f}</text>']
    for number, (name, row) in enumerate(zip(found.rows, rows, strict=True)):
        y = _TOP + number * _LINE
        lines.append(f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(plain(name))}</text>')
        lines += [
            f'<rect x="{left + layer * _CELL}" y="{y}" width="{_CELL}" height="{_LINE}" fill="black" '
            f'fill-opacity="{max(0.0, value) / most:.3f}"><title>{value:.4f}</title></rect>'
            for layer, value in enumerate(row)
        ]
    count = len(rows[0])
    lines.append(f'<rect x="{left}" y="{_TOP}" width="{count * _CELL}" height="{below - _TOP}" fill="none" stroke="#999"/>')
    for layer in range(0, count, 5):
        lines.append(f'<text x="{left + layer * _CELL + _CELL / 2:.0f}" y="{below + 14}" text-anchor="middle">{layer}</text>')
    lines.append(f'<text x="{left + count * _CELL / 2:.0f}" y="{below + 32}" text-anchor="middle">layer</text>')
    if kind == "hidden" and found.choice:
        y = _TOP + found.sites[found.choice.site == "last"] * _LINE
        x, wide = left + found.choice.layers[0] * _CELL, len(found.choice.layers) * _CELL
        lines.append(f'<rect class="choice" x="{x}" y="{y}" width="{wide}" height="{_LINE}" fill="none" stroke="red" stroke-width="2"/>')
    return lines
