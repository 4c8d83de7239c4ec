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
    r"|was|welche[rsmn]?|wer|wen|wem|wie|wo|wann|warum|wieso|in\s+welche[rsmn]"
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
    rf"\s+(?:{_BEFORE_WH}{WH_ENGLISH}(?!\s+\w+ing\b)|whether\b|{AUXILIARY}\s+{SUBJECT}|{REQUEST})"
    r"|(?:\band|,|;|\s-)\s*if\s+(?:so|yes|not)\b"
    rf"|\b(?:e|ed|y|et|und)(?:\s+(?:anche|auch|aussi|também|también|poi))?\s+(?:{_BEFORE_WH_OTHER}{WH_OTHER}"
    rf"|(?:in|a|di|da|con|per|em|de|com|por|para)\s+(?:che|que)\b|{REQUEST})",
    re.I,
)
# "the man who founded it and who sold it" asks nothing.
_RELATIVE = re.compile(
    r"\b(?:the|an?|any|some|of|those)\s(?:\w+\s){1,3}(who|which|whose|where)\b[^,.;?]*?\band\s+\1\b", re.I
)
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
        total += len(_JOINED.findall(_RELATIVE.sub(" ", _OPENING.sub("", part))))
        total += max(0, len(_ITEM_ASKS.findall(part)) - 1) if "?" not in part else 0
        if is_interrogative:
            total += len(_ALSO_ASKS.findall(part))
    return total or int(any(WEAK_REQUEST.match(part) for part in parts))


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
