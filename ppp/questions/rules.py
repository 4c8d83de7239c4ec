"""What a rule can decide about one question: ten verdicts, each a function `question -> bool`.

No preference and no penalty here; `preferences.py` puts these rules into its table and is the file to read next. How
a question is taken apart stands in `sentences.py`, `options.py` and `excerpts.py`. A question that is a JSON value is
judged by the texts in it, except by `is_capital`, `has_no_comma` and `is_json`, which look at every character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from ppp.questions.excerpts import names_source, num_block_lines
from ppp.questions.options import STRONG_OPTION, chosen_from, find_options, option_texts
from ppp.questions.sentences import (
    PLACEHOLDER,
    SPACELESS_NAME,
    languages,
    prose,
    read_json,
    sentences,
    strings_of,
    words_of,
)

Rule = Callable[[str], bool]

MAX_CONCISE_WORDS = 12
MAX_CONCISE_CODE = 1000
MAX_CONCISE_CHARS = 100  # so that code, which counts as one word, stays short too; addresses and paths need not
NUM_LENGTH_SENTENCES = 3
MIN_LANGUAGES = 5
MIN_SNIPPET_LINES = 3

# Comma signs of every script, also the enclosed digits that carry one. Letters with a comma below (Romanian), quotation
# marks and combining marks have "COMMA" in their Unicode names as well and are none.
COMMAS = frozenset(
    sign
    for sign in map(chr, range(0x20000))
    if unicodedata.category(sign) in ("Po", "No") and "COMMA" in unicodedata.name(sign, "").split()
)

_WH_ENGLISH = r"(?:what(?:['’]s)?|which|whose|whom?|who(?:['’]s)?|where|when|why|how)\b"
_WH_OTHER = (
    r"(?:quale?|quali|che\s+cosa|cosa|cos['’]è|come|dove|quando|perché|chi|quant[oaie]|(?:in|a|di|con)\s+quale"
    r"|qué|cuál(?:es)?|cómo|dónde|cuándo|quién(?:es)?|por\s+qué|cuánt[oa]s?"
    r"|quel(?:le)?s?|quoi|comment|où|quand|pourquoi|combien"
    r"|was|welche[rsmn]?|wer|wen|wem|wie|wo|wann|warum|wieso|in\s+welche[rsmn]"
    r"|quais|onde|quem|por\s+que)\b"
)
_WH = rf"(?:{_WH_ENGLISH}|{_WH_OTHER})"
_AUXILIARY = r"(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would|should|may|must|am)(?:n['’]t)?\b"
_SUBJECT = r"(?:it|its|the|this|that|these|those|there|they|he|she|we|you|i|your|my|our|a|an|any)\b"
_VERB_OR_NOUN = (
    r"(?:name|state|list|share|show|give|send|mention)\s+(?:me|us|the|your|all|any|each|every|a|an|what|which|how)"
)
_REQUEST = (
    rf"(?:{_VERB_OR_NOUN}|tell|describe|explain|provide|specify|clarify|confirm|point\s+out|let\s+me\s+know\s+\w+"
    r"|i(?:['’]d|\s+would)\s+like\s+to\s+know|i\s+(?:need|want|have)\s+to\s+know|i\s+wonder"
    r"|dimmi|mi\s+dica|indica|indicami|spiega|spiegami|descrivi|specifica|mostrami|vorrei\s+sapere"
    r"|dime|dígame|indique|explica|dites|indiquez|expliquez|sag(?:en)?\s+sie|sag\s+mir|nenne(?:n)?|erklär(?:e|en)?"
    r"|diga|me\s+diga)\b"
)
_POLITE = r"(?:(?:please|kindly|so|then|now|also|but|and|or|per\s+favore|por\s+favor|bitte|ok(?:ay)?)[\s,:]+){0,4}"
# Asks only where nothing else in the text does: "Which one? Please choose." is one question.
_WEAK_REQUEST = re.compile(
    rf"^\W*{_POLITE}(?:choose|pick|select|answer|reply|let\s+me\s+know|scegli|indica|elige|choisis\w*|wähle\w*)\b", re.I
)
_OPENING = re.compile(rf"^\W*{_POLITE}", re.I)
# "When it fails, what is shown?" opens with a clause that asks nothing, as "What I see is ..." does.
_STARTS_WH = re.compile(rf"^\W*{_POLITE}(?!{_WH_ENGLISH}\s+{_SUBJECT}){_WH}", re.I)
# Words that open a question even where its mark was forgotten; "when" and "where" open statements as often.
_UNMARKED = re.compile(
    rf"^\W*{_POLITE}(?!{_WH_ENGLISH}\s+(?:(?!{_AUXILIARY})\w+\s+)?{_SUBJECT})"
    r"(?:what|which|whose|who|why|how|quale|quali|perché|qué|cuál|quel(?:le)?s?|pourquoi|welche[rsmn]?|warum)\b",
    re.I,
)
_ASKS = re.compile(rf"^\W*{_POLITE}(?:{_WH}|{_AUXILIARY}\s+{_SUBJECT})", re.I)
_REQUESTS = re.compile(rf"(?:^\W*|[,;:–—]\s*){_POLITE}{_REQUEST}", re.I)
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
    rf"\s+(?:{_BEFORE_WH}{_WH_ENGLISH}(?!\s+\w+ing\b)|whether\b|{_AUXILIARY}\s+{_SUBJECT}|{_REQUEST})"
    r"|(?:\band|,|;|\s-)\s*if\s+(?:so|yes|not)\b"
    rf"|\b(?:e|ed|y|et|und)(?:\s+(?:anche|auch|aussi|também|también|poi))?\s+(?:{_BEFORE_WH_OTHER}{_WH_OTHER}"
    rf"|(?:in|a|di|da|con|per|em|de|com|por|para)\s+(?:che|que)\b|{_REQUEST})",
    re.I,
)
# "the man who founded it and who sold it" asks nothing.
_RELATIVE = re.compile(
    r"\b(?:the|an?|any|some|of|those)\s(?:\w+\s){1,3}(who|which|whose|where)\b[^,.;?]*?\band\s+\1\b", re.I
)
_ITEM_ASKS = re.compile(rf"(?:^|\s)(?:[-•–]|\(?\w[.)])\s+{_WH}", re.I)
# Another question behind a comma, if it is no clause about a noun: "Which module, which was renamed, fails?"
_ALSO_ASKS = re.compile(
    rf"(?:[,;/]|,\s*or)\s+(?!(?:which|who|where)\s+(?:is|was|are|were|has|have|had|you|we|i|it)\b[^,?]*,)(?:{_WH})",
    re.I,
)

# "Please send me: 1. the log 2. the settings" leaves no choice.
_DEMANDS = re.compile(
    rf"\b(?:send|give|share|provide|attach|paste|post|upload|describe|explain)\b(?!.*(?:{_WH}|\bone\b|\beither\b))[^?]*$",
    re.I,
)
_BRACKET = re.compile(r"\([^()]{1,120}\)(?=[^.!?\n]*\?)")  # a remark inside a question
_ASKS_LATER = re.compile(rf"(?:[.!\n]|\b(?:and|also|or)\b)\s*(?:{_WH}|{_AUXILIARY}\s+{_SUBJECT})", re.I)
_GREETING = (
    r"(?:hello|hi|hey|dear|greetings|good\s+(?:morning|afternoon|evening|day)|thanks|thank\s+you|sorry|apologies|excuse\s+me"
    r"|pardon|ciao|salve|buon(?:giorno|asera)|scusa\w*|grazie|hola|buen[oa]s\s+\w+|perdon\w*|gracias|bonjour|bonsoir|salut"
    r"|merci|hallo|guten\s+\w+|danke|entschuldig\w+|ol[áa]|bom\s+dia|boa\s+\w+|obrigad[oa])"
)
_CLAUSE_END = r"[^,;:–]*[,;:–]\s*(?:i\s|\w+,\s)?"
# What stands before the point of a short question: a greeting, or a clause that gives background, reason or purpose.
_BESIDE_POINT = re.compile(
    rf"^\W*(?:{_GREETING}\b[^\n]*\w"
    rf"|(?:(?:since|as)\b[^,;:]*\s(?:(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)(?:n['’]t|not)?"
    rf"|\w+(?:ed|n['’]t)|fails?|says?|shows?)|because|given\s+that|considering|although|though|while\s+(?:i|we)"
    rf"|for\s+(?:context|background)|in\s+order\s+to|to\s+\w+(?:\s+\w+)?\s+(?:the|this|that|it|your|a)"
    rf"|siccome|poiché|dato\s+che|visto\s+che|como\s+(?:no|el|la)|comme\s+(?:je|il|le|la)|puisque|da\s+(?:ich|der|die|das)|weil)"
    rf"\b{_CLAUSE_END}\w"
    rf"|[^?]{{3,}}[,;:–-]\s*(?:so|but|therefore)\s+(?:{_WH}|{_AUXILIARY})"
    rf"|(?!{_REQUEST})(?:i|we)(?:['’]\w+)?\s[^,;:–]{{3,}}?(?:[,;:–]|\s(?:and|but|so)\b)[^?]*?\b(?:{_WH}|{_AUXILIARY}))",
    re.I,
)
_EXPLAINS = re.compile(
    r"[,;(–-]\s*(?:because|since|as\s+(?:i|we|you|the|it|this)|perché\s+(?:non|il|la)|porque|weil|denn|car|parce\s+qu)\b"
    r"|\bso\s+(?:that\s+)?(?:i|we)\s+can\b|\bin\s+order\s+to\s+\w+\s+(?:it|this|the\s+(?:bug|issue|problem))\b",
    re.I,
)
_LANGUAGE_TAG = re.compile(r"^\W*?(?:[\[(][A-Za-z]{2,12}[\])]\s?:?|(?:[A-Z]{2}|[A-Z]\w{3,11})\s?:)\s")  # "IT: ..."
# A run of words that are not in Latin script.
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1cff\u3000-\ud7ff\uf900-\ufaff][^A-Za-zÀ-ɏ¿¡]*")
# "Hello! Hola! Bonjour!" shows no language.
_GREETING_WORDS = """
    hello hi hey dear friend friends my good morning afternoon evening day thanks thank you please welcome
    greetings bye ciao salve buongiorno buonasera buon giorno amico amica amici caro grazie mille prego per
    favore hola buenos buenas días dias tardes noches amigo amiga querido gracias muchas por favor saludos
    bonjour bonsoir salut cher ami mon merci beaucoup s'il vous plaît plait hallo guten tag morgen abend freund
    lieber danke schön bitte servus moin olá ola oi bom dia boa tarde noite obrigado obrigada meu dag
    goedemorgen goedendag vriend dank je hej god tack vän cześć dzień dobry dziękuję merhaba selam teşekkürler
    привет здравствуйте спасибо друг नमस्ते धन्यवाद こんにちは ありがとう 你好 谢谢 您好 안녕하세요 감사합니다
    مرحبا شكرا السلام عليكم שלום תודה γεια σας ευχαριστώ all everyone and e y et und
