"""Whether a question sets an edit's object aside: "Which capital other than Sylvania City …" asks for what the edit does not say."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["sets_aside"]

_ASIDE: Final = re.compile(
    r"\b(?:(?:which|who|that)(?: (?:is|are|was|were) not|(?: (?:is|are|was|were)|['\u2019]s)n['\u2019]t)"
    r"|(?:other|apart|aside) (?:than|from)|besides|except(?: for)?|excluding)"
    r"\s+(?:the |an? )?['\"\u201c\u2018]?",
    re.IGNORECASE,
)


def sets_aside(text: str, target: str) -> bool:
    """Whether the text names the target only to say that it is not meant."""
    wanted = target.strip().rstrip(".").casefold()
    folded = text.casefold()
    if not wanted or folded.count(wanted) != 1:
        return False
    return any(re.match(rf"{re.escape(wanted)}(?!\w)", folded[found.end() :]) for found in _ASIDE.finditer(folded))
