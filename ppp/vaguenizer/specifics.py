"""The specific details of a text: code, addresses, paths, options, versions, messages, identifiers, numbers.

Counting only, and no verdict: what a vague text may keep is decided in `checks.py`, which comes next. Every
stretch of a text belongs to one kind at most. The kinds are looked for in the order of the table, and what one of them
has taken is blank to those after it, so that the numbers of a traceback are not counted again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MAX_CHARS = 200_000  # of a text that are read; far beyond any issue

_FILE_TYPE = (
    r"(?:pyi?|pyx|ipynb|rst|md|txt|toml|cfg|ini|ya?ml|json|jsonl|xml|html?|css|jsx?|tsx?|csv|tsv|log|sh|bat|ps1|c|cc|cpp"
    r"|h|hpp|rs|go|java|rb|sql|pdf|png|jpe?g|svg|gif|tex|po|mo|zip|gz|whl|so|dll|exe|lock|env|conf|parquet)"
)
_UNIT = r"(?:\s?(?:%|[kKMGT]i?B|[munµ]?s(?:ec)?\b|seconds?|minutes?|hours?|times|x\b|px|percent|million|billion))"
_ERROR = r"[A-Z]\w*(?:Error|Exception|Warning|Failure|Interrupt)"

# What says that "3.6" is a version: a name or a comparison before it, but not an ordinary word.
_NO_PRODUCT = (
    r"(?<!\bis )(?<!\bof )(?<!\bto )(?<!\bby )(?<!\bthan )(?<!\babout )(?<!\btakes )(?<!\bwith )(?<!\bfor )(?<!\band )"
    r"(?<!\bor )(?<!\bin )(?<!\bat )(?<!\bfrom )(?<!\bas )(?<!\bover )(?<!\bonly )(?<!\bsection )"
)

# Kind -> where it stands. A group named `inner` is what was quoted, and may turn out to be of another kind.
KINDS: Mapping[str, re.Pattern[str]] = {
    "code": re.compile(
        r"(?P<fence>```|~~~)[\s\S]*?(?:(?P=fence)|\Z)"
        rf"|^[ \t]*Traceback \(most recent call last\):.*\n(?:[ \t]*\n|[ \t]+\S.*\n)*(?:(?:\w+\.)*{_ERROR}.*)?"
        r"|(?:^[ \t]*(?:>>>|\.\.\.|\$|In ?\[\d*\]:)[ \xa0].*(?:\n|\Z))+"
        r"|(?:(?<=\n)|\A)(?:^(?: {4}|\t)[ \t]*\S.*(?:\n|\Z)(?:[ \t]*\n)*){2,}"
        r"|(?P<ticks>`{1,2})(?!`)(?P<inner>[^`\n]{1,300})(?P=ticks)",
        re.MULTILINE,
    ),
    "url": re.compile(
        r"\b(?:https?|ftp|file|git|ssh)://[^\s<>\"`]*[^\s<>\"`.,;:!?)\]}']|\bwww\.[\w./-]*\w|\b[\w.+-]{1,64}@[\w-]+\.[\w.-]*\w"
    ),
    "message": re.compile(
        r"\"(?P<inner>[^\"\n]{2,300})\"|“(?P<curly>[^”\n]{2,300})”|«(?P<french>[^»\n]{2,300})»"
        r"|„(?P<german>[^“”\n]{2,300})[“”]|(?<![\w'])'(?P<single>[^'\n]{2,120})'(?![\w'])"
        rf"|(?<![\w.])(?:\w+\.){{0,8}}{_ERROR}: \S.*"
    ),
    "path": re.compile(
        r"(?<![\w/.\\+@-])(?:"
        r"(?:~|\.{1,2}|[A-Za-z]:)?(?:[\\/][\w.+@-]+){2,}/?"
        r"|(?:~|\.{1,2})/[\w.+-]+"
        r"|[\w.+@-]+(?:[\\/][\w.+@-]+){2,}"
        rf"|(?:[\w.+@-]+[\\/])?[\w+-][\w.+-]*\.{_FILE_TYPE}\b(?!\.\w)(?!\()"
        r")(?:::?[\w.\[\]]*[\w\]])*"
    ),
    "option": re.compile(r"(?<![\w-])(?:--[A-Za-z][\w-]*\w(?:=\S*\w)?|-[A-Za-z]{1,2}(?![\w-]))"),
    "version": re.compile(
        r"\bv?\d+(?:\.\d+){2,}(?:[.-]?(?:a|b|rc|alpha|beta|dev|post)\d*)?(?:\+\w+)?\b"
        r"|\bv\d+(?:\.\d+)*\b"
        rf"|(?:(?<=[A-Za-z] )|(?<=[A-Za-z]=)|(?<=[<>=~]=)|(?<=[<>=~]= )){_NO_PRODUCT}\d{{1,4}}\.\d{{1,4}}"
        rf"(?:\.?(?:a|b|rc|dev|x)\d*)?\b(?!{_UNIT})"
    ),
    "reference": re.compile(r"(?<![\w&])#\d+\b|\bGH-?\d+\b|\b(?=[0-9a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,40}\b"),
    "identifier": re.compile(
        r"@?(?<![\w.])[^\W\d]\w*(?:\.[^\W\d]\w*)*\((?:[^\s()\x00][^()\n\x00]{0,80})?\)"  # a call
        r"|(?<![\w.])(?!(?:e\.g|i\.e|z\.B|d\.h|U\.S|a\.m|p\.m)\b)[^\W\d]\w*(?:\.[^\W\d]\w*)+"  # dotted
        r"|\b(?:_*[^\W_]+_[\w]*|__?[^\W_]\w*)"  # snake_case, _private, __dunder__, CONSTANT_NAME
        r"|\b[a-z]+\d*[A-Z]\w*|\b[A-Z][a-z0-9]+[A-Z]\w*|\b[A-Z]{2,}(?!s\b)[a-z]{2,}\w*"  # camelCase, CamelCase, OSError
        rf"|\b{_ERROR}\b"
        r"|\$\{?[A-Za-z_]\w*\}?"
    ),
    "number": re.compile(r"(?<![\w.])[+-]?\d+(?:[.,:/-]\d+)*%?(?![\w])"),
}

# Names of products that are written like identifiers and tell nothing about a program.
_PRODUCTS = """
    github gitlab bitbucket macos ios javascript typescript latex pypi stackoverflow openai youtube wikipedia ipython
    postgresql mysql sqlite mongodb numpy scipy pytorch tensorflow vscode pycharm iphone linkedin
