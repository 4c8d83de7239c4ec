"""`func_loc` with a shell: each session has a sandbox of its own over a checkout that all sessions share.

The tools are in `shell_tools.py`, sandboxes in `sandbox.py`, checkouts in `ppp/swe/trees.py`. The task and its score
are in `func_loc.py`: nothing of the payload enters the sandbox.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ppp.environments.func_loc import FuncLocEnvironment, option_field
from ppp.environments.sandbox import SANDBOXES, Sandbox, SandboxLimits, check_sandbox, sandbox_class
from ppp.environments.shell_tools import SHELL_TOOLS, ShellTools
from ppp.swe.trees import TreeStore, default_folder
from ppp.types import InfrastructureError, Observation, RecipeError, Task, ToolCall

LIMITS = tuple(field.name for field in fields(SandboxLimits))
STORE_OPTIONS = {"trees": "folder", "max_trees_gb": "max_gb", "history": "history"}  # option -> argument of TreeStore

_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {  # bools are ints to isinstance
    "sandbox": (lambda value: isinstance(value, str) and value in SANDBOXES, ", ".join(SANDBOXES)),
    "image": (lambda value: isinstance(value, str) and value != "", "the name of an image"),
    "trees": (lambda value: isinstance(value, str) and value != "", "a folder for checkouts"),
    "max_trees_gb": (lambda value: type(value) in (int, float) and 0 < value < math.inf, "a number > 0"),
    "history": (lambda value: value is None or (type(value) is int and value >= 0), "an integer >= 0, or null"),
}


class FuncLocShell(FuncLocEnvironment):
    """`func_loc` with the tools of the paper.

    Options: `sandbox` (a key of `SANDBOXES`), `image` (of containers: one that is on the machine and has bash, git and
    what else the agent is to use), `trees` (the folder for checkouts), `max_trees_gb`, `history` (generations of
    commits that `git log` shows, see `TreeStore`), and the fields of `SandboxLimits`.
    """

    tools = SHELL_TOOLS
    system_prompt = "func_loc_shell_system.txt"
    tool_options = ("sandbox", "image", *STORE_OPTIONS, *LIMITS)

    @classmethod
    def check_tool_options(cls, options: Mapping[str, Any]) -> None:
        for name, (fits, allowed) in _ALLOWED.items():
            if name in options and not fits(options[name]):
                raise RecipeError(f"{option_field(name)}: {options[name]!r} is not allowed; allowed: {allowed}")
        if ("image" in options) != (_sandbox_kind(options) == "container"):
            allowed = "the image of a container, with sandbox: container and only there"
            raise RecipeError(f"{option_field('image')}: {options.get('image')!r} is not allowed; allowed: {allowed}")
        try:
            _limits(options)
            _store(options)
        except RecipeError as error:
            raise RecipeError(f"environment_options.func_loc: {error}") from error
        check_sandbox(_sandbox_kind(options))

    @classmethod
    def step_limit(cls, options: Mapping[str, Any]) -> tuple[str, float]:
        return "timeout_s", _limits(options).timeout_s

    def __init__(self, task: Task, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(task, options)
        self._lease = _Lease()
        self._sandbox: Sandbox | None = None

    async def setup(self) -> None:
        store, payload = _store(self.options), self.task.payload
        tree = await asyncio.to_thread(self._lease.take, store, payload["source"], payload.get("commit"))
        self._sandbox = _make_sandbox(self.options, tree)
        await self._sandbox.setup()
        self._shell = ShellTools(self._sandbox)

    async def close(self) -> None:
        try:
            if self._sandbox is not None:
                await self._sandbox.close()
        finally:
            self._lease.give_back()

    async def step(self, call: ToolCall) -> Observation:
        return await self._shell.call(call)


class _Lease:
    """A checkout, from when it is there to when it is given back, which a cancelled session may do before that."""

    def __init__(self) -> None:
        self._stack, self._lock, self._is_over = ExitStack(), threading.Lock(), False

    def take(self, store: TreeStore, source: str, commit: str | None) -> Path:
        """The folder; blocks until it is built."""
        tree = store.tree(source, commit)
        path = tree.__enter__()
        with self._lock:
            if not self._is_over:
                self._stack.push(tree)
                return path
        tree.__exit__(None, None, None)
        raise InfrastructureError(f"{source}, commit {commit}: nobody waits for this tree any more")

    def give_back(self) -> None:
        with self._lock:
            self._is_over = True
        self._stack.close()


def _sandbox_kind(options: Mapping[str, Any]) -> str:
    return str(options.get("sandbox", "bubblewrap"))


def _make_sandbox(options: Mapping[str, Any], tree: Path) -> Sandbox:
    make: Callable[..., Sandbox] = sandbox_class(_sandbox_kind(options))
    if "image" in options:
        return make(options["image"], _limits(options), tree=tree)
    return make(tree, _limits(options))


def _limits(options: Mapping[str, Any]) -> SandboxLimits:
    return SandboxLimits(**{name: value for name, value in options.items() if name in LIMITS})


def _store(options: Mapping[str, Any]) -> TreeStore:
    given = {argument: options[name] for name, argument in STORE_OPTIONS.items() if name in options}
    return _opened_store(**{"folder": str(default_folder()), **given})


@lru_cache(maxsize=16)
def _opened_store(**arguments: Any) -> TreeStore:
    return TreeStore(Path(arguments.pop("folder")), **arguments)
