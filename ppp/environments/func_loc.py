"""Function localisation on real code: read a source tree, name the functions that an issue wants edited, get F1.

The tools only read, and what they show is bounded. The tree itself is in `source_tree.py`, real issues come from
`ppp/swe/rows.py`, and a rule-made agent is in `baselines/func_loc.py`.
"""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ppp.environments.base import Environment, set_f1
from ppp.environments.source_tree import Match, SourceTree, TreePathError, check_source, open_tree
from ppp.types import Observation, RecipeError, Source, Task, ToolCall, ToolSpec

MAX_LINE_CHARS = 300  # of one line of source; the rest of it is left out, with a note
LIMITS = {"max_view_lines": 200, "max_search_results": 50, "max_list_entries": 200}  # option -> default
_BULLET = re.compile(r"(?:[-*]\s+|•\s*|\d+[.)]\s+)")
_SANDBOX_PREFIXES = ("testbed/", "workspace/")  # where containers for such tasks keep the repository

LIST_DIR = ToolSpec(
    "list_dir",
    "List a directory of the source tree. Directories end with a slash.",
    {
        "type": "object",
        "properties": {"path": {"type": "string", "description": 'from the root of the tree; "." is the root'}},
        "required": ["path"],
        "additionalProperties": False,
    },
)
SEARCH_CODE = ToolSpec(
    "search_code",
    "Find the lines that contain a text, taken literally, case included. Python files come first.",
    {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "the text, without line breaks"},
            "path": {"type": "string", "description": "a directory or file to search in; left out, the whole tree"},
        },
        "required": ["query"],
        "additionalProperties": False,
    },
)
VIEW = ToolSpec(
    "view",
    "Show a file with line numbers, the whole of it or some lines.",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "the file"},
            "start_line": {"type": "integer", "description": "the first line to show, from 1"},
            "end_line": {"type": "integer", "description": "the last line to show"},
        },
        "required": ["path"],
        "additionalProperties": False,
    },
)


def func_loc_f1(answer: str | None, gold: Sequence[str], accept_bullets: bool = True) -> float:
    """F1 in [0, 1] between the functions that an answer names, one a line, and the right ones.

    No answer scores 0; an empty one scores 1 where nothing was to be found, else 0. Source: PPP section 4.1.

    Args:
        accept_bullets: also take off list bullets and backticks around a line; False is the rule of the released code.
    """
    if answer is None:
        return 0.0
    predicted = {_normalised(_bare_line(line) if accept_bullets else line) for line in answer.split("\n")} - {""}
    return set_f1(predicted, {_normalised(name) for name in gold})


def _bare_line(line: str) -> str:
    line = line.strip().strip("`").strip()
    bullet = _BULLET.match(line)
    return line[bullet.end() :].strip().strip("`") if bullet else line


def _normalised(line: str) -> str:
    """One `path:name` with its path as it stands in the repository; "" for a blank line."""
    path, colon, name = line.strip().lstrip("/").partition(":")
    for prefix in _SANDBOX_PREFIXES:
        if path.startswith(prefix):
            path = path.removeprefix(prefix).lstrip("/")
            break
    return (posixpath.normpath(path) if path else "") + colon + name


