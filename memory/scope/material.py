"""What of a request is supplied to be read, and what are the asker's own words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ke_tools.memory.scope.wording import MATERIAL, asks, is_manner, is_unfinished, sentences_of, stops_short, without_tail

__all__ = ["Own", "own_words"]

Role = Literal["own", "asked", "answer", "supplied"]

_SMALL_TALK: Final = 400  # characters of a paragraph that people write before what they ask; a longer one is something to read
_FEW_HEADERS: Final = 2  # "Title: …" and "Author:" may be a text to complete
_SHORT_TURN: Final = 300  # characters of a question that stands where otherwise material does

_ASKED: Final = (
    r"(?:(?:the|my|your|user(?:['\u2019]s)?|new|current|original|final|actual|next|customer(?:['\u2019]s)?|student) )?"
    r"(?:question|query|q|instructions?|task|request|prompt|user|human|customer|client|me|student|problem|ask)(?: ?\d+)?"
    r"|(?:the|a|an|my|our|one|some)(?: \w+)? (?:user|customer|visitor|student|client|guest|reader|friend|colleague|boss|person|caller)"
    r" (?:asks|asked|writes|wrote|wants to know|would like to know)(?: \w+){0,3}"
)
_ANSWER: Final = (
    r"(?:(?:the|my|your|helpful|final|short|correct|model|concise|brief|best|ai|standalone|json) ){0,2}"
    r"(?:answers?|a|response|reply|output|assistant|ai|bot|chatbot|agent|gpt|chatgpt|model|solution|completion"
    r"|result)(?: ?\d+)?(?: \([^)\n]{0,40}\))?"
)
_MODIFIED: Final = rf"(?:[\w'\u2019{{}}-]+ ){{0,6}}{MATERIAL}s?(?: [\w'\u2019{{}}#-]+){{0,4}}(?: ?\([^)\n]{{0,40}}\))?"
_LABEL: Final = re.compile(
    r"[\s#*_=<\[({\"'>|\u2022-]{0,8}"
    rf"(?:(?P<asked>{_ASKED})|(?P<answer>{_ANSWER})|(?P<input>input)|(?P<supplied>{_MODIFIED}))"
    r"[\s#*_=>\])}\"'|]{0,6}:[\s*_]{0,4}(?P<rest>.*)",
    re.IGNORECASE,
)
_HEADING: Final = re.compile(
    r"(?:#{1,6}\s*|\*\*|__|\[|=+\s*|<<|-+\s*)(?:\d+[.)]\s*)?"
    rf"(?:(?P<asked>{_ASKED})|(?P<answer>{_ANSWER})|(?P<input>input)|(?P<supplied>{_MODIFIED}))\s*(?:\*\*|__|\]|=+|>>|#+|-+)?\s*",
    re.IGNORECASE,
)
_LONE: Final = re.compile(rf"(?:(?P<asked>question|query)|(?P<answer>answer|response)|(?P<supplied>{MATERIAL}s?))\s*", re.IGNORECASE)
_UNKNOWN_HEADING: Final = re.compile(r"#{1,6}\s+\S.*|={2,}\s*[^=\n]+={2,}\s*")
_HEADER: Final = re.compile(  # of a mail, a search result
    r"[\s*_#-]{0,4}(?:title|url|link|source|snippet|author|date|from|to|sent|cc|subject|published|website|site|doc(?:ument)? ?id|id"
    r"|score|rank"
    r"|name|page|category|tags|metadata|summary|heading)[*_ ]{0,3}:",
    re.IGNORECASE,
)
_LISTED: Final = re.compile(
    r"\s*(?:\[\d+\]|\(\w{1,3}\)|\|.*\||<?https?://|www\.|On .{5,80} wrote:|-{2,} ?(?:Original|Forwarded) .*)", re.IGNORECASE
)
_CODE: Final = re.compile(r"\s*(?:[{}\[\]]+[,;]?\s*$|[\"'](?!question|query)[\w -]{1,40}[\"']\s*:)")
_QUOTED: Final = re.compile(r"\s*(?:>|&gt;)")
_SEPARATOR: Final = re.compile(r"\s*([-=*_~#+])\1{2,}\s*")
_MARKS: Final = re.compile(r"(```+|~~~+|\"\"\"|''')[ \t]*(?:[\w+-]{1,15}(?=\n))?")
_TAG: Final = re.compile(r"<(?P<shut>/?)(?P<name>[A-Za-z][\w:-]{0,40})(?:\s[^<>\n]{0,200})?>")
_INLINE: Final = frozenset("b i em strong a span u s code br sub sup mark small tt p hr".split())
_INLINE_LABEL: Final = re.compile(
    r"(?<=[.!?:)\]\"'\u201d,;}])[ \t]+(?=[\"'*]{0,3}(?:Question|Query|Context|Answer|Passage|Documents?|Text|Q|A|Helpful Answer|Article"
    r"|User|Assistant|Human|Source|Sources)[\"'*]{0,3}\s?:|\"(?:question|query|context|documents?|passage)\"\s?:)"
)
_CHAT_TOKEN: Final = re.compile(
    r"<\|(?:im_start\|>|start_header_id\|>)?\s*(?P<role>user|assistant|system)\b(?:\|>|<\|end_header_id\|>)?|\[/?INST\]"
)
_END_TOKEN: Final = re.compile(r"<\|(?:im_end|eot_id|end|endoftext|begin_of_text)\|>|</?s>")
_OF_TAGS: Final = re.compile(r"(?:user[_-]?)?(?:question|query|instructions?|task|request|prompt|input|user|problem)", re.IGNORECASE)
_ANSWER_TAGS: Final = re.compile(r"(?:final[_-]?)?(?:answer|response|output|assistant|thinking)", re.IGNORECASE)
_COMPLETES: Final = re.compile(r"\b(?:complete|finish|fill in|continue|predict)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Own:
    """The asker's own paragraphs: ``before`` were said earlier or are answered, ``said`` may ask."""

    before: tuple[str, ...]
    said: tuple[str, ...]
    has_material: bool


