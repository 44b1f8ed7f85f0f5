"""What the demo tells, on the terminal and for programs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.markup import escape

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Story"]


@dataclass(slots=True)
class Story:
    """What was told and whether it was true."""

    console: Console
    steps: list[dict[str, Any]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """Open a chapter."""
        self.console.print(f"\n[bold cyan]{title}[/]")

    def told(self, line: str, *, aside: str = "", **facts: Any) -> None:
        """Say something that needs no proof; an aside stands behind it in red."""
        self.console.print(f"  {escape(line)}" + (f"  [red]({escape(aside)})[/]" if aside else ""), highlight=False)
        self.steps.append({"told": f"{line}  ({aside})" if aside else line, **facts})

    def check(self, claim: str, *, ok: bool, **facts: Any) -> None:
        """Say something that must be so."""
        self.console.print(f"  [{'green' if ok else 'bold red'}]{'✓' if ok else '✗'}[/] {escape(claim)}", highlight=False)
        self.steps.append({"claim": claim, "ok": ok, **facts})

    @property
    def ok(self) -> bool:
        """Whether all claims held."""
        return all(step.get("ok", True) for step in self.steps)
