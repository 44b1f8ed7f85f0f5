"""What kind of sentence it is: one that asks, one that only says how to answer, or one that tells of the speaker."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = [
    "LEAD",
    "MATERIAL",
    "WORKING",
    "asks",
    "is_aside",
    "is_closing",
    "is_manner",
    "is_unfinished",
    "sentences_of",
    "stops_short",
    "without_lead_in",
    "without_tail",
]

_LONGEST_MANNER: Final = 300  # characters of a sentence that says how to answer; patterns with this freedom are slow on long ones
_LONGEST_ABBREVIATION: Final = 8
_FEWEST: Final = 3  # words of a sentence that is no signature
_MOST_LEAD_INS: Final = 4

_SENTENCE_END: Final = re.compile(  # people who type in lower case end sentences too
    r"(?P<mark>[.!?])[\"')\u201d]*\s+(?=[\"'(\[\u201c\u201d]*[A-Z0-9{\ue000]|(?:what|whats|who|whos|whose|when|where|wheres|which|why|how"
    r"|please|tell me|can you)\b)"
    r"|(?<=\?)\s+(?=[a-z])|[^\S\n](?:\u2190|<-+)\s+|(?<=\ue002)\s+(?=[A-Z{])|\n+"
)
_ABBREVIATION: Final = re.compile(r"(?:^|[\s.(])(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Mt|No|vs|cf|e\.g|i\.e|[A-Z])$")
_BULLET: Final = re.compile(r"(?:[-*\u2022\u2013]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")

MATERIAL: Final = (  # what people call something that they supply
    r"(?:context|passage|document|article|text|background|source|results?|excerpt|extract|evidence|knowledge|reference|information|info"
    r"|e-?mail|thread|snippet|paragraph|abstract|story|review|transcript|data|notes?|page|content|quote|quotation|history|conversation|chat"
    r"|log|report|material|facts|message|letter|post|file|chunk|record|section|memo|table|essay|draft|sentence|dialogue|chapter|speech"
    r"|press release|blog|wiki|manual|handbook|minutes|listing|feed)"
)
_TELLING: Final = (  # verbs that ask for something
    "tell|give|name|list|explain|describe|write|state|find|say|show|answer|provide|identify|specify|mention|remind|let me know|look up"
    "|compare|discuss|outline|define|recommend|suggest|introduce|help|complete|finish|fill in|guess|choose|pick|confirm|verify|teach|share"
    "|imagine|act as|create|make|draw|plan|calculate|compute|solve|generate|compose|return|output|print|spell|pronounce|brief"
)
WORKING: Final = (  # verbs that set something to be done with a text
    r"translat\w+|summari[sz]e|sum up|(?:sum|boil|tidy|clean|type|break|write) (?:it|this|that|these) (?:up|down|out)"
    r"|proof-?read|correct|fix|edit|re-?write|rephrase|re-?word|paraphrase|shorten|condense|compress|expand"
    r"|continue|extend|count|check|spell-?check|improve|polish|simplify|quote|repeat|copy|echo|recite|transcribe|classify|analy[sz]e|parse"
    r"|tag|annotate|label|highlight|underline|extract|capitali[sz]e|reformat|format|convert|transform|turn|put|change|rearrange|reverse"
    r"|tokeni[sz]e|punctuate|tidy up|tidy|clean up|clean|render|restate|critique|rate|grade|evaluate|assess|detect|diagram|encode|type out"
    r"|replace|remove|delete|swap|substitute|reorder|split|merge|abbreviate|reduce|cut|trim|boil down|tl;?dr|mark|review|read"
    r"|adapt|formali[sz]e|set|cast|express"
)
LEAD: Final = (  # what people put before what they ask
    r"(?:(?:hi|hello|hey|hiya|good (?:morning|day|evening)|ok|okay|so|well|and|but|also|now|then|first|next|finally|please|pls|kindly|just"
    r"|there|everyone|all|dear \w+|thanks|sure|great|quickly|briefly|again)\b[ ,.!:\u2013-]{0,3}"
    r"|(?:can|could|would|will) (?:you|u) |(?:i|we)(?: want| need|['\u2019]d like| would like)(?: you)? to "
    r"|would you mind |i(?:['\u2019]d| would) be (?:glad|grateful|happy) if you (?:could |would )?"
    r"|help me (?:to |with )?|(?:your|the) task(?: is|:) (?:to )?|you (?:should|must|need to|are to) |try to |let['\u2019]?s "
    r"|go ahead and )"
    r"{0,6}"
)
_WH: Final = r"what|who|whose|whom|when|where|which|why|how|what['\u2019]?s|who['\u2019]?s|where['\u2019]?s|when['\u2019]?s"
_ASKS: Final = re.compile(rf"\W{{0,4}}{LEAD}(?:{_TELLING}|{WORKING})\b", re.IGNORECASE)
_ASKS_UNPUNCTUATED: Final = re.compile(
    rf"\W{{0,4}}{LEAD}(?:{_WH}|(?:in|on|of|for|to|from|by|at|under) (?:what|which|whom)"
    r"|(?:is|are|was|were|does|do|did|has|have|isn['\u2019]?t|wasn['\u2019]?t|any idea)\b)\b",
    re.IGNORECASE,
)
_ASKS_INDIRECTLY: Final = re.compile(
    r"\b(?:i|we)\b.{0,40}?\b(?:wonder(?:ing)?|curious|(?:like|love|want|need|wish|have|try|trying|hoping) to (?:know|learn|hear|find"
    r"|ask|remember"
    r"|recall|understand)|need(?: the| an? answer)|(?:to ask|asking|writing) for|looking for|forgot|forget|remember|recall"
    r"|do(?: not|n['\u2019]?t) know|unsure"
    r"|not sure)\b"
    r"|\bmy question (?:is|concerns)\b|\btell me\b|\bthe question (?:is|of)\b",
    re.IGNORECASE,
)

_FORMATS: Final = (
    r"json|yaml|xml|csv|html|latex|markdown|tables?|bullets?|bullet(?:ed)?[ -](?:points?|lists?)|numbered list|a list|format|keys?"
    r"|fields?|schema"
    r"|bold|plain text|(?:upper|lower)[ -]?case|capital letters|haiku|rhymes?|style of|tone|voice of|manner of|like a|pirate|emojis?|words?"
    r"|sentences?|characters|lines?|paragraphs?|formatting|preamble|explanations?|citations?"
)
_PHRASES: Final = (  # how to answer, or courtesy
    (
        r"(?:answer|reply|respond)(?: (?:in|with|as|like|using|by|from|based|according|strictly|briefly|shortly|concisely|only|just|me"
        r"|please)\b[^?:]*|)"
    ),
    r"(?:keep|limit|make|restrict) (?:it|this|that|(?:the|your) (?:answer|reply|response))\b[^?:]*",
    r"(?:do not|don['\u2019]t|no|without|never)(?: [\w-]+){1,12}",
    r"(?:think|explain) (?:step by step|carefully|first|briefly|why|yourself|(?:your|the) (?:answer|reasoning))",
    r"be(?: \w+){1,5}",
    r"(?:give|tell|write|say|state|output|return|use|name)(?: me)? (?:just|only|at most|no more than|(?:the|your)(?: \w+)? answer)\b[^?:]*",
    r"(?:just|only) (?:(?:give|tell|say|write|state)(?: me)? )?(?:the|a|an|one)(?: \w+){1,3}",
    (
        r"(?:(?:give|tell|write|say|use|in|with|as|me|at most|not more than|no more than|a|an|the) )*"
        r"(?:one|two|three|few|single|short|brief|full)(?:[ -]\w+)?"
        r"[ -](?:words?|sentences?|lines?|names?|answer|reply|response)(?: (?!about|on|of|that)\w+){0,3}"
    ),
    r"(?:the |your |my )?(?:final |short )?(?:answer|response|reply|assistant|a)(?: is| (?:should|must) [^?:]*|) *:?",
    r"briefly|quickly|shortly|concisely|thank(?:s| you)\b(?:[ ,]+\w+){0,4}|thx|cheers|please|ok|okay|hello|hi|bye",
    # A form that is prescribed, with or without an example of it.
    (
        r"(?:return|output|reply|respond|produce|provide|present|format|write|give|show|put|use|include|i (?:want|need)|as|in)\b"
        rf"(?:(?!\b(?:about|of)\b)[^?:])*\b(?:{_FORMATS})\b(?:(?!\babout\b)[^?])*"
    ),
    r"(?:as|like|in the (?:style|voice|manner) of) an? [^?:]*",
    # How to go about what is supplied, and what to do where it says nothing.
    r"(?:if|when|where|should|unless|in case) (?:you|the|there|it|no|none|nothing|unsure|unknown|in doubt|not)\b[^?]*",
    (
        rf"(?:use|using|consult|read|refer|rely|base|based|consider|take|study|see|look|go through|review|given|with|from|cite|quote"
        rf"|stick)\b"
        rf"[^?:]*\b{MATERIAL}s?\b[^?]*"
    ),
    r"you(?: are|['\u2019]re| will| have| must| should| may| can| were| shall| answer| only)\b[^?]*",
    r"your (?:task|job|role|goal|answer|reply|response)\b[^?]*",
    r"(?:here|below|above|attached)(?: is| are|['\u2019]s| you)\b[^?]*",
    (
        rf"[^?]{{0,80}}\b{MATERIAL}s?(?: \w+)? (?:is|are|was|were|can be) (?:given |provided |listed |shown |found |quoted "
        rf"|printed )?(?:below|above|attached"
        r"|as follows|at the end)\b[^?]*"
    ),
    (
        r"(?:answer|respond to|reply to|address|solve|consider) (?:all |each |every |only )?(?:of )?(?:the|this|these|my|that|a"
        r"|users?|an|following)\b"
        r"[^?]*\b(?:questions?|query|queries|request|prompt|following|user)\b[^?]*"
    ),
    r"(?:say|write|state|return|output|print|give|tell)\b[^?]{0,120}\b(?:if|when|unless|otherwise)\b[^?{]*",
    r"(?:write|draft|compose|formulate|give|produce) (?:the|a|an|your|me a|me the)(?: \w+)? (?:reply|response|answer)\b[^?:]*",
    r"(?:(?:output|answer|response|reply|desired|required) )?(?:format|length|style|tone|limit|constraints?|rules?)\b ?:[^?]*",
    rf"(?:have a look|take a look|look|see|read)\b[^:]*\b{MATERIAL}s?\b[^?:]*",
    r"(?:question|query|answer|answers|reply)s?",
)
_MANNER: Final = re.compile(
    rf"\W*(?:(?:and|but|so|then|also|please|kindly)\b,? *)*(?:(?:just|only|simply) )?(?:{'|'.join(_PHRASES)})(?:,? please)?[^\w?]*",
    re.IGNORECASE,
)
_NUDGE: Final = re.compile(
    r"(?:please |and )?(?:any (?:ideas?|clue|thoughts)|do you know|right|correct|okay|ok|yes or no|true or false|please|true|agreed?|no"
    r"|(?:is|was)(?:n['\u2019]t)? (?:that|this|it|he|she)(?: really)? (?:true|right|correct|so|accurate|wrong|false)"
    r"|isn['\u2019]t (?:it|that so)"
    r"|am i (?:right|wrong|correct|mistaken)|do you agree|does that sound right|what do you (?:think|say)|agree or disagree"
    r"|(?:can|could|would|will) you(?: please| just)? (?:tell me|confirm(?: that| this)?|help|help me|(?:answer|reply"
    r"|respond)(?: (?:in|with|briefly)\b.*)?"
    r"|be (?:brief|short|concise|quick)|keep (?:it|the answer) (?:short|brief)))(?:,? please)?[?.!]*",
    re.IGNORECASE,
)
_ASIDE: Final = re.compile(r"(?:I|I['\u2019]\w+|my|we|we['\u2019]\w+|asking|it['\u2019]s|it is|this is|that is)\b[^?]*[.!]", re.IGNORECASE)
_CLOSING: Final = re.compile(
    r"(?:(?:with )?(?:kind|best|warm|many|all the)? ?(?:regards|wishes|best)|best|sincerely(?: yours)?|yours(?: \w+)?|cheers|love|xx?"
    r"|thank(?:s| you)[^?]{0,40}|(?:many |with )?thanks[^?]{0,30}|sent from my \w+)[ ,.!]*",
    re.IGNORECASE,
)
_MOST_CLOSING: Final = 4  # lines of a letter's end

_OPENED: Final = (  # courtesy and framing before a question, which a bare question does without
    (
        r"(?:quick|simple|short|one|small|random|trivia|quiz|another|next|last|my|the|user|final) ?(?:\w+ )?(?:question|query"
        r"|q)(?: is)?\s*[:,\u2013-]+"
    ),
    r"(?:question|query|q|prompt|user|task|instructions?|request|human|problem)(?: ?\d+)?\s*[:.)]+",
    r"correct me if i(?:['\u2019]m| am) wrong[,:;\u2013-]*(?: but)?,?",
    rf"(?:based|relying|going) (?:only |solely |purely )?on [^,?]{{0,60}}\b{MATERIAL}s?\b[^,?]{{0,30}},",
    rf"(?:according to|given|using|from|in light of|considering|per|with) [^,?]{{0,60}}\b{MATERIAL}s?\b[^,?]{{0,30}},",
    r"(?:hi|hello|hey|good (?:morning|day|evening)|dear [\w ]{1,20}|greetings)(?: there| all| everyone)?\s*[,!.:\u2013-]+",
    r"(?:for (?:a|my|the) (?:quiz|test|school|crossword|homework|bet|trivia night)|just checking|out of curiosity)\s*[,:\u2013-]+",
    r"please (?:answer|tell me)\s*:",
    rf"(?:having|given|using|with|from|after|in|for|so|now|then|well|ok|okay|again|finally)\b[^,:?{{]{{0,60}},\W{{0,2}}(?=(?:{_WH})\b)",
)
_LEAD_IN: Final = re.compile(rf"\W{{0,3}}(?:{'|'.join(_OPENED)})\W{{0,3}}\s*(?=[\w{{\"'\u201c])", re.IGNORECASE)
_QUESTION: Final = re.compile(rf"(?:{_WH}|is|are|was|were|does|do|did|has|have)\b[^?]*\?\W*$", re.IGNORECASE)
_IN_QUOTES: Final = re.compile(r"[\"\u201c][^\"\u201c\u201d]*[\"\u201d]")
_HEAD: Final = re.compile(r"([^:?{]{1,200}):\s+(?=\S)")
_STOPS_SHORT: Final = re.compile(
    r"(?:\b(?:is|was|are|were|of|in|at|by|as|on|from|the|an?|to|for|with|be|called|named|into|that|including|include|than|plays"
    r"|speaks|writes)"
    r"|_{2,}|\.{3}|\u2026)\W*$",
    re.IGNORECASE,
)


def sentences_of(text: str) -> list[str]:
    """Cut a text into sentences and lines."""
    parts, start = [], 0
    for found in _SENTENCE_END.finditer(text):
        tail = text[max(start, found.start() - _LONGEST_ABBREVIATION) : found.start()]
        if found["mark"] == "." and _ABBREVIATION.search(tail):
            continue
        parts.append(text[start : found.end()].strip())
        start = found.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def asks(sentence: str) -> bool:
    """Whether a sentence asks or requests something, rather than tells it."""
    bare = _without_bullet(sentence.strip()).rstrip("\"')\u201d*_ ")
    if bare.endswith("?") or _ASKS.match(bare):
        return True
    return bool(_ASKS_INDIRECTLY.search(bare[:200]) or (not bare.endswith((".", "!", ":")) and _ASKS_UNPUNCTUATED.match(bare)))


def _without_bullet(sentence: str) -> str:
    found = _BULLET.match(sentence)
    return sentence[found.end() :] if found else sentence


def is_manner(sentence: str) -> bool:
    """Whether a sentence only says how to answer, or is courtesy, and names nobody."""
    is_short = len(sentence) <= _LONGEST_MANNER
    return is_short and "{}" not in sentence and bool(_MANNER.fullmatch(sentence) or _NUDGE.fullmatch(sentence))


def is_closing(sentence: str) -> bool:
    """Whether a line begins the end of a letter."""
    return bool(_CLOSING.fullmatch(sentence))


def is_unfinished(sentence: str) -> bool:
    """Whether a line ends in no mark, as what a model is to complete does."""
    return not sentence.rstrip().rstrip("\"')\u201d").endswith((".", "!", "?"))


def stops_short(sentence: str) -> bool:
    """Whether a line certainly goes on ("… is", "… ___")."""
    return bool(_STOPS_SHORT.search(sentence[-40:]))


def without_lead_in(sentence: str) -> str:
    """Cut off courtesy and framing before what is asked, where enough is left behind it."""
    bare = _without_bullet(sentence)
    if _IN_QUOTES.fullmatch(bare):
        bare = bare[1:-1]
    for _ in range(_MOST_LEAD_INS):
        head = _HEAD.match(bare)
        is_framing = head and (_QUESTION.match(bare, head.end()) or is_manner(head[1]) or is_manner(f"{head[1]}:"))
        found = head if is_framing else _LEAD_IN.match(bare)
        if not found or "{}" in found[0] or len(bare[found.end() :].split()) < _FEWEST:
            break
        bare = bare[found.end() :]
    return bare


def without_tail(sentences: Sequence[str]) -> list[str]:
    """Drop sentences from the end that ask nothing: how to answer, courtesy, and after a question what the speaker adds."""
    kept = _without_closing(sentences)
    end = len(kept)
    while end and is_manner(kept[end - 1]):
        end -= 1
    question = end
    while question and (is_manner(kept[question - 1]) or is_aside(kept[question - 1])):
        question -= 1
    return list(kept[: question if question and asks(kept[question - 1]) else end])


def _without_closing(sentences: Sequence[str]) -> Sequence[str]:
    for position in range(max(1, len(sentences) - _MOST_CLOSING), len(sentences)):
        if is_closing(sentences[position]) and not any("{}" in later or later.endswith("?") for later in sentences[position:]):
            return sentences[:position]
    return sentences


def is_aside(sentence: str) -> bool:
    """Whether a sentence tells of the speaker, or is a name or greeting at the end of a letter."""
    is_signature = len(sentence.split()) < _FEWEST and not sentence.endswith(("?", ":"))
    return "{}" not in sentence and (is_signature or bool(_ASIDE.fullmatch(sentence)))