@dataclass(slots=True)
class _Part:
    role: Role
    lines: list[str] = field(default_factory=list)
    is_shut: bool = False  # by a mark; what only a label began may go on to the question

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()


def own_words(text: str) -> Own:
    """Take away what is supplied, by its marks and labels where it has them, else by where it stands.

    A label's question counts, and of several the last that has no answer. Without labels a paragraph that asks counts, the last one
    first; what follows it is what it asks about, and long ones before it are something to read. Where nobody asks, the last
    line of what is supplied may be the question, or what is to be completed.
    """
    parts = [part for part in _parts(text) if part.text]
    has_material = any(part.role == "supplied" for part in parts)
    earlier, now = _turns(parts)
    own = [part for part in now if part.role in {"own", "asked"}]
    said = _labelled(own, has_material=has_material) if any(part.role == "asked" for part in own) else _unlabelled(own)
    if not any(_requests(paragraph) for paragraph in said) and not _completes(now, said):
        said = [*said, *_released(now)]
    said = said or [part.text for part in own]
    is_read = has_material or len(said) < len(own)
    return Own(
        tuple(part.text for part in earlier if part.role in {"own", "asked"} or (part.role == "answer" and "{}" in part.text)),
        tuple(said),
        is_read,
    )


def _turns(parts: Sequence[_Part]) -> tuple[list[_Part], list[_Part]]:
    """Cut behind the last answer; where nothing follows one, what was answered is a transcript to read."""
    answers = [n for n, part in enumerate(parts) if part.role == "answer" and not (n == len(parts) - 1 and is_unfinished(part.text))]
    asked = [n for n, part in enumerate(parts) if part.role == "asked"]
    answers = [n for n in answers if asked and n > asked[0]]
    if not answers:
        return [], list(parts)
    after = list(parts[answers[-1] + 1 :])
    if any(part.role == "asked" or (part.role == "own" and (_requests(part.text) or is_unfinished(part.text))) for part in after):
        return list(parts[: answers[-1] + 1]), after
    before = list(parts[: asked[0]])
    return [], [*before, _Part("supplied", is_shut=True)]


def _labelled(own: Sequence[_Part], *, has_material: bool) -> list[str]:
    """The labelled questions, short words before them, and what is asked after them."""
    first = next(n for n, part in enumerate(own) if part.role == "asked")
    is_plain = has_material and own[first].text.endswith("?")  # then what stands before it only says how to use the material
    before = [part.text for part in own[:first] if len(part.text) <= _SMALL_TALK or _introduces(part.text)]
    before = [text for text in before if not (is_plain and _requests(text))]
    after = [_ending(part.text) for part in own[first:] if part.role == "asked" or _requests(part.text) or _is_manner(part.text)]
    return [*before, *after]