class FuncLocEnvironment(Environment):
    """One issue on one source tree.

    Payload: `source` (a folder, or a git repository, bare or not), `commit` (a commit of that repository, read without
    a checkout; absent or None for a folder as it is), `gold_functions` (a list of `path.py:Class.method`) and
    `hints_text` (what was said about the issue later on, for its user; may be absent).
    """

    tools = (LIST_DIR, SEARCH_CODE, VIEW)
    system_prompt = "func_loc_system.txt"

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            field = f"environment_options.func_loc.{name}"
            if name in LIMITS:
                if type(value) is not int or value < 1:  # a bool is an int to isinstance
                    raise RecipeError(f"{field}: {value!r} is not allowed; allowed: an integer of at least 1")
            elif name == "accept_bullets":
                if type(value) is not bool:
                    raise RecipeError(f"{field}: {value!r} is not allowed; allowed: true, false")
            else:
                raise RecipeError(f"{field}: unknown option; allowed: {', '.join(('accept_bullets', *LIMITS))}")

    @classmethod
    def check_task(cls, task: Task) -> None:
        where = f"task {task.task_id!r}: payload"
        source, commit, gold = (task.payload.get(name) for name in ("source", "commit", "gold_functions"))
        if not isinstance(source, str):
            raise RecipeError(f"{where}.source: {source!r}; allowed: the path of a folder or a git repository")
        if commit is not None and not (isinstance(commit, str) and commit.strip()):
            raise RecipeError(f"{where}.commit: {commit!r}; allowed: a commit of the repository, or null for a folder")
        if not isinstance(gold, list) or not gold or not all(isinstance(name, str) and ":" in name for name in gold):
            raise RecipeError(f"{where}.gold_functions: {gold!r}; allowed: a list of 'path.py:Class.method', not empty")
        hints = task.payload.get("hints_text")
        if hints is not None and not isinstance(hints, str):
            raise RecipeError(f"{where}.hints_text: {hints!r}; allowed: a text, or null")
        try:
            check_source(source, commit)
        except RecipeError as error:
            raise RecipeError(f"task {task.task_id!r}: {error}") from error

    @classmethod
    def sources(cls, task: Task) -> tuple[Source, ...]:
        """The issue's later comments (`hints_text`, if it has any), and files and functions of the right answer.

        Levels are those of the released code; the comments may name the solution, and are no part of it.
        """
        functions = tuple(task.payload["gold_functions"])
        files = tuple(dict.fromkeys(name.partition(":")[0] for name in functions))
        hints = task.payload.get("hints_text") or ""
        return (
            *([Source("hints", hints, (), level=2, is_gold=False)] if hints.strip() else []),
            Source("gold_files", "\n".join(files), files, level=4),
            Source("gold_functions", "\n".join(functions), functions, level=5),
        )

    async def setup(self) -> None:
        self._tree = await asyncio.to_thread(open_tree, self.task.payload["source"], self.task.payload.get("commit"))

    async def step(self, call: ToolCall) -> Observation:
        tools: dict[str, Callable[..., str]]
        tools = {"list_dir": self._list_dir, "search_code": self._search_code, "view": self._view}
        try:
            return Observation(await asyncio.to_thread(tools[call.name], self._tree, **call.arguments))
        except TreePathError as error:
            return Observation(str(error), is_error=True)

    async def score(self, answer: str | None) -> float:
        """Set F1 of the functions in `answer`, one a line. Source: PPP section 4.1."""
        return func_loc_f1(answer, self.task.payload["gold_functions"], self.options.get("accept_bullets", True))

    def _limit(self, name: str) -> int:
        return int(self.options.get(name, LIMITS[name]))

    def _list_dir(self, tree: SourceTree, path: str) -> str:
        names, limit = tree.children(path), self._limit("max_list_entries")
        notes = [f"[{len(names) - limit} more entries are not shown]"] if len(names) > limit else []
        return "\n".join([*names[:limit], *notes]) or "[empty directory]"

    def _search_code(self, tree: SourceTree, query: str, path: str = "") -> str:
        limit = self._limit("max_search_results")
        matches = tree.search(query, path, limit + 1)
        notes = [f"[only the first {limit} matches are shown]"] if len(matches) > limit else []
        return "\n".join([*map(_match_line, matches[:limit]), *notes]) or "[no matches]"

    def _view(self, tree: SourceTree, path: str, start_line: int = 1, end_line: int | None = None) -> str:
        lines = tree.read(path).removesuffix("\n").split("\n")
        num_lines, limit = len(lines), self._limit("max_view_lines")
        start_line = int(start_line)  # 5.0 is an integer to a JSON schema
        last = num_lines if end_line is None else min(int(end_line), num_lines)
        if not 1 <= start_line <= num_lines or last < start_line:
            wanted = f"{start_line} to {'the end' if end_line is None else end_line}"
            raise TreePathError(f"Lines {wanted} cannot be shown: {path!r} has lines 1 to {num_lines}.")
        shown = min(last, start_line + limit - 1)
        numbered = (f"{number:>5} {_cut(lines[number - 1])}" for number in range(start_line, shown + 1))
        notes = [f"[lines {start_line} to {shown} of {num_lines}; at most {limit} are shown]"] if shown < last else []
        header = f"{tree.resolve(path)}, lines {start_line} to {shown} of {num_lines}"
        return "\n".join([header, *numbered, *notes])


def _match_line(match: Match) -> str:
    return f"{match.path}:{match.line}: {_cut(match.text.strip())}"


def _cut(line: str) -> str:
    line = line.rstrip("\r")
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]} [{len(line) - MAX_LINE_CHARS} more]"
