"""A rule-made agent for `func_loc`: words of the issue -> search -> files -> the functions that share most of them.

It sees what a policy sees, the prompt and the observations, and keeps nothing between turns: every turn replays its
plan over the session so far. It understands nothing; it is the floor that a trained policy has to leave behind.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ppp.types import Task, ToolCall, Turn

Step = tuple[str, ToolCall]
Weights = dict[str, float]

QUESTION = "Which option, class or error message is this about, and what did you expect instead?"

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
_MATCH = re.compile(r"^(\S.*?\.py):\d+: ", re.M)
_VIEW_HEADER = re.compile(r"^.*, lines \d+ to (\d+) of (\d+)$", re.M)
_VIEW_LINE = re.compile(r"^ *(\d+) (.*)$", re.M)
_DEFINITION = re.compile(r"\s*(async def|def|class)\s+(\w+)")


class FuncLocAgent:
    """Searches for what the issue names, reads the most promising files, and names their most similar functions.

    Args:
        ask: put one question to the user first.
        max_listings: directories to look into.
        max_searches: words of the issue to search for.
        max_files: files to read.
        max_views: calls of `view` that this may take.
        max_answers: functions that the answer may name.
    """

    def __init__(
        self,
        ask: bool = False,
        max_listings: int = 28,
        max_searches: int = 10,
        max_files: int = 2,
        max_views: int = 16,
        max_answers: int = 2,
    ) -> None:
        self.ask = ask
        self.max_listings, self.max_searches = max_listings, max_searches
        self.max_files, self.max_views, self.max_answers = max_files, max_views, max_answers

    def act(self, task: Task, turns: Sequence[Turn]) -> Step:
        plan = self._plan(task.prompt)
        step = next(plan)
        for turn in turns:
            step = plan.send(turn.observation or "")
        return step

    def _plan(self, text: str) -> Generator[Step, str, None]:
        """Yields what to do, is sent the observation."""
        if self.ask:
            reply = yield "I ask what would narrow the search down.", ToolCall("ask_user", {"query": QUESTION})
            text += f"\n\n{reply}"
        roots, paths = yield from self._list_sources()
        packages = [root.rpartition("/")[2] for root in roots]
        clues = weigh_clues(text, ignored={*packages, *(name.strip("_") for name in packages)})
        scores = score_paths(paths, clues, text)
        for term in sorted(clues, key=lambda term: (-clues[term], term))[: self.max_searches]:
            for root in roots:
                found = yield f"The issue speaks of {term}.", ToolCall("search_code", {"query": term, "path": root})
                for path, score in score_matches(found).items():
                    scores[path] = scores.get(path, 0.0) + score * clues[term]
        best_paths = sorted(scores, key=lambda path: (-scores[path], path))[: self.max_files]
        functions = yield from self._read(best_paths)
        answer = "\n".join(best_functions(functions, clues, self.max_answers))
        while True:
            yield "These functions share most with the issue.", ToolCall("finish", {"answer": answer})

    def _list_sources(self) -> Generator[Step, str, tuple[list[str], list[str]]]:
        """The packages at the top, or in `src` (the whole tree where there is none), and their Python files."""
        pending = ["."]
        roots: list[str] = []
        paths: list[str] = []
        num_listed = 0
        while pending and num_listed < self.max_listings:
            folder = pending.pop(0)
            num_listed += 1
            listing = yield f"What is in {folder}?", ToolCall("list_dir", {"path": folder})
            names = listing.split("\n")
            prefix = "" if folder == "." else f"{folder}/"
            in_package = any(folder.startswith(f"{root}/") for root in roots)
            if not in_package and "__init__.py" in names:
                roots.append(folder)
                in_package = True
            if in_package or folder in (".", "src"):
                folders = [name.rstrip("/") for name in names if name.endswith("/") and not name.startswith(".")]
                pending += [prefix + name for name in folders if name not in NOT_SOURCES]
            if in_package:
                paths += [prefix + name for name in names if name.endswith(".py")]
        return roots or ["."], paths

    def _read(self, paths: Sequence[str]) -> Generator[Step, str, list[Function]]:
        """Read files from the top, page by page, while calls are left."""
        functions: list[Function] = []
        num_left = self.max_views
        for path in paths:
            lines: dict[int, str] = {}
            start, end = 1, 1
            while start <= end and num_left > 0:
                num_left -= 1
                call = ToolCall("view", {"path": path, "start_line": start})
                shown = yield f"{path} has most in common with the issue.", call
                header = _VIEW_HEADER.search(shown)
                if header is None:
                    break
                start, end = int(header[1]) + 1, int(header[2])
                lines |= {int(number): line for number, line in _VIEW_LINE.findall(shown)}
            functions += read_functions(path, lines)
        return functions


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


def score_matches(observation: str) -> Weights:
    """What a search says for each file, in units of the term's weight: the fewer files it finds, the more.

    Nothing where the matches were too many to be shown: those shown are only the first of the alphabet.
    """
    if "\n[only" in observation:
        return {}
    paths = set(_MATCH.findall(observation))
    return {path: math.log(1 + 60 / len(paths)) / 4 for path in paths}


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


def best_functions(functions: Sequence[Function], clues: Weights, num: int) -> list[str]:
    """Up to `num` functions by BM25 over the clues, nearly blind to how often a word occurs."""
    wanted: Weights = defaultdict(float)
    for term, weight in clues.items():
        wanted[term.lower()] += weight
        for piece in set(pieces(term)) - {term.lower()} - STOP_WORDS:
            if len(piece) > 2:
                wanted[piece] += weight * PIECE_WEIGHT
    texts = [Counter(_words_of(function)) for function in functions]
    spread = Counter(word for text in texts for word in text)
    mean_length = sum(text.total() for text in texts) / max(1, len(texts))
    scores: Weights = {}
    for function, text in zip(functions, texts, strict=True):
        damping = 0.25 * (0.4 + 0.6 * text.total() / mean_length)
        scores[f"{function.path}:{function.name}"] = sum(
            wanted[word]
            * math.log(1 + (len(texts) - spread[word] + 0.5) / (spread[word] + 0.5))
            * text[word]
            / (text[word] + damping)
            for word in sorted(wanted.keys() & text.keys())
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
