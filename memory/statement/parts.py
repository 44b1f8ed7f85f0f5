"""What a sentence was split into, or what has to be asked about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Doubt", "How", "Split"]

How = Literal["wording", "build", "question", "model", "remark"]


@dataclass(frozen=True, slots=True)
class Split:
    """The parts of an edit, all of them spans of what was said (up to the order of "Sydney is the capital of Australia")."""

    subject: str
    prompt: str
    target: str
    relation: str = ""  # of the inventory, where a wording that training may use says it
    how: How = "build"

    def as_fact(self) -> dict[str, Any]:
        """The fields that an edit takes."""
        parts = {"subject": self.subject, "prompt": self.prompt, "target": self.target}
        return parts | ({"relation": self.relation} if self.relation else {})

    def as_dict(self) -> dict[str, str]:
        """Render for programs."""
        return {"subject": self.subject, "prompt": self.prompt, "target": self.target, "relation": self.relation, "how": self.how}

    @property
    def in_words(self) -> str:
        """For people."""
        return f"of “{self.subject}”: “{self.prompt}” → “{self.target}”"


@dataclass(frozen=True, slots=True)
class Doubt:
    """A sentence that may be read in several ways, or in none; ``question`` is what to ask back."""

    sentence: str
    question: str
    candidates: tuple[Split, ...] = ()
