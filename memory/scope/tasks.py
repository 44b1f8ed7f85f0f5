"""What is to be done with a text, which is then nothing to ask about: to translate it, to count its words, to judge its grammar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from ke_tools.memory.scope.wording import (
    LEAD,
    MATERIAL,
    WORKING,
    asks,
    is_manner,
    is_unfinished,
    sentences_of,
    stops_short,
    without_lead_in,
)

__all__ = ["sentences_to_answer"]

_LONGEST: Final = 1000  # characters of a sentence whose wording is looked at
_FEWEST_QUOTED: Final = 4  # words; a shorter quotation is a name
_FEW: Final = 9  # words of a task that says nothing of what it is to be done with

_QUOTE: Final = re.compile(
    r"\"[^\"\n]{1,2000}\"|\u201c[^\u201c\u201d\n]{1,2000}\u201d|\u201e[^\u201e\u201c\u201d\n]{1,2000}[\u201c\u201d]"
    r"|\u00ab[^\u00ab\u00bb\n]{1,2000}\u00bb|`[^`\n]{1,2000}`|(?<!\w)['\u2018](?:[^'\u2018\u2019\n]"
    r"|(?<=\w)['\u2019](?=\w)){1,1000}['\u2019](?!\w)"
)
_PRIVATE: Final = re.compile(r"[\ue000-\ue002]")
_HELD: Final = re.compile(r"\ue000(\d+)[\ue001\ue002]")

_LANGUAGE: Final = (
    r"(?:english|german|french|spanish|italian|portuguese|dutch|russian|polish|swedish|danish|norwegian|finnish|greek|turkish|arabic|hebrew"
    r"|hindi|chinese|mandarin|japanese|korean|latin|czech|hungarian|romanian|ukrainian|catalan|esperanto|swahili|vietnamese|thai"
    r"|irish|welsh)"
)
_TEXT: Final = (
    rf"(?:{MATERIAL}s?|statement|claim|phrase|line|headline|title|caption|tweet|bullet|quotation|words|wording|writing|passage|clause)"
)
_WORKS: Final = re.compile(
    rf"\W{{0,4}}{LEAD}(?!correct me\b|correct if\b|check (?:if|whether|that)\b|put simply|turn to\b|read about\b)(?P<verb>{WORKING})\b",
    re.IGNORECASE,
)
_STRONG: Final = re.compile(  # these need no object: it stands before or after them
    r"translat|summari|sum up|proof|correct|fix|re-?writ|rephras|re-?word|paraphras|shorten|condens|continu|simplif|polish|improv"
    r"|spell|count"
    r"|tl;?dr|expand|edit|repeat|capitali|punctuat|tidy|clean|check",
    re.IGNORECASE,
)
_OF_LANGUAGE: Final = re.compile(  # what only texts have
    rf"\b{_LANGUAGE} (?:version|words|equivalent|for|of)\b|\bversions? of (?:this|the following)\b"
    r"|\b(?:translat(?:e|ed|ion|ions|ing)|summar(?:y|ies)|paraphrase[ds]?|rephrased|reworded|rewritten|rewrite|grammar"
    r"|grammatical(?:ly)?|ungrammatical"
    r"|spelling|spelled|spelt|misspell\w*|typos?|punctuat\w+|commas?|proof-?read(?:ing)?|word ?count|how many (?:words|letters"
    r"|characters|syllables|vowels"
    r"|consonants|sentences|commas|tokens|nouns|verbs|adjectives|times)|number of (?:words|letters|characters|syllables|vowels"
    r"|sentences|tokens)|synonyms?"
    r"|past tense|present tense|future tense|which tense|what tense|tense|passive voice|active voice|indirect speech|reported speech"
    r"|parts? of speech|nouns?"
    r"|verbs?|adjectives?|adverbs?|pronouns?|prepositions?|clauses?|sentiment|register|headline|bullet(?:ed)?(?: points?| list)?"
    r"|readability|reading level"
    r"|plain english|well[ -]written|read well|reads well|sounds? (?:right|natural|ok|okay|good|better|fine|formal|strange|odd"
    r"|awkward)|formal(?:ly)?|informal"
    r"|more (?:concise|polite|natural|fluent|professional|casual|elegant|lively|vivid|engaging)|shorter|longer|simpler|clearer"
    r"|snappier|catchier|idiomatic"
    r"|mistakes?|errors?|tl;?dr|who (?:said|wrote)|tone|rhetorical|(?:re)?wordings?|phrasings?|written in|hashtags?|emojis?|haiku|limerick"
    r"|anagram|backwards"
    r"|upper ?case|lower ?case|all caps|title case|repeat after me|verbatim|word for word|exactly|quote)\b",
    re.IGNORECASE,
)
_SAYS: Final = re.compile(  # with a quotation behind it, a text to bring somewhere
    rf"\W{{0,4}}{LEAD}(?:say|print|type|write|output|echo|append|insert|begin|start|end|use|include|add|put|read|recite|draft|compose"
    rf"|post|send|make|create"
    r"|how (?:do|would|can|should) (?:you|i|we|one) (?:say|write|put|phrase|express|translate|word)"
    r"|what does|what is meant by|what would|what(?:['\u2019]s| is) (?:an?|the|another) (?:\w+ )?way (?:to|of))\b",
    re.IGNORECASE,
)
_POINTS: Final = re.compile(
    rf"\b(?:this|these|that|those|following|above|below|my|our|said|previous|next|given|provided|attached|pasted|quoted|original)"
    rf"(?: (?!of\b)[\w-]+){{0,2}} {_TEXT}\b(?! of \{{\}})|\b(?:the|a|an|each|every) (?:\w+ ){{0,1}}{_TEXT}\b(?! (?:of|about|on|for"
    rf"|behind)\b)"
    r"|\b(?:the following|the above|the below|what follows|what i (?:wrote|write|have written)|what comes next|as follows)\b"
    r"|\b(?:this|that|it|these|them|here|below|above)\b(?=\s*(?:[?.!,:;]|$|in(?:to)?\b|to\b|as\b|for\b|from\b|with\b|up\b|down\b"
    r"|out\b|a bit\b"
    r"|more\b|please\b|all\b|correct|grammatical|well|sound|read|right|written|shorter|longer|simpler|clearer|less|be\b|need|and\b"
    r"|by\b|using\b|formal))",
    re.IGNORECASE,
)
_ONLY_IT: Final = re.compile(
    r"\b(?:your|the) (?:final )?(?:answer|answers|reply|response|result|name|output|explanation)\b|\bit\b", re.IGNORECASE
)
_ITS_ANSWER: Final = re.compile(r"\b(?:your|the|its) (?:final )?(?:answers?|reply|response|result|output|explanation)\b", re.IGNORECASE)
_SET_OFF: Final = re.compile(
    r"^([^:]{1,160}):(?:\s+(?P<colon>\S.*)|\s*$)|^([^:]{1,160}?)\s[-\u2013\u2014]{1,2}\s+(?P<dash>\S.*)", re.DOTALL
)
_INTO: Final = re.compile(
    rf"\W*(?:(?:now|please|and|say it|this|the following|same)\b,? *)*(?:(?:in|into|to|for)\b )?(?:\w+ )?{_LANGUAGE}"
    r"(?:,? (?:please|version|translation|text|for))*\W*",
    re.IGNORECASE,
)
_INTO_LANGUAGE: Final = re.compile(
    rf"\b(?:in|into|to) (?:\w+ )?(?:{_LANGUAGE}|other words|(?:past|present|future) tense)\W*$", re.IGNORECASE
)
_STATES: Final = re.compile(
    r"\{\}(?:['\u2019]s(?: [\w-]+){1,4})?,? (?:is|was|are|were|has|had)\b|\{\},? (?!and\b|news\b)[a-z]{2,}(?:s|ed)\b"
    r"|\b(?:is|was|are|were|belongs|plays|lies|speaks)\b[^?]{0,120}\{\}",
    re.IGNORECASE,
)
_WH: Final = re.compile(
    r"\b(?:what|who|which|where|when|why|how|whose)\b|\bthe (?:\w+ )?(?:names?|words?|terms?) (?:of|for)\b", re.IGNORECASE
)
_CHANGES_IT: Final = re.compile(
    rf"\W{{0,4}}{LEAD}(?:make|keep|put|turn|express|get|bring) (?:it|this|that|these|(?:the|my) (?:\w+ )?{_TEXT})\b", re.IGNORECASE
)
_POINTS_OUT: Final = re.compile(r"\b(?:this|these|those|following|above|below|my)\b|\bthat\W*$", re.IGNORECASE)  # behind a question
_LOOKS: Final = re.compile(r"read|review|check|mark|set|cut|split|reduce", re.IGNORECASE)  # may be done before a question is answered
_NARRATES: Final = re.compile(  # who tells something sets no task, unless it is wanted
    r"\W*(?!.*\b(?:need|want|please|should|must)\b)(?:i|we|he|she|it|they|you|the|this|these|that|those|my|our|there|here|a|an|in|on|at)\b",
    re.IGNORECASE,
)
_OF_TRUTH: Final = re.compile(
    r"\b(?:confirm|verify|(?:fact|double)?-?check|consider|true|believe|assume|suppose|know|fact|answer|tell|explain)\b", re.IGNORECASE
)
_OF_A_TEXT: Final = re.compile(r"\W*(?:how|is|are|does|what)\b", re.IGNORECASE)
_NAMES_TEXT: Final = re.compile(rf"\b{_TEXT}\b", re.IGNORECASE)
_COMPLETES: Final = re.compile(rf"\W{{0,4}}{LEAD}(?:complete|finish|fill in|continue|predict)\b", re.IGNORECASE)


def sentences_to_answer(paragraphs: Sequence[str]) -> list[str]:
    """Cut paragraphs into sentences, without tasks and the texts they are set about; empty where there is nothing else.

    A text in quotation marks goes with its sentence, one behind a colon with all that follows. Any other goes with all that is said, as
    nothing tells where it ends. A line that is to be completed stays.
    """
    held: list[str] = []
    sentences = [sentence for paragraph in paragraphs for sentence in sentences_of(_hold(paragraph, held))]
    last = max((n for n, sentence in enumerate(sentences) if asks(sentence)), default=-1)
    kept: list[str] = []
    asked_before = False
    for position, sentence in enumerate(sentences):
        own = sentence[:_LONGEST]
        if _is_quoting(own):
            continue
        if not is_manner(own) or _is_about_it(own, asked=asked_before or position < last):
            if _is_task(own, is_last=position == len(sentences) - 1, asked_before=asked_before, asked_later=position < last):
                off = _SET_OFF.match(own)
                if asked_before and off and off["colon"]:
                    break
                return _to_complete(own, _held_back(sentences[-1], held))
            asked_before = asked_before or sentence.endswith("?")
        kept.append(sentence)
    if len(kept) < len(sentences) and not any(asks(sentence) and not is_manner(sentence) for sentence in kept):
        return []
    return [_held_back(sentence, held) for sentence in kept]


def _hold(text: str, held: list[str]) -> str:
    """Put a mark for each longer quotation, so that no sentence ends within; one that is a sentence ends with it."""

    def put(found: re.Match[str]) -> str:
        if len(found[0].split()) < _FEWEST_QUOTED:
            return found[0]
        held.append(found[0])
        return f"\ue000{len(held) - 1}" + ("\ue002" if found[0][-2] in ".!?" else "\ue001")

    return _QUOTE.sub(put, _PRIVATE.sub(" ", text))


def _held_back(sentence: str, held: Sequence[str]) -> str:
    return _HELD.sub(lambda found: held[int(found[1])], sentence)


def _is_quoting(sentence: str) -> bool:
    """Whether a sentence sets a task about what it quotes."""
    if not _HELD.search(sentence):
        return False
    outside = _HELD.sub(" ", sentence)
    return bool(_WORKS.match(outside) or _OF_LANGUAGE.search(outside) or _SAYS.match(outside) or _INTO.fullmatch(outside))


def _to_complete(task: str, last: str) -> list[str]:
    """The line that a task wants completed, which ends the request."""
    if not _COMPLETES.match(task) or not stops_short(last) or not is_unfinished(last):
        return []
    off = _SET_OFF.match(last)
    return [off["colon"] if off and off["colon"] and _COMPLETES.match(last) else last]


def _is_about_it(manner: str, *, asked: bool) -> bool:
    """Whether a sentence says of a text, not of an answer, how it shall be ("Make it shorter.")."""
    return not asked and bool(_CHANGES_IT.match(manner))


def _is_task(sentence: str, *, is_last: bool, asked_before: bool, asked_later: bool) -> bool:
    off = _SET_OFF.match(sentence)
    if not off or asks(off["colon"] or off["dash"] or "?"):
        bare = without_lead_in(sentence)
        if bare != sentence:
            sentence, off = bare, _SET_OFF.match(bare)
    head = (off[1] or off[3]) if off else sentence
    told = (off["colon"] or off["dash"] or "") if off else ""
    if off and (told or not is_last) and "{}" not in head and _introduces(head, told):
        return True
    works = _WORKS.match(head)
    if "{}" in head:
        return _works_on_statement(head, works) or _tells_how_to_say(head)
    return _points_elsewhere(head, works, asked_before=asked_before, asked_later=asked_later)


def _introduces(head: str, told: str) -> bool:
    """Whether what stands before a colon sets a task about what stands behind it."""
    if _ITS_ANSWER.search(head):
        return False
    if _OF_LANGUAGE.search(head) or _CHANGES_IT.match(head):
        return True
    works = _WORKS.match(head)
    if works:
        return not (_LOOKS.match(works["verb"]) and told.endswith("?"))
    is_order = bool(_POINTS.search(head)) and not _NARRATES.match(head) and not _OF_TRUTH.search(head)
    return bool(_INTO.fullmatch(head) or (is_order and "{}" in told)) and not asks(told)


def _works_on_statement(sentence: str, works: re.Match[str] | None) -> bool:
    """Whether a task names what it is about in the same words ("Translate … is … into German")."""
    if not works or not (_STRONG.match(works["verb"]) or _INTO_LANGUAGE.search(sentence)):
        return False
    return bool(_STATES.search(sentence)) and not _WH.search(sentence[works.end() :])


def _tells_how_to_say(sentence: str) -> bool:
    """Whether a sentence asks for the words of a statement ("How do you say … in German?", "How many words are in …?")."""
    about = _SAYS.match(sentence) or _OF_LANGUAGE.search(sentence)
    if not about or not _OF_A_TEXT.match(sentence):
        return False
    said = sentence[about.end() :]
    return bool(_STATES.search(said)) and not _WH.search(said)


def _points_elsewhere(sentence: str, works: re.Match[str] | None, *, asked_before: bool, asked_later: bool) -> bool:
    """Whether a sentence that names nobody is a task about what stands around it."""
    if _ITS_ANSWER.search(sentence) or (asked_before and _ONLY_IT.search(sentence)):
        return False
    of_language = bool(_OF_LANGUAGE.search(sentence) or _CHANGES_IT.match(sentence) or (works and not _LOOKS.match(works["verb"])))
    if (_POINTS_OUT if asked_before else _POINTS).search(sentence):
        if of_language:
            return asks(sentence) or sentence.endswith(":") or not _NARRATES.match(sentence)
        return not asked_later and asks(sentence) and bool(_NAMES_TEXT.search(sentence))
    is_short = len(sentence.split()) <= _FEW and not asked_before
    return is_short and (bool(works and _STRONG.match(works["verb"])) or (of_language and asks(sentence)))
