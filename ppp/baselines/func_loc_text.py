"""What the rule-made agents of `func_loc` make of text: clues of an issue, likely files, the functions that share most.

Nothing here acts; `func_loc_agent.py`, which comes next, does. This understands nothing; it is the floor that a trained
policy has to leave behind.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Weights = dict[str, float]

# What a mention is worth, by where it stands. Chosen by hand on half of the issues of the table in the README.
TITLE_WEIGHT, SPAN_WEIGHT, TEXT_WEIGHT, FENCE_WEIGHT = 3.0, 2.0, 1.0, 0.4
WORD_WEIGHT = 0.35  # of an English word, compared with an identifier in the same place
FRAME_WEIGHT = 2.0  # of a function in a stack trace, on top
PIECE_WEIGHT = 0.33  # of a piece of an identifier, compared with the whole
MAX_WEIGHT = 6.0
PATH_WEIGHT, MENTION_WEIGHT = 1.5, 5.0  # of a clue in a file's path; of the path itself in the issue
MIN_SHARE = 0.75  # of the best score that a further answer must have

NOT_SOURCES = frozenset(["tests", "test", "testing", "doc", "docs", "utils", "examples", "scripts", "bench"])
_STOP_TEXT = """
    about above actual actually after again also always another because been before being below better between both
    branch build bug called calling calls case cases cause causes change changes class code could couldn describe does
    doesn doing don done down during each either else error errors even example examples expected fail failed fails
    false file files first following found from function functions give given gives happens have having here how html
    https http import incorrect instead into issue issues just know like line lines list make makes method methods
    might module more most need needs none not object only option options other output parameter problem project pypi
    python reproduce report result results return returns run running same screenshots self should shown shows since
    some something specific steps still such test tests that the their them then there these they thing this three
    those through traceback true type type use used user uses using value values version very want wants was way well
    were what when where which while will with without work working works would wrong you your
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_HUMP = re.compile(r"[a-z][A-Z]")
_PIECES = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_FENCE = re.compile(r"^```.*?^```", re.M | re.S)
_SPAN = re.compile(r"`+([^`\n]+)`+")
_URL = re.compile(r"https?://\S+")
_FRAMES = (re.compile(r'File "([^"]+\.py)", line \d+, in (\w+)'), re.compile(r"([\w./\\-]+\.py):\d+: in (\w+)"))
_SETTING = re.compile(r"\W*(?:your )?(?:environment|versions?\b|pip (?:list|freeze)|os\b|screenshots|additional)", re.I)
_HEADING = re.compile(r"#+ |\*\*\w")
_DEFINITION = re.compile(r"\s*(async def|def|class)\s+(\w+)")


