"""How many things a message asks: the words that open a question or a request, and the count of both.

No verdicts; `rules.py` gives those and is the file to read next. Everything here reads prose as `sentences.py` leaves
it, with code, names and quotations masked.
"""

from __future__ import annotations

import re
from functools import lru_cache

from ppp.questions.options import find_options, option_texts
from ppp.questions.sentences import prose, sentences

WH_ENGLISH = r"(?:what(?:['’]s)?|which|whose|whom?|who(?:['’]s)?|where|when|why|how)\b"
WH_OTHER = (
    r"(?:quale?|quali|che\s+cosa|cosa|cos['’]è|come|dove|quando|perché|chi|quant[oaie]|(?:in|a|di|con)\s+quale"
    r"|qué|cuál(?:es)?|cómo|dónde|cuándo|quién(?:es)?|por\s+qué|cuánt[oa]s?"
    r"|quel(?:le)?s?|quoi|comment|où|quand|pourquoi|combien"
    # "was" is English as well
    r"|was(?!\s+(?:an?|the|this|that|it|he|she|they|you|there|his|her|its|their|not|in|on|at|also|later|\w+ed)\b)"
    r"|welche[rsmn]?|wer|wen|wem|wie|wo|wann|warum|wieso|in\s+welche[rsmn]"
    r"|quais|onde|quem|por\s+que)\b"
)
WH = rf"(?:{WH_ENGLISH}|{WH_OTHER})"
AUXILIARY = r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|must|am)(?:n['’]t)?\b"
SUBJECT = r"(?:it|its|the|this|that|these|those|there|they|he|she|we|you|i|your|my|our|a|an|any)\b"
_VERB_OR_NOUN = (
    r"(?:name|state|list|share|show|give|send|mention)\s+(?:me|us|the|your|all|any|each|every|a|an|what|which|how)"
)
REQUEST = (
    rf"(?:{_VERB_OR_NOUN}|tell|describe|explain|provide|specify|clarify|confirm|point\s+out|let\s+me\s+know\s+\w+"
    r"|i(?:['’]d|\s+would)\s+like\s+to\s+know|i\s+(?:need|want|have)\s+to\s+know|i\s+wonder"
    r"|dimmi|mi\s+dica|indica|indicami|spiega|spiegami|descrivi|specifica|mostrami|vorrei\s+sapere"
    r"|dime|dígame|indique|explica|dites|indiquez|expliquez|sag(?:en)?\s+sie|sag\s+mir|nenne(?:n)?|erklär(?:e|en)?"
    r"|diga|me\s+diga)\b"
)
_POLITE = r"(?:(?:please|kindly|so|then|now|also|but|and|or|per\s+favore|por\s+favor|bitte|ok(?:ay)?)[\s,:]+){0,4}"
# Asks only where nothing else in the text does: "Which one? Please choose." is one question.
WEAK_REQUEST = re.compile(
    rf"^\W*{_POLITE}(?:choose|pick|select|answer|reply|let\s+me\s+know|scegli|indica|elige|choisis\w*|wähle\w*)\b", re.I
)
_OPENING = re.compile(rf"^\W*{_POLITE}", re.I)
# "When it fails, what is shown?" opens with a clause that asks nothing, as "What I see is ..." does.
_STARTS_WH = re.compile(rf"^\W*{_POLITE}(?!{WH_ENGLISH}\s+{SUBJECT}){WH}", re.I)
# Words that open a question even where its mark was forgotten; "when" and "where" open statements as often.
_UNMARKED = re.compile(
    rf"^\W*{_POLITE}(?!{WH_ENGLISH}\s+(?:(?!{AUXILIARY})\w+\s+)?{SUBJECT})"
    r"(?:what|which|whose|who|why|how|quale|quali|perché|qué|cuál|quel(?:le)?s?|pourquoi|welche[rsmn]?|warum)\b",
    re.I,
)
ASKS = re.compile(rf"^\W*{_POLITE}(?:{WH}|{AUXILIARY}\s+{SUBJECT})", re.I)
REQUESTS = re.compile(rf"(?:^\W*|[,;:–—]\s*){_POLITE}{REQUEST}", re.I)
_ALTERNATIVE = re.compile(
    r"^\W*(?:or|yes\s+or|right\b|correct\b|oppure|o|oder|ou|u)\b(?!\s+(?:what|which|who|how|why|where|when)\b)", re.I
)
_BEFORE_WH = r"(?:(?:in|on|at|for|from|to|of|with|by|since|until|under|through|during)\s+)?"
_BEFORE_WH_OTHER = (
    r"(?:(?:in|a|da|di|con|per|su|tra|en|de|à|pour|par|avec|sur|dans|depuis|por|para|desde|em|mit|von|für|seit|aus|zu"
    r"|bei|auf|nach)\s+)?"
)
_JOINED = re.compile(
    r"\b(?:and|plus|as\s+well\s+as|&)(?:\s+(?:also|then|please))*"
    rf"\s+(?:{_BEFORE_WH}{WH_ENGLISH}(?!\s+\w+ing\b)|whether\b|{AUXILIARY}\s+{SUBJECT}|{REQUEST}"
    r"|(?:do|does|did)(?:n['’]t)?\s+(?!not\b|so\b|the\s+(?:same|rest)\b)\w+\s+\w)"
    r"|,\s+and\s+(?:is|are|was|were|do|does|did|should|could|would|ca|wo)n['’]t\s+\w+\s+\w"
    r"|(?:\band|,|;|\s-)\s*if\s+(?:so|yes|not)\b"
    rf"|\b(?:e|ed|y|et|und)(?:\s+(?:anche|auch|aussi|também|también|poi))?\s+(?:{_BEFORE_WH_OTHER}{WH_OTHER}"
    rf"|(?:in|a|di|da|con|per|em|de|com|por|para)\s+(?:che|que)\b|{REQUEST})"
    r"|\bet\s+(?:qui|qu['’]est-ce|est-ce)\b",
    re.I,
)
# "the man who founded it and who sold it" asks nothing.
_RELATIVE = re.compile(
    r"\b(?:the|an?|any|some|of|those)\s(?:\w+\s){1,3}(who|which|whose|where)\b[^,.;?]*?\band\s+\1\b", re.I
)
_RELATIVE_OTHER = re.compile(r"(?<=\w\s)qui\s[^,.;?]*?\bet\s+qui\b", re.I)
# "the tool that checks what was read and how long it took" asks nothing either.
_EMBEDDED = re.compile(
    rf"\b(?:that|who|which)\s+\w+(?:s|ed|d|t|ew|ows?)\s+{WH_ENGLISH}[^,.;?]*?\band\s+(?:{WH_ENGLISH}|whether\b)", re.I
)
# "Apart from what you wrote and what you sent, is there ..." opens with what is known.
_KNOWN = re.compile(
    r"^\W*(?:apart\s+from|aside\s+from|besides|beyond|except\s+for|other\s+than|in\s+addition\s+to|based\s+on|given"
    rf"|according\s+to|regardless\s+of|despite|knowing|assuming)\b[^?]*?,\s+(?={WH_ENGLISH}|{AUXILIARY}\s+{SUBJECT})",
    re.I,
)
# "Who wrote it and was a painter?": what is asked for is the subject of both verbs. Not so in "Which do you mean ..."
_ASKS_SUBJECT = re.compile(
    rf"^\W*{_POLITE}{_BEFORE_WH}(?:who|which|what|whose)\s(?!(?:(?!and\b)\w+\s+){{0,4}}?{AUXILIARY}\s+{SUBJECT}\s)",
    re.I,
)
_SAME_SUBJECT = re.compile(
    r"\band\s+(?:(?:has|have|had)\s+(?:an?|the|his|her|its|their)\b"
    r"|(?:is|are|was|were)\s+(?:an?|his|her|its|their)\b(?!.*\b(?:needed|required|possible|available|planned|allowed)\W*$)"
    r"|(?:is|are|was|were)\s+the\s+(?=(?:\w+\s+){0,2}(?:one|ones|first|only|main|last|same|capital|\w+est|of|that|who|which)\b)"
    r"|(?:do|does|did)\s+(?:an?|the|his|her|its|their)\s+\w+(?=\W*$|\s+(?:of|for|in|on|at|with|by|and|to)\b))",
    re.I,
)
# "Two things: the version and the log?"
_ANNOUNCES = re.compile(
    r"\b(?:two|three|four|five|several|a\s+few|a\s+couple\s+of|some)\s+(?:\w+\s+){0,2}(?:things|questions|points|details)"
    r"(?:\s+(?:please|for\s+you))?\s*:",
    re.I,
)
# "Which colour: red? green? blue?"
_GUESSES = re.compile(rf"(?<=[:?])(?:\s+(?!(?:{WH}|{AUXILIARY})\b)(?:[^\W_]\w*\s){{0,2}}\w+\s?\?){{2,}}", re.I)
_ITEM_ASKS = re.compile(rf"(?:^|\s)(?:[-•–]|\(?\w[.)])\s+{WH}", re.I)
# Another question behind a comma, if it is no clause about a noun: "Which module, which was renamed, fails?"
_ALSO_ASKS = re.compile(
    rf"(?:[,;/]|,\s*or)\s+(?!(?:which|who|where)\s+(?:is|was|are|were|has|have|had|you|we|i|it)\b[^,?]*,)(?:{WH})",
    re.I,
)
_BRACKET = re.compile(r"\([^()]{1,120}\)(?=[^.!?\n]*\?)")  # a remark inside a question
_ASKS_LATER = re.compile(rf"(?:[.!\n]|\b(?:and|also|or)\b)\s*(?:{WH}|{AUXILIARY}\s+{SUBJECT})", re.I)


@lru_cache(maxsize=2048)
def num_questions(question: str) -> int:
    """How many things are asked.

    Each interrogative sentence and each request ("Please tell me ...") is one. A conjunction that joins another
    interrogative adds one ("which file and which line"); one that joins nouns does not ("which file and line"), nor
    does an alternative ("A or B"). The same question in another language is another question: no rule can tell that it
    is the same.
    """
    parts = sentences(_without_guess_marks(prose(question)))
    total = 0
    for part in parts:
        is_interrogative = bool(_STARTS_WH.match(part))
        if "?" in part:
            total += part.count("?") - (1 if total and _ALTERNATIVE.match(part) else 0)
        elif _UNMARKED.match(part) or REQUESTS.search(part):
            total += 1
        else:
            continue
        total += _num_joined(part)
        total += max(0, len(_ITEM_ASKS.findall(part)) - 1) if "?" not in part else 0
        if is_interrogative:
            total += len(_ALSO_ASKS.findall(part))
    if total == 1 and any("?" in part and _ANNOUNCES.search(part) for part in parts):
        return 2
    return total or int(any(WEAK_REQUEST.match(part) for part in parts))


def _num_joined(part: str) -> int:
    """How many more questions a conjunction adds to the first one of a sentence."""
    part = _KNOWN.sub("", _OPENING.sub("", part))
    for pattern in (_RELATIVE, _RELATIVE_OTHER, _EMBEDDED):
        part = pattern.sub(" ", part)
    if _ASKS_SUBJECT.match(part):
        part = _SAME_SUBJECT.sub(" ", part)
    return len(_JOINED.findall(part))


def is_question(item: str) -> bool:
    """Whether a labelled item, or a remark in brackets, is a question of its own and no mere alternative."""
    return bool(re.match(rf"\W*{WH}", item, re.I)) or bool(
        re.match(rf"\W*{AUXILIARY}\s+{SUBJECT}[^.?!]*\?", item, re.I)
    )


def _without_guess_marks(text: str) -> str:
    """`text` without the question marks of mere guesses: "A) parser? B) cache?" and "(the parser?)" ask once."""
    text = _BRACKET.sub(
        lambda remark: remark.group() if is_question(remark.group()) else _unmarked(remark.group()), text
    )
    lead = re.split(r"[.!?]\s", text)[0]
    if ASKS.match(lead):
        text = _GUESSES.sub(lambda guesses: _unmarked(guesses.group()[:-1]) + "?", text, count=1)
    found = find_options(text)
    if not found or any(is_question(item) for item in option_texts(text, found)):
        return text
    first, last = found[0][1], found[-1][1]
    tail = text[last:]
    if "?" in text[:first] or tail.count("?") > 1:
        tail = tail.replace("?", ",", 1) if not _ASKS_LATER.search(tail.partition("?")[0]) else tail
    return text[:first] + _unmarked(text[first:last]) + tail


def _unmarked(text: str) -> str:
    return text.replace("?", ",")
