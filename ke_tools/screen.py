"""What a fact's text may not hold: characters that hide text from a reviewer, text that addresses the model, names that are none.

A stored fact is data that enters prompts quoted on one line. Quoting keeps it from posing as something else; this screen keeps
out what would be obeyed even so. It is deliberately narrow: of the targets in the field's benchmark files at most one in a
thousand may be refused. It is no proof against a determined author, which is why who wrote what stays in the ledger.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Unicode's control, format (bidirectional, zero width), private-use, surrogate and separator characters.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})

# Words that stand in every question: as a name they would make any question one about the edit.
EVERYDAY: Final = frozenset(
    "a about after all am an and any are as at be been but by can could day did do does down for from get go had has have he her here "
    "him his how i if in into is it its just like may me more my no not now of off on one or our out over she so some that the their "
    "them then there these they this those to too two up us was we were what when where which who whom whose why will with would yes "
    "yet you your".split()
)
_LONGEST_EVERYDAY: Final = 3  # words; a longer phrase stands in few questions

_SPEAK: Final = (
    r"(?:say|print|output|repeat|reply|respond|answer|write|mention|append|prepend|include|insert|add|tell|translate|sign"
    r"|begin|end|start)"
)
_WHOM: Final = r"(?:you|assistant|model|ai|bot|chatbot)"
_TURN: Final = r"(?:question|prompt|request|message|answer|repl(?:y|ie)|response|output|turn)s?"

_ADDRESSES: Final = {
    "markup": r"<[|\uff5c][^|\uff5c>]{1,40}[|\uff5c]>|</?(?!(?:su[bp]|[bi]|em)\b)[a-z_!][^<>]{0,80}>|<!--|<<\s*/?\s*sys"
    r"|\[/?(?:inst|system|user|assistant|system_prompt|tool_calls|tool_results|available_tools)\]|```|#{3}|\{\{|\{%",
    "a role": r"(?:^|[.;!?\"']\s*)(?:system|assistant|user|human|developer|prompt|new fact|fact)(?:\s+(?:prompt|message))?\s*:",
    "an instruction to forget": r"\b(?:ignore|disregard|forget|override|bypass)\b[^.]{0,40}"
    r"\b(?:instructions?|prompts?|rules?|guidelines?|context|facts?|previous|above|earlier|everything)\b",
    "an instruction in another language": r"\b(?:ignorier\w*|vergiss|ignorez|oubliez|ignora|olvida|ignorare|игнорируй\w*)\b.{0,40}"
    r"\b(?:anweisung\w*|instruc\w*|instruz\w*|alles|tout|todo|tutto|инструк\w*)|忽略.{0,12}(?:指令|说明|提示)",
    "an instruction": rf"(?:^|[.;!?]\s+){_SPEAK}\s+"
    r"(?:only\b|the\s+(?:word|string|phrase)\b|(?:(?:to|in|with|into)\s+)?(?:all|any|each|every)\b)"
    rf"|[.;!?,]\s+(?:and\s+|then\s+|please\s+)*(?:say|print|output|repeat|reply|respond)\b"
    rf"|\b(?:always|only|now|then|please)\s+{_SPEAK}\b"
    rf"|(?:^|[.;!?]\s+){_SPEAK}\b.{{0,60}}\b(?:(?:all|any|each|every|your)\s+(?:\w+\s+)?{_TURN})\b"
    rf"|\bthen\s+(?:say|print|output|reply|respond)\b",
    "a rule for every answer": rf"\b(?:regardless\s+of|no\s+matter)\s+(?:what|which|how|the)\b.{{0,20}}\b(?:ask|question|prompt)"
    rf"|\bwhatever\b.{{0,20}}\b(?:asks?|asked|question)\b|\bfor\s+(?:all|any|every)\s+{_TURN}\b"
    rf"|\b(?:when(?:ever)?|each\s+time|every\s+time|if)\b.{{0,20}}\b(?:asked|asks?|user\s+writes)\b.{{0,60}}"
    r"(?:\b(?:say|print|output|repeat|reply|respond|write)\b|,\s+answer\b)",
    "a rule for the model": rf"\b{_WHOM}\s+(?:must|should|shall|will|has\s+to|have\s+to)\s+(?:now\s+|always\s+|only\s+)?{_SPEAK}\b"
    rf"|\byou\s+are\s+now\b|\b(?:you|each\s+reply|every\s+(?:answer|reply))\b.{{0,30}}\bonly\s+says?\b"
    rf"|\byour\s+(?:new|only|next|real)\s+(?:task|goal|job|role|purpose)\b|\byour\s+{_TURN}\s+(?:must|should|shall|will)\b"
    r"|\byour\s+(?:system\s+prompt|instructions|guidelines)\b|\bsystem\s+prompt\b",
    "a change of role": r"(?:^|[.;:!?]\s*)(?:act\s+as|pretend\s+(?:to|that)|(?:let\s+us|let's)\s+role-?play)\b"
    r"|\b(?:jailbreak|dan\s+mode|(?:developer|admin|debug|god)\s+mode)\b",
    "a new order": r"\b(?:from\s+(?:now|this\s+moment)\s+on|new\s+instructions?\b)"
    r"|\b(?:begin|end)(?:\s+of)?\s+(?:instructions?|facts?|prompt)\b",
    "an order to stop": r"(?:^|[.;!?]\s+)(?:do\s+not|don't|never|stop)\s+(?:answer\w*|mention\w*|reply\w*|respond\w*)\b"
    r"|\binstead\s+of\s+(?:answering|replying|responding)\b",
}
_GROUPS: Final = (f"(?P<{name.replace(' ', '_')}>{pattern})" for name, pattern in _ADDRESSES.items())
_PATTERN: Final = re.compile("|".join(_GROUPS), re.IGNORECASE)


def hidden_character(text: str) -> tuple[int, str] | None:
    """Find the first character that cannot be seen: its position and its code point."""
    return next(((i, f"U+{ord(c):04X}") for i, c in enumerate(text) if unicodedata.category(c) in _HIDDEN), None)


def addressed(text: str) -> tuple[str, str] | None:
    """Find text that addresses the model: what kind of text it is, and the words."""
    found = _PATTERN.search(text)
    return (str(found.lastgroup).replace("_", " "), found.group(0).strip()) if found else None


def is_everyday(name: str) -> bool:
    """Whether a name is nothing but everyday words, and not written as a name is: "the", "What is"; not "It", "The Who"."""
    words = name.split()
    return 0 < len(words) <= _LONGEST_EVERYDAY and words[-1].islower() and all(word.casefold() in EVERYDAY for word in words)