"""
_GREETINGS = frozenset(_GREETING_WORDS.split())


def is_capital(question: str) -> bool:
    """English without a lower-case letter, be it in code or in a file name; names may have accents."""
    if any(sign.islower() for sign in question) or not any("A" <= sign <= "Z" for sign in question):
        return False
    text = prose(question)
    foreign = (word for word in words_of(text) if len(word) > 1 and not _is_latin(word))
    return not any(foreign) and not any(_is_other(sentence, "en") for sentence in sentences(text))


def _is_latin(word: str) -> bool:
    return all(unicodedata.name(sign, "").startswith("LATIN") for sign in word if sign.isalpha())


def has_no_comma(question: str) -> bool:
    """No comma of any script anywhere, be it in a number or in code."""
    return COMMAS.isdisjoint(question)


def is_json(question: str) -> bool:
    """One JSON object or array with some text in it, and nothing around it but white space; `read_json` is strict."""
    return read_json(question) is not None and any(sign.isalpha() for sign in question)


def is_three_sentences(question: str) -> bool:
    """Exactly three sentences; dots in numbers, names, code, addresses and abbreviations end none."""
    return len(sentences(prose(question))) == NUM_LENGTH_SENTENCES


def is_concise(question: str) -> bool:
    """One sentence that opens with its point: at most 12 words and 100 characters (labels of options are no words)."""
    if len(question) > MAX_CONCISE_CODE or len(SPACELESS_NAME.sub(PLACEHOLDER, question).strip()) > MAX_CONCISE_CHARS:
        return False
    text = prose(question)
    words = words_of(STRONG_OPTION.sub(" ", prose(question, with_quotations=True)))
    if not 0 < len(words) + _num_unspaced(text) // 2 <= MAX_CONCISE_WORDS or len(sentences(text)) != 1:
        return False
    return not (_BESIDE_POINT.match(text) or _EXPLAINS.search(text))


def _num_unspaced(text: str) -> int:
    """Letters of scripts that write no spaces between words (Chinese, Japanese, Thai): two are taken for a word."""
    return sum("\u0e00" <= sign <= "\u0eff" or "\u3040" <= sign <= "\u9fff" for sign in text)


def is_italian(question: str) -> bool:
    """Every sentence in Italian; code, file names and quotations in it may be anything."""
    text = prose(question)
    parts = sentences(text)
    long_parts = [part for part in parts if _num_words(part) > 1]
    if long_parts:
        return all(_is_italian(part) for part in long_parts) and not any(_is_other(part, "it") for part in parts)
    return any(_is_italian(part) for part in parts) and not any(_is_other(part, "it") for part in parts)


def _num_words(sentence: str) -> int:
    return len(words_of(sentence.replace(PLACEHOLDER, " ")))


def _is_italian(sentence: str) -> bool:
    ranked = languages(sentence)
    if not ranked:
        return False
    # A single word rarely tells Italian from its neighbours: near the top is enough there.
    share = 0.8 if _num_words(sentence) == 1 else 1.0
    return dict(ranked).get("it", 0.0) >= share * ranked[0][1]


def _is_other(sentence: str, wanted: str) -> bool:
    """Whether a sentence is clearly in another language than `wanted`; technical terms alone are in none."""
    ranked = languages(sentence)
    return bool(ranked) and ranked[0][0] != wanted and ranked[0][1] >= 0.3


def is_multilingual(question: str) -> bool:
    """Sentences in at least five languages; greetings, and words standing alone, show no language."""
    found: set[str] = set()
    for sentence in sentences(prose(question)):
        for part in _monolingual_parts(_LANGUAGE_TAG.sub("", sentence)):
            part = _LANGUAGE_TAG.sub("", part)
            words = [word for word in words_of(part.replace(PLACEHOLDER, " ")) if word.casefold() not in _GREETINGS]
            if len(words) < 2 and _num_unspaced(part) < 4:
                continue
            ranked = languages(part)
            if ranked and ranked[0][1] >= 0.25:
                found.add(ranked[0][0])
    return len(found) >= MIN_LANGUAGES


def _monolingual_parts(sentence: str) -> list[str]:
    """`sentence` cut where signs say that another one begins, and where the script changes for more than a word."""
    parts = []
    for part in re.split(r"\s[/|–—]\s|;|(?<=[.?!])[)\]]\s|(?=[¿¡])", sentence):
        start = 0
        for match in _OTHER_SCRIPT.finditer(part):
            run = match.group()
            if len(run.split()) > 1 or _num_unspaced(run) >= 5:
                parts += [part[start : match.start()], run]
                start = match.end()
        parts.append(part[start:])
    return parts


def is_one_question(question: str) -> bool:
    """Exactly one question (or request to tell something), whatever statements stand around it."""
    return num_questions(question) == 1


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
        elif _UNMARKED.match(part) or _REQUESTS.search(part):
            total += 1
        else:
            continue
        total += len(_JOINED.findall(_RELATIVE.sub(" ", _OPENING.sub("", part))))
        total += max(0, len(_ITEM_ASKS.findall(part)) - 1) if "?" not in part else 0
        if is_interrogative:
            total += len(_ALSO_ASKS.findall(part))
    return total or int(any(_WEAK_REQUEST.match(part) for part in parts))


def offers_selection(question: str) -> bool:
    """A question with at least two labelled options that have a text: A) B), (a) (b), 1. 2., "- A: ..."."""
    text = prose(question)
    found = find_options(text)
    if not found or any(_is_question(item) for item in option_texts(text, found)):
        return False
    lead = re.split(r"[.!?]\s", text[: found[0][0]])[-1]
    if _DEMANDS.search(lead):
        return False
    asked = "?" in text[: found[0][0]] or bool(_ASKS.match(lead) or _REQUESTS.search(lead) or _WEAK_REQUEST.match(lead))
    return asked or chosen_from(text, found)


def _is_question(item: str) -> bool:
    """Whether a labelled item, or a remark in brackets, is a question of its own and no mere alternative."""
    return bool(re.match(rf"\W*{_WH}", item, re.I)) or bool(
        re.match(rf"\W*{_AUXILIARY}\s+{_SUBJECT}[^.?!]*\?", item, re.I)
    )


def _without_guess_marks(text: str) -> str:
    """`text` without the question marks of mere guesses: "A) parser? B) cache?" and "(the parser?)" ask once."""
    text = _BRACKET.sub(
        lambda remark: remark.group() if _is_question(remark.group()) else _unmarked(remark.group()), text
    )
    found = find_options(text)
    if not found or any(_is_question(item) for item in option_texts(text, found)):
        return text
    first, last = found[0][1], found[-1][1]
    tail = text[last:]
    if "?" in text[:first] or tail.count("?") > 1:
        tail = tail.replace("?", ",", 1) if not _ASKS_LATER.search(tail.partition("?")[0]) else tail
    return text[:first] + _unmarked(text[first:last]) + tail


def _unmarked(text: str) -> str:
    return text.replace("?", ",")


def has_snippet(question: str) -> bool:
    """At least three lines of code or document (fenced, quoted, indented or numbered) and a file or a URL."""
    value = read_json(question)
    text = question if value is None else "\n\n".join(strings_of(value))
    return num_block_lines(text) >= MIN_SNIPPET_LINES and names_source(text)
