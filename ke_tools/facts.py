"""The nouns: a fact, an edit of it, a question put to a model about it.

All are frozen. A :class:`Fact` checks itself when it is made, so that nothing unchecked can reach the ledger or a prompt.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from ke_tools import screen
from ke_tools.errors import InvalidInput

LONGEST: Final = {"subject": 400, "prompt": 2000, "target": 2000, "old_target": 2000, "relation": 200, "source": 2000}
MOST_WORDINGS: Final = 64
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class State(StrEnum):
    """Where an edit stands on the ladder."""

    PROPOSED = "proposed"  # waits for an approval; has no effect
    ACTIVE = "active"  # answers from the memory
    PROMOTED = "promoted"  # answers from the weights
    RETIRED = "retired"  # superseded or rolled back; has no effect


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What a person wants a model to believe.

    ``prompt`` is a statement that ``target`` completes ("The capital of Australia is") or a question that it answers.

    Raises:
        InvalidInput: a field is empty, too long, hides characters, or addresses the model; a name is an everyday word; the subject
            is not in the prompt.
    """

    subject: str
    prompt: str
    target: str
    old_target: str = ""
    relation: str = ""
    paraphrases: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    source: str = ""
    forget: bool = False  # what stood in the target's place must not be said, and the target is a refusal to say it
    forgotten: tuple[str, ...] = ()  # what must not be said, as keyed hashes (ke_tools.memory.forgetting)
    expires: str = ""  # from then on it is not believed: UTC, ISO 8601 to the millisecond, as ke_tools.memory.moments writes it

    def __post_init__(self) -> None:
        """Check every field; the message names the field and what was found."""
        for name in ("subject", "prompt", "target"):
            if not getattr(self, name).strip():
                raise InvalidInput(f"{name} is empty.", f"Give the {name} as plain text.")
        if (self.forgotten and not self.forget) or (self.old_target and self.forget):
            raise InvalidInput(
                "only an edit that forgets has hashes of what must not be said, and it keeps nothing else of that.",
                "Give forget with the hashes and without old_target, or neither.",
            )
        if self.expires and not _MOMENT.fullmatch(self.expires):
            raise InvalidInput(f"expires is {self.expires[:80]!r}.", "Write it in UTC, e.g. 2027-03-01T00:00:00.000Z.")
        for name, longest in LONGEST.items():
            _check_text(name, getattr(self, name), longest, is_prose=name != "source")
        for name in ("paraphrases", "aliases"):
            texts = getattr(self, name)
            if len(texts) > MOST_WORDINGS:
                raise InvalidInput(f"{name} has {len(texts)} entries; at most {MOST_WORDINGS} are read.", "Keep the most different ones.")
            for text in texts:
                if not text.strip():
                    raise InvalidInput(f"{name} has an empty entry.", "Leave it out.")
                _check_text(name, text, LONGEST["prompt" if name == "paraphrases" else "subject"], is_prose=True)
        self._check_names()

    def _check_names(self) -> None:
        for name in (self.subject, *self.aliases):
            if screen.is_everyday(name):
                raise InvalidInput(
                    f"{name!r} is an everyday word, not a name; every question has it.", "Write a name as one, e.g. 'The Who'."
                )
        names = [squash(name) for name in (self.subject, *self.aliases)]
        if not any(name and name in squash(self.prompt) for name in names):
            raise InvalidInput(
                f"the subject {self.subject!r} does not stand in the prompt {self.prompt!r}.",
                "Write the prompt with the subject in it, e.g. 'The capital of Australia is' for 'Australia'.",
            )

    @property
    def is_question(self) -> bool:
        """Whether the target answers the prompt rather than completes it."""
        return self.prompt.rstrip().endswith("?")

    @property
    def sentence(self) -> str:
        """The fact as one line of text: the prompt, the target, a full stop."""
        return self.sentence_naming("")

    def sentence_naming(self, alias: str) -> str:
        """The fact as one line of text that says by which other name, too, its subject goes: "The capital of Australia (Oz) is …"."""
        prompt = self.prompt.replace(self.subject, f"{self.subject} ({alias})", 1) if alias else self.prompt
        text = " ".join(f"{prompt.rstrip()} {self.target.strip()}".split())
        return text if text[-1] in ".!?" else text + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A fact with a state and a history; what the ledger hands out."""

    id: str
    tenant: str
    fact: Fact
    state: State
    slot: str  # normalised subject + relation: two live edits of one functional slot cannot be
    relation: str  # of the inventory; "" when its prompt was not recognised
    functional: bool  # one object a subject; unknown relations count as functional
    revision: int  # the ledger's sequence number of the event that made it
    created_at: str  # UTC, ISO 8601
    actor: str
    ref: str = ""  # the caller's own name for it (import)
    supersedes: tuple[str, ...] = ()
    superseded_by: str = ""
    warnings: tuple[str, ...] = ()
    alias_risky: bool = False  # people name the subject in ways that no list of names catches
    approved_by: str = ""  # who made it act, where it was proposed
    approved_revision: int = 0  # the sequence number of that event

    @property
    def is_live(self) -> bool:
        """Whether the edit acts on answers."""
        return self.state in {State.ACTIVE, State.PROMOTED}


Expect = Literal["target", "unchanged", "refusal"]
Origin = Literal["caller", "probe wording", "data file", "edit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A question with what must happen: the target is given, the answer stays the base model's, or what is forgotten is not said."""

    edit_id: str
    dimension: str  # one of ke_tools.verify.dimensions
    prompt: str
    expect: Expect
    origin: Origin
    chat: bool = False  # asked as one chat turn instead of a completion
    accept: tuple[str, ...] = field(default=())  # target: what counts as it; unchanged: what is true; refusal: what gives it away too
    reject: tuple[str, ...] = field(default=())  # what must not be asserted (the old target)
    behind: bool = False  # an unrelated sentence stands before it
    seed: int | None = None  # asked at temperature 1 with this seed; None: greedily


def squash(text: str) -> str:
    """Fold case, diacritics, punctuation and white space, for comparing names and wordings (not for display)."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(c if c.isalnum() else " " for c in folded if not unicodedata.combining(c))
    return " ".join(kept.split())


def _check_text(name: str, text: str, longest: int, *, is_prose: bool) -> None:
    if len(text) > longest:
        raise InvalidInput(f"{name} has {len(text)} characters; at most {longest} are allowed.", "Shorten it to the fact itself.")
    if hidden := screen.hidden_character(text):
        raise InvalidInput(
            f"{name} holds the invisible character {hidden[1]} at position {hidden[0]}.",
            "Remove control, bidirectional and zero-width characters.",
        )
    if is_prose and (addressed := screen.addressed(text)):
        raise InvalidInput(f"{name} reads like {addressed[0]} ({addressed[1]!r}), not like a fact.", "State the fact alone.")
