"""The structured tools of `func_loc`, for where a shell is not wanted: list a directory, search a text, view a file.

They read the commit out of the repository, without a checkout and without a sandbox, and what they show is bounded. The
tree itself is in `source_tree.py`, the task and its score are in `func_loc.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ppp.environments.func_loc import FuncLocEnvironment, option_field
from ppp.environments.source_tree import Match, SourceTree, TreePathError, open_tree
from ppp.types import Observation, RecipeError, ToolCall, ToolSpec

MAX_LINE_CHARS = 300  # of one line of source; the rest of it is left out, with a note
LIMITS = {"max_view_lines": 200, "max_search_results": 50, "max_list_entries": 200}  # option -> default

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


class FuncLocRead(FuncLocEnvironment):
    """`func_loc` with read-only tools; a folder, too, can be read as it is."""

    tools = (LIST_DIR, SEARCH_CODE, VIEW)
    system_prompt = "func_loc_read_system.txt"
    tool_options = tuple(LIMITS)

    @classmethod
    def check_tool_options(cls, options: Mapping[str, Any]) -> None:
        for name, value in options.items():
            if type(value) is not int or value < 1:  # a bool is an int to isinstance
                raise RecipeError(f"{option_field(name)}: {value!r} is not allowed; allowed: an integer of at least 1")

    async def setup(self) -> None:
        self._tree = await asyncio.to_thread(open_tree, self.task.payload["source"], self.task.payload.get("commit"))

    async def step(self, call: ToolCall) -> Observation:
        tools: dict[str, Callable[..., str]]
        tools = {"list_dir": self._list_dir, "search_code": self._search_code, "view": self._view}
        try:
            return Observation(await asyncio.to_thread(tools[call.name], self._tree, **call.arguments))
        except TreePathError as error:
            return Observation(str(error), is_error=True)

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
