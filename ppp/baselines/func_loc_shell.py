"""A rule-made agent for `func_loc` with a shell: find and grep for the files, sed to read them.

How it weighs what it reads is in `func_loc_text.py`; `func_loc_read.py` does the same with structured tools.
"""

from __future__ import annotations

import math
import posixpath
import re
import shlex
from collections.abc import Generator, Mapping, Sequence

from ppp.baselines.func_loc_text import (
    NOT_SOURCES,
    Counted,
    Plan,
    PlannedAgent,
    Step,
    Weights,
    best_functions,
    count_words,
    read_functions,
    score_paths,
    weigh_clues,
)
from ppp.types import ToolCall

PAGE_LINES = 400  # about as many as an observation holds
MANY_FILES = 60  # a word in more files than these says nothing of where to look
_SEPARATOR = "=="
_HEADER = re.compile(r"^/testbed/(\S+), lines (\d+) to (\d+) of (\d+)$", re.M)
_LINE = re.compile(r"^ *(\d+)\t(.*)$", re.M)


class ShellAgent(PlannedAgent):
    """Searches for what the issue names, reads the most promising files, and names their most similar functions.

    Args:
        ask: put one question to the user first.
        max_searches: words of the issue to search for.
        max_files: files to read.
        max_pages: pages that this may take.
        max_answers: functions that the answer may name.
    """

    def __init__(
        self, ask: bool = False, max_searches: int = 10, max_files: int = 2, max_pages: int = 16, max_answers: int = 2
    ) -> None:
        self.ask = ask
        self.max_searches, self.max_files = max_searches, max_files
        self.max_pages, self.max_answers = max_pages, max_answers

    def plan(self, text: str) -> Plan:
        listing = yield "Which Python files are there?", _bash(_list_command())
        roots, paths = find_sources(listing.split("\n"))
        packages = [posixpath.basename(root) for root in roots]
        clues = weigh_clues(text, ignored={*packages, *(name.strip("_") for name in packages)})
        scores = score_paths(paths, clues, text)
        terms = sorted(clues, key=lambda term: (-clues[term], term))[: self.max_searches]
        if terms:
            found = yield f"The issue speaks of {', '.join(terms)}.", _bash(_search_command(terms, roots or ["."]))
            for path, score in score_files(found, clues).items():
                scores[path] = scores.get(path, 0.0) + score
        best_paths = sorted(scores, key=lambda path: (-scores[path], path))[: self.max_files]
        functions = yield from self._read(best_paths)
        return "\n".join(best_functions(functions, clues, self.max_answers))

    def _read(self, paths: Sequence[str]) -> Generator[Step, str, list[Counted]]:
        """Read files from the top, page by page, while pages are left."""
        functions: list[Counted] = []
        num_left = self.max_pages
        for path in paths:
            lines: dict[int, str] = {}
            start, end = 1, 1
            while start <= end and num_left > 0:
                num_left -= 1
                view = {"command": "view", "path": f"/testbed/{path}", "view_range": [start, start + PAGE_LINES - 1]}
                shown = yield f"{path} has most in common with the issue.", ToolCall("str_replace_editor", view)
                header = _HEADER.search(shown)
                if header is None:
                    break
                start, end = int(header[3]) + 1, int(header[4])
                lines |= {int(number): line for number, line in _LINE.findall(shown)}
            functions += map(count_words, read_functions(path, lines))
        return functions


def _bash(command: str) -> ToolCall:
    return ToolCall("execute_bash", {"command": command})


def _list_command() -> str:
    folders = "|".join(sorted(NOT_SOURCES))
    return f"find . -name '*.py' -not -path './.*' | sed 's|^./||' | grep -vE '(^|/)({folders})/' | sort"


def _search_command(terms: Sequence[str], roots: Sequence[str]) -> str:
    grep = f"grep -rlF --include='*.py' -e \"$term\" -- {shlex.join(roots)}"
    return f'for term in {shlex.join(terms)}; do echo "{_SEPARATOR} $term"; {grep}; done'


def find_sources(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """The packages at the top, or in `src`, and their Python files; without packages, no root and all files."""
    files = [path for path in paths if path.endswith(".py")]
    folders = {posixpath.dirname(path) for path in files if posixpath.basename(path) == "__init__.py"}
    roots = sorted(folder for folder in folders if posixpath.dirname(folder) in ("", "src"))
    inside = [path for path in files if any(path.startswith(f"{root}/") for root in roots)]
    return roots, inside or files


def score_files(found: str, clues: Mapping[str, float]) -> Weights:
    """What the searches say for each file: the fewer files a word is in, the more."""
    scores: Weights = {}
    for part in found.split(f"{_SEPARATOR} ")[1:]:
        term, *lines = part.split("\n")
        paths = [posixpath.normpath(line) for line in lines if line.endswith(".py")]
        for path in paths if len(paths) <= MANY_FILES else ():
            scores[path] = scores.get(path, 0.0) + clues[term] * math.log(1 + MANY_FILES / len(paths)) / 4
    return scores
