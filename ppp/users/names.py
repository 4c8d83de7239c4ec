"""Names that give a solution away, found in a text in whatever disguise: spelled, reversed, encoded, in other letters.

The normalisations are cheap and known beforehand; a riddle or a code agreed upon in the question gets past them. What
finding a name means for the effort of an answer is `evidence.py`'s business; `leaks.py` looks through the same views.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from urllib.parse import unquote

from ppp.types import Source
from ppp.users.words import FUNCTION_WORDS, fold, plain

MAX_TEXT_CHARS = 20_000  # of one text that are looked through
MIN_HIDDEN_CHARS = 4  # of a name in a text that had to be decoded
MIN_HIDDEN_WORD_CHARS = 6  # the same for a name that is one word: "part" backwards is another word
MIN_BARE_CHARS = 5  # of a one-word name that is recognised without anything that makes it code

# Functions are called so everywhere, and people use these words for other things.
_COMMON_NAMES = """
    accept access action active append apply argument assert attribute author batch begin block build cache
    callback change check choose clean cleanup clear click clone close collect column command commit common
    compare compile config connect content context convert count create current debug decode default delete
    describe detail disable display document dump enable encode error evaluate event exception execute exists
    expand explain export extend extract fetch field filter final flush format forward function generate group
    handle header import index initial insert install invoke iterate label layout length limit linear listen
    locate logger logging lookup match merge message method metric model module monitor notify number object
    offset option order output package parse parser party patch pause plot point print process profile prompt
    query queue quote raise range reader record reduce refresh register release reload remove rename render repair
    repeat replace report request require reset resize resolve resource response restart restore result return
    reverse review rotate route sample schedule schema scope search select serialize service session setup shape
    share shift short shutdown simple split stack start state status store string style submit summary support
    switch table target token total trace track train transform trigger update upload validate value verify
    version view visit walk warning weight window wrap write writer
