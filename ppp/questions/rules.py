"""What a rule can decide about one question: ten verdicts, each a function `question -> bool`.

No preference and no penalty here; `preferences.py` puts these rules into its table and is the file to read next. How
a question is taken apart stands in `sentences.py`, `options.py` and `excerpts.py`. A question that is a JSON value is
judged by the texts in it, except by `is_capital`, `has_no_comma` and `is_json`, which look at every character.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from ppp.questions.asking import ASKS, REQUESTS, WEAK_REQUEST, WH, is_question, num_questions
from ppp.questions.brevity import is_concise as is_concise
from ppp.questions.choices import are_alternatives, lead_of, with_labels_as_keys
from ppp.questions.excerpts import names_source, num_block_lines
from ppp.questions.options import chosen_from, find_options, option_texts, with_plain_labels
from ppp.questions.sentences import (
    PLACEHOLDER,
    languages,
    num_unspaced,
    prose,
    read_json,
    sentences,
    strings_of,
    words_of,
)

Rule = Callable[[str], bool]

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

# "Please send me: 1. the log 2. the settings" leaves no choice.
_DEMANDS = re.compile(
    rf"\b(?:send|give|share|provide|attach|paste|post|upload|describe|explain)\b(?!.*(?:{WH}|\bone\b|\beither\b))[^?]*$",
    re.I,
)
_CHOOSE_QUESTION = re.compile(
    r"\b(?:which|prefer|pick|choose|select|would\s+you\s+like|do\s+you\s+(?:want|mean))\b", re.I
)
_TELLS = re.compile(
    r"\byou\s+(?:please\s+)?(?:tell|know|say|clarify|specify|answer|confirm|describe|explain|share|give)\b", re.I
)
_HEADING = re.compile(r"^#{1,6}\s.*[^.?!\W]\W*?$(?<![.?!])")
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
    found = [part for part in sentences(prose(question)) if not _HEADING.match(part)]
    return len(found) == NUM_LENGTH_SENTENCES


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
            if (len(words) < 2 and num_unspaced(part) < 4) or _is_name(part, words):
                continue
            ranked = languages(part)
            if ranked and ranked[0][1] >= 0.25:
                found.add(ranked[0][0])
    return len(found) >= MIN_LANGUAGES


def _is_name(part: str, words: list[str]) -> bool:
    """A title or a person ("Don Quijote de la Mancha."), which is no sentence of its language."""
    long_words = [word for word in words if len(word) >= 4]
    return bool(long_words) and all(map(str.istitle, long_words)) and not part.rstrip(" )").endswith("?")


def _monolingual_parts(sentence: str) -> list[str]:
    """`sentence` cut where signs say that another one begins, and where the script changes for more than a word."""
    parts = []
    for part in re.split(r"\s[/|–—]\s|;|(?<=[.?!])[)\]]\s|(?=[¿¡])", sentence):
        start = 0
        for match in _OTHER_SCRIPT.finditer(part):
            run = match.group()
            if len(run.split()) > 1 or num_unspaced(run) >= 5:
                parts += [part[start : match.start()], run]
                start = match.end()
        parts.append(part[start:])
    return parts


def is_one_question(question: str) -> bool:
    """Exactly one question (or request to tell something), whatever statements stand around it."""
    return num_questions(question) == 1


def offers_selection(question: str) -> bool:
    """A question with at least two labelled options that have a text: A) B), (a) (b), 1. 2., "- A: ..."."""
    text = prose(with_plain_labels(with_labels_as_keys(question)))
    found = find_options(text)
    if not found or not are_alternatives(text, found):
        return False
    asked, lead = lead_of(text, found)
    items = option_texts(text, found)
    if any(is_question(item) for item in items) and not _asks_choice_of_questions(lead or asked, items):
        return False
    if _DEMANDS.search(lead):
        return False
    is_asked = bool(asked or ASKS.match(lead) or REQUESTS.search(lead) or WEAK_REQUEST.match(lead))
    return is_asked or chosen_from(text, found)


def _asks_choice_of_questions(lead: str, items: list[str]) -> bool:
    """Whether items that read like questions ("when it opens", "How do I start?") answer the one before them."""
    if any("?" in item for item in items[:-1]):
        return "?" in lead and bool(_CHOOSE_QUESTION.search(lead))
    return bool(ASKS.match(lead)) and not _TELLS.search(lead)


def has_snippet(question: str) -> bool:
    """At least three lines of code or document (fenced, quoted, indented or numbered) and a file or a URL."""
    value = read_json(question)
    text = question if value is None else "\n\n".join(strings_of(value))
    return num_block_lines(text) >= MIN_SNIPPET_LINES and names_source(text)