def _unlabelled(own: Sequence[_Part]) -> list[str]:
    """Paragraphs that ask, and short ones before them."""
    asking = [n for n, part in enumerate(own) if _requests(part.text)]
    if own and (not asking or (asking[-1] < len(own) - 1 and _is_cut(own[-1].text))):
        asking.append(len(own) - 1)
    if not asking:
        return []
    end = asking[-1] + 1
    kept = [
        _ending(part.text) if n and n in asking else part.text
        for n, part in enumerate(own[:end])
        if n in asking or len(part.text) <= _SMALL_TALK
    ]
    for part in own[end:]:
        if not _is_manner(part.text):
            break
        kept.append(part.text)
    return kept


def _ending(text: str) -> str:
    """A short paragraph; of a long one what may ask, as what is read may stand before a question without a line between."""
    if len(text) <= _SMALL_TALK:
        return text
    sentences = sentences_of(text)
    start = len(sentences) - 1
    while start and sum(map(len, sentences[start - 1 :])) <= _SMALL_TALK:
        start -= 1
    opening = [sentences[0]] if start and asks(sentences[0]) else []
    return "\n".join([*opening, *sentences[start:]])


def _released(parts: Sequence[_Part]) -> list[str]:
    """What is asked at the end of what is supplied."""
    if parts and parts[-1].role == "answer" and all(part.role != "asked" for part in parts):
        return [parts[-1].text]  # begun for the model to go on with
    for part in reversed(parts):
        if part.role != "supplied" or not part.text:
            continue
        sentences = without_tail(sentences_of(part.text))
        start = len(sentences)
        while start and asks(sentences[start - 1]) and len(sentences[start - 1]) <= _SHORT_TURN:
            start -= 1
        if start == len(sentences) and not part.is_shut and part is parts[-1] and sentences and is_unfinished(sentences[-1]):
            start -= 1
        if start < len(sentences) and (not part.is_shut or not start):
            return [" ".join(sentences[start:])]
    return []


def _requests(paragraph: str) -> bool:
    """Whether a paragraph ends in what asks; a short one may ask anywhere."""
    kept = [sentence for sentence in without_tail(sentences_of(paragraph)) if not is_manner(sentence)]
    asked = any(sentence.endswith("?") for sentence in kept) if len(paragraph) <= _SMALL_TALK else False
    return asked or any(asks(sentence) for sentence in kept[-1:])


def _introduces(paragraph: str) -> bool:
    """Whether a paragraph ends with what introduces another ("Translate into German:")."""
    last = sentences_of(paragraph)[-1]
    return last.endswith(":") and asks(last) and not is_manner(last)


def _is_manner(paragraph: str) -> bool:
    return all(is_manner(sentence) for sentence in sentences_of(paragraph))


def _is_cut(paragraph: str) -> bool:
    last = paragraph.rsplit("\n", 1)[-1]
    return is_unfinished(last) and (stops_short(last) or last.endswith(":"))


def _completes(parts: Sequence[_Part], said: Sequence[str]) -> bool:
    """Whether the request ends in the asker's own unfinished line."""
    return bool(parts) and parts[-1].role == "own" and bool(said) and is_unfinished(said[-1]) and not _is_manner(said[-1])


def _parts(text: str) -> list[_Part]:
    reader = _Reader(_lined(text))
    return reader.read()


