"""What words a text is made of: letters put in one form, stems, numbers, and the words that say nothing by themselves.

Answers of users are English, as the reports that they come from. No verdict here: `evidence.py` asks whether the words
of an answer stand in a report, `names.py` whether a text holds a name in whatever disguise.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import snowballstemmer

# Letters of other alphabets that look like Latin ones, small letters only: texts are folded first.
_LOOKALIKES = str.maketrans(
    dict(zip("авекмнорстухіјѕԛԝһьӏԁ", "abekmhopctyxijsqwhbld", strict=True))
    | dict(zip("αβεικνορτυχωηγ", "abeiknoptuxwny", strict=True))
    | {"ı": "i", "ł": "l", "ø": "o", "ɡ": "g", "ß": "ss", "’": "'", "‘": "'", "ʼ": "'", "`": "'"}
)
_TOKEN = re.compile(r"v?\d+(?:\.\d+)+[^\W_]*|[^\W_]+(?:'[^\W\d_]+)?")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENDING = re.compile(r"(?:n't|'(?:s|re|ve|ll|d|m))$")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u9fff\uac00-\ud7af]")

# Grammar: a word of these neither tells something nor needs support.
_FUNCTION_WORDS = """
    a an the this that these those it its they them their theirs he him his she her hers we us our ours i me my
    mine you your yours myself yourself itself themselves one ones someone something somewhere anyone anything
    anywhere everything each every both either any some such same other another others else all and or but nor so
    yet if then than as because since while when where whenever wherever whether although though unless until till
    once what which who whom whose how why of in on at by for with from to into onto upon over under through
    during before after about against between among within without out off up down along across toward towards via
    per near behind is are was were be been being am do does did done doing have has had having can could will
    would shall should may might must ought cannot ca wo sha ai not no never none here there now just only also
    too even still already again very really quite rather much many more most less least few well like maybe
    perhaps probably possibly actually basically simply ever almost enough etc eg ie yes yeah yep yup nope ok okay
    oh ah hm hmm um uh please sorry thank thanks hello hi hey sure right don doesn didn isn aren wasn weren won
    wouldn couldn shouldn hasn haven hadn let lets im ive youre dont doesnt didnt isnt arent wasnt werent wont
    wouldnt couldnt shouldnt hasnt havent hadnt cant thats whats
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
# Frames of an answer ("the module is ...", "I see ... when it happens"): they may stand beside words that tell
# something, and tell nothing alone.
_CARRIERS = """
    answer ask bit bug case call called class code come concern defect describe detail details error example
    expect fact fail failing failure file find folder function get give go got happen happens have instance issue
    item keep kind know line list look make mean meant mention message method module name named need notice object
    occur one operation option part place point problem project question report reported result say saying see
    seem seen send setup show situation sort start step stuff take talk tell thing think time try trying turn type
    understand use used using user value version want way word work working wrong write affect affected involve
    involved concerned relevant related exact exactly specific specifically main mainly basic general current
    currently platform library package program software system app
"""
CARRIERS = frozenset(_CARRIERS.split())
NUMBERS = {
    **{"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"},
    **{"ten": "10", "eleven": "11", "twelve": "12", "zero": "0", "twice": "2", "hundred": "100", "thousand": "1000"},
}
_IRREGULAR = {
    form: base
    for base, forms in {
        "run": "ran",
        "throw": "threw thrown",
        "break": "broke broken",
        "write": "wrote written",
        "give": "gave given",
        "get": "got gotten",
        "see": "saw seen",
        "send": "sent",
        "lose": "lost",
        "come": "came",
        "go": "went gone",
        "take": "took taken",
        "make": "made",
        "build": "built",
        "find": "found",
        "keep": "kept",
        "leave": "left",
        "read": "readable",
        "begin": "began begun",
        "rise": "rose risen",
        "hold": "held",
        "say": "said",
        "tell": "told",
        "think": "thought",
        "mean": "meant",
        "show": "shown",
        "do": "done",
        "choose": "chose chosen",
        "draw": "drew drawn",
        "hang": "hung",
        "bad": "worse worst",
        "index": "indices",
        "matrix": "matrices",
        "vertex": "vertices",
        "child": "children",
        "person": "people",
    }.items()
    for form in forms.split()
}
# What English adds to a verb and the stemmer leaves on: "parser" stands in a report that says "parse".
_SUFFIXES = frozenset({"er", "or", "ur", "ment", "ion", "abl", "al", "li", "i", "ness", "e"})
MIN_BASE_CHARS = 4