"""
COMMON_NAMES = frozenset(_COMMON_NAMES.split())
_PIECE = re.compile(r"[^\W_]+")
_CODE_BEFORE = re.compile(r"(?:[.:#/\\]|\bdef )$")
_CODE_NOUN = r"(?:functions?|methods?|class(?:es)?|modules?|files?|routines?|procedures?)"
_LONGER_BEFORE = re.compile(r"[\w-]*[^\W_][_-]+$")
_LONGER_AFTER = re.compile(r"[_-]+[^\W_][\w-]*")
_NOUN_BEFORE = re.compile(rf"\b{_CODE_NOUN}\s+(?:is\s+)?(?:called\s+|named\s+)?['\"]?$")
_CODE_AFTER = re.compile(rf"^['\"]?(?:\(|\.py\b|\s+{_CODE_NOUN}\b)")
# "I opened the file first": what the agent did is not what it asks for.
_LOOKED_AT = re.compile(
    r"\b(?:i|we)(?:['’]ve|\s+have)?(?:\s+(?:already|first|just))?\s+(?:opened|read|listed|searched|viewed|checked|looked\s+(?:at|in|into|through))"
    r"\s+(?:the|this|that|all|every|some|a|its)?\s*(?:files?|modules?|code|functions?|class(?:es)?|folders?)\b"
)
_ASKS_FOR_CODE = re.compile(rf"\b(?:{_CODE_NOUN}|names?|called|edit(?:ed)?|patch|fix(?:ed)?)\b")
_TOKEN = re.compile(r"[^\s,;!?\"'`()\[\]{}<>]+(?:\(\))?")
_CODE_MARK = re.compile(r"\w[/_.:\\]+\w|\w\(\)$")
_SPELLED = re.compile(r"(?<![^\W_])[^\W_](?:[\W_]{1,3}[^\W_]){2,}(?![^\W_])")
_SPOKEN = re.compile(r"[\s,]*\b(?:dot|point|slash|underscore|dash|hyphen|minus|colon)\b[\s,]*")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
_HEX = re.compile(r"(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s,;:]*){3,}")
_CODES = re.compile(r"(?:\b\d{2,3}\b[\s,;]*){3,}")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_TAG_LETTERS = {0xE0000 + code: code for code in range(0x20, 0x7F)}


class Match(IntEnum):
    """How plainly a text holds a name."""

    NONE = 0
    WORDS = 1  # its words side by side, as prose could have them
    CODE = 2  # as code writes it, or disguised


@dataclass(frozen=True, slots=True)
class Name:
    """One way to name an item of a source: a path or its end, a function with or without its class, a title.

    Attributes:
        text: as it is written.
        compact: its folded letters and digits without what stands between them.
        level: of the source.
        known_by: names that say the same: who holds one of them (or all of a tuple) holds this one.
    """

    text: str
    compact: str
    level: int
    known_by: tuple[tuple[str, ...], ...] = ()

    @property
    def is_word(self) -> bool:
        """One word without anything that marks it as code."""
        return bool(re.fullmatch(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", self.text))


@dataclass(frozen=True, slots=True)
class Reader:
    """What somebody knows who reads a text for names.

    Attributes:
        is_ordinary: whether a word needs no explanation, because the report or the language has it.
        has_longer: whether a longer name, of which the one in question is a part, is known as such: who reads of
            `test_latex.py` has not read of `latex.py`.
    """

    is_ordinary: Callable[[str], bool]
    has_longer: Callable[[str], bool]


def compact(text: str) -> str:
    return "".join(_PIECE.findall(fold(text)))


def names_of(sources: Iterable[Source]) -> tuple[Name, ...]:
    """Every name that gives an item of the sources away, each once, with the lowest level that it has.

    The path of a function is a name, too, and no more than the file's.
    """
    found: dict[str, Name] = {}
    for source in sources:
        for item in source.items:
            for text, known_by in _variants(item.strip()):
                key = compact(text)
                if key and (key not in found or found[key].level > source.level):
                    found[key] = Name(text, key, source.level, known_by)
    return tuple(found.values())


def _variants(item: str) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    """The names of one item, each with the names that say the same."""
    if re.search(r"\s", item):  # a title, a person
        yield item, ()
        words = item.split()
        told = words if all(word[:1].isupper() for word in words) else words[1:]  # a title's first word says little
        yield from ((word, ()) for word in told if len(word) >= MIN_BARE_CHARS and word[:1].isupper())
        return
    path, colon, name = item.partition(":") if ".py:" in item or "/" in item else ("", "", item)
    if path:
        yield from _path_variants(path)
    if not path or colon:
        yield from _function_variants(name)


def _path_variants(path: str) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    base = path.rsplit("/", 1)[-1]
    stem, dot, _ = path.rpartition(".")
    without = stem if dot and "/" in stem else path
    yield path, ((without,),)
    if without != path:
        yield without, ((path,),)
    if not base.startswith("__") and base != path:
        yield base, ((path,), (without,))
        if (word := base.partition(".")[0]) != base:
            yield word, ((base,),)


def _function_variants(name: str) -> Iterator[tuple[str, tuple[tuple[str, ...], ...]]]:
    *owners, last = name.split(".")
    if owners:
        yield name, ((*owners, last),)
    yield from ((part, ((name,),)) for part in (*owners, last))


class Text:
    """A text to be searched: its pieces (runs of letters and digits), and their letters in one string."""

    def __init__(self, text: str) -> None:
        self.text = plain(text[:MAX_TEXT_CHARS])
        self.folded = fold(self.text)
        self.pieces = [(match.start(), match.end()) for match in _PIECE.finditer(self.folded)]
        self.starts, position, words = [], 0, []
        for start, end in self.pieces:
            self.starts.append(position)
            words.append(self.folded[start:end])
            position += end - start
        self.compact = "".join(words)
        self._ends = {begin + end - start: index for index, (begin, (start, end)) in enumerate(self._spans())}
        self._begins = {begin: index for index, begin in enumerate(self.starts)}

    def _spans(self) -> Iterator[tuple[int, tuple[int, int]]]:
        return zip(self.starts, self.pieces, strict=True)

    def find(self, name: str) -> Iterator[tuple[int, int]]:
        """First and last piece of each place where whole pieces make up the letters of `name`."""
        position = self.compact.find(name)
        while position >= 0:
            first, last = self._begins.get(position), self._ends.get(position + len(name))
            if first is not None and last is not None:
                yield first, last
            position = self.compact.find(name, position + 1)

    def word(self, index: int) -> str:
        start, end = self.pieces[index]
        return self.folded[start:end]

    def span(self, first: int, last: int) -> str:
        return self.folded[self.pieces[first][0] : self.pieces[last][1]]

    def around(self, first: int, last: int) -> tuple[str, str, list[str]]:
        """What stands right before and after some pieces, and between each two of them."""
        start, end = self.pieces[first][0], self.pieces[last][1]
        gaps = [self.folded[self.pieces[i][1] : self.pieces[i + 1][0]] for i in range(first, last)]
        return self.folded[max(0, start - 30) : start], self.folded[end : end + 20], gaps


def matches(text: Text, name: Name, reader: Reader) -> Match:
    """How plainly a text, read as it stands, holds a name."""
    if name.text.startswith("__"):
        return Match.CODE if name.text in text.folded else Match.NONE
    best = Match.NONE
    for first, last in text.find(name.compact):
        before, after, gaps = text.around(first, last)
        head, tail = _LONGER_BEFORE.search(before), _LONGER_AFTER.match(after)
        if (head or tail) and reader.has_longer(
            (head[0] if head else "") + text.span(first, last) + (tail[0] if tail else "")
        ):
            continue
        if name.is_word and first == last:
            found = _word_match(text, name, before, after)
        elif any(re.search(r"\s", gap) for gap in gaps):
            words = [text.word(index) for index in range(first, last + 1)]
            is_prose = len(words) <= 2 and all(map(reader.is_ordinary, words))
            found = Match.NONE if is_prose else Match.WORDS
        else:
            found = Match.CODE
        best = max(best, found)
    return best


def _word_match(text: Text, name: Name, before: str, after: str) -> Match:
    """A name that is one word: code where something marks it as code, else a word like others."""
    if _CODE_BEFORE.search(before) or _NOUN_BEFORE.search(before) or _CODE_AFTER.match(after):
        return Match.CODE
    if len(name.compact) < MIN_BARE_CHARS or name.compact in COMMON_NAMES or name.compact in FUNCTION_WORDS:
        return Match.NONE
    return Match.WORDS


@lru_cache(maxsize=2048)
def respelled(text: str) -> tuple[str, ...]:
    """`text` as it reads once marks are spoken, rows of letters joined and escapes resolved."""
    text = text[:MAX_TEXT_CHARS]
    spoken = _SPOKEN.sub(".", fold(text))
    views = [
        _SPELLED.sub(lambda match: compact(match.group()), spoken),
        spoken,
        unquote(html.unescape(plain(text))),
        _ESCAPE.sub(lambda match: chr(int(match.group(1), 16)), plain(text)),
        text.translate(_TAG_LETTERS),
    ]
    return tuple(dict.fromkeys(view for view in views if compact(view) != compact(text)))


@lru_cache(maxsize=2048)
def decoded(text: str) -> tuple[str, ...]:
    """What `text` says backwards, in rot13, and behind base64, hexadecimal or decimal codes."""
    text = text[:MAX_TEXT_CHARS]
    folded = fold(text)
    return tuple(dict.fromkeys((folded[::-1], codecs.decode(folded, "rot13"), *_decoded(plain(text)))))


def _decoded(text: str) -> Iterator[str]:
    """The printable texts behind base64, hexadecimal, decimal codes and escapes."""
    for match in _BASE64.finditer(text):
        word = match.group().rstrip("=").replace("-", "+").replace("_", "/")
        try:
            yield from _printable(base64.b64decode(word + "=" * (-len(word) % 4)))
        except binascii.Error:
            continue
    for match in _HEX.finditer(text):
        digits = re.sub(r"0x|\\x|[\s,;:]", "", match.group())
        if len(digits) % 2 == 0:
            yield from _printable(bytes.fromhex(digits))
    for match in _CODES.finditer(text):
        codes = [int(code) for code in re.findall(r"\d+", match.group())]
        if all(32 <= code < 127 for code in codes):
            yield "".join(map(chr, codes))


def _printable(data: bytes) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return []
    return [text] if len(text) >= 3 and "".join(text.split()).isprintable() else []


def hidden_in(text: str, name: Name, reader: Reader) -> Match:
    """How plainly `text` holds the name once it is decoded."""
    rows = _letter_rows(text)
    least = MIN_HIDDEN_WORD_CHARS if name.is_word else MIN_HIDDEN_CHARS
    if len(name.compact) < least:  # "f12" is worth a look where letters stand in a row, and nowhere else
        has_digit = any(sign.isdigit() for sign in name.compact)
        return Match.CODE if has_digit and any(name.compact in row for row in rows) else Match.NONE
    if any(name.compact in row for row in rows):
        return Match.CODE
    if any(next(_searched(view).find(name.compact), None) is not None for view in decoded(text)):
        return Match.CODE
    return max((matches(_searched(view), name, reader) for view in respelled(text)), default=Match.NONE)


def _letter_rows(text: str) -> list[str]:
    return [compact(match.group()) for match in _SPELLED.finditer(_SPOKEN.sub(" ", fold(text[:MAX_TEXT_CHARS])))]


@lru_cache(maxsize=2048)
def _searched(view: str) -> Text:
    return Text(view)


def asks_for_code(question: str) -> bool:
    """Whether a question is after a name in the code, so that a word said in reply is one."""
    return bool(_ASKS_FOR_CODE.search(_LOOKED_AT.sub(" ", fold(question))))


def code_words(text: str) -> list[str]:
    """The paths, qualified names, versions and calls in a text, as it writes them; "e.g." and "and/or" are none."""
    tokens = (token.strip(".:") for token in _TOKEN.findall(plain(text)))
    marked = (token for token in tokens if _CODE_MARK.search(token))
    return [token for token in marked if not all(map(_is_small_word, _PIECE.findall(fold(token))))]


def _is_small_word(word: str) -> bool:
    return (len(word) == 1 and word.isalpha()) or word in FUNCTION_WORDS