"""
PRODUCTS = frozenset(_PRODUCTS.split())

# In a search question it is names that narrow down what is meant.
_UPPER = r"[A-ZÀ-ÖØ-ÞĀĂĄĆČĎĐĒĘĚŁŃŇÓŐŒŘŚŞŠŤŪŮŰŹŻŽΑ-ΩА-Я]"
_NAME_WORD = rf"{_UPPER}[\w'’&-]*\.?(?:(?<=\b\w\.){_UPPER}\.)*"
_LINK = r"(?:of|the|and|de|del|della|di|da|du|des|la|le|van|von|der|den|y|e|et|und|&)"
NAME = re.compile(rf"\b{_NAME_WORD}(?:\s+(?:{_LINK}\s+){{0,2}}{_NAME_WORD})*")
_OPENING_WORDS = """
    who whom whose what which when where why how the a an in on at of for from by to is are was were did does do has
    have had can could if after before during name give find tell i this that these those it its there and or but as
    with besides
    chi che cosa quale quali quando dove come il lo la i gli le un una in di da
    wer wen wem wessen was welche welcher welches welchen wann wo wie warum der die das ein eine im am
    qui que quoi quel quelle quels quelles quand où comment le les un une en dans au
    quién quiénes qué cuál cuándo dónde cómo el los las en
"""
_OPENERS = frozenset(_OPENING_WORDS.split())


@dataclass(frozen=True, slots=True)
class Specific:
    """One detail of a text: its kind, as it is written, and the position of its first character."""

    kind: str
    text: str
    start: int


def find_specifics(text: str, *, names: bool = False) -> list[Specific]:
    """The details of `text` in their order, none inside another.

    Args:
        names: also look for capitalised names, kind "name"; meant for search questions.
    """
    rest = text[:MAX_CHARS]
    found: list[Specific] = []
    for kind, pattern in KINDS.items():
        taken: list[tuple[int, int]] = []
        for match in pattern.finditer(rest):
            specific = _classified(kind, match)
            if specific is not None:
                found.append(specific)
                taken.append(match.span())
        rest = _blank(rest, taken)
    if names:
        found += _names(rest)
    return sorted(found, key=lambda specific: specific.start)


def count_specifics(text: str, *, names: bool = False) -> dict[str, int]:
    """Kind -> number of different details of that kind; kinds without any are left out."""
    return {kind: len(texts) for kind, texts in distinct_specifics(text, names=names).items()}


def distinct_specifics(text: str, *, names: bool = False) -> dict[str, dict[str, str]]:
    """Kind -> {the detail with case and spacing evened out: as it first stands in the text}."""
    kinds: dict[str, dict[str, str]] = {}
    for specific in find_specifics(text, names=names):
        kinds.setdefault(specific.kind, {}).setdefault(_key(specific.text), specific.text)
    return kinds


def _key(text: str) -> str:
    return " ".join(text.casefold().removesuffix("()").split())


def _classified(kind: str, match: re.Match[str]) -> Specific | None:
    """What a match is: something quoted may be a path or a version rather than a message; some matches are nothing."""
    text = match.group().strip()
    quoted = next(
        (value for name, value in match.groupdict().items() if value and name not in ("fence", "ticks")), None
    )
    if quoted is not None:
        inner = quoted.strip()
        for other in ("url", "path", "option", "version", "reference", "identifier", "number"):
            if KINDS[other].fullmatch(inner):
                return Specific(other, inner, match.start())
        if not re.search(r"\w", inner):
            return None
        if kind == "code" and not re.search(r"\s", inner):
            return Specific("identifier", inner, match.start())
        return Specific(kind, inner, match.start())
    if kind == "identifier" and text.casefold() in PRODUCTS:
        return None
    return Specific(kind, text, match.start())


def _blank(text: str, spans: list[tuple[int, int]]) -> str:
    """`text` with `spans` made of a sign that no kind matches; the same length, so positions stay true."""
    parts, end = [], 0
    for start, stop in spans:
        parts += [text[end:start], "\x00" * (stop - start)]
        end = stop
    return "".join([*parts, text[end:]])


def _names(text: str) -> list[Specific]:
    """Capitalised names; a word that is capitalised only because it opens a sentence or a question is none."""
    found = []
    for match in NAME.finditer(text):
        words = match.group().split()
        opens = not text[: match.start()].rstrip(" \"'“‘(¿¡-*").endswith((",", ";", ":")) and bool(
            re.search(r"(?:\A|[.!?\n])[\s\"'“‘(¿¡*-]*\Z", text[max(0, match.start() - 20) : match.start()])
        )
        start = match.start()
        while words and words[0].casefold().strip("'’") in _OPENERS:
            words.pop(0)
            opens = False
        if opens and len(words) == 1:
            continue
        while words and not re.match(_UPPER, words[0]):
            words.pop(0)
        name = re.sub(r"['’]s?\Z", "", " ".join(words).rstrip("."))
        if len(name) > 1:
            found.append(Specific("name", name, start))
    return found