def fold(text: str) -> str:
    """`text` without disguise and in small letters: one form per letter, nothing invisible, lookalikes as Latin."""
    if text.isascii():
        return text.lower().replace("`", "'")
    return plain(text).casefold().translate(_LOOKALIKES)


def plain(text: str) -> str:
    """`text` with its capitals, without invisible characters and accents."""
    if text.isascii():
        return text
    kept = (sign for sign in unicodedata.normalize("NFKD", text) if unicodedata.category(sign) not in ("Cf", "Mn"))
    return unicodedata.normalize("NFKC", "".join(kept)).replace("’", "'")


@functools.cache
def _stemmer() -> snowballstemmer.Stemmer:
    return snowballstemmer.stemmer("english")


@functools.lru_cache(maxsize=16384)
def stem(word: str) -> str:
    """The stem of one folded word; irregular forms count as their base, number words as numbers."""
    word = _IRREGULAR.get(word, NUMBERS.get(word, word))
    return str(_stemmer().stemWord(word))


@functools.lru_cache(maxsize=65536)
def _forms(token: str) -> tuple[str, tuple[str, ...]]:
    """The stem of a token with its capitals, and the stems of its parts where it is a camelCase name."""
    folded = fold(token)
    bare = _ENDING.sub("", folded)
    parts: tuple[str, ...] = ()
    if not any(sign.isdigit() for sign in token) and token[1:].lower() != token[1:] and not token.isupper():
        parts = tuple(stem(part.lower()) for part in _CAMEL.findall(token))
    if re.fullmatch(r"v\d[\d.]*\w*", bare):
        bare = bare[1:]
    return stem(bare), parts


def tokens_of(text: str) -> list[str]:
    """The words, names and numbers of `text` in order, with their capitals; "3.9.10" is one, `get_records` two."""
    return _TOKEN.findall(plain(text))


_CARRIER_STEMS = frozenset(map(str, (snowballstemmer.stemmer("english").stemWords(sorted(CARRIERS)))))


def is_carrier(stemmed: str) -> bool:
    return stemmed in _CARRIER_STEMS


def is_function_word(token: str) -> bool:
    folded = fold(token)
    return folded in FUNCTION_WORDS or _ENDING.sub("", folded) in FUNCTION_WORDS


def content_words(text: str) -> list[str]:
    """The tokens of `text` that are not mere grammar."""
    return [token for token in tokens_of(text) if not is_function_word(token)]


class Vocabulary:
    """The words of some texts, to be asked whether they support a word."""

    def __init__(self, *texts: str) -> None:
        self._stems: set[str] = set()
        self._compact = ""
        for text in texts:
            for token in tokens_of(text):
                whole, parts = _forms(token)
                self._stems.update((whole, *parts))
                if whole[:1].isdigit():  # who has Python 3.9.10 has Python 3.9
                    pieces = whole.split(".")
                    self._stems.update(".".join(pieces[:end]) for end in range(1, len(pieces)))
            self._compact += fold(text)

    def supports(self, token: str) -> bool:
        """Whether the word stands in these texts, in whatever form of its stem."""
        if _UNSPACED.search(token):
            return fold(token) in self._compact
        whole, parts = _forms(token)
        return self._has(whole) or (bool(parts) and all(map(self._has, parts)))

    def _has(self, stemmed: str) -> bool:
        if stemmed in self._stems:
            return True
        shorter = (stemmed[:-size] for size in range(1, 5) if stemmed[-size:] in _SUFFIXES)
        if any(len(base) >= MIN_BASE_CHARS and base in self._stems for base in shorter):
            return True
        longer = (stemmed + suffix for suffix in _SUFFIXES)
        return len(stemmed) >= MIN_BASE_CHARS and any(form in self._stems for form in longer)


def stem_of(token: str) -> str:
    """The stem under which a token is counted."""
    return _forms(token)[0]