def weigh_clues(text: str, ignored: Iterable[str] = ()) -> Weights:
    """What an issue mentions -> how much weight that has: identifiers as they stand, English words in lower case."""
    text = _URL.sub(" ", _without_settings(text))
    title, _, body = text.strip().partition("\n")
    prose = _FENCE.sub("\n", body)
    fences = "\n".join(_FENCE.findall(body))
    clues: Weights = defaultdict(float)
    for part, weight in ((title, TITLE_WEIGHT), (prose, TEXT_WEIGHT), (fences, FENCE_WEIGHT)):
        for term, num in Counter(_terms(part)).items():
            clues[term] += weight * (1.0 if is_identifier(term) else WORD_WEIGHT) * (1 + math.log(num))
    for span in _SPAN.findall(f"{title}\n{prose}"):
        for term in set(_terms(span)):
            clues[term] += SPAN_WEIGHT - TEXT_WEIGHT
    for pattern in _FRAMES:
        for path, name in pattern.findall(text):
            clues[name] += FRAME_WEIGHT
            clues[path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")] += FRAME_WEIGHT / 2
    return {term: min(weight, MAX_WEIGHT) for term, weight in clues.items() if term not in ignored}


def _without_settings(text: str) -> str:
    """Leave out the sections that tell of the reporter's machine."""
    kept, skipping = [], False
    for line in text.split("\n"):
        if _SETTING.match(line):
            skipping = True
        elif _HEADING.match(line):
            skipping = False
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


def _terms(text: str) -> Iterable[str]:
    for dotted in _IDENTIFIER.findall(text):
        for name in dotted.split("."):
            term = name if is_identifier(name) else name.lower()
            if len(term) > 3 and term not in STOP_WORDS:
                yield term


def is_identifier(word: str) -> bool:
    """Whether a word looks like a name in code: an underscore or a hump, not just a capital."""
    return "_" in word.strip("_") or word.startswith("_") or _HUMP.search(word) is not None


def pieces(name: str) -> list[str]:
    """The words in a name: `visit_Call` holds visit and call."""
    return [piece.lower() for piece in _PIECES.findall(name)]


def score_paths(paths: Sequence[str], clues: Weights, text: str) -> Weights:
    """How much a path has in common with the issue: clues in its parts (rare parts count more), and the path itself."""
    words = {path: {word for part in path[:-3].split("/")[1:] for word in (part, *pieces(part))} for path in paths}
    spread = Counter(word for parts in words.values() for word in parts)
    terms = [(term.lower(), weight) for term, weight in clues.items()]
    gains = {
        word: max((weight for term, weight in terms if _is_form(term, word)), default=0.0)
        * math.log(1 + len(paths) / num)
        / math.log(1 + len(paths))
        for word, num in spread.items()
        if word not in ("init", "__init__")
    }
    scores: Weights = {}
    for path in paths:
        tail = "/".join(path.split("/")[-2:])
        num_mentions = len(re.findall(rf"(?<!\w){re.escape(tail)}", text))
        mention = MENTION_WEIGHT * (1 + math.log(num_mentions)) if num_mentions else 0.0
        scores[path] = mention + PATH_WEIGHT * sum(gains.get(word, 0.0) for word in sorted(words[path]))
    return scores


def _is_form(term: str, word: str) -> bool:
    """Whether a term is a word of a path, or a longer form of it (mocked, fixtures)."""
    return term == word or (len(word) > 3 and term.startswith(word) and len(term) - len(word) < 4)


@dataclass(frozen=True, slots=True)
class Function:
    """An outermost function or a method: file, name in the form of the answer, and its lines."""

    path: str
    name: str
    lines: list[str]


def read_functions(path: str, lines: Mapping[int, str]) -> list[Function]:
    """Tell the functions of a file from its indentation; what stands inside a function belongs to it."""
    functions: list[Function] = []
    classes: list[tuple[int, str]] = []  # indentation, name
    inside: int | None = None  # indentation of the function that the current line belongs to
    for number in sorted(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        if line.strip() and line.lstrip()[0] not in ")]}#":  # those continue what is above them
            if inside is not None and indent <= inside:
                inside = None
            while classes and indent <= classes[-1][0]:
                classes.pop()
        definition = _DEFINITION.match(line)
        if definition and inside is None:
            if definition[1] == "class":
                classes.append((indent, definition[2]))
            else:
                inside = indent
                functions.append(Function(path, ".".join([*(name for _, name in classes), definition[2]]), []))
        if inside is not None:
            functions[-1].lines.append(line)
    return functions


@dataclass(frozen=True, slots=True)
class Counted:
    """A function as far as ranking needs it: `path:name`, how many words it has, and how often those wanted occur."""

    name: str
    num_words: int
    counts: Mapping[str, int]


def count_words(function: Function) -> Counted:
    counts = Counter(_words_of(function))
    return Counted(f"{function.path}:{function.name}", counts.total(), counts)


def weigh_words(clues: Weights) -> Weights:
    """The words to look for in functions: the clues in lower case and, for less, their pieces."""
    wanted: Weights = defaultdict(float)
    for term, weight in clues.items():
        wanted[term.lower()] += weight
        for piece in set(pieces(term)) - {term.lower()} - STOP_WORDS:
            if len(piece) > 2:
                wanted[piece] += weight * PIECE_WEIGHT
    return dict(wanted)


def best_functions(functions: Sequence[Counted], clues: Weights, num: int) -> list[str]:
    """Up to `num` functions by BM25 over the clues, nearly blind to how often a word occurs."""
    wanted = weigh_words(clues)
    spread = Counter(word for function in functions for word in function.counts)
    mean_words = sum(function.num_words for function in functions) / max(1, len(functions))
    scores: Weights = {}
    for function in functions:
        damping = 0.25 * (0.4 + 0.6 * function.num_words / mean_words)
        scores[function.name] = sum(
            wanted[word]
            * math.log(1 + (len(functions) - spread[word] + 0.5) / (spread[word] + 0.5))
            * function.counts[word]
            / (function.counts[word] + damping)
            for word in sorted(wanted.keys() & function.counts.keys())
        )
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return [name for name in ranked[:num] if scores[name] > MIN_SHARE * scores[ranked[0]]]


def _words_of(function: Function) -> Iterable[str]:
    for name in function.name.split("."):
        yield from [name.lower(), *pieces(name)] * 4
    for word in re.findall(r"\w+", "\n".join(function.lines)):
        yield word.lower()
        if is_identifier(word):
            yield from pieces(word)
