"""A rule-made agent for `func_loc` with a shell: find and grep for the files, pages of them from the editor.

What it does with them is in `func_loc_agent.py`; `func_loc_read.py` does the same with structured tools.
"""

from __future__ import annotations

import math
import posixpath
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from typing import ClassVar

from ppp.baselines.func_loc_agent import FuncLocAgent, Step
from ppp.baselines.func_loc_text import NOT_SOURCES, Weights
from ppp.types import ToolCall

PAGE_LINES = 400  # about as many as an observation holds
MANY_FILES = 60  # a word in more files than these says nothing of where to look
_SEPARATOR = "=="


class ShellAgent(FuncLocAgent):
    """Lists all files by one command, and searches for all words by another."""

    page_header: ClassVar = re.compile(r"^/testbed/\S+, lines \d+ to (?P<last>\d+) of (?P<total>\d+)$", re.M)
    page_line: ClassVar = re.compile(r"^ *(\d+)\t(.*)$", re.M)

    def list_sources(self) -> Generator[Step, str, tuple[list[str], list[str]]]:
        listing = yield "Which Python files are there?", _bash(_list_command())
        return find_sources(listing.split("\n"))

    def search(self, clues: Weights, terms: Sequence[str], roots: Sequence[str]) -> Generator[Step, str, Weights]:
        if not terms:
            return {}
        found = yield f"The issue speaks of {', '.join(terms)}.", _bash(_search_command(terms, roots))
        return score_files(found, clues)

    def view(self, path: str, start: int) -> ToolCall:
        page = {"command": "view", "path": f"/testbed/{path}", "view_range": [start, start + PAGE_LINES - 1]}
        return ToolCall("str_replace_editor", page)


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
