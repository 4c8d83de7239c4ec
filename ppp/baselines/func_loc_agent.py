"""What the rule-made agents of `func_loc` have in common: the plan of a session, whatever the tools are called.

The tools are in `func_loc_shell.py` and `func_loc_read.py`; how text is weighed is in `func_loc_text.py`. An agent sees
what a policy sees, the prompt and the observations, and keeps nothing between turns: every turn replays the plan over
the session so far.
"""

from __future__ import annotations

import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from typing import ClassVar

from ppp.baselines.func_loc_text import (
    Counted,
    Weights,
    best_functions,
    count_words,
    read_functions,
    score_paths,
    weigh_clues,
)
from ppp.types import Task, ToolCall, Turn

Step = tuple[str, ToolCall]

QUESTION = "Which option, class or error message is this about, and what did you expect instead?"


class FuncLocAgent(ABC):
    """Searches for what the issue names, reads the most promising files, and names their most similar functions.

    Subclasses say with which tools. Their generators yield steps and are sent observations.

    Args:
        ask: put one question to the user first.
        max_searches: words of the issue to search for.
        max_files: files to read.
        max_pages: pages that this may take.
        max_answers: functions that the answer may name.

    Attributes:
        page_header: finds in an observation the numbers of the last line shown ("last") and of all lines ("total").
        page_line: finds a line: its number, its text.
    """

    page_header: ClassVar[re.Pattern[str]]
    page_line: ClassVar[re.Pattern[str]]

    def __init__(
        self, ask: bool = False, max_searches: int = 10, max_files: int = 2, max_pages: int = 16, max_answers: int = 2
    ) -> None:
        self.ask = ask
        self.max_searches, self.max_files = max_searches, max_files
        self.max_pages, self.max_answers = max_pages, max_answers

    @abstractmethod
    def list_sources(self) -> Generator[Step, str, tuple[list[str], list[str]]]:
        """The packages at the top, or in `src`, and their Python files; without packages, no root and all files."""

    @abstractmethod
    def search(self, clues: Weights, terms: Sequence[str], roots: Sequence[str]) -> Generator[Step, str, Weights]:
        """What searches for `terms` say for each file."""

    @abstractmethod
    def view(self, path: str, start: int) -> ToolCall:
        """The call that shows a page of a file from line `start` on."""

    def act(self, task: Task, turns: Sequence[Turn]) -> Step:
        steps = self._steps(task.prompt)
        step = next(steps)
        for turn in turns:
            step = steps.send(turn.observation or "")
        return step

    def _steps(self, text: str) -> Generator[Step, str, None]:
        if self.ask:
            reply = yield "I ask what would narrow the search down.", ToolCall("ask_user", {"query": QUESTION})
            text += f"\n\n{reply}"
        answer = yield from self._plan(text)
        while True:
            yield "These functions share most with the issue.", ToolCall("finish", {"answer": answer})

    def _plan(self, text: str) -> Generator[Step, str, str]:
        roots, paths = yield from self.list_sources()
        packages = [posixpath.basename(root) for root in roots]
        clues = weigh_clues(text, ignored={*packages, *(name.strip("_") for name in packages)})
        scores = score_paths(paths, clues, text)
        terms = sorted(clues, key=lambda term: (-clues[term], term))[: self.max_searches]
        found = yield from self.search(clues, terms, roots or ["."])
        for path, score in found.items():
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
                shown = yield f"{path} has most in common with the issue.", self.view(path, start)
                header = self.page_header.search(shown)
                if header is None:
                    break
                start, end = int(header["last"]) + 1, int(header["total"])
                lines |= {int(number): line for number, line in self.page_line.findall(shown)}
            functions += map(count_words, read_functions(path, lines))
        return functions
