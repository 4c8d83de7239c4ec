"""Function localisation on real code: explore a repository, name the functions that an issue wants edited, get F1.

What is the same whatever the agent explores with: the payload, what the user knows, the score. The tools are in
`func_loc_shell.py` (a shell in a sandbox, as in the paper) and `func_loc_read.py` (structured tools that only read).
Real issues come from `ppp/swe/rows.py`, and rule-made agents are in `baselines/func_loc.py`.
"""

from __future__ import annotations

import posixpath
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from ppp.environments.base import Environment, set_f1
from ppp.environments.source_tree import check_source
from ppp.types import RecipeError, Source, Task

TOOLSETS = {  # value of the option `toolset` -> the environment with these tools; the first is the default
    "shell": "ppp.environments.func_loc_shell:FuncLocShell",
    "read": "ppp.environments.func_loc_read:FuncLocRead",
}
SHARED_OPTIONS = ("toolset", "accept_bullets")
_BULLET = re.compile(r"(?:[-*]\s+|•\s*|\d+[.)]\s+)")
_SANDBOX_PREFIXES = ("testbed/", "workspace/")  # where containers for such tasks keep the repository


def option_field(name: str) -> str:
    """How messages call an option of this environment."""
    return f"environment_options.func_loc.{name}"


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
    """One issue on one source tree; `variant` gives the class with the tools.

    Payload: `source` (a git repository, bare or not, or a folder that is none), `commit` (a commit of that repository;
    absent or None for a folder as it is), `gold_functions` (a list of `path.py:Class.method`) and `hints_text` (what
    was said about the issue later on, for its user; may be absent). Nothing of it is ever written where a tool reads.
    """

    tool_options: ClassVar[tuple[str, ...]] = ()  # beside `SHARED_OPTIONS`

    @classmethod
    def variant(cls, options: Mapping[str, Any]) -> type[FuncLocEnvironment]:
        toolset = options.get("toolset", next(iter(TOOLSETS)))
        if not isinstance(toolset, str) or toolset not in TOOLSETS:
            raise RecipeError(f"{option_field('toolset')}: {toolset!r} is unknown; allowed: {', '.join(TOOLSETS)}")
        module, _, name = TOOLSETS[toolset].partition(":")
        found: type[FuncLocEnvironment] = vars(import_module(module))[name]
        return found

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        found = cls.variant(options)
        for name in options:
            if name not in (*SHARED_OPTIONS, *found.tool_options):
                allowed = ", ".join((*SHARED_OPTIONS, *found.tool_options))
                raise RecipeError(f"{option_field(name)}: unknown option; allowed with these tools: {allowed}")
        bullets = options.get("accept_bullets", True)
        if type(bullets) is not bool:
            raise RecipeError(f"{option_field('accept_bullets')}: {bullets!r} is not allowed; allowed: true, false")
        found.check_tool_options({name: value for name, value in options.items() if name not in SHARED_OPTIONS})

    @classmethod
    @abstractmethod
    def check_tool_options(cls, options: Mapping[str, Any]) -> None:
        """Raise `RecipeError` for a value of `tool_options` that cannot be used, or tools that cannot be had here."""

    @classmethod
    def check_task(cls, task: Task) -> None:
        where = f"task {task.task_id!r}: payload"
        source, commit, gold = (task.payload.get(name) for name in ("source", "commit", "gold_functions"))
        if not isinstance(source, str):
            raise RecipeError(f"{where}.source: {source!r}; allowed: the path of a folder or a git repository")
        if commit is None and (Path(source) / ".git").exists():
            reason = "absent, but the source is a git repository, whose history may hold the fix"
            raise RecipeError(f"{where}.commit: {reason}; allowed: the commit before it")
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

    async def score(self, answer: str | None) -> float:
        """Set F1 of the functions in `answer`, one a line. Source: PPP section 4.1."""
        return func_loc_f1(answer, self.task.payload["gold_functions"], self.options.get("accept_bullets", True))
