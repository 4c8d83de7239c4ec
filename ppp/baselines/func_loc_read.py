"""A rule-made agent for the structured tools of `func_loc`: list, search, view page by page.

How it weighs what it reads is in `func_loc_text.py`; `func_loc_shell.py` does the same with a shell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence

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

_MATCH = re.compile(r"^(\S.*?\.py):\d+: ", re.M)
_VIEW_HEADER = re.compile(r"^.*, lines \d+ to (\d+) of (\d+)$", re.M)
_VIEW_LINE = re.compile(r"^ *(\d+) (.*)$", re.M)


class ReadAgent(PlannedAgent):
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

    def plan(self, text: str) -> Plan:
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
        return "\n".join(best_functions(functions, clues, self.max_answers))

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

    def _read(self, paths: Sequence[str]) -> Generator[Step, str, list[Counted]]:
        """Read files from the top, page by page, while calls are left."""
        functions: list[Counted] = []
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
            functions += map(count_words, read_functions(path, lines))
        return functions


def score_matches(observation: str) -> Weights:
    """What a search says for each file, in units of the term's weight: the fewer files it finds, the more.

    Nothing where the matches were too many to be shown: those shown are only the first of the alphabet.
    """
    if "\n[only" in observation:
        return {}
    paths = set(_MATCH.findall(observation))
    return {path: math.log(1 + 60 / len(paths)) / 4 for path in paths}