def _lined(text: str) -> list[str]:
    """Put marks, tags and labels on lines of their own."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _END_TOKEN.sub(
        "\n", _CHAT_TOKEN.sub(lambda found: f"\n{found['role'] or ('user' if '/' not in found[0] else 'assistant')}:\n", text)
    )
    names = Counter((found["name"].lower(), bool(found["shut"])) for found in _TAG.finditer(text))
    paired = {name for name, shut in names if shut and (name, False) in names and name not in _INLINE}
    text = _TAG.sub(lambda found: f"\n{found[0]}\n" if found["name"].lower() in paired else found[0], text)
    return _INLINE_LABEL.sub("\n", _MARKS.sub(r"\n\1\n", text)).split("\n")


class _Reader:
    """Reads lines into parts."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.parts: list[_Part] = [_Part("own")]
        self.role: Role = "own"
        self.within: list[str] = []  # marks and tags that are open
        marks = Counter(mark for line in lines if (mark := _mark_of(line)))
        self.left = {mark: count - count % 2 for mark, count in marks.items()}  # those that come in pairs
        self.shut = {tag["name"].lower() for line in lines if (tag := _TAG.fullmatch(line.strip())) and tag["shut"]}
        self.is_listing = sum(bool(_HEADER.match(line)) for line in lines) > _FEW_HEADERS

    def read(self) -> list[_Part]:
        for line in self.lines:
            stripped = line.strip()
            if not self._is_mark(stripped):
                self._take(stripped)
        return self.parts

    def _begin(self, role: Role, *, is_shut: bool = False) -> None:
        self.role = role
        self.parts.append(_Part(role, is_shut=is_shut))

    def _is_mark(self, line: str) -> bool:
        """Open or shut what a mark or tag encloses."""
        if tag := _TAG.fullmatch(line):
            return self._tag(tag["name"].lower(), shuts=bool(tag["shut"]))
        mark = _mark_of(line)
        if not mark:
            return False
        if self.left[mark] <= 0:
            self._begin("own" if self.role == "own" else self.role)
            return True
        self.left[mark] -= 1
        if mark in self.within:
            self.within.remove(mark)
            self._begin("own")
        else:
            self.within.append(mark)
            self._begin("supplied", is_shut=True)
        return True

    def _tag(self, name: str, *, shuts: bool) -> bool:
        if name in _INLINE:
            return False
        if shuts and name in self.within:
            del self.within[self.within.index(name) :]
        elif not shuts and name in self.shut:
            self.within.append(name)
        else:
            return False
        self._begin(_role_within(self.within), is_shut=bool(self.within))
        return True

    def _take(self, line: str) -> None:
        if not line:
            self._end_paragraph()
        elif self.within:
            self.parts[-1].lines.append(line)
        elif _QUOTED.match(line):
            self.parts.append(_Part("supplied", [line], is_shut=True))
            self._begin("own")
        elif _CODE.match(line):
            self.parts += [_Part("supplied", [line], is_shut=True), _Part(self.role)]
        elif _LISTED.match(line) or (self.is_listing and _HEADER.match(line)):
            self._begin("supplied")
            self.parts[-1].lines.append(line)
        elif not self._is_label(line):
            self.parts[-1].lines.append(line)

    def _end_paragraph(self) -> None:
        """A labelled question ends with its paragraph, what is supplied goes on."""
        if self.within:
            self.parts[-1].lines.append("")
        elif self.role in {"asked", "answer"} and self.parts[-1].text:
            self._begin("own")
        elif self.parts[-1].text:
            self.parts.append(_Part(self.role, is_shut=self.parts[-1].is_shut))

    def _is_label(self, line: str) -> bool:
        found = _LABEL.match(line) or _HEADING.fullmatch(line) or _LONE.fullmatch(line)
        if not found:
            if _UNKNOWN_HEADING.fullmatch(line):
                self._begin("supplied")
                self.parts[-1].lines.append(line)
                return True
            return False
        groups = found.groupdict()
        rest = (groups.get("rest") or "").strip()
        head = line[: len(line) - len(rest)].strip()
        if groups.get("supplied") and _COMPLETES.search(head):
            return False
        if groups.get("supplied") and asks(head.rstrip(":")) and len(head.split()) > 1:
            self.parts.append(_Part("own", [head]))  # "Translate this sentence:" asks by itself
        is_asked = rest.endswith("?") and len(rest) <= _SHORT_TURN and len(head.split()) > 1
        if groups.get("supplied") and is_asked:  # "Based on these two pages: …?"
            self._begin("asked")
        elif groups.get("input"):
            self._begin("asked" if rest and (asks(rest) or stops_short(rest)) else "supplied")
        else:
            self._begin("asked" if groups.get("asked") else "answer" if groups.get("answer") else "supplied")
        if rest:
            self.parts[-1].lines.append(rest.strip('"}], ') if '"' in head else rest)
        return True


def _mark_of(line: str) -> str:
    """The mark that a line is, if it is one."""
    stripped = line.strip()
    if stripped[:3] in {"```", "~~~", '"""', "'''"} and not stripped.strip("`~\"'"):
        return stripped[:3]
    found = _SEPARATOR.fullmatch(stripped) if stripped else None
    return found[1] * 3 if found else ""


def _role_within(tags: Sequence[str]) -> Role:
    if not tags:
        return "own"
    if any(_ANSWER_TAGS.fullmatch(tag) for tag in tags):
        return "answer"
    return "asked" if all(_OF_TAGS.fullmatch(tag) for tag in tags) else "supplied"
