"""A rule-made agent for the structured tools of `func_loc`: list, search, view page by page.

What it does with them is in `func_loc_agent.py`; `func_loc_shell.py` does the same with a shell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

from ppp.baselines.func_loc_agent import FuncLocAgent, Step
from ppp.baselines.func_loc_text import NOT_SOURCES, Weights
from ppp.types import ToolCall

_MATCH = re.compile(r"^(\S.*?\.py):\d+: ", re.M)


class ReadAgent(FuncLocAgent):
    """Looks into folders one by one, and searches for one word at a time.

    Args:
        max_listings: folders to look into.
    """

    page_header: ClassVar = re.compile(r"^.*, lines \d+ to (?P<last>\d+) of (?P<total>\d+)$", re.M)
    page_line: ClassVar = re.compile(r"^ *(\d+) (.*)$", re.M)

    def __init__(self, ask: bool = False, max_listings: int = 28, **limits: Any) -> None:
        super().__init__(ask, **limits)
        self.max_listings = max_listings

    def list_sources(self) -> Generator[Step, str, tuple[list[str], list[str]]]:
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
        return roots, paths

    def search(self, clues: Weights, terms: Sequence[str], roots: Sequence[str]) -> Generator[Step, str, Weights]:
        scores: Weights = {}
        for term in terms:
            for root in roots:
                found = yield f"The issue speaks of {term}.", ToolCall("search_code", {"query": term, "path": root})
                for path, score in score_matches(found).items():
                    scores[path] = scores.get(path, 0.0) + score * clues[term]
        return scores

    def view(self, path: str, start: int) -> ToolCall:
        return ToolCall("view", {"path": path, "start_line": start})


def score_matches(observation: str) -> Weights:
    """What a search says for each file, in units of the term's weight: the fewer files it finds, the more.

    Nothing where the matches were too many to be shown: those shown are only the first of the alphabet.
    """
    if "\n[only" in observation:
        return {}
    paths = set(_MATCH.findall(observation))
    return {path: math.log(1 + 60 / len(paths)) / 4 for path in paths}
